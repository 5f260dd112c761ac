"""Question-answer data as published, read row by row: nothing is dropped in silence.

LLaVA-style and ShareGPT-style JSON, JSON and Parquet rows with options, and the tabletop's own
questions. A conversation's turns become samples of their own about the same picture.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from envs import tabletop
from vlm4vla.aux import pictures
from vlm4vla.aux.datasets import SPATIAL, VqaDataset
from vlm4vla.aux.samples import Sample
from vlm4vla.aux.tabletop_lessons import LESSONS, lessons
from vlm4vla.aux.tabletop_vqa import examples

Row = Mapping[str, Any]
PLACEHOLDER = re.compile(r"\s*<(image|video)>\s*")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
MEDIA = ("image", "images", "video", "videos", "path")
QUESTION, OPTIONS = ("question", "problem"), ("choices", "options", "answer_options")
ANSWER = ("correct_answer", "answer", "solution")
"""What flat rows call their parts; the first that a row has counts."""


@dataclass(frozen=True)
class Bad:
    """A row that cannot be used: "file: row" and why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


Read = Iterator[Sample | Bad]


def read(row: VqaDataset, folder: Path) -> Read:
    """Every sample of a row's data below `folder`, and what cannot be one.

    FileNotFoundError when none of its files is there.
    """
    return FORMATS[row.format](row, folder)


def _files(row: VqaDataset, folder: Path) -> list[Path]:
    found = sorted({path for pattern in row.files for path in folder.glob(pattern)})
    if not found:
        raise FileNotFoundError(
            f"no data of {row.name!r} in {folder}: expected {' or '.join(row.files)} there, as "
            f"{row.source} publishes them"
        )
    return found


def _json_rows(path: Path) -> Iterator[Any]:
    """A JSON list, or one JSON value a line; ValueError for a file that is neither."""
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            yield from (_parsed(line) for line in file if line.strip())
            return
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no list of rows")
    yield from rows


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def _from_json(
    samples: Callable[[VqaDataset, Path, Row, str], Iterable[Sample | Bad]],
    row: VqaDataset,
    folder: Path,
) -> Read:
    for path in _files(row, folder):
        for number, found in enumerate(_json_rows(path)):
            where = f"{path.relative_to(folder)}: {number}"
            if isinstance(found, Mapping):
                yield from samples(row, path.parent, found, where)
            else:
                yield Bad(where, f"not a JSON object ({found!r:.80})")


def _from_parquet(row: VqaDataset, folder: Path) -> Read:
    for path in _files(row, folder):
        numbers = itertools.count()
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            for found in batch.to_pylist():
                where = f"{path.relative_to(folder)}: {next(numbers)}"
                yield from _flat(row, path.parent, found, where)


# -- conversations


def _conversation(row: VqaDataset, folder: Path, found: Row, where: str) -> Read:
    """LLaVA (`from`, `value`) and ShareGPT (those, or `role`, `content`) alike."""
    image = _image(folder, found)
    if image is None:
        yield Bad(where, "no picture")
        return
    turns = found.get("conversations") or found.get("messages") or ()
    said = [_turn(each) if isinstance(each, Mapping) else (repr(each), "") for each in turns]
    said = [(who, text) for who, text in said if who != "system"]
    if not said:
        yield Bad(where, "no question")
    for number, pair in enumerate(_pairs(said)):
        (asker, question), (teller, answer) = pair
        place = f"{where}.{number}" if len(said) > 2 else where
        if asker not in ASKS or teller not in ANSWERS:
            yield Bad(place, f"a turn of {asker!r} then {teller!r}")
        else:
            yield _sample(row, image, row.prompt.format(question=question), answer, place)


def _pairs(said: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Questions with their answers; a last question that nobody answered has an empty one."""
    padded = [*said, (ANSWERS[0], "")] if len(said) % 2 else said
    return list(zip(padded[::2], padded[1::2], strict=True))


def _turn(turn: Row) -> tuple[str, str]:
    """Who speaks, and what, without the picture's placeholder."""
    text = turn.get("value", turn.get("content", ""))
    if isinstance(text, list):  # content in parts, of which the words count
        text = " ".join(part.get("text", "") for part in text if isinstance(part, Mapping))
    return str(turn.get("from", turn.get("role", ""))), PLACEHOLDER.sub(" ", str(text)).strip()


# -- flat rows


def _flat(row: VqaDataset, folder: Path, found: Row, where: str) -> Read:
    """One question a row, with its options where there are some."""
    image, question, answer = _image(folder, found), _part(found, QUESTION), _part(found, ANSWER)
    if image is None:
        yield Bad(where, "no picture")
        return
    options = _listed(_part(found, OPTIONS))
    asked = str(question or "").strip()
    if not asked:
        yield Bad(where, "no question")
        return
    text = PLACEHOLDER.sub(" ", asked).strip()
    if options:
        text = row.prompt.format(question=text, options="\n".join(_lettered(options)))
        answer = _letter(options, answer)
    yield _sample(row, image, text, "" if answer is None else str(answer), where)


def _part(found: Row, names: Sequence[str]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _listed(options: Any) -> list[str]:
    """Options as a list; Robo2VLM spells it as Python would print it."""
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError):
            return []
    return [str(option) for option in options or ()]


def _lettered(options: Sequence[str]) -> list[str]:
    """`A. left`, `B. right`, …; options that bring their letters keep them."""
    return [
        option if re.match(rf"{letter}[.)]", option) else f"{letter}. {option}"
        for letter, option in zip(LETTERS, options, strict=False)
    ]


def _letter(options: Sequence[str], answer: Any) -> str | None:
    """The right option's letter, from its number, letter or text; None when there is no such."""
    if isinstance(answer, str):
        tagged = re.search(r"<answer>(.*?)</answer>", answer, re.DOTALL)
        answer = (tagged.group(1) if tagged else answer).strip()
        if answer in LETTERS[: len(options)] and answer:
            return answer
        if answer.isdigit():
            answer = int(answer)
        elif answer in options:
            return LETTERS[options.index(answer)]
    if isinstance(answer, int) and 0 <= answer < len(options):
        return LETTERS[answer]
    return None


# -- what both share


def _image(folder: Path, found: Row) -> Callable[[], Any] | None:
    media = [value for value in (found.get(name) for name in MEDIA) if value]
    return partial(pictures.load, folder, media[0]) if media else None


def _sample(row: VqaDataset, image: Any, question: str, answer: str, where: str) -> Sample | Bad:
    tagged = re.fullmatch(r"\s*<answer>(.*)</answer>\s*", answer, re.DOTALL)
    answer = (tagged.group(1) if tagged else answer).strip()
    if not question.strip():
        return Bad(where, "no question")
    if not answer:
        return Bad(where, "no answer")
    return Sample(image, question, answer, kind_of(row.kind, answer), where=where)


def kind_of(kind: str, answer: str) -> str:
    """The kind of a `SPATIAL` answer, by how it reads; other kinds are what they are."""
    if kind != SPATIAL:
        return kind
    if re.fullmatch(r"-?\d+(\.\d+)?", answer.strip()):
        return "number"
    return "choice" if len(answer.split()) <= 4 else "text"


# -- the tabletop


def _from_tabletop(row: VqaDataset, folder: Path) -> Read:
    """`row.samples` questions of the row's kinds in turn, each about a scene of its own."""
    sources = [lessons(kind, 0) if kind in LESSONS else examples(0, kind) for kind in row.files]
    for number, source in enumerate(itertools.islice(itertools.cycle(sources), row.samples)):
        scene, question = next(source)
        region = getattr(question, "region", None)
        yield Sample(
            partial(tabletop.render, scene),
            question.text,
            question.answer,
            row.kind,
            regions=() if region is None else (region,),
            where=f"{row.name}: {number}",
        )


FORMATS: Mapping[str, Callable[[VqaDataset, Path], Read]] = {
    "llava": partial(_from_json, _conversation),
    "sharegpt": partial(_from_json, _conversation),
    "json": partial(_from_json, _flat),
    "parquet": _from_parquet,
    "tabletop": _from_tabletop,
}
