"""Frames that a program gives, as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from visrt.runtime.errors import UsageError
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.source import (
    Image,
    ReportedSource,
    Selector,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
)

__all__ = ["Frames", "GivenFrames"]

Frames = Iterable[Image | VideoFrame | tuple[Image, float]]


class GivenFrames(ReportedSource):
    """Arrays [H, W, 3], uint8 RGB, with their times in seconds if they are pairs, else at a steady rate."""

    def __init__(self, frames: Frames, settings: VideoSettings) -> None:
        self._frames, self._settings = frames, settings
        self._info, self._report = SourceInfo("frames", "stream", fps=settings.image_fps), SourceReport()

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[VideoFrame]:
        selector, cuts = Selector(self._settings), CutDetector(self._settings)
        for index, given in enumerate(self._frames):
            frame = _video_frame(given, index, self._settings.image_fps)
            if selector.takes(index, frame.time_s):
                self._report = replace(self._report, decoded=self._report.decoded + 1)
                yield replace(frame, index=index, cut=cuts.cuts(frame.image) or frame.cut)
            elif selector.over:
                break
        self._report = replace(self._report, end="complete")


def _video_frame(given: Image | VideoFrame | tuple[Image, float], index: int, fps: float) -> VideoFrame:
    if isinstance(given, VideoFrame):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return VideoFrame(index, float(given[1]), given[0])
    if isinstance(given, np.ndarray):
        return VideoFrame(index, index / fps, given)
    raise UsageError(
        f"frame {index} is a {type(given).__name__}; expected a uint8 array [height, width, 3], RGB, or a pair of it "
        "and its time in seconds"
    )
