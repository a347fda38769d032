"""InsPro's video-level result: mean class scores of each slot, the best (slot, label) pairs, masks as CondInst makes
them. The paper does not say how it scores a video; this is how MinVIS and VITA do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.family import Floats
from visrt.runtime.image import Frame, Letterbox
from visrt.runtime.inspro import InsPro, first_step, frame_step, sigmoid
from visrt.runtime.mask_resize import STRIDE, MaskResize, bilinear
from visrt.runtime.masks import Rle, encode_region
from visrt.runtime.network import ClipGraphs, Network
from visrt.runtime.video_tracks import ReadFrames, VideoResult, VideoTrack, best_of_scores, second_reading

__all__ = ["TOP_K", "inspro_result"]

TOP_K = 10
"""Pairs of slot and label in a result."""


@dataclass(frozen=True)
class Recording:
    """What is kept of the first reading: mean_chances [N, K] of the classes; mask_embeddings [N, P] a frame."""

    mean_chances: Floats
    mask_embeddings: list[Floats]


def inspro_result(network: Network, family: InsPro, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """The mean over the frames of each slot's class scores, and the best pairs of slot and label."""
    recording = _record(network, family, read_frames())
    if recording is None:
        return VideoResult(0, ())
    winners = best_of_scores(recording.mean_chances, top_k or TOP_K)
    slots = sorted({winner.slot for winner in winners})
    wanted = [{slot: embeddings[slot] for slot in slots} for embeddings in recording.mask_embeddings]
    masks = second_reading(network, read_frames(), wanted, _rle)
    tracks = tuple(VideoTrack(w.label, w.score, tuple(masks[w.slot].values())) for w in winners)
    return VideoResult(len(wanted), tracks)


def _record(network: Network, family: InsPro, frames: Iterable[Frame]) -> Recording | None:
    """The first reading, slot by slot; None if there is no frame."""
    step, total, kept = first_step(network.states), np.zeros(()), list[Floats]()
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        graphs = ClipGraphs(network, [outputs], network.carried())
        answer = frame_step(outputs.tensors, graphs.run, step, family.settings)
        step = answer.step
        chances = np.where(answer.invalid[:, None], np.float32(0), sigmoid(answer.outputs["class_logits"]))
        total = total + chances.astype(np.float64)
        kept.append(answer.outputs["mask_embeddings"])
    return Recording((total / len(kept)).astype(np.float32), kept) if kept else None


def _rle(resize: MaskResize, logits: Floats) -> Rle | None:
    """CondInst's way: chances enlarged to the network input, cropped to the frame, resized to the source, above 0.5."""
    rows, columns = _ways(resize.fit)
    chances: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))
    mask = rows @ chances @ columns.T > 0.5
    return encode_region(mask.T, (0, 0), resize.fit.source) if mask.any() else None


@lru_cache(maxsize=4)
def _ways(fit: Letterbox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From stride 4 to the source frame: weights [source, cells] of the rows and of the columns."""
    sizes = zip(fit.network, fit.valid, fit.source, strict=True)
    rows, columns = (bilinear(valid, source) @ _enlarging(network)[:valid] for network, valid, source in sizes)
    return rows, columns


def _enlarging(size: int) -> NDArray[np.float64]:
    """Weights [size, size / 4] of CondInst's aligned bilinear: cell k lies at pixel 4 k + 2."""
    cells = size // STRIDE
    place = np.clip((np.arange(size) - STRIDE // 2) / STRIDE, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), cells - 1)
    weights = np.zeros((size, cells))
    weights[np.arange(size), low] += 1 - (place - low)
    weights[np.arange(size), np.minimum(low + 1, cells - 1)] += place - low
    return weights
