"""Claims about HOTA, IDF1 and id switches through trackeval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_sets import SIZE, box_rle, moving_box

pytest.importorskip("trackeval", reason="trackeval is not installed: pip install '.[eval]'")

from visrt.benchmarks.accuracy.hota import THRESHOLDS, TrackingFigures, figures_of, tracking_counts
from visrt.runtime.results import TrackedObject
from visrt.training.data.annotations import AnnotatedVideo, Track

FRAMES = 4
Frames = list[list[TrackedObject]]


def video(*tracks: Track, number: int = 1) -> AnnotatedVideo:
    return AnnotatedVideo(number, "one", tuple(Path(str(t)) for t in range(FRAMES)), SIZE, tracks)


def dog(x: int = 2, y: int = 2, crowd: bool = False) -> Track:
    return Track(0, tuple(moving_box(x, y, 16, 16, FRAMES)), crowd=crowd)


def reported(t: int, identity: int, label: int = 0, dx: int = 0, y: int = 2) -> TrackedObject:
    return TrackedObject(identity, label, 0.9, (0, 0, 1, 1), box_rle(2 + 2 * t + dx, y, 16, 16))


def measured(annotated: AnnotatedVideo, frames: Frames) -> TrackingFigures:
    return figures_of([tracking_counts(annotated, frames)])


def test_a_perfect_report_scores_one_at_every_threshold() -> None:
    found = measured(video(dog()), [[reported(t, 7)] for t in range(FRAMES)])
    assert (found.hota, found.det_a, found.ass_a, found.idf1, found.id_switches) == pytest.approx((1, 1, 1, 1, 0))
    assert found.hota_at == pytest.approx((1.0,) * 19)
    assert THRESHOLDS[0] == 0.05
    assert THRESHOLDS[-1] == 0.95


def test_another_id_half_way_costs_association_and_not_detection() -> None:
    """By hand: each half shares 2 of the object's 4 frames with an id of 2, so AssA = 2 / 4 and HOTA = sqrt(1 / 2)."""
    found = measured(video(dog()), [[reported(t, 7 if t < 2 else 9)] for t in range(FRAMES)])
    assert (found.det_a, found.ass_a, found.hota) == pytest.approx((1, 0.5, math.sqrt(0.5)))
    assert found.idf1 == pytest.approx(0.5)
    assert found.id_switches == 1


def test_an_id_lost_over_a_gap_is_a_switch_by_clear() -> None:
    frames: Frames = [[reported(0, 7)], [], [reported(2, 8)], [reported(3, 8)]]
    assert measured(video(dog()), frames).id_switches == 1


def test_a_missed_half_costs_detection() -> None:
    """By hand: 2 found, 2 missed, so DetA = 1 / 2; the id shares 2 of the object's 4 frames."""
    found = measured(video(dog()), [[reported(t, 7)] if t < 2 else [] for t in range(FRAMES)])
    assert (found.det_a, found.ass_a, found.hota) == pytest.approx((0.5, 0.5, 0.5))
    assert found.id_switches == 0


def test_a_loose_mask_counts_up_to_its_overlap() -> None:
    """12 of 16 columns shared: IoU 12 / 20 = 0.6, which the thresholds from 0.65 on do not take."""
    found = measured(video(dog()), [[reported(t, 7, dx=4)] for t in range(FRAMES)])
    assert found.det_a_at == pytest.approx([float(threshold <= 0.6) for threshold in THRESHOLDS])
    assert found.hota == pytest.approx(12 / 19)


def test_reports_of_a_class_that_no_video_holds_are_wrong() -> None:
    frames = [[reported(t, 7), reported(t, 8, label=1)] for t in range(FRAMES)]
    counts = tracking_counts(video(dog()), frames)
    assert figures_of([counts]).det_a == pytest.approx(0.5)
    assert figures_of([counts], label=0).det_a == pytest.approx(1)
    assert math.isnan(figures_of([counts], label=1).hota)


def test_nothing_annotated_is_not_a_number_and_nothing_found_is_zero() -> None:
    assert math.isnan(figures_of([]).hota)
    assert math.isnan(measured(video(), [[reported(t, 1)] for t in range(FRAMES)]).idf1)
    assert measured(video(dog()), [[]] * FRAMES).hota == 0


def test_reports_within_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd = Track(0, tuple(box_rle(0, 20, 64, 28) for _ in range(FRAMES)), crowd=True)
    member = [[reported(t, 7), reported(t, 8, y=25)] for t in range(FRAMES)]
    assert measured(video(dog(), crowd), member).hota == pytest.approx(1)
    assert measured(video(dog()), member).hota < 0.8
    other_class = [[reported(t, 7), reported(t, 8, label=1, y=25)] for t in range(FRAMES)]
    assert measured(video(dog(), crowd), other_class).hota < 0.8


def test_an_object_before_a_crowd_counts_all_the_same() -> None:
    crowd = Track(0, tuple(box_rle(0, 0, 64, 48) for _ in range(FRAMES)), crowd=True)
    found = measured(video(dog(), crowd), [[reported(t, 7)] for t in range(FRAMES)])
    assert (found.hota, found.idf1) == pytest.approx((1, 1))


def random_report(seed: int) -> tuple[AnnotatedVideo, Frames]:
    """Three boxes that come and go, of two classes, and reports near them of five ids."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 30, (3, 2))
    gone = [tuple(int(t) for t in np.flatnonzero(rng.random(FRAMES) < 0.2)) for _ in corners]
    tracks = [
        Track(i % 2, tuple(moving_box(int(x), int(y), 16, 16, FRAMES, gone[i]))) for i, (x, y) in enumerate(corners)
    ]

    def report(t: int, identity: int) -> TrackedObject:
        x, y = corners[identity % 3] + rng.integers(-3, 4, 2)
        return TrackedObject(identity, identity % 2, 0.9, (0, 0, 1, 1), box_rle(int(x) + 2 * t, int(y), 16, 16))

    return video(*tracks, number=seed + 1), [
        [report(t, i) for i in range(5) if rng.random() < 0.8] for t in range(FRAMES)
    ]


def test_the_names_of_ids_change_nothing() -> None:
    annotated, frames = random_report(3)
    renamed = [[replace(one, id=100 - 7 * one.id) for one in frame] for frame in frames]
    assert measured(annotated, renamed) == measured(annotated, frames)


def test_every_figure_equals_what_trackeval_reads_from_files(tmp_path: Path) -> None:
    """trackeval's own reader of YouTube-VIS, its own matching by class and its own sums over videos and classes."""
    from trackeval_files import CLASSES, by_trackeval

    sets = [random_report(seed) for seed in range(3)]
    counts = [tracking_counts(annotated, frames) for annotated, frames in sets]
    truth = {annotated.id: list(annotated.tracks) for annotated, _ in sets}
    found = {annotated.id: whole_tracks(frames) for annotated, frames in sets}
    theirs = by_trackeval(tmp_path, truth, found)
    for label, name in enumerate(CLASSES):
        assert told(figures_of(counts, label)) == pytest.approx(told_by_trackeval(theirs[name]), abs=1e-6)
    assert told(figures_of(counts)) == pytest.approx(told_by_trackeval(theirs["cls_comb_det_av"]), abs=1e-6)


def whole_tracks(frames: Frames) -> list[Track]:
    by_id = {one.id: one.label for frame in frames for one in frame}
    masks = {(t, one.id): one.rle for t, frame in enumerate(frames) for one in frame}
    return [Track(label, tuple(masks.get((t, i)) for t in range(FRAMES)), 0.9) for i, label in by_id.items()]


def told(figures: TrackingFigures) -> list[float]:
    return [figures.hota, figures.det_a, figures.ass_a, figures.idf1, figures.id_switches]


def told_by_trackeval(results: dict[str, Any]) -> list[float]:
    hota = [float(np.mean(results["HOTA"][field])) for field in ("HOTA", "DetA", "AssA")]
    return [*hota, float(results["Identity"]["IDF1"]), int(results["CLEAR"]["IDSW"])]
