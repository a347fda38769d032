"""Tiny data sets in the layouts in which the public ones are downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.masks import rectangle
from visrt.training.data.official_sets import OFFICIAL_SETS, SplitPlaces

__all__ = ["make_official_sets", "make_split"]

SIZE = (72, 128)
FRAMES = 24


def make_official_sets(root: Path) -> None:
    """Every set's train split below `root`."""
    for name in OFFICIAL_SETS:
        make_split(root, name, "train")


def make_split(root: Path, name: str, split: str, annotated: bool = True, frames: int = FRAMES) -> SplitPlaces:
    """One split of the set `name` below `root`, where it usually lies: two moving rectangles a video, a portrait video
    among them, or photos. Without annotations as the official files for evaluation servers are."""
    one = OFFICIAL_SETS[name]
    places = one.usual(root, split)
    classes = DATASET_CLASSES.get(one.classes, ("object",))
    MAKERS.get(name, _video_set)(places, classes, frames)
    if not annotated:
        path = places.folder / places.annotations
        path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": None}))
    return places


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


def _video_set(places: SplitPlaces, classes: tuple[str, ...], frames: int) -> None:
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (height, width) in enumerate((SIZE, SIZE[::-1]), start=1):
        names = [f"video{number}/{t:05d}.jpg" for t in range(frames)]
        for t, name in enumerate(names):
            _picture(places.folder / places.images / name, (height, width), _boxes_at(t, (height, width)))
        videos.append({"id": number, "width": width, "height": height, "length": frames, "file_names": names})
        for k in range(2):
            boxes = [_boxes_at(t, (height, width))[k] for t in range(frames)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number,
                    "category_id": min(1 + k, len(classes)),
                    "iscrowd": 0,
                    "segmentations": [_outline(*box) for box in boxes],
                    "bboxes": [list(box) for box in boxes],
                    "areas": [box[2] * box[3] for box in boxes],
                }
            )
    _write(places, {"videos": videos, "annotations": annotations, "categories": _categories(classes)})


def _burst(places: SplitPlaces, _: tuple[str, ...], frames: int) -> None:
    """Sequences of which every second frame is annotated; the second object is in the first of them only."""
    sequences: list[dict[str, Any]] = []
    for number, (height, width) in enumerate((SIZE, SIZE[::-1]), start=1):
        names = [f"frame{t:04d}.jpg" for t in range(frames)]
        for t, name in enumerate(names):
            path = places.folder / places.images / "LaSOT" / f"clip-{number}" / name
            _picture(path, (height, width), _boxes_at(t, (height, width)))
        masks = [
            [rectangle(box, (height, width)) for box in _boxes_at(t, (height, width))] for t in range(0, frames, 2)
        ]
        segmentations = [
            {str(10 + k): {"rle": mask["counts"], "is_gt": True} for k, mask in enumerate(of_frame) if not (k and i)}
            for i, of_frame in enumerate(masks)
        ]
        sequence = {"id": number, "width": width, "height": height, "dataset": "LaSOT", "seq_name": f"clip-{number}"}
        sequences.append(
            sequence
            | {"fps": 30, "all_image_paths": names, "annotated_image_paths": names[::2], "neg_category_ids": []}
            | {"not_exhaustive_category_ids": [805] if number == 2 else [], "segmentations": segmentations}
            | {"track_category_ids": {"10": 805, "11": 95}}
        )
    categories = [{"id": 95, "name": "bird"}, {"id": 805, "name": "person"}]
    split = Path(places.annotations).parent.name
    _write(places, {"sequences": sequences, "categories": categories, "split": split})


def _coco(places: SplitPlaces, names: tuple[str, ...], _: int) -> None:
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


def _photo_boxes(places: SplitPlaces, classes: tuple[str, ...], _: int) -> None:
    _boxes(places, classes, 3, video=False)


def _boxes(places: SplitPlaces, classes: tuple[str, ...], frames: int, video: bool = True) -> None:
    """ImageNet's as COCO-style json with boxes only."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t in range(frames):
        name = f"snippet/{t:06d}.JPEG"
        _picture(places.folder / places.images / name, SIZE, _boxes_at(t, SIZE))
        image: dict[str, Any] = {"id": t + 1, "width": SIZE[1], "height": SIZE[0], "file_name": name}
        images.append(image | ({"video_id": 1, "frame_id": t} if video else {}))
        for k, box in enumerate(_boxes_at(t, SIZE)):
            one = {"id": len(annotations) + 1, "image_id": t + 1, "category_id": 1 + k, "iscrowd": 0, "bbox": list(box)}
            annotations.append(one | ({"instance_id": k + 1} if video else {}))
    _write(places, {"images": images, "annotations": annotations, "categories": _categories(classes)})


Maker = Callable[[SplitPlaces, tuple[str, ...], int], None]
MAKERS: dict[str, Maker] = {"burst": _burst, "coco": _coco, "imagenet_vid": _boxes, "imagenet_det": _photo_boxes}
"""Those of other forms than YouTube-VIS's."""
