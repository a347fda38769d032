"""An annotated set as columns of numbers, which is what training keeps of it: small, and one file for all processes.

COCO's train2017 is 860,000 Python objects of several kilobytes, or 160 MB of columns. The columns of a file are mapped
into memory: processes that open it share its pages, and it is ready at once.

The file: MAGIC, the length of the head (8 bytes, little endian), the CRC-32 of all that follows (4), the head as json,
and the columns, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from visrt.runtime.errors import DataError
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo
from visrt.training.data.segmentations import areas_px, boxes_px

__all__ = ["DamagedColumns", "SetColumns", "columns_of", "file_chunks", "open_columns", "require_below"]

MAGIC = b"visrtset"
PREFIX = len(MAGIC) + 12
ALIGNMENT = 64
CHUNK = 2**22


class DamagedColumns(Exception):  # noqa: N818  # caught within this folder, never shown
    """The file is not there, is cut short, was changed, or holds other columns than expected."""


@dataclass(frozen=True, eq=False)
class SetColumns:
    """V videos, their F frames and K tracks, and N masks, in the order of the annotations; masks go by frame.

    categories: names, which track_category [K] indexes. boxes_only: masks are the rectangles of boxes.
    video_size [V, 2]: height, width. video_frame, video_track [V + 1]: video v has frames and tracks [v] to [v + 1].
    frame_name [F + 1]: frame f's picture is names[frame_name[f] : frame_name[f + 1]], below the folder of
    pictures. frame_mask [F + 1]: its masks. mask_track [N]: place of the track in its video. mask_area_px [N].
    mask_box_px [N, 4]: tight x, y, width, height. mask_rle [N + 1]: compressed runs, in `runs`.
    place: the file they are mapped from and its checksum; None if they are in memory.
    """

    categories: tuple[str, ...]
    remarks: tuple[str, ...]
    boxes_only: bool
    video_size: NDArray[np.int32]
    video_frame: NDArray[np.int64]
    video_track: NDArray[np.int64]
    track_category: NDArray[np.int32]
    track_crowd: NDArray[np.bool_]
    frame_name: NDArray[np.int64]
    frame_mask: NDArray[np.int64]
    mask_track: NDArray[np.int32]
    mask_area_px: NDArray[np.int64]
    mask_box_px: NDArray[np.int32]
    mask_rle: NDArray[np.int64]
    names: NDArray[np.uint8]
    runs: NDArray[np.uint8]
    place: tuple[Path, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the place of the file rather than its 160 MB."""
        if self.place is not None:
            return _open_again, self.place
        return SetColumns, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def videos(self) -> int:
        return len(self.video_size)

    @property
    def frames(self) -> int:
        return len(self.frame_name) - 1

    def name(self, frame: int) -> str:
        """The picture of `frame`, below the folder of pictures."""
        return os.fsdecode(self.names[self.frame_name[frame] : self.frame_name[frame + 1]].tobytes())

    def all_names(self) -> Iterator[str]:
        whole, ends = self.names.tobytes(), self.frame_name.tolist()
        return (os.fsdecode(whole[start:end]) for start, end in pairwise(ends))

    def text_of_runs(self, mask: int) -> str:
        """The counts of the RLE of `mask`."""
        return self.runs[self.mask_rle[mask] : self.mask_rle[mask + 1]].tobytes().decode("ascii")

    def video_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """The video of each of `frames`."""
        return np.searchsorted(self.video_frame, frames, side="right") - 1

    def frame_of_masks(self) -> NDArray[np.int64]:
        """The frame [N] of each mask."""
        return np.repeat(np.arange(self.frames), np.diff(self.frame_mask))

    def track_of_masks(self) -> NDArray[np.int64]:
        """The track [N] of each mask, an index of track_category."""
        masks = np.diff(self.frame_mask[self.video_frame])
        return np.repeat(self.video_track[:-1], masks) + self.mask_track

    def crowding(self) -> NDArray[np.float64]:
        """The part [F] of each frame that its crowds cover."""
        crowd = self.track_crowd[self.track_of_masks()]
        covered_px = np.bincount(self.frame_of_masks()[crowd], self.mask_area_px[crowd], self.frames)
        sizes = np.repeat(self.video_size, np.diff(self.video_frame), axis=0).astype(np.int64)
        return np.asarray(covered_px / sizes.prod(axis=1))


COLUMNS = tuple(field.name for field in fields(SetColumns) if "NDArray" in str(field.type))


def columns_of(annotated: AnnotatedSet, root: Path) -> SetColumns:
    """The columns of `annotated`, without a class map, whose pictures lie below the folder `root`. Raises DataError."""
    videos = annotated.videos
    require_below(annotated, root)
    names = [os.fsencode(path.relative_to(root).as_posix()) for video in videos for path in video.pictures]
    per_frame: list[int] = []
    tracks: list[int] = []
    texts: list[bytes] = []
    areas, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int32)]
    for video in videos:
        size, start = video.size, len(texts)
        for masks in _masks_by_frame(video):
            per_frame.append(len(masks))
            tracks += (k for k, _ in masks)
            texts += (counts for _, counts in masks)
        areas.append(areas_px(texts[start:], size))
        boxes.append(boxes_px(texts[start:], size))
    return SetColumns(
        annotated.classes,
        annotated.remarks,
        annotated.boxes_only,
        video_size=np.array([video.size for video in videos], np.int32).reshape(-1, 2),
        video_frame=_ends(len(video.pictures) for video in videos),
        video_track=_ends(len(video.tracks) for video in videos),
        track_category=np.array([track.label for video in videos for track in video.tracks], np.int32),
        track_crowd=np.array([track.crowd for video in videos for track in video.tracks], np.bool_),
        frame_name=_ends(map(len, names)),
        frame_mask=_ends(per_frame),
        mask_track=np.array(tracks, np.int32),
        mask_area_px=np.concatenate(areas),
        mask_box_px=np.concatenate(boxes),
        mask_rle=_ends(map(len, texts)),
        names=np.frombuffer(b"".join(names), np.uint8),
        runs=np.frombuffer(b"".join(texts), np.uint8),
    )


def require_below(annotated: AnnotatedSet, root: Path) -> None:
    """Raises DataError if pictures lie elsewhere, as those that are taken out of a video for the time being do."""
    outside = (path for video in annotated.videos for path in video.pictures[:1] if not path.is_relative_to(root))
    if path := next(outside, None):
        raise DataError(
            f"{path}: is not below {root}, where training looks for pictures; write the set anew with `visrt data "
            "convert`, and train on that"
        )


def _masks_by_frame(video: AnnotatedVideo) -> list[list[tuple[int, bytes]]]:
    """For each frame, the place of each track that is in it, and the runs of its mask."""
    frames: list[list[tuple[int, bytes]]] = [[] for _ in video.pictures]
    for k, track in enumerate(video.tracks):
        for masks, rle in zip(frames, track.masks, strict=True):
            if rle is not None:
                masks.append((k, rle["counts"].encode("ascii")))
    return frames


def _ends(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Sums of `lengths`, from 0 on."""
    return np.cumsum(np.fromiter(chain((0,), lengths), np.int64))


def file_chunks(columns: SetColumns, key: Mapping[str, Any]) -> list[bytes]:
    """The content of the file of `columns`, which begins with `key`, what they were made from."""
    places, at = {}, 0
    parts: list[bytes] = []
    for name in COLUMNS:
        column = np.ascontiguousarray(getattr(columns, name))
        places[name] = (column.dtype.str, column.shape, at)
        parts += [column.tobytes(), b"\0" * (-column.nbytes % ALIGNMENT)]
        at += column.nbytes + len(parts[-1])
    known = {"categories": columns.categories, "remarks": columns.remarks, "boxes_only": columns.boxes_only}
    head = json.dumps({"key": key, **known, "columns": places, "bytes": at}).encode()
    head += b" " * (-(PREFIX + len(head)) % ALIGNMENT)
    checksum = 0
    for part in (head, *parts):
        checksum = zlib.crc32(part, checksum)
    return [MAGIC, len(head).to_bytes(8, "little"), checksum.to_bytes(4, "little"), head, *parts]


def open_columns(path: Path, key: Mapping[str, Any]) -> SetColumns:
    """The columns in the file at `path`, mapped. Raises DamagedColumns unless it is whole and was made from `key`."""
    try:
        with path.open("rb") as file:
            length, checksum = _prefix(file)
            if _checksum_of_rest(file) != checksum:
                raise DamagedColumns(f"{path}: its checksum is another")
            columns, found = _mapped(path, file, length, checksum)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedColumns(f"{path}: {error}") from None
    if found != json.loads(json.dumps(key)):
        raise DamagedColumns(f"{path}: was made from something else")
    return columns


def _open_again(path: Path, checksum: int) -> SetColumns:
    """The columns that another process of this run has opened."""
    try:
        with path.open("rb") as file:
            length, found = _prefix(file)
            if found == checksum:
                return _mapped(path, file, length, checksum)[0]
    except (OSError, ValueError, KeyError, TypeError, DamagedColumns):
        pass
    raise DataError(
        f"{path}: this cached form of annotations was removed or replaced while a run that uses it started; are the "
        "annotations being written? Start the run again"
    )


def _prefix(file: BinaryIO) -> tuple[int, int]:
    """Length of the head, and checksum."""
    prefix = file.read(PREFIX)
    if len(prefix) < PREFIX or not prefix.startswith(MAGIC):
        raise DamagedColumns(f"{file.name}: does not begin as such a file")
    return int.from_bytes(prefix[len(MAGIC) : -4], "little"), int.from_bytes(prefix[-4:], "little")


def _checksum_of_rest(file: BinaryIO) -> int:
    """Read rather than mapped: mapped pages would count as this process's memory."""
    checksum = 0
    while chunk := file.read(CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _mapped(path: Path, file: BinaryIO, length: int, checksum: int) -> tuple[SetColumns, Any]:
    """The columns, and the key."""
    whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    head = json.loads(whole[PREFIX : PREFIX + length].tobytes())
    if len(whole) != PREFIX + length + head["bytes"]:
        raise DamagedColumns(f"{path}: is of another length")
    data = whole[PREFIX + length :]
    columns: dict[str, Any] = {name: _column(data, *head["columns"][name]) for name in COLUMNS}
    known = tuple(head["categories"]), tuple(head["remarks"]), bool(head["boxes_only"])
    return SetColumns(*known, **columns, place=(path, checksum)), head["key"]


def _column(data: NDArray[np.uint8], dtype: DTypeLike, shape: tuple[int, ...], at: int) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return data[at : at + size].view(dtype).reshape(shape)
