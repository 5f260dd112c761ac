"""Weights: shipped files, whole policies, released checkpoints; what does not fit is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vlm4vla.policy_helpers import ARCHITECTURES, TEXTS, UNTIED, fresh, images, targets
from vlm4vla import weights as stored
from vlm4vla.backbones import backbone, full_rows
from vlm4vla.policies import ActionQueryPolicy, build_policy
from vlm4vla.released import imported, our_name, policy_state
from vlm4vla.run import Run
from vlm4vla.sources import WEIGHTS, remedy, source_of
from vlm4vla.stages import STAGES
from vlm4vla.tokenizers import qwen_tokenizer, tokenizer_of


def outputs(policy: ActionQueryPolicy) -> torch.Tensor:
    with torch.no_grad():
        pose, gripper = policy.eval()(policy.prepare(images(2), TEXTS[:2]))
    return torch.cat([pose, gripper[..., None]], -1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tiny_weights_round_trip_under_a_megabyte(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PRETRAINED", tmp_path)
    made = fresh(name, seed=7).vlm.to(torch.bfloat16)
    file = stored.tiny_file(backbone(name))
    stored.save_tiny(made, file)
    assert file.name == f"{backbone(name).architecture}.safetensors"
    assert file.stat().st_size <= 1_000_000
    again = build_policy(Run(name, "tabletop"), 4).vlm
    for (n, p), q in zip(again.named_parameters(), made.parameters(), strict=True):
        assert p.dtype == torch.float32
        assert torch.equal(p, q.float()), n


def test_rows_of_one_architecture_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PRETRAINED", tmp_path)
    row = backbone("tiny-qwen3vl-2b")
    stored.save_tiny(fresh(row.name).vlm, stored.tiny_file(row))
    untied = build_policy(Run("tiny-qwen3vl-8b", "tabletop"), 4).vlm
    assert untied.lm_head.weight is not untied.model.language_model.embed_tokens.weight
    assert torch.equal(untied.lm_head.weight, untied.model.language_model.embed_tokens.weight)


def test_absent_tiny_weights_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PRETRAINED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"paligemma-1\.safetensors.*pretrain_tiny\.py"):
        build_policy(Run("tiny-paligemma-1", "tabletop"), 4)


def test_absent_hub_weights_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"paligemma-1.*VLA_WEIGHTS/paligemma-1.*HF_HOME"):
        stored.pretrained(backbone("paligemma-1"), tmp_path)


def test_full_size_files_on_disk_are_found_by_their_rows_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS, str(tmp_path))
    made = fresh("tiny-kosmos-2").vlm
    made.save_pretrained(tmp_path / "kosmos-2")
    row = replace(backbone("tiny-kosmos-2"), name="kosmos-2", hub_id="a/b", tiny=False)
    for (name, p), q in zip(
        stored.pretrained(row).named_parameters(), made.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    qwen_tokenizer().save(tmp_path / "paligemma-1")
    found = tokenizer_of(backbone("paligemma-1"))
    assert found.encode("pick up the bowl") == qwen_tokenizer().encode("pick up the bowl")
    for path in (tmp_path / "kosmos-2").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError) as absent:
        stored.pretrained(row)
    assert f"kosmos-2 ({WEIGHTS} is {tmp_path}) or" in str(absent.value)
    monkeypatch.delenv(WEIGHTS)
    assert (source_of(row), "is not set" in remedy(row)) == ("a/b", True)


def test_a_stages_published_weights_are_looked_for_on_disk_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS, str(tmp_path))
    (tmp_path / "robobrain2").mkdir()  # without a file in it
    run = Run("qwen2.5vl-7b", "calvin", aux=STAGES["robobrain2"].id)
    with pytest.raises(FileNotFoundError) as absent:
        build_policy(run, 10)
    assert f"no weights for 'robobrain2': {tmp_path}/robobrain2 cannot" in str(absent.value)
    assert f"BAAI/RoboBrain2.0-7B into {WEIGHTS}/robobrain2" in str(absent.value)


@pytest.mark.parametrize("name", ["tiny-qwen3vl-2b", "tiny-qwen3vl-8b"])
def test_a_trained_policy_loads_with_either_name_of_a_tied_head(name: str, tmp_path: Path) -> None:
    policy = fresh(name, seed=1)
    state = {n: t.clone() for n, t in policy.state_dict().items()}
    file = tmp_path / "policy.safetensors"
    run = Run(name, "tabletop", init="scratch")
    for dropped in ([], ["vlm.lm_head.weight"] if name not in UNTIED else []):
        save_file({n: t for n, t in state.items() if n not in dropped}, file)
        torch.testing.assert_close(outputs(build_policy(run, 4, weights=file)), outputs(policy))


def test_keys_that_do_not_match_are_named(tmp_path: Path) -> None:
    policy = fresh("tiny-kosmos-2")
    state = {n: t.clone() for n, t in policy.state_dict().items()}
    state["head.trunk.9.bias"] = state.pop("query")
    state["head.arm.0.bias"] = torch.zeros(3)
    file = tmp_path / "policy.safetensors"
    save_file(state, file)
    with pytest.raises(ValueError, match=r"1 missing \(query\); 1 unknown \(head.trunk.9.bias\)"):
        build_policy(Run("tiny-kosmos-2", "tabletop"), 4, weights=file)
    with pytest.raises(ValueError, match=r"head.arm.0.bias is \[3\], should be \[128\]"):
        build_policy(Run("tiny-kosmos-2", "tabletop"), 4, weights=file)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sixteen_bits_keep_the_positions_exact(name: str) -> None:
    """Frequencies stay fp32 in a bf16 model, and its policy trains and acts."""
    run = Run(name, "tabletop", init="scratch")
    policy = build_policy(run, 4, dtype=torch.bfloat16)
    exact = fresh(name)
    for (n, b), c in zip(policy.vlm.named_buffers(), exact.vlm.buffers(), strict=True):
        if n.endswith("inv_freq"):
            assert torch.equal(b, c), n
    assert policy.vlm.dtype == torch.bfloat16
    loss, _ = policy.loss(policy.prepare(images(2), TEXTS[:2]), *targets(2))
    loss.backward()
    assert loss.dtype == torch.float32
    assert outputs(policy).shape == (2, 4, 7)


RELEASED = {
    "qwen2.5vl-3b": {
        "model.backbone.visual.merger.ln_q.weight": "vlm.model.visual.merger.ln_q.weight",
        "model.backbone.model.layers.35.mlp.up_proj.weight": (
            "vlm.model.language_model.layers.35.mlp.up_proj.weight"
        ),
        "model.backbone.lm_head.weight": "vlm.lm_head.weight",
    },
    "qwen3vl-4b": {
        "model.backbone.model.language_model.norm.weight": "vlm.model.language_model.norm.weight",
        "model.backbone.model.visual.pos_embed.weight": "vlm.model.visual.pos_embed.weight",
    },
    "paligemma-1": {
        "model.backbone.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias": (
            "vlm.model.vision_tower.encoder.layers.3.mlp.fc1.bias"
        ),
        "model.backbone.multi_modal_projector.linear.bias": (
            "vlm.model.multi_modal_projector.linear.bias"
        ),
        "model.backbone.language_model.model.layers.0.self_attn.q_proj.weight": (
            "vlm.model.language_model.layers.0.self_attn.q_proj.weight"
        ),
        "model.backbone.language_model.lm_head.weight": "vlm.lm_head.weight",
    },
    "kosmos-2": {
        "model.backbone.image_to_text_projection.latent_query": (
            "vlm.image_to_text_projection.latent_query"
        ),
        "model.act_head.mlp.2.weight": "head.trunk.2.weight",
        "model.act_head.actions.mlp.6.bias": "head.arm.6.bias",
        "model.act_head.gripper.mlp.0.weight": "head.gripper.0.weight",
        "module.model.action_token": "query",
    },
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_become_ours(name: str) -> None:
    row = backbone(name)
    ours = policy_state(row, 10)
    for theirs, expected in RELEASED[name].items():
        assert our_name(row, theirs) == expected
        assert expected in ours


def released_name(row_family: str, name: str) -> str:
    """Our name in the layout of the authors' time, written from their side."""
    if not name.startswith("vlm."):
        pairs = {
            "query": "action_token",
            "head.trunk": "act_head.mlp",
            "head.arm": "act_head.actions.mlp",
            "head.gripper": "act_head.gripper.mlp",
        }
        ours = next(ours for ours in pairs if name.startswith(ours))
        return "model." + name.replace(ours, pairs[ours], 1)
    name = name.removeprefix("vlm.")
    if row_family == "paligemma":
        name = name.replace("lm_head.", "language_model.lm_head.")
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
    if row_family == "qwen_vl":
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return "model.backbone." + name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_released_checkpoint_acts_as_it_did(name: str, tmp_path: Path) -> None:
    policy = fresh(name, seed=5)
    family = policy.row.family
    theirs = {released_name(family, n): t.clone() for n, t in policy.state_dict().items()}
    for key in theirs:
        if ".mlp.experts." in key and theirs[key].ndim == 3:
            theirs[key] = theirs[key].transpose(1, 2).contiguous()
    theirs["model.backbone.rotary_emb.inv_freq"] = torch.ones(8)
    source, target = tmp_path / "released.pt", tmp_path / "policy.safetensors"
    torch.save({"state_dict": theirs}, source)
    save_file(imported(policy.row, 4, source), target)
    again = build_policy(Run(name, "tabletop", init="scratch"), 4, weights=target)
    torch.testing.assert_close(outputs(again), outputs(policy))
    assert "query" in load_file(target)


def test_a_released_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "released.pt"
    torch.save({"state_dict": {"model.action_token": torch.zeros(64)}}, source)
    with pytest.raises(ValueError, match=r"released.pt do not fit the model: \d+ missing \(vlm"):
        imported(backbone("tiny-kosmos-2"), 4, source)
    with pytest.raises(FileNotFoundError, match="download it first"):
        imported(backbone("tiny-kosmos-2"), 4, tmp_path / "none.pt")


def test_every_full_row_has_a_key_set_to_check() -> None:
    for row in full_rows():
        state = policy_state(row, 10)
        assert all(tensor.device.type == "meta" for tensor in state.values())
        assert state["head.gripper.6.bias"].shape == (10,)
