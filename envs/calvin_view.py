"""What a CALVIN frame shows, exactly: depth, segments, and every thing's box.

The blocks and the table's moving parts and lights; the robot and the table itself are
background. Drawn by pybullet's own rasteriser: with EGL, segments and depth differ at edges.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from envs.api import Camera, Snapshot, Thing

PARTS = {
    "drawer_link": "drawer",
    "slide_link": "sliding door",
    "switch_link": "switch",
    "button_link": "button",
    "light_link": "light bulb",
    "led_link": "led",
}
"""What people call the table's links."""
_CORNERS = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), -1).reshape(-1, 3)


def snapshot(env: Any, camera: Any, image: np.ndarray) -> Snapshot:
    """All about `image`, uint8 [S, S, 3], which `camera` of calvin_env has drawn just now."""
    bullet = importlib.import_module("pybullet")
    size = len(image)
    depth, bodies = _maps(bullet, env.cid, camera, size)
    things, segments = [], np.zeros((size, size), np.int32)
    for number, (name, uid, link) in enumerate(_known(bullet, env), 1):
        shown = bodies == uid + ((link + 1) << 24)
        segments[shown] = number
        points = _points(bullet, env.cid, uid, link)
        low, high = points.min(0), points.max(0)
        things.append(Thing(name, (low + high) / 2, high - low, int(shown.sum())))
    return Snapshot(image, depth, segments, _camera(camera, size), tuple(things))


def _known(bullet: Any, env: Any) -> List[Tuple[str, int, int]]:
    """Name, body and link of each thing; -1 is a body's base."""
    scene = env.scene
    known = [(_spoken(block.name), block.uid, -1) for block in scene.movable_objects]
    for table in scene.fixed_objects:
        for joint in range(bullet.getNumJoints(table.uid, physicsClientId=env.cid)):
            told = bullet.getJointInfo(table.uid, joint, physicsClientId=env.cid)
            name = PARTS.get(told[12].decode())
            if name is not None:
                known.append((name, table.uid, joint))
    return known


def _spoken(name: str) -> str:
    """block_red is a red block."""
    return " ".join(reversed(name.split("_")))


def _maps(bullet: Any, client: int, camera: Any, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Depth float32 in metres, and bodies with their links as pybullet packs them, [size, size]."""
    # The rasteriser looks at each pixel's lower left corner; its middle is what a frame shows.
    projection = list(camera.projectionMatrix)
    projection[8] += 1 / size
    projection[9] += 1 / size
    drawn = bullet.getCameraImage(
        width=size,
        height=size,
        viewMatrix=camera.viewMatrix,
        projectionMatrix=projection,
        flags=bullet.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
        renderer=bullet.ER_TINY_RENDERER,
        physicsClientId=client,
    )
    buffer, bodies = (np.asarray(drawn[place]).reshape(size, size) for place in (3, 4))
    near, far = camera.nearval, camera.farval
    depth = far * near / (far - (far - near) * buffer.astype(np.float64))
    return depth.astype(np.float32), bodies


def _camera(camera: Any, size: int) -> Camera:
    """OpenGL's camera looks along -z with y up."""
    pose = np.linalg.inv(np.array(camera.viewMatrix).reshape(4, 4).T)
    pose[:3, 1:3] *= -1
    return Camera(float(size / 2 / np.tan(np.radians(camera.fov) / 2)), size, size, pose)


def _points(bullet: Any, client: int, uid: int, link: int) -> np.ndarray:
    """Float [n, 3], world: corners of the visible boxes and meshes of a link."""
    if link < 0:
        frame = bullet.getBasePositionAndOrientation(uid, physicsClientId=client)
    else:
        told = bullet.getLinkState(uid, link, computeForwardKinematics=1, physicsClientId=client)
        frame = told[4:6]
    shapes = bullet.getVisualShapeData(uid, physicsClientId=client)
    found = [
        _placed(bullet, _local(bullet, shape), shape[5], shape[6])
        for shape in shapes
        if shape[1] == link
    ]
    return _placed(bullet, np.concatenate(found), *frame)


def _placed(bullet: Any, points: np.ndarray, position: Any, turn: Any) -> np.ndarray:
    rotation = np.array(bullet.getMatrixFromQuaternion(turn)).reshape(3, 3)
    return points @ rotation.T + np.array(position)


def _local(bullet: Any, shape: Any) -> np.ndarray:
    if shape[2] == bullet.GEOM_BOX:
        return _CORNERS * np.array(shape[3])
    return _mesh(Path(shape[4].decode())) * np.array(shape[3])


_MESHES: Dict[Path, np.ndarray] = {}


def _mesh(path: Path) -> np.ndarray:
    """Vertices float [n, 3] of an OBJ or binary STL file."""
    if path not in _MESHES:
        data = path.read_bytes()
        if path.suffix.lower() == ".obj":
            lines = [line.split()[1:4] for line in data.splitlines() if line.startswith(b"v ")]
            _MESHES[path] = np.array(lines, float)
        else:
            record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
            triangles = np.frombuffer(data, record, offset=84)
            _MESHES[path] = triangles["corners"].reshape(-1, 3).astype(float)
    return _MESHES[path]
