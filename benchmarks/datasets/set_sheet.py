"""A sample of an annotated set as a contact sheet."""

from __future__ import annotations

from itertools import islice

import numpy as np

from visrt.benchmarks.accuracy.contact_sheet import annotated_row, sample_frames, sheet
from visrt.benchmarks.datasets.ytvis import AnnotatedSet
from visrt.runtime.source import Image

__all__ = ["sample_sheet"]


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
