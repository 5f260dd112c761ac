"""What identifies an episode, and rows that survive storage or are refused."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from vla_platform.rows import ROWS, BrokenRowsError, Cell, decode_row, encode_row, episode_of

from envs.hashing import canonical_json, stable_hash
from tests.vla_platform.test_ledger import CELL, EPISODES, row_of


def test_every_field_of_an_episode_is_in_its_key():
    base = EPISODES[0]
    keys = {base.key}
    for name, value in base.fields().items():
        other = value + 1 if isinstance(value, int) else f"{value}x"
        if name in Cell.__dataclass_fields__:
            cell = dataclasses.replace(base.cell, **{name: other})
            assert cell.id != CELL.id
            changed = dataclasses.replace(base, cell=cell)
        else:
            changed = dataclasses.replace(base, **{name: other})
            assert changed.cell.id == CELL.id
        keys.add(changed.key)
    assert len(keys) == 1 + len(base.fields()) == 13


def test_keys_do_not_drift():
    """Stored studies are found by these: a change here needs a new schema number."""
    cell = Cell("w", "tabletop", 4, "f")
    assert cell.id == "fd6169e6e44d2991"
    assert cell.episode("t", 1, 2, "push").key[:16] == "b0b30fef57be1c8e"


@pytest.mark.parametrize("value", [np.int64(3), 3.0, True, "3", None])
def test_values_that_only_look_like_integers_are_refused(value: object):
    with pytest.raises(TypeError, match=r"Episode.initial_state .* plain int"):
        CELL.episode("t", value, 0, "push")  # type: ignore[arg-type]


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"\\u00e9"],"b":1}'
    assert stable_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
    with pytest.raises(TypeError):
        canonical_json({1, 2})


def test_rows_survive_parquet_and_know_their_episode():
    row = row_of(EPISODES[3], video="videos/x.mp4", completed=2)
    table = pq.read_table(io.BytesIO(encode_row(row)))
    assert table.schema.equals(ROWS) and table.to_pylist() == [row.flat()]
    assert episode_of(table.to_pylist()[0]) == EPISODES[3]


def test_no_flipped_bit_of_a_row_is_read_as_another_outcome():
    """Half of what is stored is not in the key: pages have a checksum of their own."""
    row = row_of(EPISODES[0])
    data, key = encode_row(row), row.episode.key
    whole, refused = decode_row(data, key), 0
    for place in range(3, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        try:
            assert decode_row(bytes(flipped), key).equals(whole)
        except BrokenRowsError:
            refused += 1
    assert refused > len(data) // 14


def test_a_name_that_is_no_text_is_a_broken_row():
    data = encode_row(row_of(EPISODES[0]))
    at = data.index(b"success_last")  # in the schema
    with pytest.raises(BrokenRowsError, match="UnicodeDecodeError"):
        decode_row(data[:at] + b"\xff" + data[at + 1 :], EPISODES[0].key)
