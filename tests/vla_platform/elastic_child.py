"""A training on two nodes of which one goes away; a process of its own, for its own cluster.

python -m tests.vla_platform.elastic_child FOLDER: FOLDER/told.json gets the workers of each
attempt and the losses by step.
"""

import json
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray
import torch.distributed as dist
from ray.cluster_utils import Cluster
from vla_platform import curves, training
from vla_platform.cluster import CLUSTERS
from vla_platform.store import open_store

from tests.vlm4vla.train_worker import ROW, make_dataset
from vlm4vla.engine import Engine
from vlm4vla.policy_job import make_job
from vlm4vla.run import Run
from vlm4vla.train import train


def waiting_train(folder, job, sink):
    """The real loop; with two workers it waits after step 3 for one of them to be taken."""
    notice, asked = sink.notice, []
    if dist.get_rank() == 0:
        with (folder / "attempts").open("a") as file:
            file.write(f"{dist.get_world_size()}\n")

    def wait_at_the_third():
        asked.append(1)
        if dist.get_world_size() == 2 and len(asked) == 3:
            deadline = time.monotonic() + 20
            while not sink.candidates() and time.monotonic() < deadline:
                time.sleep(0.1)  # the checkpoint of step 2 is on its way
            (folder / "take").touch()
            time.sleep(120)
        return notice()

    sink.notice = wait_at_the_third
    train(replace(job, log_every=1), sink)


def main(folder):
    store = open_store(str(folder / "store"))
    data = folder / "store" / "datasets" / "toy"
    data.mkdir(parents=True)
    make_dataset(data)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    threading.Thread(target=take, args=(folder, cluster, second), daemon=True).start()
    run = Run("tiny-paligemma-1", "tabletop", init="scratch", steps=6, batch=8)
    job = partial(make_job, run.resolved(ROW.recipe), ROW, Engine(), False)
    setting = replace(CLUSTERS["laptop"], workers=(1, 2), cpus_per_worker=0.9)
    loop = partial(waiting_train, folder)
    training.fit(loop, [training.Task("elastic", "elastic", 6, "toy", job)], store, setting)
    attempts = (folder / "attempts").read_text().split()
    losses = {int(row["step"]): row["loss"] for row in curves.read(store, "elastic")}
    (folder / "told.json").write_text(json.dumps({"attempts": attempts, "losses": losses}))
    # In this order: a driver whose node goes first ends with an error.
    ray.shutdown()
    cluster.shutdown()


def take(folder, cluster, node):
    while not (folder / "take").exists():
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
