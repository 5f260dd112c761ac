"""Pretrain a tiny vision-language model on questions about the tabletop; writes its weights."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from vla_platform import cli

from vlm4vla.aux.pretrain_tiny import Plan, StuckError, pretrain
from vlm4vla.backbones import backbone
from vlm4vla.weights import save_tiny, tiny_file


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--backbone", required=True, help="a tiny row, such as tiny-qwen3vl-2b")
    parser.add_argument("--seed", type=int, default=0, help="the first seed to try")
    parser.add_argument("--steps", type=cli.positive, default=Plan.steps)
    parser.add_argument("--threads", type=cli.positive, default=1)
    parser.add_argument("--output", type=Path, help="instead of the package's own file")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the result here")
    return parser.parse_args()


def main() -> int:
    args, began = arguments(), time.monotonic()
    logging.getLogger("vlm4vla").setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    row = backbone(args.backbone)
    file = args.output or tiny_file(row)
    try:
        done = pretrain(row.name, args.seed, replace(Plan(), steps=args.steps))
    except StuckError as error:
        print(error)
        return 1
    save_tiny(done.policy.vlm, file)
    seconds = time.monotonic() - began
    result = {"backbone": row.name, "seed": done.seed, "seconds": round(seconds), "file": str(file)}
    cli.write_json(args.json, [{**result, "accuracy": done.accuracy}])
    print(f"{row.name}: seed {done.seed}, {seconds:.0f} s, {file} ({file.stat().st_size} bytes)")
    for kind, share in done.accuracy.items():
        print(f"  {kind:10} {share:6.1%}")
    return 0


if __name__ == "__main__":
    cli.run(main)
