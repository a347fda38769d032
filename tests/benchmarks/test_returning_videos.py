"""Claims about pseudo-videos in which objects go out of sight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_sets import coco_values, write_coco, write_cutouts

from visrt.benchmarks.datasets.returning_videos import MOTIONS, crowded, gaps_of, returning_clips
from visrt.training.data.clips import Clip, ClipSettings
from visrt.training.data.sources import SourceSettings, load_pool


def clip_of(visible: list[list[int]]) -> Clip:
    masks = np.array(visible, dtype=bool)[:, :, None, None]
    return Clip(np.zeros((masks.shape[1], 1, 1, 3), np.uint8), masks, np.zeros(len(masks), np.int64))


def test_a_gap_has_a_sight_before_and_after() -> None:
    assert gaps_of(clip_of([[0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]])) == [2]


def test_time_runs_there_and_back() -> None:
    there, back = (motion(5) for motion in MOTIONS)
    assert np.allclose(there, [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(back, [0, 0.5, 1, 0.5, 0])


def test_every_clip_has_a_return_and_depends_on_its_seed(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_values(3))
    discs = write_cutouts(tmp_path, dog="dog")
    sources = [
        SourceSettings("coco", str(tmp_path), held_out=0.99),
        SourceSettings("cutouts", str(tmp_path / "cutouts"), class_map=str(discs), held_out=0.99),
    ]
    settings = crowded(ClipSettings(height_px=48, width_px=64, min_area_px=10, part="held_out"), (72, 96), frames=8)
    assert settings.min_area_px == 22
    pool = load_pool(sources, settings)
    clips = list(returning_clips(pool, settings, 2, seed=4))
    again = list(returning_clips(pool, settings, 1, seed=4))
    assert len(clips) == 2
    assert all(gaps_of(clip) for clip in clips)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(clips[:1], again, strict=True))
