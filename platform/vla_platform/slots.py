"""A slot of a rollout host: one simulator child, its wear, and one episode played in it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.api import Benchmark, Observation, StepResult
from envs.hashing import stable_hash
from envs.process import SimulatorDied, SimulatorProcess
from vla_platform.assignments import Assignment
from vla_platform.cluster import Limits
from vla_platform.rows import OUTCOME, Episode

RECYCLE_EPISODES = 200
"""A child is replaced after this many episodes: simulators leak."""
RECYCLE_GROWTH = 1.5
"""…or when its memory exceeds this multiple of what it was after its first episode."""

Act = Callable[[Observation, float], np.ndarray]
"""(observation, seconds) -> the actions to execute, [horizon, 7]."""


def draw_seed(episode: Episode, replan: int) -> int:
    """What a stochastic policy draws from at a replan (60 bits): the same whenever it is played."""
    return int(stable_hash([episode.key, replan])[:15], 16)


class WrongEnvironmentError(Exception):
    """This node's simulator is not the one that the episode's key was made for."""


class EpisodeLateError(Exception):
    """An episode took longer than its deadline."""


class ReplayDiffersError(Exception):
    """An episode that was played again to be filmed did not come out as its row says."""


@dataclass
class Played:
    """An episode's outcome and, when it was filmed, its frames uint8 [H, W, 3]."""

    result: StepResult
    steps: int
    replans: int
    frames: list[np.ndarray] = field(default_factory=list)

    def outcome(self) -> dict[str, Any]:
        """The row's columns OUTCOME."""
        result = self.result
        return {
            "success": bool(result.success),
            "success_any": bool(result.success_any),
            "success_last": bool(result.success_last),
            "steps": self.steps,
            "replans": self.replans,
            "completed": int(getattr(result, "completed", 0) or result.success),
            "final_frame": frame_hash(result.observation),
        }


def frame_hash(observation: Observation) -> str:
    """16 hex digits of what is seen: the frame and, where it is shown, the proprioception."""
    seen = hashlib.sha256(np.ascontiguousarray(observation.image).tobytes())
    if observation.state is not None:
        seen.update(np.ascontiguousarray(observation.state).tobytes())
    return seen.hexdigest()[:16]


def require_same_outcome(played: Mapping[str, Any], row: Mapping[str, Any], who: str) -> None:
    """ReplayDiffersError naming every column in which a replay and its row differ."""
    wrong = [f"{n}: row {row[n]!r}, replay {played[n]!r}" for n in OUTCOME if row[n] != played[n]]
    if wrong:
        raise ReplayDiffersError(
            f"{who} did not come out as its row says, so it is not filmed and the row must be "
            f"doubted: {'; '.join(wrong)}"
        )


class Slot:
    """One child and what is known of it.

    stored: the text of an environment fingerprint, from its hash; KeyError where it is not known.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        env: Mapping[str, str] | None = None,
        stored: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.stored = stored or dict[str, Mapping[str, str]]().__getitem__
        self.process = SimulatorProcess(benchmark, env=env)
        self.fingerprint = ""
        self.episodes = 0
        self.first_rss = 0

    def play(self, assignment: Assignment, act: Act, limits: Limits) -> Played:
        """One episode to its end. SimulatorDied and EpisodeLateError: this child must go."""
        episode, record = assignment.episode, assignment.replay is not None
        deadline = time.monotonic() + limits.episode
        self.check(episode)
        seen = self.process.reset(
            *(episode.task, episode.initial_state, episode.seed, record),
            timeout=min(limits.reset, _left(deadline, episode)),
        )
        frames = [seen.image] if record else []
        steps = replans = 0
        while True:
            if episode.instruction:
                seen = replace(seen, instruction=episode.instruction)
            seen = replace(seen, seed=draw_seed(episode, replans))
            actions = act(seen, _left(deadline, episode))
            result = self.process.execute(actions, min(limits.chunk, _left(deadline, episode)))
            steps, replans = steps + result.steps, replans + 1
            frames.extend(result.frames)
            if result.done:
                return Played(result, steps, replans, frames)
            seen = result.observation

    def check(self, episode: Episode) -> None:
        """Every child is asked once, because nodes of a cluster need not be equal."""
        self.fingerprint = self.fingerprint or stable_hash(self.process.fingerprint())
        if self.fingerprint != episode.cell.fingerprint:
            raise WrongEnvironmentError(
                f"{self.benchmark.name} on this node is not the environment that the episode wants "
                f"({self._differences(episode.cell.fingerprint)}): have the same on every node, "
                "the kind of renderer included, or evaluate under this environment instead"
            )

    def _differences(self, wanted: str) -> str:
        """Which fields of the two fingerprints differ, and how."""
        try:
            theirs = self.stored(wanted)
        except KeyError:
            return f"{self.fingerprint[:12]} here, {wanted[:12]} wanted"
        ours = self.process.fingerprint()
        names = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        return "; ".join(f"{n}: {ours.get(n)!r} here, {theirs.get(n)!r} wanted" for n in names)

    def worn(self) -> str:
        """Why the child must be replaced after this episode; "" if it need not."""
        self.episodes += 1
        rss = self.process.rss_bytes()
        self.first_rss = self.first_rss or rss
        if rss > RECYCLE_GROWTH * self.first_rss:
            return "grown"
        return "worn" if self.episodes >= RECYCLE_EPISODES else ""


def cause_of(error: Exception) -> str:
    """What broke an attempt, in one word: a label of metrics."""
    if isinstance(error, EpisodeLateError):
        return "deadline"
    if isinstance(error, SimulatorDied):
        return "silent" if error.silent else "crash"
    return "policy"


def _left(deadline: float, episode: Episode) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise EpisodeLateError(
            f"{episode.task} #{episode.initial_state} was not over at its deadline"
        )
    return left
