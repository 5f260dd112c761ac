"""What things cost, and one rollout pool simulated event by event: `docs/scale.md` documents it.

A chunk is one event of its simulator, a call one event of its courier, a batch one of its
replica; single steps are none. Seconds everywhere.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import simpy

Events = Iterator[Any]


@dataclass(frozen=True)
class Simulator:
    """Core-seconds of one step, of one frame, and of a reset whose scene is compiled already."""

    step_s: float
    frame_s: float
    reset_s: float


def measured_simulators() -> dict[str, Simulator]:
    """By benchmark's simulator: `make bench-simulators`, whose JSON lies beside this file."""
    stored = json.loads(Path(__file__).with_name("simulators.json").read_text())
    return {
        name.partition("_")[0]: Simulator(
            found["split"]["physics_ms"] / 1e3,
            found["split"]["render_ms"] / 1e3,
            min(row["reset_s"] for row in found["rows"]),
        )
        for name, found in stored.items()
        if name != "ran"
    }


@dataclass(frozen=True)
class Costs:
    """One number per thing that happens. Measured: on this project's two-core machine."""

    simulators: Mapping[str, Simulator] = field(default_factory=measured_simulators)
    """Seconds. Measured: simulators.json, one process on one core, rendering in software."""
    start_s: float = 30.0
    """Seconds until a simulator's child has its first scene. Assumed; 4 to 35 s in simulators.json
    (`reset_s` of the published evaluators, which compile at every reset)."""
    won_share: float = 0.48
    """Steps of an episode that succeeds, per step limit. Measured: libero_experts.json, LIBERO's
    scripted expert on libero_object (0.58 on libero_spatial, 0.39 on libero_goal)."""
    subtask_steps: float = 65.0
    """Steps of a fulfilled CALVIN instruction. Assumed: its demonstrations last up to 64."""
    call_s: float = 16 / 486
    """Seconds that an inference call takes at least. Assumed: the peer's server answers 486
    observations/s in batches of 16 on an H100."""
    wait_batch_s: float = 0.004
    """Seconds an idle replica waits for company, at most: `vla_platform.batcher.GATHER_S`."""
    wait_call_s: float = 0.003
    """Seconds a host waits for company, at most: `vla_platform.courier.GATHER_S`."""
    wait_call_share: float = 0.1
    """…and at most this share of its last call: `vla_platform.courier.GATHER_SHARE`."""
    driver_s: float = 0.002
    """Core-seconds of the driver per episode, handing out and taking in. Assumed until
    rollouts.json has it (`ledger_figures.scheduling`)."""
    request_s: float = 0.1
    """Seconds of one small S3 request. Assumed: AWS names 100 to 200 ms; often it is less."""
    puts_per_s: float = 3_500.0
    """PUT, POST and LIST per second and prefix before S3 throttles. AWS's documentation."""
    gets_per_s: float = 5_500.0
    """GET and HEAD per second and prefix before S3 throttles. AWS's documentation."""
    put_dollars: float = 0.005 / 1_000
    """Dollars per PUT or LIST. Assumed: AWS's public list, us-east-1, S3 Standard, as of 2025."""
    get_dollars: float = 0.0004 / 1_000
    """Dollars per GET or HEAD. Assumed: the same list."""
    gb_month_dollars: float = 0.023
    """Dollars per GB (1e9 bytes) and month, first 50 TB. Assumed: the same list."""
    transfer_bytes_s: float = 1.25e9
    """Bytes per second between a training or a replica and the store. Assumed: 10 Gbit/s."""
    weight_bytes: float = 2.0
    """Bytes per parameter of a stored policy: bf16."""
    state_bytes: float = 12.0
    """Bytes per trained parameter of an optimiser's file: fp32 weight and AdamW's two moments."""
    train_start_s: float = 120.0
    """Seconds until a group of training workers makes its first step. Assumed; 17 to 21 s
    with tiny models on two cores."""
    poll_s: float = 0.5
    """Pause between two looks for a new checkpoint: `vla_platform.trained.POLL_S`."""


@dataclass(frozen=True)
class Play:
    """An episode. chunk_s: core-seconds of a chunk, its frame included; wait_s: without a core."""

    chunks: int
    chunk_s: float
    reset_s: float = 0.0
    wait_s: float = 0.0


def play(simulator: Simulator, steps: float, horizon: int) -> Play:
    """`steps` steps with a look after every `horizon`."""
    chunks = ceil(steps / horizon)
    return Play(chunks, steps * simulator.step_s / chunks + simulator.frame_s, simulator.reset_s)


@dataclass(frozen=True)
class PoolSize:
    """slots: simulators of a host. batch: observations of a call, padded to this many, which
    takes batch_s. cores: that simulators and replicas share; None: a core or GPU for each."""

    simulators: int
    slots: int
    replicas: int
    batch: int
    batch_s: float
    cores: int | None = None


@dataclass
class Played:
    """What a pool did. The `_s` are busy seconds of all simulators, replicas, or the driver."""

    wall_s: float = 0.0
    episodes: int = 0
    chunks: int = 0
    batches: int = 0
    simulators_s: float = 0.0
    inference_s: float = 0.0
    driver_s: float = 0.0


def bounds(plays: Sequence[Play], size: PoolSize, costs: Costs) -> dict[str, float]:
    """Seconds that each part alone would need: no pool is faster than the slowest of them."""
    alone = [p.reset_s + p.chunks * (p.chunk_s + p.wait_s + size.batch_s) for p in plays]
    work = [p.reset_s + p.chunks * (p.chunk_s + p.wait_s) for p in plays]
    calls = sum(p.chunks for p in plays) / size.batch
    return {
        "inference": calls * size.batch_s / size.replicas,
        "simulators": sum(work) / size.simulators,
        "driver": len(plays) * costs.driver_s,
        "store": len(plays) / costs.puts_per_s,
        "slowest episode": max(alone),
    }


@dataclass
class Call:
    """Observations of one host on their way through one replica. over: all are answered."""

    unsent: int
    unanswered: int
    over: simpy.Event


class Replica:
    """Batches of one fixed shape, first come first served (`vla_platform.batcher`)."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.calls = pool, deque[Call]()
        self.woken = pool.env.event()
        pool.env.process(self._serve())

    def ask(self, observations: int) -> simpy.Event:
        call = Call(observations, observations, self.pool.env.event())
        self.calls.append(call)
        if not self.woken.triggered:
            self.woken.succeed()
        return call.over

    def _serve(self) -> Events:
        pool = self.pool
        while True:
            if not self.calls:
                self.woken = pool.env.event()
                yield self.woken
                yield pool.env.timeout(pool.costs.wait_batch_s)
            taken = list(self._take(pool.size.batch))
            yield from pool.compute(pool.size.batch_s)
            pool.played.batches += 1
            pool.played.inference_s += pool.size.batch_s
            for call, count in taken:
                call.unanswered -= count
                if not call.unanswered:
                    call.over.succeed()

    def _take(self, room: int) -> Iterator[tuple[Call, int]]:
        while room and self.calls:
            call = self.calls[0]
            count = min(room, call.unsent)
            call.unsent, room = call.unsent - count, room - count
            if not call.unsent:
                self.calls.popleft()
            yield call, count


class Host:
    """Simulators whose observations travel together, one call at a time (`…courier`)."""

    def __init__(self, pool: Pool, slots: int, replica: Replica) -> None:
        self.pool, self.replica, self.waiting = pool, replica, list[simpy.Event]()
        self.woken = pool.env.event()
        pool.env.process(self._carry())
        self.slots = [pool.env.process(self._slot()) for _ in range(slots)]

    def _carry(self) -> Events:
        env, costs, lasted = self.pool.env, self.pool.costs, 0.0
        while True:
            if not self.waiting:
                self.woken = env.event()
                yield self.woken
            yield env.timeout(min(costs.wait_call_s, costs.wait_call_share * lasted))
            asked, self.waiting, began = self.waiting, [], env.now
            yield self.replica.ask(len(asked))
            lasted = env.now - began
            for answer in asked:
                answer.succeed()

    def _slot(self) -> Events:
        pool = self.pool
        while pool.waiting:
            mine = pool.waiting.popleft()
            yield from pool.drive()
            yield from pool.compute(mine.reset_s)
            for _ in range(mine.chunks):
                yield self._answer()
                if mine.wait_s:
                    yield pool.env.timeout(mine.wait_s)
                yield from pool.compute(mine.chunk_s)
            pool.played.simulators_s += mine.reset_s + mine.chunks * (mine.chunk_s + mine.wait_s)
            pool.played.chunks += mine.chunks
            yield from pool.put()
            yield from pool.drive()
            pool.played.episodes += 1

    def _answer(self) -> simpy.Event:
        answer = self.pool.env.event()
        self.waiting.append(answer)
        if not self.woken.triggered:
            self.woken.succeed()
        return answer


class Pool:
    """One driver, its hosts and its replicas, until every episode is committed."""

    def __init__(self, plays: Sequence[Play], size: PoolSize, costs: Costs) -> None:
        self.env, self.waiting, self.size, self.costs = (
            simpy.Environment(),
            deque(plays),
            size,
            costs,
        )
        self.played = Played()
        self.driver = simpy.Resource(self.env)
        self.cores = simpy.Resource(self.env, size.cores) if size.cores else None
        self.next_put = 0.0
        replicas = [Replica(self) for _ in range(size.replicas)]
        count = min(size.simulators, len(plays))
        shares = [min(size.slots, count - first) for first in range(0, count, size.slots)]
        self.hosts = [Host(self, n, replicas[i % len(replicas)]) for i, n in enumerate(shares)]

    def run(self) -> Played:
        self.env.run(self.env.all_of([slot for host in self.hosts for slot in host.slots]))
        self.played.wall_s = self.env.now
        return self.played

    def compute(self, seconds: float) -> Events:
        if self.cores is None or not seconds:
            yield self.env.timeout(seconds)
            return
        with self.cores.request() as core:
            yield core
            yield self.env.timeout(seconds)

    def drive(self) -> Events:
        """Half of what an episode costs the driver, which does one thing at a time."""
        with self.driver.request() as turn:
            yield turn
            yield self.env.timeout(self.costs.driver_s / 2)
        self.played.driver_s += self.costs.driver_s / 2

    def put(self) -> Events:
        """One object, not sooner than the prefix allows."""
        self.next_put = max(self.env.now, self.next_put + 1 / self.costs.puts_per_s)
        yield self.env.timeout(self.next_put - self.env.now + self.costs.request_s)
