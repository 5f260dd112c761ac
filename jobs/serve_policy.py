"""Serve a policy by openpi's protocol, so that robots and other harnesses can ask it.

On this machine's GPU, where it has one:

    .venv/bin/python jobs/serve_policy.py --policy RUN --port 8000
    .venv/bin/python jobs/serve_policy.py --policy exported/
    .venv/bin/python jobs/serve_policy.py --backbone tiny-qwen3vl-2b     (untrained, to try it)

Clients send {"image": uint8 [H, W, 3], "prompt": text} and get {"actions": float32 [k, 7]};
the vla-eval harness, which shows no token, asks at ws://127.0.0.1:PORT/vla-eval.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import torch
from vla_platform import artifacts, cli
from vla_platform.candidates import policy_files
from vla_platform.serving import LOOPBACK, TOKEN, PolicyServer, check_address
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from vlm4vla.backbones import backbone
from vlm4vla.export import load_policy
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import POLICY_KINDS, Run


def arguments() -> cli.argparse.Namespace:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.epilog = f"Clients must show the token in {TOKEN}, where that is set."
    served = parser.add_mutually_exclusive_group(required=True)
    served.add_argument(
        "--policy", metavar="NAME", help="RUN or RUN@STEP of the store, a FOLDER, hf:ORG/NAME"
    )
    served.add_argument("--backbone", help="serve this one untrained")
    parser.add_argument("--kind", choices=POLICY_KINDS, default=POLICY_KINDS[0], help="its policy")
    parser.add_argument("--benchmark", default="tabletop", help="units and chunk of --backbone")
    parser.add_argument("--host", default=LOOPBACK, help="others than this machine need a token")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one")
    parser.add_argument(
        "--batch",
        type=cli.positive,
        default=16,
        help="observations per batch, which is computed whole: 1 for a single robot",
    )
    parser.add_argument(
        "--horizon", type=cli.positive, help="actions of a chunk for vla-eval (default: half)"
    )
    parser.add_argument("--threads", type=cli.positive, default=os.cpu_count(), help="of the model")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    token = os.environ.get(TOKEN) or None
    check_address(args.host, token)
    policy, identity = trained(args.policy, args.store) if args.policy else untrained(args)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    declared = {
        "policy": identity,
        "backbone": policy.row.name,
        "chunk": policy.chunk,
        "action_spec": asdict(policy.action_spec) if policy.action_spec else None,
    }
    horizon = args.horizon or max(1, policy.chunk // 2)
    server = PolicyServer(policy, policy.resize, declared, token, args.batch, args.threads, horizon)
    with server.listen(args.host, args.port) as listening:
        address = "ws://{}:{}".format(*listening.socket.getsockname()[:2])
        cli.write_json(args.json, [{"url": address, **declared}])
        print(f"serving {identity} of {policy.row.name} at {address}", flush=True)
        listening.serve_forever()
    return 0


def trained(name: str, store: str) -> tuple[VlmPolicy, str]:
    """The policy and its identity, the sha256 of its weights."""
    weights, description = policy_files(name, open_store(store))
    policy = load_policy(weights.parent, description.name, weights.name)
    return policy, artifacts.file_digest(weights)


def untrained(args: Any) -> tuple[VlmPolicy, str]:
    row = benchmark(args.benchmark)
    run = Run(backbone(args.backbone).name, row.name, policy=args.kind, seed=args.seed)
    overrides = row.recipe.overrides
    policy = build_policy(run, row.chunk, overrides=overrides, action_spec=row.action_spec)
    return policy.eval(), f"untrained-{run.id(row)}"


if __name__ == "__main__":
    cli.run(main)
