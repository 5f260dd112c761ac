"""Commands that documentation prints, and what is wrong with one: programs, targets, flags."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^ *```(\w*)(?: \S+)?\n(.*?)^ *```$", re.M | re.S)
LOOKS_LIKE_ONE = re.compile(
    r"([A-Z_]+=\S+ )?(\.venv/\S+|[a-z]+/\w+\.py|python|make|ray|kubectl|sbatch|docker) "
)
PYTHON = ".venv/bin/python"
TOOLS = {
    *("ray", "kubectl", "docker", "sbatch", "source", "export"),
    *("pip-audit", "cyclonedx-py", "syft", ".venv/bin/pre-commit"),
    "~/.vla/policies/lerobot/bin/python",  # `make lerobot` builds it
}
"""Programs that are neither ours nor make's: of the system, of Ray, or of an environment apart."""


def of_page(text: str) -> Iterator[str]:
    """Of Markdown: blocks up to their first empty line, which output follows, and inline code."""
    for kind, block in FENCE.findall(text):
        if kind in ("", "sh") and not re.match(r"[A-Z][a-z]|\w+/  ", block):
            yield from _lines(block.partition("\n\n")[0])
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        command = " ".join(code.split())
        if LOOKS_LIKE_ONE.match(command):
            yield command


def of_job(path: Path) -> Iterator[str]:
    """Of a script's own description."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    for line in said.splitlines():
        if re.match(r" *(\.venv/|make |python |ray )", line):
            yield line.partition("     (")[0].strip()


def _lines(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)# .*", "", line).strip()
        if command:
            yield command


def problems(command: str) -> list[str]:
    """What somebody who types the command would stumble over; [] if nothing."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return [*_of_program(words), *_of_flags(command)]


def _of_program(words: list[str]) -> Iterator[str]:
    first, rest = words[0], words[1:]
    if first == "make":
        named = [word for word in rest if re.fullmatch(r"[a-z-]+", word)]
        yield from (f"no target {name}" for name in named if name not in targets())
    elif first == PYTHON:
        module = rest[1] if rest[0] == "-m" else ""
        if not (importlib.util.find_spec(module) if module else (ROOT / rest[0]).exists()):
            yield f"nothing to run: {' '.join(rest[:2])}"
    elif first not in TOOLS:
        yield f"not a program: {first}"


def _of_flags(command: str) -> Iterator[str]:
    job = re.search(r"jobs/(\w+)\.py", command)
    if job:
        used = re.findall(r"(?<![\w-])--[a-z][a-z-]+", command[job.end() :])
        yield from (f"{job[0]} has no {flag}" for flag in used if flag not in flags(job[1]))


@cache
def targets() -> set[str]:
    found = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    lists = (ROOT / "infra" / "simulators").glob("requirements-*.txt")
    simulators = {path.stem.removeprefix("requirements-") for path in lists}
    return {name for line in found for name in line.split()} | simulators | {"dot"}


@cache
def flags(job: str) -> set[str]:
    """What a job's own --help shows."""
    shown = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setattr(sys, "argv", [f"{job}.py", "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.getvalue()))
