"""The clock of a stream: seconds that only go forward, whatever its timestamps do. Files and sessions have the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Clock"]

JUMP_S = 1.0
"""A step back larger than this is a new start of the stream's clock (two recordings in one file), not jitter."""

TICK_S = 0.001
"""The step by which a repeated or slightly backward timestamp moves the clock, in seconds."""


@dataclass(frozen=True)
class Clock:
    """A clock that only goes forward, whatever the timestamps of a stream do. time_s: of the last frame, None before
    it.

    step_s: frame time assumed where a timestamp is missing. offset_s: added to timestamps after jumps back. known_s:
    the last time that did not rest on a missing timestamp; steps: frames since.
    """

    step_s: float
    time_s: float | None = None
    offset_s: float = 0.0
    known_s: float = 0.0
    steps: int = 0

    def at(self, stamp_s: float | None) -> Clock:
        """The clock at the next frame, whose timestamp is `stamp_s`, or None where the stream has none."""
        if self.time_s is None:
            now_s = max(0.0, stamp_s or 0.0)
            return replace(self, time_s=now_s, known_s=now_s)
        if stamp_s is None:
            # Not the last time plus a step: rounding would add up.
            steps = self.steps + 1
            return replace(self, time_s=self.known_s + steps / (1 / self.step_s), steps=steps)
        offset_s, now_s = self.offset_s, stamp_s + self.offset_s
        if now_s <= self.time_s - JUMP_S:
            now_s = self.time_s + self.step_s
            offset_s = now_s - stamp_s
        elif now_s <= self.time_s:
            now_s = self.time_s + TICK_S
        return replace(self, time_s=now_s, known_s=now_s, steps=0, offset_s=offset_s)
