"""The same training on other numbers of workers and other ZeRO stages: what may differ, and by
how much. Sums are taken in another order, so weights agree to rounding, not to the bit.
"""

import pytest
import torch

from tests.vlm4vla.train_worker import FolderSink, Plan, make_dataset, run_plan, together

LOSS_TOLERANCE = 2e-5
"""Of losses between 0.5 and 10 over six steps, in fp32."""
WEIGHT_TOLERANCE = 2e-4
"""Adam's first steps are of size lr whatever the gradient's size, so rounding can show."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def losses(rows):
    return [row["loss"] for row in rows]


@pytest.mark.full
def test_every_zero_stage_and_number_of_workers_has_the_same_loss_curve(dataset, tmp_path):
    alone = run_plan(Plan("alone", {}), tmp_path, dataset)
    plans = [Plan(f"zero{zero}", {"zero": zero}) for zero in range(4)]
    plans += [Plan("micro", {"zero": 2, "micro_batch": 2}), Plan("uneven", {}, batch=7)]
    *curves, uneven = together(plans, tmp_path, dataset)
    assert [row["step"] for row in alone] == [1, 2, 3, 4, 5, 6]
    for rows in curves:
        assert losses(rows) == pytest.approx(losses(alone), abs=LOSS_TOLERANCE)
        for one, other in zip(alone, rows, strict=True):
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
            assert one["gripper_accuracy"] == pytest.approx(other["gripper_accuracy"])
    odd = run_plan(Plan("odd", {}, batch=7), tmp_path, dataset)
    assert losses(uneven) == pytest.approx(losses(odd), abs=LOSS_TOLERANCE)
    assert losses(odd) != pytest.approx(losses(alone), abs=1e-2)


@pytest.mark.full
@pytest.mark.parametrize("zero", range(4))
def test_two_workers_then_one_then_two(dataset, tmp_path, zero):
    engine = {"zero": zero}
    cut = Plan("cut", engine, stop_after=3)
    whole, first = together([Plan("whole", engine), cut], tmp_path, dataset)
    second = run_plan(cut, tmp_path, dataset)
    (third,) = together([Plan("cut", engine)], tmp_path, dataset)
    steps = [[row["step"] for row in rows] for rows in (first, second, third)]
    assert steps == [[1, 2], [3, 4], [5, 6]]  # the step after each was done, and is done again
    joined = {row["step"]: row["loss"] for rows in (first, second, third) for row in rows}
    assert list(joined.values()) == pytest.approx(losses(whole), abs=LOSS_TOLERANCE)
    one, other = (FolderSink(tmp_path / name).weights(6) for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=WEIGHT_TOLERANCE, rtol=0)


@pytest.mark.full
def test_a_mixture_of_experts_with_stage_3_is_the_same_as_without(dataset, tmp_path):
    moe = "tiny-qwen3vl-30b-a3b"
    plans = [
        Plan("zero0", {}, moe),
        Plan("zero3", {"zero": 3, "checkpointing": True, "micro_batch": 2}, moe),
    ]
    plain, sharded = together(plans, tmp_path, dataset)
    assert losses(sharded) == pytest.approx(losses(plain), abs=LOSS_TOLERANCE)
