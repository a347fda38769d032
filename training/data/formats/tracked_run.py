"""The results of `visrt track` as a set: results.jsonl holds masks and ids, the video or its pictures lie elsewhere.

Read: each object becomes a track with the label and score of its last frame, as in results.json. Frames without a line,
which were dropped or left out, are no frames of the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle, checked_rle, rectangle
from visrt.runtime.sinks.output import JOURNAL, SUMMARY
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.video_frames import frame_pictures
from visrt.training.data.json_faults import short

__all__ = ["read_run", "run_folders"]

LINE = "a line of visrt track: frame, size and objects"


def run_folders(folder: Path) -> tuple[Path, ...]:
    """The folders of runs in `folder`: itself, or those of several sources in it."""
    if (folder / JOURNAL).is_file():
        return (folder,)
    return tuple(path.parent for path in sorted(folder.glob(f"*/{JOURNAL}")))


def read_run(folder: Path, images: Path | None) -> AnnotatedSet:
    """The runs in `folder`. images: the video or the folder of pictures of a run, or a folder with those of several.

    Raises DataError, where nobody says where the video is and it is neither here nor next to the run.
    """
    runs = run_folders(folder)
    names: dict[int, str] = {}
    videos, boxes_only = [], False
    for number, run in enumerate(runs, start=1):
        lines = list(_lines(run / JOURNAL, names))
        summary = _summary(run)
        for i, category in enumerate(summary.get("categories", ())):
            names.setdefault(i, str(category.get("name")))
        source = _source(run, summary, images, several=len(runs) > 1)
        video, of_boxes = _video(number, run, lines, source)
        videos.append(video)
        boxes_only |= of_boxes
    if not any(video.tracks for video in videos) and not names:
        raise DataError(f"{folder}: its runs found no object and no {SUMMARY} names the classes")
    classes = tuple(names.get(label, f"class {label}") for label in range(max(names) + 1))
    label_of = {label + 1: label for label in range(len(classes))}
    return AnnotatedSet(tuple(videos), classes, label_of, boxes_only=boxes_only)


def _lines(journal: Path, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """The lines, checked; the names of labels go to `names`. A last line without its end is left out."""
    for i, text in enumerate(journal.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            return
        where = f"{journal}: line {i}"
        try:
            line = json.loads(text)
            for shown in line["objects"]:
                names[int(shown["label"])] = str(shown["name"])
            height, width = map(int, line["size"])
            yield {"frame": int(line["frame"]), "size": (height, width), "where": where, "objects": line["objects"]}
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(f"{where}: expected {LINE}; found {short(text)}") from None


def _summary(run: Path) -> dict[str, Any]:
    """summary.json, which a run that was killed has not."""
    path = run / SUMMARY
    return read_json_object(path, "the summary of a run of visrt track") if path.is_file() else {}


def _source(run: Path, summary: dict[str, Any], images: Path | None, *, several: bool) -> Path:
    name = str(summary.get("source") or run.name)
    if images is not None and not (several and images.is_dir()):
        return images
    folders = (images,) if images is not None else (run, run.parent, Path.cwd())
    found = [folder / name for folder in folders if (folder / name).exists() and folder / name != run]
    recorded = summary.get("path")
    if images is None and isinstance(recorded, str) and Path(recorded).exists():
        return Path(recorded)
    if not found:
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(
            f"{run}: its frames are those of {name}, which is not in {looked}; give the video, or the folder of its "
            "pictures, with --images"
        )
    return found[0]


def _video(number: int, run: Path, lines: list[dict[str, Any]], source: Path) -> tuple[AnnotatedVideo, bool]:
    """The video, and whether its objects have boxes alone."""
    if not lines:
        raise DataError(f"{run / JOURNAL}: holds no frame")
    sizes = {line["size"] for line in lines}
    if len(sizes) > 1:
        raise DataError(f"{run / JOURNAL}: frames are of {len(sizes)} sizes; a video of a set has one")
    [size] = sizes
    pictures = frame_pictures(source, [line["frame"] for line in lines])
    masks: dict[int, dict[int, Rle]] = {}
    last: dict[int, dict[str, Any]] = {}
    of_boxes = False
    for t, line in enumerate(lines):
        for shown in line["objects"]:
            of_boxes |= "rle" not in shown
            masks.setdefault(shown["id"], {})[t] = _mask(shown, line["where"], size)
            last[shown["id"]] = shown
    tracks = tuple(
        Track(int(last[one]["label"]), tuple(map(masks[one].get, range(len(lines)))), float(last[one]["score"]), id=one)
        for one in sorted(masks)
    )
    files = tuple(pictures[line["frame"]] for line in lines)
    return AnnotatedVideo(number, source.stem, files, size, tracks), of_boxes


def _mask(shown: dict[str, Any], where: str, size: tuple[int, int]) -> Rle:
    if "rle" in shown:
        return checked_rle(shown["rle"], f"{where}: objects.rle", size)
    x, y, width, height = (int(side) for side in shown["box"])
    return rectangle((x, y, width, height), size)
