"""The folder in which a bundle is made, next to its target; it takes the target's place only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from visrt.runtime.bundles.bundle import MANIFEST
from visrt.runtime.errors import OutputError

__all__ = ["Existing", "check_target", "workplace"]


class Existing(Enum):
    """The treatment of a bundle that is already at the target."""

    KEEP = "keep"
    REPLACE = "replace"


def check_target(out: Path, existing: Existing) -> None:
    """A bundle is replaced only on request, anything else never."""
    if not out.exists() and not out.is_symlink():
        if blocking := next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None):
            raise OutputError(f"{out}: {blocking} is a file; choose another folder")
        return
    if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise OutputError(f"{out}: exists and is not a bundle; choose another folder")
    if any(out.iterdir()) and existing is Existing.KEEP:
        raise OutputError(f"{out}: holds a bundle already; choose another folder or add --overwrite")


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder next to `out`: it becomes `out` if all goes well, and is removed if not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield folder
            folder.chmod(0o755)
            _put_in_place(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error


def _put_in_place(folder: Path, out: Path) -> None:
    """`folder` under the name `out`; the bundle that was there goes only when the new one stands."""
    if not out.exists():
        os.replace(folder, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.replace(out, old)
    try:
        os.replace(folder, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old)
