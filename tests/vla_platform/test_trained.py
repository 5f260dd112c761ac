"""What a run is trained on: published data where they are prepared, else an expert's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from vla_platform.artifacts import Checkpoint
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules
from vla_platform.demos import Demonstrations
from vla_platform.store import open_store
from vla_platform.sweep import Sweep, Trials
from vla_platform.trained import Setting, Training, data_of, ensure_dataset, training_of
from vla_platform.trial import Trial

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
    assert isinstance(data_of(folder, CALVIN, CALVIN.tasks), Demonstrations)
    folder.put("datasets/calvin_abc_d-0123456789ab/shard-00000.parquet", b"")
    assert isinstance(data_of(folder, CALVIN, CALVIN.tasks), Demonstrations), "not complete"
    found = prepared(folder, "calvin_abc_d-0123456789ab")
    prepared(folder, "calvin_abc_d_small-0123456789ab")
    assert data_of(folder, CALVIN, CALVIN.tasks) == found
    assert isinstance(data_of(folder, CALVIN, CALVIN.tasks, 5), Demonstrations), "asked for"


def test_data_prepared_twice_are_not_chosen_from(folder):
    for mark in ("0123456789ab", "ba9876543210"):
        prepared(folder, f"calvin_abc_d-{mark}")
    with pytest.raises(ValueError, match="are all prepared calvin_abc_d: keep the one"):
        data_of(folder, CALVIN, CALVIN.tasks)


def test_a_run_on_published_data_is_the_papers_and_any_other_names_its_data(folder):
    run, row = Run("qwen3vl-2b", "calvin"), CALVIN
    published = setting(folder, row, prepared(folder, "calvin_abc_d-0123456789ab"))
    assert published.completed(run).id(row) == run.id(row)
    other = setting(folder, row, "mine-0123456789ab")
    assert other.completed(run).dataset == "mine-0123456789ab"
    with pytest.raises(KeyError, match="mine-0123456789ab is not complete"):
        ensure_dataset(other)


def test_a_training_that_fails_is_counted(folder):
    on_gpus = replace(setting(folder, CALVIN, "mine-0123456789ab"), cluster=CLUSTERS["cluster"])
    trial = Trial(on_gpus, Training("run", "run-0123456789ab", 8, print))
    with pytest.raises(KeyError, match="not complete"):
        trial._train()
    assert trial.gpu_hours > 0
    assert not trial.spent.training.running


def test_a_run_is_scored_by_its_profile(folder):
    row = benchmark("simpler")
    mine = setting(folder, row, "mine-0123456789ab")
    for profile, rule in (("paper", "any_step"), ("official", "last_step")):
        training = training_of(mine, Run("qwen3vl-2b", "simpler", profile=profile))
        contest = Trial(mine, training)._contest()
        assert (contest.profile, contest.benchmark.success_rule) == (profile, rule)
        trials = Trials(row.tasks, 1, 2, None)
        sweep = SimpleNamespace(benchmark=row, fingerprint="print")
        wanted = Sweep._score(sweep, training, Checkpoint("run", 1, "w"), "trained", "own", trials)
        assert (wanted.cell().profile, wanted.benchmark.success_rule) == (profile, rule)


def test_experts_demonstrations_of_a_benchmark_are_not_its_published_data(folder):
    row = benchmark("tabletop")
    prepared(folder, "tabletop-0123456789ab")
    assert isinstance(data_of(folder, row, row.tasks), Demonstrations)
