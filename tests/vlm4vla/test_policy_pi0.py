"""pi0: who sees whom, flow matching against cases with a known answer, and reproducible noise."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.api import Observation
from envs.benchmarks import benchmark
from tests.vlm4vla.policy_helpers import TEXTS, fresh, images, targets
from vlm4vla import sizes
from vlm4vla.backbones import backbone
from vlm4vla.export import load_policy, save_policy
from vlm4vla.policies import pi0
from vlm4vla.policies.flow_expert import FlowExpert, time_embedding
from vlm4vla.policies.pi0 import Pi0Policy
from vlm4vla.run import Run

NAME = "tiny-paligemma-1"
KEYS = [(0, 0, slot) for slot in range(3)]


def policy_of(**fields: object) -> Pi0Policy:
    policy = fresh(NAME, policy="pi0", **fields)
    assert isinstance(policy, Pi0Policy)
    return policy


@lru_cache(maxsize=1)
def shared() -> Pi0Policy:
    """A policy that tests only read."""
    return policy_of().eval()


def batch(policy: Pi0Policy, length: int | None = None) -> dict[str, torch.Tensor]:
    return {**policy.prepare(images(3), TEXTS, length), **policy.draws(KEYS)}


def observations(*seeds: int) -> list[Observation]:
    frames = images(len(seeds))
    return [Observation(frames[i], TEXTS[i % 3], seed=seed) for i, seed in enumerate(seeds)]


def test_the_mask_is_block_causal() -> None:
    real = torch.tensor([[1, 1, 0], [1, 1, 1]])
    mask = pi0.block_mask(real, chunk=2)
    assert mask.int().tolist() == [
        [
            [1, 1, 0, 0, 0],  # the prompt sees itself, both ways, but no padding and no action
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 1, 1],  # actions see the prompt and each other
            [1, 1, 0, 1, 1],
        ],
        [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
        ],
    ]


def test_the_model_obeys_the_mask() -> None:
    """Later words reach earlier keys, and actions reach each other."""
    policy = shared()
    inputs = batch(policy)
    with torch.no_grad():
        prompt, allowed = policy._prompt(inputs)
        noise, time = inputs["noise"], inputs["time"]
        plain = policy.expert(prompt, allowed, noise, time)
        other = noise.clone()
        other[:, 3] += 1
        moved = policy.expert(prompt, allowed, other, time)
        words = inputs["input_ids"].clone()
        words[0, 18] += 1
        changed, _ = policy._prompt({**inputs, "input_ids": words})
    assert ((plain - moved).abs().amax((0, 2)) > 1e-6).all()
    # The second layer's keys of the image, before the changed word, have heard of it.
    assert (prompt[1][0][0, :, :16] - changed[1][0][0, :, :16]).abs().max() > 1e-6
    assert torch.equal(prompt[1][0][1:], changed[1][0][1:])


def test_sizes_are_the_papers() -> None:
    """3.1 G: open-pi-zero leaves out what comes after the prompt's last keys, and so do we."""
    row = backbone("paligemma-1")
    vlm = sizes.meta_model(row)
    with torch.device("meta"):
        expert = FlowExpert(vlm.config.text_config, row.head_width)
    assert sizes.count(expert.parameters()) == 314_628_103
    assert sizes.count(vlm.parameters()) + sizes.count(expert.parameters()) == 3_238_094_583
    policy = Pi0Policy.__new__(Pi0Policy)
    torch.nn.Module.__init__(policy)
    policy.vlm, policy.expert = vlm, expert
    assert sizes.count(policy.optimised_parameters()) == 3_129_038_583


def test_everything_optimised_gets_a_gradient_and_nothing_else_does() -> None:
    policy = policy_of()
    policy.train().loss(batch(policy), *targets(3))[0].backward()
    optimised = {id(p) for p in policy.optimised_parameters()}
    for name, p in policy.named_parameters():
        assert (p.grad is not None) == (id(p) in optimised), name


def test_padding_and_company_change_nothing() -> None:
    policy = shared()
    seen = observations(7, 8, 9)
    together = policy.act(seen)
    assert together.shape == (3, 4, 7)
    assert set(np.unique(together[..., 6])) <= {-1.0, 1.0}
    assert np.abs(together).max() <= 1
    for i in range(3):
        np.testing.assert_allclose(policy.act(seen[i : i + 1])[0], together[i], atol=1e-5)
        np.testing.assert_allclose(policy.act(seen[i : i + 1], 100)[0], together[i], atol=1e-5)


def test_the_seed_decides() -> None:
    policy = shared()
    one = observations(1)[0]
    again = Observation(one.image, one.instruction, seed=1)
    other = Observation(one.image, one.instruction, seed=2)
    first, second, third = policy.act([one, again, other], 64)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 1e-3


def test_draws_depend_on_the_key_alone() -> None:
    policy = shared()
    all_, some = policy.draws(KEYS), policy.draws(KEYS[1:])
    assert torch.equal(all_["noise"][1:], some["noise"])
    assert torch.equal(all_["time"][1:], some["time"])
    many = policy.draws([(seed,) for seed in range(4000)])
    assert abs(float(many["noise"].mean())) < 0.01
    assert float(many["noise"].std()) == pytest.approx(1, abs=0.01)


def test_times_are_mostly_early_and_end_before_one() -> None:
    times = shared().draws([(seed,) for seed in range(4000)])["time"]
    # 1 - Beta(1.5, 1) has mean 0.4 and median 1 - 0.5 ** (2 / 3).
    assert float(times.mean()) == pytest.approx(0.999 * 0.4, abs=0.01)
    assert float(times.median()) == pytest.approx(0.999 * (1 - 0.5 ** (2 / 3)), abs=0.015)
    assert 0 <= float(times.min()) < 0.01
    assert float(times.max()) <= 0.999
    np.testing.assert_allclose(
        pi0.train_time(np.array([0, 0.25, 1])), [0.999, 0.74925, 0], rtol=1e-6
    )


def test_paths_start_at_noise_and_end_at_the_actions() -> None:
    noise, actions = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    points = pi0.between(noise, actions, torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(points[0], noise[0])
    torch.testing.assert_close(points[1], actions[1] + 0.001 * noise[1])
    torch.testing.assert_close(points[2], 0.5 * actions[2] + 0.5005 * noise[2])


def test_the_loss_is_zero_for_the_paths_own_velocity_and_known_off_it() -> None:
    noise, actions = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    ideal = actions - 0.999 * noise
    assert pi0.flow_loss(ideal, noise, actions, mask).item() == pytest.approx(0, abs=1e-12)
    off = ideal + torch.tensor([0.5, 3.0])[None, :, None]
    # Four steps count: 0.25 three times and 9 once.
    loss = pi0.flow_loss(off, noise, actions, mask).item()
    assert loss == pytest.approx((3 * 0.25 + 9) / 4, rel=1e-6)


def test_euler_on_linear_fields() -> None:
    noise = torch.randn(2, 4, 7, dtype=torch.float64)
    # x' = -a x: ten steps of 0.1 multiply by (1 - a / 10) ** 10.
    decayed = pi0.euler(lambda x, _: -0.7 * x, noise)
    torch.testing.assert_close(decayed, noise * (1 - 0.07) ** 10)
    # x' = t: ten left sums of 0, 0.1, … give 0.45.
    drifted = pi0.euler(lambda x, t: t[:, None, None].expand_as(x), noise)
    torch.testing.assert_close(drifted, noise + 0.45)
    # The velocity of a straight path is constant, so one target is reached exactly.
    goal = torch.ones_like(noise)
    arrived = pi0.euler(lambda x, t: (goal - x) / (1 - t)[:, None, None], noise)
    torch.testing.assert_close(arrived, goal)


def test_time_embedding() -> None:
    found = time_embedding(torch.tensor([0.0, 0.5]), 4)
    assert found[0].tolist() == [0, 0, 1, 1]
    expected = [np.sin(0.5), np.sin(0.005), np.cos(0.5), np.cos(0.005)]
    np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-6)


def test_overfits_one_batch() -> None:
    """Each sample comes eight times, with other noise; what is judged are sampled actions."""
    policy = policy_of()
    frames, texts = np.tile(images(3), (8, 1, 1, 1)), TEXTS * 8
    inputs, (actions, mask) = policy.prepare(frames, texts), targets(3)
    optimiser = torch.optim.AdamW(policy.optimised_parameters(), lr=5e-3)
    losses = []
    for step in range(120):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 20, (120 - step) / 60)
        draws = policy.draws([(0, step, slot) for slot in range(24)])
        loss, _ = policy.loss({**inputs, **draws}, actions.repeat(8, 1, 1), mask.repeat(8, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.1 * losses[0]
    found = policy.act([Observation(frames[i], texts[i], seed=99 + i) for i in range(3)])
    errors = np.abs(found[..., :6] - actions[..., :6].numpy())
    # Actions are spread evenly over 1.6, so unrelated ones are 0.53 apart.
    assert errors.mean() < 0.2
    np.testing.assert_array_equal(found[..., 6], actions[..., 6])


def test_other_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be 'tiny-qwen3vl-2b': take tiny-paligemma-1"):
        fresh("tiny-qwen3vl-2b", policy="pi0")


def test_recomputation_is_refused() -> None:
    policy = policy_of()
    policy.vlm.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="recomputation"):
        policy.train().loss(batch(policy), *targets(3))


def test_an_exported_policy_acts_the_same(tmp_path: Path) -> None:
    row = benchmark("tabletop")
    policy = policy_of().eval()
    run = Run(NAME, "tabletop", policy="pi0", init="scratch").resolved(row.recipe)
    save_policy(policy, run, row, tmp_path)
    seen = observations(5)
    np.testing.assert_array_equal(load_policy(tmp_path).act(seen), policy.act(seen))
