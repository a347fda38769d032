"""The protocol of video sources: frames in order, what is known beforehand, and an account of every frame at the end.

Policy: every frame is accounted for (captured = decoded + dropped + corrupt + skipped), and every source ends
complete, partial (with the reason) or failed (a SourceError).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Image", "ReportedSource", "Source", "SourceInfo", "SourceReport", "VideoFrame", "VideoSettings"]

Image = NDArray[np.uint8]
"""RGB uint8 [H, W, 3], as displayed: rotation metadata is already applied."""


@dataclass(frozen=True)
class VideoSettings:
    """Settings for reading sources.

    damaged: frames the decoder gives but flags as damaged are kept (and counted) or dropped.
    max_bad_packets: so many undecodable packets in a row stop a source.
    max_pixels: larger frames are refused before they are allocated (2**26 is twice 8K).
    image_fps: frames a second of a folder of images.
    playlists: playlists (m3u8, ffconcat ...) open other files and addresses, so they are refused unless allowed.
    """

    damaged: Literal["keep", "drop"] = "keep"
    max_bad_packets: int = 100
    max_pixels: int = 2**26
    image_fps: float = 10.0
    playlists: Literal["refuse", "allow"] = "refuse"


@dataclass(frozen=True)
class VideoFrame:
    """One frame. index: 0, 1, ... over those given out. time_s: grows strictly. corrupt: flagged by the decoder."""

    index: int
    time_s: float
    image: Image
    corrupt: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """A source's own description, before it is read; None where it does not know. Never trusted for allocation.

    frames: declared count. size: (height, width) of the first frames, before rotation. live: cannot be paused.
    """

    name: str
    kind: Literal["file", "images", "camera"]
    frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    size: tuple[int, int] | None = None
    live: bool = False


@dataclass(frozen=True)
class SourceReport:
    """The account of the frames so far.

    decoded: given out; damaged of them were flagged by the decoder. corrupt: lost to damage. skipped: unreadable
    images. end: "running" until the source is exhausted; `reason` says in words why it is partial.
    """

    decoded: int = 0
    damaged: int = 0
    corrupt: int = 0
    skipped: int = 0
    end: Literal["running", "complete", "partial"] = "running"
    reason: str = ""


class Source(Protocol):
    """Frames in order, read once. A SourceError ends a source of which not one frame could be read."""

    @property
    def info(self) -> SourceInfo: ...

    @property
    def report(self) -> SourceReport: ...

    def __iter__(self) -> Iterator[VideoFrame]: ...

    def close(self) -> None: ...


class ReportedSource:
    """Base of sources: they set `_info` when they open, and keep the account of their frames in `_report`."""

    _info: SourceInfo
    _report: SourceReport

    @property
    def info(self) -> SourceInfo:
        return self._info

    @property
    def report(self) -> SourceReport:
        return self._report
