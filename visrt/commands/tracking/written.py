"""The sinks of a source, with what is shown and the numbers of the frames in the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from visrt.runtime.results import FrameResult, Shown
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.source import Image, Source, SourceInfo, SourceReport, VideoFrame

__all__ = ["NumberedSource", "ShownSinks"]


class NumberedSource:
    """A source that remembers the numbers its frames have there until their results come."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._numbers: deque[VideoFrame] = deque()

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    @property
    def report(self) -> SourceReport:
        return self._source.report

    def close(self) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in self._source:
            self._numbers.append(replace(frame, image=frame.image[:0]))
            yield frame

    def number(self, result: FrameResult) -> int:
        """The number of the frame of `result`, which comes in order; frames of a live source may have been dropped."""
        while len(self._numbers) > 1 and self._numbers[0].time_s < result.time_s - 1e-6:
            self._numbers.popleft()
        return self._numbers.popleft().index


class ShownSinks:
    """One sink for all of a source: results with the number of their frame in it, and the objects that are shown."""

    def __init__(self, source: NumberedSource, shown: Shown, sinks: Sequence[Sink]) -> None:
        self._source, self._shown, self._sinks = source, shown, sinks

    def write(self, result: FrameResult, image: Image) -> None:
        shown = replace(self._shown.of(result), index=self._source.number(result))
        for sink in self._sinks:
            sink.write(shown, image)

    def close(self) -> None:
        with ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)
