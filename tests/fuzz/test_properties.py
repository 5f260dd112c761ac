"""What holds for every value: round trips, keys, inverses, ids, and figures that are figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import socket
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from vla_platform import remote
from vla_platform.ledger import Ledger, _digest, _loose
from vla_platform.rows import ROWS, BrokenRowsError, Cell, Row, decode_row, encode, encode_row
from vla_platform.store import open_store

from envs import wire
from tests.fuzz.stored import BENCHMARK, CELL, FAST, RUN, STATISTICS, row
from vlm4vla import analysis, study
from vlm4vla.data.normalise import CHAINS, Normaliser, Statistics
from vlm4vla.run import FREEZE_GROUPS, INITS, PROFILES, PROMPTS, Run

PROPERTIES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {}
"""The checks and what they are given, for `tests/bench/fuzz.py`, which asks them more often."""


def always(**strategies: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    def wrap(check: Callable[..., None]) -> Callable[[], None]:
        PROPERTIES[check.__name__.removeprefix("test_")] = check, strategies
        few = int(os.environ.get("VLA_FUZZ_EXAMPLES", "15"))
        return settings(max_examples=few, deadline=None, database=None)(given(**strategies)(check))

    return wrap


TEXT = st.text(max_size=20)
INT64 = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SENT = arrays.arrays(st.sampled_from([*wire.DTYPES, ">f4", ">i8"]), SHAPES)


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, a.dtype.kind == "f")


def turn(array: np.ndarray) -> np.ndarray:
    """Not contiguous, where it can be."""
    return array[::-1] if array.ndim else array


@always(kind=TEXT, data=st.dictionaries(TEXT, PLAIN, max_size=4), sent=st.dictionaries(TEXT, SENT))
def test_a_message_survives_the_wire(kind, data, sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        turned = {name: turn(array) for name, array in sent.items()}
        wire.send(ours, wire.Message(kind, data, turned))
        found = wire.receive(theirs)
    assert (found.kind, repr(found.data)) == (kind, repr(data))
    for name, array in sent.items():
        assert alike(found.arrays[name], turn(array.astype(array.dtype.newbyteorder("="))))


@always(
    value=st.dictionaries(
        TEXT | st.binary(max_size=4).filter(lambda key: not key.startswith(b"__np")),
        PLAIN | SENT | st.binary(max_size=9) | arrays.from_dtype(np.dtype("f4")),
        max_size=4,
    )
)
def test_a_value_survives_msgpack(value):
    found = remote.unpack(remote.pack(value))
    assert found.keys() == value.keys()
    for key, sent in value.items():
        if isinstance(sent, np.ndarray):
            assert alike(found[key], sent)
        else:
            assert repr(found[key]) == repr(sent)


RUNS = st.builds(
    Run,
    backbone=TEXT,
    benchmark=st.just(BENCHMARK.name),
    dataset=st.none() | TEXT,
    aux=st.none() | TEXT,
    freeze=st.lists(st.sampled_from(FREEZE_GROUPS)).map(tuple),
    init=st.sampled_from(INITS),
    lr=st.none() | st.floats(1e-9, 10),
    steps=st.none() | st.integers(1, 10**9),
    batch=st.none() | st.integers(1, 10**6),
    prompt=st.sampled_from(PROMPTS),
    image_px=st.integers(1, 4096),
    profile=st.sampled_from(PROFILES),
    seed=st.integers(0, 2**63 - 1),
)


@always(run=RUNS, other=RUNS)
def test_a_runs_id_is_what_it_does(run, other):
    ours, again = run.id(BENCHMARK), json.loads(json.dumps(dataclasses.asdict(run)))
    assert Run(**{**again, "freeze": tuple(again["freeze"])}) == run
    assert run.resolved(BENCHMARK.recipe).id(BENCHMARK) == ours
    alike = run.resolved(BENCHMARK.recipe) == other.resolved(BENCHMARK.recipe)
    assert (other.id(BENCHMARK) == ours) == alike


WRONG = st.sampled_from([True, 0, -1, 1.0, 2**63, math.nan, math.inf, -1.0, 0.0, "1", [], b"x"])


@always(name=st.sampled_from(["lr", "steps", "batch", "image_px", "seed"]), value=WRONG)
def test_a_run_takes_no_value_that_only_looks_right(name, value):
    kind = float if name == "lr" else int
    allowed = type(value) is kind and (0 < value < 2**63 or (name == "seed" and value == 0))
    try:
        assert getattr(dataclasses.replace(RUN, **{name: value}), name) == value and allowed
    except ValueError as error:
        assert f"Run.{name}" in str(error) and not allowed


EPISODES = st.tuples(TEXT, INT64, INT64, TEXT)
FLAG = st.booleans()


@always(first=EPISODES, second=EPISODES, won=FLAG, steps=INT64, wall=st.floats())
def test_an_episodes_key_and_row(first, second, won, steps, wall):
    one, other = CELL.episode(*first), CELL.episode(*second)
    assert (one.key == other.key) == (first == second)
    kept = Row(one, won, won, False, steps, 1, wall, 0.0, "w")
    [found] = decode_row(encode_row(kept), one.key).to_pylist()
    assert repr(found) == repr({name: kept.flat()[name] for name in found})
    if first != second:
        with pytest.raises(BrokenRowsError, match="another episode"):
            decode_row(encode_row(kept), other.key)


@always(value=st.sampled_from([True, 1.0, "1", None, 2**63, -(2**63) - 1, np.int64(1)]))
def test_an_episode_takes_no_number_that_only_looks_right(value):
    with pytest.raises((TypeError, ValueError), match=r"Episode\.seed"):
        CELL.episode("reach", 0, value, "reach")


COMMIT = st.tuples(st.integers(0, 3), st.sampled_from("ab"), FLAG)


def committed(commit: tuple[int, str, bool]) -> Row:
    number, writer, won = commit
    return dataclasses.replace(row(number), writer=writer, success=won)


@always(
    files=st.lists(st.lists(COMMIT, min_size=1, max_size=4), max_size=3), loose=st.lists(COMMIT)
)
def test_a_cell_has_each_episode_once_and_says_who_contradicts(files, loose):
    """Files that overlap, and hold a key twice; loose rows beside them."""
    with TemporaryDirectory() as folder:
        store = open_store(folder)
        for data in {
            encode(pa.Table.from_pylist([committed(c).flat() for c in file], ROWS))
            for file in files
        }:
            store.put(f"cells/{CELL.id}/cell-{_digest(data)}.parquet", data)
        for commit in loose:
            store.put_new(_loose(CELL, row(commit[0]).episode.key), encode_row(committed(commit)))
        found = Ledger(store).read(CELL)
    compacted = {*itertools.chain(*files)}
    held = {n for n, *_ in compacted} | {n for n, *_ in loose}
    assert sorted(found.table["initial_state"].to_pylist()) == sorted(held)
    contradicted = {n for n in held if sum(m == n for m, *_ in compacted) > 1}
    wrong = {_loose(CELL, row(n).episode.key) for n in contradicted}
    assert {problem.key for problem in found.problems} == wrong


COLUMN = st.lists(st.floats(-1e6, 1e6, width=32), min_size=7, max_size=7)


@always(
    kind=st.sampled_from([*CHAINS]),
    low=COLUMN,
    high=COLUMN,
    share=st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7),
)
def test_what_is_normalised_comes_back(kind, low, high, share):
    low, high = np.minimum(low, high), np.maximum(low, high)
    statistics = Statistics(*(tuple(column.tolist()) for column in (low, high) * 3))
    normaliser = Normaliser(kind, Statistics.from_json(vars(statistics)))
    inner = np.array(share, np.float32) * np.float32(0.65 if kind == "quantile+clip65" else 1)
    raw = normaliser.inverse(inner)
    reach = np.maximum((high - low) / 2, 1e-8)
    slack = 1e-6 + (np.abs(raw) * 2**-23 / reach if "quantile" in kind else 0)
    same = np.abs(normaliser.forward(raw) - inner) <= slack
    assert same.all() and raw.dtype == np.float32
    assert raw[6] == inner[6], "the gripper is never touched"


CHUNKS = arrays.arrays(np.float32, (2, 4, 7), elements=st.floats(width=32))


@always(chunks=CHUNKS)
def test_fast_holds_every_finite_chunk_exactly(chunks):
    if not np.isfinite(chunks).all():
        with pytest.raises(ValueError, match="not finite"):
            FAST.encode(chunks)
        return
    tokens = FAST.encode(chunks)
    assert np.array_equal(FAST.unpack(tokens), FAST.coefficients(chunks))
    assert np.isfinite(FAST.decode(tokens)).all()


NUMBER = st.integers(-3, 2000) | st.floats()
COUNT = st.integers(-2, 3000)
RATE = st.floats() | st.floats(0, 1)
CELLS = st.lists(st.tuples(COUNT, COUNT), max_size=3)
NUMBERS = st.lists(NUMBER, max_size=6)
FIGURES = st.one_of(
    st.tuples(st.just(analysis.wilson), st.tuples(COUNT, COUNT)),
    st.tuples(st.just(analysis.mcnemar), st.tuples(COUNT, COUNT)),
    st.tuples(st.just(analysis.holm), st.tuples(st.lists(RATE, max_size=4))),
    st.tuples(st.just(analysis.pairs_to_tell_apart), st.tuples(COUNT, COUNT, COUNT)),
    st.tuples(st.just(analysis.box), st.tuples(NUMBERS)),
)
RESAMPLED = st.one_of(
    st.tuples(st.just(analysis.paired_bootstrap), st.tuples(COUNT, COUNT, COUNT)),
    st.tuples(st.just(analysis.across_trainings), st.tuples(st.lists(NUMBERS, max_size=3))),
)


def leaves(value: Any) -> list[float]:
    """Every number of a figure."""
    if dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    if isinstance(value, int | float):
        return [float(value)]
    return list(itertools.chain(*map(leaves, value))) if isinstance(value, list | tuple) else []


def figure(asked: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
    """Finite numbers, or ValueError: never a figure of nothing."""
    function, arguments = asked
    try:
        found = function(*arguments)
    except ValueError as error:
        assert str(error)
        return
    assert all(map(math.isfinite, leaves(found))), found
    if function in (analysis.wilson, analysis.mcnemar):
        assert all(0 <= number <= 1 for number in leaves(found))


@always(asked=FIGURES)
def test_a_figure_is_finite_or_refused(asked):
    figure(asked)


@always(asked=RESAMPLED)
def test_a_resampled_figure_is_finite_or_refused(asked):
    figure(asked)


NAMES = st.lists(TEXT | st.sampled_from(["0", "2", "3", "²", "٣", "reach", "9" * 5000]), max_size=3)


@always(names=NAMES, horizon=st.integers(-2, 9))
def test_selections_are_tasks_and_tables_or_refused_by_name(names, horizon):
    try:
        tasks = BENCHMARK.choose_tasks(names)
        assert len(tasks) == len(names) and set(tasks) <= set(BENCHMARK.tasks)
        for name, task in zip(names, tasks, strict=True):
            assert name in (task, str(BENCHMARK.tasks.index(task)))
    except ValueError as error:
        assert "Unknown task" in str(error)
    try:
        assert len(study.choose(names)) <= len(names)
    except ValueError as error:
        assert "table" in str(error)
    try:
        assert 1 <= BENCHMARK.choose_horizon(horizon) <= BENCHMARK.chunk
    except ValueError:
        assert not 1 <= horizon <= BENCHMARK.chunk


@always(name=st.sampled_from([*vars(STATISTICS)]), column=NUMBERS | TEXT | COLUMN | st.none())
def test_statistics_are_seven_finite_numbers_or_refused(name, column):
    try:
        found = Statistics.from_json({**vars(STATISTICS), name: column})
    except ValueError as error:
        assert str(error)
        return
    assert len(getattr(found, name)) == 7 and np.isfinite(getattr(found, name)).all()


@always(
    cell=st.builds(Cell, TEXT, TEXT, INT64, TEXT), other=st.builds(Cell, TEXT, TEXT, INT64, TEXT)
)
def test_a_cells_id_is_what_it_holds(cell, other):
    assert (cell.id == other.id) == (cell == other)
    assert Cell(**json.loads(json.dumps(dataclasses.asdict(cell)))).id == cell.id
