"""InsPro's video-level result: mean class scores of each slot, the best (slot, label) pairs, masks as in CondInst.

The paper does not say how it scores a video; this is the rule of MinVIS and VITA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    ReadFrames,
    VideoResult,
    best_of_scores,
    mean_over_frames,
    plain_result,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.image import Frame, Letterbox
from visrt.runtime.mask_resize import STRIDE, MaskResize, bilinear
from visrt.runtime.masks import Rle, encode_region
from visrt.runtime.methods.inspro import InsPro, first_step, frame_step, sigmoid
from visrt.runtime.network import ClipGraphs, Network

__all__ = ["inspro_result"]


def inspro_result(network: Network, family: InsPro, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """The mean over the frames of each slot's class scores, and the best pairs of slot and label."""
    slots = mean_over_frames(_in_slot_order(network, family, read_frames()))
    if slots is None:
        return VideoResult(0, ())
    winners = best_of_scores(slots.mean, top_k or TOP_K)
    return plain_result(network, read_frames, winners, slots.mask_embeddings, _rle)


def _in_slot_order(network: Network, family: InsPro, frames: Iterable[Frame]) -> Iterator[tuple[Floats, Floats]]:
    """Class probabilities [N, K] and mask embeddings [N, P] of each frame; invalid slots score zero."""
    step = first_step(network.states)
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        graphs = ClipGraphs(network, [outputs], network.carried())
        answer = frame_step(outputs.tensors, graphs.run, step, family.settings)
        step = answer.step
        probabilities = np.where(answer.invalid[:, None], np.float32(0), sigmoid(answer.outputs["class_logits"]))
        yield probabilities, answer.outputs["mask_embeddings"]


def _rle(resize: MaskResize, logits: Floats) -> Rle | None:
    """As in CondInst: probabilities enlarged to the network input, cropped, resized to the source, above 0.5."""
    rows, columns = _weights(resize.fit)
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))
    mask = rows @ probabilities @ columns.T > 0.5
    return encode_region(mask.T, (0, 0), resize.fit.source) if mask.any() else None


@lru_cache(maxsize=4)
def _weights(fit: Letterbox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
