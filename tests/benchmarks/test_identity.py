"""Claims about recall, duplicates and id switches."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from annotated_sets import SIZE, box_rle, moving_box
from hypothesis import assume, given
from hypothesis import strategies as st

from visrt.benchmarks.accuracy.identity import follow, mask_iou, matched_pairs, total
from visrt.runtime.results import TrackedObject
from visrt.training.data.annotations import AnnotatedVideo, Track

FRAMES = 4


def video(*tracks: Track) -> AnnotatedVideo:
    return AnnotatedVideo(1, "one", tuple(Path(str(t)) for t in range(FRAMES)), SIZE, tracks)


def dog(crowd: bool = False) -> Track:
    return Track(0, tuple(moving_box(2, 2, 16, 16, FRAMES)), crowd=crowd)


def reported(t: int, identity: int, label: int = 0, dx: int = 0) -> TrackedObject:
    return TrackedObject(identity, label, 0.9, (0, 0, 1, 1), box_rle(2 + 2 * t + dx, 2, 16, 16))


def test_an_object_followed_through_all_frames_is_found_without_a_switch() -> None:
    counts = follow(video(dog()), [[reported(t, 7)] for t in range(FRAMES)])
    assert (counts.recall, counts.duplicates, counts.links, counts.id_switches) == (1, 0, 3, 0)


def test_each_change_of_id_between_consecutive_frames_is_a_switch() -> None:
    counts = follow(video(dog()), [[reported(t, identity)] for t, identity in enumerate((7, 7, 8, 7))])
    assert (counts.links, counts.id_switches) == (3, 2)
    assert counts.switch_rate == pytest.approx(2 / 3)


def test_another_id_after_a_gap_is_a_lost_id_and_no_switch() -> None:
    counts = follow(video(dog()), [[reported(0, 7)], [], [reported(2, 8)], [reported(3, 8)]])
    assert (counts.tp, counts.links, counts.id_switches, counts.returns, counts.lost_ids) == (3, 1, 0, 1, 1)


def test_a_second_report_over_a_found_object_is_a_duplicate_whatever_its_class() -> None:
    counts = follow(video(dog()), [[reported(t, 1), reported(t, 2, label=1, dx=1)] for t in range(FRAMES)])
    assert (counts.tp, counts.duplicates, counts.fp) == (FRAMES, FRAMES, 0)
    assert counts.duplicates_a_frame == 1


def test_the_wrong_class_finds_nothing() -> None:
    counts = follow(video(dog()), [[reported(t, 1, label=1)] for t in range(FRAMES)])
    assert (counts.tp, counts.duplicates, counts.fp) == (0, 0, FRAMES)


def test_a_mask_that_overlaps_by_half_or_less_finds_nothing() -> None:
    # 16 wide, 6 apart: 10 / 22 shared.
    assert follow(video(dog()), [[reported(0, 1, dx=6)], [], [], []]).tp == 0


def test_crowds_absent_frames_and_empty_masks_are_not_wanted() -> None:
    absent = Track(0, tuple(moving_box(2, 2, 16, 16, FRAMES, gone=(1, 2))))
    empty = Track(0, tuple(box_rle(0, 0, 0, 0) for _ in range(FRAMES)))
    counts = follow(video(absent, empty, dog(crowd=True)), [[] for _ in range(FRAMES)])
    assert counts.gt == 2


def test_pairs_have_the_largest_total_overlap_of_the_allowed() -> None:
    iou = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert matched_pairs(iou, np.ones((2, 2), bool)) == {0: 1, 1: 0}
    assert matched_pairs(iou, np.array([[True, False], [True, True]])) == {0: 0}


def random_video(seed: int) -> tuple[AnnotatedVideo, list[list[TrackedObject]]]:
    """Up to three boxes that come and go, and up to five reports a frame near them, of four ids and two classes."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 30, (3, 2))
    gone = [tuple(int(t) for t in np.flatnonzero(rng.random(FRAMES) < 0.25)) for _ in corners]
    tracks = [
        Track(i % 2, tuple(moving_box(int(x), int(y), 16, 16, FRAMES, gone[i]))) for i, (x, y) in enumerate(corners)
    ]

    def report(t: int, identity: int) -> TrackedObject:
        x, y = corners[rng.integers(3)] + rng.integers(-3, 4, 2)
        rle = box_rle(int(x) + 2 * t, int(y), 16, 16)
        return TrackedObject(identity, int(rng.integers(2)), 0.9, (0, 0, 1, 1), rle)

    frames = [[report(t, identity) for identity in range(5) if rng.random() < 0.8] for t in range(FRAMES)]
    return video(*tracks), frames


def has_ties(annotated: AnnotatedVideo, t: int, frame: list[TrackedObject]) -> bool:
    """Another assignment is as good as the best: it lacks one of its pairs and loses nothing by that."""
    present = [track for track in annotated.tracks if track.masks[t] is not None]
    iou = mask_iou([one.rle for one in frame], [track.masks[t] for track in present])
    same = np.array([[one.label == track.label for track in present] for one in frame], bool).reshape(iou.shape)
    best = matched_pairs(iou, same)

    def total_without(pair: tuple[int, int]) -> float:
        allowed = same.copy()
        allowed[pair] = False
        return float(sum(iou[other] for other in matched_pairs(iou, allowed).items()))

    return any(total_without(pair) > sum(iou[p] for p in best.items()) - 1e-9 for pair in best.items())


@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_the_names_of_ids_and_the_order_of_reports_change_no_count(seed: int, names: list[int]) -> None:
    annotated, frames = random_video(seed)
    assume(not any(has_ties(annotated, t, frame) for t, frame in enumerate(frames)))
    renamed = [[replace(one, id=names[one.id]) for one in reversed(frame)] for frame in frames]
    assert follow(annotated, renamed) == follow(annotated, frames)


@given(st.integers(0, 10_000))
def test_every_report_is_one_of_three_and_every_find_but_the_first_follows_another(seed: int) -> None:
    annotated, frames = random_video(seed)
    counts = follow(annotated, frames)
    assert counts.tp + counts.duplicates + counts.fp == sum(map(len, frames))
    once = sum(follow(video(track), frames).tp > 0 for track in annotated.tracks)
    assert counts.links + counts.returns >= counts.tp - once
    assert counts.links + counts.returns <= counts.tp
    assert (counts.id_switches <= counts.links, counts.lost_ids <= counts.returns) == (True, True)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
def test_pairs_are_as_good_as_the_best_of_all_assignments(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    iou, allowed = rng.random((rows, columns)), rng.random((rows, columns)) < 0.7
    weight = np.where(allowed & (iou > 0.5), iou, 0.0)
    small, large = (weight, columns) if rows <= columns else (weight.T, rows)
    best = max(sum(small[i, j] for i, j in enumerate(order)) for order in permutations(range(large), len(small)))
    pairs = matched_pairs(iou, allowed)
    assert sum(weight[i, j] for i, j in pairs.items()) == pytest.approx(best)
    assert all(weight[i, j] > 0 for i, j in pairs.items())


def test_totals_are_sums() -> None:
    one = follow(video(dog()), [[reported(t, 7)] for t in range(FRAMES)])
    assert total([one, one]).gt == 2 * one.gt
    assert total([one, one]).recall == one.recall
