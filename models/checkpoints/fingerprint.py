"""One hash for a checkpoint, a file or a folder of files, which bundles record as their origin."""

from __future__ import annotations

import hashlib
from pathlib import Path

from visrt.models.checkpoints.hugging_face import folder_files

__all__ = ["checkpoint_sha256"]

CHUNK_BYTES = 2**22


def checkpoint_sha256(path: Path) -> str:
    """sha256 of the file; of a Hugging Face folder, that of a list of names and sha256 of the files that are read."""
    if not path.is_dir():
        return _sha256(path)
    listed = sorted(f"{file.name} {_sha256(file)}\n" for file in folder_files(path))
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
