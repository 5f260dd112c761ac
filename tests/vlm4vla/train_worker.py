"""Trainings that several processes do together over gloo, without Ray; one process when run so.

python -m tests.vlm4vla.train_worker RANK WORKERS FOLDER: does FOLDER/plans.json in turn.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts.tabletop import demonstrate
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.engine import Engine
from vlm4vla.policy_job import TrainJob
from vlm4vla.run import Run
from vlm4vla.train import train

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2, 4, 6), warmup=1))
ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    pass


class FolderSink:
    """Checkpoints in a folder that the workers share.

    stop_after: reports after which every worker stops, as if killed but for its last checkpoint.
    """

    def __init__(self, folder, stop_after=None, noticed_at=None):
        self.folder, self.stop_after, self.noticed_at = folder, stop_after, noticed_at
        self.rows, self.parts, self.asked = [], [], 0
        folder.mkdir(parents=True, exist_ok=True)

    def candidates(self):
        done = self.folder.glob("step-*/complete")
        return sorted((int(path.parent.name[5:]) for path in done), reverse=True)

    def fetch(self, step, state):
        return self.folder / f"step-{step:08d}"

    def publish(self, part):
        to = self.folder / f"step-{part.step:08d}"
        shutil.copytree(part.folder, to, dirs_exist_ok=True)
        (to / f"done-{part.rank}").touch()

    def commit(self, part):
        self.parts.append(part)
        to = self.folder / f"step-{part.step:08d}"
        while len(list(to.glob("done-*"))) < part.parts:
            time.sleep(0.01)
        (to / "complete").touch()

    def report(self, rows):
        self.rows += rows

    def notice(self):
        self.asked += 1
        if self.asked == self.stop_after:
            time.sleep(0.5)  # the last checkpoint is still on its way
            raise Stopped
        return bool(self.rows) and self.rows[-1]["step"] + 1 == self.noticed_at

    def weights(self, step):
        return load_file(self.folder / f"step-{step:08d}" / "policy.safetensors")


@dataclass(frozen=True)
class Plan:
    """A training into folder `name`; a name that was there before is continued."""

    name: str
    engine: dict
    backbone: str = "tiny-paligemma-1"
    steps: int = 6
    batch: int = 8
    stop_after: int | None = None


def make_dataset(folder):
    demos = [demonstrate("reach", tabletop.DEMONSTRATIONS_FROM + i, 0) for i in range(8)]
    data = encode_shard(demos, 0)
    (folder / "shard-00000.parquet").write_bytes(data)
    manifest = build_manifest("tabletop", "test", [("shard-00000.parquet", data)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def run_plan(plan, folder, dataset):
    """The rows that worker 0 reported."""
    fields = {"init": "scratch", "steps": plan.steps, "batch": plan.batch}
    run = Run(plan.backbone, "tabletop", **fields).resolved(ROW.recipe)
    scratch = folder / "scratch" / plan.name
    job = TrainJob(run, ROW, dataset, scratch, Engine(**plan.engine), log_every=1)
    sink = FolderSink(folder / plan.name, plan.stop_after)
    try:
        train(job, sink)
    except Stopped:
        assert plan.stop_after is not None
    return sink.rows


def together(plans, folder, dataset, workers=2, seconds=200):
    """What `run_plan` gives for each plan, done by so many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"dataset": str(dataset), "plans": [asdict(plan) for plan in plans]}
    (folder / "plans.json").write_text(json.dumps(described))
    (folder / "meeting").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.vlm4vla.train_worker"]
    started = [
        subprocess.Popen([*command, str(rank), str(workers), str(folder)], cwd=ROOT)
        for rank in range(workers)
    ]
    try:
        assert [process.wait(seconds) for process in started] == [0] * workers
    finally:
        for process in started:
            process.kill()
    return json.loads((folder / "rows.json").read_text())


def main(rank, workers, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "meeting"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    told = json.loads((folder / "plans.json").read_text())
    plans = [Plan(**fields) for fields in told["plans"]]
    rows = [run_plan(plan, folder, Path(told["dataset"])) for plan in plans]
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = sys.argv[1]
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
