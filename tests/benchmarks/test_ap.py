"""Claims about average precision of whole tracks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_sets import SIZE, box_rle, moving_box
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from trackeval_files import CLASSES, by_trackeval

from visrt.benchmarks.accuracy.ap import average_precision, track_iou
from visrt.training.data.annotations import Track

FRAMES = 4


def track(label: int, x: int, y: int, score: float = 1.0, crowd: bool = False, gone: tuple[int, ...] = ()) -> Track:
    return Track(label, tuple(moving_box(x, y, 16, 16, FRAMES, gone)), score, crowd)


def random_tracks(seed: int, count: int, jitter: int) -> tuple[list[Track], list[Track]]:
    """Annotated tracks, and predictions near them, some missed, some doubled, some of the wrong class."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(count):
        x, y, label = int(rng.integers(0, 40)), int(rng.integers(0, 30)), int(rng.integers(2))
        gone = tuple(int(t) for t in np.flatnonzero(rng.random(FRAMES) < 0.2))
        truth.append(track(label, x, y, gone=gone if len(gone) < FRAMES else ()))
        for _ in range(int(rng.integers(0, 3))):
            dx, dy = (int(v) for v in rng.integers(-jitter, jitter + 1, 2))
            wrong = int(rng.random() < 0.15)
            found.append(track(label ^ wrong, x + dx, y + dy, round(float(rng.random()), 6), gone=gone[:1]))
    return truth, found


def test_perfect_tracks_have_an_average_precision_of_one() -> None:
    truth = {1: [track(0, 2, 2), track(1, 30, 20)], 2: [track(0, 10, 5)]}
    result = average_precision(truth, truth, CLASSES)
    assert (result.ap, result.ap50, result.ar1, result.ar10) == pytest.approx((1, 1, 1, 1))
    assert {name: figures.ar1 for name, figures in result.by_class.items()} == pytest.approx({"dog": 1, "car": 1})
    assert result.by_size["small"].ap75 == pytest.approx(1)
    assert math.isnan(result.by_size["large"].ap)
    assert np.asarray(result.curves) == pytest.approx(np.ones((10, 101)))


def test_nothing_found_is_zero_and_nothing_wanted_is_not_a_number() -> None:
    assert average_precision({1: [track(0, 2, 2)]}, {}, CLASSES).ap == 0
    assert math.isnan(average_precision({1: []}, {1: [track(0, 2, 2)]}, CLASSES).ap)


def test_a_wrong_class_is_a_miss() -> None:
    assert average_precision({1: [track(0, 2, 2)]}, {1: [track(1, 2, 2)]}, CLASSES).ap == 0


def test_a_confident_false_track_before_a_right_one_halves_the_precision() -> None:
    truth = {1: [track(0, 2, 2)]}
    after = {1: [track(0, 40, 30, 0.4), track(0, 2, 2, 0.9)]}
    before = {1: [track(0, 40, 30, 0.9), track(0, 2, 2, 0.4)]}
    assert average_precision(truth, after, CLASSES).ap == pytest.approx(1)
    assert average_precision(truth, before, CLASSES).ap == pytest.approx(0.5)


def test_the_iou_of_tracks_is_over_all_frames_and_not_a_mean_over_frames() -> None:
    truth = Track(0, (box_rle(0, 0, 10, 10), box_rle(0, 0, 40, 40)))
    found = Track(0, (box_rle(0, 0, 10, 10), None))
    assert track_iou([found], [truth])[0, 0] == pytest.approx(100 / 1700)


def test_a_track_may_match_a_crowd_again_and_again_without_penalty() -> None:
    truth = {1: [track(0, 2, 2, crowd=True), track(0, 40, 28)]}
    found = {1: [track(0, 2, 2, 0.9), track(0, 2, 2, 0.8), track(0, 40, 28, 0.5)]}
    assert average_precision(truth, found, CLASSES).ap == pytest.approx(1)


def test_an_object_that_counts_is_matched_before_a_crowd_that_fits_better() -> None:
    truth = {1: [track(0, 2, 2, crowd=True), track(0, 4, 2)]}
    assert average_precision(truth, {1: [track(0, 2, 2, 0.9)]}, CLASSES).ap50 == pytest.approx(1)


def test_a_track_takes_the_object_it_fits_best_and_leaves_the_other_free() -> None:
    truth = {1: [track(0, 2, 2), track(0, 6, 2)]}
    # At 0.5 the first track fits both objects; the second one only the object on the left.
    found = {1: [track(0, 6, 2, 0.9), track(0, 0, 2, 0.8)]}
    assert average_precision(truth, found, CLASSES).ap50 == pytest.approx(1)


def test_tracks_of_many_frames_and_frames_of_many_tracks_are_measured() -> None:
    """More than 255 masks at once, which pycocotools' area of a list cannot take."""
    long = Track(0, tuple(box_rle(t % 40, 2, 8, 8) for t in range(300)))
    assert average_precision({1: [long]}, {1: [long]}, CLASSES).ap == pytest.approx(1)
    many = [Track(0, (box_rle(3 * (i % 20), 3 * (i // 20), 3, 3),)) for i in range(300)]
    assert average_precision({1: many}, {1: many}, CLASSES).ar100 == pytest.approx(1 / 3)


def test_ar1_counts_one_track_a_video_and_class() -> None:
    truth = {1: [track(0, 2, 2), track(0, 40, 28)]}
    result = average_precision(truth, {1: [track(0, 2, 2, 0.9), track(0, 40, 28, 0.8)]}, CLASSES)
    assert (result.ar1, result.ar10) == pytest.approx((0.5, 1))


@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_the_order_of_predictions_changes_nothing(seed: int, order: list[int]) -> None:
    truth, found = random_tracks(seed, 4, 5)
    shuffled = [found[i] for i in order if i < len(found)] + found[5:]
    assert average_precision({1: truth}, {1: found}, CLASSES).ap == pytest.approx(
        average_precision({1: truth}, {1: shuffled}, CLASSES).ap, nan_ok=True
    )


@given(st.integers(0, 10_000))
def test_scores_matter_by_their_order_alone(seed: int) -> None:
    truth, found = random_tracks(seed, 4, 5)
    squared = [Track(t.label, t.masks, t.score**2, t.crowd) for t in found]
    result = average_precision({1: truth}, {1: squared}, CLASSES)
    assert result.ap == pytest.approx(average_precision({1: truth}, {1: found}, CLASSES).ap, nan_ok=True)


@given(st.integers(0, 10_000))
def test_one_more_false_track_never_helps(seed: int) -> None:
    truth, found = random_tracks(seed, 4, 5)
    nowhere = Track(0, tuple(box_rle(0, 46, 2, 2) for _ in range(FRAMES)), 0.5)
    with_it = average_precision({1: truth}, {1: [*found, nowhere]}, CLASSES).ap
    without = average_precision({1: truth}, {1: found}, CLASSES).ap
    assert math.isnan(without) or with_it <= without + 1e-12


@given(st.integers(0, 10_000))
def test_track_iou_equals_that_of_the_pixels(seed: int) -> None:
    truth, found = random_tracks(seed, 3, 6)
    got = track_iou(found, truth)
    for i, mine in enumerate(found):
        for j, theirs in enumerate(truth):
            a, b = _pixels(mine), _pixels(theirs)
            union = (a | b).sum()
            assert got[i, j] == pytest.approx((a & b).sum() / union if union else 0.0, abs=1e-12)


def _pixels(one: Track) -> Any:
    empty = np.zeros(SIZE, bool)
    return np.stack(
        [
            empty if m is None else coco_mask.decode({**m, "counts": m["counts"].encode()}).astype(bool)
            for m in one.masks
        ]
    )


# A toy set in rectangles: video, label, x, y, side, one letter a frame (shown, empty mask, - none), score; the last two
# annotations are crowds.
Row = tuple[int, int, int, int, int, str, float]
TOY_SIZE = (400, 500)
TOY_TRUTH: tuple[Row, ...] = (
    (1, 0, 10, 10, 60, "sss", 1.0),
    (1, 0, 200, 40, 140, "se-", 1.0),
    (1, 1, 20, 100, 280, "sss", 1.0),
    (2, 0, 40, 30, 100, "sss", 1.0),
    (2, 0, 260, 60, 200, "ess", 1.0),
    (2, 1, 100, 200, 90, "-ss", 1.0),
    (3, 1, 0, 0, 300, "sse", 1.0),
    (3, 1, 320, 10, 50, "sss", 1.0),
    (1, 1, 330, 20, 150, "s-s", 1.0),
    (3, 0, 350, 250, 120, "sss", 1.0),
)
TOY_FOUND: tuple[Row, ...] = (
    (1, 0, 12, 14, 60, "sss", 0.91),
    (1, 0, 11, 10, 58, "ss-", 0.83),
    (1, 0, 210, 44, 136, "ss-", 0.64),
    (1, 1, 40, 110, 270, "sss", 0.72),
    (1, 1, 332, 24, 148, "s-s", 0.88),
    (1, 1, 320, 30, 150, "s-s", 0.35),
    (2, 0, 52, 36, 100, "sss", 0.77),
    (2, 1, 262, 60, 200, "sss", 0.58),
    (2, 0, 270, 66, 190, "-ss", 0.41),
    (2, 1, 104, 202, 88, "sss", 0.97),
    (3, 1, 30, 12, 280, "ss-", 0.69),
    (3, 0, 352, 252, 118, "sss", 0.93),
    (3, 0, 10, 330, 60, "sss", 0.52),
    (3, 1, 322, 14, 52, "ses", 0.47),
)

OFFICIAL = {
    "ap": 0.3713696369636963,
    "ap50": 0.7483498349834983,
    "ap75": 0.3382838283828382,
    "small": 0.35973597359735965,
    "medium": 0.22722772277227724,
    "large": 0.7504950495049505,
    "ar1": 0.275,
    "ar10": 0.5,
    "ar100": 0.5,
}
"""YTVOSeval (github.com/youtubevos/cocoapi, the copy in mmtrack 0.14.0; np.float, gone from numpy, read as float) on
the toy set, with areas from the masks."""


def toy_tracks(rows: Sequence[Row], crowds: int) -> dict[int, list[Track]]:
    """The tracks of `rows` by video; the last `crowds` of them are crowds."""
    tracks: dict[int, list[Track]] = {1: [], 2: [], 3: []}
    for i, (video, label, x, y, side, frames, score) in enumerate(rows):
        shown = {"s": side, "e": 0}
        masks = tuple(
            box_rle(x + 2 * t, y, shown[letter], shown[letter], TOY_SIZE) if letter in shown else None
            for t, letter in enumerate(frames)
        )
        tracks[video].append(Track(label, masks, score, crowd=i >= len(rows) - crowds))
    return tracks


def test_it_gives_the_official_evaluator_s_numbers_with_crowds_sizes_and_empty_masks() -> None:
    got = average_precision(toy_tracks(TOY_TRUTH, crowds=2), toy_tracks(TOY_FOUND, crowds=0), CLASSES)
    figures = {name: getattr(got, name) for name in OFFICIAL.keys() - got.by_size.keys()}
    assert {**figures, **{size: of_size.ap for size, of_size in got.by_size.items()}} == pytest.approx(
        OFFICIAL, abs=1e-9
    )


def test_a_mask_without_a_pixel_makes_no_object_smaller() -> None:
    large = box_rle(0, 0, 300, 300, (400, 400))
    nothing = box_rle(0, 0, 0, 0, (400, 400))
    result = average_precision(
        {1: [Track(0, (large, nothing, nothing))]}, {1: [Track(0, (large, None, None))]}, CLASSES
    )
    assert result.by_size["large"].ap == pytest.approx(1)
    assert math.isnan(result.by_size["small"].ap)


AREAS = {"small": [0.0, 128.0**2], "medium": [128.0**2, 256.0**2], "large": [256.0**2, 1e10]}


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_equals_trackeval_s_where_there_are_no_crowds(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("trackeval", reason="trackeval is not installed: pip install '.[eval]'")
    truth, found = _sets(seed)
    ours = average_precision(truth, found, CLASSES)
    theirs = _by_trackeval(tmp_path, truth, found)
    for name in CLASSES:
        assert vars(ours.by_class[name]) == pytest.approx(theirs[name, "all"], abs=1e-6)
    means = _means([theirs[name, "all"] for name in CLASSES])
    assert {figure: getattr(ours, figure) for figure in means} == pytest.approx(means, abs=1e-6)
    for size in AREAS:
        expected = _means([theirs[name, size] for name in CLASSES])
        assert vars(ours.by_size[size]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def _sets(seed: int) -> tuple[dict[int, list[Track]], dict[int, list[Track]]]:
    """Annotated and predicted tracks of three videos; the last seed is the toy set, which has objects of each size."""
    if seed == 3:
        return toy_tracks(TOY_TRUTH, crowds=0), toy_tracks(TOY_FOUND, crowds=0)
    sets = {video: random_tracks(10 * seed + video, 6, 4) for video in (1, 2, 3)}
    return {v: t for v, (t, _) in sets.items()}, {v: f for v, (_, f) in sets.items()}


def _means(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over the classes that have an object."""
    known = {name: [one[name] for one in figures if not math.isnan(one[name])] for name in figures[0]}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}


def _by_trackeval(
    folder: Path, truth: dict[int, list[Track]], found: dict[int, list[Track]]
) -> dict[tuple[str, str], dict[str, float]]:
    """Figures of each class and size by trackeval's TrackMAP."""
    by_most = {most: by_trackeval(folder, truth, found, AREAS, most) for most in (1, 10, 100)}

    def mean(most: int, name: str, key: str, at: slice) -> float:
        value = float(np.mean(by_most[most][name]["TrackMAP"][key][at]))
        return math.nan if value < 0 else value

    return {
        (name, area): {
            "ap": mean(100, name, f"AP_{area}", slice(None)),
            "ap50": mean(100, name, f"AP_{area}", slice(0, 1)),
            "ap75": mean(100, name, f"AP_{area}", slice(5, 6)),
            **{f"ar{most}": mean(most, name, f"AR_{area}", slice(None)) for most in by_most},
        }
        for name in CLASSES
        for area in ("all", *AREAS)
    }
