"""SimplerEnv's simulator, rendered on demand; imports it only when a scene is made.

`python -m envs.simpler_scene` prepares an installation (see `cook`).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from envs.hashing import commit

log = logging.getLogger(__name__)

CAMERA = "3rd_view_camera"
EPISODES = 24
SHIFT = 0.01
"""Metres by which variations of an episode displace the object to be moved."""
LAYER = "VK_LAYER_VLA_software"
PACKAGES = ("sapien", "numpy", "scipy", "gymnasium", "opencv-python")
STAGES = ("bridge_table_1_v1.glb", "bridge_table_1_v2.glb")
LARGE_FILES = (
    *(f"hab2_bench_assets/stages/{stage}" for stage in STAGES),
    "custom/models/eggplant/textured.dae",
)
"""What snapshots without large files lack; scores without them mean nothing."""
ASSETS = (
    "custom/info_bridge_*.json",
    "custom/models/bridge_*/*",
    "custom/models/table_cloth_*/*",
    "custom/models/baked_*_cube_3cm/*",
    "custom/models/eggplant/*",
    "custom/models/*sink*/*",
    "hab2_bench_assets/stages/bridge_table_*",
    "real_inpainting/bridge_*",
)
"""What the four tasks load, the cooked stages included."""
COOKED = ".nonconvex.stl"


class Scene:
    """One task's scene: reset, step and look, each apart from the others."""

    def __init__(self, task: str) -> None:
        prepare()
        simpler_env = _import("simpler_env")
        self._env = simpler_env.make(task, renderer_kwargs=_renderer()).unwrapped
        self._placements = list(self._env._xy_configs)

    def reset(self, episode: int, seed: int) -> None:
        """Rebuild the scene: bit-identical to a fresh process, unlike a reset without it.

        Episodes from 24 on repeat the 24 with the object to be moved displaced by up to 1 cm
        in x and y (drawn from the episode's number alone): for scores that took no part in
        choosing a checkpoint.
        """
        env = self._env
        env._xy_configs = [_displaced(placement, episode) for placement in self._placements]
        env._obs_mode = "none"
        options = {"obj_init_options": {"episode_id": episode % EPISODES}, "reconfigure": True}
        env.reset(seed=seed, options=options)
        # The other camera and the depth texture are drawn for nobody.
        env._cameras = {CAMERA: env._cameras[CAMERA]}
        env._cameras[CAMERA].texture_names = ("Color", "Segmentation")

    def step(self, action: np.ndarray) -> bool:
        """One control step (0.2 s) of float64 [7]; whether the task is fulfilled after it."""
        return bool(self._env.step(action)[4]["success"])

    def look(self) -> np.ndarray:
        """uint8 [480, 640, 3] with the photographed background laid over the simulation."""
        env = self._env
        env._obs_mode = "image"
        try:
            colour = env.get_obs()["image"][CAMERA]["Color"]
        finally:
            env._obs_mode = "none"
        return np.clip(colour[..., :3] * 255, 0, 255).astype(np.uint8)

    def instruction(self) -> str:
        return str(self._env.get_language_instruction())

    def joints(self) -> np.ndarray:
        """float64 [8]: six arm angles (rad), two fingers (m)."""
        return np.asarray(self._env.agent.robot.get_qpos())

    def state(self) -> np.ndarray:
        """Poses and velocities of everything that moves."""
        return np.asarray(self._env.get_state())

    def close(self) -> None:
        self._env.close()

    @staticmethod
    def fingerprint() -> Dict[str, str]:
        prepare()
        missing = missing_assets()
        return {
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            **{
                name: commit(_package_root(name))
                for name in ("simpler_env", "mani_skill2_real2sim")
            },
            "assets": _assets_hash(),
            "missing": " ".join(missing) or "none",
            "renderer": _renderer_name(),
        }


def _displaced(placement: np.ndarray, episode: int) -> np.ndarray:
    """placement [objects, 2]; the first object is the one to be moved."""
    if episode < EPISODES:
        return placement
    moved = np.array(placement, np.float64)
    moved[0] += np.random.RandomState(episode).uniform(-SHIFT, SHIFT, 2)
    return moved


def prepare() -> None:
    """Choose the Vulkan driver and cook the stages; before sapien is imported."""
    _use_software_vulkan()
    missing = missing_assets()
    if missing:
        log.warning("scores are not valid: SimplerEnv's assets lack %s", ", ".join(missing))
    if any(_uncooked()):
        # In a process of its own: one that has cooked a stage keeps what it made.
        root = Path(__file__).resolve().parents[1]
        subprocess.run([sys.executable, "-m", "envs.simpler_scene"], cwd=root, check=True)


def cook() -> None:
    """Write the stages' collision meshes beside them, as sapien does at first use.

    The process that writes such a file simulates the mesh it wrote it from, all later ones
    what they read: without this, an installation's first episodes differ from all others.
    """
    try:
        lock = (_asset_folder() / ".cooking").open("w")
    except OSError as error:
        log.warning("stages cannot be prepared (%s): each process cooks its own", error)
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stage in _uncooked():
            _cook_one(stage)


def _cook_one(stage: Path) -> None:
    sapien = importlib.import_module("sapien.core")
    engine = sapien.Engine()
    scene = engine.create_scene()
    builder = scene.create_actor_builder()
    builder.add_nonconvex_collision_from_file(str(stage))
    builder.build_static(name="arena")


def _uncooked() -> List[Path]:
    stages = [_asset_folder() / "hab2_bench_assets" / "stages" / name for name in STAGES]
    return [path for path in stages if path.exists() and not Path(f"{path}{COOKED}").exists()]


def missing_assets() -> List[str]:
    """Files without which the tasks run but mean nothing."""
    return [name for name in LARGE_FILES if not (_asset_folder() / name).exists()]


def _asset_folder() -> Path:
    return Path(_import("mani_skill2_real2sim").ASSET_DIR)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} cannot be imported by {sys.executable} ({error}): run `make simpler`."
        ) from error


def software_vulkan() -> Path:
    """Where `make simpler` puts a software driver on a machine without a GPU."""
    return Path(sys.prefix) / "vulkan"


def _use_software_vulkan() -> None:
    folder = software_vulkan()
    if not folder.is_dir() or Path("/dev/nvidiactl").exists() or "VK_DRIVER_FILES" in os.environ:
        return
    driver = str(folder / "driver.json")
    os.environ.update(VK_DRIVER_FILES=driver, VK_ICD_FILENAMES=driver)
    os.environ.update(VK_LAYER_PATH=str(folder / "layer"), VK_INSTANCE_LAYERS=LAYER)
    # Found by its name, when sapien asks for libvulkan.so.1, because it is loaded already.
    ctypes.CDLL(str(folder / "libvulkan.so.1"), mode=ctypes.RTLD_GLOBAL)


def _renderer() -> Dict[str, Any]:
    """Draw off screen, on the GPU that was given to this worker."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"offscreen_only": True, **({"device": "cuda:0"} if given.strip() else {})}


def _renderer_name() -> str:
    if os.environ.get("VK_DRIVER_FILES") == str(software_vulkan() / "driver.json"):
        return (software_vulkan() / "version").read_text().strip()
    nvidia = Path("/proc/driver/nvidia/version")
    return nvidia.read_text().splitlines()[0] if nvidia.exists() else "system Vulkan driver"


def _package_root(name: str) -> Path:
    return Path(str(_import(name).__file__)).resolve().parent


def _assets_hash() -> str:
    digest, folder = hashlib.sha256(), _asset_folder()
    for path in sorted(path for pattern in ASSETS for path in folder.glob(pattern)):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    _use_software_vulkan()
    cook()
