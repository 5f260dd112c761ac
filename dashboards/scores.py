"""A picture of a sweep's scores: success by backbone and task, with 95% intervals.

    python -m dashboards.scores rows.json scores.svg

rows.json is what `jobs/backbone_sweep.py --json` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"trained": "#2563eb", "untrained": "#9ca3af", "wrong-word": "#f59e0b"}
Row = Mapping[str, Any]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel per task; a bar per backbone and kind of checkpoint."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    plt.rcParams.update({"svg.hashsalt": "scores", "font.size": 9, "font.family": "sans-serif"})
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(2.6 * len(tasks), 3.0), sharey=True, squeeze=False
    )
    for panel, task in zip(panels[0], tasks, strict=True):
        _panel(panel, [row for row in rows if row["task"] == task], task)
    panels[0][0].set_ylabel("success, % (95% Wilson interval)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _panel(panel: Axes, rows: Sequence[Row], task: str) -> None:
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    labels = list(dict.fromkeys(row["checkpoint"] for row in rows))
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        mine = [row for row in rows if row["checkpoint"] == label and row["trials"]]
        places = [backbones.index(row["backbone"]) + (number + 0.5) * width - 0.4 for row in mine]
        rates = [100 * row["successes"] / row["trials"] for row in mine]
        below = [max(0, rate - 100 * row["low"]) for rate, row in zip(rates, mine, strict=True)]
        above = [max(0, 100 * row["high"] - rate) for rate, row in zip(rates, mine, strict=True)]
        panel.bar(places, rates, width, label=label, color=COLOURS.get(label))
        panel.errorbar(places, rates, [below, above], fmt="none", ecolor="#111827", capsize=2)
    panel.set_title(task)
    panel.set_ylim(0, 100)
    panel.spines[["top", "right"]].set_visible(False)
    names = [name.removeprefix("tiny-") for name in backbones]
    panel.set_xticks(range(len(backbones)), names, rotation=25, ha="right")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
