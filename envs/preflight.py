"""Starts a simulator once, and says whether it works here, how fast, and what to do if not."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import numpy as np

from envs.api import Benchmark
from envs.benchmarks import BENCHMARKS
from envs.process import (
    SimulatorDied,
    SimulatorMissing,
    SimulatorProcess,
    build_command,
    home,
    interpreter_for,
    python_variable,
)

CHUNK = 4
CHUNKS = 5
REBUILD = "build it again"
WRONG = re.compile("error|exception|fail|cannot", re.IGNORECASE)
NOISE = ("Extension modules", "The above exception")
TRACEBACK = ": Traceback (most recent call last):"
TOLD = 6
"""Lines of a problem that are shown."""
ADVICE: Tuple[Tuple[str, str], ...] = (
    (
        "checkout lacks",
        "clone it whole, with its large files, and name that folder: `make {} SRC=FOLDER`",
    ),
    (
        r"EGL|eglQuery|libOpenGL",
        "install libegl1, libegl-mesa0 and libgl1-mesa-dri (without EGL, LIBERO draws with "
        "libosmesa6 and MUJOCO_GL=osmesa, CALVIN with its renderer 'tiny')",
    ),
    (r"OSMesa|osmesa", "install libosmesa6, or set MUJOCO_GL=egl"),
    (r"libGL\.so|libgthread", "install libgl1 and libglib2.0-0"),
    (
        r"[Vv]ulkan|VK_|vk::",
        "install an NVIDIA driver with Vulkan, or point VK_DRIVER_FILES at another driver's JSON; "
        f"on Debian 12 without a GPU {REBUILD}, which makes one in software",
    ),
    (
        r"assets|FileNotFoundError|No such file|Cannot load",
        f"its assets or checkout are incomplete: {REBUILD}",
    ),
    (
        r"ModuleNotFoundError|ImportError|No module named",
        f"its packages are incomplete: {REBUILD}",
    ),
    (
        r"AttributeError|TypeError|NameError|KeyError|IndexError|ValueError|malformed message",
        "the adapter in envs/ or its benchmark's row is likely wrong: read the message above",
    ),
    (r"longer than", "it hangs: look for a driver that other processes hold, or a full disk"),
    (r"SIGKILL", "the machine may be out of memory: start fewer simulators"),
    (r"SIGSEGV|SIGABRT", "its driver crashed: try the other renderer or a newer Mesa"),
)


@dataclass(frozen=True)
class Check:
    """What one start of a simulator showed.

    problem: why it does not work, else None. caveat: it works, but its scores mean nothing.
    """

    simulator: str
    problem: Optional[str] = None
    caveat: str = ""
    advice: str = ""
    installed: bool = True
    facts: Dict[str, str] = field(default_factory=dict)


def simulators() -> Dict[str, Benchmark]:
    """One benchmark of each simulator, to try it with."""
    rows: Dict[str, Benchmark] = {}
    for row in BENCHMARKS.values():
        rows.setdefault(row.simulator, row)
    return rows


def check(row: Benchmark) -> Check:
    """Start a simulator, render, step, and start its first episode again."""
    try:
        interpreter_for(row.simulator)
    except SimulatorMissing as missing:
        advice = build_command(row.simulator)
        return Check(row.simulator, str(missing), advice=advice, installed=False)
    try:
        with SimulatorProcess(row) as process:
            return _try_out(row, process)
    except (SimulatorDied, SimulatorMissing) as died:
        return Check(row.simulator, str(died), advice=advice_for(str(died), row.simulator))


def _try_out(row: Benchmark, process: SimulatorProcess) -> Check:
    began = time.perf_counter()
    first = process.reset(row.tasks[0], 0, 0).image
    started = time.perf_counter() - began
    steps, seconds = _drive(process)
    again = process.reset(row.tasks[0], 0, 0).image
    facts = {
        "start": f"{started:.1f} s",
        "speed": f"{steps / seconds:.0f} steps/s in chunks of {CHUNK}",
        "memory": f"{process.rss_bytes() / 2**20:.0f} MiB",
        **process.fingerprint(),
    }
    problem = frame_problem(first)
    if problem is None and not np.array_equal(first, again):
        problem = "the same reset gave two different frames"
    caveat = "" if problem else lacking(facts)
    advice = advice_for(problem or caveat, row.simulator)
    return Check(row.simulator, problem, caveat, advice, facts=facts)


def lacking(facts: Dict[str, str]) -> str:
    """What an adapter's fingerprint says about assets that are not there."""
    missing = facts.get("missing", "none")
    return "" if missing == "none" else f"its scores are not valid: the checkout lacks {missing}"


def _drive(process: SimulatorProcess) -> Tuple[int, float]:
    began, steps = time.perf_counter(), 0
    for _ in range(CHUNKS):
        result = process.execute(np.zeros((CHUNK, 7), np.float32) - [0, 0, 0, 0, 0, 0, 1])
        steps += result.steps
        if result.done:
            break
    return steps, time.perf_counter() - began


def frame_problem(image: np.ndarray) -> Optional[str]:
    """Why a uint8 [H, W, 3] cannot be a picture of a scene; None when it can.

    A picture has contrast, and its neighbouring pixels mostly agree; noise and memory that was
    never drawn into do not.
    """
    pixels = image.astype(np.float64)
    contrast = float(pixels.std())
    if contrast < 3:
        return f"the frame is blank (its standard deviation is {contrast:.1f} of 255)"
    roughness = float(np.abs(np.diff(pixels, axis=0)).mean() / contrast)
    if roughness > 0.6:
        return f"the frame is noise (neighbouring pixels differ by {roughness:.1f} deviations)"
    return None


def advice_for(problem: str, simulator: str) -> str:
    """One line for a person: what to install or change."""
    if not problem:
        return ""
    for pattern, advice in ADVICE:
        if re.search(pattern, problem):
            return advice.replace(REBUILD, _rebuild(simulator)).format(simulator)
    return f"{_rebuild(simulator)}; if it fails again, read the message above"


def _rebuild(simulator: str) -> str:
    """`make` alone takes a finished environment for a complete one."""
    named = python_variable(simulator)
    if os.environ.get(named):
        return f"install what it needs for {os.environ[named]}, which {named} names"
    return f"remove {home() / 'simulators' / simulator} and run `make {simulator}`"


def brief(problem: str) -> List[str]:
    """A problem without its tracebacks: how it began, and the last lines that say what is wrong."""
    lines = problem.replace(TRACEBACK, "").splitlines()
    said = [line for line in lines[1:] if line[:1].strip() and WRONG.search(line)]
    return lines[:1] + [line for line in said if not line.startswith(NOISE)][-TOLD:]


def report(check: Check) -> List[str]:
    """The lines to print for one simulator."""
    if not check.installed:
        return [f"{check.simulator}: not installed ({check.advice})"]
    word = "FAILS" if check.problem is not None else "works, but" if check.caveat else "works"
    lines = [f"{check.simulator}: {word}"]
    lines += [f"  {name}: {value}" for name, value in check.facts.items()]
    lines += [f"  {line}" for line in brief(check.problem or check.caveat)]
    return lines + [f"  advice: {check.advice}"] * bool(check.advice)
