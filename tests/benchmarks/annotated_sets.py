"""Small annotated sets and results for the tests of the evaluation: rectangles that move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.masks import Rle

SIZE = (48, 64)


def box_rle(x: int, y: int, w: int, h: int, size: tuple[int, int] = SIZE) -> Rle:
    mask = np.zeros(size, np.uint8)
    mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    coded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(size), "counts": coded["counts"].decode()}


def moving_box(x: int, y: int, w: int, h: int, frames: int, gone: tuple[int, ...] = ()) -> list[Rle | None]:
    """A box that moves right by two pixels a frame; `gone` from some of them."""
    return [None if t in gone else box_rle(x + 2 * t, y, w, h) for t in range(frames)]


def set_values(videos: int = 1, frames: int = 3) -> dict[str, Any]:
    """A dog and a car in each video."""
    annotations = []
    for v in range(1, videos + 1):
        annotations.append({"video_id": v, "category_id": 2, "segmentations": moving_box(2, 4, 20, 16, frames)})
        annotations.append({"video_id": v, "category_id": 5, "segmentations": moving_box(30, 24, 16, 20, frames)})
    return {
        "categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "car"}],
        "videos": [
            {
                "id": v,
                "height": SIZE[0],
                "width": SIZE[1],
                "file_names": [f"video{v}/{t:05d}.png" for t in range(frames)],
            }
            for v in range(1, videos + 1)
        ],
        "annotations": [{"id": i + 1, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }


def write_set(folder: Path, values: dict[str, Any]) -> Path:
    """`values` as instances.json with a grey picture for each frame; the folder."""
    picture: NDArray[np.uint8] = np.full((*SIZE, 3), 120, np.uint8)
    for video in values["videos"]:
        for name in video["file_names"]:
            path = folder / "JPEGImages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
    (folder / "instances.json").write_text(json.dumps(values))
    return folder
