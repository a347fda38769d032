"""Writes the folder of a bundle: its files, then the manifest that describes them. Needs neither torch nor onnx."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from visrt.runtime.bundles.bundle import MANIFEST, Bundle
from visrt.runtime.bundles.manifest import FileSpec, Manifest

__all__ = ["copied_files", "creation_time", "file_spec", "package_versions", "write_bundle"]


def file_spec(name: str, data: bytes) -> FileSpec:
    """The manifest's entry of a file."""
    return FileSpec(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def copied_files(bundle: Bundle, replaced: Iterable[FileSpec | None] = ()) -> dict[str, bytes]:
    """The files of `bundle` by name, their hashes checked, but for those that are `replaced`."""
    left_out = tuple(replaced)
    return {spec.file: bundle.read(spec) for spec in bundle.manifest.files() if spec not in left_out}


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of `packages`, for the manifest's producer."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def creation_time() -> str:
    """Now, in UTC, to the second; $SOURCE_DATE_EPOCH in its place makes bundles reproducible."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(seconds), timezone.utc) if seconds else datetime.now(timezone.utc)
    return now.isoformat(timespec="seconds")


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Writes `files` by name and then `manifest` to `folder`, which exists."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
