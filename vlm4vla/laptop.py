"""The study at laptop size: the same tables with tiny backbones on the tabletop.

What a table varies is kept and scaled to where tiny models learn. Benchmarks that a table
compares become one, and so do sizes of one architecture, whose tiny variants differ in nothing
that a policy uses: such entries share trainings. It shows that a study works, not what the
paper's models do.
"""

from __future__ import annotations

from dataclasses import replace

from vlm4vla.backbones import BACKBONES, backbone
from vlm4vla.run import Run
from vlm4vla.stages import stage_of, tiny_stage

BENCHMARK = "tabletop"
LR_SCALE = 100
"""The tabletop's rate over CALVIN's: 2e-3 to 2e-5."""
IMAGE_PX = {224: 224, 512: 336, 768: 448}
"""Table 7's sizes, nearer together: a tiny model's step costs seconds at 768."""
LEARNED = ("table1", "table3", "table5", "table8")
"""Tables whose runs train as long as the tabletop's recipe says; the others show their shape."""
SHAPE_STEPS = 200
CHECKPOINTS = (50, 100, 150, 200, 250)
"""Steps that Figure 4's boxes are made of, where the paper has 10k to 30k."""


def tiny(name: str) -> str:
    """The backbone that stands for one of the paper's: of its architecture, the first."""
    rows = (row for row in BACKBONES.values() if not row.tiny)
    alike = {row.architecture: row.name for row in reversed(list(rows))}
    known = BACKBONES.get(name)
    return f"tiny-{alike[known.architecture] if known else name}"


def scaled(lr: float) -> float:
    return lr * LR_SCALE


def shrink(run: Run, table: str) -> Run:
    """The tiny counterpart of a run of the paper, as long as its table deserves.

    A run that is tiny already stays as it is. ValueError for what has no tiny counterpart.
    """
    if run.backbone.startswith("tiny-"):
        return run
    return replace(
        run,
        # A stage belongs to its own backbone.
        backbone=backbone(f"tiny-{run.backbone}" if run.aux else tiny(run.backbone)).name,
        benchmark=BENCHMARK,
        aux=None if run.aux is None else tiny_stage(stage_of(run.aux).name).id,
        lr=None if run.lr is None else scaled(run.lr),
        steps=None if table in LEARNED else SHAPE_STEPS,
        image_px=IMAGE_PX.get(run.image_px, run.image_px),
    )
