"""What a pool is asked to play, and what became of it; imports neither Ray nor a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envs.api import Benchmark
from vla_platform.artifacts import Checkpoint
from vla_platform.remote import Remote
from vla_platform.rows import Episode, Row

AnyPolicy = Checkpoint | Remote


class PoolError(RuntimeError):
    """Rollouts cannot be played on this cluster; the message says why and what to do."""


@dataclass(frozen=True)
class Assignment:
    """One episode to play, by which policy.

    replay: the row (flat) of an episode that is played again to be filmed, and must come out
    the same; None for one that is played for its row.
    """

    checkpoint: AnyPolicy
    benchmark: Benchmark
    episode: Episode
    replay: Mapping[str, Any] | None = None

    @property
    def expected_steps(self) -> int:
        """At most; the longest go first, so that the last episodes to finish are short ones."""
        return self.benchmark.step_limit(self.episode.task)


def video_key(episode: Episode) -> str:
    """Where an episode's video lies in the store."""
    return f"videos/{episode.cell.id}/{episode.key}.mp4"


@dataclass
class Tally:
    """What became of the episodes handed to a pool.

    errors: (assignment, why). tasks: task -> [successes, trials] of those done.
    hosts: rollout hosts at work; pending: asked for, but without a place yet.
    """

    total: int
    done: int = 0
    running: int = 0
    successes: int = 0
    steps: int = 0
    retried: int = 0
    hosts: int = 0
    pending: int = 0
    errors: list[tuple[Assignment, str]] = field(default_factory=list)
    tasks: dict[str, list[int]] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Not handed out yet."""
        return self.total - self.done - self.running - len(self.errors)

    def count(self, row: Row) -> None:
        self.done += 1
        self.successes += row.success
        self.steps += row.steps
        self.retried += row.error_count
        score = self.tasks.setdefault(row.episode.task, [0, 0])
        score[0] += row.success
        score[1] += 1
