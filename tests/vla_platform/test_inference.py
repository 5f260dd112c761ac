"""Batch invariance and errors of an inference replica, without Ray: a Replica is a plain class."""

import weakref
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from vla_platform import artifacts
from vla_platform.artifacts import Checkpoint
from vla_platform.batcher import MOST_POLICIES, BadActionsError, Batcher, _Request, checked
from vla_platform.inference import Replica
from vla_platform.store import open_store

from envs import tabletop
from envs.api import Observation
from envs.benchmarks import benchmark
from vlm4vla.export import load_policy, save_policy
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROW = benchmark("tabletop")
ARCHITECTURES = (
    "tiny-paligemma-1",
    "tiny-paligemma-2",
    "tiny-kosmos-2",
    "tiny-qwen2.5vl-3b",
    "tiny-qwen3vl-2b",
    "tiny-qwen3vl-30b-a3b",
)


def checkpoint_of(store, folder: Path, backbone: str):
    run = Run(backbone, "tabletop", init="scratch").resolved(ROW.recipe)
    folder.mkdir()
    save_policy(build_policy(run, ROW.chunk, action_spec=ROW.action_spec), run, ROW, folder)
    artifacts.publish_policy(store, run.id(ROW), 0, folder)
    digest = artifacts.file_digest(folder / artifacts.WEIGHTS)
    return artifacts.complete_policy(store, run.id(ROW), 0, digest)


def observations(count):
    """Frames and instructions of different lengths."""
    simulator = tabletop.Tabletop(ROW)
    seen = [simulator.reset(tabletop.TASKS[i % 3], i) for i in range(count)]
    texts = [s.instruction + " please" * (i % 4) for i, s in enumerate(seen)]
    return np.stack([s.image for s in seen]), texts


@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_actions_are_the_same_alone_and_in_any_company(tmp_path, backbone):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", backbone)
    replica = Replica(store, load_policy, batch=8, threads=1)
    images, texts = observations(11)
    together = replica.act(checkpoint, images, texts)
    alone = [replica.act(checkpoint, images[i : i + 1], texts[i : i + 1])[0] for i in range(11)]
    assert np.array_equal(together, np.stack(alone))
    order = np.random.default_rng(0).permutation(11)
    shuffled = replica.act(checkpoint, images[order], [texts[i] for i in order])
    assert np.array_equal(together[order], shuffled)
    restarted = Replica(store, load_policy, batch=8, threads=1)
    assert np.array_equal(together[3:5], restarted.act(checkpoint, images[3:5], texts[3:5]))
    assert np.abs(together[0] - together[1]).max() > 0


class Broken:
    batch_invariant = True

    def __init__(self, answer):
        self.answer = answer

    def group(self, observation):
        return 16

    def act(self, observations, length):
        return np.stack([self.answer] * len(observations))


class Picky(Broken):
    """Cannot answer black frames, like a policy whose numbers overflow on some input."""

    def act(self, observations, length):
        if not all(seen.image.any() for seen in observations):
            raise OverflowError("too dark")
        return np.stack([np.full((4, 7), seen.image.mean()) for seen in observations])


def test_a_policy_that_answers_nothing_like_actions_is_named(tmp_path):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", "tiny-paligemma-1")
    answers = iter([Broken(np.zeros(7))])
    replica = Replica(store, lambda folder: next(answers, load_policy(folder)), 4, 1)
    images, texts = observations(1)
    with pytest.raises(BadActionsError, match=rf"{checkpoint.run}.*shape \[4, 7\]"):
        replica.act(checkpoint, images, texts)
    replica.policies.clear()
    assert replica.act(checkpoint, images, texts).shape == (1, 4, 7)


def test_policies_leave_before_another_is_loaded(tmp_path):
    alive = weakref.WeakSet()

    def load(checkpoint):
        assert len(alive) < MOST_POLICIES, "three are in memory at once"
        if checkpoint.digest == "large" and alive:
            raise MemoryError("no room beside the others")
        alive.add(policy := Broken(np.zeros((4, 7))))
        return policy

    batcher = Batcher(load, batch=4, threads=1)
    seen = Observation(observations(1)[0][0], "reach")
    for digest in (*"abcab", "large", "a"):
        answer = batcher.ask(Checkpoint("run", 1, digest), seen)
        assert answer.result(timeout=10).shape == (4, 7)


def test_one_bad_observation_does_not_spoil_its_company(tmp_path):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", "tiny-paligemma-1")
    replica = Replica(store, lambda folder: Picky(None), 4, 1)
    images, texts = observations(4)
    images[2] = 0
    seen = [Observation(image, text) for image, text in zip(images, texts, strict=True)]
    requests = [_Request(checkpoint, each, Future()) for each in seen]
    for request in requests:
        replica.waiting.put(request)
    kept = [request.answer.exception(timeout=10) for request in requests]
    assert [type(error) for error in kept] == [type(None)] * 2 + [OverflowError, type(None)]


@pytest.mark.parametrize("answer", [np.full((4, 7), np.nan), np.zeros((4, 6)), np.zeros((1, 7))])
def test_bad_actions_are_refused_in_the_policys_name(answer):
    with pytest.raises(BadActionsError, match=r"^policy r at step 3 answered actions"):
        checked(answer, 2, "policy r at step 3")
    assert checked(np.ones((4, 7)), 2, "any").shape == (2, 7)


def test_a_policy_that_was_replaced_is_not_used(tmp_path):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", "tiny-paligemma-1")
    store.put(f"{checkpoint.prefix}/{artifacts.WEIGHTS}", b"something else")
    replica = Replica(store, load_policy, 4, 1)
    images, texts = observations(1)
    (artifacts.places.cache() / "policies" / checkpoint.digest / artifacts.WEIGHTS).unlink(
        missing_ok=True
    )
    with pytest.raises(ValueError, match="does not have the digest"):
        replica.act(checkpoint, images, texts)
