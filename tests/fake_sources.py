"""Sources and sinks without files: frames that say their number, results that are kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from visrt.runtime.errors import OutputError
from visrt.runtime.results import FrameResult
from visrt.runtime.sources.source import Image, SourceInfo, SourceReport, VideoFrame


class FakeSource:
    """`frames` frames whose pixels say their number; `live` ones come as fast as they can."""

    def __init__(self, frames: int, live: bool = False, then: Exception | None = None) -> None:
        self.info = SourceInfo("fake", "camera" if live else "file", live=live)
        self.report = SourceReport()
        self.frames, self.then, self.closed = frames, then, False

    def __iter__(self) -> Iterator[VideoFrame]:
        for index in range(self.frames):
            self.report = replace(self.report, decoded=index + 1)
            yield VideoFrame(index, index / 10, np.full((4, 4, 3), index % 256, np.uint8))
        if self.then:
            raise self.then
        self.report = replace(self.report, end="complete")

    def close(self) -> None:
        self.closed = True


class ListSink:
    """Keeps what it was given; fails at the write number `fails_at`."""

    def __init__(self, fails_at: int | None = None, pause_s: float = 0) -> None:
        self.got: list[tuple[int, int]] = []
        self.fails_at, self.pause_s, self.closed = fails_at, pause_s, False

    def write(self, result: FrameResult, image: Image) -> None:
        if len(self.got) == self.fails_at:
            raise OutputError("disk full")
        time.sleep(self.pause_s)
        self.got.append((result.index, int(image[0, 0, 0])))

    def close(self) -> None:
        self.closed = True
