"""The protocol of video sources: frames in order, what is known beforehand, and an account of every frame at the end.

Policy: every frame is accounted for (captured = decoded + dropped + corrupt + skipped), and every source ends
complete, partial (with the reason) or failed (a SourceError). What is read in part, or changed to be shown, is said in
one remark.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol
from weakref import WeakMethod

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import UsageError

__all__ = [
    "Image",
    "Moment",
    "RawFormat",
    "ReportedSource",
    "Selector",
    "Source",
    "SourceInfo",
    "SourceReport",
    "VideoFrame",
    "VideoSettings",
    "moment",
    "raw_format",
]

LOGGER = logging.getLogger("visrt.source")

Image = NDArray[np.uint8]
"""RGB uint8 [H, W, 3], as displayed: upright, with square pixels, high dynamic range mapped to that of a screen."""


@dataclass(frozen=True)
class Moment:
    """A place in a source: seconds, or the number of a frame, of which one is None."""

    seconds: float | None = None
    frame: int | None = None

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.seconds is not None else f"frame {self.frame}"

    def reached(self, index: int, time_s: float) -> bool:
        """Whether frame `index`, shown at `time_s` seconds, is there or beyond."""
        return index >= self.frame if self.frame is not None else time_s >= (self.seconds or 0) - 1e-6


def moment(value: Moment | float | str) -> Moment:
    """Seconds (2.5, "2.5s", "1:30", "0:01:30.5") or a frame ("75f"). Raises UsageError for what is neither."""
    if isinstance(value, Moment):
        return value
    text = str(value).strip()
    if frame := re.fullmatch(r"(\d+) *f", text):
        return Moment(frame=int(frame[1]))
    if clock := re.fullmatch(r"(?:(\d+):)?(?:(\d+):)(\d+(?:\.\d+)?)", text):
        hours, minutes, seconds = clock[1] or 0, clock[2], clock[3]
        return Moment(3600.0 * int(hours) + 60.0 * int(minutes) + float(seconds))
    try:
        seconds_ = float(text.removesuffix("s"))
    except ValueError:
        seconds_ = -1.0
    if not (math.isfinite(seconds_) and seconds_ >= 0):
        raise UsageError(f"{text!r} is no place in a video; expected seconds as 2.5 or 1:30, or a frame as 75f")
    return Moment(seconds_)


@dataclass(frozen=True)
class VideoSettings:
    """Settings for reading sources.

    damaged: frames the decoder gives but flags as damaged are kept (and counted) or dropped.
    max_bad_packets: so many undecodable packets in a row stop a source.
    max_pixels: larger frames are refused before they are allocated (2**26 is twice 8K).
    image_fps: frames a second of a folder of images.
    playlists: playlists (m3u8, ffconcat ...) open other files and addresses, so they are refused unless allowed.
    start, end: of the frames that are given, the end left out; `moment` reads them. every: of these, each so many-th.
    cuts: "find" marks frames that begin another scene, see `VideoFrame.cut`.
    value_range: what is black and white in pictures of more than 8 bits; None takes it from the first picture.
    raw: how raw frames on the standard input look, see `raw_format`; None where it carries an encoded video.
    """

    damaged: Literal["keep", "drop"] = "keep"
    max_bad_packets: int = 100
    max_pixels: int = 2**26
    image_fps: float = 10.0
    playlists: Literal["refuse", "allow"] = "refuse"
    start: Moment | None = None
    end: Moment | None = None
    every: int = 1
    cuts: Literal["ignore", "find"] = "ignore"
    value_range: tuple[float, float] | None = None
    raw: RawFormat | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"every is {self.every}; expected 1 or more")
        _check_span(self.start, self.end)
        low, high = self.value_range or (0, 1)
        if not low < high:
            raise UsageError(f"value_range is {low:g} to {high:g}; expected black below white")


def _check_span(start: Moment | None, end: Moment | None) -> None:
    """Raises UsageError for an end that lies before the start, or at it; seconds and frames cannot be compared."""
    if end is not None and 0 in (end.seconds, end.frame):
        raise UsageError(f"the end is {end}; expected one after the first frame")
    if start is None or end is None:
        return
    pairs = ((start.seconds, end.seconds), (start.frame, end.frame))
    if any(first is not None and last is not None and last <= first for first, last in pairs):
        raise UsageError(f"the end, {end}, is not after the start, {start}; give an end that is, or none")


@dataclass(frozen=True)
class RawFormat:
    """Frames one after the other without a head: `width` x `height` pixels of `pixels`, so many `fps`."""

    width: int
    height: int
    pixels: Literal["rgb24", "bgr24", "gray"] = "rgb24"
    fps: float = 25.0

    @property
    def channels(self) -> int:
        return 1 if self.pixels == "gray" else 3


def raw_format(text: str, fps: float = 25.0) -> RawFormat:
    """The format that "640x480" or "640x480:bgr24" says, width first as FFmpeg has it."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})(?::(rgb24|bgr24|gray))?", text.strip())
    if not found or not (int(found[1]) > 0 and int(found[2]) > 0):
        raise UsageError(
            f"raw frames of {text!r} are not understood; expected WIDTHxHEIGHT, and a colon and rgb24, bgr24 or gray "
            "where they are not rgb24"
        )
    return RawFormat(int(found[1]), int(found[2]), found[3] or "rgb24", fps)  # type: ignore[arg-type]


class Selector:
    """Which frames of a source are given, in order: from the start on each so many-th, until the end."""

    def __init__(self, settings: VideoSettings) -> None:
        self._settings = settings
        self._first: int | None = None
        self.over = False

    def takes(self, index: int, time_s: float) -> bool:
        """Whether frame `index` of the source, shown at `time_s` seconds, is given; `over` from the end on."""
        start, end = self._settings.start, self._settings.end
        self.over = self.over or (end is not None and end.reached(index, time_s))
        if self.over or (start is not None and self._first is None and not start.reached(index, time_s)):
            return False
        self._first = index if self._first is None else self._first
        return (index - self._first) % self._settings.every == 0


@dataclass(frozen=True)
class VideoFrame:
    """One frame. index: 0, 1, ... over those the source could give, also where settings leave frames out. time_s: grows
    strictly. corrupt: flagged by the decoder. cut: it begins another scene, where cuts are looked for."""

    index: int
    time_s: float
    image: Image
    corrupt: bool = False
    cut: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """A source's own description, before it is read; None where it does not know. Never trusted for allocation.

    frames: declared count. size: (height, width) of the first frames as they are given. pixel_aspect: how much wider
    than high pixels are stored; frames are given with square ones. live: cannot be paused.
    """

    name: str
    kind: Literal["file", "images", "camera", "stream"]
    frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    size: tuple[int, int] | None = None
    live: bool = False
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class SourceReport:
    """The account of the frames so far.

    decoded: given out; damaged of them were flagged by the decoder. corrupt: lost to damage. skipped: unreadable
    images. end: "running" until the source is exhausted; `reason` says in words why it is partial. remarks: what was
    read in part, or changed to be shown.
    """

    decoded: int = 0
    damaged: int = 0
    corrupt: int = 0
    skipped: int = 0
    end: Literal["running", "complete", "partial"] = "running"
    reason: str = ""
    remarks: tuple[str, ...] = ()


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

    def _remark_of_a_part(self) -> Callable[[str], None]:
        """`_remark` for a part that the source keeps. The part must not keep the source in return: a source in a cycle
        holds its decoder until Python looks for cycles."""
        remark = WeakMethod(self._remark)

        def say(text: str) -> None:
            if (alive := remark()) is not None:
                alive(text)

        return say

    def _remark(self, text: str) -> None:
        """Says `text` once, in the log and in the report."""
        if text not in self._report.remarks:
            self._report = replace(self._report, remarks=(*self._report.remarks, text))
            LOGGER.warning("%s: %s", self._info.name, text)
