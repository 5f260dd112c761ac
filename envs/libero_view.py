"""What a LIBERO frame shows, exactly: depth, segments, and every thing's box.

Read from the simulator at the frame's own moment, with the renderer that drew it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from envs.api import Camera, Snapshot, Thing
from envs.experts.libero_geometry import Geometry
from envs.libero_scene import Scene

ROBOT = {"gripper0_": "robot gripper", "robot0_": "robot arm"}
"""Things of the robot by the prefix of their bodies' names."""
DRAWN = 1
"""robosuite's group of shapes that are drawn; those of group 0 only collide."""


def snapshot(scene: Scene, camera: str, size: int) -> Snapshot:
    """The frame that `scene.frames()` gives for a camera of `size` pixels, and all about it."""
    image = scene.frames()[camera]
    sim = scene.env.sim
    geometry = Geometry(scene.env)
    with scene.moment():
        names, owners = _owners(scene.env)
        depth, geoms = _maps(sim, camera, size)
        segments = np.where(geoms < 0, 0, np.append(owners, 0)[geoms]).astype(np.int32)
        counts = np.bincount(segments.ravel(), minlength=len(names) + 1)
        things = tuple(
            _thing(name, geometry, np.flatnonzero(owners == index), int(counts[index]))
            for index, name in enumerate(names, 1)
        )
        return Snapshot(image, depth, segments, _camera(sim, camera, size), things)


def spoken(name: str) -> str:
    """How people say an object's name: its number and underscores left out."""
    return re.sub(r"_\d+$", "", name).replace("_", " ")


def _owners(env: Any) -> Tuple[List[str], np.ndarray]:
    """Names of the things that are drawn, and for each geom 1 + its thing, 0 for none."""
    model = env.sim.model
    bodies: Dict[int, str] = {body: name for name, body in env.obj_body_id.items()}
    for body, name in enumerate(model.body_names):
        part = next((p for p in ROBOT if str(name).startswith(p)), None)
        if part is not None:
            bodies[body] = part
    chosen = [_named(model, bodies, geom) for geom in range(model.ngeom)]
    keys = sorted({key for key in chosen if key})
    places = {key: index for index, key in enumerate(keys, 1)}
    owners = np.array([places[key] if key else 0 for key in chosen])
    return [ROBOT.get(key) or spoken(key) for key in keys], owners


def _named(model: Any, bodies: Dict[int, str], geom: int) -> str:
    """The nearest named body that a drawn geom belongs to; "" for none."""
    if model.geom_group[geom] != DRAWN:
        return ""
    body = int(model.geom_bodyid[geom])
    while body and body not in bodies:
        body = int(model.body_parentid[body])
    return bodies.get(body, "")


def _thing(name: str, geometry: Geometry, geoms: np.ndarray, pixels: int) -> Thing:
    points = np.concatenate([geometry.geom_points(int(geom)) for geom in geoms])
    low, high = points.min(0), points.max(0)
    return Thing(name, (low + high) / 2, high - low, pixels)


def _maps(sim: Any, camera: str, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Depth float32 in metres and geom ids int32 (-1 for none), [size, size], turned by 180°.

    robosuite's own reading of segments overflows with numpy 2, so colours are read here.
    """
    mujoco = importlib.import_module("mujoco")
    context, model = sim._render_context_offscreen, sim.model
    colours = np.empty((size, size, 3), np.uint8)
    buffer = np.empty((size, size), np.float32)
    with _without_sites(context.vopt):
        context.gl_ctx.make_current()
        context.render(size, size, model.camera_name2id(camera), segmentation=True)
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_readPixels(rgb=colours, depth=buffer, viewport=viewport, con=context.con)
    drawn = colours.astype(np.int64) @ (1, 2**8, 2**16) - 1
    ids = np.full(context.scn.ngeom + 1, -1, np.int32)
    for geom in context.scn.geoms[: context.scn.ngeom]:
        if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
            ids[geom.segid] = geom.objid
    drawn[drawn >= len(ids) - 1] = -1
    near, far = (model.stat.extent * z for z in (model.vis.map.znear, model.vis.map.zfar))
    depth = near / (1 - buffer.astype(np.float64) * (1 - near / far))
    return _turned(depth.astype(np.float32)), _turned(ids[drawn])


@contextlib.contextmanager
def _without_sites(options: Any) -> Iterator[None]:
    """Regions that LIBERO marks are no things: they would hide those behind them."""
    groups = options.sitegroup.copy()
    options.sitegroup[:] = 0
    yield
    options.sitegroup[:] = groups


def _turned(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[::-1, ::-1])


def _camera(sim: Any, name: str, size: int) -> Camera:
    """OpenGL's camera looks along -z with y up, and the turned picture runs right to left."""
    index = sim.model.camera_name2id(name)
    pose = np.eye(4)
    pose[:3, :3] = -sim.data.cam_xmat[index].reshape(3, 3)
    pose[:3, 3] = sim.data.cam_xpos[index]
    focal = size / 2 / np.tan(np.radians(sim.model.cam_fovy[index]) / 2)
    return Camera(float(focal), size, size, pose)
