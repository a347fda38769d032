from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_sets import coco_values, write_coco, write_cutouts

from visrt.runtime.errors import OutputError
from visrt.runtime.masks import decode
from visrt.training.data.clips import ClipSettings, make_clip
from visrt.training.data.frames import LabelledSet
from visrt.training.data.pseudo_videos import write_pseudo_videos
from visrt.training.data.set_columns import columns_of
from visrt.training.data.set_formats import load_annotations
from visrt.training.data.sources import SourceSettings, load_pool


def sources(folder: Path) -> list[SourceSettings]:
    write_coco(folder, coco_values(3))
    discs = write_cutouts(folder, dog="dog")
    return [
        SourceSettings("coco", str(folder)),
        SourceSettings("cutouts", str(folder / "cutouts"), class_map=str(discs)),
    ]


def test_what_is_written_reads_back_as_the_exact_tracks(tmp_path: Path) -> None:
    given, settings = sources(tmp_path / "in"), ClipSettings(height_px=72, width_px=128, frames=6)
    write_pseudo_videos(given, settings, tmp_path / "out", 3, seed=4)
    annotated = load_annotations(tmp_path / "out")
    assert annotated.classes == ("car", "dog", "chair")
    pool = load_pool(given, settings)
    pictures = tmp_path / "out" / "JPEGImages"
    labelled = LabelledSet(columns_of(annotated, pictures), np.arange(3), pictures)
    for number in range(1, 4):
        clip = make_clip(pool, np.linspace(0, 1, 6), settings, np.random.default_rng([4, number]))
        for t, frame in enumerate(labelled.frames_of_video(number - 1)):
            visible = {o.track: o for o in frame.objects}
            assert set(visible) == set(np.flatnonzero(clip.masks[:, t].any((1, 2))))
            for k, one in visible.items():
                assert np.array_equal(decode(one.rle), clip.masks[k, t])
                assert one.label == clip.labels[k]


def test_annotations_are_never_overwritten(tmp_path: Path) -> None:
    given = sources(tmp_path / "in")
    write_pseudo_videos(given, ClipSettings(height_px=72, width_px=128), tmp_path / "out", 1, seed=0)
    with pytest.raises(OutputError, match="is there already"):
        write_pseudo_videos(given, ClipSettings(height_px=72, width_px=128), tmp_path / "out", 1, seed=0)
