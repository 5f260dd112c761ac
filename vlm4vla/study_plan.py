"""What a study would cost, and what of it is there already: the dry run's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm4vla.cost import cost
from vlm4vla.run import Run
from vlm4vla.stages import STAGES, stage_of
from vlm4vla.study import BASELINES, Entry, Figure, Table, on, trainings

Stored = Callable[[str], Sequence[int]]
"""A run's id -> the steps of its complete checkpoints, ascending."""
Data = Callable[[str], str | None]
"""A benchmark's name -> the id of the demonstrations to train on, None where nobody knows yet."""


@dataclass(frozen=True)
class Bill:
    """Counts and costs of some entries; a run that several share is counted once.

    gpu_hours: estimated (`vlm4vla.cost`), for all trainings; gpu_hours_left: for those not
    in the store. episodes: rollouts for the paper's selection, over every checkpoint and
    horizon. stored, checkpoints: finished trainings and complete checkpoints in the store.
    """

    entries: int
    trainings: int
    steps: int
    gpu_hours: float
    gpu_hours_left: float
    episodes: int
    stored: int
    checkpoints: int


@dataclass(frozen=True)
class Plan:
    """A chosen part of the study. baselines: of expert policies, apart from everything else.

    Figures repeat the entries of tables: their trainings count, as entries they do not.
    seeds: each entry is trained once with each. benchmarks: entries on these alone, if any.
    """

    chosen: tuple[Table | Figure, ...]
    seeds: Sequence[int]
    stored: Stored
    benchmarks: Sequence[str] = ()
    data: Data = lambda benchmark: None

    def bill(self, part: Table | Figure) -> Bill:
        return _bill(self._of([part]), self.stored)

    def total(self) -> Bill:
        whole = _bill(self._entries(Table, Figure), self.stored)
        return dataclasses.replace(whole, entries=len(self._entries(Table)))

    def baselines(self, part: Table | Figure | None = None) -> Bill:
        """Of one table or of all chosen; quoted numbers cost nothing and are left out."""
        return _bill([e for e in self._experts(part) if e.run], self.stored)

    def quoted(self) -> int:
        """Numbers of other authors, for which nothing is trained."""
        return sum(entry.run is None for entry in self._experts())

    def stages(self) -> list[str]:
        """Auxiliary stages that the chosen runs start from and that have to be trained."""
        used = {e.run.aux for e in self._entries(Table, Figure) if e.run and e.run.aux}
        names = {stage_of(aux).name for aux in used}
        return [name for name in STAGES if name in names and STAGES[name].weights is None]

    def rows(self) -> list[dict[str, Any]]:
        """One per entry, expert baselines included, in the order of the tables."""
        entries = [*self._entries(Table), *self._experts()]
        return [_row(entry, self.stored) for entry in entries]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types: `entries`, `trainings`, `baselines`, `tables`, … and the rows."""
        return {
            **_plain(self.total()),
            "baselines": self.baselines().entries,
            "baselines_cost": _plain(self.baselines()),
            "quoted": self.quoted(),
            "aux_stages": self.stages(),
            "tables": self._parts(Table),
            "figures": self._parts(Figure),
            "rows": self.rows(),
        }

    def _parts(self, kind: type) -> dict[str, dict[str, Any]]:
        return {
            part.name: {
                "title": part.title,
                **_plain(self.bill(part)),
                "baselines": self.baselines(part).entries,
            }
            for part in self.chosen
            if isinstance(part, kind)
        }

    def _entries(self, *kinds: type) -> list[Entry]:
        return self._of([part for part in self.chosen if isinstance(part, kinds)])

    def _of(self, parts: Iterable[Table | Figure]) -> list[Entry]:
        found = (e for part in parts for seed in self.seeds for e in part.entries(seed))
        return on(self.benchmarks, map(self._named, found))

    def _experts(self, part: Table | Figure | None = None) -> list[Entry]:
        names = {p.name for p in ([part] if part else self.chosen)}
        found = on(self.benchmarks, (entry for entry in BASELINES if entry.table in names))
        seeded = (_with(entry, seed=seed) for seed in self.seeds for entry in found)
        return list(dict.fromkeys(map(self._named, seeded)))

    def _named(self, entry: Entry) -> Entry:
        """The entry, its data's id with it: two preparations of one dataset are two trainings."""
        return _with(entry, dataset=self.data(entry.run.benchmark)) if entry.run else entry


def _with(entry: Entry, **changed: Any) -> Entry:
    return dataclasses.replace(entry, run=entry.run and dataclasses.replace(entry.run, **changed))


def _bill(entries: Iterable[Entry], stored: Stored) -> Bill:
    entries = list(entries)
    runs = trainings(entries)
    costs = {key: cost(run) for key, run in runs.items()}
    steps = {key: stored(key) for key in runs}
    done = [key for key, run in runs.items() if _finished(run, steps[key])]
    hours = sum(one.gpu_hours for one in costs.values())
    return Bill(
        entries=len(entries),
        trainings=len(runs),
        steps=sum(one.steps for one in costs.values()),
        gpu_hours=hours,
        gpu_hours_left=hours - sum(costs[key].gpu_hours for key in done),
        episodes=sum(one.episodes for one in costs.values()),
        stored=len(done),
        checkpoints=sum(len(found) for found in steps.values()),
    )


def _finished(run: Run, steps: Sequence[int]) -> bool:
    assert run.steps is not None
    return bool(steps) and steps[-1] >= run.steps


def _plain(bill: Bill) -> dict[str, Any]:
    fields = dataclasses.asdict(bill)
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in fields.items()}


def _row(entry: Entry, stored: Stored) -> dict[str, Any]:
    place = {k: getattr(entry, k) for k in ("table", "row", "column", "printed")}
    if entry.run is None:
        return {**place, "kind": "quoted", "id": None}
    ((key, run),) = trainings([entry]).items()
    spent, steps = cost(run), stored(key)
    return {
        **place,
        "kind": "entry" if run.policy == "action_query" else "baseline",
        "id": key,
        **dataclasses.asdict(run),
        "gpu_hours": round(spent.gpu_hours, 1),
        "episodes": spent.episodes,
        "checkpoints": list(steps),
        "trained": _finished(run, steps),
    }
