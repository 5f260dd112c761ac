"""Which backbones the presets hold, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vla_platform.cluster import CLUSTERS

from vlm4vla import fits
from vlm4vla.audit import paper_tables

MIXTURE = "qwen3vl-30b-a3b"
PAPER = list(paper_tables()["table9_architecture"].rows)
ON_GPUS = CLUSTERS["cluster"]


def test_eight_gpus_hold_all_but_the_mixture_and_four_nodes_hold_that() -> None:
    assert fits.that_fit(PAPER, ON_GPUS) == [name for name in PAPER if name != MIXTURE]
    assert fits.that_fit([MIXTURE], CLUSTERS["4x8-a100"]) == [MIXTURE]
    assert fits.that_fit([MIXTURE], CLUSTERS["laptop"]) == [MIXTURE], "CPUs: nobody counted"


def test_one_gpu_holds_what_keeps_its_optimiser_on_the_host() -> None:
    alone = CLUSTERS["workstation"]
    assert fits.that_fit(["qwen3vl-8b"], alone) == ["qwen3vl-8b"]
    assert fits.that_fit(["qwen3vl-8b"], replace(alone, optimiser="fused")) == []
    assert fits.that_fit(["qwen3vl-2b", "qwen3vl-8b"], replace(alone, gpu_gb=24)) == ["qwen3vl-2b"]


def test_a_refusal_names_what_does_not_fit_and_what_would() -> None:
    with pytest.raises(ValueError, match=MIXTURE) as refused:
        fits.require(["kosmos-2", MIXTURE, MIXTURE], ON_GPUS, CLUSTERS)
    said = str(refused.value)
    assert "kosmos-2" not in said and said.count(MIXTURE) == 1
    assert "take --preset 4x8-a100 or other backbones" in said
    fits.require([MIXTURE], replace(ON_GPUS, gpu_gb=250), CLUSTERS)


def test_a_refusal_counts_with_the_fewest_workers() -> None:
    few = replace(ON_GPUS, workers=(1, 3))
    with pytest.raises(ValueError, match=r"--workers 3 3 or --preset workstation"):
        fits.require(["qwen2.5vl-7b"], few, CLUSTERS)
    fits.require(["qwen2.5vl-7b"], replace(few, workers=(3, 3)), CLUSTERS)


def test_pictures_and_frozen_groups_count() -> None:
    tight = replace(ON_GPUS, gpu_gb=36)
    fits.require(["qwen2.5vl-3b"], tight, CLUSTERS)
    with pytest.raises(ValueError, match=r"qwen2\.5vl-3b takes"):
        fits.require(["qwen2.5vl-3b"], tight, CLUSTERS, image_px=768)
    small = replace(ON_GPUS, gpu_gb=28)
    with pytest.raises(ValueError, match=r"qwen2\.5vl-3b takes"):
        fits.require(["qwen2.5vl-3b"], small, CLUSTERS)
    fits.require(["qwen2.5vl-3b"], small, CLUSTERS, freeze=("vision", "embed"))


def test_the_replica_beside_a_training_needs_room_too() -> None:
    alone = replace(CLUSTERS["workstation"], gpu_gb=60)
    with pytest.raises(
        ValueError, match=r"qwen3vl-8b takes 19 GB .* in bf16, and a replica has 15"
    ):
        fits.require(["qwen3vl-8b"], alone, CLUSTERS)
    assert fits.that_fit(["qwen3vl-8b", "qwen3vl-2b"], alone) == ["qwen3vl-2b"]
    fits.require(["qwen3vl-8b"], replace(alone, gpu_share=0.5), CLUSTERS)
