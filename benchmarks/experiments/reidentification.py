"""How well embeddings find an object again, whatever rule associates them: the nearest query some frames later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from visrt.benchmarks.accuracy.evaluate import pictures_of
from visrt.models.decoder import mask_logits
from visrt.models.mask2former import Mask2Former
from visrt.runtime.errors import DataError
from visrt.runtime.masks import decode
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo

__all__ = ["COMPARED", "Found", "found_again", "video_embeddings"]

IOU = 0.5

COMPARED = ("head_cosine", "head_dot", "query_cosine")
"""The network's embeddings by cosine (MinVIS, runtime) and by raw dot product (CTVIS); the decoder's queries by cosine
(MinVIS as published, which has no embedding head)."""


@dataclass(frozen=True)
class Found:
    """Objects looked for, and of these how often the nearest query was one that covers the object."""

    right: int = 0
    wanted: int = 0

    def __add__(self, other: Found) -> Found:
        return Found(self.right + other.right, self.wanted + other.wanted)

    @property
    def rate(self) -> float:
        return self.right / self.wanted if self.wanted else float("nan")


@dataclass(frozen=True)
class FrameEmbeddings:
    """One frame: head [Q, C] and query [Q, D] embeddings; for each visible annotated track the queries [Q] whose mask
    covers it at IoU above 0.5, and the one of them that scores best.
    """

    head: Tensor
    query: Tensor
    covers: dict[int, NDArray[np.bool_]]
    best: dict[int, int]


def found_again(network: Mask2Former, annotated: AnnotatedSet, distances: Sequence[int]) -> dict[str, dict[int, Found]]:
    """For each of COMPARED and each distance in frames: the objects that were found by their nearest query.

    An object counts if some query covers it in both frames. All queries compete, as they do in association.
    """
    found = {name: dict.fromkeys(distances, Found()) for name in COMPARED}
    for video in annotated.videos:
        frames = list(video_embeddings(network, video))
        for distance in distances:
            for before, after in zip(frames, frames[distance:], strict=False):
                for name in COMPARED:
                    found[name][distance] += _found(before, after, name)
    return found


@torch.no_grad()
def video_embeddings(network: Mask2Former, video: AnnotatedVideo) -> Iterator[FrameEmbeddings]:
    """Frame by frame, at the size of the pictures, which must be divisible by 32."""
    if video.size[0] % 32 or video.size[1] % 32:
        raise DataError(f"video {video.name} has {video.size[0]}x{video.size[1]} pixels; expected multiples of 32")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.settings.pixel_mean, network.settings.pixel_std))
    for t, picture in enumerate(pictures_of(video)):
        image = (torch.from_numpy(picture.copy()).permute(2, 0, 1).float() - mean) / std
        layers, features = network.layers(image[None])
        last = layers[-1]
        masks = F.interpolate(
            mask_logits(last.mask_embeddings, features), size=video.size, mode="bilinear", align_corners=False
        )
        scores = last.class_logits[0].softmax(-1)[:, :-1].amax(-1).numpy()
        covers = _covers(masks[0].numpy() > 0, video, t)
        best = {track: int(np.where(rows, scores, -1).argmax()) for track, rows in covers.items()}
        yield FrameEmbeddings(network.embeddings(last.queries)[0], last.queries[0], covers, best)


def _covers(masks: NDArray[np.bool_], video: AnnotatedVideo, t: int) -> dict[int, NDArray[np.bool_]]:
    """By visible track, the queries [Q] of `masks` [Q, H, W] that cover it; tracks that none covers are left out."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    areas = flat.sum(1)
    covers = {}
    for i, track in enumerate(video.tracks):
        rle = track.masks[t]
        if rle is None or track.crowd:
            continue
        truth = decode(rle).ravel().astype(np.float32)
        overlap = flat @ truth
        rows = overlap > IOU * (areas + truth.sum() - overlap)
        if rows.any():
            covers[i] = rows
    return covers


def _found(before: FrameEmbeddings, after: FrameEmbeddings, name: str) -> Found:
    common = sorted(before.best.keys() & after.best.keys())
    if not common:
        return Found()
    kind, measure = name.split("_")
    a, b = (getattr(frame, kind) for frame in (before, after))
    if measure == "cosine":
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    nearest = (a[[before.best[i] for i in common]] @ b.T).argmax(1).tolist()
    right = sum(bool(after.covers[i][query]) for i, query in zip(common, nearest, strict=True))
    return Found(right, len(common))
