"""Writes small videos for tests: a red square that moves over grey, one object to the fake networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

SIZE = (48, 64)
FPS = 10

Picture = Callable[[int], NDArray[np.uint8]]


def red_square(index: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """RGB [H, W, 3]: grey, with a red square that moves right by two pixels a frame and wraps."""
    picture = np.full((*size, 3), 90, np.uint8)
    left = 2 * index % max(1, size[1] - 16)
    picture[8:24, left : left + 16] = (250, 0, 0)
    return picture


def noise(index: int, size: tuple[int, int] = (120, 160)) -> NDArray[np.uint8]:
    """RGB [H, W, 3] that does not compress, so that a damaged byte hits picture data."""
    return np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)


def write_clip(
    path: Path,
    frames: int = 30,
    picture: Picture = red_square,
    fps: int = FPS,
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    **options: str,
) -> Path:
    """An H.264 video at `path`; its format is that of the suffix, `options` go to the container."""
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = fps
        stream.codec_context.options = {"preset": "ultrafast", "bf": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(1000 * times_s[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
