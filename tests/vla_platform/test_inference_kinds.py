"""Every policy kind behind a replica: actions are functions of observation and seed alone."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from vla_platform import artifacts
from vla_platform.evaluation import REPEAT, Wanted
from vla_platform.inference import Replica
from vla_platform.slots import draw_seed
from vla_platform.store import open_store

from envs import tabletop
from envs.benchmarks import benchmark
from vlm4vla.export import load_policy, save_policy
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROW = benchmark("tabletop")
KINDS = (
    ("openvla", "tiny-qwen3vl-2b"),
    ("openvla", "tiny-prism-dinosiglip-224px-7b"),
    ("pi0", "tiny-paligemma-1"),
)


def checkpoint_of(store, folder: Path, kind: str, backbone: str):
    run = Run(backbone, "tabletop", policy=kind, init="scratch").resolved(ROW.recipe)
    folder.mkdir()
    save_policy(build_policy(run, ROW.chunk, action_spec=ROW.action_spec), run, ROW, folder)
    artifacts.publish_policy(store, run.id(ROW), 0, folder)
    digest = artifacts.file_digest(folder / artifacts.WEIGHTS)
    return artifacts.complete_policy(store, run.id(ROW), 0, digest)


def observations(count):
    simulator = tabletop.Tabletop(ROW)
    seen = [simulator.reset(tabletop.TASKS[i % 3], i) for i in range(count)]
    return np.stack([s.image for s in seen]), [
        s.instruction + " now" * (i % 3) for i, s in enumerate(seen)
    ]


@pytest.mark.parametrize(("kind", "backbone"), KINDS)
def test_actions_are_the_same_alone_and_in_any_company(tmp_path, kind, backbone):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", kind, backbone)
    replica = Replica(store, load_policy, batch=4, threads=1)
    images, texts = observations(6)
    seeds = [100 + i for i in range(6)]
    together = replica.act(checkpoint, images, texts, seeds)
    for i in range(6):
        alone = replica.act(checkpoint, images[i : i + 1], texts[i : i + 1], seeds[i : i + 1])
        assert np.array_equal(alone[0], together[i])
    other = replica.act(checkpoint, images, texts, [seed + 1 for seed in seeds])
    assert np.array_equal(other, together) == (kind != "pi0")


def test_repeated_episodes_have_seeds_of_their_own():
    checkpoint = artifacts.Checkpoint("run", 1, "digest")
    wanted = Wanted(checkpoint, ROW, 2, "here", ("reach", "push"), trials=3, first=5, repeats=2)
    episodes = wanted.episodes()
    assert len({episode.key for episode in episodes}) == 12
    assert {(e.initial_state, e.seed) for e in episodes} == {
        (state, state + repeat * REPEAT) for state in (5, 6, 7) for repeat in (0, 1)
    }
    once = Wanted(checkpoint, ROW, 2, "here", ("reach", "push"), trials=3, first=5)
    assert {e.key for e in once.episodes()} < {e.key for e in episodes}


def test_a_draw_is_a_function_of_episode_and_replan():
    checkpoint = artifacts.Checkpoint("run", 1, "digest")
    first, second = Wanted(checkpoint, ROW, 2, "here", ("reach",), trials=2).episodes()
    seeds = [draw_seed(episode, replan) for episode in (first, second) for replan in range(3)]
    assert len(set(seeds)) == 6
    assert seeds[0] == draw_seed(first, 0)
    assert all(0 <= seed < 2**60 for seed in seeds)


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [*KINDS, ("action_query", "tiny-qwen3vl-2b"), ("action_query", "tiny-kosmos-2")],
)
def test_a_policy_answers_in_16_bits_as_it_was_trained_in(tmp_path, kind, backbone):
    store = open_store(str(tmp_path / "store"))
    checkpoint = checkpoint_of(store, tmp_path / "policy", kind, backbone)
    replica = Replica(store, partial(load_policy, precision="bf16"), batch=4, threads=1)
    images, texts = observations(5)
    together = replica.act(checkpoint, images, texts)
    alone = [replica.act(checkpoint, images[i : i + 1], texts[i : i + 1])[0] for i in range(5)]
    assert np.array_equal(together, np.stack(alone))
    policy = replica.policies[checkpoint.digest]
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    exact = load_policy(tmp_path / "policy")
    kept = dict(exact.named_buffers())
    for name, buffer in policy.named_buffers():
        if "inv_freq" in name:
            assert torch.equal(buffer, kept[name]), f"{name}: rotary frequencies were rounded"
    if kind != "openvla":  # an untrained policy's words are a toss
        full = Replica(store, load_policy, batch=4, threads=1).act(checkpoint, images, texts)
        assert np.abs(together - full)[..., :6].max() < 0.1
