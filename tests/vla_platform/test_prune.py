"""Pruning over both kinds of store: what goes, what stays, and that what stays still resumes."""

import hashlib

from vla_platform import artifacts, prune
from vla_platform.store_sink import StoreSink

RUN = "run"


def checkpoint(store, step, evaluated=True, complete=True, attempt="a"):
    """A checkpoint of one worker with tiny files."""
    for name in (artifacts.WEIGHTS, artifacts.DESCRIPTION):
        store.put(f"{artifacts.checkpoint_prefix(RUN, step)}/{name}", f"{name}{step}".encode())
    state = f"state {step}".encode()
    key = f"{artifacts.state_prefix(RUN, step, attempt)}/zero0.safetensors"
    store.put(key, state)
    store.put(f"{key}.json", b"{}")
    if complete:
        digest = hashlib.sha256(f"{artifacts.WEIGHTS}{step}".encode()).hexdigest()
        parts = {"zero0.safetensors": hashlib.sha256(state).hexdigest()}
        artifacts.complete_policy(
            store, RUN, step, digest, evaluated=evaluated, attempt=attempt, state=parts
        )


def sink(store, tmp_path):
    return StoreSink(store, RUN, tmp_path / "scratch", lambda row: None, lambda: False)


def test_policies_that_are_evaluated_stay_and_states_but_the_last_two_go(store, tmp_path):
    checkpoint(store, 10, attempt="first")
    checkpoint(store, 15, evaluated=False)
    checkpoint(store, 20)
    checkpoint(store, 25, evaluated=False)
    checkpoint(store, 20, complete=False, attempt="killed")
    checkpoint(store, 30, complete=False)  # on its way
    what = prune.surplus(store, RUN)
    assert prune.delete(store, what) == len(what.keys) > 0
    left = artifacts.checkpoints(store, RUN)
    assert [(c.step, c.evaluated) for c in left] == [(10, True), (20, True), (25, False)]
    training = [key.split("/")[2:4] for key in store.list(f"training/{RUN}/")]
    assert [step for step, _ in training] == ["step-00000020", "step-00000025"] + [
        "step-00000030"
    ] * 2
    assert ["step-00000020", "killed"] not in training
    assert not list(store.list(f"policies/{RUN}/step-00000015/"))
    assert len(list(store.list(f"policies/{RUN}/step-00000030/"))) == 2
    assert sink(store, tmp_path).candidates() == [25, 20]
    folder = sink(store, tmp_path).fetch(25, "zero0.safetensors")
    assert (folder / "zero0.safetensors").read_text() == "state 25"
    assert prune.surplus(store, RUN).keys == ()


def test_a_run_without_states_loses_nothing(store):
    artifacts.complete_policy(store, RUN, 0, "0" * 64)
    assert prune.surplus(store, RUN).keys == ()
    assert prune.runs(store) == [RUN]
