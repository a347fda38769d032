"""A GPU's time without a GPU: when the work that a program enqueues on streams would start and end.

The clock is the program's. It moves when the program works (`advance`) or waits (`wait`), and nothing is ever computed
before its time. The rules are simple ones, so figures are those of a model:

- work of one stream runs in order, and behind the work of other streams that it waits for;
- kernels share the GPU: of streams that could run at a time, the one of higher priority runs and the others pause, and
  those of one priority get equal parts of it, so that no kernel gains by running beside another;
- copies to the GPU and copies from it run beside kernels, one at a time in each direction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Part", "Timeline", "Work"]

Part = Literal["kernels", "up", "down"]
"""The part of a GPU that does a piece of work: each does one at a time."""

PARTS: tuple[Part, ...] = ("kernels", "up", "down")


@dataclass(eq=False)
class Work:
    """A piece of work that takes `left_s` seconds more. issued_s: when it was enqueued. after: what must have ended
    before. start_s, end_s: None until it has started and ended."""

    what: str
    part: Part
    left_s: float
    issued_s: float
    after: tuple[Work, ...] = ()
    start_s: float | None = None
    end_s: float | None = None

    def ready(self, at_s: float) -> bool:
        return self.issued_s <= at_s and all(work.end_s is not None for work in self.after)


@dataclass
class Timeline:
    """now_s: the program's clock, in seconds. done: all work that has ended, in that order."""

    now_s: float = 0.0
    done: list[Work] = field(default_factory=list)
    _time_s: float = 0.0
    _queues: dict[int, deque[Work]] = field(default_factory=dict)
    _priorities: dict[int, int] = field(default_factory=dict)

    def add_stream(self, stream: int, priority: int = 0) -> None:
        """A stream without work; as CUDA counts, the lowest number is the highest priority."""
        self._queues[stream] = deque()
        self._priorities[stream] = priority

    def enqueue(self, stream: int, what: str, part: Part, cost_s: float, after: Iterable[Work] = ()) -> Work:
        """Work of `cost_s` seconds behind all that is on `stream`, and behind `after`."""
        work = Work(what, part, cost_s, self.now_s, tuple(after))
        self._queues[stream].append(work)
        return work

    def advance(self, seconds: float) -> None:
        """The program works for so long."""
        self.now_s += seconds

    def wait(self, work: Work) -> None:
        """The program waits for `work`."""
        while work.end_s is None:
            self._step(None)
        self.now_s = max(self.now_s, work.end_s)

    def catch_up(self) -> None:
        """Computes what happened up to now."""
        while self._time_s < self.now_s:
            self._step(self.now_s)

    def _step(self, until_s: float | None) -> None:
        """To the next end or start of any work, or to `until_s`."""
        heads = {stream: queue[0] for stream, queue in self._queues.items() if queue}
        running = [
            (work, 1 / len(chosen)) for part in PARTS if (chosen := self._chosen(part, heads)) for work in chosen
        ]
        times = [self._time_s + work.left_s / share for work, share in running]
        times += [work.issued_s for work in heads.values() if work.issued_s > self._time_s]
        times += [] if until_s is None else [until_s]
        assert times, f"work waits for work that was never enqueued: {', '.join(w.what for w in heads.values())}"
        spent, self._time_s = min(times) - self._time_s, min(times)
        for work, share in running:
            work.start_s = self._time_s - spent if work.start_s is None else work.start_s
            work.left_s -= spent * share
        for stream, work in heads.items():
            if work.start_s is not None and work.left_s <= 1e-12:
                work.end_s = self._time_s
                self.done.append(self._queues[stream].popleft())

    def _chosen(self, part: Part, heads: dict[int, Work]) -> list[Work]:
        """What `part` works on now."""
        ready = {stream: work for stream, work in heads.items() if work.part == part and work.ready(self._time_s)}
        first = min((self._priorities[stream] for stream in ready), default=0)
        return [work for stream, work in ready.items() if self._priorities[stream] == first]
