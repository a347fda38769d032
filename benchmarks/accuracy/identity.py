"""Frame by frame: which annotated objects are found, how often one is reported twice, how often its id changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from visrt.runtime.masks import Rle
from visrt.runtime.results import TrackedObject
from visrt.training.data.annotations import AnnotatedVideo

__all__ = ["IdentityCounts", "follow", "total"]

IOU = 0.5
JSON_NAMES = {"gt": "wanted", "tp": "found", "fp": "spurious", "id_switches": "switches"}


@dataclass(frozen=True)
class IdentityCounts:
    """Counts over frames.

    gt: annotated objects present in a frame, summed. tp: of these, matched to a reported object of their class at mask
    IoU above 0.5. duplicates: reported objects left over that cover an already matched object at IoU above 0.5. fp: the
    other reported objects left over, which means nothing where not everything is annotated. links: objects matched in
    two consecutive frames; id_switches: links whose id changed. returns: objects matched again after frames without a
    match; lost_ids: returns with another id.
    """

    frames: int = 0
    gt: int = 0
    tp: int = 0
    duplicates: int = 0
    fp: int = 0
    links: int = 0
    id_switches: int = 0
    returns: int = 0
    lost_ids: int = 0

    @property
    def recall(self) -> float:
        return self.tp / self.gt if self.gt else float("nan")

    @property
    def duplicates_a_frame(self) -> float:
        return self.duplicates / self.frames if self.frames else float("nan")

    @property
    def switch_rate(self) -> float:
        return self.id_switches / self.links if self.links else float("nan")

    @property
    def lost_id_rate(self) -> float:
        """Share of the returns after a gap that came with another id than the last matched one."""
        return self.lost_ids / self.returns if self.returns else float("nan")

    def as_json(self) -> dict[str, int]:
        """By the names they have in reports."""
        return {JSON_NAMES.get(name, name): count for name, count in asdict(self).items()}


@dataclass
class Follower:
    """The count of one video under way: last_id and last_frame of each annotated track that was found."""

    video: AnnotatedVideo
    counts: IdentityCounts = field(default_factory=IdentityCounts)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, t: int, objects: Sequence[TrackedObject]) -> None:
        """Count frame `t` with its reported `objects`."""
        tracks = self.video.tracks
        present = [i for i, track in enumerate(tracks) if not track.crowd and _visible(track.masks[t])]
        iou = mask_iou([o.rle for o in objects], [tracks[i].masks[t] for i in present])
        same = np.array([[o.label == tracks[i].label for i in present] for o in objects], dtype=bool)
        pairs = matched_pairs(iou, same.reshape(iou.shape))
        duplicates, fp = _left_over(iou, pairs)
        switches, links, lost, returns = self._identities(t, {present[j]: objects[i].id for i, j in pairs.items()})
        c = self.counts
        self.counts = IdentityCounts(
            c.frames + 1,
            c.gt + len(present),
            c.tp + len(pairs),
            c.duplicates + duplicates,
            c.fp + fp,
            c.links + links,
            c.id_switches + switches,
            c.returns + returns,
            c.lost_ids + lost,
        )

    def _identities(self, t: int, ids: Mapping[int, int]) -> tuple[int, int, int, int]:
        switches = links = lost = returns = 0
        for track, identity in ids.items():
            if track in self.last:
                last_id, last_frame = self.last[track]
                changed = int(last_id != identity)
                if last_frame == t - 1:
                    links, switches = links + 1, switches + changed
                else:
                    returns, lost = returns + 1, lost + changed
            self.last[track] = (identity, t)
        return switches, links, lost, returns


def follow(video: AnnotatedVideo, frames: Sequence[Sequence[TrackedObject]]) -> IdentityCounts:
    """The counts of `video` with the reported objects of each of its frames."""
    follower = Follower(video)
    for t, objects in enumerate(frames):
        follower.add(t, objects)
    return follower.counts


def total(counts: Sequence[IdentityCounts]) -> IdentityCounts:
    names = IdentityCounts.__dataclass_fields__
    return IdentityCounts(**{name: sum(getattr(one, name) for one in counts) for name in names})


def matched_pairs(iou: NDArray[np.float64], allowed: NDArray[np.bool_]) -> dict[int, int]:
    """One-to-one pairs {row: column} of the largest total IoU [D, G] among allowed pairs above 0.5.

    Where several assignments are equally good, as with two reports of the very same mask, the order of rows decides.
    """
    weight = np.where(allowed & (iou > IOU), iou, 0.0)
    rows, columns = linear_sum_assignment(-weight)
    return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if weight[r, c] > 0}


def mask_iou(found: Sequence[Rle | None], truth: Sequence[Rle | None]) -> NDArray[np.float64]:
    """IoU [D, G] of masks of one size."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    return np.asarray(coco_mask.iou(list(found), list(truth), [0] * len(truth)))


def _left_over(iou: NDArray[np.float64], pairs: Mapping[int, int]) -> tuple[int, int]:
    """Of the unmatched rows, how many cover a matched column at IoU above 0.5, and how many do not."""
    taken = list(pairs.values())
    rest = [row for row in range(len(iou)) if row not in pairs]
    duplicates = sum(bool((iou[row, taken] > IOU).any()) for row in rest)
    return duplicates, len(rest) - duplicates


def _visible(mask: Rle | None) -> bool:
    return mask is not None and coco_mask.area(mask) > 0
