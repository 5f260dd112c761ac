"""Actions as words: the released code's arithmetic, decoding, and the head on every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envs.api import Observation
from envs.benchmarks import benchmark
from tests.vlm4vla.policy_helpers import ARCHITECTURES, TEXTS, fresh, images, targets
from vlm4vla.backbones import backbone, full_rows
from vlm4vla.export import load_policy, save_policy
from vlm4vla.families import family_of
from vlm4vla.policies.openvla import Bins, OpenVlaPolicy, blur_of
from vlm4vla.run import Run

PRISMATIC = "tiny-prism-dinosiglip-224px-7b"
NAMES = (*ARCHITECTURES, PRISMATIC)
LLAMA = 32_000


def policy_of(name: str, chunk: int = 2, **fields: object) -> OpenVlaPolicy:
    policy = fresh(name, chunk, policy="openvla", **fields)
    assert isinstance(policy, OpenVlaPolicy)
    return policy


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (-1.0, 31_999),  # the first edge opens the first bin
        (-0.9999, 31_999),
        (-1 + 2 / 255 + 1e-9, 31_998),  # just past the second of 256 edges
        (-1 + 2 / 255 - 1e-9, 31_999),
        (0.0, 31_872),  # between the edges 127 and 128, counted from 0
        (0.9999, 31_745),
        (1.0, 31_744),  # the last edge has an id of its own
        (-7.0, 31_999),  # clipped
        (7.0, 31_744),
    ],
)
def test_values_become_the_released_codes_ids(value: float, token: int) -> None:
    assert Bins(LLAMA).encode(torch.tensor([value], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize(
    ("token", "value"),
    [
        (31_999, -254 / 255),
        (31_998, -252 / 255),
        (31_872, 0.0),
        (31_745, 254 / 255),
        (31_744, 254 / 255),  # exactly 1 decodes like the bin below it
        (32_005, -254 / 255),  # no action token: the nearest
        (5, 254 / 255),
    ],
)
def test_ids_become_centres(token: int, value: float) -> None:
    decoded = Bins(LLAMA).decode(torch.tensor([token]))
    assert decoded.item() == pytest.approx(value, abs=1e-7)


def test_bins_are_the_last_256_words_and_lose_at_most_half_a_bin() -> None:
    bins = Bins(LLAMA)
    assert (bins.ids.start, bins.ids.stop, len(bins.ids)) == (31_744, 32_000, 256)
    values = torch.linspace(-1, 1, 4001)
    assert (bins.decode(bins.encode(values)) - values).abs().max() <= 1 / 255 + 1e-6
    assert set(bins.encode(values).tolist()) == set(bins.ids)


def test_blurred_targets_are_normal_around_the_value_and_keep_its_own_bin() -> None:
    bins = Bins(LLAMA)
    likely = bins.blurred(torch.tensor([0.0, 0.5, 3.0]), 0.1)
    values = bins.decode(torch.tensor(bins.ids))
    torch.testing.assert_close(likely.sum(-1), torch.ones(3))
    means = (likely * values).sum(-1)
    torch.testing.assert_close(means[:2], torch.tensor([0.0, 0.5]), atol=1e-3, rtol=0)
    squares = (likely * values**2).sum(-1) - means**2
    torch.testing.assert_close(squares[:2], torch.full((2,), 0.9 * 0.1**2), atol=2e-4, rtol=0)
    own = (bins.encode(torch.tensor([0.0, 0.5, 3.0])) - bins.ids.start).tolist()
    assert likely.argmax(-1).tolist() == own
    beside = likely[torch.arange(3), torch.tensor(own) + 1]
    assert (likely.max(-1).values > 2 * beside).all()


def test_only_tiny_models_learn_from_blurred_targets() -> None:
    assert blur_of(backbone(PRISMATIC.removeprefix("tiny-"))) == 0
    policy = policy_of("tiny-paligemma-1")
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3, 2)
    blurred = policy.loss(inputs, actions, mask)[0]
    policy.blur = 0.0
    assert policy.loss(inputs, actions, mask)[0] != blurred


def test_where_each_full_rows_action_words_end() -> None:
    ends = {row.name: family_of(row).action_ids_end(row) for row in full_rows()}
    assert ends["qwen3vl-2b"] == 151_936
    assert ends["paligemma-1"] == 257_152  # the image's own token is not one of them
    assert ends["kosmos-2"] == 65_037
    row = backbone("prism-dinosiglip-224px-7b")
    assert family_of(row).action_ids_end(row) == LLAMA


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_everything(name: str) -> None:
    policy = policy_of(name)
    loss, metrics = policy.loss(policy.prepare(images(3), TEXTS), *targets(3, 2))
    loss.backward()
    assert set(metrics) == {"loss", "token_accuracy", "action_error"}
    assert all(p.grad is not None for p in policy.optimised_parameters())
    assert len(policy.optimised_parameters()) == len(list(policy.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_decoding_repeats_what_teacher_forcing_prefers(name: str) -> None:
    policy = policy_of(name).eval()
    inputs = policy.prepare(images(3), TEXTS)
    with torch.no_grad():
        tokens = policy.tokens(inputs)
        logits = policy.logits(inputs, tokens, 0, 14)
    ids = policy.bins.ids
    assert torch.equal(logits[..., ids.start : ids.stop].argmax(-1) + ids.start, tokens)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_looks_at_the_image_once(name: str) -> None:
    policy = policy_of(name).eval()
    calls = []
    # The patch embedding runs whenever the tower does.
    patches = next(m for m in policy.vlm.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    patches.register_forward_hook(lambda *_: calls.append(1))
    for times in (1, 2):
        policy.tokens(policy.prepare(images(1, seed=times), TEXTS[:1]))
        assert len(calls) == times


@pytest.mark.parametrize("name", NAMES)
def test_a_token_sees_those_before_it_and_no_later_one(name: str) -> None:
    policy = policy_of(name).eval()
    inputs = policy.prepare(images(3), TEXTS)
    tokens = torch.full((3, 14), policy.bins.ids.start)
    changed = tokens.clone()
    changed[:, 5] += 100
    with torch.no_grad():
        before, after = (policy.logits(inputs, t, 0, 14) for t in (tokens, changed))
    # Experts round differently when others share their batch.
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-4, rtol=1e-4)
    assert ((before[:, 6] - after[:, 6]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_batched_equals_alone_and_padding_changes_nothing(name: str) -> None:
    policy = policy_of(name).eval()
    frames = images(3)
    seen = [Observation(frames[i], TEXTS[i]) for i in range(3)]
    together = policy.act(seen)
    assert together.shape == (3, 2, 7)
    assert set(np.unique(together[..., 6])) <= {-1.0, 1.0}
    for i in range(3):
        np.testing.assert_allclose(policy.act(seen[i : i + 1])[0], together[i], atol=1e-5)
        np.testing.assert_allclose(policy.act(seen[i : i + 1], 200)[0], together[i], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-qwen3vl-2b", "tiny-paligemma-1", PRISMATIC])
def test_overfits_one_batch(name: str) -> None:
    policy = policy_of(name)
    policy.blur = 0.0  # to the exact bin, as at full size
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3, 2)
    optimiser = torch.optim.AdamW(policy.optimised_parameters(), lr=2e-3)
    for _ in range(200):
        loss, metrics = policy.loss(inputs, actions, mask)
        if metrics["token_accuracy"] == 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    decoded = policy.eval().chunks(inputs)
    torch.testing.assert_close(decoded[..., :6], actions[..., :6], atol=1 / 255 + 1e-6, rtol=0)
    assert torch.equal(decoded[..., 6], actions[..., 6])


def test_masked_steps_do_not_count() -> None:
    policy = policy_of("tiny-paligemma-1")
    inputs, (actions, mask) = policy.prepare(images(3), TEXTS), targets(3, 2)
    mask[:, 1:] = 0
    other = torch.cat([actions[:, :1], -actions[:, 1:]], dim=1)
    torch.testing.assert_close(
        policy.loss(inputs, actions, mask)[0], policy.loss(inputs, other, mask)[0]
    )


@pytest.mark.parametrize("name", ["tiny-qwen3vl-8b", PRISMATIC])
def test_an_exported_policy_acts_the_same(name: str, tmp_path: Path) -> None:
    row = benchmark("tabletop")
    policy = policy_of(name, row.chunk).eval()
    run = Run(name, "tabletop", policy="openvla", init="scratch").resolved(row.recipe)
    save_policy(policy, run, row, tmp_path)
    seen = [Observation(images(1)[0], TEXTS[0])]
    np.testing.assert_array_equal(load_policy(tmp_path).act(seen), policy.act(seen))


def test_freezing_words_freezes_action_words_where_they_are_tied() -> None:
    policy = policy_of("tiny-qwen3vl-2b", freeze=("embed",))
    assert not policy.vlm.get_input_embeddings().weight.requires_grad
    assert policy.vlm.get_input_embeddings().weight.shape[0] == 512
    assert policy.vlm.get_output_embeddings().weight is policy.vlm.get_input_embeddings().weight
