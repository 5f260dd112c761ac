"""What a run is trained on: published data where they are prepared, else an expert's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from vla_platform import curves, failures
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Entrant, Rules
from vla_platform.demos import Demonstrations
from vla_platform.store import open_store
from vla_platform.study import Study
from vla_platform.sweep import Sweep, Trials
from vla_platform.trained import Setting, Training, data_of, ensure_dataset, training_of
from vla_platform.trial import Trial
from vla_platform.tuning import Objective

from envs.benchmarks import benchmark
from vlm4vla import science
from vlm4vla.run import Run

CALVIN = benchmark("calvin")


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path))


def prepared(store, dataset):
    store.put(f"datasets/{dataset}/shard-00000.parquet", b"")
    store.put(f"datasets/{dataset}/manifest.json", b"{}")
    return dataset


def setting(store, row, data):
    rules = Rules(row.tasks, 1, row.horizons)
    return Setting(store, row, CLUSTERS["laptop"], science, "fingerprint", data, rules)


def test_prepared_data_of_the_benchmarks_name_are_found(folder):
    row = benchmark("libero_10")
    assert isinstance(data_of(folder, row, row.tasks), Demonstrations)
    folder.put("datasets/libero_10_no_noops-0123456789ab/shard-00000.parquet", b"")
    assert isinstance(data_of(folder, row, row.tasks), Demonstrations), "not complete"
    found = prepared(folder, "libero_10_no_noops-0123456789ab")
    prepared(folder, "libero_10_no_noops_small-0123456789ab")
    assert data_of(folder, row, row.tasks) == found
    assert isinstance(data_of(folder, row, row.tasks, 5), Demonstrations), "asked for"


def test_a_benchmark_without_expert_and_data_says_what_to_do(folder):
    remedy = "calvin has no scripted expert: pass --dataset ID .* --name calvin_abc_d"
    prepared(folder, "calvin-0123456789ab")
    for each in (None, 5):
        with pytest.raises(ValueError, match=remedy):
            data_of(folder, CALVIN, CALVIN.tasks, each)
    own = replace(CALVIN, simulator="only.in.its.interpreter:Robot")
    assert isinstance(data_of(folder, own, own.tasks), Demonstrations), "it is asked later"


def test_a_dataset_can_be_chosen(folder):
    marks = ("0123456789ab", "ba9876543210")
    first, _ = (prepared(folder, f"calvin_abc_d-{mark}") for mark in marks)
    assert data_of(folder, CALVIN, CALVIN.tasks, chosen=first) == first
    with pytest.raises(ValueError, match=rf"mine-0 is not complete .*: {first}, calvin.*prepare"):
        data_of(folder, CALVIN, CALVIN.tasks, chosen="mine-0")
    study = Study(folder, CLUSTERS["laptop"], science, print, dataset=first)
    assert study.setting("tabletop").data == first
    with pytest.raises(ValueError, match="of one benchmark, these runs are on tabletop and calvin"):
        study.setting("calvin")


def test_data_prepared_twice_are_not_chosen_from(folder):
    for mark in ("0123456789ab", "ba9876543210"):
        prepared(folder, f"calvin_abc_d-{mark}")
    with pytest.raises(ValueError, match="all prepared calvin_abc_d: pass --dataset ID with"):
        data_of(folder, CALVIN, CALVIN.tasks)


def test_a_run_is_of_its_data_however_they_are_called(folder):
    run, row = Run("qwen3vl-2b", "calvin"), CALVIN
    names = ("calvin_abc_d-0123456789ab", "calvin_abc_d-ba9876543210", "mine-0123456789ab")
    first, second, other = (setting(folder, row, name) for name in names)
    made = [each.completed(run) for each in (first, second, other)]
    assert [each.dataset for each in made] == list(names)
    assert len({each.id(row) for each in made}) == 3, "a published dataset prepared twice is two"
    with pytest.raises(ValueError, match="mine-0123456789ab is not complete"):
        ensure_dataset(other)


def test_a_training_that_fails_is_counted(folder):
    on_gpus = replace(setting(folder, CALVIN, "mine-0123456789ab"), cluster=CLUSTERS["cluster"])
    trial = Trial(on_gpus, Training("run", "run-0123456789ab", 8, print))
    with pytest.raises(ValueError, match="not complete"):
        trial._train()
    assert trial.gpu_hours > 0
    assert not trial.spent.training.running


def test_why_a_training_failed_is_kept_and_in_one_search_not_met_twice(folder):
    mine = replace(setting(folder, CALVIN, "mine-0123456789ab"), cluster=CLUSTERS["cluster"])
    run = Run("qwen3vl-2b", "calvin")
    name = training_of(mine, run).id
    assert failures.last(folder, name) is None
    for _ in range(2):  # two commands
        search = Objective({"calvin": mine}, lambda config: run)
        with pytest.raises(ValueError, match="mine-0123456789ab is not complete"):
            search({})
        kept = failures.last(folder, name)
        assert kept.final and kept.title == "qwen3vl-2b"
        assert "require_dataset" in kept.text and "is not complete" in kept.last_line
        with pytest.raises(RuntimeError, match=r"qwen3vl-2b is not tried again: ValueError: data"):
            search({})
    assert curves.read(folder, name) == [], "it is no figure"
    failures.record(folder, name, "qwen3vl-2b", ConnectionError("a node went"))
    with pytest.raises(ValueError, match="is not complete"):
        search({})


def test_a_run_is_scored_by_its_profile(folder):
    row = benchmark("simpler")
    mine = setting(folder, row, "mine-0123456789ab")
    for profile, rule in (("paper", "any_step"), ("official", "last_step")):
        training = training_of(mine, Run("qwen3vl-2b", "simpler", profile=profile))
        contest = Trial(mine, training)._contest()
        assert (contest.profile, contest.benchmark.success_rule) == (profile, rule)
        trials = Trials(row.tasks, 1, 2, None)
        sweep = SimpleNamespace(benchmark=row, fingerprint="print", cluster=mine.cluster)
        wanted = Sweep._score(sweep, training, Checkpoint("run", 1, "w"), "trained", "own", trials)
        assert (wanted.cell().profile, wanted.benchmark.success_rule) == (profile, rule)


def test_on_gpus_policies_answer_in_the_precision_they_were_trained_in(folder):
    mine = setting(folder, CALVIN, "mine-0123456789ab")
    for preset, precision in (("laptop", "fp32"), ("cluster", "bf16"), ("workstation", "bf16")):
        there = replace(mine, cluster=CLUSTERS[preset])
        training = training_of(there, Run("qwen3vl-2b", "calvin"))
        contest = Trial(there, training)._contest()
        cell = contest._cell(Entrant(Checkpoint("run", 1, "w"), 10))
        assert cell.precision == precision
        sweep = SimpleNamespace(benchmark=CALVIN, fingerprint="print", cluster=there.cluster)
        trials = Trials(CALVIN.tasks, 1, 2, None)
        wanted = Sweep._score(sweep, training, Checkpoint("run", 1, "w"), "trained", "own", trials)
        assert wanted.cell().precision == precision


def test_experts_demonstrations_of_a_benchmark_are_not_its_published_data(folder):
    row = benchmark("tabletop")
    prepared(folder, "tabletop-0123456789ab")
    assert isinstance(data_of(folder, row, row.tasks), Demonstrations)
