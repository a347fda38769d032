"""Places for results, looked at before hours of work: a new or empty folder, a file in a folder that is there."""

from __future__ import annotations

from pathlib import Path

from visrt.runtime.errors import OutputError, UsageError
from visrt.runtime.sinks.output import cannot_write

__all__ = ["new_folder", "refuse_nowhere"]


def new_folder(folder: Path, option: str) -> None:
    """Make `folder`, or accept an empty one; OutputError, which names `option`, before hours of work are lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if taken is not None:
        raise OutputError(f"{folder}: already holds {taken.name}; give {option} an empty or a new folder")


def refuse_nowhere(*paths: Path | None) -> None:
    """Raises UsageError for a file to write whose folder is not there, or which is a folder itself."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
        if path is not None and path.is_dir():
            raise UsageError(f"{path}: is a folder; give the name of a file")
