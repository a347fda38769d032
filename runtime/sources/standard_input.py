"""Frames that another program writes to the standard input: raw ones, or an encoded video."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Protocol

import cv2
import numpy as np

from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.source import (
    Image,
    RawFormat,
    ReportedSource,
    Selector,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
)

__all__ = ["Pipe", "RawSource", "piped_video"]


class Peekable(Protocol):
    def peek(self, size: int = 0, /) -> bytes: ...
    def read(self, size: int = -1, /) -> bytes: ...


class Pipe:
    """A pipe that FFmpeg reads: it has no end to jump to. head: its first bytes, which are still to be read."""

    def __init__(self, stream: Peekable) -> None:
        self._stream = stream
        self.head = stream.peek(4096)[:4096]

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)


def piped_video() -> Pipe:
    """The encoded video on the standard input. Raises UsageError where a person would have to type it."""
    return Pipe(_standard_input())


def _standard_input() -> Any:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "-: nothing is piped into the standard input; as in `ffmpeg -i IN -f matroska - | visrt track -`"
        )
    return sys.stdin.buffer


class RawSource(ReportedSource):
    """Raw frames of one size and rate on the standard input. They end it; half a frame at its end is told."""

    def __init__(self, raw: RawFormat, settings: VideoSettings, stream: BinaryIO | None = None) -> None:
        self._raw, self._settings = raw, settings
        self._stream = stream or _standard_input()
        self._info = SourceInfo("stdin", "stream", fps=raw.fps, size=(raw.height, raw.width))
        self._report = SourceReport()
        if raw.width * raw.height > settings.max_pixels:
            raise SourceError(f"raw frames of {raw.width}x{raw.height}: expected at most {settings.max_pixels} pixels")

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[VideoFrame]:
        selector, cuts, index = Selector(self._settings), CutDetector(self._settings), 0
        size = self._raw.width * self._raw.height * self._raw.channels
        while len(data := self._stream.read(size)) == size and not selector.over:
            time_s = index / self._raw.fps
            if selector.takes(index, time_s):
                image = self._rgb(data)
                self._report = replace(self._report, decoded=self._report.decoded + 1)
                yield VideoFrame(index, time_s, image, cut=cuts.cuts(image))
            index += 1
        self._end(index, 0 if selector.over else len(data))

    def _rgb(self, data: bytes) -> Image:
        pixels = np.frombuffer(data, np.uint8).reshape(self._raw.height, self._raw.width, self._raw.channels)
        if self._raw.pixels == "gray":
            return np.repeat(pixels, 3, axis=2)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8) if self._raw.pixels == "bgr24" else pixels

    def _end(self, index: int, left: int) -> None:
        frame = f"{self._raw.width}x{self._raw.height}:{self._raw.pixels}"
        if not index:
            raise SourceError(f"stdin: {left} bytes, not one frame of {frame}; check what is piped and its size")
        if not self._report.decoded:
            raise UsageError(f"stdin: it ended after {index} frames, before the start, {self._settings.start}")
        reason = f"it ended {left} bytes into a frame of {frame}" if left else ""
        self._report = replace(self._report, end="partial" if left else "complete", reason=reason)
