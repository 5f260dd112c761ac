"""Numbers beside the paper's: of whole, half and broken studies, and of other conditions."""

from dataclasses import replace

import pytest

from dashboards.archive import open_archive
from dashboards.report.entries import stand_in, table_views
from dashboards.report.figures import boxes, radar, scatter
from dashboards.report.pages import seeds
from dashboards.report.scores import run_score
from dashboards.report.site import build
from dashboards.runs import read_study
from envs.benchmarks import benchmark
from tests.dashboards.builder import share
from vlm4vla.capability import Score
from vlm4vla.compare import p_value
from vlm4vla.run import Run
from vlm4vla.study import TABLES, Grid, Table

SIMPLER, CALVIN, TABLETOP = (benchmark(name) for name in ("simpler", "calvin", "tabletop"))
QWEN = Run("qwen2.5vl-3b", "simpler")
FROZEN = Run("qwen2.5vl-3b", "simpler", freeze=("vision",))


def simpler(
    builder, run, rate, confirm=None, steps=SIMPLER.recipe.checkpoints, others=24, repeats=()
):
    """A whole evaluation on SimplerEnv; the last checkpoint is the best.

    others: states per task after which the earlier checkpoints were stopped. repeats: outcomes
    of each state that is won, once more each.
    """
    name = builder.train(run, steps=(0, *steps))
    for step in steps:
        best = step == steps[-1]
        for horizon in SIMPLER.horizons:
            played = 24 if best else others
            states = share(rate if best and horizon == 4 else rate / 2, played)
            if best and horizon == 4 and confirm is not None:
                states = states + share(confirm, 24)
            if repeats:
                states = [tuple(won and more for more in (True, *repeats)) for won in states]
            cell = builder.cell(name, step, horizon, "simpler")
            builder.play(cell, dict.fromkeys(SIMPLER.tasks, states))
    return name


def scores_of(builder):
    return [run_score(run) for run in read_study(open_archive(builder.url)).runs]


def line_of(scores, table, row, column):
    (view,) = [view for view in table_views(scores) if view.name == table]
    return next(x for x in view.lines if (x.row, x.column) == (row, column))


def test_a_measured_number_stands_beside_the_papers(builder):
    name = simpler(builder, QWEN, 0.75, confirm=0.5)
    line = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "simpler")
    assert (line.run, line.score.status, line.score.note) == (name, "measured", "")
    assert line.score.best.value == 75.0 and line.score.confirmed.value == 50.0
    assert line.gap.value == pytest.approx(75 - 48) and line.beyond and line.gap.low > 0
    part = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "eggplant")
    assert part.score.best.value == 75.0 and part.part and part.score.trials == 24
    same = line_of(scores_of(builder), "table3", "qwen2.5vl-3b", "simpler")
    assert same.run == name, "one training in whichever tables it stands"


def test_a_run_whose_hopeless_cells_were_stopped_stands_beside_the_papers(builder):
    simpler(builder, QWEN, 0.75, confirm=0.5, others=8)
    line = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "simpler")
    assert (line.score.status, line.score.note) == ("measured", "27 of 30 cells stopped early")
    assert line.score.best.value == 75.0 and line.score.confirmed.value == 50.0
    assert line.gap.value == pytest.approx(75 - 48)


def test_a_difference_within_noise_is_not_marked(builder):
    simpler(builder, QWEN, 0.55)
    line = line_of(scores_of(builder), "table2", "qwen2.5vl-3b", "simpler")
    assert line.gap.low < 0 < line.gap.high and line.beyond is False


def test_effects_are_measured_on_the_same_states(builder):
    simpler(builder, QWEN, 0.75)
    simpler(builder, FROZEN, 0.25)
    line = line_of(scores_of(builder), "table3", "qwen2.5vl-3b+freeze_vision", "simpler")
    assert line.printed_effect == -24.05 and line.effect.pairs == 96
    assert line.effect.difference.value == pytest.approx(-50) and line.effect_beyond


def test_repeated_states_stand_beside_states_played_once(builder, tmp_path):
    simpler(builder, QWEN, 0.75)
    repeated = simpler(builder, FROZEN, 0.75, repeats=(False, True))
    line = line_of(scores_of(builder), "table3", "qwen2.5vl-3b+freeze_vision", "simpler")
    assert line.score.status == "measured" and line.score.best.value == pytest.approx(50)
    assert line.effect.pairs == 96 and line.effect.difference.value == pytest.approx(-25)
    assert line.effect.p == p_value(line.effect.difference) and line.effect_beyond
    (group,) = boxes(scores_of(builder))["groups"]
    assert sorted(max(box["values"]) for box in group["boxes"]) == pytest.approx([50, 75])
    build(open_archive(builder.url), tmp_path / "site")
    shown = (tmp_path / "site" / "tables" / "table3.md").read_text()
    (row,) = [x for x in shown.splitlines() if "| qwen2.5vl-3b+freeze_vision | simpler |" in x]
    assert "| 50.00 [" in row and row.endswith("| yes | measured |")
    assert "-25.0" in (tmp_path / "site" / "tables.html").read_text()
    assert "36/72" in (tmp_path / "site" / "runs" / f"{repeated}.html").read_text()


def test_rates_of_a_repeated_chain_are_of_its_repeats(builder):
    name = builder.train(Run("kosmos-2", "calvin"))
    for step in CALVIN.recipe.checkpoints:
        for horizon in CALVIN.horizons:
            cell = builder.cell(name, step, horizon, "calvin")
            builder.play(cell, {"sequence": [(5, 0)] * 10})
    scores = scores_of(builder)
    for column, value in (("avg_len", 2.5), ("task1", 0.5), ("task5", 0.5)):
        line = line_of(scores, "table1", "kosmos-2", column)
        assert line.score.best.value == pytest.approx(value)


def test_calvins_rates_are_the_winners(builder):
    name = builder.train(Run("kosmos-2", "calvin"))
    for step in CALVIN.recipe.checkpoints:
        for horizon in CALVIN.horizons:
            chains = [n % 6 for n in range(1000)]
            builder.play(builder.cell(name, step, horizon, "calvin"), {"sequence": chains})
    scores = scores_of(builder)
    length = line_of(scores, "table1", "kosmos-2", "avg_len")
    assert length.score.status == "measured" and length.score.best.value == pytest.approx(2.496)
    first = line_of(scores, "table1", "kosmos-2", "task1")
    assert first.score.best.value == pytest.approx(0.833, abs=1e-3) and first.gap.value < 0


def test_half_a_study_has_no_result(builder):
    name = builder.train(QWEN, steps=(0, 5000, 10000))
    cell = builder.cell(name, 5000, 4, "simpler")
    builder.play(cell, dict.fromkeys(SIMPLER.tasks, share(0.5, 6)), compact=False)
    (one,) = scores_of(builder)
    assert one.score.status == "unfinished" and one.score.best is None
    assert one.score.note == "24 episodes so far"
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_a_training_that_is_not_over_is_unfinished(builder):
    simpler(builder, QWEN, 0.5, steps=SIMPLER.recipe.checkpoints[:3])
    (one,) = scores_of(builder)
    assert (one.score.status, one.score.note) == ("unfinished", "trained 15000 of 50000 steps")
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_one_broken_row_takes_the_number_away(builder):
    name = simpler(builder, QWEN, 0.75)
    cell = builder.cell(name, 50000, 4, "simpler")
    builder.store.put(f"cells/{cell.id}/episodes/{'0' * 64}.parquet", b"half a ro")
    (one,) = scores_of(builder)
    assert (one.score.status, one.score.best) == ("broken", None)
    assert line_of([one], "table2", "qwen2.5vl-3b", "simpler").gap is None


def test_other_conditions_are_never_pooled(builder):
    name = builder.train(Run("tiny-kosmos-2", "tabletop"))
    for fingerprint, rate in ((builder.fingerprint, 1.0), ("f" * 64, 0.0)):
        cell = builder.cell(name, 1000, 2, "tabletop", fingerprint=fingerprint)
        states = share(rate, 20 if rate else 10)
        builder.play(cell, dict.fromkeys(TABLETOP.tasks, states))
    (one,) = scores_of(builder)
    assert one.score.best.value == 100.0 and one.score.trials == 60 and one.others == 1
    assert "1 other condition, kept apart" in one.score.note


def test_training_seeds_make_a_wider_interval(builder):
    for seed, rate in enumerate((0.3, 0.5, 0.7)):
        name = builder.train(Run("tiny-kosmos-2", "tabletop", seed=seed))
        builder.play(builder.cell(name, 1000, 2, "tabletop"), {"reach": share(rate, 100)})
    alone = builder.train(Run("tiny-qwen3vl-2b", "tabletop"))
    builder.play(builder.cell(alone, 1000, 2, "tabletop"), {"reach": share(0.5, 100)})
    elsewhere = builder.train(Run("tiny-kosmos-2", "tabletop", seed=3))
    cell = builder.cell(elsewhere, 1000, 2, "tabletop", fingerprint="e" * 64)
    builder.play(cell, {"reach": share(1.0, 100)})
    scores = scores_of(builder)
    (group,) = seeds(scores)
    assert (group["seeds"], group["how"]) == (3, "") and group["mean"].value == pytest.approx(50)
    single = next(one.score.best for one in scores if one.score.best.value == 50)
    assert group["mean"].high - group["mean"].low > 1.5 * (single.high - single.low)


def test_training_seeds_of_chains_are_in_the_papers_unit(builder):
    for seed, done in enumerate((2, 4)):
        name = builder.train(Run("kosmos-2", "calvin", seed=seed))
        for step in CALVIN.recipe.checkpoints:
            for horizon in CALVIN.horizons:
                cell = builder.cell(name, step, horizon, "calvin")
                builder.play(cell, {"sequence": [done] * 20})
    (group,) = seeds(scores_of(builder))
    assert (group["top"], group["decimals"]) == (5, 3)
    assert group["mean"] == pytest.approx((3, 2, 4))


def test_controls_stand_apart(builder):
    name = builder.train(Run("tiny-kosmos-2", "tabletop"))
    plays = ((1000, "own", 0.8), (0, "own", 0.1), (1000, "wrong_word", 0.2))
    for step, mode, rate in plays:
        cell = builder.cell(name, step, 2, "tabletop", instruction_mode=mode)
        builder.play(cell, {"reach": share(rate, 100)})
    (one,) = scores_of(builder)
    assert one.score.status == "reduced" and one.score.best.value == 80.0
    assert (one.untrained.value, one.wrong_word.value) == (10.0, 20.0)


def test_tiny_models_stand_in_and_are_not_compared(builder):
    tiny = Run("tiny-qwen2.5vl-3b", "tabletop", freeze=("vision",))
    name = builder.train(tiny)
    builder.play(builder.cell(name, 1000, 2, "tabletop"), {"reach": share(0.5, 100)})
    scores = scores_of(builder)
    assert stand_in(FROZEN, scores).run.id == name and stand_in(QWEN, scores) is None
    line = line_of(scores, "table3", "qwen2.5vl-3b+freeze_vision", "simpler")
    assert line.score.status == "missing" and line.gap is None and line.stand_in.run.id == name
    assert stand_in(Run("qwen2.5vl-3b", "calvin", freeze=("vision",), lr=1e-4), scores) is None


def test_what_was_added_stands_beside_the_paper_without_its_number(builder, monkeypatch, tmp_path):
    """A backbone, in Tables 1 and 2, of no family that A.4 knows; and a table."""
    for name, where in (("table1", ["calvin"]), ("table2", ["simpler", "libero_10"])):
        grid = Grid(tuple(Run("smolvlm", each) for each in where))
        changed = replace(TABLES[name], grids=(*TABLES[name].grids, grid))
        monkeypatch.setitem(TABLES, name, changed)
    own = Table("table11", "table11_mine", "{backbone}", "{benchmark}", (Grid((QWEN,)),))
    monkeypatch.setitem(TABLES, "table11", own)
    simpler(builder, Run("smolvlm", "simpler"), 0.75)
    scores = scores_of(builder)
    views = {view.name: view for view in table_views(scores)}
    assert [(x.row, x.column) for x in views["table2"].lines if not x.part][-2:] == [
        *(("smolvlm", "simpler"), ("smolvlm", "libero10"))
    ]
    line = line_of(scores, "table2", "smolvlm", "simpler")
    assert (line.paper, line.gap, line.beyond) == (None, None, None)
    assert (line.score.best.value, line.decimals) == (75.0, 1)
    assert line_of(scores, "table2", "smolvlm", "eggplant").score.best.value == 75.0
    assert views["table11"].printed.title == "Table 11: mine (not in the paper)"
    names = [one["name"] for one in radar([*views.values()])["series"]]
    assert names[-1] == "smolvlm (ours)" and len(names) == 10
    assert "smolvlm" in scatter([*views.values()], [])["unplaced"]
    build(open_archive(builder.url), tmp_path / "site")
    shown = (tmp_path / "site" / "tables" / "table2.md").read_text()
    assert "| smolvlm | simpler | – | 75.0" in shown
    absent = (tmp_path / "site" / "problems.csv").read_text()
    assert "smolvlm,libero10" not in absent and "paligemma-1,libero10" in absent


def test_every_number_of_the_paper_has_its_line():
    views = {view.name: view for view in table_views([])}
    assert set(TABLES) <= set(views) and len(views) == 11
    for name, table in TABLES.items():
        places = {(line.row, line.column) for line in views[name].lines}
        assert {(e.row, e.column) for e in table.entries()} <= places
        assert all(line.score.status == "missing" for line in views[name].lines)
    assert len(views["table9"].findings) == 1 and not views["table9"].lines


def test_figures(builder):
    simpler(builder, QWEN, 0.75)
    scores = scores_of(builder)
    views = table_views(scores)
    shown = radar(views)
    assert len(shown["axes"]) == 12 and len(shown["series"]) == 10
    assert shown["series"][1]["name"] == "qwen2.5vl-3b (ours)"
    extra = [Score("qwen2.5vl-3b", "MMMU", 53.1, "test")]
    points = {s["name"]: s["points"] for s in scatter(views, extra)["series"]}
    (point,) = points["SimplerEnv"]
    assert (point["x"], point["y"], point["ours"]) == (53.1, 75.0, True)
    assert not points["CALVIN"][0]["ours"] and points["CALVIN"][0]["y"] == pytest.approx(77.12)
    (group,) = boxes(scores)["groups"]
    assert group["title"] == "simpler" and len(group["boxes"][0]["values"]) == 30
