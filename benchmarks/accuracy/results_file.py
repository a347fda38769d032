"""Results in the YouTube-VIS form, read against the annotated set that they are results of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json
from visrt.training.data.annotation_files import masks_in
from visrt.training.data.annotations import AnnotatedSet, Track
from visrt.training.data.json_faults import known_id, object_at, short, whole_number

__all__ = ["load_results"]

ANOTHER_SET = "the annotations'; these are results of another set, or of another version of it: "


def load_results(path: Path, annotated: AnnotatedSet) -> dict[int, list[Track]]:
    """Predicted tracks of a results file by video id: [{video_id, category_id, score, segmentations}].

    Category ids are those of the annotations; tracks of categories that were left out are left out too. Raises
    DataError that names the first fault by its json path.
    """
    expected = "a list of tracks, each with video_id, category_id, score and segmentations"
    values = read_json(path, expected)
    if not isinstance(values, list):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected {expected}")
    shapes = {video.id: (len(video.pictures), video.size) for video in annotated.videos}
    predicted: dict[int, list[Track]] = {video: [] for video in shapes}
    first: dict[int, int] = {}
    for i, value in enumerate(values):
        where = f"{path}: [{i}]"
        entry = object_at(value, where)
        if "id" in entry and first.setdefault(number := whole_number(entry, "id", where), i) != i:
            raise DataError(f"{where}.id: {number} is the id of [{first[number]}] too; ids must differ")
        video = known_id(entry, "video_id", shapes, where, ANOTHER_SET)
        label = annotated.label_of[known_id(entry, "category_id", annotated.label_of, where, ANOTHER_SET)]
        masks = masks_in(entry, where, *shapes[video])
        if label is not None:
            predicted[video].append(Track(label, masks, _score(entry, where)))
    return predicted


def _score(entry: dict[str, Any], where: str) -> float:
    score = entry.get("score")
    # A bound, not isfinite: that cannot take a whole number beyond the range of a float. NaN is below no bound.
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e300:
        raise DataError(f"{where}.score: expected a finite number; found {short(score)}")
    return float(score)
