"""Every entry of the study has a tiny counterpart that can be run, its auxiliary stage too."""

import pytest

from envs.benchmarks import benchmark
from vlm4vla import laptop
from vlm4vla.backbones import backbone
from vlm4vla.run import Run
from vlm4vla.stages import stage_of
from vlm4vla.study import TABLES

ENTRIES = [entry for table in TABLES.values() for entry in table.entries()]
TABLETOP = benchmark("tabletop")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.table} {e.row} {e.column}")
def test_every_run_shrinks(entry):
    small = laptop.shrink(entry.run, entry.table)
    row = backbone(small.backbone)
    assert row.tiny
    assert small.freeze == entry.run.freeze and small.init == entry.run.init
    steps = small.resolved(TABLETOP.recipe).steps
    assert steps == (TABLETOP.recipe.steps if entry.table in laptop.LEARNED else 200)
    assert len(small.id(TABLETOP)) == 16
    if entry.run.aux:
        full, stage = stage_of(entry.run.aux), stage_of(small.aux)
        assert (stage.backbone, stage.freeze) == (small.backbone, full.freeze)
        assert stage.rows and all(each.made_here for each in stage.rows)


def test_what_is_tiny_already_or_has_no_tiny_counterpart():
    run = Run("tiny-paligemma-1", "tabletop", image_px=336)
    assert laptop.shrink(run, "table11") is run
    assert laptop.shrink(Run("paligemma-1", "calvin", image_px=336), "table7").image_px == 336
    with pytest.raises(ValueError, match="Unknown backbone 'tiny-new'"):
        laptop.shrink(Run("new", "calvin"), "table1")


def test_the_papers_default_rate_is_the_tabletops():
    default = benchmark("calvin").recipe.lr
    assert laptop.scaled(default) == TABLETOP.recipe.lr


def test_benchmarks_collapse_and_share_trainings():
    ids = {
        laptop.shrink(entry.run, entry.table).id(TABLETOP)
        for entry in ENTRIES
        if entry.table in ("table1", "table2")
    }
    assert len(ids) == 2 * 6  # architectures; Table 2's train shorter than Table 1's


def test_sizes_of_one_architecture_are_one_tiny_model():
    assert laptop.tiny("qwen2.5vl-7b") == laptop.tiny("qwen2.5vl-3b") == "tiny-qwen2.5vl-3b"
    assert laptop.tiny("qwen3vl-30b-a3b") != laptop.tiny("qwen3vl-2b")
    one, other = (dict(backbone(f"tiny-qwen3vl-{size}").config) for size in ("2b", "8b"))
    assert one.pop("tie_word_embeddings") != other.pop("tie_word_embeddings")
    assert one == other
