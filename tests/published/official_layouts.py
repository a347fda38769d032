"""Tiny data sets in the layouts in which the public ones are downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visrt.models.checkpoints.published import DATASET_CLASSES
from visrt.training.data.official_sets import OFFICIAL_SETS, SplitPlaces

__all__ = ["make_official_sets"]

SIZE = (72, 128)
FRAMES = 24


def make_official_sets(root: Path) -> None:
    """Every set's train split below `root`: two moving rectangles a video, a portrait video among them; photos."""
    for name in ("ytvis19", "ytvis21", "ytvis22", "ovis"):
        _video_set(OFFICIAL_SETS[name].usual(root, "train"), DATASET_CLASSES[OFFICIAL_SETS[name].classes])
    _coco(OFFICIAL_SETS["coco"].usual(root, "train"))
    for name in ("imagenet_vid", "imagenet_det"):
        _boxes(OFFICIAL_SETS[name].usual(root, "train"), video=name == "imagenet_vid")


def _categories(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def _write(places: SplitPlaces, values: dict[str, Any]) -> None:
    path = places.folder / places.annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _picture(path: Path, size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.full((*size, 3), 90, np.uint8)
    for k, (x, y, w, h) in enumerate(boxes):
        rgb[y : y + h, x : x + w] = (220, 40 + 80 * k, 60)
    cv2.imwrite(str(path), rgb)


def _outline(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _boxes_at(t: int, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    height, width = size
    return [(4 + t, 8, width // 4, height // 3), (width // 2, height // 2 + t // 2, width // 5, height // 4)]


def _video_set(places: SplitPlaces, classes: tuple[str, ...]) -> None:
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (height, width) in enumerate((SIZE, SIZE[::-1]), start=1):
        names = [f"video{number}/{t:05d}.jpg" for t in range(FRAMES)]
        for t, name in enumerate(names):
            _picture(places.folder / places.images / name, (height, width), _boxes_at(t, (height, width)))
        videos.append({"id": number, "width": width, "height": height, "length": FRAMES, "file_names": names})
        for k in range(2):
            boxes = [_boxes_at(t, (height, width))[k] for t in range(FRAMES)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number,
                    "category_id": 1 + k,
                    "iscrowd": 0,
                    "segmentations": [_outline(*box) for box in boxes],
                    "bboxes": [list(box) for box in boxes],
                    "areas": [box[2] * box[3] for box in boxes],
                }
            )
    _write(places, {"videos": videos, "annotations": annotations, "categories": _categories(classes)})


def _coco(places: SplitPlaces) -> None:
    names = DATASET_CLASSES["coco"]
    ids = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83)]
    categories = [{"id": i, "name": name} for i, name in zip([*ids, *range(84, 91)], names, strict=True)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, 7):
        name = f"{number:012d}.jpg"
        _picture(places.folder / places.images / name, SIZE, _boxes_at(number, SIZE))
        images.append({"id": number, "width": SIZE[1], "height": SIZE[0], "file_name": name})
        for k, box in enumerate(_boxes_at(number, SIZE)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": (1, 18)[k],
                    "iscrowd": 0,
                    "segmentation": _outline(*box),
                    "bbox": list(box),
                    "area": box[2] * box[3],
                }
            )
    _write(places, {"images": images, "annotations": annotations, "categories": categories})


def _boxes(places: SplitPlaces, video: bool) -> None:
    """ImageNet's as COCO-style json with boxes only."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t in range(FRAMES if video else 3):
        name = f"snippet/{t:06d}.JPEG"
        _picture(places.folder / places.images / name, SIZE, _boxes_at(t, SIZE))
        image: dict[str, Any] = {"id": t + 1, "width": SIZE[1], "height": SIZE[0], "file_name": name}
        images.append(image | ({"video_id": 1, "frame_index": t} if video else {}))
        for k, box in enumerate(_boxes_at(t, SIZE)):
            one = {"id": len(annotations) + 1, "image_id": t + 1, "category_id": 1 + k, "iscrowd": 0, "bbox": list(box)}
            annotations.append(one | ({"track_id": k + 1} if video else {}))
    _write(
        places,
        {"images": images, "annotations": annotations, "categories": _categories(DATASET_CLASSES["imagenet_vid"])},
    )
