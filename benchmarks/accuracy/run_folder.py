"""The folder of a run over a set: videos are kept as they are done, in the end results.json and results.zip written.

run.json says what the results depend on, videos/ID.json holds a video that is done. Each file is there whole or not at
all, so a run that was interrupted in any way goes on where it was and writes the same bytes. Both are removed once the
results are written. Videos are read back one by one: memory stays flat.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visrt.benchmarks.accuracy.evaluate import Reported, report_of_tracks, tracks_in
from visrt.benchmarks.video_level.tracks import FrameBoxes
from visrt.runtime.errors import DataError, OutputError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle
from visrt.runtime.results import TrackedObject
from visrt.runtime.sinks.output import RESULTS, Existing, cannot_write, whole_file, write_atomically
from visrt.training.data.annotations import AnnotatedVideo, Track
from visrt.training.data.json_faults import short
from visrt.training.data.segmentations import box_px

__all__ = ["ARCHIVE", "RESULTS", "RUN", "VIDEOS", "Form", "RunFolder", "open_run"]

ARCHIVE = "results.zip"
RUN = "run.json"
VIDEOS = "videos"
LOCK = ".visrt-eval.lock"

IDENTITY = "what the results of a run of visrt eval depend on"
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of the file in the archive, the first that zip knows: the same results are the same bytes."""


@dataclass(frozen=True)
class Form:
    """How tracks are written. category_of: the category id of the set by label; tracks of other labels are left out.
    boxes: of a bundle that gives boxes alone, `bboxes` in place of `segmentations`."""

    category_of: Mapping[int, int]
    boxes: bool = False

    def entries(self, video: AnnotatedVideo, tracks: Sequence[Track]) -> Iterator[dict[str, Any]]:
        """The tracks of `video` as YouTube-VIS has them: ids of the set, an RLE or null for each frame."""
        for track in tracks:
            if track.label in self.category_of:
                shapes = {"bboxes": list(map(_box, track.masks))} if self.boxes else {"segmentations": track.masks}
                category = self.category_of[track.label]
                yield {"video_id": video.id, "category_id": category, "score": track.score, **shapes}


def _box(mask: Rle | None) -> list[int] | None:
    return None if mask is None else list(box_px(mask))


@contextmanager
def open_run(folder: Path, identity: Mapping[str, Any], existing: Existing = "refuse") -> Iterator[RunFolder]:
    """The folder of a new run, or of the unfinished one with the same `identity`; no other process works in it.

    Raises OutputError if it holds results, or a run of another identity, unless `existing` is "replace".
    """
    with _alone(folder):
        _begin(folder, json.loads(json.dumps(identity)), existing)
        yield RunFolder(folder)


def _begin(folder: Path, identity: Mapping[str, Any], existing: Existing) -> None:
    try:
        held = _held(folder)
        if held is None:
            _refuse_videos(folder)
        if existing == "refuse":
            _refuse_taken(folder, held, identity)
        if held != identity:
            _remove_run(folder)
            _remove(folder, (RESULTS, ARCHIVE))
        (folder / VIDEOS).mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if held != identity:
        write_atomically(folder / RUN, [json.dumps(identity, indent=1).encode() + b"\n"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Without another process in `folder`, whose videos would mix with ours. A process that is killed lets go."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{folder}: another visrt eval is at work in it; wait for its end, or choose another folder for "
            "--write-results"
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    except NotImplementedError:
        pass  # a disk that knows no locks: nobody can be kept out
    try:
        yield
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """The videos of a run that are done, and in the end its results."""

    folder: Path

    def holds(self, video: AnnotatedVideo) -> bool:
        return self._file(video).is_file()

    def keep(self, video: AnnotatedVideo, report: Reported) -> None:
        """Writes `video`, which is done."""
        text = json.dumps(_record(report), allow_nan=False, separators=(",", ":"))
        write_atomically(self._file(video), [text.encode()])

    def load(self, video: AnnotatedVideo) -> Reported:
        """What was kept of `video`, exactly."""
        path = self._file(video)
        values = read_json_object(path, "a video that visrt eval kept")
        try:
            return _report(values, len(video.pictures))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a video that visrt eval kept ({error!r}); delete it and run again") from None

    def finish(self, videos: Sequence[AnnotatedVideo], form: Form) -> None:
        """Writes results.json and results.zip of all `videos`, in their order, and removes what was kept."""
        results = self.folder / RESULTS
        write_atomically(results, self._lines(videos, form))
        _write_archive(self.folder / ARCHIVE, results)
        try:
            _remove_run(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def _lines(self, videos: Sequence[AnnotatedVideo], form: Form) -> Iterator[bytes]:
        """The results file, a line a track."""
        separator = b"[\n"
        for video in videos:
            for entry in form.entries(video, self.load(video).tracks):
                yield separator + json.dumps(entry, allow_nan=False, separators=(",", ":")).encode()
                separator = b",\n"
        yield b"[]\n" if separator == b"[\n" else b"\n]\n"

    def _file(self, video: AnnotatedVideo) -> Path:
        return self.folder / VIDEOS / f"{video.id}.json"


def _record(report: Reported) -> dict[str, Any]:
    """A stream as its objects by frame, from which its tracks follow; an official result as its tracks."""
    if report.seconds is not None:
        return {"seconds": report.seconds, "frames": [[asdict(one) for one in objects] for objects in report.frames]}
    return {
        "tracks": [asdict(track) for track in report.tracks],
        "boxes": report.boxes and list(map(_plain, report.boxes)),
    }


def _plain(boxes: FrameBoxes) -> dict[str, Any]:
    return {"labels": boxes.labels.tolist(), "scores": boxes.scores.tolist(), "boxes": boxes.boxes.tolist()}


def _report(values: Mapping[str, Any], frames: int) -> Reported:
    if "frames" in values:
        objects = [[TrackedObject(**{**one, "box": tuple(one["box"])}) for one in found] for found in values["frames"]]
        return Reported(tracks_in(objects), objects, seconds=values["seconds"])
    tracks = [Track(**{**one, "masks": tuple(one["masks"])}) for one in values["tracks"]]
    return report_of_tracks(tracks, frames, values["boxes"] and tuple(map(_frame_boxes, values["boxes"])))


def _frame_boxes(values: Mapping[str, Any]) -> FrameBoxes:
    labels = np.array(values["labels"], dtype=np.int64)
    boxes = np.array(values["boxes"], dtype=np.float32).reshape(-1, 4)
    return FrameBoxes(labels, np.array(values["scores"], dtype=np.float32), boxes, np.zeros(len(labels), dtype=bool))


def _write_archive(path: Path, results: Path) -> None:
    """A zip with `results` at its root, as evaluation servers take it; the same results give the same bytes."""
    entry = zipfile.ZipInfo(results.name, EARLIEST)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    entry.file_size = results.stat().st_size  # beyond 4 GB the entry needs longer fields
    with (
        whole_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        results.open("rb") as source,
        archive.open(entry, "w") as target,
    ):
        shutil.copyfileobj(source, target, 2**20)


def _held(folder: Path) -> dict[str, Any] | None:
    """The identity of the unfinished run in `folder`, None if there is none."""
    path = folder / RUN
    if not path.is_file():
        return None
    held = read_json_object(path, IDENTITY, OutputError)
    if "rule" not in held:
        raise OutputError(f"{path}: does not hold {IDENTITY}; choose another folder for --write-results")
    if (folder / RESULTS).exists() and (folder / ARCHIVE).exists():  # it ended while it removed what was kept
        _remove_run(folder)
        return None
    return held


def _difference(held: Mapping[str, Any], given: Mapping[str, Any], inside: str = "") -> str:
    """The first setting that differs, in words."""
    key = next(key for key in {**held, **given} if held.get(key) != given.get(key))
    before, now = held.get(key), given.get(key)
    if isinstance(before, dict) and isinstance(now, dict):
        return _difference(before, now, f"{key}.")
    return f"{inside}{key} was {short(before)} and is {short(now)}"


def _refuse_taken(folder: Path, held: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    """Raises OutputError for finished results, and for an unfinished run of another identity."""
    if held is not None and held != identity:
        raise OutputError(
            f"{folder}: holds an unfinished run of other settings: {_difference(held, identity)}; finish it with the "
            "same, choose another folder, or --overwrite to begin again"
        )
    there = [name for name in (RESULTS, ARCHIVE) if os.path.lexists(folder / name)]
    if held is None and there:
        raise OutputError(
            f"{folder}: already holds {', '.join(there)}; choose another folder for --write-results, or --overwrite to "
            "replace them"
        )


def _refuse_videos(folder: Path) -> None:
    """Raises OutputError if the place for kept videos is taken, which no run did."""
    videos = folder / VIDEOS
    if os.path.lexists(videos) and (not videos.is_dir() or any(videos.iterdir())):
        raise OutputError(f"{videos}: is there already, and of no run; choose another folder for --write-results")


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _remove_run(folder: Path) -> None:
    """Removes kept videos, with what an interrupted write left, and last what says that they are of a run."""
    videos = folder / VIDEOS
    for path in [*videos.glob("*.json"), *videos.glob(".*.json.*.part")]:
        path.unlink()
    if videos.is_dir() and not any(videos.iterdir()):
        videos.rmdir()
    _remove(folder, (RUN,))
