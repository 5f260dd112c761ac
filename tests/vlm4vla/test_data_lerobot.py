"""LeRobot v3, written and read back; the layout is described in `vlm4vla.data.lerobot_v3`."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from vla_platform import places

from tests.vlm4vla import published
from vlm4vla.data import lerobot_write
from vlm4vla.data.lerobot_v3 import LeRobotV3, read_video
from vlm4vla.data.lerobot_write import CAMERA, write_lerobot
from vlm4vla.data.source import BadEpisodeError, demonstration

PYTHON = Path(os.environ.get("VLA_LEROBOT_PYTHON") or places.home() / "peers/lerobot/bin/python")
TEXTS = ["open the drawer", "push it", "open the drawer"]


def demos(lengths=(4, 7, 3)):
    return [
        demonstration(text, published.smooth(steps, 32, seed), published.actions(steps, seed))
        for seed, (steps, text) in enumerate(zip(lengths, TEXTS, strict=True))
    ]


@pytest.fixture
def folder(tmp_path):
    write_lerobot(tmp_path / "set", demos(), 10, "panda", video=False)
    return tmp_path / "set"


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("per_file", [2, 100])
def test_what_is_written_comes_back(tmp_path, monkeypatch, video, per_file):
    monkeypatch.setattr(lerobot_write, "EPISODES_PER_FILE", per_file)
    assert write_lerobot(tmp_path / "set", iter(demos()), 10, "panda", video) == 3
    for made, read in zip(demos(), LeRobotV3(tmp_path / "set"), strict=True):
        assert read.instruction == made.instruction
        assert np.array_equal(read.actions, made.actions)
        far = np.abs(read.images[:, None].astype(int) - made.images).mean(axis=(2, 3, 4))
        assert far.argmin(axis=1).tolist() == list(range(made.steps))
        assert far.diagonal().max() < (10 if video else 1e-9)


def test_metadata_is_what_lerobot_looks_for(folder):
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.loc["push it"].task_index == 1
    rows = pq.read_table(folder / "meta/episodes").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 4, 11]
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 14, 2)
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)


def test_nothing_half_written_is_visible(tmp_path):
    def broken():
        yield demos()[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_lerobot(tmp_path / "set", broken(), 10, "panda")
    assert not (tmp_path / "set").exists()
    assert write_lerobot(tmp_path / "set", demos(), 10, "panda") == 3
    with pytest.raises(ValueError, match="exists already"):
        write_lerobot(tmp_path / "set", demos(), 10, "panda")


def test_a_frame_that_the_video_lacks(tmp_path):
    write_lerobot(tmp_path / "set", demos(), 10, "panda")
    film = next((tmp_path / "set").rglob("*.mp4"))
    assert len(read_video(film, np.array([0.4, 0.5]), 10)) == 2
    with pytest.raises(ValueError, match=r"frame index 1 is out of range"):
        read_video(film, np.array([1.3, 1.4]), 10)
    film.write_bytes(film.read_bytes()[:500])
    with pytest.raises(BadEpisodeError, match=r"row 0 \(episode 0\): .*file-000\.mp4"):
        LeRobotV3(tmp_path / "set").read(0)


def test_damaged_files_are_named(folder):
    data = next((folder / "data").rglob("*.parquet"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-20])
    with pytest.raises(BadEpisodeError, match=r"file-000\.parquet: damaged or truncated"):
        LeRobotV3(folder).read(0)
    data.unlink()
    with pytest.raises(BadEpisodeError, match=r"file-000\.parquet is missing"):
        LeRobotV3(folder).read(0)
    (folder / "meta/tasks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks\.parquet is missing"):
        LeRobotV3(folder)


def rewrite(path, change):
    table = pq.read_table(path).to_pandas()
    change(table)
    table.to_parquet(path)


def test_wrong_listings_are_named(folder):
    listing = next((folder / "meta/episodes").rglob("*.parquet"))

    def change(table):
        table.loc[1, "length"] = 9
        table.loc[2, "episode_index"] = 0

    rewrite(listing, change)
    source = LeRobotV3(folder)
    with pytest.raises(BadEpisodeError, match=r"holds 7 frames of it; 9 are listed"):
        source.read(1)
    with pytest.raises(BadEpisodeError, match=r"row 2 \(episode 0\): duplicate of .*row 0"):
        source.read(2)


def test_other_versions_and_cameras_are_refused(folder):
    with pytest.raises(ValueError, match=r"camera of .* 'wrist'.*observation\.images\.image"):
        LeRobotV3(folder, "wrist")
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(ValueError, match=r"version v2\.1, not v3"):
        LeRobotV3(folder)


def lerobot(*arguments):
    """Run a command of lerobot_child.py in LeRobot's own environment."""
    script = Path(__file__).with_name("lerobot_child.py")
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHON), str(script), *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, timeout=300)


@pytest.mark.full
@pytest.mark.skipif(not PYTHON.exists(), reason="no lerobot: bash tests/bench/peer_lerobot.sh")
@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_package_reads_ours_and_we_read_its(tmp_path, kind):
    made, out, lossy = demos(), tmp_path / "rows.npz", 10 if kind == "video" else 1e-9
    write_lerobot(tmp_path / "ours", made, 10, "panda", video=kind == "video")
    lerobot("read", tmp_path / "ours", out)
    rows = dict(np.load(out))
    frames = np.concatenate([demo.images for demo in made])
    far = np.abs(rows["frames"][:, None].astype(int) - frames).mean(axis=(2, 3, 4))
    assert far.argmin(axis=1).tolist() == list(range(len(frames)))
    assert far.diagonal().max() < lossy
    assert np.array_equal(rows["actions"], np.concatenate([demo.actions for demo in made]))
    assert rows["tasks"].tolist() == np.repeat(TEXTS, [demo.steps for demo in made]).tolist()
    np.savez(out, **(rows | {"frames": frames}))
    lerobot("write", out, tmp_path / "theirs", kind)
    for demo, read in zip(made, LeRobotV3(tmp_path / "theirs"), strict=True):
        assert read.instruction == demo.instruction
        assert np.abs(read.images.astype(int) - demo.images).mean() < lossy
        assert np.array_equal(read.actions, demo.actions)
