"""MinVIS's post-processing in the order of the released code: the whole video is kept, then everything at once.

Written from the published rule (MinVIS, section 3.2, and its video-level result), as a baseline for visrt: all
masks of all queries of all frames stay in memory, class logits are averaged over the video, and the masks of the best
ten pairs of query and class are enlarged twice, to the padded network input and, cropped, to the source frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from visrt.runtime.image import Letterbox

__all__ = ["BEST", "KeptFrame", "VideoAnswer", "video_answer"]

BEST = 10
"""Pairs of query and class in the result, fixed in the released code."""


@dataclass(frozen=True)
class KeptFrame:
    """The network's outputs for one frame: class_logits [Q, K + 1], embeddings [Q, C], masks [Q, h, w] at stride 4
    of the padded input."""

    class_logits: Tensor
    embeddings: Tensor
    masks: Tensor


@dataclass(frozen=True)
class VideoAnswer:
    """scores [N], labels [N], masks bool [N, T, H, W] at the size of the source."""

    scores: Tensor
    labels: Tensor
    masks: Tensor


def video_answer(frames: Sequence[KeptFrame], fit: Letterbox) -> VideoAnswer:
    """The result of a whole video whose frames are placed in the network input as in `fit`."""
    matched = _in_order(frames)
    logits = torch.stack([frame.class_logits for frame in matched]).mean(dim=0)
    masks = torch.stack([frame.masks for frame in matched], dim=1)  # [Q, T, h, w]
    scores = logits.softmax(dim=-1)[:, :-1]
    best, places = scores.flatten().topk(min(BEST, scores.numel()), sorted=False)
    enlarged = F.interpolate(masks[places // scores.shape[1]], size=fit.network, mode="bilinear", align_corners=False)
    cropped = enlarged[:, :, : fit.valid[0], : fit.valid[1]]
    whole = F.interpolate(cropped, size=fit.source, mode="bilinear", align_corners=False) > 0
    return VideoAnswer(best, places % scores.shape[1], whole)


def _in_order(frames: Sequence[KeptFrame]) -> list[KeptFrame]:
    """Each frame's queries in the order of the frame before, which is in the order of the one before it."""
    matched = [frames[0]]
    for frame in frames[1:]:
        order = _matching(matched[-1].embeddings, frame.embeddings)
        matched.append(KeptFrame(frame.class_logits[order], frame.embeddings[order], frame.masks[order]))
    return matched


def _matching(before: Tensor, now: Tensor) -> Tensor:
    """For each query of the frame before, the one that continues it: least 1 - cosine over all."""
    alike = F.normalize(before, dim=1) @ F.normalize(now, dim=1).T
    return torch.from_numpy(linear_sum_assignment(1 - alike.numpy().astype(np.float64))[1])
