"""A clock that only goes forward, whatever the timestamps of a stream do."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Clock"]

JUMP_S = 1.0
"""A step back larger than this is a new start of the stream's clock (two recordings in one file), not jitter."""

TICK_S = 0.001
"""How far a repeated or slightly backward timestamp moves the clock."""


@dataclass(frozen=True)
class Clock:
    """Time of the last frame in seconds, None before the first.

    step_s: frame time assumed where a timestamp is missing. offset_s: added to timestamps after jumps back.
    """

    step_s: float
    time_s: float | None = None
    offset_s: float = 0.0

    def at(self, stamp_s: float | None) -> Clock:
        """The clock at the next frame, whose timestamp is `stamp_s`, or None where the stream has none."""
        if self.time_s is None:
            return replace(self, time_s=max(0.0, stamp_s or 0.0))
        if stamp_s is None:
            return replace(self, time_s=self.time_s + self.step_s)
        now_s = stamp_s + self.offset_s
        if now_s > self.time_s:
            return replace(self, time_s=now_s)
        if self.time_s - now_s < JUMP_S:
            return replace(self, time_s=self.time_s + TICK_S)
        now_s = self.time_s + self.step_s
        return replace(self, time_s=now_s, offset_s=now_s - stamp_s)
