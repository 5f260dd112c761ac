"""How a job ends with an error: expected ones in a sentence, with the trace within reach."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from vla_platform import cli, places, session
from vla_platform.preemption import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]


def new_table():
    raise ValueError("too many values, planted-key")


def ended(monkeypatch, main):
    monkeypatch.setattr(sys, "argv", ["jobs/some_job.py"])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    return end.value.code


def test_an_expected_error_is_a_sentence_and_its_trace_is_in_a_file(monkeypatch, capsys):
    monkeypatch.setenv("SOME_API_KEY", "planted-key")
    assert ended(monkeypatch, new_table) == 2
    said, place = capsys.readouterr().err.splitlines()
    assert said == "error: too many values, planted-key"
    path = Path(place.removeprefix("(its trace: ").removesuffix(")"))
    assert path == places.home() / "errors" / "some_job.txt"
    text = path.read_text()
    assert "test_cli.py" in text and "in new_table" in text
    assert text.endswith("ValueError: too many values, ***\n")


def test_a_home_that_cannot_be_written_hides_no_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLA_HOME", str(tmp_path / "file"))
    assert ended(monkeypatch, new_table) == 2
    assert capsys.readouterr().err == "error: too many values, planted-key\n"


def test_a_missing_key_is_a_mistake_in_the_code_and_keeps_its_trace(monkeypatch):
    with pytest.raises(KeyError, match="foo"):
        cli.run(lambda: {}["foo"])


def test_results_go_into_folders_that_are_not_there_yet(tmp_path):
    path = tmp_path / "out" / "rows.json"
    args = cli.parser("a job").parse_args(["--json", str(path)])
    cli.write_json(args.json, [{"a": 1}])
    assert json.loads(path.read_text()) == [{"a": 1}]


def test_results_for_a_folder_are_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.parser("a job").parse_args(["--json", str(tmp_path)])
    assert f"{tmp_path} is a folder: name a file in it" in capsys.readouterr().err


def test_a_cluster_that_is_gone_is_named_with_the_remedy(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)  # by another test
    with pytest.raises(ValueError, match=rf"{address} \(.*refused\): correct it, or unset it"):
        session.connect()


def test_a_job_with_ray_is_told_to_go_and_says_so():
    """Ray's own handler aborts a process that takes more than three seconds to end."""
    code = """
import time
from vla_platform import cli, session
def main():
    session.connect()
    print("up", flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(4)
cli.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["platform", "."])}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, env=environment, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        while "up" not in job.stdout.readline():
            assert job.poll() is None
        job.terminate()
        _, errors = job.communicate(timeout=60)
    assert "stopped by SIGTERM; the same command continues" in errors
    assert job.returncode == EXIT_CODE
