"""TRL's SFTTrainer on the tiny backbone and questions of bench_sft.py; run by the peer's Python.

python tests/bench/sft_peer.py FOLDER ROUNDS BATCH: takes its turns in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Image, List, Value
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from train_turns import Turns
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    TrainerCallback,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import SFTConfig, SFTTrainer

from vlm4vla import weights
from vlm4vla.backbones import backbone
from vlm4vla.tokenizers import TINY_SPECIAL, TINY_VOCABULARY

BACKBONE = "tiny-qwen2.5vl-3b"
PX = 112
SYSTEM = "<|im_start|>system\nyou are a helpful assistant.<|im_end|>\n"
TEMPLATE = (
    SYSTEM + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class PicturesOnly(Qwen2_5_VLProcessor):
    """The hub's processor without its part for videos, which would need torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)


def processor() -> Qwen2_5_VLProcessor:
    """The tiny vocabulary and picture size in the classes that the hub's models come with."""
    ids: dict[str, int] = {}
    for index, word in enumerate(TINY_VOCABULARY):
        ids.setdefault(word, index)
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    split = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.add_special_tokens([AddedToken(word, normalized=False) for word in TINY_SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
    )
    sizes: dict[str, Any] = {
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "size": {"shortest_edge": PX * PX, "longest_edge": PX * PX},
    }
    return PicturesOnly(Qwen2VLImageProcessorPil(**sizes), tokenizer, chat_template=TEMPLATE)


def dataset(folder: Path) -> Dataset:
    """Prompt, completion and picture of each question, as TRL takes them."""
    table = pq.read_table(folder / "shard-00000.parquet")
    found = [row for row in table.to_pylist() if not row["held_out"]]
    rows = {
        "prompt": [[_message("user", row["question"], True)] for row in found],
        "completion": [[_message("assistant", row["answer"], False)] for row in found],
        "images": [[{"bytes": row["image"]}] for row in found],
    }
    part = {"type": Value("string"), "text": Value("string")}
    message = {"role": Value("string"), "content": List(part)}
    features = {"prompt": List(message), "completion": List(message), "images": List(Image())}
    return Dataset.from_dict(rows, features=Features(features))


def _message(role: str, text: str, shows: bool) -> dict[str, Any]:
    picture = [{"type": "image", "text": None}] if shows else []
    return {"role": role, "content": [*picture, {"type": "text", "text": text}]}


class TakingTurns(TrainerCallback):
    """Ends a turn after so many steps that it takes about a second."""

    def __init__(self, turns: Turns, batch: int) -> None:
        self.turns, self.batch, self.steps, self.each = turns, batch, 0, 4

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        self.steps += 1
        if self.steps == 1:
            self.turns.begin()
        elif (self.steps - 1) % self.each == 0:
            self.turns.end(self.each * self.batch)
            control.should_training_stop = self.turns.round > self.turns.rounds
        return control


def main(folder: Path, rounds: int, batch: int) -> None:
    torch.set_num_threads(1)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        max_steps=100_000,
        learning_rate=2e-3,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        max_length=None,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=weights.pretrained(backbone(BACKBONE)),
        args=config,
        train_dataset=dataset(folder / "questions"),
        processing_class=processor(),
    )
    trainer.add_callback(TakingTurns(Turns(folder, "trl", ("ours", "trl"), rounds), batch))
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
