"""Policies behind a server: one of openpi's protocol, in a process of its own."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from vla_platform.adapters import (
    ADAPTERS,
    axis_angle_state,
    converted,
    declared_actions,
    require_alike,
)
from vla_platform.artifacts import Checkpoint
from vla_platform.assignments import Assignment
from vla_platform.batcher import BadActionsError
from vla_platform.candidates import Served, candidates
from vla_platform.cluster import Limits
from vla_platform.courier import Courier, Question
from vla_platform.remote import (
    Lines,
    OpenPi,
    PolicyRefusedError,
    PolicyUnavailableError,
    Remote,
    actions_in,
    declared_by,
    metadata_of,
    pack,
    unpack,
)
from vla_platform.rows import Cell
from vla_platform.slots import Slot
from vla_platform.store import open_store

from envs import tabletop
from envs.api import ActionSpec, Observation
from envs.benchmarks import benchmark
from envs.hashing import stable_hash
from envs.process import SimulatorMissing, SimulatorProcess, interpreter_for

ROW = benchmark("tabletop")
SEEN = tabletop.Tabletop(ROW).reset("reach", 0)


@contextmanager
def server(mode, port=0):
    """The URL of a policy server that runs while the block does."""
    script = Path(__file__).with_name("policy_server.py")
    command = [sys.executable, str(script), mode, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"ws://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def met(url, tmp_path, evaluation="e", **changes):
    served = Served(evaluation, **{"adapter": "observation", "actions": "", **changes})
    [found] = candidates(url, ["tabletop"], open_store(str(tmp_path)), served)
    return found.policy


def act(policy, horizon=2, timeout=20.0):
    return Courier(None, 1, 60.0).act(policy, SEEN, horizon, timeout)


def test_values_survive_the_wire_as_openpi_writes_them():
    value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int64(3), "c": [1, "x"]}
    found = unpack(pack(value))
    assert np.array_equal(found["a"], value["a"]) and found["a"].dtype == np.float32
    assert found["b"] == 3 and found["c"] == [1, "x"]
    with pytest.raises(ValueError, match="dtype object"):
        pack({"a": np.array([object()])})
    for broken in (b"\xc1", b"", pack(value)[:-3]):
        with pytest.raises(ValueError, match="not msgpack"):
            unpack(broken)
    poison = {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|O", b"shape": [1]}
    with pytest.raises(ValueError, match="not msgpack"):
        unpack(pack(poison))


def test_a_server_is_asked_and_answers_in_the_benchmarks_units(tmp_path):
    with server("declare") as url:
        policy = met(url, tmp_path)
        first, again = act(policy), act(policy)
    raw = np.cos(SEEN.image[::32, ::32].astype(np.float64).sum() + np.arange(7))
    assert first.shape == (2, 7) and first.dtype == np.float32
    assert np.array_equal(first, again)
    np.testing.assert_allclose(first[0], raw * [1, 1, 1, 1, 1, 1, -1], rtol=1e-6)


def test_a_name_beyond_ascii_is_the_same_whenever_it_is_declared(tmp_path):
    with server("named") as url:
        assert act(met(url, tmp_path)).shape == (2, 7)


@pytest.mark.parametrize("mode", ["garbage", "mute"])
def test_a_server_that_does_not_greet_leaves_no_line_open(mode):
    with server(mode) as url:
        before = set(threading.enumerate())
        with pytest.raises((PolicyRefusedError, PolicyUnavailableError)):
            metadata_of(url, timeout=1.0)
        left = set(threading.enumerate()) - before
        for thread in left:
            thread.join(5)
        assert not any(thread.is_alive() for thread in left)


def test_frames_of_two_sizes_are_asked_one_by_one():
    courier = Courier(None, 2, 60.0)
    seen = [Observation(np.zeros((px, px, 3), np.uint8), "go") for px in (8, 16)]
    questions = [Question(Checkpoint("r", 1, "0" * 64), each, Future()) for each in seen]
    courier._ask(questions[0].checkpoint, questions)
    for question in questions:
        assert "needs an inference replica" in str(question.answer.exception(0))


def test_identity_is_what_is_declared_and_the_evaluations_own_id(tmp_path):
    with server("declare") as url:
        one, same, other = (met(url, tmp_path, evaluation=name) for name in ("a", "a", "b"))
    assert one.digest == same.digest != other.digest
    with server("answer") as url:
        undeclared = met(url, tmp_path, evaluation="a", actions="tabletop")
    assert undeclared.digest != one.digest


@pytest.mark.parametrize(
    ("mode", "error", "said"),
    [
        ("nan", BadActionsError, "the policy at ws://.* not finite"),
        ("short", BadActionsError, r"the policy at ws://.* shape \[1, 7\]"),
        ("fail", PolicyRefusedError, "the policy at ws://.* ValueError: no such robot"),
    ],
)
def test_what_a_policy_does_wrong_is_said_in_its_name(tmp_path, mode, error, said):
    with server(mode) as url, pytest.raises(error, match=said):
        act(met(url, tmp_path))


def test_a_silent_server_is_out_of_reach(tmp_path):
    with server("slow") as url:
        policy = met(url, tmp_path)
        began = time.monotonic()
        with pytest.raises(PolicyUnavailableError, match="does not answer"):
            act(policy, timeout=1.0)
        assert time.monotonic() - began < 10


def test_a_restarted_server_is_found_again_unless_it_is_another(tmp_path):
    lines = Lines()
    with server("declare") as url:
        policy, port = met(url, tmp_path), int(url.rsplit(":", 1)[1])
        first = lines.act(policy, SEEN, 5.0)
    with pytest.raises(PolicyUnavailableError):
        lines.act(policy, SEEN, 5.0)
    with server("declare", port):
        assert np.array_equal(lines.act(policy, SEEN, 5.0), first)
    with server("answer", port):
        with pytest.raises(PolicyUnavailableError):
            lines.act(policy, SEEN, 5.0)
        with pytest.raises(PolicyRefusedError, match="start another evaluation"):
            lines.act(policy, SEEN, 5.0)


@pytest.mark.parametrize(
    ("mode", "served", "said"),
    [
        ("answer", {}, "declares no action_spec"),
        ("other", {}, "rotation: the policy at ws://.* has 'axis_angle', tabletop has 'euler'"),
        ("garbage", {}, "an error: hello"),
        ("declare", {"adapter": "observaton"}, "Did you mean 'observation'"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_played(
    tmp_path, mode, served, said
):
    with server(mode) as url, pytest.raises((ValueError, PolicyRefusedError), match=said):
        met(url, tmp_path, **served)


def test_no_server():
    with pytest.raises(PolicyUnavailableError, match="no policy server answers at ws://127"):
        metadata_of("ws://127.0.0.1:9")
    with pytest.raises(PolicyUnavailableError, match="isn't a valid URI"):
        metadata_of("ws://")


def test_units_and_signs_are_converted_and_other_differences_refused():
    ours, theirs = ActionSpec(0.05, "euler", 0.5, 1), ActionSpec(1.0, "euler", 1.0, -1)
    found = converted(np.ones((2, 7), np.float32), theirs, ours)
    np.testing.assert_allclose(found[0], [20, 20, 20, 2, 2, 2, -1])
    require_alike(theirs, ours, "a", "b")
    with pytest.raises(ValueError, match="frame"):
        require_alike(ActionSpec(0.05, "euler", 0.5, 1, "hand"), ours, "a", "b")


def test_liberos_state_is_said_as_openpi_learnt_it():
    half = np.sqrt(0.5)
    state = np.array([1, 2, 3, 0, 0, half, half, 0.1, -0.1])  # a quarter turn about z
    np.testing.assert_allclose(
        axis_angle_state(state), [1, 2, 3, 0, 0, np.pi / 2, 0.1, -0.1], atol=1e-12
    )
    still = np.array([1, 2, 3, 0, 0, 0, 1.0, 0.1, -0.1])
    np.testing.assert_allclose(axis_angle_state(still)[3:6], 0)
    from vla_platform.adapters import observation_dict

    frame = np.zeros((4, 4, 3), np.uint8)
    seen = Observation(frame, "go", {"robot0_eye_in_hand": frame}, state)
    sent = observation_dict(seen, ADAPTERS["libero"])
    keys = {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert set(sent) == keys and sent["observation/state"].shape == (8,)
    with pytest.raises(ValueError, match="no proprioception"):
        observation_dict(Observation(frame, "go", seen.views), ADAPTERS["libero"])


@pytest.mark.full
def test_real_libero_is_shown_as_openpis_policies_learnt_it(tmp_path):
    try:
        interpreter_for("libero")
    except SimulatorMissing as missing:
        pytest.skip(str(missing))
    with server("libero") as url:
        served = Served("e", "libero", "")
        [found] = candidates(url, ["libero_object"], open_store(str(tmp_path)), served)
        row = replace(found.row, step_limits={"*": 8})
        with SimulatorProcess(row) as process:
            process.reset(row.tasks[0], 0, 0)
            fingerprint = stable_hash(process.fingerprint())
        cell = Cell(found.policy.digest, row.name, 4, fingerprint)
        episode = cell.episode(row.tasks[0], 0, 0, "")
        slot, courier = Slot(row), Courier(None, 1, 60.0)
        played = slot.play(
            Assignment(found.policy, row, episode),
            lambda seen, timeout: courier.act(found.policy, seen, 4, timeout),
            Limits(),
        )
        slot.process.close()
    assert (played.steps, played.replans) == (8, 2)


@pytest.mark.parametrize("actions", ["words", [[1.0], [1.0, 2.0]], {"x": 1}])
def test_an_answer_of_no_numbers_is_refused(actions):
    spec = ActionSpec(1.0, "euler", 1.0, 1)
    policy = Remote("ws://here", "{}", "e", "observation", spec, spec)
    with pytest.raises(PolicyRefusedError, match="answered no numbers"):
        actions_in(policy, {"actions": actions})


@pytest.mark.parametrize("declared", [{"a": np.nan}, {"a": msgpack.Timestamp(1)}, [1], None])
def test_what_no_json_can_hold_is_no_declaration(declared):
    line = SimpleNamespace(recv=lambda timeout: msgpack.packb(declared))
    with pytest.raises(ValueError, match=r"not (a dict|what JSON can hold)|JSON compliant"):
        declared_by(OpenPi(), line, 1.0)


def test_declared_actions_mean_something():
    whole = {**vars(ActionSpec(1.0, "euler", 1.0, 1))}
    for wrong in ({"gripper_close": 0}, {"rotation_scale": -1.0}, {"rotation": "quaternion"}):
        with pytest.raises(ValueError, match="not an ActionSpec"):
            declared_actions({"action_spec": {**whole, **wrong}}, ADAPTERS["observation"], "")
