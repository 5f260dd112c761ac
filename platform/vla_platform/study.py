"""Many runs and their scores: read from the store, and through Ray Tune what is not there yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.tune import ResultGrid

from envs.benchmarks import benchmark
from envs.process import require_interpreters
from vla_platform import evaluation, needs, session
from vla_platform.cluster import CLUSTERS, Cluster
from vla_platform.contest import Rules, Standing
from vla_platform.ledger import Ledger
from vla_platform.stages import Stage
from vla_platform.store import Store
from vla_platform.telling import Telling, in_words
from vla_platform.trained import AnyRun, Science, Setting, data_of, start_of, training_of
from vla_platform.trial import Trial
from vla_platform.tuning import Objective, Search, figures, search

MakeRun = Callable[[Mapping[str, Any]], AnyRun]


@dataclass
class Study:
    """Scores runs on one store and one cluster.

    say: takes a line; Tune pickles it, so not `print` itself, which Ray replaces. states: initial
    states per task that choose; confirm: fresh ones per task for each winner; error: see `Rules`.
    stages: auxiliary ones by id, besides those that the science knows.
    checkpoints: steps to score instead of those of the benchmark's recipe. within: see `Rules`.
    dataset: id of the one to train on, where all runs are on one benchmark. ended: trials of its
    searches that came to their end, or were stopped on purpose.
    """

    store: Store
    cluster: Cluster
    science: Science
    say: Callable[[str], None]
    states: int | None = None
    confirm: int = 0
    error: float | None = 0.05
    stages: Mapping[str, Stage] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    within: float | None = None
    dataset: str | None = None
    ended: int = 0
    _settings: dict[str, Setting] = field(default_factory=dict)

    def setting(self, name: str) -> Setting:
        """Of a benchmark: its published data where they are prepared, else an expert's."""
        if name not in self._settings:
            if self.dataset and self._settings:
                both = f"{next(iter(self._settings))} and {name}"
                raise ValueError(f"--dataset is of one benchmark, these runs are on {both}")
            row = benchmark(name)
            if self.checkpoints:
                recipe = dataclasses.replace(row.recipe, checkpoints=self.checkpoints)
                row = dataclasses.replace(row, recipe=recipe)
            data = data_of(self.store, row, row.tasks, chosen=self.dataset)
            fingerprint = evaluation.environment(Ledger(self.store), row)
            self._settings[name] = Setting(
                *(self.store, row, self.cluster, self.science, fingerprint, data),
                *(self._rules(name), self.stages),
            )
        return self._settings[name]

    def completed(self, run: AnyRun) -> AnyRun:
        """The run with nothing left open, as it is trained: its data's id too."""
        return self.setting(run.benchmark).completed(run)

    def standing(self, run: AnyRun) -> Standing | None:
        """The run's score if the store has all of it."""
        setting = self.setting(run.benchmark)
        return Trial(setting, training_of(setting, run)).standing()

    def row(self, run: AnyRun, standing: Standing) -> dict[str, Any]:
        """A scored run as one flat row, as it was trained: nothing left open, its data named.

        checkpoint: the winner as `jobs/evaluate.py --policy` takes it; digest: of its weights.
        """
        chosen = dataclasses.asdict(self.completed(run))  # type: ignore[call-overload]
        chosen |= {"freeze": "+".join(chosen["freeze"]) or "none"}
        winner = standing.selection.winner.checkpoint
        named = {"run": winner.run, "checkpoint": f"{winner.run}@{winner.step}"}
        return {**chosen, **figures(standing), **named, "digest": winner.digest}

    def standings(self, runs: Sequence[AnyRun]) -> dict[AnyRun, Standing | None]:
        """The same of many; SimulatorMissing names every simulator that is not installed here,
        FileNotFoundError all data that are missing."""
        require_interpreters(benchmark(run.benchmark).simulator for run in runs)
        self._require_data(runs)
        return {run: self.standing(run) for run in runs}

    def by_step(self, run: AnyRun) -> dict[int, float]:
        """Scores of the run's checkpoints in the store: Figure 4's boxes."""
        setting = self.setting(run.benchmark)
        return Trial(setting, training_of(setting, run)).by_step()

    def score(
        self, runs: Sequence[AnyRun], wanted: Search, make_run: MakeRun
    ) -> dict[AnyRun, Standing]:
        """Scores by run, after a search for those that the store lacks.

        make_run: a trial's config to its run. Runs that ended in errors are left out.
        Errors: of `standings`.
        """
        found = self.standings(runs)
        left = [run for run, standing in found.items() if standing is None]
        if left:
            for run in left:
                self.science.require_start(run)
            self.science.require_fit([run.backbone for run in left], self.cluster, CLUSTERS)
            self.say(f"{len(left)} of {len(runs)} runs are not scored yet")
            self.search(wanted, make_run, runs)
            found |= {run: self.standing(run) for run in left}
        return {run: standing for run, standing in found.items() if standing is not None}

    def search(self, wanted: Search, make_run: MakeRun, runs: Sequence[AnyRun]) -> ResultGrid:
        """Run a search to its end. runs: those that it tries, or some of them: what the space
        leaves out shows there, and another such search is not this one continued.

        FileNotFoundError names all data that are missing."""
        self._require_data(runs)
        wanted = dataclasses.replace(wanted, scope=self._scope(runs))
        self.say(f"Ray dashboard: {session.connect() or 'none'}")
        completed = partial(_completed, self._settings, make_run)
        total = wanted.samples if wanted.optuna else len(set(runs))
        telling = Telling(self.say, lambda config: in_words(make_run(config)), total)
        results = search(Objective(self._settings, completed), wanted, telling)
        self.ended += results.num_terminated
        where = f"{self.store.url}/tune/{wanted.experiment}"
        self.say(f"Tune: {len(results)} trials, {results.num_errors} with errors, in {where}")
        for error in results.errors[:3]:
            self.say(f"error: {str(error).strip().splitlines()[-1]}")
        return results

    def _require_data(self, runs: Sequence[AnyRun]) -> None:
        starts = [(run.benchmark, start_of(run, self.science, self.stages)) for run in runs]
        missing = needs.lacking(self.store, starts, self.dataset)
        if missing:
            raise FileNotFoundError("\n  ".join(["these runs need data first:", *missing]))

    def _scope(self, runs: Sequence[AnyRun]) -> dict[str, Any]:
        """What the scores of a search depend on besides its space."""
        settings = {run.benchmark: self.setting(run.benchmark) for run in runs}
        ids = {self.completed(run).id(settings[run.benchmark].benchmark) for run in runs}
        scoring = {name: _scoring(each) for name, each in settings.items()}
        return {"runs": sorted(ids), "scoring": scoring}

    def _rules(self, name: str) -> Rules:
        row = benchmark(name)
        states = self.states or row.trials
        if states > row.trials:
            raise ValueError(
                f"--states {states}: on {name} {row.trials} choose at most, for the report takes "
                "what is played beyond them for confirmation; --confirm N plays more of those"
            )
        return Rules(row.tasks, states, row.horizons, self.confirm, self.error, within=self.within)


def _scoring(setting: Setting) -> dict[str, Any]:
    checkpoints = list(setting.benchmark.recipe.checkpoints)
    rules = dataclasses.asdict(setting.rules)
    return {"rules": rules, "checkpoints": checkpoints, "fingerprint": setting.fingerprint}


def _completed(
    settings: Mapping[str, Setting], make_run: Callable[..., Any], config: Mapping[str, Any]
) -> AnyRun:
    run = make_run(config)
    return settings[run.benchmark].completed(run)
