"""A quick measure of a network on held-out clips, to watch a run; `visrt eval` measures what ships."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from visrt.models.decoder import mask_logits
from visrt.models.mask2former import Mask2Former
from visrt.training.batches import clip_batch
from visrt.training.clips import Clip

__all__ = ["clip_quality"]

SCORE = 0.5
IOU = 0.5


def clip_quality(network: Mask2Former, clips: Iterable[Clip], device: torch.device) -> dict[str, float]:
    """Recall and precision of objects in single frames, and the share of objects whose query is linked rightly.

    A query counts if its class score reaches 0.5; a pair is right if the class agrees and the mask IoU exceeds 0.5.
    Linking is MinVIS's: Hungarian on the cosine similarity of all queries of consecutive frames.
    """
    found = reported = wanted = linked = links = 0
    network.eval()
    for clip in clips:
        truth = [(_present(clip, t)) for t in range(len(clip.frames))]
        queries, embeddings = _frame_pairs(network, clip, truth, device)
        for frame in queries:
            reported += frame.reported
            found += len(frame.query_of)
            wanted += frame.wanted
        for t in range(1, len(queries)):
            link = _link(embeddings[t - 1], embeddings[t])
            both = queries[t - 1].query_of.keys() & queries[t].query_of.keys()
            links += len(both)
            linked += sum(link[queries[t - 1].query_of[i]] == queries[t].query_of[i] for i in both)
    return {
        "recall": found / max(wanted, 1),
        "precision": found / max(reported, 1),
        "linked": linked / max(links, 1),
    }


class FramePairs:
    """Objects of one frame and the queries that found them."""

    def __init__(self, query_of: dict[int, int], reported: int, wanted: int) -> None:
        self.query_of = query_of
        self.reported = reported
        self.wanted = wanted


def _present(clip: Clip, t: int) -> NDArray[np.int64]:
    return np.flatnonzero(clip.masks[:, t].any((1, 2)))


@torch.no_grad()
def _frame_pairs(
    network: Mask2Former, clip: Clip, truth: list[NDArray[np.int64]], device: torch.device
) -> tuple[list[FramePairs], torch.Tensor]:
    settings = network.settings
    images = clip_batch([clip], settings.pixel_mean, settings.pixel_std).images.to(device)
    outputs = [network(image[None]) for image in images]
    pairs = []
    for t, out in enumerate(outputs):
        scores, labels = out.class_logits[0].softmax(-1)[:, :-1].max(-1)
        kept = (scores >= SCORE).nonzero()[:, 0]
        # Resized as a batch of single-channel maps: interpolate refuses zero channels, not zero batches.
        logits = mask_logits(out.mask_embeddings[:, kept], out.mask_features).transpose(0, 1)
        masks = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
        objects = truth[t]
        iou = _iou(masks.cpu().numpy(), clip.masks[objects, t])
        iou[labels[kept].cpu().numpy()[:, None] != clip.labels[objects][None]] = 0
        rows, columns = linear_sum_assignment(-iou)
        query_of = {int(objects[c]): int(kept[r]) for r, c in zip(rows, columns, strict=True) if iou[r, c] > IOU}
        pairs.append(FramePairs(query_of, len(kept), len(objects)))
    return pairs, torch.stack([out.embeddings[0] for out in outputs]).cpu()


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float32]:
    """IoU [M, N] of masks a [M, H, W] and b [N, H, W]."""
    pixels = a.shape[1] * a.shape[2]
    x, y = a.reshape(len(a), pixels).astype(np.float32), b.reshape(len(b), pixels).astype(np.float32)
    inter = x @ y.T
    union = x.sum(1)[:, None] + y.sum(1)[None] - inter
    iou: NDArray[np.float32] = inter / np.maximum(union, 1)
    return iou


def _link(before: torch.Tensor, after: torch.Tensor) -> dict[int, int]:
    """Query before -> query after, both [Q, C]."""
    similarity = F.normalize(before, dim=-1) @ F.normalize(after, dim=-1).T
    rows, columns = linear_sum_assignment(-similarity.numpy())
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))
