"""Searches without Ray's processes: names, refusals, budgets, flat figures."""

from argparse import Namespace

import pytest
from ray import tune
from vla_platform.contest import Standing
from vla_platform.store import open_store
from vla_platform.study_cli import variance
from vla_platform.tuning import Budget, Search, figures, folder

from vlm4vla.analysis import across_trainings
from vlm4vla.selection import Place, select

SPACE = {"lr": tune.loguniform(1e-4, 1e-2), "backbone": tune.choice(["a", "b"])}


def test_the_same_search_has_the_same_folder_in_every_process():
    again = {"lr": tune.loguniform(1e-4, 1e-2), "backbone": tune.choice(["a", "b"])}
    assert Search("lr", SPACE).experiment == Search("lr", again).experiment
    wider = {**SPACE, "lr": tune.loguniform(1e-5, 1e-2)}
    flat = {**SPACE, "lr": tune.uniform(1e-4, 1e-2)}
    names = [Search("lr", space).experiment for space in (SPACE, wider, flat)]
    names += [Search("lr", SPACE, optuna=True, **more).experiment for more in ({}, {"seed": 1})]
    assert len(set(names)) == 5


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"objectives": ("loss",)}, "objectives are success, gpu_hours, not"),
        ({"objectives": ()}, "objectives are"),
        ({"objectives": ("success", "gpu_hours")}, "need Optuna"),
        ({"objectives": ("success", "gpu_hours"), "optuna": True, "asha": True}, "ASHA off"),
    ],
)
def test_contradictions_are_refused(flags, problem):
    with pytest.raises(ValueError, match=problem):
        Search("lr", SPACE, **flags)


def test_a_budget_counts_each_trial_once():
    budget = Budget(1.0)
    for _ in range(3):
        assert not budget("one", {"gpu_hours": 0.6})
    assert not budget.stop_all()
    budget("two", {"gpu_hours": 0.4})
    assert budget.stop_all()


def test_chains_of_several_trainings_are_not_taken_for_coins():
    """Three of five subtasks in every chain: a coin with that rate would have an interval."""
    rows = [{"backbone": "a", "seed": seed} for seed in (0, 1)]
    outcomes = [(0.6,) * 10] * 2
    args = Namespace(seeds=2)
    said = variance(args, rows, outcomes, ("backbone", "seed"), across_trainings)
    assert said == "a: 60% [60, 60] over 2 trainings and their trials"


def test_tunes_state_lies_beside_the_rows(tmp_path):
    assert folder(open_store(str(tmp_path))) == f"{tmp_path}/tune"
    assert folder(open_store("s3://bucket/a/b?endpoint=http://127.0.0.1:9")) == "bucket/a/b/tune"


def test_figures_are_flat_and_say_what_confirmed():
    cells = {Place(10, 2): {"reach": {0: 1.0, 1: 0.0}}, Place(20, 2): {"reach": {0: 1.0, 1: 1.0}}}
    chosen = figures(Standing(select(cells), (1.0, 1.0), confirmed=0, played=4, saved=0))
    assert (chosen["success"], chosen["step"], chosen["compared"]) == (1.0, 20, 2)
    assert "confirmed" not in chosen
    selection = select(cells, {"reach": {5: 1.0, 6: 0.0}})
    confirmed = figures(Standing(selection, (1.0, 1.0), confirmed=2, played=4, saved=0))
    assert (confirmed["confirmed"], confirmed["confirmed_on"]) == (0.5, 2)
    assert all(isinstance(value, (int, float)) for value in confirmed.values())
