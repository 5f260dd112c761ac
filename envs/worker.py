"""The child's loop: one simulator, served to its supervisor over an inherited socket.

Started by `envs.process` as `INTERPRETER -m envs.worker` from the repository root, never by
path: with `envs/` first on the path `import libero` would find our adapter, not the simulator.
Needs Python 3.8, the standard library, numpy and the simulator's own packages.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import importlib
import os
import platform
import signal
import socket
import sys
import traceback
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from envs import wire
from envs.api import ACTION_DIM, ActionSpec, Benchmark, TrainingRecipe, did_you_mean
from envs.hashing import stable_hash
from envs.wire import Message

SIMULATORS = {
    "tabletop": "envs.tabletop:Tabletop",
    "libero": "envs.libero:Libero",
    "calvin": "envs.calvin:Calvin",
    "simpler": "envs.simpler:Simpler",
}
"""Adapter class of each simulator; "module:Class" is accepted in place of a name."""

RULES = ("step_limits", "success_rule", "chain", "simulator_args")
"""Fields of a benchmark's row that change what comes of an episode."""

_PR_SET_PDEATHSIG = 1


def load_adapter(simulator: str, benchmark: Benchmark) -> Any:
    """The adapter of a simulator, constructed with its benchmark row."""
    return _adapter(simulator)(benchmark)


def has_expert(simulator: str) -> bool:
    """Whether demonstrations can be collected in it. Starts nothing: adapters import late.

    Also of an adapter that cannot be imported here: its child will say.
    """
    try:
        return hasattr(_adapter(simulator), "demonstrate")
    except ImportError:
        return True


def _adapter(simulator: str) -> Any:
    path = simulator if ":" in simulator else SIMULATORS.get(simulator)
    if path is None:
        raise did_you_mean("simulator", simulator, SIMULATORS)
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def benchmark_of(data: Mapping[str, Any]) -> Benchmark:
    """The row that `api.as_json` flattened; tuples travelled as lists."""
    row = dict(data)
    recipe = dict(row["recipe"])
    recipe["checkpoints"] = tuple(recipe["checkpoints"])
    row.update(recipe=TrainingRecipe(**recipe), action_spec=ActionSpec(**row["action_spec"]))
    row.update(tasks=tuple(row["tasks"]), horizons=tuple(row["horizons"]))
    return Benchmark(**row)


class Session:
    """Answers messages with one simulator, which the first message ("open") constructs."""

    def __init__(self, simulator: str) -> None:
        self.name = simulator
        self.simulator: Any = None
        self.rules = ""
        self.handlers: Dict[str, Callable[[Message], Message]] = {
            "open": self.open,
            "reset": self.reset,
            "execute": self.execute,
            "demonstrate": self.demonstrate,
            "snapshot": self.snapshot,
            "fingerprint": self.fingerprint,
        }

    def answer(self, message: Message) -> Message:
        """The reply to one message; whatever goes wrong becomes an "error" reply."""
        handler = self.handlers.get(message.kind)
        if handler is None:
            return error(f"{did_you_mean('message', message.kind, self.handlers)}")
        if self.simulator is None and message.kind != "open":
            return error(f"message {message.kind!r} came before 'open'")
        try:
            return handler(message)
        except wire.WireError as malformed:
            return error(f"malformed message: {malformed}")
        except Exception:
            return error(traceback.format_exc())

    def open(self, message: Message) -> Message:
        if self.simulator is not None:
            return error("message 'open' came twice")
        row = message.value("benchmark", dict)
        self.simulator = load_adapter(self.name, benchmark_of(row))
        self.rules = stable_hash({name: row[name] for name in RULES})[:16]
        limit = getattr(self.simulator, "episodes_per_process", None)
        return Message(
            "ready", {"python": platform.python_version(), "episodes_per_process": limit}
        )

    def reset(self, message: Message) -> Message:
        arguments = [*_episode(message), message.value("record", bool)]
        return wire.observation_message(self.simulator.reset(*arguments))

    def execute(self, message: Message) -> Message:
        actions = message.array("actions", (-1, ACTION_DIM), "float32")
        if not len(actions) or not np.isfinite(actions).all():
            return error("actions must be finite numbers [k >= 1, 7]")
        return wire.step_message(self.simulator.execute(actions))

    def demonstrate(self, message: Message) -> Message:
        if not hasattr(self.simulator, "demonstrate"):
            return error(f"{self.name} has no scripted expert")
        return wire.demonstration_message(self.simulator.demonstrate(*_episode(message)))

    def snapshot(self, message: Message) -> Message:
        if not hasattr(self.simulator, "snapshot"):
            return error(f"{self.name} does not show depth, segments and poses of its scenes")
        return wire.snapshot_message(self.simulator.snapshot())

    def fingerprint(self, message: Message) -> Message:
        found = {**self.simulator.fingerprint(), "rules": self.rules}
        return Message("fingerprint", {"fingerprint": found})

    def close(self) -> None:
        if self.simulator is not None:
            self.simulator.close()


def _episode(message: Message) -> List[Any]:
    """Task, initial state and seed. numpy's generators would take lists and texts for seeds."""
    kinds = {"task": str, "initial_state": int, "seed": int}
    return [message.value(name, kind) for name, kind in kinds.items()]


def error(reason: str) -> Message:
    """An error reply; a long traceback keeps its end, which says what failed."""
    return Message("error", {"error": reason[-20_000:]})


def serve(sock: socket.socket, session: Session) -> None:
    """Answer messages until framing is lost; ConnectionClosed when the supervisor leaves."""
    while True:
        try:
            reply = session.answer(wire.receive(sock))
        except wire.WireError as malformed:
            wire.send(sock, error(f"malformed message: {malformed}"))
            if malformed.fatal:
                return
            continue
        _send_reply(sock, reply)


def _send_reply(sock: socket.socket, reply: Message) -> None:
    try:
        wire.send(sock, reply)
    except (wire.WireError, TypeError) as unsendable:
        wire.send(sock, error(f"the reply {reply.kind!r} cannot be sent: {unsendable}"))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the supervisor's launcher thread ends.

    The end of the socket alone would not stop a simulator that hangs inside a driver call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Serve one simulator to its supervisor.")
    parser.add_argument("--simulator", required=True)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    parser.add_argument("--parent", type=int, required=True, help="process to die with")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.set_inheritable(options.fd, False)
    session = Session(options.simulator)
    with socket.socket(fileno=options.fd) as sock, contextlib.suppress(wire.ConnectionClosed):
        serve(sock, session)
    session.close()
    sys.stdout.flush()
    # Graphics drivers crash in their exit handlers; there is nothing left that they must do.
    os._exit(0)


if __name__ == "__main__":
    main()
