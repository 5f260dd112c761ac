"""Room for a training: counted on nodes, and asked of a real cluster that has too little."""

from dataclasses import replace

import pytest
from vla_platform import room
from vla_platform.assignments import PoolError
from vla_platform.cluster import CLUSTERS, Limits

ON_GPUS = CLUSTERS["cluster"]


def test_workers_are_counted_node_by_node():
    assert room.workers(ON_GPUS, [{"CPU": 80.0, "GPU": 8.0}]) == 8
    assert room.workers(ON_GPUS, [{"CPU": 30.0, "GPU": 8.0}, {"CPU": 30.0}]) == 3
    assert room.workers(ON_GPUS, [{"CPU": 7.0, "GPU": 1.0}, {"CPU": 7.0, "GPU": 1.0}]) == 0
    assert room.workers(CLUSTERS["laptop"], [{"CPU": 2.0}]) == 4


def test_a_shared_gpu_holds_one_worker():
    assert room.workers(CLUSTERS["workstation"], [{"CPU": 64.0, "GPU": 4.0}]) == 4


def test_a_cluster_without_room_is_a_sentence_and_a_full_one_is_not(ray_cluster):
    """The cluster of the tests has 4 CPUs and nobody who adds nodes."""
    soon = replace(CLUSTERS["laptop"], limits=Limits(place=0.5))
    room.require(replace(soon, cpus_per_worker=2, workers=(2, 9)))
    with pytest.raises(PoolError, match=r"takes 3 workers at least, of 2 CPU each") as lacking:
        room.require(replace(soon, cpus_per_worker=2, workers=(3, 9)))
    assert "room for 2: add nodes, or ask for less by --workers MIN MAX" in str(lacking.value)
    with pytest.raises(PoolError, match="GPU"):
        room.require(replace(ON_GPUS, limits=Limits(place=0.5)))
