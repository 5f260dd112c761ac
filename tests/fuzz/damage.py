"""What bad disks, bugs and strangers make of valid bytes and values, drawn from a generator."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


class Target(NamedTuple):
    """make: one input. check: "accepted", or the kind of the refusal; what it raises is a bug.

    close: ends what `check` talks to.
    """

    name: str
    make: Callable[[Random], Any]
    check: Callable[[Any], str]
    close: Callable[[], None] = lambda: None


def refusal(error: BaseException) -> str:
    """The kind of an expected error; AssertionError when it says nothing."""
    assert str(error).strip(), f"a {type(error).__name__} without a word"
    return type(error).__name__


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes with one to three faults."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_FAULTS)(rng, out)
    return bytes(out)


def _place(rng: Random, data: bytearray) -> int:
    """The beginning and the end hold what describes the rest."""
    size = len(data)
    near = rng.randrange(min(size, 64)) if size else 0
    return rng.choice((near, max(0, size - 1 - near), rng.randrange(size) if size else 0))


def _flip(rng: Random, data: bytearray) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _byte(rng: Random, data: bytearray) -> None:
    if data:
        data[_place(rng, data)] = rng.choice((0, 0xFF, 0x80, 0x7F, rng.randrange(256)))


def _cut(rng: Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def _hole(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 8, 64))]


def _insert(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))


def _repeat(rng: Random, data: bytearray) -> None:
    at, to = _place(rng, data), _place(rng, data)
    data[to:to] = data[at : at + rng.choice((1, 8, 64, 4096))]


def _number(rng: Random, data: bytearray) -> None:
    """An integer such as a length."""
    width, code = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    value = (rng.choice(EDGES) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    at = _place(rng, data)
    data[at : at + width] = struct.pack(rng.choice("<>") + code, value)


def _zeros(rng: Random, data: bytearray) -> None:
    at = _place(rng, data)
    count = min(rng.choice((4, 16, 256)), len(data) - at)
    data[at : at + count] = bytes(count)


_FAULTS = (_flip, _flip, _byte, _cut, _hole, _insert, _repeat, _number, _number, _zeros)


def nested(depth: int, inner: Any = None) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


JSON_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(0.0, -0.0, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "1", "nan", "\x00", "ä", "uint8", "x" * 2000, "../../etc", "²"),
    *([], {}, [0], [1, 2, 3], [[]], {"a": 1}, ["a"] * 3, [1.5] * 7, [None] * 7),
    *([0, 2**30, 2**30, 2**30], nested(40), nested(300)),
)
"""Values that JSON carries and few fields want."""
MSGPACK_STRANGE: tuple[Any, ...] = (
    *(each for each in JSON_STRANGE if each != 10**30),
    *(2**64 - 1, b"", b"\x00", b"\xff" * 9, {b"a": 1}, {1: 2}),
    *({b"__ndarray__": True}, {b"__npgeneric__": True}, {"__ndarray__": True}, {"__image__": 1}),
)


def altered(rng: Random, value: Any, strange: Sequence[Any] = JSON_STRANGE) -> Any:
    """A copy of dicts and lists with one to three parts replaced, lost, renamed or repeated."""
    holder = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _alter(rng, *rng.choice(list(_places(holder))), strange)
    return holder[0]


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    """(container, key) of everything within."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items)[:50]:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _alter(rng: Random, holder: Any, key: Any, strange: Sequence[Any]) -> None:
    act = rng.randrange(6)
    if act < 3:
        holder[key] = copy.deepcopy(rng.choice(strange))
    elif act == 3:
        holder[key] = _other_type(rng, holder[key])
    elif act == 4 and isinstance(holder, dict):
        found = holder.pop(key)
        if rng.random() < 0.5:
            holder[rng.choice((f"{key}2", "", "x"))] = found
    elif isinstance(holder[key], list) and holder[key]:
        inner = holder[key]
        inner.append(inner[rng.randrange(len(inner))]) if rng.random() < 0.5 else inner.pop()


def _other_type(rng: Random, value: Any) -> Any:
    """The same said in another type."""
    plain = not isinstance(value, dict | list)
    texts = [str(value)[:200], [value], {"value": value}]
    numbers = [float(value), value + 1, -value] if type(value) is int and abs(value) < 2**60 else []
    pieces = list(value) if isinstance(value, str | list | dict) else [value]
    return rng.choice([*texts, *numbers, pieces] if plain else [pieces, {"value": value}])
