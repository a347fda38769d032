"""A quick measure of a network on held-out clips, to watch a run; `visrt eval` measures what ships."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from visrt.models.decoder import mask_logits
from visrt.models.eomt import Eomt
from visrt.models.mask2former import Mask2Former
from visrt.training.batches import clip_batch
from visrt.training.data.clips import Clip

__all__ = ["Followed", "FramePairs", "clip_quality", "pairs_of", "rates"]

SCORE = 0.5
IOU = 0.5


def clip_quality(network: Mask2Former | Eomt, clips: Iterable[Clip], device: torch.device) -> dict[str, float]:
    """Recall and precision of objects in single frames, and the share of objects whose query is linked rightly.

    A query counts if its class score reaches 0.5; a pair is right if the class agrees and the mask IoU exceeds 0.5.
    Linking is MinVIS's: Hungarian on the cosine similarity of all queries of consecutive frames.
    """
    network.eval()
    return rates(_linked(network, clip, device) for clip in clips)


@dataclass(frozen=True)
class FramePairs:
    """One frame. query_of: the query that matches each object. reported: queries that count. gt: objects there are."""

    query_of: dict[int, int]
    reported: int
    gt: int


@dataclass(frozen=True)
class Followed:
    """The frames of a clip, and from each to the next, which query goes on as which."""

    frames: list[FramePairs]
    links: list[dict[int, int]]


def rates(clips: Iterable[Followed]) -> dict[str, float]:
    """Shares over all frames: of the objects found, of the queries right, of the objects linked rightly."""
    tp = reported = gt = linked = links = 0
    for clip in clips:
        for frame in clip.frames:
            reported += frame.reported
            tp += len(frame.query_of)
            gt += frame.gt
        for before, after, link in zip(clip.frames, clip.frames[1:], clip.links, strict=False):
            both = before.query_of.keys() & after.query_of.keys()
            links += len(both)
            linked += sum(link[before.query_of[i]] == after.query_of[i] for i in both)
    return {
        "recall": tp / max(gt, 1),
        "precision": tp / max(reported, 1),
        "linked": linked / max(links, 1),
    }


@torch.no_grad()
def _linked(network: Mask2Former | Eomt, clip: Clip, device: torch.device) -> Followed:
    settings = network.settings
    images = clip_batch([clip], settings.pixel_mean, settings.pixel_std).images.to(device)
    outputs = [network(image[None]) for image in images]
    pairs = [
        pairs_of(out.class_logits[0], out.mask_embeddings[0], out.mask_features[0], clip, t, images.shape[2:])
        for t, out in enumerate(outputs)
    ]
    embeddings = [out.embeddings[0].cpu() for out in outputs]
    return Followed(pairs, [_link(*both) for both in pairwise(embeddings)])


def pairs_of(
    class_logits: Tensor, mask_embeddings: Tensor, mask_features: Tensor, clip: Clip, t: int, padded: Sequence[int]
) -> FramePairs:
    """The objects that queries of `class_logits` [Q, K + 1] and `mask_embeddings` [Q, D] found in frame `t` of `clip`.

    `mask_features` [D, h, w] of the `padded` image (height, width), in whose upper left the frame is.
    """
    scores, labels = class_logits.softmax(-1)[:, :-1].max(-1)
    kept = (scores >= SCORE).nonzero()[:, 0]
    # Resized as a batch of single-channel maps: interpolate refuses zero channels, not zero batches.
    logits = mask_logits(mask_embeddings[None, kept], mask_features[None]).transpose(0, 1)
    height, width = clip.frames.shape[1:3]
    whole = F.interpolate(logits, size=tuple(padded), mode="bilinear", align_corners=False)[:, 0]
    masks = whole[:, :height, :width] > 0
    objects = np.flatnonzero(clip.masks[:, t].any((1, 2)))
    iou = _iou(masks.cpu().numpy(), clip.masks[objects, t])
    iou[labels[kept].cpu().numpy()[:, None] != clip.labels[objects][None]] = 0
    rows, columns = linear_sum_assignment(-iou)
    query_of = {int(objects[c]): int(kept[r]) for r, c in zip(rows, columns, strict=True) if iou[r, c] > IOU}
    return FramePairs(query_of, len(kept), len(objects))


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float32]:
    """IoU [M, N] of masks a [M, H, W] and b [N, H, W]."""
    pixels = a.shape[1] * a.shape[2]
    x, y = a.reshape(len(a), pixels).astype(np.float32), b.reshape(len(b), pixels).astype(np.float32)
    inter = x @ y.T
    union = x.sum(1)[:, None] + y.sum(1)[None] - inter
    iou: NDArray[np.float32] = inter / np.maximum(union, 1)
    return iou


def _link(before: Tensor, after: Tensor) -> dict[int, int]:
    """Query before -> query after, both [Q, C]."""
    similarity = F.normalize(before, dim=-1) @ F.normalize(after, dim=-1).T
    rows, columns = linear_sum_assignment(-similarity.numpy())
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))
