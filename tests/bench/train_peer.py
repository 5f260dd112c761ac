"""Hugging Face's Trainer on the model and batches of bench_train.py: one process, its own loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from train_turns import STEPS, Turns
from transformers import Trainer, TrainerCallback, TrainingArguments

from vlm4vla.engine import Loss
from vlm4vla.policies import VlmPolicy


class Prepared(IterableDataset):
    """Batches as our own thread prepares them ahead, so that only the loops differ."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        return (part for _, (part,) in self.steps)


class Answering(nn.Module):
    """The policy's loss under the name by which a Trainer looks for it."""

    def __init__(self, policy: VlmPolicy) -> None:
        super().__init__()
        self.loss = Loss(policy)

    def forward(self, part: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(part.inputs, *part.targets)[0]}


class TakingTurns(TrainerCallback):
    def __init__(self, turns: Turns, batch: int) -> None:
        self.turns, self.batch = turns, batch

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == STEPS:
            self.turns.begin()
        elif state.global_step % STEPS == 0:
            self.turns.end(STEPS * self.batch)
            control.should_training_stop = self.turns.round > self.turns.rounds
        return control


def trainer(
    policy: VlmPolicy, steps: Iterator[Any], rate: Callable[[int], float], callback: TakingTurns
) -> None:
    """Train until the callback says so. rate: step to learning rate; the optimiser is bare's."""
    parameters = policy.optimised_parameters()
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=1_000_000,
            max_grad_norm=1.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            accelerator_config={"dispatch_batches": False},
        )
        made = Trainer(
            model=Answering(policy),
            args=arguments,
            data_collator=lambda parts: {"part": parts[0]},
            train_dataset=Prepared(steps),
            optimizers=(optimiser, schedule),
            callbacks=[callback],
        )
        made.train()
