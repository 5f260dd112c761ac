"""What preflight says about simulators that work, fail, or are not there."""

import dataclasses

import numpy as np
import pytest

from envs import preflight
from envs.__main__ import main
from envs.benchmarks import benchmark
from tests.envs.fake_simulator import ROW


def test_the_tabletop_works():
    check = preflight.check(benchmark("tabletop"))
    assert check.problem is None
    assert {"start", "speed", "memory"} < set(check.facts)
    assert preflight.report(check)[0] == "tabletop: works"


def test_a_failing_simulator_is_explained_with_advice():
    row = dataclasses.replace(ROW, tasks=("exit in reset",))
    check = preflight.check(row)
    assert "exit code" in check.problem
    assert check.advice


def test_a_missing_simulator_says_how_to_build_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    monkeypatch.delenv("VLA_LIBERO_PYTHON", raising=False)
    assert main(["preflight", "libero"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("libero: not installed (run `make libero`, or name a Python")
    assert said.count("\n") == 1


def test_missing_assets_are_a_caveat_with_advice():
    row = dataclasses.replace(ROW, simulator_args={"missing": "stages/table.glb"})
    check = preflight.check(dataclasses.replace(row, tasks=("count",)))
    assert check.problem is None
    lines = preflight.report(check)
    assert lines[0].endswith(": works, but")
    assert "the checkout lacks stages/table.glb" in lines[-2]
    assert "SRC=FOLDER" in lines[-1]


def test_an_unknown_simulator_names_the_closest(capsys):
    with pytest.raises(SystemExit):
        main(["preflight", "libreo"])
    assert "Did you mean 'libero'" in capsys.readouterr().err


def test_blank_and_noisy_frames_are_told_from_pictures():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp, (64, 1)).T, np.full((64, 64), 9)], -1)
    assert preflight.frame_problem(picture.astype(np.uint8)) is None
    assert "blank" in preflight.frame_problem(np.full((64, 64, 3), 40, np.uint8))
    assert "noise" in preflight.frame_problem(rng.integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("ImportError: Cannot initialize a EGL device display", "libegl1"),
        ("ImportError: LIBERO cannot draw: neither libEGL.so.1 nor libOSMesa.so", "libosmesa6"),
        ("hydra.errors.InstantiationException: error('Cannot load URDF file.')", "incomplete"),
        ("OSError: libOSMesa.so.8: cannot open", "libosmesa6"),
        ("RuntimeError: vk::PhysicalDevice::createDevice: ErrorExtension", "VK_DRIVER_FILES"),
        (
            "FileNotFoundError: LIBERO's assets are not in /x",
            "simulators/libero and run `make libero`",
        ),
        (
            "ModuleNotFoundError: No module named 'robosuite'",
            "simulators/libero and run `make libero`",
        ),
        ("its scores are not valid: the checkout lacks a.glb b.dae", "`make libero SRC=FOLDER`"),
        ("took longer than 300 s for 'reset' and was killed", "hangs"),
        ("ended during 'execute' with signal SIGKILL", "memory"),
        ("AttributeError: 'Dot' object has no attribute 'fingerprint'", "adapter in envs/"),
    ],
)
def test_advice_fits_the_problem(problem, advice):
    assert advice in preflight.advice_for(problem, "libero")


def test_a_named_python_is_not_to_be_removed(monkeypatch):
    monkeypatch.setenv("VLA_LIBERO_PYTHON", "/opt/python")
    said = preflight.advice_for("ModuleNotFoundError: No module named 'robosuite'", "libero")
    assert "for /opt/python, which VLA_LIBERO_PYTHON names" in said and "remove" not in said


def test_a_problem_is_told_in_a_few_lines():
    failed = (
        "simulator x (pid 1) failed in 'reset': Traceback (most recent call last):\n"
        '  File "worker.py", line 79, in answer\n    return handler(message)\n'
        "OSError: libvulkan.so.1: cannot open shared object file\n"
        "Extension modules: numpy.core (total: 80), no error here"
    )
    told = preflight.brief(failed)
    assert told == [
        "simulator x (pid 1) failed in 'reset'",
        "OSError: libvulkan.so.1: cannot open shared object file",
    ]
    assert "VK_DRIVER_FILES" in preflight.advice_for(failed, "simpler")
