"""A made-up set of COCO's size, to measure how long training takes to start: the annotations are random polygons.

The pictures are links to a few files, as the annotations are what is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["SetSize", "write_large_set"]

HEIGHT, WIDTH = 480, 640
LINKS = 30_000
"""Names of one file; ext4 allows 65,000."""


@dataclass(frozen=True)
class SetSize:
    """As train2017: its annotations are 450 MB, so an object has about 27 corners; 1 % are crowds, with an RLE."""

    photos: int = 118_000
    objects: int = 860_000
    corners: int = 27
    categories: int = 80
    crowds: float = 0.01


def write_large_set(folder: Path, size: SetSize, seed: int = 0) -> Path:
    """Writes a set in COCO's format to `folder`; the path of its instances.json."""
    (folder / "images").mkdir(parents=True)
    _write_pictures(folder / "images", size.photos, np.random.default_rng(seed))
    path = folder / "instances.json"
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, size.photos + 1)
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, size.categories + 1)]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [\n')
        for i, annotation in enumerate(_annotations(size, np.random.default_rng([seed, 1]))):
            file.write((",\n" if i else "") + json.dumps(annotation))
        file.write("]}\n")
    return path


def _write_pictures(folder: Path, count: int, rng: np.random.Generator) -> None:
    """JPEGs of smooth noise, each under many names."""
    for i in range(1, count + 1):
        path = folder / f"{i:012d}.jpg"
        if i % LINKS == 1:
            coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
            first = path
        else:
            os.link(first, path)


def _annotations(size: SetSize, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Objects in any order of photos, as COCO has them."""
    photos, labels = rng.integers(1, size.photos + 1, size.objects), rng.integers(1, size.categories + 1, size.objects)
    crowds = rng.random(size.objects) < size.crowds
    for i in range(size.objects):
        polygon = _polygon(size.corners, rng)
        yield {
            "id": i + 1,
            "image_id": int(photos[i]),
            "category_id": int(labels[i]),
            "iscrowd": int(crowds[i]),
            "segmentation": _runs(polygon) if crowds[i] else [polygon.ravel().tolist()],
        }


def _polygon(corners: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Corners [corners, 2] of a star around a random place, x and y in pixels; most objects are small."""
    radius = 8 * np.exp(rng.uniform(0, 2.7))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius * rng.uniform(0.6, 1, (corners, 1))
    centre = rng.uniform(0, 1, 2) * (WIDTH, HEIGHT)
    return np.asarray(np.clip(centre + around, 0, (WIDTH, HEIGHT)).round(2))


def _runs(polygon: NDArray[np.float64]) -> dict[str, Any]:
    """Uncompressed runs, as COCO's crowds have."""
    [rle] = coco_mask.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH)
    flat = coco_mask.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)) if len(flat) else np.zeros(0, np.int64)
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges.tolist(), HEIGHT * WIDTH]).tolist()}
