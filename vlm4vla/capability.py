"""Figure 3's x-axis: how good a backbone is as a vision-language model, with sources.

The paper averages published scores over a suite per family (A.4) and prints none of them, so
`capability.json` ships only what a public page states. More come from result files of
VLMEvalKit and lmms-eval through `import_scores`. Scores are percent, 0 to 100.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

GENERAL = (
    *("MMBench v1.1 (en)", "MMStar", "BLINK", "HallusionBench", "AI2D", "OCRBench", "MVBench"),
    *("VideoMME", "MMMU", "MathVista", "MathVision", "CountBenchQA", "RefCOCO (all)", "GPQA"),
    *("OmniSpatial", "RealWorldQA", "ERQA", "VSI-Bench"),
)
"""A.4's set for general-purpose models."""
SUITES: Mapping[str, tuple[str, ...]] = {
    "qwen": GENERAL,
    "paligemma": ("RefCOCO (all)", "AI2D", "CountBenchQA", "GQA"),
    "kosmos": ("RefCOCO (all)",),
}
"""What the beginning of a backbone's name says it is measured on; all but Qwen's specialised."""
KNOWN = frozenset(benchmark for suite in SUITES.values() for benchmark in suite)


@dataclass(frozen=True)
class Score:
    """One published or measured number. source: an address, or the file it was read from."""

    backbone: str
    benchmark: str
    score: float
    source: str

    def __post_init__(self) -> None:
        if self.benchmark not in KNOWN:
            raise ValueError(f"{self.benchmark!r} is in no suite of A.4; known: {sorted(KNOWN)}")
        if not 0 <= self.score <= 100:
            raise ValueError(f"{self.benchmark} of {self.backbone}: {self.score} is no percentage")
        if not self.source.strip():
            raise ValueError(f"{self.benchmark} of {self.backbone} has no source")


@dataclass(frozen=True)
class Capability:
    """A backbone's place on the x-axis: mean over the benchmarks used, times the weight.

    missing: benchmarks of its suite without a score. A mean over few is not the paper's.
    """

    backbone: str
    value: float
    used: tuple[Score, ...]
    missing: tuple[str, ...]
    weight: float = 1.0


def shipped() -> list[Score]:
    """The scores that come with the code."""
    text = resources.files("vlm4vla").joinpath("capability.json").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> list[Score]:
    """Scores from JSON of `capability.json`'s form."""
    return [Score(**fields) for fields in json.loads(text)["scores"]]


def family(backbone: str) -> str:
    """The key of SUITES for a backbone, tiny ones included; ValueError when there is none."""
    name = backbone.removeprefix("tiny-")
    for key in SUITES:
        if name.startswith(key):
            return key
    raise ValueError(f"A.4 names no benchmarks for {name}: add a suite for its family")


def capability(
    backbone: str, scores: Iterable[Score], down_weight: float = 1.0
) -> Capability | None:
    """The x-value of a backbone, None without any score; of repeated scores the last counts.

    down_weight: what specialised families' means are multiplied with (A.4 applies such a
    factor "reflecting their lack of general-task capability" and does not print it).
    """
    if not 0 < down_weight <= 1:
        raise ValueError(f"a down-weighting lies in (0, 1], not at {down_weight}")
    kind = family(backbone)
    found = {s.benchmark: s for s in scores if s.backbone == backbone}
    used = tuple(found[name] for name in SUITES[kind] if name in found)
    if not used:
        return None
    weight = 1.0 if kind == "qwen" else down_weight
    mean = sum(score.score for score in used) / len(used)
    missing = tuple(name for name in SUITES[kind] if name not in found)
    return Capability(backbone, weight * mean, used, missing, weight)


# Result files


@dataclass(frozen=True)
class Imported:
    """scores: found. skipped: tasks or files that belong to no benchmark of A.4."""

    scores: tuple[Score, ...]
    skipped: tuple[str, ...]


Rows = Sequence[Mapping[str, str]]


def _overall(scale: float, split: str | None = None) -> Callable[[Rows], float]:
    """The column Overall, of the row with this split or of the first."""

    def read(rows: Rows) -> float:
        row = next(r for r in rows if split is None or r["split"] == split)
        return scale * float(row["Overall"])

    return read


def _named(column: str) -> Callable[[Rows], float]:
    """`acc` of the row that is called Overall in a column."""
    return lambda rows: float(next(r for r in rows if r[column] == "Overall")["acc"])


def _hallusion(rows: Rows) -> float:
    """The mean of its three accuracies, as leaderboards print it."""
    row = next(r for r in rows if r["split"] == "Overall")
    return sum(float(row[name]) for name in ("aAcc", "fAcc", "qAcc")) / 3


_VLMEVALKIT: tuple[tuple[str, str, Callable[[Rows], float]], ...] = (
    (r"MMBench_DEV_EN_V11_acc\.csv", "MMBench v1.1 (en)", _overall(100)),
    (r"MMStar_acc\.csv", "MMStar", _overall(100)),
    (r"BLINK_acc\.csv", "BLINK", _overall(100)),
    (r"HallusionBench_score\.csv", "HallusionBench", _hallusion),
    (r"AI2D_TEST_acc\.csv", "AI2D", _overall(100)),
    (r"MMMU_DEV_VAL_acc\.csv", "MMMU", _overall(100, "validation")),
    (r"RealWorldQA_acc\.csv", "RealWorldQA", _overall(100)),
    (r"ERQA_acc\.csv", "ERQA", _overall(100)),
    (r"MathVista_MINI_.*score\.csv", "MathVista", _named("Task&Skill")),
    (r"MathVision_.*score\.csv", "MathVision", _named("Subject")),
    (r"GQA_TestDev_Balanced_acc\.csv", "GQA", _overall(1)),
)
"""End of a file's name -> benchmark, and how its percentage is read."""
_OCRBENCH = r"OCRBench_score\.json"

_LMMS_EVAL: Mapping[str, tuple[str, str, float]] = {
    "mmstar": ("MMStar", "average,none", 100),
    "mmmu_val": ("MMMU", "mmmu_acc,none", 100),
    "ai2d": ("AI2D", "exact_match,flexible-extract", 100),
    "ocrbench": ("OCRBench", "ocrbench_accuracy,none", 100),
    "realworldqa": ("RealWorldQA", "exact_match,none", 100),
    "videomme": ("VideoMME", "videomme_perception_score,none", 1),
    "vsibench": ("VSI-Bench", "vsibench_overall,none", 100),
    "gqa": ("GQA", "exact_match,none", 100),
}
"""Task -> benchmark, metric, factor to percent. `mmbench_en_dev` is version 1.0: not A.4's."""
_REFCOCO = (
    *("refcoco_bbox_rec_val", "refcoco_bbox_rec_testA", "refcoco_bbox_rec_testB"),
    *("refcoco+_bbox_rec_val", "refcoco+_bbox_rec_testA", "refcoco+_bbox_rec_testB"),
    *("refcocog_bbox_rec_val", "refcocog_bbox_rec_test"),
)
_REFCOCO_METRIC = "refcoco_ACC@0.5,none"


def import_scores(path: Path, backbone: str) -> Imported:
    """Scores of one result file of VLMEvalKit (CSV, JSON) or lmms-eval (JSON).

    ValueError for a file of neither, or one that lacks the number it should hold.
    """
    data = path.read_bytes()
    source = f"{path.name} (sha256 {hashlib.sha256(data).hexdigest()[:16]})"
    try:
        if path.suffix == ".csv":
            return _from_csv(path.name, data.decode(), backbone, "VLMEvalKit: " + source)
        content = json.loads(data)
        if isinstance(content, dict) and isinstance(content.get("results"), dict):
            return _from_lmms_eval(content["results"], backbone, "lmms-eval: " + source)
        if re.search(_OCRBENCH + "$", path.name):
            score = float(content["Final Score Norm"])
            return Imported((Score(backbone, "OCRBench", score, "VLMEvalKit: " + source),), ())
    except (KeyError, StopIteration, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"{path.name} does not hold what its name says ({error!r}); import the toolkit's own"
            " result file, unchanged"
        ) from error
    return Imported((), (path.name,))


def _from_csv(name: str, text: str, backbone: str, source: str) -> Imported:
    for pattern, benchmark, read in _VLMEVALKIT:
        if re.search(rf"(^|_){pattern}$", name):
            score = read(list(csv.DictReader(io.StringIO(text))))
            return Imported((Score(backbone, benchmark, round(score, 4), source),), ())
    return Imported((), (name,))


def _from_lmms_eval(results: Mapping[str, Any], backbone: str, source: str) -> Imported:
    scores = [
        Score(backbone, benchmark, round(scale * float(results[task][metric]), 4), source)
        for task, (benchmark, metric, scale) in _LMMS_EVAL.items()
        if task in results
    ]
    used = {task for task in _LMMS_EVAL if task in results}
    if all(split in results for split in _REFCOCO):
        parts = [float(results[split][_REFCOCO_METRIC]) for split in _REFCOCO]
        mean = round(100 * sum(parts) / len(parts), 4)
        scores.append(Score(backbone, "RefCOCO (all)", mean, source))
        used |= set(_REFCOCO)
    return Imported(tuple(scores), tuple(task for task in results if task not in used))
