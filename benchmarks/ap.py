"""Average precision and recall of whole tracks by the YouTube-VIS rule (Yang et al., ICCV 2019).

The rule is COCO's with the IoU of two tracks taken over all their frames: sum of intersections over sum of unions. A
crowd annotation counts neither way and may be matched many times. Sizes are means over the frames an object is in,
taken from the masks, not from the areas an annotation file may state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.benchmarks.ytvis import Track
from visrt.runtime.masks import Rle

__all__ = ["AveragePrecision", "average_precision", "track_iou"]

Floats = NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 128.0**2), "medium": (128.0**2, 256.0**2), "large": (256.0**2, 1e10)}
MOST = (1, 10, 100)
"""Tracks of a video and class that count, best scores first, for AR1, AR10, and AR100 with everything else."""


@dataclass(frozen=True)
class AveragePrecision:
    """Figures 0..1, NaN where there is nothing to measure. by_class: AP of each class."""

    ap: float
    ap50: float
    ap75: float
    ar1: float
    ar10: float
    ar100: float
    by_size: Mapping[str, float]
    by_class: Mapping[str, float]


def average_precision(
    annotated: Mapping[int, Sequence[Track]], predicted: Mapping[int, Sequence[Track]], classes: Sequence[str]
) -> AveragePrecision:
    """AP and AR of `predicted` tracks by video against the `annotated` ones."""
    videos = [(list(annotated[v]), list(predicted.get(v, ()))) for v in annotated]
    pairs = {label: [_pairs(truth, found, label) for truth, found in videos] for label in range(len(classes))}
    precision = {area: np.stack([_precision(pairs[label], area) for label in pairs]) for area in AREA_RANGES}
    recall = {most: np.stack([_recall(pairs[label], most) for label in pairs]) for most in MOST}
    return AveragePrecision(
        ap=_mean(precision["all"]),
        ap50=_mean(precision["all"][:, 0]),
        ap75=_mean(precision["all"][:, 5]),
        ar1=_mean(recall[1]),
        ar10=_mean(recall[10]),
        ar100=_mean(recall[100]),
        by_size={area: _mean(precision[area]) for area in AREA_RANGES if area != "all"},
        by_class={name: _mean(precision["all"][label]) for label, name in enumerate(classes)},
    )


def track_iou(found: Sequence[Track], truth: Sequence[Track]) -> Floats:
    """IoU [D, G] of tracks of one video, over all frames."""
    inter = np.zeros((len(found), len(truth)))
    total = np.zeros((len(found), len(truth)))
    frames = len((*found, *truth)[0].masks) if found or truth else 0
    for t in range(frames):
        mine, areas = _present(found, t)
        theirs, true_areas = _present(truth, t)
        total += areas[:, None] + true_areas[None]
        if mine and theirs:
            inter[np.ix_(mine, theirs)] += _intersections(
                [found[i].masks[t] for i in mine], [truth[j].masks[t] for j in theirs], areas[mine], true_areas[theirs]
            )
    union = total - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _present(tracks: Sequence[Track], t: int) -> tuple[list[int], Floats]:
    """Which tracks have a mask in frame `t`, and the area of every track there."""
    there = [i for i, track in enumerate(tracks) if track.masks[t] is not None]
    areas = np.zeros(len(tracks))
    if there:
        areas[there] = coco_mask.area([tracks[i].masks[t] for i in there])
    return there, areas


def _intersections(mine: Sequence[Rle | None], theirs: Sequence[Rle | None], a: Floats, b: Floats) -> Floats:
    """Pixels [D, G] that masks share, from pycocotools' IoU: i = iou (a + b) / (1 + iou), a whole number."""
    iou = np.asarray(coco_mask.iou(list(mine), list(theirs), [0] * len(theirs)))
    shared: Floats = np.round(iou * (a[:, None] + b[None]) / (1 + iou))
    return shared


@dataclass(frozen=True)
class _Pairs:
    """Tracks of one class in one video: scores [D] descending, iou [D, G], mean areas, crowd [G]."""

    scores: Floats
    iou: Floats
    found_area: Floats
    true_area: Floats
    crowd: NDArray[np.bool_]


def _pairs(truth: Sequence[Track], found: Sequence[Track], label: int) -> _Pairs:
    mine = sorted((track for track in found if track.label == label), key=lambda track: -track.score)[: MOST[-1]]
    theirs = [track for track in truth if track.label == label]
    return _Pairs(
        np.array([track.score for track in mine]),
        track_iou(mine, theirs),
        np.array([_mean_area(track) for track in mine]),
        np.array([_mean_area(track) for track in theirs]),
        np.array([track.crowd for track in theirs], dtype=bool),
    )


def _mean_area(track: Track) -> float:
    """Mean over the frames with a pixel: the official rule leaves out frames whose mask is there but empty."""
    areas = coco_mask.area([mask for mask in track.masks if mask is not None])
    shown = areas[areas > 0]
    return float(shown.mean()) if len(shown) else 0.0


@dataclass(frozen=True)
class _Outcome:
    """Of one video: for each threshold and track, matched and ignored [10, D]; number of objects that count."""

    scores: Floats
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: int


def _outcome(pairs: _Pairs, area: str, most: int) -> _Outcome:
    """COCO's greedy matching: best score first, each takes the best free object; counted before ignored ones."""
    low, high = AREA_RANGES[area]
    ignored_truth = pairs.crowd | (pairs.true_area < low) | (pairs.true_area > high)
    order = np.argsort(ignored_truth, kind="stable")
    iou, crowd, left_out = pairs.iou[:most][:, order], pairs.crowd[order], ignored_truth[order]
    count = len(iou)
    matched = np.zeros((len(IOU_THRESHOLDS), count), dtype=bool)
    ignored = np.zeros_like(matched)
    for k, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(order), dtype=bool)
        for d in range(count):
            best = _best(iou[d], free | crowd, left_out, min(threshold, 1 - 1e-10))
            if best is not None:
                free[best] = False
                matched[k, d], ignored[k, d] = True, left_out[best]
    outside = (pairs.found_area[:most] < low) | (pairs.found_area[:most] > high)
    ignored |= ~matched & outside
    return _Outcome(pairs.scores[:most], matched, ignored, int((~ignored_truth).sum()))


def _best(iou: Floats, free: NDArray[np.bool_], left_out: NDArray[np.bool_], threshold: float) -> int | None:
    """The object with the largest IoU of at least `threshold`, of those that count if there is one; ties: the last."""
    for group in (~left_out, left_out):
        candidates = np.flatnonzero(free & group & (iou >= threshold))
        if len(candidates):
            return int(candidates[::-1][np.argmax(iou[candidates[::-1]])])
    return None


def _gathered(pairs: Sequence[_Pairs], area: str, most: int) -> _Outcome:
    """All videos as one list, best score first."""
    outcomes = [_outcome(one, area, most) for one in pairs]
    scores = np.concatenate([one.scores for one in outcomes])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([one.matched for one in outcomes], axis=1)[:, order]
    ignored = np.concatenate([one.ignored for one in outcomes], axis=1)[:, order]
    return _Outcome(scores[order], matched, ignored, sum(one.objects for one in outcomes))


def _precision(pairs: Sequence[_Pairs], area: str) -> Floats:
    """Mean interpolated precision at each IoU threshold [10]; NaN without objects of this class and size."""
    outcome = _gathered(pairs, area, MOST[-1])
    if not outcome.objects:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    return np.array([_interpolated(outcome, k) for k in range(len(IOU_THRESHOLDS))])


def _interpolated(outcome: _Outcome, k: int) -> float:
    counted = ~outcome.ignored[k]
    right = np.cumsum(outcome.matched[k] & counted)
    wrong = np.cumsum(~outcome.matched[k] & counted)
    recall = right / outcome.objects
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALL_POINTS, side="left")
    reached = places < len(precision)
    return float(np.where(reached, np.append(precision, 0.0)[places], 0.0).mean())


def _recall(pairs: Sequence[_Pairs], most: int) -> Floats:
    """Recall at each IoU threshold [10] with at most `most` tracks of a video."""
    outcome = _gathered(pairs, "all", most)
    if not outcome.objects:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    recall: Floats = (outcome.matched & ~outcome.ignored).sum(axis=1) / outcome.objects
    return recall


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
