"""One simulator child: its deadlines, its wear, and replays that must repeat their rows."""

import os
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from vla_platform import slots
from vla_platform import waiting as waiting_room
from vla_platform.assignments import Assignment
from vla_platform.cluster import CLUSTERS, Limits, Needs
from vla_platform.fleet import share
from vla_platform.rows import Cell
from vla_platform.slots import (
    EpisodeLateError,
    ReplayDiffersError,
    Slot,
    WrongEnvironmentError,
    cause_of,
)
from vla_platform.waiting import Demand, Waiting, without

from envs.benchmarks import benchmark
from envs.hashing import stable_hash
from envs.process import SimulatorDied, SimulatorProcess

ROW = benchmark("tabletop")
LIMITS = Limits(chunk=5.0, episode=60.0)


def of(kind):
    return replace(ROW, simulator=f"tests.vla_platform.leaky_simulator:{kind}")


def assignment(row=ROW, task="reach", state=0, replay=None):
    with SimulatorProcess(ROW) as process:
        cell = Cell("p", row.name, 2, stable_hash(process.fingerprint()))
    return Assignment(None, row, cell.episode(task, state, state, ""), replay)


def still(observation, timeout):
    return np.zeros((2, 7), np.float32)


def alive(slot):
    child = slot.process._child
    return child is not None and child.popen.poll() is None


def test_a_chunk_past_its_deadline_is_silence_and_its_child_is_killed():
    slot = Slot(of("Hanging"))
    began = time.monotonic()
    with pytest.raises(SimulatorDied, match="took longer than 1 s") as died:
        slot.play(assignment(), still, replace(LIMITS, chunk=1.0))
    assert time.monotonic() - began < 20
    assert cause_of(died.value) == "silent"
    assert not alive(slot)


def test_an_episode_past_its_deadline_ends():
    slot = Slot(of("Slow"))
    said = "not over at its deadline|took longer than"
    with pytest.raises((EpisodeLateError, SimulatorDied), match=said) as ended:
        slot.play(assignment(), still, replace(LIMITS, episode=1.0))
    slot.process.kill()
    late = isinstance(ended.value, EpisodeLateError)
    assert cause_of(ended.value) == ("deadline" if late else "silent")


def test_a_child_is_worn_after_its_episodes(monkeypatch):
    monkeypatch.setattr(slots, "RECYCLE_EPISODES", 3)
    slot = Slot(ROW)
    causes = []
    for _ in range(3):
        slot.play(assignment(), still, LIMITS)
        causes.append(slot.worn())
    slot.process.close()
    assert causes == ["", "", "worn"]


def test_a_child_that_grows_is_replaced():
    slot = Slot(of("Leaky"))
    causes = []
    for _ in range(4):
        slot.play(assignment(), still, LIMITS)
        causes.append(slot.worn())
    slot.process.close()
    assert causes[0] == "" and "grown" in causes


def test_a_replay_repeats_its_row_and_its_last_frame():
    slot = Slot(ROW)
    row = slot.play(assignment(), still, LIMITS)
    again = slot.play(assignment(replay=row.outcome()), still, LIMITS)
    slot.process.close()
    assert not row.frames and len(again.frames) == again.steps + 1
    slots.require_same_outcome(again.outcome(), row.outcome(), "it")
    for change in ({"final_frame": "0" * 16}, {"success": True}, {"steps": 3}):
        with pytest.raises(ReplayDiffersError, match=f"it did not .*{next(iter(change))}: row"):
            slots.require_same_outcome(again.outcome(), {**row.outcome(), **change}, "it")


def test_another_environment_is_told_by_its_fields():
    with SimulatorProcess(ROW) as process:
        ours = process.fingerprint()
    wanted = assignment().episode
    other = replace(wanted, cell=replace(wanted.cell, fingerprint="0" * 64))
    theirs = {**ours, "renderer": "NVIDIA"}
    slot = Slot(ROW, stored={"0" * 64: theirs}.__getitem__)
    told = "renderer: None here, 'NVIDIA' wanted"
    with pytest.raises(WrongEnvironmentError, match=re.escape(f"({told})")):
        slot.check(other)
    slot.process.close()


def test_hosts_fit_their_nodes():
    cluster = replace(CLUSTERS["cluster"], slots=8, simulator_cores=8, render_slots=16)
    gib = float(2**30)
    large = {"CPU": 16.0, "memory": 64 * gib, "GPU": 1.0}
    assert cluster.slots_for("libero", [large]) == 8
    assert cluster.takes("libero", 8) == {"CPU": 8, "memory": 20 * gib, "GPU": 0.5}
    assert cluster.slots_for("libero", [{**large, "CPU": 4.0}]) == 4, "bounded by cores"
    assert cluster.slots_for("libero", [{**large, "memory": 6 * gib}]) == 2, "bounded by memory"
    assert cluster.slots_for("libero", [{**large, "GPU": 0.25}]) == 4, "bounded by rendering"
    assert cluster.slots_for("libero", [{"CPU": 0.0}]) == 8, "nodes may be added"
    software = replace(cluster, render_slots=0)
    assert "GPU" not in software.takes("libero", 8)
    assert cluster.slots_for("some.module:Class", [large]) == 8, "unknown ones have slots alone"
    priced = replace(cluster, needs={"some.module:Class": Needs(4, 0)})
    assert priced.slots_for("some.module:Class", [large]) == 2


def test_hosts_are_shared_by_work_and_never_more_than_episodes():
    work = {"libero": Demand(100, 50_000), "tabletop": Demand(100, 4_000)}
    slots_of = {"libero": 4, "tabletop": 16}.__getitem__
    assert share(work, slots_of, 8) == {"libero": 8, "tabletop": 0}
    assert share(work, slots_of, 40) == {"libero": 25, "tabletop": 7}
    assert share({"libero": Demand(5, 1)}, slots_of, 8) == {"libero": 2}
    assert share({}, slots_of, 8) == {}


def test_the_longest_go_first_and_the_unlucky_wait(monkeypatch):
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(waiting_room, "time", SimpleNamespace(monotonic=lambda: clock.now))
    row = replace(ROW, step_limits={"*": 10, "push": 40})
    order = [assignment(row, task) for task in ("reach", "push", "reach")]
    waiting = Waiting(order)
    assert waiting.demand() == {"tabletop": Demand(3, 60)}
    first = waiting.take("tabletop")
    assert first.episode.task == "push"
    waiting.again(first, 0.2)
    assert [waiting.take("tabletop").episode.task for _ in range(2)] == ["reach", "reach"]
    assert waiting.take("tabletop") is None and len(waiting) == 1
    clock.now += 0.3
    assert waiting.take("tabletop") is first and not len(waiting)
    assert without({"tabletop": Demand(1, 40)}, first) == {}


def test_a_notice_is_sigterm():
    import signal

    from vla_platform import preemption

    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert (notice.given, notice.cause) == (1, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == before
