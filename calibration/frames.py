"""The frames to calibrate on: spread over the scenes of the user's videos, none twice, the same on every machine.

Every source is read twice. The first pass keeps a thumbnail and a histogram of each frame, the second the pixels of the
chosen frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.image import RESIZERS, letterbox_into
from visrt.runtime.methods.int8 import FRAME_ALONE, Int8Plan
from visrt.runtime.parity.frames import Frames
from visrt.runtime.sources.video import Camera, SourceSpec, find_sources, open_source

__all__ = ["CalibrationFrames", "FrameChoice", "Look", "choose_frames", "farthest_first", "read_frames"]

LOOKS_MAX = 400
"""Frames of one source that are candidates. A longer source gives every second, fourth, ... frame."""

THUMBNAIL = 16
BINS = 4
ONE_COLOUR = 4 / 255
"""A picture whose thumbnail varies by less in every channel shows nothing."""

DUPLICATE = 0.012
"""Looks that are nearer are the same picture; about three grey levels throughout."""


@dataclass(frozen=True)
class Look:
    """The look of one frame: `thumbnail` [16 * 16 * 3] 0..1, `histogram` [64] of its colours."""

    source: int
    index: int
    thumbnail: Floats
    histogram: Floats

    @property
    def is_of_one_colour(self) -> bool:
        pixels = self.thumbnail.reshape(-1, 3)
        return bool((pixels.max(axis=0) - pixels.min(axis=0) < ONE_COLOUR).all())

    def vector(self) -> Floats:
        """Its distance to another is near 0 for the same picture and near 1 for quite another."""
        return np.concatenate([self.thumbnail / THUMBNAIL, self.histogram / 2])


@dataclass(frozen=True)
class FrameChoice:
    """The frames chosen: (source, index) pairs. From `ranges` the ranges are read, on `judging` quality is judged.

    read: frames looked at. one_colour: of them, those that show nothing. notes: what was wrong with a source.
    """

    sources: tuple[SourceSpec, ...]
    ranges: tuple[tuple[int, int], ...]
    judging: tuple[tuple[int, int], ...]
    read: int
    one_colour: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CalibrationFrames:
    """Network inputs: for each chosen frame a clip of successive frames, shorter where its source has no more."""

    ranges: tuple[Frames, ...]
    judging: tuple[Frames, ...]


def choose_frames(sources: Sequence[str], count: int, progress: Callable[[str], None] = lambda _: None) -> FrameChoice:
    """At most `count` frames of `sources`, half for ranges and half for judging.

    Raises UsageError or SourceError for sources that cannot be read, DataError where there is nothing to calibrate on.
    """
    if count < 2:
        raise UsageError(f"{count} frames were requested; expected 2 or more, half for ranges and half for judging")
    specs = _specs(sources)
    looks: list[Look] = []
    notes: list[str] = []
    for at, spec in enumerate(specs):
        progress(spec.name)
        found, note = _looks(at, spec)
        looks += found
        notes += note
    pictures = [look for look in looks if not look.is_of_one_colour]
    _require_pictures(sources, looks, pictures)
    order = farthest_first(np.stack([look.vector() for look in pictures]), count)
    if len(order) < 2:
        raise DataError(
            f"{_listed(sources)}: {len(pictures)} frames that all show the same picture; expected two or more that "
            "differ: give a video, or a folder of images of the scenes the bundle is to run on"
        )
    chosen = [(pictures[i].source, pictures[i].index) for i in order]
    ranges, judging = tuple(chosen[0::2]), tuple(chosen[1::2])
    return FrameChoice(specs, ranges, judging, len(looks), len(looks) - len(pictures), tuple(notes))


def read_frames(choice: FrameChoice, spec: InputSpec, plan: Int8Plan = FRAME_ALONE) -> CalibrationFrames:
    """The pixels of the chosen frames and of those that follow, fitted into the network's input as the runtime fits a
    frame. Clips are as long as `plan` says.

    Raises DataError where no judging frame has a neighbour, as then nothing can be said of the assignment.
    """
    needed = {at for frame in choice.ranges for at in _near(frame, plan.range_frames)}
    needed |= {at for frame in choice.judging for at in _near(frame, plan.judged_frames)}
    inputs: dict[tuple[int, int], Frames] = {}
    for source in sorted({at[0] for at in needed}):
        inputs |= _inputs(choice.sources[source], source, needed, spec)
    judging = _clips(choice.judging, plan.judged_frames, inputs)
    if all(len(clip) == 1 for clip in judging):
        raise DataError(
            "every source holds a single image, so it cannot be judged whether objects keep their identity; give a "
            "video or a folder of its frames"
        )
    return CalibrationFrames(_clips(choice.ranges, plan.range_frames, inputs), judging)


def farthest_first(vectors: Floats, count: int) -> list[int]:
    """Rows of `vectors` [N, D], each the farthest from all before it; none that is a duplicate of one before.

    Starts at the row nearest to the mean. Equal distances go to the first row, so the choice is the same everywhere.
    """
    distance = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    chosen = [int(distance.argmin())]
    nearest = np.linalg.norm(vectors - vectors[chosen[0]], axis=1)
    while len(chosen) < count and nearest.max() > DUPLICATE:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return chosen


def _specs(sources: Sequence[str]) -> tuple[SourceSpec, ...]:
    if not sources:
        raise UsageError("no source was given; expected videos or folders of images with --source")
    specs = tuple(chain.from_iterable(find_sources(source) for source in sources))
    if any(isinstance(spec, Camera) for spec in specs):
        raise UsageError("a camera never shows the same frames again; record it and give the video as --source")
    return specs


def _looks(at: int, spec: SourceSpec) -> tuple[list[Look], list[str]]:
    """Looks of the frames of source `at`, evenly spaced if it is long, and what was wrong with it."""
    source = open_source(spec)
    looks: list[Look] = []
    stride = 1
    try:
        for frame in source:
            if frame.index % stride or frame.corrupt:
                continue
            looks.append(_look(at, frame.index, frame.image))
            if len(looks) > LOOKS_MAX:
                stride *= 2
                looks = [look for look in looks if look.index % stride == 0]
        report = source.report
    finally:
        source.close()
    return looks, [f"{spec.name}: {report.reason}"] if report.end == "partial" else []


def _look(source: int, index: int, image: NDArray[np.uint8]) -> Look:
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    thumbnail = (small.astype(np.float32) / 255).reshape(-1)
    step = max(1, min(image.shape[:2]) // 64)
    colours = image[::step, ::step].reshape(-1, 3) // (256 // BINS)
    counts = np.bincount(colours @ np.array([BINS * BINS, BINS, 1]), minlength=BINS**3)
    histogram = np.sqrt(counts / counts.sum()).astype(np.float32)
    return Look(source, index, thumbnail, histogram)


def _require_pictures(sources: Sequence[str], looks: Sequence[Look], pictures: Sequence[Look]) -> None:
    if not looks:
        raise DataError(f"{_listed(sources)}: not one whole frame; expected videos or images that can be decoded")
    if not pictures:
        raise DataError(
            f"{_listed(sources)}: all {len(looks)} frames are of one colour (black?); expected pictures of the scenes "
            "the bundle is to run on"
        )


def _inputs(
    spec: SourceSpec, source: int, needed: set[tuple[int, int]], size: InputSpec
) -> dict[tuple[int, int], Frames]:
    """The `needed` frames of one source; reading stops after the last of them."""
    last = max(index for at, index in needed if at == source)
    opened = open_source(spec)
    found: dict[tuple[int, int], Frames] = {}
    try:
        for frame in opened:
            if (source, frame.index) in needed:
                found[source, frame.index] = _fitted(frame.image, size)
            if frame.index >= last:
                break
    finally:
        opened.close()
    return found


def _fitted(image: NDArray[np.uint8], spec: InputSpec) -> Frames:
    images = np.empty((1, *spec.image_size, 3), np.uint8)
    fit = letterbox_into(images[0], image, spec, RESIZERS[spec.resize])
    return Frames(images, np.array([fit.valid], np.int32))


def _joined(frames: Sequence[Frames]) -> Frames:
    return Frames(np.concatenate([one.images for one in frames]), np.concatenate([one.valid_sizes for one in frames]))


def _near(frame: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Frames of which a clip of `count` may consist."""
    source, index = frame
    return [(source, at) for at in range(max(0, index - count + 1), index + count)]


def _clips(
    frames: Sequence[tuple[int, int]], count: int, inputs: Mapping[tuple[int, int], Frames]
) -> tuple[Frames, ...]:
    """For each of `frames` a clip of `count`: it and its successors. At the end of a source the clip begins earlier."""
    found = ([at for at in _near(frame, count) if at in inputs] for frame in frames)
    return tuple(_joined([inputs[at] for at in near[-count:]]) for near in found)


def _listed(sources: Sequence[str]) -> str:
    return ", ".join(map(str, sources))
