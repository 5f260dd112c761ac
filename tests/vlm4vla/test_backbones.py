"""Rows: sizes of Tables 3 and 9, freeze groups, recipes, the command."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm4vla import recipe, sizes
from vlm4vla.backbones import BACKBONES, _paligemma, backbone, full_rows
from vlm4vla.configs import PALIGEMMA_2
from vlm4vla.families import family_of
from vlm4vla.freeze import freeze
from vlm4vla.run import FREEZE_GROUPS
from vlm4vla.tiny import derive

ROOT = Path(__file__).parents[2]

TABLE9 = {
    "qwen2.5vl-3b": (3755, 6.58, 2048),
    "qwen2.5vl-7b": (8292, 11.6, 3584),
    "qwen3vl-2b": (2128, 6.58, 2048),
    "qwen3vl-4b": (4437, 8.02, 2560),
    "qwen3vl-8b": (8767, 13.92, 4096),
    "qwen3vl-30b-a3b": (31071, 6.58, 2048),
    "paligemma-1": (2923, 6.58, 2048),
    "paligemma-2": (3032, 7.27, 2304),
    "kosmos-2": (1664, 6.58, 2048),
}
TABLE3 = {
    "qwen2.5vl-3b": (3.8, 3.1, 3.4),
    "qwen2.5vl-7b": (8.3, 7.6, 7.8),
    # The paper prints 2.7 for frozen embeddings, which no count gives.
    "paligemma-1": (2.9, 2.5, 2.4),
}


@lru_cache(maxsize=1)
def command() -> dict[str, Any]:
    """What `python -m vlm4vla.backbones --json` printed."""
    arguments = [sys.executable, "-m", "vlm4vla.backbones", "--json"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_the_json_has_the_nine_and_builds_none() -> None:
    assert [name for name in command() if name in TABLE9] == list(TABLE9)
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert kilobytes * 1024 < 4 * 2**30


@pytest.mark.parametrize("name", TABLE9)
def test_table_9(name: str) -> None:
    row = command()[name]
    parameters, head, hidden = TABLE9[name]
    assert row["parameters_M"] == pytest.approx(parameters, rel=1e-3)
    assert row["head_M"] == pytest.approx(head, rel=1e-2)
    assert row["llm_hidden"] == hidden


@pytest.mark.parametrize("name", TABLE3)
def test_table_3(name: str) -> None:
    trainable = command()[name]["trainable_M"]
    for group, billions in zip(("none", "vision", "embed"), TABLE3[name], strict=True):
        assert trainable[group] / 1e3 == pytest.approx(billions, abs=0.06)


def test_an_untied_head_is_counted_but_not_optimised() -> None:
    rows = command()
    row = rows["qwen2.5vl-7b"]
    words = 152_064 * 3584 / 1e6
    extra = row["head_M"] + 3584 / 1e6
    assert row["optimised_M"] == pytest.approx(row["parameters_M"] - words + extra, abs=2e-3)
    tied = rows["qwen2.5vl-3b"]
    assert tied["optimised_M"] == pytest.approx(
        tied["parameters_M"] + tied["head_M"] + 2048 / 1e6, abs=2e-3
    )


def test_the_table_for_people() -> None:
    rows = [sizes.describe(backbone("kosmos-2"))]
    assert sizes.table(rows).splitlines()[1].split()[0] == "kosmos-2"


def test_rows_are_the_papers_and_their_tiny_variants() -> None:
    assert [row.name for row in full_rows() if row.name in TABLE9] == list(TABLE9)
    known = {*TABLE9, "prism-dinosiglip-224px-7b"}
    assert set(BACKBONES) >= {*known, *(f"tiny-{name}" for name in known)}
    assert len({backbone(name).architecture for name in TABLE9}) == 6
    for row in full_rows():
        small = backbone(f"tiny-{row.name}")
        assert (small.family, small.architecture) == (row.family, row.architecture)
        assert sizes.count(sizes.meta_model(small).parameters()) < 500_000


def test_rows_are_frozen_and_unknown_names_get_a_hint() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        backbone("kosmos-2").name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="Did you mean 'qwen3vl-2b'"):
        backbone("qwen3-vl-2b")


def test_a_row_of_a_new_architecture_or_family_says_what_it_needs(monkeypatch) -> None:
    full = dataclasses.replace(backbone("paligemma-2"), name="new", architecture="newer", family="")
    monkeypatch.setitem(BACKBONES, "new", full)
    with pytest.raises(ValueError, match=r"new has no tiny variant.*'newer' sizes in SIZES"):
        backbone("tiny-new")
    with pytest.raises(ValueError, match=r"Unknown family of new ''.*qwen_vl"):
        family_of(full)


def test_another_size_shares_its_architectures_tiny_sizes() -> None:
    bigger = _paligemma(
        "paligemma2-10b", "paligemma-2", "google/paligemma2-10b-pt-224", PALIGEMMA_2
    )
    small, known = derive(bigger), backbone("tiny-paligemma-2")
    assert (small.name, small.config) == ("tiny-paligemma2-10b", known.config)


def test_unknown_freeze_group_names_the_known_ones() -> None:
    row = backbone("tiny-kosmos-2")
    with pytest.raises(ValueError, match=r"freeze group 'visio'. Did you mean 'vision'"):
        freeze(sizes.meta_model(row), row, ["visio"])


@pytest.mark.parametrize("name", TABLE9)
def test_freeze_groups_cover_a_model_but_for_outer_projectors(name: str) -> None:
    row = backbone(name)
    vlm = sizes.meta_model(row)
    freeze(vlm, row, FREEZE_GROUPS)
    left = {n for n, p in vlm.named_parameters() if p.requires_grad}
    is_inside = row.modules.projector.startswith(row.modules.vision)
    assert all(n.startswith(row.modules.projector) for n in left)
    assert bool(left) != is_inside


def test_module_paths_exist() -> None:
    for row in full_rows():
        vlm = sizes.meta_model(row)
        for path in dataclasses.astuple(row.modules):
            assert isinstance(vlm.get_submodule(path), torch.nn.Module)


def test_every_recipe_field_says_where_it_is_from() -> None:
    tree = ast.parse(inspect.getsource(recipe))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef)).body
    fields = [i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(dataclasses.fields(recipe.Recipe))
    for i in fields:
        after = body[i + 1]
        assert isinstance(after, ast.Expr), ast.unparse(body[i])
        assert isinstance(after.value, ast.Constant), ast.unparse(body[i])


def test_the_two_profiles_differ_where_the_sources_do() -> None:
    paper, official = recipe.RECIPES["paper"], recipe.RECIPES["official"]
    assert (paper.profile, official.profile) == ("paper", "official")
    differing = {
        f.name
        for f in dataclasses.fields(paper)
        if getattr(paper, f.name) != getattr(official, f.name)
    }
    assert {
        "gripper_weight",
        "query_after_padding",
        "image_attention",
        "qwen_min_pixels",
    } < differing
