"""What the live app shows, without its widgets: a study read again and again, and compared."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dashboards.archive import Archive
from dashboards.cells import BROKEN, Cell, span
from dashboards.report.scores import OWN, RunScore, conditions, run_score
from dashboards.runs import Known, Run, Study, read_study
from vlm4vla.analysis import compare, pairs_to_tell_apart
from vlm4vla.compare import paired_difference

AT_WORK_S = 300.0
"""A run is at work while its last step or episode is younger than this."""


@dataclass
class Live:
    """A store that is read again when what is known is older than `patience` seconds."""

    archive: Archive
    patience: float = 10.0
    _known: Known = field(default_factory=Known)
    _study: Study | None = None
    _scores: Sequence[RunScore] = ()
    _read_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> tuple[Study, Sequence[RunScore]]:
        """The study and its scores; one caller reads while the others wait for it."""
        with self._lock:
            if self._study is None or time.monotonic() - self._read_at > self.patience:
                self._study = read_study(self.archive, self._known)
                self._scores = [run_score(run) for run in self._study.runs]
                self._read_at = time.monotonic()
            return self._study, self._scores


@dataclass(frozen=True)
class Activity:
    """A run at work. share: of its steps, None when they are unknown. idle_s: since the last
    sign of life."""

    run: Run
    step: int
    share: float | None
    episodes: int
    idle_s: float


def at_work(study: Study, now: float) -> list[Activity]:
    """Runs with a sign of life in the last minutes, the liveliest first."""
    found = []
    for run in study.runs:
        signs = [row["time"] for row in run.metrics[-1:] if "time" in row]
        signs += [ends[1] for cell in run.cells if (ends := span(cell))]
        if signs and now - max(signs) < AT_WORK_S:
            step = max(run.trained, int(run.metrics[-1]["step"]) if run.metrics else 0)
            share = min(1.0, step / run.steps) if run.steps else None
            episodes = sum(cell.trials for cell in run.cells)
            found.append(Activity(run, step, share, episodes, max(0.0, now - max(signs))))
    return sorted(found, key=lambda one: one.idle_s)


# Two runs, episode by episode


@dataclass(frozen=True)
class Pair:
    """One initial state that both policies met. Videos: episode keys, "" when not filmed."""

    task: str
    state: int
    instruction: str
    a: bool
    b: bool
    video_a: str
    video_b: str

    @property
    def kind(self) -> str:
        return {(1, 1): "both", (1, 0): "only A", (0, 1): "only B", (0, 0): "neither"}[
            (int(self.a), int(self.b))
        ]


def cells_to_compare(run: Run) -> dict[str, Cell]:
    """The run's sound cells by what people call them; the last checkpoint's first."""
    cells = [cell for cell in run.cells if cell.trials and cell.status != BROKEN]
    cells.sort(key=lambda c: (c.fields["instruction_mode"] != OWN, -run.step_of(c), c.id))
    names: dict[str, Cell] = {}
    for cell in cells:
        name = f"step {run.step_of(cell)}, {cell.fields['horizon']} actions"
        if cell.fields["instruction_mode"] != OWN:
            name += f", {cell.fields['instruction_mode'].replace('_', ' ')}"
        names[f"{name} ({cell.id[:6]})" if name in names else name] = cell
    return names


def pairs(a: Cell, b: Cell, videos: Mapping[str, str]) -> list[Pair]:
    """Episodes that both played, by task and initial state.

    ValueError when the cells were not played under the same conditions (environment, profile,
    precision, protocol, schema), for then a difference has two causes.
    """
    if conditions(a)[0] != conditions(b)[0] or conditions(a)[3:] != conditions(b)[3:]:
        raise ValueError("the two were played in different environments or protocols")
    ours, theirs = _episodes(a), _episodes(b)
    found = []
    for where in sorted(ours.keys() & theirs.keys()):
        (won, key), (lost, other) = ours[where], theirs[where]
        films = [name if name in videos else "" for name in (key, other)]
        task, state, _, instruction = where
        found.append(Pair(task, state, instruction, won, lost, *films))
    return found


def _episodes(cell: Cell) -> dict[tuple[str, int, int, str], tuple[bool, str]]:
    names = ("task", "initial_state", "seed", "instruction", "success", "key")
    rows = zip(*(cell.table[name].to_pylist() for name in names), strict=True)
    return {(task, state, seed, text): (won, key) for task, state, seed, text, won, key in rows}


def verdict(a: Cell, b: Cell) -> str:
    """What the paired comparison says, in a sentence; ValueError when none is possible."""
    if a.trials > a.states or b.trials > b.states:
        return _of_repeats(a, b)
    found = compare(a.table, b.table)
    total = found.both + found.only_a + found.only_b + found.neither
    value, low, high = (100 * number for number in found.difference)
    said = f"A minus B: {value:+.1f} points [{low:+.1f}, {high:+.1f}], McNemar p = {found.p:.3g}"
    said += f" over {total} shared initial states."
    if found.p >= 0.05 and found.only_a != found.only_b:
        enough = pairs_to_tell_apart(found.only_a, found.only_b, total)
        said += f" If this gap is real, about {enough:,} states would show it."
    return said


def _of_repeats(a: Cell, b: Cell) -> str:
    """Repeats of a state are no further states, so their means are compared."""
    if a.fields["instruction_mode"] != b.fields["instruction_mode"]:
        raise ValueError("the two were given different instructions")
    found = paired_difference(a.outcomes(), b.outcomes(), 100.0)
    value, low, high = found.difference
    said = f"A minus B: {value:+.1f} points [{low:+.1f}, {high:+.1f}], bootstrap p = {found.p:.3g}"
    return f"{said} over {found.pairs} shared initial states, means of their repeats."
