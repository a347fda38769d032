"""TensorRT's log. TensorRT rarely raises: it returns None or False, and logs the reason.

TensorRT keeps the first logger of a process, so there is one for each library, and any number of listeners to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from visrt.runtime.engines.trt.library import TensorRt

__all__ = ["Line", "TensorRtLog", "log_of", "log_text"]


@dataclass(frozen=True)
class Line:
    """One message. severity: "WARNING", "ERROR" or "INTERNAL_ERROR"."""

    severity: str
    text: str


def log_text(lines: Iterable[Line]) -> str:
    """The messages for an error, each once; "nothing" if there are none."""
    return " / ".join(dict.fromkeys(line.text for line in lines)) or "nothing"


class TensorRtLog:
    """The log of one library. logger: the object that TensorRT is given, which it may call in any thread."""

    def __init__(self, module: Any) -> None:
        self._lock = threading.Lock()
        self._listeners: list[list[Line]] = []
        self.logger = _logger(module, self)

    def add(self, line: Line) -> None:
        with self._lock:
            for lines in self._listeners:
                lines.append(line)

    @contextmanager
    def listening(self) -> Iterator[list[Line]]:
        """A list that collects, while entered, all warnings and errors."""
        lines: list[Line] = []
        with self._lock:
            self._listeners.append(lines)
        try:
            yield lines
        finally:
            with self._lock:
                self._listeners = [other for other in self._listeners if other is not lines]


def _logger(module: Any, log: TensorRtLog) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Passes on warnings and errors."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                log.add(Line(severity.name, " ".join(msg.split())))

    return Logger()


_LOGS: MutableMapping[Any, TensorRtLog] = WeakKeyDictionary()
_MAKING = threading.Lock()


def log_of(library: TensorRt) -> TensorRtLog:
    """The one log of `library` in this process."""
    with _MAKING:
        if library.module not in _LOGS:
            _LOGS[library.module] = TensorRtLog(library.module)
        return _LOGS[library.module]
