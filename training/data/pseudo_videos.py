"""Validation videos with exact tracks: pseudo-videos written as a YouTube-VIS folder that `visrt eval` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from visrt.runtime.errors import OutputError
from visrt.training.data.clips import Clip, ClipSettings, make_clip
from visrt.training.data.sources import SourceSettings, load_pool
from visrt.training.data.views import check_view

__all__ = ["write_clips", "write_pseudo_videos"]

INFO = "pseudo-videos made from still pictures; every visible part of every pasted or annotated object is exact"


def write_pseudo_videos(
    sources: Sequence[SourceSettings], settings: ClipSettings, out: Path, videos: int, seed: int
) -> Path:
    """Write `videos` videos of `settings.frames` evenly spaced frames to `out`; the path of its instances.json.

    `settings.part` should be "held_out", so that nothing of what is trained on is seen. Raises OutputError if `out`
    already holds annotations.
    """
    check_view(settings.view)
    pool = load_pool(sources, settings)
    times = np.linspace(0, 1, settings.frames)
    clips = (make_clip(pool, times, settings, np.random.default_rng([seed, n])) for n in range(1, videos + 1))
    return write_clips(clips, pool.classes, out, seed)


def write_clips(clips: Iterable[Clip], classes: Sequence[str], out: Path, seed: int) -> Path:
    """Write `clips`, made with `seed`, whose labels index `classes`, to `out`; the path of its instances.json.

    Raises OutputError if `out` already holds annotations.
    """
    json_path = out / "instances.json"
    if json_path.exists():
        raise OutputError(f"{json_path}: is there already; give another folder or remove it")
    content: dict[str, Any] = {"info": {"description": INFO, "seed": seed}, "videos": [], "annotations": []}
    content["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    for number, clip in enumerate(clips, start=1):
        content["videos"].append(_video(clip, number, out / "JPEGImages"))
        content["annotations"] += _annotations(clip, number, len(content["annotations"]))
    json_path.write_text(json.dumps(content))
    return json_path


def _video(clip: Clip, number: int, folder: Path) -> dict[str, Any]:
    """Write the frames of video `number`; its entry."""
    frames, height, width, _ = clip.frames.shape
    names = [f"pseudo-{number:03d}/{t:05d}.jpg" for t in range(frames)]
    (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, clip.frames, strict=True):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OutputError(f"{folder / name}: cannot be written; is the disk full or the folder read-only?")
    return {"id": number, "width": width, "height": height, "length": frames, "file_names": names}


def _annotations(clip: Clip, number: int, start: int) -> list[dict[str, Any]]:
    """The tracks of video `number`; None where an object is absent."""
    _, height, width, _ = clip.frames.shape
    return [
        {
            "id": start + k + 1,
            "video_id": number,
            "category_id": int(label) + 1,
            "iscrowd": 0,
            "height": height,
            "width": width,
            "length": len(masks),
            "areas": [int(mask.sum()) or None for mask in masks],
            "bboxes": [_box(mask) for mask in masks],
            "segmentations": [_rle(mask) for mask in masks],
        }
        for k, (masks, label) in enumerate(zip(clip.masks, clip.labels, strict=True))
    ]


def _rle(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any] | None:
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _box(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int] | None:
    return list(cv2.boundingRect(mask.astype(np.uint8))) if mask.any() else None
