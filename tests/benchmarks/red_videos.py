"""Videos for the bundle of `bundles.write_bundle`, which sees what is red: a red dog runs, at times out of sight."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from annotated_sets import SIZE, moving_box, set_values, write_set

CLASS_MAP: dict[str, str | None] = {"dog": "person", "car": None}
RED_BGR = (30, 30, 230)


def red_videos(folder: Path, videos: int, frames: int, gone: tuple[int, ...] = ()) -> Path:
    """`videos` of `frames` frames each, the dog `gone` from some of them; the folder."""
    values = set_values(videos, frames)
    for annotation in values["annotations"]:
        if annotation["category_id"] == 2:
            annotation["segmentations"] = moving_box(2, 4, 20, 16, frames, gone)
    write_set(folder, values)
    for video in values["videos"]:
        for t, name in enumerate(video["file_names"]):
            picture = np.full((*SIZE, 3), 20, np.uint8)
            if t not in gone:
                picture[4:20, 2 + 2 * t : 22 + 2 * t] = RED_BGR
            cv2.imwrite(str(folder / "JPEGImages" / name), picture)
    return folder
