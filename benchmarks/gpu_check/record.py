"""What a GPU check has measured so far: one json file, written whole after each part, that a later run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from visrt.benchmarks.gpu_check.parts import Part
from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.sinks.output import cannot_write, write_atomically

__all__ = ["PAGE", "RECORD", "Done", "Record", "State"]

RECORD, PAGE = "gpu_check.json", "gpu_check.md"
EXPECTED = "what gpu-check recorded; move it away to begin again"

State = Literal["done", "failed", "left out"]


@dataclass(frozen=True)
class Done:
    """The end of one part. key: see Part.key. reason: why it failed or was left out. seconds: of its whole process."""

    id: str
    key: str
    state: State
    reason: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)


class Record:
    """The parts that have ended, of any bundles and machines, in the file of a folder."""

    def __init__(self, folder: Path, machine: Mapping[str, str]) -> None:
        """Reads what is there. Raises DataError for a file that is not a record, OutputError for a folder that cannot
        be written."""
        self.folder, self.machine = folder, dict(machine)
        self.absences: dict[str, str] = {}
        self.verdict = ""
        self._done = _read(folder / RECORD)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from None

    def of(self, part: Part) -> Done | None:
        """The end of `part` on this machine, with the bundle and the versions of today; None if it has none."""
        return self._done.get(part.key(self.machine) or part.id)

    def keep(self, done: Done) -> None:
        self._done[done.key or done.id] = done
        self.write()

    def write(self) -> None:
        whole = {
            "verdict": self.verdict,
            "machine": self.machine,
            "engines": {engine: absence or "present" for engine, absence in self.absences.items()},
            "parts": [asdict(done) for done in self._done.values()],
        }
        try:
            write_atomically(self.folder / RECORD, [json.dumps(whole, indent=1).encode(), b"\n"])
        except OSError as error:
            raise cannot_write(self.folder, error) from None


def _read(path: Path) -> dict[str, Done]:
    if not path.exists():
        return {}
    values = read_json_object(path, EXPECTED, DataError)
    try:
        return {one["key"] or one["id"]: Done(**one) for one in values["parts"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record ({error!r}); expected {EXPECTED}") from None
