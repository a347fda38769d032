"""results.jsonl: one line a frame, each complete in itself, on disk as soon as its frame is done. No header line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sources.source import Image

__all__ = ["Journal", "read_journal"]


class Journal:
    """A sink of lines {frame, time_s, size: [H, W], objects: [{id, label, name, score, box: [x, y, w, h], rle}]}.

    Without rle where the bundle gives boxes alone.
    """

    def __init__(self, path: Path, classes: Sequence[str] = ()) -> None:
        """classes: their names, where the objects do not carry them."""
        self._path, self._classes = path, classes
        self._end = 0
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, result: FrameResult, image: Image) -> None:
        line = json.dumps(_plain(result, self._classes), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._append(line.encode() + b"\n")

    def close(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        finally:
            os.close(self._file)

    def _append(self, line: bytes) -> None:
        """A line is there whole or not at all: half a line would spoil the file for every reader."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise cannot_write(self._path, error) from None
        self._end += len(line)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal visrt wrote. A last line without its end, left by a killed run, is not given."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _plain(result: FrameResult, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "frame": result.index,
        "time_s": round(result.time_s, 6),
        "size": list(result.size),
        "objects": [_plain_object(shown, classes) for shown in result.objects],
    }


def _plain_object(shown: TrackedObject, classes: Sequence[str]) -> dict[str, Any]:
    mask = {} if shown.rle is None else {"rle": {"size": list(shown.rle["size"]), "counts": shown.rle["counts"]}}
    return {
        "id": shown.id,
        "label": shown.label,
        "name": shown.name or classes[shown.label],
        "score": round(float(shown.score), 6),
        "box": [int(edge) for edge in shown.box],
        **mask,
    }
