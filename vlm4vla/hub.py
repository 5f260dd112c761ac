"""A trained policy as a folder for others, read back with `VLM4VLA.from_pretrained`.

Such a folder holds `config.json`, `model.safetensors`, a model card and, for full-size
backbones, the tokenizer's files. Reading it needs neither Ray nor DeepSpeed nor the network.

    policy = VLM4VLA.from_pretrained("folder")
    actions = policy.act([Observation(image=frame, instruction="reach the red block")])
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.benchmarks import benchmark
from vlm4vla.backbones import Backbone, backbone
from vlm4vla.export import DESCRIPTION, WEIGHTS, load_policy
from vlm4vla.policies import VlmPolicy
from vlm4vla.tokenizers import TransformersTokenizer, tokenizer_of

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "vlm4vla"
Rows = Sequence[Mapping[str, Any]]


class VLM4VLA:
    """Loads exported policies the way transformers loads models."""

    @staticmethod
    def from_pretrained(folder: str | Path) -> VlmPolicy:
        """The policy, in evaluation mode; ValueError if the folder is no exported policy."""
        config = Path(folder) / CONFIG
        if not config.exists() or json.loads(config.read_text()).get("model_type") != MODEL_TYPE:
            raise ValueError(
                f"{folder} holds no exported policy ({CONFIG} with model_type {MODEL_TYPE!r}): "
                "make one with jobs/export_policy.py"
            )
        return load_policy(Path(folder), CONFIG, MODEL)


def export(trained: Path, out: Path, figures: Mapping[str, Any], scores: Rows = ()) -> None:
    """Write `out` from a checkpoint's folder with its policy.safetensors and policy.json.

    figures: the training's last (name to number). scores: rows of success rates of this policy,
    its controls among them, with benchmark, task, checkpoint (what was played), horizon,
    successes, trials, low and high.
    """
    description = json.loads((trained / DESCRIPTION).read_text())
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trained / WEIGHTS, out / MODEL)
    config = {"model_type": MODEL_TYPE, "architectures": ["VLM4VLA"], **description}
    (out / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    row = backbone(description["run"]["backbone"])
    tokenizer = tokenizer_of(row)
    if isinstance(tokenizer, TransformersTokenizer):
        tokenizer.save(out)
    (out / CARD).write_text(card(row, description, figures, scores))


def card(
    row: Backbone, description: Mapping[str, Any], figures: Mapping[str, Any], scores: Rows
) -> str:
    """The model card, with the metadata block that model hubs read."""
    run, spec = description["run"], description["action_spec"]
    target = benchmark(run["benchmark"])
    frozen = ", ".join(run["freeze"]) or "nothing"
    closes = "+1" if spec["gripper_close"] > 0 else "-1"
    lines = [
        "---",
        f"base_model: {row.hub_id}",
        "library_name: vlm4vla",
        "pipeline_tag: robotics",
        "tags: [robotics, vision-language-action]",
        "---",
        f"# {row.name} on {target.name}",
        "",
        f"A robot policy: {row.name} reads one image and an instruction and predicts"
        f" {description['chunk']} actions (paper: VLM4VLA, arXiv 2601.03309).",
        "",
        "```python",
        "from vlm4vla.hub import VLM4VLA",
        'policy = VLM4VLA.from_pretrained("this folder")',
        "```",
        "",
        "## Training",
        "",
        f"- profile `{run['profile']}`, {run['steps']} steps of {run['batch']} samples, learning"
        f" rate {run['lr']:g}, seed {run['seed']}",
        f"- starts from: {run['init']}; frozen: {frozen}; prompt `{run['prompt']}`, images"
        f" {run['image_px']} px; data: {run['dataset'] or target.dataset}",
        *(f"- last step's {name}: {value:.4g}" for name, value in figures.items()),
        "",
        "## Actions",
        "",
        f"float32 [{description['chunk']}, 7]: translation (1.0 is {spec['translation_scale']:g}"
        f" m), rotation ({spec['rotation']}, 1.0 is {spec['rotation_scale']:g} rad), gripper"
        f" ({closes} closes), in the {spec['frame']} frame.",
        "",
        "## Success",
        "",
        *_scores(scores),
        "",
        "## Limits",
        "",
        f"Trained for {target.name} alone. It knows no other camera, robot or scene, and stops at"
        " nothing: never run it on a robot without limits of force and a person at the switch.",
        "",
    ]
    return "\n".join(lines)


def _scores(scores: Rows) -> list[str]:
    if not scores:
        return ["Not evaluated when this was exported."]
    head = [
        "| benchmark | task | checkpoint | horizon | success | 95% interval | trials |",
        "|---|---|---|---|---|---|---|",
    ]
    return head + [
        f"| {s['benchmark']} | {s['task']} | {s['checkpoint']} | {s['horizon']} |"
        f" {100 * s['successes'] / s['trials']:.1f}% |"
        f" {100 * s['low']:.0f}–{100 * s['high']:.0f}% | {s['trials']} |"
        for s in scores
    ]
