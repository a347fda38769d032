"""HOTA (Luiten et al., IJCV 2020), IDF1 (Ristani et al., ECCVW 2016) and CLEAR's id switches, through trackeval.

Counted frame by frame on masks, each class by itself. Over all classes detections count alike, whatever their class
(trackeval's "detection-averaged"), so reports of a class that no video holds are wrong and count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from trackeval.metrics import CLEAR, HOTA, Identity

from visrt.benchmarks.accuracy.identity import IOU, mask_iou
from visrt.runtime.masks import Rle
from visrt.runtime.results import TrackedObject
from visrt.training.data.annotations import AnnotatedVideo

__all__ = ["THRESHOLDS", "TrackingCounts", "TrackingFigures", "figures_of", "tracking_counts"]

QUIET = {"PRINT_CONFIG": False}
METRICS = {"hota": HOTA(), "identity": Identity(QUIET), "clear": CLEAR(QUIET)}
THRESHOLDS = tuple(float(round(threshold, 2)) for threshold in METRICS["hota"].array_labels)
"""The 19 IoU thresholds HOTA is the mean over."""

TrackingCounts = Mapping[int, Mapping[str, Any]]
"""The counts of trackeval for one video: by label, by metric."""


@dataclass(frozen=True)
class TrackingFigures:
    """Shares 0..1, NaN where nothing is annotated. hota_at, det_a_at, ass_a_at: at each of THRESHOLDS.

    id_switches: times an object is matched (IoU 0.5) to another id than it was last, however long ago that was.
    """

    hota: float
    det_a: float
    ass_a: float
    idf1: float
    id_switches: int
    hota_at: tuple[float, ...]
    det_a_at: tuple[float, ...]
    ass_a_at: tuple[float, ...]


NAN = float("nan")
NOTHING = TrackingFigures(NAN, NAN, NAN, NAN, 0, *((NAN,) * len(THRESHOLDS),) * 3)


def tracking_counts(video: AnnotatedVideo, frames: Sequence[Sequence[TrackedObject]]) -> TrackingCounts:
    """The counts of `video` with the reported objects of each of its frames, for classes annotated or reported."""
    labels = {track.label for track in video.tracks} | {one.label for objects in frames for one in objects}
    sequences = {label: _sequence(video, frames, label) for label in sorted(labels)}
    return {
        label: {name: metric.eval_sequence(sequence) for name, metric in METRICS.items()}
        for label, sequence in sequences.items()
    }


def figures_of(counts: Iterable[TrackingCounts], label: int | None = None) -> TrackingFigures:
    """The figures over videos, of one class or (None) of all."""
    by_label: dict[int, list[Mapping[str, Any]]] = {}
    for of_video in counts:
        for found, results in of_video.items():
            if label in (None, found):
                by_label.setdefault(found, []).append(results)
    if not by_label:
        return NOTHING
    hota, identity, clear = (_combined(name, by_label) for name in METRICS)
    if not hota["HOTA_TP"][0] + hota["HOTA_FN"][0]:
        return NOTHING
    return TrackingFigures(
        hota=float(np.mean(hota["HOTA"])),
        det_a=float(np.mean(hota["DetA"])),
        ass_a=float(np.mean(hota["AssA"])),
        idf1=float(identity["IDF1"]),
        id_switches=int(clear["IDSW"]),
        hota_at=tuple(map(float, hota["HOTA"])),
        det_a_at=tuple(map(float, hota["DetA"])),
        ass_a_at=tuple(map(float, hota["AssA"])),
    )


def _combined(name: str, by_label: Mapping[int, Sequence[Mapping[str, Any]]]) -> Any:
    """All videos of each class, then all classes."""
    metric = METRICS[name]
    classes = {
        label: metric.combine_sequences({i: one[name] for i, one in enumerate(results)})
        for label, results in by_label.items()
    }
    return metric.combine_classes_det_averaged(classes)


def _sequence(video: AnnotatedVideo, frames: Sequence[Sequence[TrackedObject]], label: int) -> dict[str, Any]:
    """One class of one video as trackeval's metrics take it: ids count from 0, without gaps."""
    places = [_frame(video, t, objects, label) for t, objects in enumerate(frames)]
    true_ids, true_count = _numbered([ids for ids, _, _ in places])
    ids, count = _numbered([ids for _, ids, _ in places])
    return {
        "num_timesteps": len(frames),
        "gt_ids": true_ids,
        "tracker_ids": ids,
        "similarity_scores": [iou for _, _, iou in places],
        "num_gt_ids": true_count,
        "num_tracker_ids": count,
        "num_gt_dets": sum(map(len, true_ids)),
        "num_tracker_dets": sum(map(len, ids)),
    }


def _frame(
    video: AnnotatedVideo, t: int, objects: Sequence[TrackedObject], label: int
) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Annotated tracks of a class that are visible, ids reported, and their IoU [annotated, reported]."""
    visible = [i for i, track in enumerate(video.tracks) if track.label == label and _has_pixels(track.masks[t])]
    true_ids = [i for i in visible if not video.tracks[i].crowd]
    crowds = [video.tracks[i].masks[t] for i in visible if video.tracks[i].crowd]
    shown = [one for one in objects if one.label == label]
    iou = mask_iou([one.rle for one in shown], [video.tracks[i].masks[t] for i in true_ids])
    kept = _outside_crowds([one.rle for one in shown], iou, crowds)
    return true_ids, [one.id for one, keep in zip(shown, kept, strict=True) if keep], iou[kept].T


def _outside_crowds(
    masks: Sequence[Rle | None], iou: NDArray[np.float64], crowds: Sequence[Rle | None]
) -> NDArray[np.bool_]:
    """The reports [D] that count: not those that lie by half in a crowd and fit no object.

    MOTS's rule (Voigtlaender et al., CVPR 2019): without it, members of a crowd would be wrong reports.
    """
    if not crowds or not masks:
        return np.ones(len(masks), dtype=bool)
    inside = np.asarray(coco_mask.iou(list(masks), list(crowds), [1] * len(crowds))).max(axis=1)
    fits = iou.max(axis=1, initial=0.0) >= IOU
    return np.asarray(fits | (inside <= IOU))


def _numbered(frames: Sequence[Sequence[int]]) -> tuple[list[NDArray[np.int64]], int]:
    """The ids of each frame as numbers from 0, and how many there are."""
    known = {identity: i for i, identity in enumerate(sorted({identity for frame in frames for identity in frame}))}
    return [np.array([known[identity] for identity in frame], dtype=np.int64) for frame in frames], len(known)


def _has_pixels(mask: Rle | None) -> bool:
    return mask is not None and coco_mask.area(mask) > 0
