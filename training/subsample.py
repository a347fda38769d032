"""Training on a fraction of the annotated frames, as MinVIS does with 1, 5 and 10 %."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visrt.runtime.errors import SettingsError
from visrt.training.annotations import AnnotatedSet

__all__ = ["labelled_frames", "subsampled"]


def labelled_frames(length: int, fraction: float) -> list[int]:
    """Which frames of a video of `length` keep their labels: evenly spaced, at least one; one alone is the middle."""
    if not 0 < fraction <= 1:
        raise SettingsError(f"label_fraction is {fraction}; expected more than 0 and at most 1")
    count = max(round(length * fraction), 1)
    if count == 1:
        return [length // 2]
    return [int(t) for t in np.linspace(0, length, count, endpoint=False)]


def subsampled(annotated: AnnotatedSet, fraction: float) -> AnnotatedSet:
    """`annotated` with only the labelled frames of each video."""
    videos = (
        replace(video, frames=tuple(video.frames[t] for t in labelled_frames(len(video.frames), fraction)))
        for video in annotated.videos
    )
    return replace(annotated, videos=tuple(videos))
