"""Tiny annotated sets on disk for the tests of training data: coloured rectangles on grey pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 96, 160
RED, BLUE = (230, 30, 30), (30, 30, 230)


def picture(boxes: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> NDArray[np.uint8]:
    """uint8 RGB: boxes x, y, width, height filled with their colour on grey."""
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    for (x, y, w, h), colour in boxes.items():
        image[y : y + h, x : x + w] = colour
    return image


def box_mask(x: int, y: int, w: int, h: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    coded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": coded["counts"].decode()}


def write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Without loss, so that colours can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


CATEGORIES = [{"id": 3, "name": "car"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "chair"}]


def coco_values(pictures: int = 1) -> dict[str, Any]:
    """Each picture: a red car at 20, 30 of 60 x 40."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(pictures)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "segmentation": rle(box_mask(20, 30, 60, 40)), "iscrowd": 0}
            for i in range(pictures)
        ],
        "categories": CATEGORIES,
    }


def write_coco(folder: Path, values: dict[str, Any]) -> Path:
    """`values` with a picture for each image; the json's path."""
    for image in values["images"]:
        write_png(folder / "images" / image["file_name"], picture({(20, 30, 60, 40): RED}))
    path = folder / "instances.json"
    path.write_text(json.dumps(values))
    return path


def video_values(frames: int = 4) -> dict[str, Any]:
    """One video: a red car moves right by 10 a frame and is gone from the last one."""
    masks = [rle(box_mask(10 * t, 30, 60, 40)) for t in range(frames - 1)]
    return {
        "videos": [
            {"id": 1, "width": WIDTH, "height": HEIGHT, "file_names": [f"one/{t:05d}.png" for t in range(frames)]}
        ],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 3, "segmentations": [*masks, None], "iscrowd": 0}],
        "categories": CATEGORIES,
    }


def write_video(folder: Path, values: dict[str, Any]) -> Path:
    names = values["videos"][0]["file_names"]
    for t, name in enumerate(names):
        boxes = {(10 * t, 30, 60, 40): RED} if t + 1 < len(names) else {}
        write_png(folder / "JPEGImages" / name, picture(boxes))
    path = folder / "instances.json"
    path.write_text(json.dumps(values))
    return path


def write_cutouts(folder: Path, **classes: str) -> Path:
    """A blue disc for each name; the map's path."""
    pngs = folder / "cutouts"
    pngs.mkdir(parents=True)
    for name in classes:
        rgba = np.zeros((64, 64, 4), np.uint8)
        rgba[..., :3] = (30, 200, 30)  # what lies under the transparent part must never be seen
        cv2.circle(rgba, (32, 32), 28, (*BLUE[::-1], 255), -1)
        cv2.imwrite(str(pngs / f"{name}.png"), rgba)
    path = folder / "cutouts.json"
    path.write_text(json.dumps({f"{name}.png": kind for name, kind in classes.items()}))
    return path
