"""Calls of the frame engine, each for frames of one or several streams; one may be in flight while the host works."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from visrt.runtime.errors import EngineError
from visrt.runtime.network import FrameInputs, FrameOutputs, Network, StartedFrames
from visrt.runtime.results import FrameResult
from visrt.runtime.stream import Clips, Stream

__all__ = ["Answered", "Rounds", "Started"]


@dataclass(frozen=True)
class Started:
    """Clips of streams, one after the other, that share one call of the frame engine; None if it refused the call."""

    frames: StartedFrames | None
    clips: Sequence[tuple[Stream, Clips]]


@dataclass(frozen=True)
class Answered:
    """What the frame engine said of the clips of one stream."""

    stream: Stream
    clips: Clips
    outputs: Sequence[FrameOutputs]

    def results(self) -> list[FrameResult]:
        """Results of these clips: the state of the stream goes on, so that this is asked once and in order."""
        return self.stream.results(self.outputs, self.clips)


class Rounds:
    """Calls that were started and not yet finished, in order.

    A call for several streams that fails is made again stream by stream: a GPU that is short of memory may still have
    enough for one. split: how many calls that happened to.
    """

    def __init__(self, network: Network) -> None:
        self.split = 0
        self._network = network
        self._started: deque[Started] = deque()

    @property
    def in_flight(self) -> int:
        """Calls that were started and not yet finished."""
        return len(self._started)

    def start(self, clips: Sequence[tuple[Stream, Clips]]) -> None:
        """Hands the clips of all these streams to the frame engine in one call; nothing happens if there are none."""
        full = [(stream, one) for stream, one in clips if len(one)]
        if full:
            self._started.append(Started(self._call(full), full))

    def finish(self, leave: int) -> Iterator[list[Answered]]:
        """What the engine said to each call, in order, until `leave` calls are in flight."""
        while len(self._started) > leave:
            started = self._started.popleft()
            outputs = self._outputs(started)
            ends = list(accumulate(len(clips) for _, clips in started.clips))
            yield [
                Answered(stream, clips, outputs[end - len(clips) : end])
                for (stream, clips), end in zip(started.clips, ends, strict=True)
            ]

    def _call(self, clips: Sequence[tuple[Stream, Clips]]) -> StartedFrames | None:
        try:
            return self._network.start(FrameInputs.joined([one.inputs for _, one in clips]))
        except EngineError:
            if len(clips) == 1:
                raise
            return None

    def _outputs(self, started: Started) -> list[FrameOutputs]:
        try:
            if started.frames is not None:
                return self._network.finish(started.frames)
        except EngineError:
            if len(started.clips) == 1:
                raise
        self.split += 1
        alone = (self._network.finish(self._network.start(clips.inputs)) for _, clips in started.clips)
        return [outputs for answers in alone for outputs in answers]

    def forget(self) -> None:
        """Drops what is in flight."""
        self._started.clear()
