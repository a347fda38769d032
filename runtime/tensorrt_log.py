"""What TensorRT says. It raises little: it answers None or False, and tells its logger why.

TensorRT keeps the first logger of a process, so there is one for each library, and who wants to hear listens to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from visrt.runtime.tensorrt_library import TensorRt

__all__ = ["Line", "TensorRtLog", "log_of"]


@dataclass(frozen=True)
class Line:
    """One thing TensorRT said. severity: "WARNING", "ERROR" or "INTERNAL_ERROR"."""

    severity: str
    text: str


class TensorRtLog:
    """The logger of one library. logger: what TensorRT's own objects are given. It may be called in any thread."""

    def __init__(self, module: Any) -> None:
        self._lock = threading.Lock()
        self._listeners: list[list[Line]] = []
        self.logger = _logger(module, self)

    def say(self, line: Line) -> None:
        with self._lock:
            for heard in self._listeners:
                heard.append(line)

    @contextmanager
    def listening(self) -> Iterator[list[Line]]:
        """A list that fills, while entered, with all that is said from warnings on."""
        heard: list[Line] = []
        with self._lock:
            self._listeners.append(heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._listeners = [other for other in self._listeners if other is not heard]


def _logger(module: Any, log: TensorRtLog) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Hands on what is a warning or worse."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                log.say(Line(severity.name, " ".join(msg.split())))

    return Logger()


_LOGS: MutableMapping[Any, TensorRtLog] = WeakKeyDictionary()
_MAKING = threading.Lock()


def log_of(library: TensorRt) -> TensorRtLog:
    """The one log of `library` in this process."""
    with _MAKING:
        if library.module not in _LOGS:
            _LOGS[library.module] = TensorRtLog(library.module)
        return _LOGS[library.module]
