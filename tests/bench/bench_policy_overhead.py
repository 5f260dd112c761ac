"""Forward + backward of a policy against the bare VLM's at the same sequence length.

    PYTHONPATH=. .venv/bin/python tests/bench/bench_policy_overhead.py

Writes policy_overhead.json beside itself. Per family's tiny model, batch 64, one thread,
processor time (other processes then weigh little). The two are interleaved in random order.

bare: transformers' forward to the last hidden states, and backward from those at the last
token; the query's slot holds an ordinary token. policy: the same plus query, head and loss.
native: transformers' own path with its attention mask and per-image loop, for comparison.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.bench.measured import write
from vlm4vla.families.packed_attention import NAME
from vlm4vla.policies import ActionQueryPolicy, build_policy
from vlm4vla.run import Run

ROWS = (
    "tiny-paligemma-1",
    "tiny-paligemma-2",
    "tiny-kosmos-2",
    "tiny-qwen2.5vl-3b",
    "tiny-qwen3vl-2b",
    "tiny-qwen3vl-30b-a3b",
)
BATCH = 64
CHUNK = 4
ROUNDS = 40
OUT = Path(__file__).with_suffix("").parent / "policy_overhead.json"


def steps(policy: ActionQueryPolicy) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed: each returns a scalar to differentiate."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH, 112, 112, 3), dtype=np.uint8)
    inputs = policy.prepare(images, ["reach the red block"] * BATCH)
    actions, mask = torch.rand(BATCH, CHUNK, 7) * 2 - 1, torch.ones(BATCH, CHUNK)

    def bare() -> torch.Tensor:
        return policy.family.hidden(policy.vlm, inputs, policy.recipe)[:, -1].sum()

    def native() -> torch.Tensor:
        return native_hidden(policy, inputs)[:, -1].sum()

    return {
        "bare": bare,
        "policy": lambda: policy.loss(inputs, actions, mask)[0],
        "native": native,
    }


def native_hidden(policy: ActionQueryPolicy, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    vlm, ids, image = policy.vlm, inputs["input_ids"], inputs["image_mask"]
    common = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    if policy.row.family == "paligemma":
        pixels = inputs["pixel_values"]
        return vlm.model(
            **common, pixel_values=pixels, token_type_ids=(~image).long()
        ).last_hidden_state
    if policy.row.family == "kosmos2":
        return policy.family.hidden(vlm, inputs, policy.recipe)
    config = vlm.model.visual.config
    config._attn_implementation = "sdpa"
    side = int(inputs["pixel_values"].shape[1] ** 0.5)
    out = vlm.model(
        **common,
        pixel_values=inputs["pixel_values"].flatten(0, 1),
        image_grid_thw=torch.tensor([[1, side, side]] * len(ids)),
        mm_token_type_ids=image.int(),
    )
    config._attn_implementation = NAME
    return out.last_hidden_state


def seconds(step: Callable[[], torch.Tensor], policy: ActionQueryPolicy) -> float:
    policy.zero_grad(set_to_none=True)
    start = time.process_time()
    step().backward()
    return time.process_time() - start


def measure(name: str) -> dict[str, float | int | str]:
    policy = build_policy(Run(name, "tabletop", init="scratch"), CHUNK).train()
    todo = steps(policy)
    taken: dict[str, list[float]] = {key: [] for key in todo}
    for index in range(ROUNDS + 3):
        for key in random.sample(list(todo), len(todo)):
            spent = seconds(todo[key], policy)
            if index >= 3:
                taken[key].append(spent)
    # The least disturbed quarter of the rounds: what others do only ever adds time.
    best = {k: statistics.mean(sorted(v)[: ROUNDS // 4]) for k, v in taken.items()}
    return {
        "name": name,
        "overhead_percent": round(100 * (best["policy"] / best["bare"] - 1), 2),
        "samples_per_second": round(BATCH / best["policy"]),
        "native_samples_per_second": round(BATCH / best["native"]),
        "bare_ms": round(1e3 * best["bare"], 2),
        "policy_ms": round(1e3 * best["policy"], 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    random.seed(0)
    rows = [measure(name) for name in ROWS]
    for row in rows:
        print(row)
    about = {"batch": BATCH, "threads": 1, "rounds": ROUNDS}
    write(OUT, {**about, "rows": rows})


if __name__ == "__main__":
    main()
