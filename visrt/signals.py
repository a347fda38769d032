"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends the program at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequest"]


class StopRequest:
    """While entered, signals are noted instead of raised: `stop()` says whether to end after the current frame."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.exit_code != 0

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code:
            # Nothing is lost: journal lines are written whole and the overlay is fragmented.
            os._exit(128 + number)
        self.exit_code = 128 + number
