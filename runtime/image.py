"""Frame -> network input: resized to fit, padded with zeros right and bottom.

Two ways to resize. `pillow_bilinear` is exact: what the published models were trained and evaluated with, a triangle
filter that antialiases, rounded to 8 bit after each pass. `cv2_area` is the fast one: it averages the same pixels
when it shrinks, so values differ by a few grey levels along edges; use it with a model that was trained or checked
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import UsageError

__all__ = [
    "RESIZERS",
    "Letterbox",
    "best_size",
    "check_frames",
    "cv2_area",
    "fit_in",
    "letterbox",
    "letterbox_into",
    "network_input",
    "pillow_bilinear",
    "published_size",
]

Frame = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class Letterbox:
    """The place of a frame in the network input: all sizes (height, width) in pixels, the frame at the top left.

    source: the frame. valid: the frame after the resize. network: the whole input; beyond `valid` it is zero.
    """

    source: Size
    valid: Size
    network: Size

    def source_box(self, corners: NDArray[np.float32]) -> tuple[int, int, int, int] | None:
        """x, y, width, height in whole pixels of the source of a box x1, y1, x2, y2 [4] in pixels of the network input.

        Cut at the frame's edges; None where no pixel is left of it.
        """
        scale = np.array(self.source[::-1]) / np.array(self.valid[::-1])
        edges = np.clip(np.rint(corners.reshape(2, 2) * scale), 0, self.source[::-1]).astype(int)
        (x1, y1), (x2, y2) = edges.tolist()
        return (x1, y1, x2 - x1, y2 - y1) if x2 > x1 and y2 > y1 else None

    def like(self, other: Letterbox) -> bool:
        """True where the network sees the same geometry, to a pixel of rounding: tracks can go on."""
        (height, width), (other_height, other_width) = self.valid, other.valid
        close = abs(height - other_height) <= 1 and abs(width - other_width) <= 1
        return close and self.network == other.network


def letterbox(source: Size, network: Size) -> Letterbox:
    """The largest fit of `source` into `network` that keeps the aspect; small frames are enlarged."""
    scale = min(network[0] / source[0], network[1] / source[1])
    height, width = (max(1, int(size * scale + 0.5)) for size in source)
    return Letterbox(source, (min(height, network[0]), min(width, network[1])), network)


def fit_in(source: Size, spec: InputSpec) -> Letterbox:
    """How a frame of `source` lies in the network input: resized as published where that fits, else `letterbox`."""
    network = (spec.height, spec.width)
    if spec.short_side is not None:
        valid = published_size(source, spec.short_side, spec.long_side)
        if valid[0] <= network[0] and valid[1] <= network[1]:
            return Letterbox(source, valid, network)
    return letterbox(source, network)


def published_size(source: Size, short_side: int, long_side: int | None = None) -> Size:
    """`source` with its short side at `short_side`, or its long side at `long_side` if it would be longer.

    As detectron2's ResizeShortestEdge rounds, by which published models are evaluated.
    """
    scale = short_side / min(source)
    if long_side is not None and scale * max(source) > long_side:
        scale = long_side / max(source)
    height, width = (max(1, int(side * scale + 0.5)) for side in source)
    return height, width


def best_size(source: Size, specs: Sequence[InputSpec]) -> int:
    """The place in `specs` of the network input in which frames of `source` (height, width) are seen best.

    At the published scale where an input allows that, else at the largest; of these the input with the least padding.
    """
    fits = [fit_in(source, spec) for spec in specs]
    takes = [spec.source in (None, source) for spec in specs]

    def merit(at: int) -> tuple[bool, int, int]:
        (height, width), (rows, columns) = fits[at].valid, fits[at].network
        return takes[at], height * width, -rows * columns

    return max(range(len(specs)), key=merit)


def pillow_bilinear(frame: Frame, size: Size) -> Frame:
    """`frame` [H, W, 3] at `size` (height, width), exactly as the published models saw it.

    Rows before columns, one call each: newer Pillows choose the order by themselves, and the rounding between differs.
    """
    narrow = Image.fromarray(frame).resize((size[1], frame.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def cv2_area(frame: Frame, size: Size) -> Frame:
    """`frame` [H, W, 3] at `size` (height, width): averages when shrinking, interpolates when enlarging."""
    shrinks = size[0] < frame.shape[0]
    resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


RESIZERS: dict[str, Callable[[Frame, Size], Frame]] = {"pillow_bilinear": pillow_bilinear, "cv2_area": cv2_area}


def letterbox_into(out: Frame, frame: Frame, spec: InputSpec, resize: Callable[[Frame, Size], Frame]) -> Letterbox:
    """Writes `frame` [H, W, 3] into `out` [*spec.image_size, 3] as the frame graph takes it; gives how it lies there.

    Raises UsageError for a frame of another size than the graph can resize.
    """
    source = (frame.shape[0], frame.shape[1])
    fit = fit_in(source, spec)
    if spec.source is None:
        network_input(frame, fit, resize, out)
    elif source == spec.source:
        out[:] = frame
    else:
        raise UsageError(
            f"a frame of {source[0]}x{source[1]} was given to a bundle that takes {spec.source[0]}x{spec.source[1]} "
            "(height x width) only; export one without --source-size, or with this size"
        )
    return fit


def check_frames(frames: Sequence[Frame]) -> None:
    """Raises UsageError unless all are uint8 [H, W, 3] with at least one pixel."""
    for frame in frames:
        is_array = isinstance(frame, np.ndarray)
        given = f"{frame.dtype} {list(frame.shape)}" if is_array else f"a {type(frame).__name__}"
        if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UsageError(f"frame is {given}; expected a uint8 array [height, width, 3], RGB")
        if not frame.size:
            raise UsageError(f"frame is {given}; expected at least one pixel")


def network_input(frame: Frame, fit: Letterbox, resize: Callable[[Frame, Size], Frame], out: Frame) -> None:
    """Writes `frame` [H, W, 3] into `out` [network height, network width, 3], uint8 RGB, zeros beyond the frame."""
    height, width = fit.valid
    out[:height, :width] = frame if fit.source == fit.valid else resize(frame, fit.valid)
    out[height:] = 0
    out[:height, width:] = 0
