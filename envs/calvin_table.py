"""CALVIN's simulator, calvin_env, stepped without rendering; imports it only when constructed."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

from envs.api import Snapshot
from envs.hashing import commit

log = logging.getLogger(__name__)

PACKAGES = ("pybullet", "numpy", "scipy", "hydra-core")
RENDERERS = ("auto", "egl", "tiny")
EPISODES_WITH_EGL = 25
"""Every reload leaves about 11 MB with pybullet's EGL plugin; its own rasteriser leaves none."""
WARM_UP = 4
"""A process's first two EGL frames are lit differently from all that follow."""
_GL_RENDERER = 0x1F01
_PROTOCOL = "calvin_models/conf"


class PlayTable:
    """One scene of calvin_env with its task oracle and instructions.

    renderer: "egl" draws as the published dataset was drawn, "tiny" is pybullet's software
    rasteriser (no library needed, other pixels), "auto" is egl where libEGL loads.
    """

    def __init__(self, scene: str = "calvin_scene_D", renderer: str = "auto") -> None:
        self.renderer = _choose_renderer(renderer)
        self._root = _checkout()
        self._env = _build(self._root / "conf", scene, self.renderer == "egl")
        self._cameras = {camera.name: camera for camera in self._env.cameras}
        self._env.cameras = []
        for _ in range(WARM_UP):
            self.look("static")
        self._oracle, self._instructions = _protocol(_protocol_folder(self._root))

    @property
    def episodes_per_process(self) -> Optional[int]:
        return EPISODES_WITH_EGL if self.renderer == "egl" else None

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None:
        """Start at robot float64 [15], scene float64 [24], bit-identical to a fresh process.

        calvin_env's own reset keeps contacts of the last episode, which moves later ones by
        millimetres. A new world costs 0.07 s; it has to be drawn with the first one's seed,
        because the blocks' poses at loading leave traces in the contacts too.
        """
        env = self._env
        env.seed(0)
        env.scene.np_random = env.np_random
        env.load()
        env.robot.gripper_action = 1
        env.reset(robot_obs=robot, scene_obs=scene)

    def step(self, action: np.ndarray) -> Mapping[str, Any]:
        """One control step (1/30 s) of float32 [7]; the gripper is -1 or 1. Returns the info."""
        # A copy: older versions of calvin_env scale the action in place.
        return self._env.step(np.array(action))[3]

    def info(self) -> Mapping[str, Any]:
        """What the oracle compares: contacts, poses, joints and lights."""
        return self._env.get_info()

    def solved(self, subtask: str, start: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        return bool(self._oracle.get_task_info_for_set(start, now, {subtask}))

    def instruction(self, subtask: str) -> str:
        """The subtask's first validation annotation, as the published evaluator takes."""
        return str(self._instructions[subtask][0])

    def look(self, camera: str) -> np.ndarray:
        """uint8 [200, 200, 3] of "static", [84, 84, 3] of "gripper" (on the wrist)."""
        if camera == "gripper":
            return np.ascontiguousarray(self._cameras[camera].render()[0], dtype=np.uint8)
        return self._draw(self._cameras[camera])

    def _draw(self, camera: Any) -> np.ndarray:
        """What `camera.render()` draws, without its second pass for a segmentation mask."""
        bullet = importlib.import_module("pybullet")
        pixels = bullet.getCameraImage(
            width=camera.width,
            height=camera.height,
            viewMatrix=camera.viewMatrix,
            projectionMatrix=camera.projectionMatrix,
            flags=bullet.ER_NO_SEGMENTATION_MASK,
            physicsClientId=self._env.cid,
        )[2]
        rgba = np.reshape(pixels, (camera.height, camera.width, 4)).astype(np.uint8)
        return np.ascontiguousarray(rgba[:, :, :3])

    def snapshot(self, image: np.ndarray) -> Snapshot:
        """All about `image`, what the static camera shows now; needs the software rasteriser."""
        from envs.calvin_view import snapshot

        if self.renderer == "egl":
            raise ValueError(
                "pybullet's EGL renderer gives depth and segments that do not fit each other at "
                "edges: open CALVIN with renderer 'tiny' in simulator_args"
            )
        return snapshot(self._env, self._cameras["static"], image)

    def state(self) -> np.ndarray:
        """float64 [39]: robot [15] and scene [24], laid out as `reset` takes them."""
        obs = self._env.get_state_obs()
        return np.concatenate([obs["robot_obs"], obs["scene_obs"]])

    def fingerprint(self) -> Dict[str, str]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            **versions,
            "python": platform.python_version(),
            "calvin_env": commit(self._root),
            "calvin": commit(_protocol_folder(self._root)),
            "assets": _tree_hash(self._root / "data", self._root / "conf"),
            "renderer": _gl_renderer() if self.renderer == "egl" else "TinyRenderer",
        }

    def close(self) -> None:
        self._env.close()


def _choose_renderer(renderer: str) -> str:
    if renderer not in RENDERERS:
        raise ValueError(f"renderer {renderer!r} is not one of {', '.join(RENDERERS)}")
    if renderer != "auto":
        return renderer
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        log.warning("libEGL.so.1 is missing: frames will differ from the dataset's (EGL) ones")
        return "tiny"
    return "egl"


def _checkout() -> Path:
    try:
        calvin_env = importlib.import_module("calvin_env")
    except ImportError as error:
        raise ImportError(
            f"calvin_env cannot be imported by {sys.executable} ({error}): run `make calvin`."
        ) from error
    return Path(str(calvin_env.__file__)).resolve().parents[1]


def _protocol_folder(root: Path) -> Path:
    """The task oracle's and the instructions' configuration, which lie in mees/calvin."""
    places = (root.parent / "calvin", root.parent)  # side by side, or calvin_env as a submodule
    for place in places:
        if (place / _PROTOCOL).is_dir():
            return place / _PROTOCOL
    tried = " or ".join(str(place) for place in places)
    raise FileNotFoundError(f"no {_PROTOCOL} in {tried}: run `make calvin`.")


def _build(conf: Path, scene: str, use_egl: bool) -> Any:
    """calvin_env's environment, as its data were recorded; both cameras at their own size."""
    hydra = importlib.import_module("hydra")
    _choose_device()
    overrides = [
        "cameras=static_and_gripper",
        f"scene={scene}",
        f"env.use_egl={str(use_egl).lower()}",
        "env.show_gui=false",
        "use_vr=false",
        "env.use_scene_info=true",
    ]
    with hydra.initialize_config_dir(str(conf), version_base="1.1"):
        config = hydra.compose("config_data_collection", overrides=overrides)
    try:
        return hydra.utils.instantiate(config.env)
    except SystemExit as leaving:
        # calvin_env ends the process when pybullet's plugin does not load.
        raise RuntimeError(
            "pybullet's EGL renderer does not start: install libegl1 libegl-mesa0 "
            "libgl1-mesa-dri, or ask for renderer 'tiny'."
        ) from leaving


def _choose_device() -> None:
    """EGL draws on the GPU that was given to this worker."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if first.isdigit():
        os.environ.setdefault("EGL_VISIBLE_DEVICES", first)


def _protocol(folder: Path) -> Tuple[Any, Mapping[str, Any]]:
    """The success oracle and the instructions of each subtask."""
    hydra = importlib.import_module("hydra")
    omegaconf = importlib.import_module("omegaconf")
    load = omegaconf.OmegaConf.load
    oracle = hydra.utils.instantiate(
        load(folder / "callbacks/rollout/tasks/new_playtable_tasks.yaml")
    )
    return oracle, load(folder / "annotations/new_playtable_validation.yaml")


def _tree_hash(*folders: Path) -> str:
    """sha256 of every file's path and bytes."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{folder.name}/{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _gl_renderer() -> str:
    """What the current EGL context draws with: a GPU, or Mesa's llvmpipe."""
    try:
        library = ctypes.CDLL("libGL.so.1")
    except OSError:
        return "egl"
    library.glGetString.restype = ctypes.c_char_p
    name = library.glGetString(_GL_RENDERER)
    return f"egl {name.decode()}" if name else "egl"
