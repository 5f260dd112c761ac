"""What a search says of its runs: which began, their scores so far, how they ended.

Tune's own report repeats a table of all trials each half minute, and leaves their scores out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from vla_platform.tables import standing_text

Trials = list[Trial]


@dataclass
class Telling(tune.Callback):
    """A line for each event. describe: a trial's config in words. total: runs of the search."""

    say: Callable[[str], None]
    describe: Callable[[Mapping[str, Any]], str]
    total: int

    def on_trial_start(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self.say(f"{self.describe(trial.config)}: begins")

    def on_trial_result(
        self, iteration: int, trials: Trials, trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        if "checkpoint_success" in result:
            score = f"{100 * result['checkpoint_success']:.0f}% at step {result['step']}"
            self.say(f"{self.describe(trial.config)}: {score}")

    def on_trial_complete(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        row, name = trial.last_result, self.describe(trial.config)
        over = 1 + sum(each.status == Trial.TERMINATED for each in trials if each is not trial)
        score = standing_text(row) if "success" in row else "ended without a score"
        seconds = f"{row.get('time_total_s', 0):.0f} s"
        self.say(f"{name}: {score}; {seconds}; {over} of {self.total} runs")

    def on_trial_recover(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self.say(f"{self.describe(trial.config)}: failed, begins again")

    def on_trial_error(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self.say(f"{self.describe(trial.config)}: failed, see the error at the end")


def in_words(run: Any) -> str:
    """A run, which is a dataclass: what has no default, and what is not its default."""
    words = []
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if field.default is dataclasses.MISSING:
            words.append(str(value))
        elif value != field.default:
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            words.append(f"{field.name} {'+'.join(value) if isinstance(value, tuple) else shown}")
    return " ".join(words)
