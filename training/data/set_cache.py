"""Annotations as columns, from a cache: the json of a large set is read and checked once, not at each start.

The cache lies in the user's cache folder, with the engines of TensorRT: sets are often on disks that cannot be written,
and a run folder would keep 160 MB of COCO for each run. One file for a json file of annotations, replaced when that
changes. Only what was made from the very file that is there, by the readers that are there, is taken, and only if each
picture is still there; all else is read again.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from visrt.runtime import masks
from visrt.runtime.engines.trt.engine_cache import default_folder
from visrt.runtime.errors import DataError, OutputError
from visrt.runtime.sinks.output import write_atomically
from visrt.training.data import (
    annotation_files,
    json_faults,
    picture_folder,
    picture_size,
    segmentations,
    set_columns,
    set_formats,
)
from visrt.training.data import annotations as annotated_sets
from visrt.training.data.annotations import require_annotations
from visrt.training.data.formats import burst, coco, youtube_vis
from visrt.training.data.picture_folder import PictureFolder
from visrt.training.data.set_columns import DamagedColumns, SetColumns, columns_of, file_chunks, open_columns
from visrt.training.data.set_formats import SetPlaces, read_set

__all__ = ["ReadColumns", "read_columns"]

CACHED_FORMATS = ("coco", "youtube-vis", "burst")
"""Those with one file of annotations, whose change can be seen at once."""
WORTH_BYTES = 2**22
"""Smaller files of annotations are read in less than a second."""
READERS = (
    annotated_sets,
    burst,
    coco,
    youtube_vis,
    annotation_files,
    json_faults,
    picture_folder,
    picture_size,
    segmentations,
    set_columns,
    set_formats,
    masks,
)
"""What the columns depend on besides the annotations."""


@dataclass(frozen=True)
class ReadColumns:
    """A set as columns, the file or folder of its annotations, and what is to be said about its cache."""

    columns: SetColumns
    path: Path
    remarks: tuple[str, ...] = ()


def read_columns(places: SetPlaces, name: str, root: Path, skip_faulty: bool = False) -> ReadColumns:
    """The set at `places` in the format `name`, with its pictures below `root`. Raises DataError as `read_set`."""
    path = places.json_file
    if name not in CACHED_FORMATS or not path.is_file() or path.stat().st_size < WORTH_BYTES:
        return _read(places, name, root, skip_faulty)
    key = _key(path, name, root, skip_faulty)
    file = _file(path, name, root)
    found = _opened(file, key, root)
    if found is not None:
        return ReadColumns(found, path)
    with _alone(file) as fault:
        # Another process may have written it in the meantime.
        found = _opened(file, key, root)
        if found is not None:
            return ReadColumns(found, path)
        read = _read(places, name, root, skip_faulty)
        if key != _key(path, name, root, skip_faulty):
            raise DataError(f"{path}: was written while it was read; start again when it is complete")
        fault = fault or _write(read.columns, file, key)
    if fault is None:
        return replace(read, columns=_opened(file, key, root) or read.columns)
    remark = (
        f"{file.parent} cannot be written ({fault}): large files of annotations are read again at each start, and each "
        "process keeps its own copy; set VISRT_CACHE to a folder"
    )
    return replace(read, remarks=(remark,))


def _read(places: SetPlaces, name: str, root: Path, skip_faulty: bool) -> ReadColumns:
    # Millions of new objects and no cycles among them: looking for some takes a quarter of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        read = read_set(places, name, skip_faulty=skip_faulty)
        require_annotations(read.annotated, read.path, "training")
        return ReadColumns(columns_of(read.annotated, root), read.path)
    finally:
        if collects:
            gc.enable()


def _key(path: Path, name: str, root: Path, skip_faulty: bool) -> dict[str, Any]:
    """What the columns are made from. The readers count by their source: no number is forgotten when one changes."""
    status = path.stat()
    return {
        "path": str(path.absolute()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "pictures": str(root.absolute()),
        "format": name,
        "skip_faulty": skip_faulty,
        "readers": _source_digest(READERS),
    }


@cache
def _source_digest(modules: tuple[ModuleType, ...]) -> str:
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def _file(path: Path, name: str, root: Path) -> Path:
    place = "\n".join((str(path.absolute()), name, str(root.absolute())))
    return default_folder() / "sets" / f"{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:24]}.set"


def _opened(file: Path, key: Mapping[str, Any], root: Path) -> SetColumns | None:
    """The columns in `file`; None unless they are whole, made from `key`, and their pictures are there.

    A picture that is missing sends the caller to the reader, which names it.
    """
    try:
        columns = open_columns(file, key)
    except DamagedColumns:
        return None
    pictures = PictureFolder(root)
    return columns if all(name in pictures for name in columns.all_names()) else None


@contextmanager
def _alone(file: Path) -> Iterator[str | None]:
    """Without other processes that make `file`; the value is why its folder cannot be used, or None."""
    from filelock import FileLock

    lock = FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        yield getattr(error, "strerror", None) or str(error)
        return
    try:
        for left in file.parent.glob(f".{file.name}.*.part"):
            # Of a process that was stopped while it wrote.
            left.unlink(missing_ok=True)
        yield None
    finally:
        lock.release()


def _write(columns: SetColumns, file: Path, key: Mapping[str, Any]) -> str | None:
    """Writes the cache; why it could not, or None."""
    try:
        write_atomically(file, file_chunks(columns, key))
    except OutputError as error:
        return getattr(error.__context__, "strerror", None) or str(error)
    return None
