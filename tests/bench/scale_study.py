"""The paper's study on a cluster, simulated look by look: `docs/scale.md` documents it.

A look (`vla_platform.contest`) is one event: the pool of `scale_model` plays some of its kind, and
all of the kind take their mean. Trainings, checkpoints and transfers are events of their own.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
import simpy
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules
from vla_platform.ledger import READERS
from vla_platform.store_s3 import PART_BYTES

from envs.api import Benchmark
from tests.bench.scale_model import Costs, Events, Play, Played, Pool, PoolSize, bounds, play

PRESET = CLUSTERS["cluster"]
SAMPLES = 2
"""Looks of a kind that are played exactly."""
MINUTE = 60.0
Known = dict[tuple[str, int, PoolSize], tuple[Played, str]]


@dataclass(frozen=True)
class Work:
    """A training and its rollouts. gpu_s: of all GPUs; forward_s: per observation, in a batch;
    bytes: of a stored policy and of all optimiser files; score: 0 to 1, of every checkpoint."""

    row: Benchmark
    gpu_s: float
    forward_s: float
    policy_bytes: float
    state_bytes: float
    score: float


@dataclass(frozen=True)
class Machine:
    """concurrent: runs at a time, each with a driver, hosts and `replicas` GPUs of its own.

    workers: GPUs of a training. batch: observations of a call. look: initial states per horizon
    between two looks.
    """

    gpus: int
    simulators: int
    concurrent: int
    workers: int
    replicas: int = PRESET.replicas
    batch: int = PRESET.batch
    look: int = Rules.look

    @property
    def groups(self) -> int:
        """Trainings at a time."""
        return (self.gpus - self.concurrent * self.replicas) // self.workers


@cache
def chance(chain: int, score: float) -> float:
    """Of each instruction, so that a chain's completed share is `score` in the mean."""
    chances = np.linspace(0, 1, 1001)
    completed = sum(chances**n for n in range(1, chain + 1)) / chain
    return float(np.interp(score, completed, chances))


def draw_steps(row: Benchmark, score: float, costs: Costs, rng: np.random.Generator) -> float:
    """Steps of one episode. A chain ends with its first instruction that is not fulfilled."""
    limit = row.step_limit(row.tasks[rng.integers(len(row.tasks))])
    if row.chain == 1:
        return limit * costs.won_share if rng.random() < score else limit
    won = rng.random(row.chain) < chance(row.chain, score)
    done = row.chain if won.all() else int(np.argmin(won))
    return done * costs.subtask_steps + (limit / row.chain if done < row.chain else 0)


def episodes(row: Benchmark, score: float, states: int, costs: Costs, seed: int = 0) -> list[Play]:
    """One episode of each state at each horizon, in the order in which they are handed out."""
    rng, simulator = np.random.default_rng(seed), costs.simulators[row.simulator]
    return [
        play(simulator, draw_steps(row, score, costs, rng), horizon)
        for horizon in row.horizons
        for _ in range(states)
    ]


def look(
    row: Benchmark, score: float, states: int, size: PoolSize, costs: Costs
) -> tuple[Played, str]:
    """The mean of SAMPLES looks of a kind, and which part alone would take longest."""
    samples = [episodes(row, score, states, costs, seed) for seed in range(SAMPLES)]
    played = [vars(Pool(plays, size, costs).run()) for plays in samples]
    mean = {name: sum(each[name] for each in played) / SAMPLES for name in played[0]}
    needed = Counter[str]()
    for plays in samples:
        needed.update(bounds(plays, size, costs))
    return Played(**mean), needed.most_common(1)[0][0]  # type: ignore[arg-type]


class Study:
    """All trainings of `works`, in their order, on one machine.

    known: looks that studies with the same works and costs have played already.
    """

    def __init__(
        self, works: Sequence[Work], machine: Machine, costs: Costs, known: Known | None = None
    ) -> None:
        self.env, self.works, self.machine, self.costs = simpy.Environment(), works, machine, costs
        self.places = simpy.Resource(self.env, machine.concurrent)
        self.groups = simpy.Resource(self.env, machine.groups)
        self.known: Known = {} if known is None else known
        self.total, self.driver_peak, self.stored = Played(), 0.0, 0.0
        self.spent = Counter[str]()
        """Seconds of all runs, by what the run was waiting for."""
        self.puts, self.gets = Counter[int](), Counter[int]()
        """Requests by minute; LIST counts as PUT, HEAD as GET."""

    def run(self) -> dict[str, Any]:
        trials = [self.env.process(self._trial(work)) for work in self.works]
        self.env.run(self.env.all_of(trials))
        return self._figures()

    def _trial(self, work: Work) -> Events:
        """A run as `vla_platform.trial` goes: checkpoints are played in order as they land."""
        with self.places.request() as place:
            yield place
            landed = {step: self.env.event() for step in work.row.recipe.checkpoints}
            training = self.env.process(self._train(work, landed))
            for number, (step, there) in enumerate(landed.items()):
                asked = self.env.now
                yield there
                self._polled(self.env.now - asked, step // PRESET.checkpoint_every)
                self.spent["training"] += self.env.now - asked
                yield from self._load(work, first=number == 0)
                yield from self._score(work)
            yield training

    def _train(self, work: Work, landed: dict[int, simpy.Event]) -> Events:
        with self.groups.request() as group:
            yield group
            yield self.env.timeout(self.costs.train_start_s)
            steps, every = work.row.recipe.steps, PRESET.checkpoint_every
            each = work.gpu_s / self.machine.workers / steps * every
            for step in range(every, steps + 1, every):
                # a lease's beat each 15 s, figures and TensorBoard's file each 30 s
                self._ask(each, puts=each * 4 / 30, gets=each * 2 / 30)
                yield self.env.timeout(each)
                self.env.process(self._upload(work, landed.get(step)))

    def _upload(self, work: Work, there: simpy.Event | None) -> Events:
        size, workers = work.policy_bytes + work.state_bytes, self.machine.workers
        seconds = size / self.costs.transfer_bytes_s
        self.stored += size
        self._ask(seconds, puts=size / PART_BYTES + 3 * workers + 4, gets=workers)
        yield self.env.timeout(seconds)
        if there is not None:
            there.succeed()

    def _polled(self, seconds: float, markers: int) -> None:
        """Each look for a checkpoint lists the run's files and reads every marker."""
        looks = seconds / (self.costs.poll_s + (markers + 1) * self.costs.request_s)
        self._ask(seconds, puts=looks, gets=looks * markers)

    def _load(self, work: Work, first: bool) -> Events:
        seconds = work.policy_bytes / self.costs.transfer_bytes_s
        seconds += self.costs.start_s if first else 0.0
        self._ask(seconds, gets=self.machine.replicas * work.policy_bytes / PART_BYTES)
        self.spent["loading"] += seconds
        yield self.env.timeout(seconds)

    def _score(self, work: Work) -> Events:
        states = len(work.row.tasks) * work.row.trials
        for first in range(0, states, self.machine.look):
            count = min(self.machine.look, states - first)
            played, slowest = self._look(work, count)
            self._ask(played.wall_s, puts=played.episodes, gets=self._hosts() * 3)
            self.spent[slowest] += played.wall_s
            self._tally(played)
            yield self.env.timeout(played.wall_s)
            yield from self._read(work, first + count, lists=5)
        yield from self._read(work, states, lists=4)  # compacting

    def _read(self, work: Work, rows: int, lists: int) -> Events:
        """Every row of the checkpoint's cells, again after each look."""
        cells = len(work.row.horizons)
        seconds = cells * self.costs.request_s * (lists + rows / READERS)
        self._ask(seconds, puts=cells * lists, gets=cells * rows)
        self.spent["reading rows"] += seconds
        yield self.env.timeout(seconds)

    def _hosts(self) -> int:
        return ceil(self.machine.simulators / self.machine.concurrent / PRESET.slots)

    def _look(self, work: Work, states: int) -> tuple[Played, str]:
        """What it takes, and which part alone would take longest."""
        batch_s = max(self.costs.call_s, self.machine.batch * work.forward_s)
        simulators = max(1, self.machine.simulators // self.machine.concurrent)
        simulators = min(simulators, states * len(work.row.horizons))
        size = PoolSize(
            simulators, PRESET.slots, self.machine.replicas, self.machine.batch, batch_s
        )
        key = (work.row.name, states, size)
        if key not in self.known:
            self.known[key] = look(work.row, work.score, states, size, self.costs)
        return self.known[key]

    def _tally(self, played: Played) -> None:
        for name in vars(played):
            setattr(self.total, name, getattr(self.total, name) + getattr(played, name))
        self.driver_peak = max(self.driver_peak, played.driver_s / played.wall_s)

    def _ask(self, seconds: float, puts: float = 0.0, gets: float = 0.0) -> None:
        """Requests spread evenly over so many seconds from now."""
        first, last = int(self.env.now / MINUTE), int((self.env.now + seconds) / MINUTE)
        for minute in range(first, last + 1):
            self.puts[minute] += puts / (last - first + 1)
            self.gets[minute] += gets / (last - first + 1)

    def _figures(self) -> dict[str, Any]:
        machine, total, costs, wall = self.machine, self.total, self.costs, self.env.now
        puts, gets = self.puts.total(), self.gets.total()
        trained = sum(work.gpu_s for work in self.works)
        replica_s = machine.concurrent * machine.replicas * wall
        return {
            **dataclasses.asdict(machine),
            "trainings": len(self.works),
            "episodes": total.episodes,
            "wall_days": wall / 86_400,
            "gpu_hours": machine.gpus * wall / 3600,
            "training_use": trained / (machine.groups * machine.workers * wall),
            "inference_use": total.inference_s / replica_s,
            "simulator_use": total.simulators_s / (machine.simulators * wall),
            "driver_share": total.driver_s / (machine.concurrent * wall),
            "driver_share_peak": self.driver_peak,
            "puts": puts,
            "gets": gets,
            "requests_per_s": (puts + gets) / wall,
            "puts_per_s_peak": max(self.puts.values()) / MINUTE,
            "gets_per_s_peak": max(self.gets.values()) / MINUTE,
            "request_dollars": puts * costs.put_dollars + gets * costs.get_dollars,
            "stored_tb": self.stored / 1e12,
            "month_dollars": self.stored / 1e9 * costs.gb_month_dollars,
            "spent_hours": {name: s / 3600 for name, s in self.spent.most_common()},
        }
