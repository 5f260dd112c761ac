"""What a search keeps when another command continues it: what it spent, never its limits."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

log = logging.getLogger(__name__)


GPU_HOURS, TRAINING = "gpu_hours", "training"
"""What a trial reports: GPU-hours of its training so far, and whether that is under way."""
Trials = list[Trial]


class NotRestoredError(Exception):
    """Tune could not read what it had kept of a search, and would end it without a trial."""


@dataclass
class Budget(tune.Callback):
    """Ends a search as Ctrl-C does, so that it can be continued, once so many GPU-hours are spent.

    gpu_hours: None for no end. gpus: of a training. begun: whether another command began it. An
    attempt at a trial counts as training from its start until it reports what it did. Attempts
    stay counted: failed, stopped or continued.
    """

    gpu_hours: float | None
    gpus: float
    begun: bool = False
    ended: float = 0.0
    attempts: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    over: bool = False
    restored: bool = False

    def spent(self) -> float:
        """GPU-hours so far."""
        return self.ended + sum(self._hours(*each) for each in self.attempts.values())

    def _hours(self, reported: float, since: float | None) -> float:
        """since: when a training under way reported so many hours."""
        more = 0.0 if since is None else time.monotonic() - since
        return reported + more * self.gpus / 3600

    def _end(self, trial_id: str) -> None:
        self.ended += self._hours(*self.attempts.pop(trial_id, (0.0, None)))

    def setup(self, *_: Any, **__: Any) -> None:
        if self.begun and not self.restored:
            raise NotRestoredError  # Tune itself only logs what went wrong
        self._end_if_spent()  # by the command that this one continues

    def on_trial_start(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self._end(trial.trial_id)
        self.attempts[trial.trial_id] = 0.0, time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: Trials, trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        since = time.monotonic() if result[TRAINING] else None
        self.attempts[trial.trial_id] = result[GPU_HOURS], since

    def on_trial_recover(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self._end(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self._end(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: Trials, trial: Trial, **_: Any) -> None:
        self._end(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Trials, **_: Any) -> None:
        self._end_if_spent()

    def _end_if_spent(self) -> None:
        if self.over or self.gpu_hours is None or self.spent() < self.gpu_hours:
            return
        self.over = True
        log.warning(
            "%.1f of %.1f GPU-hours are spent: a larger --max-gpu-hours continues",
            *(self.spent(), self.gpu_hours),
        )
        signal.raise_signal(signal.SIGINT)  # Tune saves trials as unfinished then, not as stopped

    def get_state(self) -> dict[str, float]:
        return {"ended": self.spent()}  # who continues finds no training of this driver's alive

    def set_state(self, state: dict[str, float]) -> None:
        self.ended = state["ended"]
        self.restored = True


class Grid(BasicVariantGenerator):
    """Tune's grid, which as it is continues at the concurrency that it began with."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state | {"max_concurrent": self.max_concurrent})


class Limited(ConcurrencyLimiter):
    """The same of other searchers."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state | {"max_concurrent": self.max_concurrent})
