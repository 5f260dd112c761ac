"""The study as data: its entries, the trainings they share, and what the paper prints."""

import dataclasses
from collections import Counter

import pytest

from envs.benchmarks import benchmark
from vlm4vla import cost, study
from vlm4vla.audit import paper_tables
from vlm4vla.backbones import BACKBONES, backbone, full_rows
from vlm4vla.policies import POLICIES
from vlm4vla.run import Run
from vlm4vla.stages import STAGES, stage_of
from vlm4vla.study_plan import Plan

EACH = {
    **{"table1": 9, "table2": 18, "table3": 18, "table4": 6, "table5": 12},
    **{"table6": 8, "table7": 12, "table8": 12, "table10": 9},
}
TASKS = {"task1", "task2", "task3", "task4", "task5", "carrot", "eggplant", "spoon", "cube"}
SIZES = {"size_B", "trainable_B"}


EVERYWHERE = 3 * len(full_rows())
"""Trainings of Tables 1 and 2: each backbone, one's own too, on three benchmarks."""


def entries(*names):
    """Of tables; else all that the paper has."""
    found = [entry for name in names or EACH for entry in study.TABLES[name].entries()]
    return found if names else [entry for entry in found if entry.printed is not None]


def plan(*names, stored=lambda run: (), seeds=(0,)):
    return Plan(tuple(study.choose(names or None)), seeds, stored)


def test_entries_of_each_table_and_distinct_trainings():
    assert Counter(entry.table for entry in entries()) == EACH
    assert len(entries()) == 104
    assert len(study.trainings(entries())) == 78


def test_every_printed_score_has_exactly_one_entry():
    found = [(e.table, e.row, e.column) for e in [*entries(), *study.BASELINES]]
    printed = [
        (name, row, column)
        for name in EACH
        for row in study.printed_table(name).rows
        for column in study.printed_table(name).columns
        if column not in TASKS | SIZES
    ]
    assert sorted(found) == sorted(printed)


@pytest.fixture
def mine(monkeypatch):
    """A table of one's own, and a backbone that Table 1 has and the paper has not."""
    runs = (Run("tiny-paligemma-1", "tabletop"), Run("qwen2.5vl-3b", "libero_object"))
    grids = (study.Grid(runs), study.Grid((Run("kosmos-2", "calvin"),)))
    table = study.Table("table11", "table11_my_topic", "{backbone}", "{benchmark}", grids)
    monkeypatch.setitem(study.TABLES, "table11", table)
    first = study.TABLES["table1"]
    more = study.Grid((Run("tiny-kosmos-2", "calvin"),))
    changed = dataclasses.replace(first, grids=(*first.grids, more))
    monkeypatch.setitem(study.TABLES, "table1", changed)


@pytest.mark.usefixtures("mine")
def test_what_the_paper_does_not_print_has_no_number():
    assert {e.column: e.printed for e in entries("table11")} == dict.fromkeys(
        ("tabletop", "libero_object", "calvin")
    )
    added = {entry.row for entry in entries("table1") if entry.printed is None}
    assert "tiny-kosmos-2" in added and not added & study.printed_table("table1").rows.keys()
    made = plan("table1", "table11").as_json()
    assert made["tables"]["table11"]["title"] == "Table 11: my topic (not in the paper)"
    assert {row["printed"] for row in made["rows"] if row["table"] == "table11"} == {None}


def test_a_baseline_is_trained_here_or_says_whose_number_it_is():
    assert all((entry.run is None) == (entry.source is not None) for entry in study.BASELINES)
    quoted = {(e.row, e.column): (e.printed, e.source) for e in study.BASELINES if e.source}
    assert {place: number for place, (number, _) in quoted.items()} == {
        ("openvla", "simpler"): 4.2,
        ("openvla", "libero10"): 53.7,
        ("thinkact", "simpler"): 43.8,
        ("thinkact", "libero10"): 70.9,
    }
    assert "2507.16815" in quoted["thinkact", "simpler"][1]


def test_trained_baselines_fit_their_backbones():
    for run in (entry.run for entry in study.BASELINES if entry.run):
        POLICIES[run.policy].check(backbone(run.backbone))


@pytest.mark.parametrize("name", EACH)
def test_entries_that_share_a_training_print_one_number(name):
    """The paper repeats its base rows; a mapped row that went astray would disagree."""
    mine = {e.id: e.printed for e in entries() if e.table == name}
    for other in entries():
        if other.id in mine:
            # Table 2 rounds to one digit what Tables 3 and 6 print with two.
            assert other.printed == pytest.approx(mine[other.id], abs=0.1)


def test_a_rows_words_are_its_runs_fields():
    by_place = {(e.table, e.row, e.column): e.run for e in entries()}
    frozen = by_place["table7", "qwen2.5vl-7b+freeze_vision", "512"]
    assert (frozen.backbone, frozen.freeze, frozen.image_px) == ("qwen2.5vl-7b", ("vision",), 512)
    assert by_place["table5", "paligemma-1", "1e-4"].lr == 1e-4
    injected = by_place["table4", "freeze_vision/unfreeze_vision_ft", "simpler"]
    assert (injected.freeze, stage_of(injected.aux).freeze) == (("vision",), ())
    assert by_place["table6", "qwen2.5vl-3b short", "calvin"].prompt == "short"
    assert by_place["table8", "paligemma-1 scratch", "simpler"].init == "scratch"
    added = by_place["table10", "qwen2.5vl-7b+vqa-mix", "avg_len"]
    assert stage_of(added.aux).name == "vqa-mix"


def test_an_explicit_default_is_the_default_run():
    default = next(e for e in entries("table1") if e.row == "qwen2.5vl-3b")
    explicit = next(e for e in entries("table5") if (e.row, e.column) == (default.row, "2e-5"))
    assert explicit.run != default.run
    assert explicit.id == default.id


def test_runs_name_rows_that_exist_and_another_seed_is_another_training():
    for run in study.trainings(entries()).values():
        assert run.backbone in BACKBONES
        assert benchmark(run.benchmark).recipe.checkpoints[-1] == run.steps
        assert run.aux is None or stage_of(run.aux).backbone == run.backbone
    again = study.TABLES["table1"].entries(seed=1)
    assert not {e.id for e in again} & {e.id for e in entries()}


def test_stages_have_ids_of_their_own():
    assert len({stage.id for stage in STAGES.values()}) == len(STAGES) == 9
    assert STAGES["robobrain2"].weights
    with pytest.raises(ValueError, match="Unknown auxiliary stage"):
        stage_of("robopoint-00000000")


def test_figures_need_no_training_of_their_own():
    assert len(study.FIGURES["figure3"].entries()) == EVERYWHERE
    assert plan("figure3").total().trainings == EVERYWHERE
    assert plan("figure3").total().entries == 0
    both = plan("table10", "figure4").total()
    assert (both.entries, both.trainings) == (9, 9)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tabel5", "Did you mean 'table5'"),
        ("figure5", "Did you mean 'figure3'|Did you mean 'figure4'"),
        ("9", "nothing is trained"),
    ],
)
def test_a_wrong_table_says_what_was_meant(name, said):
    with pytest.raises(ValueError, match=said):
        study.choose([name])


def test_a_number_is_a_table_and_twice_is_once():
    assert [part.name for part in study.choose(["5", "table5", "Figure4"])] == ["table5", "figure4"]


def test_baselines_stand_apart():
    made = plan("table1", "table2")
    assert made.total().trainings == EVERYWHERE
    assert (made.baselines().entries, made.baselines().trainings, made.quoted()) == (4, 4, 4)
    assert plan("table3").baselines().trainings == 0


def test_what_is_stored_is_not_paid_again():
    (first, *_) = study.trainings(entries("table5"))
    half = plan("table5", stored=lambda run: (10_000, 15_000) if run == first else ()).total()
    assert (half.stored, half.checkpoints, half.gpu_hours_left) == (0, 2, half.gpu_hours)
    done = plan("table5", stored=lambda run: (30_000,) if run == first else ()).total()
    assert done.stored == 1
    assert done.gpu_hours - done.gpu_hours_left == pytest.approx(
        cost.gpu_hours(study.trainings(entries("table5"))[first])
    )


def test_every_seed_is_a_training_of_its_own():
    one, three = (plan("table1", "table2", "figure3", seeds=seeds) for seeds in ((4,), (4, 5, 6)))
    assert one.total().trainings == EVERYWHERE
    assert dataclasses.asdict(three.total()) == pytest.approx(
        {name: 3 * count for name, count in dataclasses.asdict(one.total()).items()}
    )
    assert three.bill(study.TABLES["table1"]).trainings == EVERYWHERE
    assert {row["seed"] for row in three.rows() if row["id"]} == {4, 5, 6}
    assert three.baselines().trainings == 12
    assert three.quoted() == one.quoted() == 4, "nothing is trained for them"


def test_episodes_are_checkpoints_times_horizons_times_trials():
    episodes = {n: cost.episodes(benchmark(n)) for n in ("calvin", "simpler", "libero_10")}
    assert episodes == {"calvin": 15_000, "simpler": 2_880, "libero_10": 15_000}


def test_gpu_hours_follow_the_formula():
    run = Run("paligemma-1", "calvin")
    size = cost.parts("paligemma-1")
    numbers = 6 * (size.vision * 256 + size.language * (256 + 48)) * 30_000 * 128
    assert cost.gpu_hours(run) == pytest.approx(numbers / (312e12 * 0.35) / 3600)
    assert (size.vision + size.language) / 1e9 == pytest.approx(2.4, abs=0.1)  # no embeddings
    frozen = cost.training_flops(dataclasses.replace(run, freeze=("vision",)))
    assert cost.training_flops(run) - frozen == 4 * size.vision * 256 * 30_000 * 128


def test_openvlas_cost_is_its_rows():
    run = Run("prism-dinosiglip-224px-7b", "calvin", policy="openvla")
    size = cost.parts(run.backbone)
    assert (size.vision + size.language) / 1e9 == pytest.approx(7.3, abs=0.1)  # no embeddings
    numbers = 6 * (size.vision * 261 + size.language * (256 + 48)) * 30_000 * 128
    assert cost.training_flops(run) == numbers


def test_a_mixture_of_experts_computes_with_few_of_them():
    size = cost.parts("qwen3vl-30b-a3b")
    assert size.experts
    assert 2.5e9 < size.language < 3.3e9


def test_paper_tables_without_a_training_are_known():
    named = {study.TABLES[name].printed for name in EACH}
    assert set(paper_tables()) - named == {"table9_architecture", "figure3_correlation"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 1},
        {"lr": float("nan")},
        {"steps": 0},
        {"batch": True},
        {"seed": -1},
        {"image_px": 1.0},
    ],
    ids=str,
)
def test_a_run_takes_no_value_that_only_looks_right(wrong):
    """1 and 1.0 are equal, but would be two ids of one training."""
    with pytest.raises(ValueError, match=rf"Run\.{next(iter(wrong))}"):
        Run("tiny-paligemma-1", "tabletop", **wrong)


def test_a_task_is_not_asked_for_by_what_python_takes_for_a_digit():
    for name in ("²", "٣", "9" * 5000):
        with pytest.raises(ValueError, match="Unknown task of calvin"):
            benchmark("calvin").choose_tasks([name])


@pytest.mark.parametrize(
    ("row", "axes", "said"),
    [
        ("{backbone}{frezee}", ("freeze",), "are made of .*'frezee'.* vary backbone.* freeze"),
        ("{backbone}{freeze}", ("freeze", "init"), "vary backbone, benchmark, freeze, init"),
    ],
)
def test_a_table_that_would_put_two_runs_in_one_place_is_refused(row, axes, said):
    grid = study.Grid((), tuple(study.Axis(name, {"": {}}) for name in axes))
    with pytest.raises(ValueError, match=said):
        study.Table("table11", "table11_mine", row, "{benchmark}", (grid,))


def test_a_number_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="table1 is there twice: give the new table a free number"):
        study._by_name([study.TABLES["table1"]] * 2)
