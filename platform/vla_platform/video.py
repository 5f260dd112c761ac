"""Episodes as H.264 videos."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np


def encode_mp4(frames: Sequence[np.ndarray], rate: int = 20) -> bytes:
    """uint8 [H, W, 3] frames to an mp4 that browsers play; odd sides lose their last row."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[:height, :width]), format="rgb24"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return out.getvalue()
