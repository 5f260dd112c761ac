"""The action-query policy of every family: invariance, gradients, freezing, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.api import ActionSpec, Observation
from tests.vlm4vla.policy_helpers import (
    ARCHITECTURES,
    TEXTS,
    UNTIED,
    fresh,
    images,
    shared,
    targets,
)
from vlm4vla.backbones import BACKBONES
from vlm4vla.policies import POLICIES, ActionQueryPolicy, build_policy
from vlm4vla.run import POLICY_KINDS, Run

GROUPS = ("vision", "embed", "llm")


def observations(count: int, side: int = 112) -> list[Observation]:
    frames = images(count, side)
    return [Observation(frames[i], TEXTS[i % len(TEXTS)]) for i in range(count)]


def parts(policy: ActionQueryPolicy) -> dict[str, list[torch.nn.Parameter]]:
    modules, vlm = policy.row.modules, policy.vlm
    return {
        "vision": list(vlm.get_submodule(modules.vision).parameters()),
        "embed": list(vlm.get_submodule(modules.embedding).parameters()),
        "llm": list(vlm.get_submodule(modules.language).parameters()),
        "projector": list(vlm.get_submodule(modules.projector).parameters()),
        "query": [policy.query],
        "head": list(policy.head.parameters()),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_equals_alone(name: str) -> None:
    policy = shared(name)
    frames = images(len(TEXTS))
    with torch.no_grad():
        pose, gripper = policy(policy.prepare(frames, TEXTS))
        for i, text in enumerate(TEXTS):
            alone = policy(policy.prepare(frames[i : i + 1], [text]))
            torch.testing.assert_close(pose[i : i + 1], alone[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(gripper[i : i + 1], alone[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_right_padding_changes_nothing(name: str) -> None:
    policy = shared(name)
    with torch.no_grad():
        short = policy(policy.prepare(images(1), TEXTS[:1]))
        padded = policy(policy.prepare(images(1), TEXTS[:1], length=120))
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_depend_on_image_and_words(name: str) -> None:
    policy = shared(name)
    with torch.no_grad():
        pose, _ = policy(policy.prepare(images(2)[[0, 0, 1]], [TEXTS[0], TEXTS[1], TEXTS[0]]))
    assert (pose[0] - pose[1]).abs().max() > 1e-6
    assert (pose[0] - pose[2]).abs().max() > 1e-6


@pytest.mark.parametrize("profile", ["paper", "official"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_reach_every_part(name: str, profile: str) -> None:
    policy = fresh(name, profile=profile)
    # The gripper's part of the official loss is a hundredth: its gradients are just small.
    loss, _ = policy.loss(policy.prepare(images(3), TEXTS), *targets(3))
    loss.backward()
    for part, parameters in parts(policy).items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), part
    missing = [n for n, p in policy.named_parameters() if p.grad is None]
    assert missing == (["vlm.lm_head.weight"] if name in UNTIED else [])
    assert all(p.grad is not None for p in policy.optimised_parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    """Also: reading the last feed-forward at the query alone changes no number."""
    plain, saving = fresh(name, seed=2), fresh(name, seed=2)
    saving.vlm.gradient_checkpointing_enable()
    for policy in (plain, saving):
        policy.train().loss(policy.prepare(images(3), TEXTS), *targets(3))[0].backward()
    for (n, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=n)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_frozen_groups_stay_bit_identical(name: str, group: str) -> None:
    policy = fresh(name, freeze=(group,))
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimiser = torch.optim.AdamW(policy.optimised_parameters(), lr=1e-2, weight_decay=0.1)
    policy.loss(policy.prepare(images(3), TEXTS), *targets(3))[0].backward()
    optimiser.step()
    frozen = {id(p) for p in parts(policy)[group]}
    for n, p in policy.named_parameters():
        assert torch.equal(p, before[n]) == (id(p) in frozen or _tied_out(n, name)), n


def _tied_out(parameter: str, name: str) -> bool:
    return parameter == "vlm.lm_head.weight" and name in UNTIED


def test_freezing_again_replaces_the_groups() -> None:
    policy = fresh("tiny-qwen3vl-2b", freeze=("vision",))
    policy.freeze(("embed",))
    assert all(p.requires_grad for p in parts(policy)["vision"])
    assert not any(p.requires_grad for p in parts(policy)["embed"])


@pytest.mark.parametrize("profile", ["paper", "official"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_overfits_one_batch(name: str, profile: str) -> None:
    policy = fresh(name, profile=profile)
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3)
    optimiser = torch.optim.AdamW(policy.optimised_parameters(), lr=2e-3)
    start = last = None
    for _ in range(150):
        loss, _ = policy.loss(inputs, actions, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        start = start or loss.item()
        last = loss.item()
        if last < 0.1 * start:
            break
    assert start is not None and last is not None
    assert last < 0.1 * start


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("tiny-")])
def test_act_speaks_the_benchmarks_units(name: str) -> None:
    class Doubler:
        def inverse(self, actions: np.ndarray) -> np.ndarray:
            return actions * 2

    policy = fresh(name)
    plain = policy.act(observations(2))
    policy.normaliser = Doubler()
    policy.action_spec = ActionSpec(1.0, "euler", 1.0, gripper_close=-1)
    policy.train()
    actions = policy.act(observations(2))
    assert policy.training
    assert actions.shape == (2, 4, 7)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions[..., :6], plain[..., :6] * 2, atol=1e-6)
    np.testing.assert_array_equal(actions[..., 6], -plain[..., 6])
    assert set(np.unique(plain[..., 6])) <= {-1.0, 1.0}


def test_act_is_deterministic() -> None:
    policy = shared("tiny-kosmos-2")
    np.testing.assert_array_equal(policy.act(observations(3)), policy.act(observations(3)))


def test_masked_steps_do_not_count() -> None:
    policy = shared("tiny-paligemma-1")
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3)
    mask[:, 2:] = 0
    other = actions.clone()
    other[:, 2:] = -other[:, 2:]
    torch.testing.assert_close(
        policy.loss(inputs, actions, mask)[0], policy.loss(inputs, other, mask)[0]
    )


def test_gripper_sign_is_the_specs_in_loss_and_in_action() -> None:
    policy = fresh("tiny-paligemma-1")
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3)
    plain = policy.loss(inputs, actions, mask)[0]
    policy.action_spec = ActionSpec(1.0, "euler", 1.0, gripper_close=-1)
    actions[..., 6] *= -1
    torch.testing.assert_close(policy.loss(inputs, actions, mask)[0], plain)


def test_same_seed_same_policy_and_global_state_untouched() -> None:
    before = torch.random.get_rng_state()
    first, second = fresh("tiny-qwen3vl-2b", seed=3), fresh("tiny-qwen3vl-2b", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    other = fresh("tiny-qwen3vl-2b", seed=4)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    assert any(
        not torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_images_of_the_models_size_are_not_resized() -> None:
    policy = shared("tiny-qwen2.5vl-3b")
    assert policy.input_px(224) == 112
    large = images(2, 224)
    cached = policy.resize(large)
    assert cached.shape == (2, 112, 112, 3)
    assert policy.resize(cached) is cached
    torch.testing.assert_close(
        policy.prepare(large, TEXTS[:2])["pixel_values"],
        policy.prepare(cached, TEXTS[:2])["pixel_values"],
    )


def test_kinds_are_known_without_torch() -> None:
    assert tuple(POLICIES) == POLICY_KINDS


def test_unknown_policy_kind() -> None:
    with pytest.raises(ValueError, match="Did you mean 'action_query'"):
        build_policy(Run("tiny-kosmos-2", "tabletop", policy="action-query"), 4)
