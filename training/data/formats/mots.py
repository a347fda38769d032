"""MOTS txt: one line a mask, `frame id class height width rle`, one file a video (Voigtlaender et al., CVPR 2019).

MOTSChallenge keeps NAME/gt/gt.txt next to NAME/img1/; KITTI MOTS instances_txt/NAME.txt and the pictures elsewhere. A
line's frame is the number in the picture's file name. Class 10 is a region to ignore: a crowd of each class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, checked_rle
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.davis import crowd_of_each_class, crowded, without_overlap
from visrt.training.data.formats.placing import (
    Pictures,
    crowd_remarks,
    folder_names,
    overlap_remarks,
    place,
    score_remarks,
    write_json,
)
from visrt.training.data.json_faults import Faults
from visrt.training.data.picture_folder import ReadRules
from visrt.training.data.picture_size import size_of
from visrt.training.data.segmentations import rle_of_mask

__all__ = ["CLASSES", "IGNORE", "find_mots", "mots_lines", "read_mots", "write_mots"]

CLASSES = {1: "car", 2: "pedestrian"}
IGNORE = 10
"""Class of regions to ignore."""
STRICT = ReadRules()
FIELDS = "frame, id, class, height, width and rle"


@dataclass(frozen=True)
class _Line:
    frame: int
    id: int
    kind: int
    rle: Rle


def find_mots(folder: Path, images: Path | None = None) -> dict[str, tuple[Path, Path]]:
    """By name, the txt file and the folder of pictures of each video of `folder`."""
    challenge = {path.parent.parent.name: path for path in sorted(folder.glob("*/gt/gt.txt"))}
    if challenge:
        return {name: (path, (images / name if images else folder / name) / "img1") for name, path in challenge.items()}
    kitti = {path.stem: path for path in sorted(folder.glob("instances_txt/*.txt"))}
    if kitti and images is None:
        raise DataError(f"{folder}: instances_txt/ has no pictures next to it; name their folder with --images")
    return {name: (path, images / name) for name, path in kitti.items()} if images else {}


def read_mots(
    videos: Mapping[str, tuple[Path, Path]], classes: Mapping[int, str] = CLASSES, rules: ReadRules = STRICT
) -> AnnotatedSet:
    """The videos, each by its txt file and its folder of pictures; `classes` names the class numbers."""
    if not videos:
        raise DataError("no video; expected NAME/gt/gt.txt next to NAME/img1/, or instances_txt/NAME.txt")
    label_of = {number: label for label, number in enumerate(classes)}
    read: list[AnnotatedVideo] = []
    remarks: list[str] = []
    for i, (name, (txt, folder)) in enumerate(videos.items(), start=1):
        faults = Faults(txt, rules.skip_faulty)
        read.append(_video(i, name, txt, folder, label_of, faults))
        remarks += faults.remarks()
    return AnnotatedSet(tuple(read), tuple(classes.values()), dict(label_of), tuple(remarks))


def _video(
    number: int, name: str, txt: Path, folder: Path, label_of: Mapping[int, int], faults: Faults
) -> AnnotatedVideo:
    pictures = images_in(folder) if folder.is_dir() else ()
    if not pictures:
        raise DataError(f"{folder}: there is no picture; expected the frames of {txt}")
    unnamed = [path for path in pictures if not path.stem.isdecimal()]
    if unnamed:
        raise DataError(f"{unnamed[0]}: expected a file name that is the number of its frame")
    size = size_of(pictures[0])
    places = {int(path.stem): t for t, path in enumerate(pictures)}
    tracks: dict[tuple[int, int], dict[int, Rle]] = {}
    for where, text in _lines(txt):
        with faults.entry():
            line = _line(text.split(), where, size)
            if line.frame not in places:
                raise DataError(f"{where}: frame {line.frame} has no picture in {folder}")
            if line.kind != IGNORE and line.kind not in label_of:
                known = ", ".join(map(str, (*label_of, IGNORE)))
                raise DataError(f"{where}: class {line.kind} is none of {known}; name the classes with --names")
            masks = tracks.setdefault((line.kind, line.id), {})
            if masks.setdefault(places[line.frame], line.rle) is not line.rle:
                raise DataError(f"{where}: object {line.id} has a mask in frame {line.frame} already")
    found = [track for key, masks in tracks.items() for track in _tracks(key[0], masks, len(pictures), label_of)]
    return AnnotatedVideo(number, name, pictures, size, tuple(found))


def _tracks(kind: int, masks: Mapping[int, Rle], frames: int, label_of: Mapping[int, int]) -> Iterator[Track]:
    """One track, or for a region to ignore a crowd of each class."""
    by_frame = tuple(masks.get(t) for t in range(frames))
    if kind != IGNORE:
        yield Track(label_of[kind], by_frame)
        return
    yield from crowd_of_each_class(by_frame, len(label_of))


def _lines(txt: Path) -> Iterator[tuple[str, str]]:
    """The place and the text of each line that is not empty."""
    try:
        text = txt.read_text()
    except (OSError, ValueError) as error:
        raise DataError(f"{txt}: cannot be read as text ({error})") from None
    for i, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{txt}: line {i}", line


def _line(parts: Sequence[str], where: str, size: tuple[int, int]) -> _Line:
    if len(parts) != 6 or not all(part.isdecimal() for part in parts[:5]):
        raise DataError(f"{where}: expected {FIELDS}; found {' '.join(parts)[:60]!r}")
    frame, identity, kind, height, width = map(int, parts[:5])
    return _Line(frame, identity, kind, checked_rle({"size": [height, width], "counts": parts[5]}, where, size))


def write_mots(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    lost = 0
    for video, name in zip(annotated.videos, folder_names(annotated), strict=True):
        for t, picture in enumerate(video.pictures, start=1):
            place(picture, folder / name / "img1" / f"{t:06d}{picture.suffix}", pictures)
        lines, pixels = mots_lines(video)
        lost += pixels
        (folder / name / "gt").mkdir(parents=True)
        write_atomically(folder / name / "gt" / "gt.txt", [f"{line}\n".encode() for line in lines])
    write_json(folder / "names.json", {str(label + 1): name for label, name in enumerate(annotated.classes)})
    return overlap_remarks(lost) + crowd_remarks(annotated) + score_remarks(annotated, "MOTS")


def mots_lines(video: AnnotatedVideo) -> tuple[list[str], int]:
    """The lines of one video, frames from 1, and the pixels left out where objects overlap: the smaller is kept.

    A class's number is its label plus one, an object's that times 1000 plus its place in the class.
    """
    objects = [track for track in video.tracks if not track.crowd]
    ids = _ids(video, objects)
    lines, lost = [], 0
    for t in range(len(video.pictures)):
        numbers, hidden = without_overlap([track.masks[t] for track in objects], video.size)
        lost += hidden
        for i, track in enumerate(objects, start=1):
            if (numbers == i).any():
                lines.append(_written(t, ids[i - 1], track.label + 1, rle_of_mask(numbers == i)))
        ignored = crowded(video, t) & (numbers == 0)
        if ignored.any():
            lines.append(_written(t, IGNORE * 1000, IGNORE, rle_of_mask(ignored)))
    return lines, lost


def _ids(video: AnnotatedVideo, objects: Sequence[Track]) -> list[int]:
    count: dict[int, int] = {}
    ids = []
    for track in objects:
        count[track.label] = count.get(track.label, -1) + 1
        if track.label + 1 >= IGNORE or count[track.label] > 999:
            raise DataError(f"video {video.name}: MOTS tells 9 classes of 1000 objects apart; it has more")
        ids.append(1000 * (track.label + 1) + count[track.label])
    return ids


def _written(t: int, identity: int, kind: int, rle: Rle) -> str:
    height, width = rle["size"]
    return f"{t + 1} {identity} {kind} {height} {width} {rle['counts']}"
