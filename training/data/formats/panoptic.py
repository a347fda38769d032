"""COCO's panoptic json: a png an image, whose colours number segments. Those of things are instances, stuff is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from visrt.runtime.errors import DataError
from visrt.training.data.annotation_files import annotations_in, categories_in, is_crowd, size_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import Faults, known_id, object_at, placed_by_id, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.picture_size import opened
from visrt.training.data.segmentations import rle_of_mask

__all__ = ["is_panoptic", "panoptic_set"]


def is_panoptic(values: dict[str, Any]) -> bool:
    entries = values.get("annotations")
    return isinstance(entries, list) and any(isinstance(one, dict) and "segments_info" in one for one in entries)


def panoptic_set(path: Path, values: dict[str, Any], pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The things in `values`, read from `path`, with its pictures below `pictures` and its pngs next to the json."""
    faults = Faults(path, rules.skip_faulty)
    categories, label_of = categories_in(path, values)
    things = [number for number, one in zip(label_of, values["categories"], strict=True) if one.get("isthing", 1)]
    if not things:
        raise DataError(f"{path}: holds no instances: none of its {len(categories)} categories is a thing (isthing)")
    kept = {number: label for label, number in enumerate(things)}
    folder, pngs = PictureFolder(pictures), _pngs(path)
    images = placed_by_id(values, "images", path, faults)
    stuff: Counter[str] = Counter()
    # Annotations of panoptic files have no ids of their own.
    entries = [{"id": i, **one} if isinstance(one, dict) else one for i, one in enumerate(values["annotations"])]
    videos = []
    for where, annotation in annotations_in(path, {"annotations": entries}, faults):
        with faults.entry():
            number = known_id(annotation, "image_id", images, where)
            place, image = images[number]
            picture = folder.find(image.get("file_name"), f"{place}.file_name")
            size = size_in(image, place)
            tracks = []
            for track, category in _segments(annotation, where, pngs, size, label_of, faults):
                if category in kept:
                    tracks.append(Track(kept[category], track.masks, crowd=track.crowd))
                else:
                    stuff[categories[label_of[category]]] += 1
            videos.append(AnnotatedVideo(number, picture.stem, (picture,), size, tuple(tracks)))
    remarks = list(faults.remarks())
    if stuff:
        named = ", ".join(name for name, _ in stuff.most_common(5)) + (", ..." if len(stuff) > 5 else "")
        remarks.append(f"{path}: {stuff.total()} segments of stuff, which has no instances, are left out: {named}")
    if not videos:
        raise DataError(f"{path}: annotations: none is left without a fault")
    names = tuple(categories[label_of[number]] for number in things)
    return complete_videos(AnnotatedSet(tuple(videos), names, dict(kept), tuple(remarks)), folder, path, rules.missing)


def _pngs(path: Path) -> Path:
    """The folder of the pngs: of the json's name, as COCO has it, or Roboflow's and CVAT's next to it."""
    places = (path.with_suffix(""), path.parent / "annotations", path.parent / "panoptic", path.parent)
    return next((place for place in places if place.is_dir() and any(place.glob("*.png"))), places[0])


def _segments(
    annotation: dict[str, Any],
    where: str,
    pngs: Path,
    size: tuple[int, int],
    label_of: dict[int, int],
    faults: Faults,
) -> list[tuple[Track, int]]:
    """The segments of an image with their category ids."""
    name, infos = annotation.get("file_name"), annotation.get("segments_info")
    if not isinstance(name, str) or not isinstance(infos, list):
        raise DataError(f"{where}: expected file_name and a list segments_info; found {short(name)}, {short(infos)}")
    with opened(pngs / Path(name).name) as png:
        if (png.height, png.width) != size:
            raise DataError(f"{where}.file_name: {png.height} x {png.width} pixels, its image {size[0]} x {size[1]}")
        channels = np.asarray(png.convert("RGB")).astype(np.int64)
    numbers = channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)
    found = []
    for k, info in enumerate(infos):
        place = f"{where}.segments_info[{k}]"
        with faults.entry():
            category = known_id(object_at(info, place), "category_id", label_of, place)
            inside = numbers == info.get("id")
            if not inside.any():
                raise DataError(f"{place}.id: no pixel of {name} has the number {short(info.get('id'))}")
            found.append((Track(label_of[category], (rle_of_mask(inside),), crowd=is_crowd(info, place)), category))
    return found
