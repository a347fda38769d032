"""MinVIS's official video-level result: a slot is a track of the whole video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    ReadFrames,
    VideoResult,
    best_of_video,
    mean_over_frames,
    plain_result,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import MaskResize
from visrt.runtime.masks import Rle
from visrt.runtime.methods.minvis import MinVis, match_to_slots
from visrt.runtime.network import Network

__all__ = ["minvis_result"]


def minvis_result(network: Network, family: MinVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    slots = mean_over_frames(_in_slot_order(network, read_frames()))
    if slots is None:
        return VideoResult(0, ())
    winners = best_of_video(slots.mean, top_k or TOP_K)
    return plain_result(network, read_frames, winners, slots.mask_embeddings, _rle)


def _in_slot_order(network: Network, frames: Iterable[Frame]) -> Iterator[tuple[Floats, Floats]]:
    """Class logits [Q, K + 1] and mask embeddings [Q, D] of each frame, matched to the slots of the frame before."""
    memory: Floats | None = None
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        queries = outputs.queries
        if memory is not None:
            queries = queries.take(match_to_slots(memory, queries.embeddings))
        memory = queries.embeddings
        yield queries.class_logits, queries.mask_embeddings


def _rle(resize: MaskResize, logits: Floats) -> Rle | None:
    mask = resize.source_mask(resize.crop(logits))
    return None if mask is None else mask.rle
