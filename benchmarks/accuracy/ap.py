"""Average precision and recall of whole tracks by the YouTube-VIS rule (Yang et al., ICCV 2019).

The rule is COCO's with the IoU of two tracks taken over all their frames: sum of intersections over sum of unions. A
crowd annotation counts neither way and may be matched many times. Sizes are means over the frames an object is in,
taken from the masks, not from the areas an annotation file may state.

Boxes are measured as masks that fill them. Frame by frame there is ImageNet VID's measure too: AP of boxes at IoU 0.5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.benchmarks.video_level.tracks import FrameBoxes
from visrt.runtime.masks import Rle
from visrt.training.data.annotations import Track

__all__ = [
    "IOU_THRESHOLDS",
    "RECALL_POINTS",
    "AveragePrecision",
    "Figures",
    "average_precision",
    "frame_ap50",
    "track_iou",
]

Floats = NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 128.0**2), "medium": (128.0**2, 256.0**2), "large": (256.0**2, 1e10)}
MOST = (1, 10, 100)
"""Tracks of a video and class that count, best scores first, for AR1, AR10, and AR100 with everything else."""


@dataclass(frozen=True)
class Figures:
    """AP over all IoU thresholds and at two of them, AR of so many tracks a video and class; 0..1, NaN for nothing."""

    ap: float
    ap50: float
    ap75: float
    ar1: float
    ar10: float
    ar100: float


@dataclass(frozen=True)
class AveragePrecision(Figures):
    """Means over the classes, and the same by size and by class.

    curves: precision at each IoU threshold and recall point [10][101], mean over classes; empty without any object.
    """

    by_size: Mapping[str, Figures]
    by_class: Mapping[str, Figures]
    curves: tuple[tuple[float, ...], ...]


def average_precision(
    annotated: Mapping[int, Sequence[Track]], predicted: Mapping[int, Sequence[Track]], classes: Sequence[str]
) -> AveragePrecision:
    """AP and AR of `predicted` tracks by video against the `annotated` ones."""
    videos = [(list(annotated[v]), list(predicted.get(v, ()))) for v in annotated]
    pairs = [[_pairs(truth, found, label) for truth, found in videos] for label in range(len(classes))]
    measured = {area: [_measured(of_class, area) for of_class in pairs] for area in AREA_RANGES}
    every = measured["all"]
    known = [one.precision for one in every if not np.isnan(one.precision).any()]
    curves = np.mean(known, axis=0).tolist() if known else []
    return AveragePrecision(
        **vars(_figures(every)),
        by_size={area: _figures(of_area) for area, of_area in measured.items() if area != "all"},
        by_class={name: _figures([one]) for name, one in zip(classes, every, strict=True)},
        curves=tuple(map(tuple, curves)),
    )


def frame_ap50(
    frames: Iterable[tuple[FrameBoxes, FrameBoxes]], classes: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """AP of boxes in single frames at an IoU of 0.5: the mean over classes, and by class; NaN without annotations.

    `frames` gives what is annotated in each and what was found. The figure of ImageNet VID, by COCO's rule: precision
    at 101 points of recall, at most 100 boxes of a frame and class.
    """
    outcomes: dict[int, list[_Outcome]] = defaultdict(list)
    for truth, found in frames:
        for label in np.union1d(truth.labels, found.labels).tolist():
            outcomes[label].append(_outcome(_box_pairs(truth, found, label), "all", IOU_THRESHOLDS[:1]))
    by_class = {name: _ap50(outcomes[label]) for label, name in enumerate(classes)}
    return _mean(np.array(list(by_class.values()))), by_class


def _box_pairs(truth: FrameBoxes, found: FrameBoxes, label: int) -> _Pairs:
    mine, theirs = (np.flatnonzero(boxes.labels == label) for boxes in (found, truth))
    mine = mine[np.argsort(-found.scores[mine], kind="stable")][: MOST[-1]]
    boxes, crowd = found.boxes[mine].astype(np.float64), truth.crowd[theirs]
    iou = np.zeros((len(mine), len(theirs)))
    if iou.size:
        iou = np.asarray(coco_mask.iou(boxes, truth.boxes[theirs].astype(np.float64), crowd.astype(np.uint8)))
    return _Pairs(found.scores[mine].astype(np.float64), iou, np.zeros(len(mine)), np.zeros(len(theirs)), crowd)


def _ap50(outcomes: Sequence[_Outcome]) -> float:
    if not sum(one.objects for one in outcomes):
        return float("nan")
    return float(_interpolated(_gathered(outcomes, MOST[-1]), 0).mean())


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
        areas[there] = _areas([tracks[i].masks[t] for i in there])
    return there, areas


def _areas(masks: Sequence[Rle | None]) -> Floats:
    """Pixels of each mask [N], one by one: pycocotools overflows on a list of more than 255."""
    return np.array([coco_mask.area(mask) for mask in masks], dtype=np.float64)


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
    areas = _areas([mask for mask in track.masks if mask is not None])
    shown = areas[areas > 0]
    return float(shown.mean()) if len(shown) else 0.0


@dataclass(frozen=True)
class _Outcome:
    """Of one video: for each threshold and track, matched and ignored [K, D]; number of objects that count."""

    scores: Floats
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: int


def _outcome(pairs: _Pairs, area: str, thresholds: Floats = IOU_THRESHOLDS) -> _Outcome:
    """COCO's greedy matching: best score first, each takes the best free object; counted before ignored ones.

    What a track is matched to depends on better ones alone, so that the first few are those of a shorter list.
    """
    low, high = AREA_RANGES[area]
    ignored_truth = pairs.crowd | (pairs.true_area < low) | (pairs.true_area > high)
    order = np.argsort(ignored_truth, kind="stable")
    iou, crowd, left_out = pairs.iou[:, order], pairs.crowd[order], ignored_truth[order]
    count = len(iou)
    matched = np.zeros((len(thresholds), count), dtype=bool)
    ignored = np.zeros_like(matched)
    for k, threshold in enumerate(thresholds):
        free = np.ones(len(order), dtype=bool)
        for d in range(count):
            best = _best(iou[d], free | crowd, left_out, min(threshold, 1 - 1e-10))
            if best is not None:
                free[best] = False
                matched[k, d], ignored[k, d] = True, left_out[best]
    outside = (pairs.found_area < low) | (pairs.found_area > high)
    ignored |= ~matched & outside
    return _Outcome(pairs.scores, matched, ignored, int((~ignored_truth).sum()))


def _best(iou: Floats, free: NDArray[np.bool_], left_out: NDArray[np.bool_], threshold: float) -> int | None:
    """The object with the largest IoU of at least `threshold`, of those that count if there is one; ties: the last."""
    for group in (~left_out, left_out):
        candidates = np.flatnonzero(free & group & (iou >= threshold))
        if len(candidates):
            return int(candidates[::-1][np.argmax(iou[candidates[::-1]])])
    return None


@dataclass(frozen=True)
class _Measured:
    """One class and size: precision [10, 101] over IoU thresholds and recall points, recall [10] by `MOST`."""

    precision: Floats
    recall: Mapping[int, Floats]


def _measured(pairs: Sequence[_Pairs], area: str) -> _Measured:
    outcomes = [_outcome(one, area) for one in pairs]
    gathered = {most: _gathered(outcomes, most) for most in MOST}
    return _Measured(_precision(gathered[MOST[-1]]), {most: _recall(gathered[most]) for most in MOST})


def _figures(measured: Sequence[_Measured]) -> Figures:
    """Means over classes."""
    precision = np.stack([one.precision for one in measured])
    recall = {most: np.stack([one.recall[most] for one in measured]) for most in MOST}
    return Figures(
        ap=_mean(precision),
        ap50=_mean(precision[:, 0]),
        ap75=_mean(precision[:, 5]),
        ar1=_mean(recall[1]),
        ar10=_mean(recall[10]),
        ar100=_mean(recall[100]),
    )


def _gathered(outcomes: Sequence[_Outcome], most: int) -> _Outcome:
    """All videos as one list, best score first, at most so many tracks of each."""
    scores = np.concatenate([one.scores[:most] for one in outcomes])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([one.matched[:, :most] for one in outcomes], axis=1)[:, order]
    ignored = np.concatenate([one.ignored[:, :most] for one in outcomes], axis=1)[:, order]
    return _Outcome(scores[order], matched, ignored, sum(one.objects for one in outcomes))


def _precision(outcome: _Outcome) -> Floats:
    """Interpolated precision [10, 101]; NaN without objects of this class and size."""
    if not outcome.objects:
        return np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS)), np.nan)
    return np.stack([_interpolated(outcome, k) for k in range(len(IOU_THRESHOLDS))])


def _interpolated(outcome: _Outcome, k: int) -> Floats:
    counted = ~outcome.ignored[k]
    right = np.cumsum(outcome.matched[k] & counted)
    wrong = np.cumsum(~outcome.matched[k] & counted)
    recall = right / outcome.objects
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALL_POINTS, side="left")
    reached = places < len(precision)
    return np.where(reached, np.append(precision, 0.0)[places], 0.0)


def _recall(outcome: _Outcome) -> Floats:
    """Recall at each IoU threshold [10]; NaN without objects."""
    if not outcome.objects:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    recall: Floats = (outcome.matched & ~outcome.ignored).sum(axis=1) / outcome.objects
    return recall


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
