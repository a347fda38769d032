"""Contact sheets: a few frames of a video side by side, what is annotated above what was reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from visrt.benchmarks.accuracy.evaluate import picture_of
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sinks.overlay import draw
from visrt.runtime.sources.source import Image
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track

__all__ = ["annotated_row", "reported_row", "sample_frames", "sample_sheet", "sheet", "write_sheet"]

TILE_PX = 480
"""Width of a frame on a sheet."""
CAPTION_PX = 28
INK, GROUND = (32, 32, 32), (255, 255, 255)

Frames = Sequence[Sequence[TrackedObject]]


def sample_frames(count: int, most: int) -> list[int]:
    """Up to `most` frames of `count`, the first and the last among them, evenly apart."""
    return sorted({round(t) for t in np.linspace(0, count - 1, min(most, count))})


def annotated_row(video: AnnotatedVideo, frames: Sequence[int], classes: Sequence[str]) -> list[Image]:
    """The annotated tracks over the pictures of `frames`, numbered as they stand in the file."""
    return [_drawn(video, t, _objects(video.tracks, t), classes) for t in frames]


def reported_row(video: AnnotatedVideo, reported: Frames, frames: Sequence[int], classes: Sequence[str]) -> list[Image]:
    """The reported objects over the pictures of `frames`."""
    return [_drawn(video, t, reported[t], classes) for t in frames]


def sheet(rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """One picture [H, W, 3] of captioned rows; short rows are filled up with white."""
    strips = [part for caption, tiles in rows for part in (_caption(caption), _strip(tiles))]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_widened(strip, width) for strip in strips])


def write_sheet(path: Path, picture: Image) -> None:
    """`picture` as png. Raises OutputError."""
    try:
        PillowImage.fromarray(picture).save(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def _objects(tracks: Sequence[Track], t: int) -> list[TrackedObject]:
    return [
        TrackedObject(i, track.label, track.score, (0, 0, 0, 0), mask)
        for i, track in enumerate(tracks)
        if (mask := track.masks[t]) is not None
    ]


def _drawn(video: AnnotatedVideo, t: int, objects: Sequence[TrackedObject], classes: Sequence[str]) -> Image:
    """One tile, the objects drawn at its size so that lines and labels stay legible."""
    picture = picture_of(video, t)
    height = max(1, round(picture.shape[0] * TILE_PX / picture.shape[1]))
    tile = cv2.resize(picture, (TILE_PX, height), interpolation=cv2.INTER_AREA)
    shown = [small for one in objects if (small := _resized(one, (height, TILE_PX))).box[2]]
    return draw(tile.astype(np.uint8), FrameResult(t, 0.0, (height, TILE_PX), tuple(shown)), classes)


def _resized(one: TrackedObject, size: tuple[int, int]) -> TrackedObject:
    """The object on a frame of `size` (height, width), its box tight around the mask."""
    mask = cv2.resize(one.mask().astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA)
    coded = coco_mask.encode(np.asfortranarray(mask))
    x, y, w, h = (int(side) for side in coco_mask.toBbox(coded))
    return replace(one, box=(x, y, w, h), rle={"size": list(size), "counts": coded["counts"].decode()})


def _strip(tiles: Sequence[Image]) -> Image:
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(t, ((0, height - t.shape[0]), (0, 4), (0, 0)), constant_values=GROUND[0]) for t in tiles]
    return np.concatenate(padded, axis=1)


def _caption(text: str) -> Image:
    font = ImageFont.load_default(CAPTION_PX * 2 // 3)
    width = int(font.getlength(text)) + 12
    picture = PillowImage.new("RGB", (width, CAPTION_PX), GROUND)
    ImageDraw.Draw(picture).text((6, 2), text, font=font, fill=INK)
    return np.array(picture)


def _widened(strip: Image, width: int) -> Image:
    return np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=GROUND[0])


def sample_sheet(annotated: AnnotatedSet, videos: int, frames: int, seed: int) -> Image:
    """One picture [H, W, 3]: up to so many videos, drawn by `seed`, of each up to so many frames. Photos share rows."""
    count = len(annotated.videos)
    places = np.random.default_rng(seed).choice(count, min(videos, count), replace=False)
    chosen = [annotated.videos[i] for i in sorted(places)]
    rows = []
    for video in chosen:
        shown = sample_frames(len(video.pictures), frames)
        if len(video.pictures) > 1:
            rows.append((f"{video.name}: frames {shown}", annotated_row(video, shown, annotated.classes)))
    photos = iter([video for video in chosen if len(video.pictures) == 1])
    while group := list(islice(photos, frames)):
        tiles = [tile for photo in group for tile in annotated_row(photo, [0], annotated.classes)]
        rows.append((", ".join(photo.name for photo in group), tiles))
    return sheet(rows)
