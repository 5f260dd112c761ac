"""The model of `docs/scale.md`: nothing lost, equal to what paper says, and never below a bound."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from envs.benchmarks import benchmark
from tests.bench.scale_model import Costs, Play, Played, Pool, PoolSize, Simulator, bounds, play
from tests.bench.scale_study import PRESET, Machine, Study, Work, draw_steps

COSTS = Costs(simulators={}, driver_s=0.002, request_s=0.1)
SIZE = PoolSize(simulators=8, slots=4, replicas=1, batch=4, batch_s=0.05)
PLAYS = [Play(chunks=5 + n % 7, chunk_s=0.1, reset_s=0.3) for n in range(60)]


def test_every_episode_ends_once():
    played = Pool(PLAYS, SIZE, COSTS).run()
    assert played.episodes == len(PLAYS)
    assert played.chunks == sum(each.chunks for each in PLAYS)
    assert played.simulators_s == pytest.approx(sum(0.3 + 0.1 * p.chunks for p in PLAYS))
    assert played.driver_s == pytest.approx(len(PLAYS) * COSTS.driver_s)


def test_one_simulator_is_a_sum():
    """Alone, an observation waits for company twice, is answered, and its chunk is executed."""
    size = replace(SIZE, simulators=1)
    first = COSTS.wait_batch_s + size.batch_s + 0.1
    later = first + min(COSTS.wait_call_s, COSTS.wait_call_share * (first - 0.1))
    expected = 0.3 + first + 9 * later + COSTS.request_s + COSTS.driver_s
    assert Pool([Play(10, 0.1, 0.3)], size, COSTS).run().wall_s == pytest.approx(expected)


@pytest.mark.parametrize("batch_s", [0.005, 0.2])
def test_more_simulators_are_never_slower(batch_s):
    """By more than the company that one batch waits for: couriers' calls fall differently."""
    walls = []
    for simulators in (1, 4, 8, 16, 32):
        size = replace(SIZE, simulators=simulators, batch_s=batch_s)
        walls.append(Pool(PLAYS, size, COSTS).run().wall_s)
        assert walls[-1] >= max(bounds(PLAYS, size, COSTS).values())
    assert all(b <= 1.02 * a for a, b in pairwise(walls))


def test_the_inference_bound_is_reached():
    """Simulators that take no time: batches follow each other, full but for the first."""
    plays = [Play(chunks=50, chunk_s=0.0) for _ in range(64)]
    size = PoolSize(simulators=64, slots=8, replicas=1, batch=16, batch_s=1.0)
    bound = bounds(plays, size, COSTS)["inference"]
    assert bound == 64 * 50 / 16
    played = Pool(plays, size, COSTS).run()
    assert bound <= played.inference_s <= played.wall_s
    assert played.wall_s == pytest.approx(bound, rel=0.02)


def test_the_stores_limit_holds():
    slow = replace(COSTS, puts_per_s=2.0)
    played = Pool(PLAYS, replace(SIZE, simulators=60), slow).run()
    assert played.wall_s >= (len(PLAYS) - 1) / slow.puts_per_s
    assert played.wall_s > 1.5 * Pool(PLAYS, replace(SIZE, simulators=60), COSTS).run().wall_s


def test_shared_cores_are_a_bound():
    size = replace(SIZE, simulators=32, slots=32, cores=2, batch_s=0.0)
    work = sum(p.reset_s + p.chunks * p.chunk_s for p in PLAYS)
    assert Pool(PLAYS, size, COSTS).run().wall_s == pytest.approx(work / 2, rel=0.05)


def test_a_frame_per_look():
    simulator = Simulator(step_s=0.01, frame_s=0.1, reset_s=1.0)
    found = play(simulator, steps=200, horizon=8)
    assert found.chunks == 25
    assert found.chunks * found.chunk_s == pytest.approx(200 * 0.01 + 25 * 0.1)


ROW = replace(
    benchmark("simpler"),
    trials=25,
    recipe=replace(benchmark("simpler").recipe, steps=1_000, checkpoints=(500, 1_000)),
)
LOOK_S = 700.0


class Known(dict):
    """Every look takes the same, however many its episodes are."""

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        return Played(LOOK_S, episodes=key[1] * len(ROW.horizons)), "simulators"


def studied(runs, **machine):
    work = Work(ROW, gpu_s=7_000.0, forward_s=0.0, policy_bytes=0.0, state_bytes=0.0, score=0.5)
    size = Machine(**{"gpus": 8, "simulators": 8, "concurrent": 1, "workers": 7, **machine})
    return Study([work] * runs, size, replace(Costs(), request_s=0.0), Known()).run()


def test_a_study_plays_every_episode_once_and_takes_the_sum_of_its_parts():
    """The first checkpoint is played while the second is trained; then its own four looks."""
    assert PRESET.checkpoint_every == 500
    found = studied(runs=1)
    per_checkpoint = len(ROW.tasks) * ROW.trials * len(ROW.horizons)
    assert found["episodes"] == 2 * per_checkpoint
    looks = -(-len(ROW.tasks) * ROW.trials // 30)
    seconds = Costs.train_start_s + 500 + Costs.start_s + 2 * looks * LOOK_S
    assert found["wall_days"] * 86_400 == pytest.approx(seconds)


def test_runs_at_a_time_divide_the_wall_time():
    one, two = studied(runs=4), studied(runs=4, gpus=16, concurrent=2)
    assert two["wall_days"] == pytest.approx(one["wall_days"] / 2)
    assert two["episodes"] == one["episodes"]
    assert two["gpu_hours"] == pytest.approx(one["gpu_hours"])


@pytest.mark.parametrize("score", [0.3, 0.72, 1.0])
def test_drawn_chains_score_what_they_are_drawn_for(score):
    row, rng = benchmark("calvin"), np.random.default_rng(0)
    assert draw_steps(row, 0.0, COSTS, rng) == 360
    assert draw_steps(row, 1.0, COSTS, rng) == 5 * COSTS.subtask_steps
    costs = replace(COSTS, subtask_steps=0.0)
    failed = np.mean([draw_steps(row, score, costs, rng) > 0 for _ in range(2_000)])
    each = next(p for p in np.linspace(0, 1, 1001) if sum(p**n for n in range(1, 6)) / 5 >= score)
    assert failed == pytest.approx(1 - each**5, abs=0.04)
