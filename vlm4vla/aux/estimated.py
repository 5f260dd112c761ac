"""Scenes of real pictures, whose geometry nobody measured: a detector and a depth model guess it.

For BridgeVQA's frames of Bridge and Fractal (4.2, A.6), in the steps of VQASynth: OWLv2 finds
things by name, Depth Anything gives metres, and the picture's largest plane says where up is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from envs.api import Camera, Snapshot, Thing
from vlm4vla.aux.spatial import Margins, back_project
from vlm4vla.data.source import Source

DETECTOR = "google/owlv2-base-patch16-ensemble"
DEPTH = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"
NAMES = (
    *("robot gripper", "spoon", "fork", "knife", "spatula", "cup", "mug", "bowl", "plate", "pot"),
    *("pan", "lid", "towel", "cloth", "sponge", "brush", "can", "bottle", "box", "block", "cube"),
    *("carrot", "corn", "eggplant", "banana", "apple", "orange", "lemon", "mushroom", "potato"),
    *("pepper", "bread", "strawberry", "sushi", "cheese", "toy", "drawer", "sink", "basket"),
    *("chip bag", "soda can", "water bottle"),
)
"""What lies about in Bridge V2 and Fractal."""
MARGINS = Margins(side=0.1, row=0.06, height=0.06, depth=0.15, size=3.0, share=0.002)
"""Guesses are compared only where they differ clearly."""
VIEW = 60.0
"""Degrees that a camera is taken to see across: neither dataset says."""
NEAR_DEPTH = 0.15
"""Pixels of a box whose depth is within so large a share of its median belong to the thing."""
TRIES, PLANE = 200, 0.02
"""Planes tried, and metres from one within which a point counts as on it."""


@dataclass(frozen=True)
class Estimator:
    """Models and processors of transformers. `threshold`: score that a found box must have."""

    detector: Any
    read_text_and_image: Any
    depth_model: Any
    read_image: Any
    threshold: float = 0.2

    @classmethod
    def load(
        cls,
        detector: str | Path = DETECTOR,
        depth: str | Path = DEPTH,
        threshold: float = 0.2,
        device: str = "cpu",
    ) -> Estimator:
        """From hub ids or local folders; OSError says which of them cannot be read."""
        import transformers as hub

        try:
            finder: Any = hub.Owlv2ForObjectDetection.from_pretrained(detector)
            reader = hub.Owlv2Processor.from_pretrained(detector)
            metres: Any = hub.AutoModelForDepthEstimation.from_pretrained(depth)
            look = hub.AutoImageProcessor.from_pretrained(depth)
        except OSError as error:
            raise OSError(
                f"the detector {detector} or the depth model {depth} cannot be read ({error}): "
                "download them, or name local folders"
            ) from error
        return cls(finder.to(device).eval(), reader, metres.to(device).eval(), look, threshold)

    def snapshot(self, image: UInt8[np.ndarray, "H W 3"], names: Sequence[str]) -> Snapshot:
        """The scene as far as it can be told; at most one thing of each name, the surest."""
        depth = self._depth(image)
        camera = levelled(depth, camera_of(image.shape[1], image.shape[0]))
        points = back_project(depth, camera)
        segments = np.zeros(depth.shape, np.int32)
        things: list[Thing] = []
        for name, box in self._found(image, names).items():
            mask = _shown(depth, box) & (segments == 0)
            if mask.any():
                things.append(_thing(name, points[mask]))
                segments[mask] = len(things)
        return Snapshot(image, depth.astype(np.float32), segments, camera, tuple(things))

    @torch.no_grad()
    def _found(self, image: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Left, top, right, bottom in pixels by name, the surest thing first."""
        device = self.detector.device
        read = self.read_text_and_image(
            text=[[f"a photo of a {name}" for name in names]],
            images=Image.fromarray(image),
            return_tensors="pt",
            truncation=True,
        ).to(device)
        found = self.read_text_and_image.post_process_grounded_object_detection(
            self.detector(**read), self.threshold, [image.shape[:2]]
        )[0]
        boxes: dict[str, np.ndarray] = {}
        for place in found["scores"].argsort(descending=True).tolist():
            name = names[int(found["labels"][place])]
            boxes.setdefault(name, found["boxes"][place].cpu().numpy())
        return boxes

    @torch.no_grad()
    def _depth(self, image: np.ndarray) -> Float[np.ndarray, "H W"]:
        read = self.read_image(images=Image.fromarray(image), return_tensors="pt")
        out = self.depth_model(**read.to(self.depth_model.device))
        found = self.read_image.post_process_depth_estimation(out, [image.shape[:2]])
        return found[0]["predicted_depth"].cpu().numpy().astype(np.float64).clip(1e-3)


def scenes(
    source: Source, estimator: Estimator, names: Sequence[str] = NAMES, per_episode: int = 1
) -> Iterator[tuple[str, Callable[[], Snapshot]]]:
    """Evenly spaced frames of every episode, for `vlm4vla.aux.bridge_vqa.write`."""
    for index in range(len(source)):
        for number in range(per_episode):
            share = (number + 0.5) / per_episode
            yield (
                f"{index:06d}-{number:02d}",
                partial(_look, source, estimator, names, index, share),
            )


def _look(
    source: Source, estimator: Estimator, names: Sequence[str], index: int, share: float
) -> Snapshot:
    images = source.read(index).images
    return estimator.snapshot(np.ascontiguousarray(images[int(share * len(images))]), names)


def camera_of(width: int, height: int) -> Camera:
    """A camera at the origin that looks along +y, its picture's down being -z."""
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    return Camera(width / 2 / np.tan(np.radians(VIEW) / 2), width, height, pose)


def levelled(depth: Float[np.ndarray, "H W"], camera: Camera) -> Camera:
    """The camera turned so that the picture's largest plane, a table or a floor, is level.

    Found by trying planes through three points. A plane steeper than 75° is a wall: unchanged.
    """
    rng = np.random.default_rng(0)
    points = back_project(depth, camera)[::4, ::4].reshape(-1, 3)
    best, normal = 0, np.array([0.0, 0.0, 1.0])
    for corners in points[rng.integers(0, len(points), (TRIES, 3))]:
        across = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        length = float(np.linalg.norm(across))
        if length < 1e-9:
            continue
        up = across / length * np.sign(across[2] or 1.0)
        near = int((np.abs((points - corners[0]) @ up) < PLANE).sum())
        if near > best and up[2] > np.cos(np.radians(75)):
            best, normal = near, up
    pose = camera.pose.copy()
    pose[:3, :3] = _turn(normal) @ pose[:3, :3]
    return Camera(camera.focal, camera.width, camera.height, pose)


def _turn(up: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation that takes `up` to +z and leaves the picture's sideways direction level."""
    side = np.cross([0.0, 1.0, 0.0], up)
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(up, side), up])


def _shown(depth: np.ndarray, box: Float[np.ndarray, " 4"]) -> np.ndarray:
    """bool [H, W]: the box's pixels without what lies clearly before or behind."""
    height, width = depth.shape
    left, top, right, bottom = np.clip(np.rint(box).astype(int), 0, [width, height] * 2)
    inside = np.zeros(depth.shape, bool)
    inside[top:bottom, left:right] = True
    if not inside.any():
        return inside
    middle = np.median(depth[inside])
    return inside & (np.abs(depth - middle) < NEAR_DEPTH * middle)


def _thing(name: str, points: Float[np.ndarray, "n 3"]) -> Thing:
    """Its box without the outermost twentieth of its points, which are the most often wrong."""
    low, high = np.quantile(points, [0.025, 0.975], axis=0)
    return Thing(name, (low + high) / 2, high - low, len(points))
