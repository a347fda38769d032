"""Output of results: the sink protocol, the folder of a run, and files that are whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from visrt.runtime.errors import OutputError
from visrt.runtime.results import FrameResult
from visrt.runtime.sources.source import Image

__all__ = [
    "CROPS",
    "JOURNAL",
    "MASKS",
    "MOT",
    "OVERLAY",
    "RESULTS",
    "SUMMARY",
    "Existing",
    "Sink",
    "cannot_write",
    "prepare_folder",
    "refuse_taken",
    "whole_file",
    "write_atomically",
]

OVERLAY = "overlay.mp4"
JOURNAL = "results.jsonl"
RESULTS = "results.json"
SUMMARY = "summary.json"
MOT = "mot.txt"
MASKS = "masks"
CROPS = "crops"
WRITTEN = (OVERLAY, JOURNAL, RESULTS, SUMMARY, MOT)
IN_FOLDERS = (f"{MASKS}/*.png", f"{CROPS}/*/*.jpg")
"""Files with a number for a name: those of a run."""

Existing = Literal["refuse", "replace"]


class Sink(Protocol):
    """Takes results in order. What `write` returned from is on its way to disk and survives a crash of this program."""

    def write(self, result: FrameResult, image: Image) -> None:
        """`image` is the frame [H, W, 3] the result belongs to; it is not to be changed."""
        ...

    def close(self) -> None: ...


def refuse_taken(folder: Path, inputs: Sequence[Path], existing: Existing) -> None:
    """Raises OutputError if a run's files in `folder` are there already, or would fall on one of `inputs`."""
    present = _present(folder)
    for path in present:
        _refuse_input(path, inputs)
    if present and existing == "refuse":
        names = ", ".join(dict.fromkeys(path.relative_to(folder).parts[0] for path in present))
        raise OutputError(f"{folder}: already holds {names}; choose another --out, or --overwrite to replace them")


def prepare_folder(folder: Path, inputs: Sequence[Path], existing: Existing) -> None:
    """Makes `folder` ready for a run. Only what a run wrote itself is ever replaced, and never one of `inputs`."""
    refuse_taken(folder, inputs, existing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _present(folder):
            path.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from None
    _try_to_write(folder)


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file that is there whole, or not at all, whenever the program or the machine stops."""
    with whole_file(path) as file:
        file.writelines(chunks)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write and seek in, which takes the place of `path` when all is written, and is gone after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The OutputError for an operating system's error while `path` is written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"{path}: no space left; what was written before is kept: free space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"{path}: not writable ({os.strerror(error.errno)}); choose another --out")
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another --out")


def _present(folder: Path) -> list[Path]:
    numbered = (path for pattern in IN_FOLDERS for path in folder.glob(pattern) if path.stem.isdecimal())
    return [*(folder / name for name in WRITTEN if os.path.lexists(folder / name)), *sorted(numbered)]


def _refuse_input(path: Path, inputs: Sequence[Path]) -> None:
    for given in inputs:
        if given.exists() and path.exists() and path.samefile(given):
            raise OutputError(f"{path}: would overwrite the input {given}; choose another --out")


def _try_to_write(folder: Path) -> None:
    """Fails now rather than after the first second of work."""
    write_atomically(folder / ".visrt-write-test", [b"x"])
    (folder / ".visrt-write-test").unlink()
