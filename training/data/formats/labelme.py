"""labelme: a json next to each picture, with polygons, masks, circles, rectangles. Shapes of a group are an object."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle, decode
from visrt.runtime.sources.image_folder import natural_order
from visrt.training.data.annotation_files import Sizes
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.shapes import Labels, Shown, settled
from visrt.training.data.json_faults import Faults, object_at, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.segmentations import rle_of, rle_of_box, rle_of_mask

__all__ = ["is_labelme", "labelme_files", "read_labelme"]

EXPECTED = "a file of labelme with shapes and imagePath"
HEAD_BYTES = 2**16
CIRCLE_CORNERS = 64
MOST_PIXELS = 2**26


def is_labelme(values: object) -> bool:
    return isinstance(values, dict) and isinstance(values.get("shapes"), list) and "imagePath" in values


def labelme_files(folder: Path) -> tuple[Path, ...]:
    """The files of labelme in `folder`, or in the folders in it; none if the first json does not begin so."""
    for pattern in ("*.json", "*/*.json"):
        files = sorted((path for path in folder.glob(pattern) if not path.name.startswith(".")), key=natural_order)
        if files:
            break
    else:
        return ()
    # The head tells; other sets have json files of a gigabyte.
    with files[0].open("rb") as file:
        return tuple(files) if b'"shapes"' in file.read(HEAD_BYTES) else ()


def read_labelme(folder: Path, images: Path | None, rules: ReadRules) -> AnnotatedSet:
    """The photos of the files in `folder`; pictures are looked for next to them, or below `images`."""
    files = labelme_files(folder)
    if not files:
        raise DataError(f"{folder}: holds no json with shapes and imagePath; expected files of labelme")
    faults, labels, unread, sizes = Faults(folder, rules.skip_faulty), Labels(), Counter[str](), Sizes(folder)
    pictures = PictureFolder(images or folder)
    videos: list[tuple[AnnotatedVideo, list[Shown]]] = []
    groups: dict[tuple[str, str], set[Path]] = defaultdict(set)
    for file in files:
        with faults.entry():
            values = read_json_object(file, EXPECTED)
            if not is_labelme(values):
                raise DataError(f"{file}: holds {', '.join(list(values)[:5])}; expected {EXPECTED}")
            picture = _picture(file, values, pictures)
            sides = {"height": values.get("imageHeight"), "width": values.get("imageWidth")}
            size = sizes.of(sides, str(file), picture)
            shown = _objects(file, values["shapes"], size, labels, unread, faults, groups)
            videos.append((AnnotatedVideo(len(videos) + 1, picture.stem, (picture,), size, ()), shown))
    remarks = [*faults.remarks(), *sizes.remarks()]
    going_on = sum(len(of_group) > 1 for of_group in groups.values())
    if going_on:
        remarks.append(
            f"{folder}: {going_on} group_ids go on from picture to picture; within one they join shapes, and are not "
            "read as tracks"
        )
    if not videos:
        raise DataError(f"{folder}: no file is left without a fault")
    return complete_videos(settled(folder, videos, labels, unread, remarks), pictures, folder, rules.missing)


def _picture(file: Path, values: dict[str, Any], pictures: PictureFolder) -> Path:
    """The picture of a file: by its path from the file, which may come from Windows, or by its name."""
    where = f"{file}: imagePath"
    given = values["imagePath"]
    if not isinstance(given, str) or not given:
        raise DataError(f"{where}: expected the name of a picture; found {short(given)}")
    name = Path(given.replace("\\", "/")).name
    inner = file.parent.relative_to(pictures.root) if file.is_relative_to(pictures.root) else Path()
    beside = (inner / name).as_posix()
    return pictures.find(beside if beside in pictures or name not in pictures else name, where)


def _objects(
    file: Path,
    shapes: list[Any],
    size: tuple[int, int],
    labels: Labels,
    unread: Counter[str],
    faults: Faults,
    groups: dict[tuple[str, str], set[Path]],
) -> list[Shown]:
    objects: dict[object, list[tuple[Rle, int, bool]]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        where = f"{file}: shapes[{i}]"
        with faults.entry():
            kind = object_at(shape, where).get("shape_type", "polygon")
            if kind not in READERS:
                unread[str(kind)] += 1
                continue
            label = labels.of(shape.get("label"), where)
            group, is_box = shape.get("group_id"), kind == "rectangle"
            if group is not None:
                groups[str(shape.get("label")), str(group)].add(file)
            key: tuple[object, ...] = (i,) if group is None else (str(group), label, is_box)
            mask = READERS[kind](shape, where, size)
            objects[key].append((mask, label, is_box))
    return [
        Shown(Track(parts[0][1], (_union([mask for mask, _, _ in parts]),)), is_box=parts[0][2])
        for parts in objects.values()
    ]


def _union(masks: list[Rle]) -> Rle:
    return masks[0] if len(masks) == 1 else rle_of_mask(np.any([decode(mask) for mask in masks], axis=0))


def _points(shape: dict[str, Any], where: str, count: int) -> list[list[float]]:
    points = shape.get("points")
    if not isinstance(points, list) or len(points) != count or not all(_is_point(one) for one in points):
        raise DataError(f"{where}.points: expected {count} points [x, y]; found {short(points)}")
    return points


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) in (int, float) for one in value)


def _polygon(shape: dict[str, Any], where: str, size: tuple[int, int]) -> Rle:
    points = shape.get("points")
    if not isinstance(points, list) or not all(_is_point(one) for one in points):
        raise DataError(f"{where}.points: expected corners [x, y]; found {short(points)}")
    return rle_of([[value for one in points for value in one]], f"{where}.points", size)


def _rectangle(shape: dict[str, Any], where: str, size: tuple[int, int]) -> Rle:
    (x0, y0), (x1, y1) = _points(shape, where, 2)
    return rle_of_box([min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)], where, size)


def _circle(shape: dict[str, Any], where: str, size: tuple[int, int]) -> Rle:
    (x, y), (edge_x, edge_y) = _points(shape, where, 2)
    radius = math.hypot(edge_x - x, edge_y - y)
    angles = [2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS)]
    corners = [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]
    return rle_of([corners], f"{where}.points", size)


def _mask(shape: dict[str, Any], where: str, size: tuple[int, int]) -> Rle:
    """A png of a rectangle, whose first corner is the first of two points."""
    (left, top), _ = _points(shape, where, 2)
    try:
        raw = base64.b64decode(str(shape.get("mask")), validate=True)
        with PIL.Image.open(io.BytesIO(raw)) as png:
            if png.width * png.height > MOST_PIXELS:
                raise DataError(f"{where}.mask: {png.width} x {png.height} is beyond the limit of {MOST_PIXELS} pixels")
            inside = np.asarray(png.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}.mask: expected a png in base64; found {short(shape.get('mask'))} ({error})") from None
    mask = np.zeros(size, bool)
    x, y = max(int(left), 0), max(int(top), 0)
    part = mask[y : y + inside.shape[0], x : x + inside.shape[1]]
    part |= inside[: part.shape[0], : part.shape[1]]
    return rle_of_mask(mask)


READERS = {"polygon": _polygon, "rectangle": _rectangle, "circle": _circle, "mask": _mask}
