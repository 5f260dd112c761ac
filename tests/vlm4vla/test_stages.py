"""Auxiliary stages: their ids, their data and the order of their questions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vlm4vla.aux.order import PERIOD, WINDOW, Order
from vlm4vla.stages import STAGES, TINY_STAGES, AuxStage, stage_of, tiny_stage, variants


def test_everything_that_changes_weights_changes_the_id():
    stage = TINY_STAGES["robopoint"]
    changed = [
        replace(stage, backbone="tiny-paligemma-1"),
        replace(stage, mixture=(("tabletop-choice", 1.0),)),
        replace(stage, mixture=(("tabletop-point", 1.0), ("tabletop-choice", 0.5))),
        replace(stage, freeze=("vision",)),
        replace(stage, init="scratch"),
        *(replace(stage, **{name: 7}) for name in ("steps", "batch", "warmup", "image_px", "seed")),
        replace(stage, lr=1e-4),
        replace(stage, schedule="constant"),
        replace(stage, clip_norm=0.5),
        replace(stage, draws="tabletop-point"),
        replace(stage, decoder="diffusion"),
        replace(stage, map_px=28),
    ]
    ids = {each.id for each in [stage, *changed]}
    assert len(ids) == len(changed) + 1
    assert all(each.startswith("tiny-robopoint-") for each in ids)


def test_ids_are_the_same_in_every_process_and_version():
    stage = AuxStage("pinned", "tiny-qwen3vl-2b", (("tabletop-point", 1.0),), steps=10)
    assert stage.id == "pinned-f50df6b3"
    assert stage.data == "questions-db64c970ed5c"


def test_stages_share_data_that_they_have_in_common():
    stage = TINY_STAGES["robopoint"]
    assert replace(stage, backbone="tiny-kosmos-2", lr=1.0).data == stage.data
    frozen, unfrozen = (STAGES[f"fast-vision-{how}"] for how in ("frozen", "unfrozen"))
    assert frozen.data == unfrozen.data
    # Actions are spelled in one backbone's words.
    assert replace(frozen, backbone="qwen2.5vl-3b").data != frozen.data


def test_full_and_tiny_stages_are_found_by_id():
    for rows in (STAGES, TINY_STAGES):
        for stage in rows.values():
            assert stage_of(stage.id) == stage
    assert all(stage.mixture or stage.weights for stage in STAGES.values())


def test_what_a_stage_draws_is_of_its_data():
    plain, drawing = TINY_STAGES["robo2vlm"], TINY_STAGES["omni-generation"]
    assert drawing.draws in dict(drawing.mixture)
    assert STAGES["omni-generation"].draws in dict(STAGES["omni-generation"].mixture)
    assert replace(plain, draws="tabletop-choice").data != plain.data
    assert replace(drawing, decoder="diffusion").data == drawing.data


def test_published_stages_pass_over_their_data_once():
    assert STAGES["robopoint"].steps == 11_188  # 1.432M samples in batches of 128
    mix = dict(STAGES["vqa-mix"].mixture)
    assert mix["general"] == 360_000
    assert sum(mix.values()) - mix["general"] == 620_000


def test_general_questions_take_the_share_they_are_given():
    stage = TINY_STAGES["robo2vlm"].with_general(0.25)
    shares = dict(stage.mixture)
    assert shares["tabletop-general"] / sum(shares.values()) == pytest.approx(0.25)
    assert stage.name == "tiny-robo2vlm-general25"
    assert STAGES["robopoint"].with_general(0.5).rows[-1].source == "Lin-Chen/ShareGPT4V"
    assert stage.with_general(0) is stage
    with pytest.raises(ValueError, match=r"not in 0 \.\. 1"):
        stage.with_general(1)


def test_published_weights_have_one_variant():
    found = variants(STAGES.values(), (0.0, 0.3), steps=5)
    names = Counter(stage.name.removesuffix("-general30") for stage in found)
    assert names["robopoint"] == 2
    assert names["robobrain2"] == 1
    assert {stage.steps for stage in found if stage.weights is None} == {5}


def test_a_stage_without_tiny_data_says_where_to_name_it():
    assert tiny_stage("robopoint") is TINY_STAGES["robopoint"]
    with pytest.raises(ValueError, match=r"gqa has no tiny counterpart.*_TINY_DATA"):
        tiny_stage("gqa")


# -- order

NUMBERS = {"a": np.arange(100), "b": np.arange(100, 140)}
SIZES = np.random.default_rng(0).integers(20, 2000, 140)


def order(batch=8, seed=0, shares=None):
    return Order(NUMBERS, shares or {"a": 3.0, "b": 1.0}, lambda n: int(SIZES[n]), batch, seed)


def test_a_batch_is_a_function_of_seed_and_step():
    first, second = order(), order()
    forward = [first.at(step).tolist() for step in range(40)]
    backward = [second.at(step).tolist() for step in reversed(range(40))][::-1]
    assert forward == backward
    assert forward != [order(seed=1).at(step).tolist() for step in range(40)]


def test_shares_are_met_and_every_pass_visits_each_question_once():
    made = order(batch=10)
    # 4000 samples: whole windows, whole periods, whole passes.
    drawn = Counter(np.concatenate([made.at(step) for step in range(4 * PERIOD // 10)]).tolist())
    assert {drawn[n] for n in range(100)} == {30}
    assert {drawn[n] for n in range(100, 140)} == {25}


def test_a_batch_holds_questions_of_like_length():
    made = order()
    spread = [np.ptp(SIZES[made.at(step)]) for step in range(WINDOW)]
    assert np.mean(spread) < 0.2 * np.ptp(SIZES)


def test_short_questions_of_all_rows_stay_mixed():
    made = Order(NUMBERS, {"a": 1.0, "b": 1.0}, lambda n: 20 + n // 100, 8, 0)
    rows = [set((made.at(step) >= 100).tolist()) for step in range(WINDOW)]
    assert rows.count({True, False}) > WINDOW // 2


def test_shares_that_cannot_be_met_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        order(shares={"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="would never be drawn"):
        order(shares={"a": 1.0, "b": 1e-5})
