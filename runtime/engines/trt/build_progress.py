"""The progress of a build, from TensorRT's tree of phases, and the way to end it early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Progress", "ProgressTree", "ignore_progress", "monitor_of"]

Progress = Callable[[str, float], None]
"""Called with the current phase and the fraction of the whole that is done, 0 to 1, never falling."""


def ignore_progress(phase: str, fraction: float) -> None:
    """Does nothing."""


@dataclass
class _Phase:
    """A running phase: its steps, how many are done, and the phase that contains it."""

    parent: str | None
    steps: int
    done: int = 0


class ProgressTree:
    """Follows the phases and reports to `progress`. An error raised there ends the build, and is kept in `error`.

    stopped: called after each step; True ends the build.
    """

    def __init__(self, progress: Progress, stopped: Callable[[], bool]) -> None:
        self.error: BaseException | None = None
        self._progress, self._stopped = progress, stopped
        self._phases: dict[str, _Phase] = {}
        self._reported = 0.0
        self._lock = threading.RLock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
            self._report(name)

    def step(self, name: str, step: int) -> bool:
        """Notes that `step`, from 0, is done; False ends the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._report(name)
            return self.error is None and not self._stopped()

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _report(self, name: str) -> None:
        """Reports the phase `name`. Nothing may be raised into TensorRT."""
        if self.error is not None:
            return
        roots = [root for root, phase in self._phases.items() if phase.parent not in self._phases]
        self._reported = max([self._reported, *(self._fraction(root) for root in roots[:1])])
        try:
            self._progress(name, self._reported)
        except BaseException as error:
            self.error = error

    def _fraction(self, name: str) -> float:
        """Steps that are done, and the part of the current step that its own phases have done."""
        phase = self._phases[name]
        parts = [self._fraction(child) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(parts, default=0.0)) / phase.steps)


def monitor_of(module: Any, tree: ProgressTree) -> Any:
    """`tree` as an IProgressMonitor of TensorRT, which calls it from any thread."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tree.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
