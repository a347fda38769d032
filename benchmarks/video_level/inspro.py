"""InsPro's video-level result: mean class scores of each slot, the best (slot, label) pairs, masks as in CondInst.

The paper does not say how it scores a video; this is the rule of MinVIS and VITA. A network of boxes alone (InsPro-VID)
is judged frame by frame as well, by the best boxes of each, as Sparse R-CNN has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    FrameBoxes,
    ReadFrames,
    VideoResult,
    VideoTrack,
    best_of_scores,
    mean_over_frames,
    plain_result,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.image import Frame, Letterbox
from visrt.runtime.mask_resize import STRIDE, MaskResize, bilinear
from visrt.runtime.masks import Rle, encode_region, rectangle
from visrt.runtime.methods.inspro import InsPro, first_step, frame_step, sigmoid
from visrt.runtime.methods.method import FrameOutputs
from visrt.runtime.network import Network

__all__ = ["inspro_result"]

BOXES_OF_A_FRAME = 100
"""As in Sparse R-CNN and in COCO's measure."""


def inspro_result(network: Network, family: InsPro, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """The mean over the frames of each slot's class scores, and the best pairs of slot and label."""
    if not network.has_masks:
        return _result_of_boxes(network, family, read_frames(), top_k or TOP_K)
    slots = mean_over_frames(_in_slot_order(network, family, read_frames()))
    if slots is None:
        return VideoResult(0, ())
    winners = best_of_scores(slots.mean, top_k or TOP_K)
    return plain_result(network, read_frames, winners, slots.mask_embeddings, _rle)


def _result_of_boxes(network: Network, family: InsPro, frames: Iterable[Frame], top_k: int) -> VideoResult:
    scores, corners, fits = [], [], []
    for frame, of_frame, probabilities in _answers(network, family, frames):
        scores.append(probabilities)
        corners.append(of_frame)
        fits.append(frame.fit)
    if not scores:
        return VideoResult(0, (), ())
    mean: Floats = np.stack(scores).mean(axis=0, dtype=np.float64).astype(np.float32)
    winners = best_of_scores(mean, top_k)
    tracks = tuple(VideoTrack(w.label, w.score, _filled(w.slot, corners, fits)) for w in winners)
    boxes = (_best_boxes(*of_frame) for of_frame in zip(scores, corners, fits, strict=True))
    return VideoResult(len(scores), tracks, tuple(boxes))


def _filled(slot: int, corners: Sequence[Floats], fits: Sequence[Letterbox]) -> tuple[Rle | None, ...]:
    """The boxes of `slot` in each frame as masks, from its `corners` [N, 4] in pixels of the network input."""
    boxes = [(fit.source_box(of_frame[slot]), fit.source) for of_frame, fit in zip(corners, fits, strict=True)]
    return tuple(None if box is None else rectangle(box, size) for box, size in boxes)


def _best_boxes(scores: Floats, corners: Floats, fit: Letterbox) -> FrameBoxes:
    """The best (slot, label) pairs of one frame by `scores` [N, K]; boxes cut at its edges, not rounded."""
    best = best_of_scores(scores, BOXES_OF_A_FRAME)
    (height, width), (valid_height, valid_width) = fit.source, fit.valid
    scaled = corners.reshape(-1, 2, 2) * (width / valid_width, height / valid_height)
    low, high = np.clip(scaled, 0, (width, height)).transpose(1, 0, 2)
    boxes = np.concatenate([low, high - low], axis=1)[[one.slot for one in best]].astype(np.float32)
    labels = np.array([one.label for one in best], dtype=np.int64)
    best_scores = np.array([one.score for one in best], dtype=np.float32)
    return FrameBoxes(labels, best_scores, boxes, np.zeros(len(best), dtype=bool))


def _in_slot_order(network: Network, family: InsPro, frames: Iterable[Frame]) -> Iterator[tuple[Floats, Floats]]:
    """Class probabilities [N, K] and mask embeddings [N, P] of each frame."""
    for frame, _, probabilities in _answers(network, family, frames):
        yield probabilities, frame.device["mask_embeddings"].numpy()


def _answers(
    network: Network, family: InsPro, frames: Iterable[Frame]
) -> Iterator[tuple[FrameOutputs, Floats, Floats]]:
    """Each frame after its head, the boxes [N, 4] of its slots and their class probabilities [N, K]; invalid slots
    score zero."""
    states, step = network.new_states(), first_step(network.states)
    for image in frames:
        [frame] = network.run_frames([image])
        answer = network.alone(frame_step(frame, step, family.settings), states)
        step = answer.step
        probabilities = np.where(answer.invalid[:, None], np.float32(0), sigmoid(answer.outputs["class_logits"]))
        yield frame, answer.outputs["boxes"], probabilities


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
