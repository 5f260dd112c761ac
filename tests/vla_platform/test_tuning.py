"""Searches: names, refusals, budgets, continuing, what is stopped, flat figures."""

import json
import time
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import cloudpickle, tune
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules, Standing
from vla_platform.resuming import Budget
from vla_platform.store import StoreUnavailableError, open_store
from vla_platform.study import Study
from vla_platform.study_cli import conclude, say, variance
from vla_platform.telling import Telling, in_words
from vla_platform.trained import Setting, Watch
from vla_platform.trial import _beside
from vla_platform.tuning import (
    Search,
    _filesystem,
    _searcher,
    _tune_config,
    figures,
    folder,
    results,
    search,
)

from envs.benchmarks import benchmark
from tests.faulty_proxy import Fault
from vlm4vla import science
from vlm4vla.analysis import across_trainings
from vlm4vla.run import Run
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


def test_what_the_space_leaves_out_makes_another_search(tmp_path):
    def experiment(run, **rules):
        study = Study(open_store(str(tmp_path)), CLUSTERS["laptop"], science, print, **rules)
        return Search("lr", SPACE, scope=study._scope([run])).experiment

    run = Run("tiny-paligemma-1", "tabletop")
    recipe = benchmark("tabletop").recipe
    assert experiment(run) == experiment(replace(run, steps=recipe.steps)), "the recipe's steps"
    changed = [
        experiment(replace(run, steps=8)),
        experiment(replace(run, policy="pi0")),
        *(experiment(run, **each) for each in ({"states": 3}, {"confirm": 5}, {"error": None})),
        experiment(run, checkpoints=(250, 1000)),
    ]
    assert len({experiment(run), *changed}) == 7


def attempt(budget, name, *reports):
    """A trial's start and its reports: GPU-hours, and whether it is still training."""
    trial = SimpleNamespace(trial_id=name)
    told = {"iteration": 0, "trials": [], "trial": trial}
    budget.on_trial_start(**told)
    for hours, training in reports:
        budget.on_trial_result(**told, result={"gpu_hours": hours, "training": training})
    return told


def test_a_budget_counts_every_attempt_once():
    budget = Budget(10.0, gpus=0)
    budget.on_trial_recover(**attempt(budget, "one", (0.1, True), (0.5, True)))
    budget.on_trial_complete(**attempt(budget, "one", (0.2, False), (0.2, False)))
    budget.on_trial_error(**attempt(budget, "two", (0.25, True)))
    assert budget.spent() == pytest.approx(0.95)
    attempt(budget, "three", (0.05, True))
    assert budget.spent() == pytest.approx(1.0)


def test_a_budget_counts_trainings_under_way(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vla_platform.resuming.time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = Budget(10.0, gpus=4)
    told = attempt(budget, "one")
    now[0] = 900.0
    assert budget.spent() == 1.0, "before its first report"
    budget.on_trial_result(**told, result={"gpu_hours": 0.8, "training": True})
    now[0] = 1800.0
    assert budget.spent() == 1.8
    budget.on_trial_result(**told, result={"gpu_hours": 1.9, "training": False})
    now[0] = 3600.0
    assert budget.spent() == 1.9, "it only plays"
    attempt(budget, "two")
    now[0] = 4500.0
    larger = Budget(20.0, gpus=4)
    larger.set_state(budget.get_state())
    assert (larger.spent(), larger.gpu_hours) == (2.9, 20.0)


def test_a_watch_counts_what_is_under_way():
    watch = Watch()
    assert (watch.seconds, watch.running) == (0.0, False)
    with watch:
        time.sleep(0.01)
        assert watch.running
        assert (early := watch.seconds) >= 0.01
    assert watch.seconds >= early
    assert not watch.running
    first = watch.seconds
    with watch:
        assert watch.seconds >= first


@pytest.mark.parametrize("optuna", [False, True])
def test_another_concurrency_holds_for_a_search_that_was_begun(optuna):
    before, now = (
        _searcher(Search("lr", SPACE, optuna=optuna, concurrent=n), ["max"]) for n in (1, 3)
    )
    now.set_state(before.get_state())
    assert now.max_concurrent == 3


def setting(folder):
    row = benchmark("tabletop")
    rules = Rules(row.tasks, 1, row.horizons)
    return Setting(open_store(str(folder)), row, CLUSTERS["laptop"], None, "print", "data", rules)


@pytest.mark.full
def test_a_search_that_spent_its_budget_continues_with_a_larger_one(tmp_path, ray_cluster, caplog):
    def train(config):
        name = f"{config['lr']} {time.time_ns()}"
        (tmp_path / name).touch()
        tune.report({"success": 0.5, "gpu_hours": 1.0, "training": False})

    train.settings = {"tabletop": setting(tmp_path / "store")}
    space = {"lr": tune.grid_search([1, 2, 3])}
    search(train, Search("lr", space, max_gpu_hours=1.5))
    assert "2.0 of 1.5 GPU-hours are spent" in caplog.text
    begun = sorted(tmp_path.glob("[0-9] *"))
    assert {path.name[0] for path in begun} == {"1", "2"}
    search(train, Search("lr", space, max_gpu_hours=1.5))
    assert sorted(tmp_path.glob("[0-9] *")) == begun, "it is still spent"
    done = search(train, Search("lr", space, max_gpu_hours=9.0, concurrent=2))
    assert [each.metrics["success"] for each in done] == [0.5] * 3
    begun = [path.name[0] for path in tmp_path.glob("[0-9] *")]
    assert set(begun) == {"1", "2", "3"}
    assert begun.count("1") == 1, "it was finished"


def test_a_search_says_how_its_runs_come_out():
    """Each with what makes it another run than the others, and its score."""
    said = []
    runs = {"a": Run("tiny-paligemma-1", "tabletop", lr=2e-3, freeze=("vision",))}
    runs["b"] = Run("tiny-kosmos-2", "tabletop")
    telling = Telling(said.append, lambda config: in_words(runs[config["run"]]), total=3)
    last = {"success": 0.5, "step": 10, "time_total_s": 61.2}
    scored = last | {"low": 0.4, "high": 0.6, "horizon": 2}
    first, second = (
        SimpleNamespace(config={"run": name}, last_result=row, status="TERMINATED")
        for name, row in (("a", scored), ("b", last))
    )
    told = {"iteration": 0, "trials": [first, second]}
    telling.on_trial_start(**told, trial=first)
    telling.on_trial_result(**told, trial=first, result={"checkpoint_success": 0.3, "step": 5})
    telling.on_trial_result(**told, trial=first, result=scored)
    telling.on_trial_complete(**told, trial=first)
    telling.on_trial_complete(**told, trial=second)
    name = "tiny-paligemma-1 tabletop freeze vision lr 0.002"
    assert said == [
        f"{name}: begins",
        f"{name}: 30% at step 5",
        f"{name}: 50% [40, 60] (step 10, horizon 2); 61 s; 2 of 3 runs",
        "tiny-kosmos-2 tabletop: 50% when it was stopped (step 10); 61 s; 2 of 3 runs",
    ]


def test_only_without_asha_a_process_is_given_another_trial(tmp_path):
    """What ASHA stops may be training, which ends with the process alone."""
    made = [Search("lr", SPACE, asha=asha) for asha in (False, True)]
    assert [_tune_config(setting(tmp_path), each).reuse_actors for each in made] == [True, False]


@pytest.mark.full
def test_what_asha_stops_does_not_go_on_training(tmp_path, ray_cluster):
    beat = tmp_path / "beat"

    def train_for_ever():
        while True:
            beat.write_text(str(time.monotonic()))
            time.sleep(0.05)

    def quiet():
        before = beat.read_text()
        time.sleep(1)
        return beat.read_text() == before

    def race(config):
        figures = {"success": config["rate"], "gpu_hours": 0.0, "training": True}
        if config["rate"] == 0.1:
            with _beside(train_for_ever):
                time.sleep(0.5)
                tune.report(figures)
                tune.report(figures)
        if config["rate"] == 0.9 and beat.exists():
            figures["quiet"] = any(quiet() for _ in range(15))
        tune.report(figures)

    race.settings = {"tabletop": setting(tmp_path / "store")}
    found = search(race, Search("lr", {"rate": tune.grid_search([0.8, 0.1, 0.9])}, asha=True))
    assert [each.metrics["training_iteration"] for each in found] == [1, 1, 1]
    assert found[2].metrics["quiet"]


def test_chains_of_several_trainings_are_not_taken_for_coins():
    """Three of five subtasks in every chain: a coin with that rate would have an interval."""
    rows = [{"backbone": "a", "seed": seed} for seed in (0, 1)]
    outcomes = [(0.6,) * 10] * 2
    args = Namespace(seeds=2)
    said = variance(args, rows, outcomes, ("backbone", "seed"), across_trainings)
    assert said == "a: 60% [60, 60] over 2 trainings and their trials"


def test_what_asha_stopped_is_not_called_unfinished(tmp_path, capsys):
    def concluded(ended, asha):
        study = Study(open_store(str(tmp_path)), CLUSTERS["laptop"], science, print, ended=ended)
        args = Namespace(json=None, seeds=1, asha=asha)
        code = conclude(args, study, {}, 3, ("backbone", "seed"), across_trainings)
        return code, capsys.readouterr().out.splitlines()[-1]

    assert concluded(3, True) == (0, "3 runs have no score: --asha stopped them")
    unfinished = (1, "3 runs have no score: the same command continues")
    assert concluded(2, True) == unfinished, "one failed, or the budget ended it"
    assert concluded(3, False) == unfinished


def test_a_study_refuses_what_its_gpus_cannot_hold_before_it_starts(tmp_path):
    said = []
    study = Study(open_store(str(tmp_path)), CLUSTERS["cluster"], science, said.append)
    run = Run("qwen3vl-30b-a3b", "tabletop")
    with pytest.raises(ValueError, match="take --preset 4x8-a100"):
        study.score([run], Search("lr", SPACE), lambda config: run)
    assert not said


def test_a_search_on_s3_is_read_back(s3_url, ray_cluster):
    def train(config):
        tune.report({"success": config["rate"], "gpu_hours": 1.0, "training": False, "run": "r"})

    store = open_store(s3_url)
    train.settings = {"tabletop": replace(setting("unused"), store=store)}
    wanted = Search("lr", {"rate": tune.grid_search([0.5, 0.25])})
    search(train, wanted)
    table = results(store, wanted.experiment).get_dataframe()
    assert sorted(table["success"]) == [0.25, 0.5] and set(table["run"]) == {"r"}
    with pytest.raises(ValueError, match=f"Unknown search .*{wanted.experiment}"):
        results(store, "lr")


def test_a_store_out_of_reach_ends_a_search_in_a_sentence(monkeypatch):
    monkeypatch.setattr("vla_platform.tuning.ATTEMPTS", 1)
    away = open_store("s3://exp/a?endpoint=http://127.0.0.1:9")
    objective = SimpleNamespace(settings={"tabletop": replace(setting("unused"), store=away)})
    with pytest.raises(StoreUnavailableError, match=r"lr-\w+ .*out of reach.*command continues"):
        search(objective, Search("lr", SPACE))


def test_tunes_own_files_ride_out_hiccups(seaweed_server, proxy):
    """As many as pyarrow's default gives up at."""
    store = open_store(f"s3://exp/hiccups?endpoint={proxy.endpoint}")
    files, path = _filesystem(store), f"{folder(store)}/state"
    proxy.plan(Fault(cut=True), *[Fault(status=503, code="SlowDown")] * 2, Fault(cut=True))
    with files.open_output_stream(path) as stream:
        stream.write(b"a" * 100_000)
    assert files.open_input_file(path).readall() == b"a" * 100_000
    assert not proxy.planned


def test_what_tells_is_kept_where_ray_has_put_its_own_print(monkeypatch):
    """As it does once a worker's log is shown; Tune pickles callbacks."""
    telling = Telling(say, str, total=1)
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
    assert cloudpickle.loads(cloudpickle.dumps(telling)).say is say


def _cut(search_folder):
    newest = max(search_folder.glob("experiment_state-*"))
    newest.write_bytes(newest.read_bytes()[:100])


def _empty(search_folder):
    """As Tune leaves it after a restore that failed, and cannot restore."""
    newest = max(search_folder.glob("experiment_state-*"))
    state = json.loads(newest.read_text())
    newest.write_text(json.dumps(state | {"trial_data": []}))


def _partly(search_folder):
    for path in search_folder.glob("basic-variant-state-*"):
        path.unlink()


@pytest.mark.parametrize("damage", [_cut, _empty, _partly], ids=lambda each: each.__name__)
def test_a_search_that_tune_cannot_restore_begins_anew(tmp_path, ray_cluster, damage):
    """The trainable stands for one that finds what is done in the store."""
    begun = tmp_path / "begun"
    begun.mkdir()

    def train(config):
        (begun / f"{config['rate']} {time.time_ns()}").touch()
        tune.report({"success": config["rate"], "gpu_hours": 1.0, "training": False})

    def tried():
        return [float(path.name.split()[0]) for path in begun.iterdir()]

    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    train.settings = {"tabletop": setting(tmp_path / "store")}
    wanted = Search("lr", {"rate": tune.grid_search(rates)})
    for budget in (1.5, 2.5):  # Tune fails at what it has restored before
        search(train, replace(wanted, max_gpu_hours=budget))
    assert 0.1 in tried() and 0.6 not in tried()
    damage(tmp_path / "store" / "tune" / wanted.experiment)
    found = search(train, wanted)
    assert sorted(each.metrics["success"] for each in found) == rates
    assert tried().count(0.1) == 2
    search(train, wanted)
    assert tried().count(0.1) == 2, "it is restored again"


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
