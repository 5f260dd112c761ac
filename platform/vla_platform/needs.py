"""What runs need that no job makes for them: told before the first one is trained."""

from __future__ import annotations

from collections.abc import Iterable

from envs.api import Benchmark
from envs.benchmarks import benchmark
from envs.worker import has_expert
from vla_platform import artifacts, stages
from vla_platform.demos import without_expert
from vla_platform.stages import Row, Stage
from vla_platform.store import Store


def lacking(
    store: Store, runs: Iterable[tuple[str, Stage | None]], dataset: str | None = None
) -> list[str]:
    """A sentence for each dataset that the store lacks, with the command that prepares it.

    runs: of each its benchmark's name and the stage that it starts from. dataset: id of the
    demonstrations that were chosen instead of the benchmarks'.
    """
    pairs = list(runs)
    rows = [benchmark(name) for name in dict.fromkeys(name for name, _ in pairs)]
    wanted = {stage.id: stage for _, stage in pairs if stage is not None}
    found = [] if dataset else [_demonstrations(store, row) for row in rows]
    found += [_questions(store, stage) for stage in wanted.values()]
    return list(dict.fromkeys(filter(None, found)))


def _demonstrations(store: Store, row: Benchmark) -> str:
    if has_expert(row.simulator) or artifacts.published_dataset(store, row.dataset):
        return ""
    return without_expert(row)


def _questions(store: Store, stage: Stage) -> str:
    absent = [row for row in stage.rows if not row.made_here]
    trained = stages.record(store, stage.id) is not None
    if not absent or trained or artifacts.dataset_exists(store, stage.data):
        return ""
    name, _, general = stage.name.partition("-general")
    command = f"jobs/prepare_questions.py {name} {' '.join(f'{row.name}=PATH' for row in absent)}"
    command += f" --general {int(general) / 100}" if general else ""
    return f"the stage {stage.name} needs {', '.join(map(_source, absent))}: {command}"


def _source(row: Row) -> str:
    """A source that is no hub id is made with a job of ours."""
    where = row.source if "/" in row.source else "made with jobs/spatial_questions.py"
    return f"{row.name} ({where})"
