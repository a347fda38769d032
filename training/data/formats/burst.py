"""BURST's json: sequences with the masks of each annotated frame by track (Athar et al., WACV 2023).

Pictures are DATASET/SEQUENCE/NAME below the folder of the split. Frames without annotations are not read: of the
validation and test splits one frame a second is annotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, checked_rle
from visrt.training.data.annotation_files import categories_in, size_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import Faults, known_id, object_at, placed_by_id, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos

__all__ = ["FRAMES", "burst_set", "first_picture"]

SEQUENCES = "sequences"
FRAMES = "frames"
ONE_A_SECOND = ("val", "test")
"""Splits of which one frame a second is annotated."""


def burst_set(path: Path, values: dict[str, Any], pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`."""
    categories, label_of = categories_in(path, values)
    folder = PictureFolder(pictures)
    faults = Faults(path, rules.skip_faulty)
    sequences = placed_by_id(values, SEQUENCES, path, faults)
    known = any("segmentations" in sequence for _, sequence in sequences.values())
    videos = []
    for number, (where, sequence) in sequences.items():
        with faults.entry():
            videos.append(_video(number, sequence, where, label_of, folder, faults))
    remarks = faults.remarks()
    if not videos:
        raise DataError(f"{path}: {SEQUENCES}: none is left without a fault")
    read = AnnotatedSet(tuple(videos), categories, label_of, remarks, annotated=known)
    if values.get("split") in ONE_A_SECOND:
        read = replace(read, fps=1.0)
    partial = sum(bool(sequence.get("not_exhaustive_category_ids")) for _, sequence in sequences.values())
    if partial:
        remark = f"{path}: in {partial} of {len(videos)} videos some classes are not annotated exhaustively"
        read = replace(read, remarks=(*read.remarks, remark))
    return complete_videos(read, folder, path, rules.missing)


def first_picture(sequence: dict[str, Any]) -> str | None:
    """The name of its first annotated picture below the folder of the split; None in a faulty file."""
    names = sequence.get("annotated_image_paths")
    parts = (sequence.get("dataset"), sequence.get("seq_name"), names[0] if isinstance(names, list) and names else None)
    return "/".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None


def _video(
    number: int,
    sequence: dict[str, Any],
    where: str,
    label_of: Mapping[int, int],
    folder: PictureFolder,
    faults: Faults,
) -> AnnotatedVideo:
    size = size_in(sequence, where)
    names = _texts(sequence.get("annotated_image_paths"), f"{where}.annotated_image_paths")
    dataset, name = _texts([sequence.get("dataset"), sequence.get("seq_name")], f"{where}: dataset and seq_name")
    pictures = tuple(
        folder.find(f"{dataset}/{name}/{file}", f"{where}.annotated_image_paths[{t}]") for t, file in enumerate(names)
    )
    masks = _masks(sequence, where, len(names), size, faults)
    kinds = object_at(sequence.get("track_category_ids", {}), f"{where}.track_category_ids")
    tracks = []
    for track, by_frame in masks.items():
        with faults.entry():
            label = label_of[known_id(kinds, track, label_of, f"{where}.track_category_ids")]
            tracks.append(Track(label, tuple(map(by_frame.get, range(len(names))))))
    return AnnotatedVideo(number, f"{dataset}/{name}", pictures, size, tuple(tracks))


def _texts(values: object, where: str) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: expected at least one text and nothing else; found {short(values)}")
    return values


def _masks(
    sequence: dict[str, Any], where: str, frames: int, size: tuple[int, int], faults: Faults
) -> dict[str, dict[int, Rle]]:
    """By track, the masks by frame."""
    entries = sequence.get("segmentations", [{}] * frames)
    if not isinstance(entries, list) or len(entries) != frames:
        found = f"{len(entries)} entries" if isinstance(entries, list) else short(entries)
        raise DataError(f"{where}.segmentations: expected one entry for each of {frames} frames; found {found}")
    masks: dict[str, dict[int, Rle]] = {}
    for t, entry in enumerate(entries):
        for track, mask in object_at(entry, f"{where}.segmentations[{t}]").items():
            place = f"{where}.segmentations[{t}].{track}"
            with faults.entry():
                rle = {"size": list(size), "counts": object_at(mask, place).get("rle")}
                masks.setdefault(track, {})[t] = checked_rle(rle, f"{place}.rle", size)
    return masks
