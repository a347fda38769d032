"""Pseudo-videos for judging identity: in each an object goes out of sight and comes back.

    python -m visrt.benchmarks.datasets.returning_videos --settings training/recipes/default/stage4.json --out FOLDER

Made from what a training run held out. Paths are faster, meetings more frequent and look-alikes more common than in
training, so that objects cover each other; in every second video time runs there and back, so that what leaves the
picture enters it again. Of the clips made so, those without a return are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from visrt.training.data.clips import Clip, ClipSettings, make_clip
from visrt.training.data.pseudo_videos import write_clips
from visrt.training.data.sources import Pool, load_pool

__all__ = ["MOTIONS", "crowded", "gaps_of", "moving_clips", "returning_clips"]

MOTIONS = (
    lambda frames: np.linspace(0, 1, frames),
    lambda frames: 1 - np.abs(np.linspace(-1, 1, frames)),
)
"""Times 0..1 of so many frames: there, and there and back."""


def crowded(settings: ClipSettings, size: tuple[int, int], frames: int) -> ClipSettings:
    """`settings` for clips of `size` (height, width), in which objects meet more often."""
    scale = size[0] * size[1] / (settings.height_px * settings.width_px)
    paste = replace(
        settings.paste,
        counts=(0.0, 0.1, 0.25, 0.3, 0.2, 0.15),
        bare_counts=(0.0, 0.0, 0.25, 0.35, 0.25, 0.15),
        twin=0.3,
        scene_twin=0.25,
        same_class=0.6,
        meet=0.9,
        meet_distance=0.4,
        speed=(0.3, 1.8),
    )
    return replace(
        settings,
        frames=frames,
        height_px=size[0],
        width_px=size[1],
        min_area_px=round(settings.min_area_px * scale),
        paste=paste,
    )


def moving_clips(pool: Pool, settings: ClipSettings, seed: int) -> Iterator[Clip]:
    """Clips without end; clip n depends on (seed, n) only."""
    for number in count():
        times = MOTIONS[number % len(MOTIONS)](settings.frames)
        yield make_clip(pool, times, settings, np.random.default_rng([seed, number]))


def returning_clips(pool: Pool, settings: ClipSettings, clips: int, seed: int) -> Iterator[Clip]:
    """`clips` of the moving clips with a return in each; those without one are passed over."""
    return islice((clip for clip in moving_clips(pool, settings, seed) if gaps_of(clip)), clips)


def gaps_of(clip: Clip) -> list[int]:
    """Lengths in frames of all the absences in `clip` that have a sight of the object before and after."""
    gaps: list[int] = []
    for masks in clip.masks:
        steps = np.diff(np.flatnonzero(masks.any(axis=(1, 2))))
        gaps += [int(step) - 1 for step in steps if step > 1]
    return gaps


def main() -> None:
    # A run's settings bring the network's with them, and so torch, which clips do without.
    from visrt.runtime.settings import settings_from_file
    from visrt.training.settings import TrainSettings

    parser = argparse.ArgumentParser(description="Write pseudo-videos in which objects go out of sight and come back.")
    parser.add_argument("--settings", type=Path, required=True, help="json of a training run")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 448), metavar=("HEIGHT", "WIDTH"), help="pixels")
    parser.add_argument("--seed", type=int, default=4)
    given = parser.parse_args()
    data = settings_from_file(TrainSettings, given.settings).data
    clips = replace(crowded(data.clips, tuple(given.size), given.frames), part="held_out")
    pool = load_pool(data.sources, clips)
    print(write_clips(returning_clips(pool, clips, given.videos, given.seed), pool.classes, given.out, given.seed))


if __name__ == "__main__":
    main()
