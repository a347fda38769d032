"""A folder for results that is new or empty, so that nothing already written is lost."""

from __future__ import annotations

from pathlib import Path

from visrt.runtime.errors import OutputError
from visrt.runtime.sinks.output import cannot_write

__all__ = ["new_folder"]


def new_folder(folder: Path, option: str) -> None:
    """Make `folder`, or accept an empty one; OutputError, which names `option`, before hours of work are lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if taken is not None:
        raise OutputError(f"{folder}: already holds {taken.name}; give {option} an empty or a new folder")
