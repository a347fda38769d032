"""A clip enlarged to another size, for the cost of decoding that size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2

from visrt.runtime.video import read_video

__all__ = ["enlarged_clip"]


def enlarged_clip(clip: Path, out: Path, size: tuple[int, int], frames: int) -> Path:
    """The first `frames` frames of `clip` at `size` (height, width), as H.264 at `out`."""
    with av.open(str(out), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"preset": "veryfast", "crf": "23"}
        for frame in islice(read_video(clip), frames):
            image = cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return out
