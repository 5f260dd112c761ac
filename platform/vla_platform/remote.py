"""Policies behind servers: msgpack with numpy over a WebSocket, by openpi's protocol or vla-eval's.

By openpi's the server sends its metadata on connecting; then each observation (a dict) is
answered with `{"actions": [k, 7], …}`, or with a text that says what went wrong. The format is
openpi-client's, written here because that package asks for numpy 1.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import msgpack
import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from envs.api import ActionSpec, Observation
from envs.hashing import canonical_json, stable_hash
from vla_platform import vla_eval
from vla_platform.adapters import ADAPTERS, converted, observation_dict

CONNECT_S = 5.0
ANSWER_S = 120.0
LARGEST = 64 << 20
"""Bytes of one message that are accepted."""
KEY_VARIABLE = "VLA_POLICY_API_KEY"
_KINDS = "biuf"


class PolicyUnavailableError(RuntimeError):
    """A policy could not be asked just now; asking again may work. Picklable."""


class PolicyRefusedError(RuntimeError):
    """A policy answered with an error, which it would do again. Picklable."""


@dataclass(frozen=True)
class Remote:
    """A policy behind a server, as one evaluation met it.

    declared: its metadata as canonical JSON. evaluation: this evaluation's own id, because
    what a server declares need not change when its weights do. adapter: row of ADAPTERS.
    actions: what its actions mean; target: the benchmark's, to which they are converted.
    """

    url: str
    declared: str
    evaluation: str
    adapter: str
    actions: ActionSpec
    target: ActionSpec
    step: int = field(default=0, init=False)

    @property
    def run(self) -> str:
        return self.url

    @cached_property
    def digest(self) -> str:
        """The policy's identity in the ledger."""
        parts = [self.declared, self.evaluation, self.adapter, canonical_json(vars(self.actions))]
        return f"remote-{stable_hash(parts)[:32]}"

    def __str__(self) -> str:
        return f"the policy at {self.url}"


def pack(value: Any) -> bytes:
    """msgpack, with numpy arrays and scalars as openpi writes them."""
    return bytes(msgpack.packb(value, default=_pack_numpy))


def unpack(data: bytes) -> Any:
    """What `pack` wrote; ValueError for anything malformed. Never unpickles."""
    try:
        return msgpack.unpackb(data, object_hook=_unpack_numpy, strict_map_key=False)
    except vla_eval.MALFORMED as error:
        raise ValueError(f"not msgpack with numpy arrays: {error}") from None


def _pack_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise ValueError(f"arrays of dtype {value.dtype} cannot be sent")
    if isinstance(value, np.ndarray):
        layout = {b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__ndarray__": True, b"data": value.tobytes(), **layout}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _unpack_numpy(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    if b"__npgeneric__" in value:
        return _scalar(vla_eval.number(value[b"dtype"]), value[b"data"])
    return vla_eval.array_of(value[b"dtype"], value[b"data"], value[b"shape"])


def _scalar(dtype: np.dtype, value: Any) -> np.generic:
    """ValueError for what the dtype cannot hold, rather than infinity or something near."""
    if not isinstance(value, bool | int | float):
        raise ValueError(f"a number is a {type(value).__name__}")
    with np.errstate(over="ignore"):
        found: np.generic = dtype.type(value)
        same = found == value or value != value
    if not same:
        raise ValueError(f"{value!r} is no {dtype}")
    return found


class Dialect(Protocol):
    """How one protocol is spoken over an open line; ValueError for what is not of it."""

    def greet(self, line: ClientConnection, timeout: float) -> Any:
        """What the server declares of itself."""
        ...

    def ask(self, line: ClientConnection, sent: Mapping[str, Any], timeout: float) -> Any:
        """The answer to one observation."""
        ...


class OpenPi:
    """The dialect of openpi's servers."""

    def greet(self, line: ClientConnection, timeout: float) -> Any:
        return unpack(_bytes(line.recv(timeout)))

    def ask(self, line: ClientConnection, sent: Mapping[str, Any], timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        line.send(pack(sent))
        return unpack(_bytes(line.recv(max(0.0, deadline - time.monotonic()))))


DIALECTS: dict[str, Dialect] = {"openpi": OpenPi(), "vla-eval": vla_eval}


def metadata_of(url: str, dialect: str = "openpi", timeout: float = CONNECT_S) -> dict[str, Any]:
    """What the server at `url` declares; PolicyUnavailableError when none answers."""
    connection, declared = _open(url, dialect, timeout)
    connection.close()
    return dict(json.loads(declared))


def _open(url: str, dialect: str, timeout: float) -> tuple[ClientConnection, str]:
    """A connection and what the server declares, as canonical JSON."""
    try:
        with ExitStack() as unless_greeted:
            connection = unless_greeted.enter_context(_connect(url, timeout))
            declared = declared_by(DIALECTS[dialect], connection, timeout)
            unless_greeted.pop_all()
        return connection, declared
    except (OSError, WebSocketException, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise PolicyUnavailableError(
            f"no policy server answers at {url} ({reason}): start it, or correct the address"
        ) from None
    except ValueError as error:
        raise PolicyRefusedError(
            f"{url} is not a policy server of {dialect}'s protocol: its first message is {error}"
        ) from None


def _connect(url: str, timeout: float) -> ClientConnection:
    return connect(
        url,
        open_timeout=timeout,
        close_timeout=timeout,
        max_size=LARGEST,
        compression=None,
        proxy=None,
        additional_headers=_credentials(),
    )


def declared_by(dialect: Dialect, line: ClientConnection, timeout: float) -> str:
    """What the server on a fresh line declares, as canonical JSON; ValueError for no such thing."""
    declared = dialect.greet(line, timeout)
    if not isinstance(declared, dict):
        raise ValueError(f"a {type(declared).__name__}, not a dict")
    try:
        return canonical_json(_plain(declared))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not what JSON can hold: {error}") from None


def _credentials() -> dict[str, str]:
    """openpi's way of showing a key; never part of a URL, an error or an identity."""
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Api-Key {key}"} if key else {}


def _bytes(message: str | bytes) -> bytes:
    """An answer; a text instead is the server's traceback."""
    if isinstance(message, str):
        lines = message.strip().splitlines() or ["an empty text"]
        raise ValueError(f"an error: {lines[-1][:500]}")
    return message


def _plain(value: Any) -> Any:
    """JSON types for metadata, whatever it was written with."""
    if isinstance(value, Mapping):
        return {
            _plain(key) if isinstance(key, bytes) else str(key): _plain(v)
            for key, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Lines:
    """Connections to policy servers: one for each episode that is waiting for an answer.

    Safe to use from many threads. A line that failed is closed, never used again.
    """

    def __init__(self) -> None:
        self._idle: dict[str, list[ClientConnection]] = {}
        self._lock = threading.Lock()

    def act(self, policy: Remote, observation: Observation, timeout: float) -> np.ndarray:
        """Actions [k, 7] in the benchmark's units.

        PolicyUnavailableError: cut off or silent, ask again. PolicyRefusedError: an error text, or
        a server that now declares something else than when the evaluation began.
        """
        line, by = self._take(policy), ADAPTERS[policy.adapter]
        try:
            sent = observation_dict(observation, by)
            answer = DIALECTS[by.dialect].ask(line, sent, min(timeout, ANSWER_S))
        except (OSError, WebSocketException, TimeoutError) as error:
            line.close()
            reason = str(error) or type(error).__name__
            raise PolicyUnavailableError(f"{policy} does not answer: {reason}") from None
        except ValueError as error:
            line.close()
            raise PolicyRefusedError(f"{policy} gave no actions: {error}") from None
        self._give_back(policy, line)
        return actions_in(policy, answer)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
        for lines in idle.values():
            for line in lines:
                line.close()

    def _take(self, policy: Remote) -> ClientConnection:
        with self._lock:
            idle = self._idle.get(policy.url)
            if idle:
                return idle.pop()
        line, declared = _open(policy.url, ADAPTERS[policy.adapter].dialect, CONNECT_S)
        if declared != policy.declared:
            line.close()
            raise PolicyRefusedError(
                f"{policy} declares {declared[:200]} now, it declared {policy.declared[:200]} when "
                "this evaluation began: start another evaluation for another policy"
            )
        return line

    def _give_back(self, policy: Remote, line: ClientConnection) -> None:
        with self._lock:
            self._idle.setdefault(policy.url, []).append(line)


def actions_in(policy: Remote, answer: Any) -> np.ndarray:
    """Actions [k, 7] of an answer; PolicyRefusedError when it holds none."""
    if not isinstance(answer, dict) or "actions" not in answer:
        raise PolicyRefusedError(f"{policy} answered without a field 'actions'")
    try:
        with np.errstate(over="ignore"):  # infinities are refused with every policy's actions
            actions = np.asarray(answer["actions"], np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise PolicyRefusedError(f"{policy} answered no numbers: {error}") from None
    if actions.ndim != 2 or actions.shape[1] < 7:
        return actions  # refused by whoever checks every policy's actions
    # Padded to a robot with more joints: what lies beyond the seventh column is not ours.
    return converted(actions[:, :7], policy.actions, policy.target)
