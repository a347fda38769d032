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
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.methods.matching_cost import Predictions
from visrt.runtime.methods.method import FrameOutputs
from visrt.runtime.methods.minvis import MinVis, MinVisSettings, continued_by
from visrt.runtime.network import Network

__all__ = ["minvis_result"]


def minvis_result(network: Network, family: MinVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    slots = mean_over_frames(_in_slot_order(network, family.settings, read_frames()))
    if slots is None:
        return VideoResult(0, ())
    winners = best_of_video(slots.mean, top_k or TOP_K)
    return plain_result(network, read_frames, winners, slots.mask_embeddings, _rle)


def _in_slot_order(
    network: Network, settings: MinVisSettings, frames: Iterable[Frame]
) -> Iterator[tuple[Floats, Floats]]:
    """Class logits [Q, K + 1] and mask embeddings [Q, D] of each frame, matched to the slots of the frame before.

    Of `settings` only `similarity` plays a part.
    """
    memory: Floats | None = None
    last: Predictions | None = None
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        queries = outputs.queries
        now = _predictions(network, outputs) if settings.compares_masks else None
        if memory is not None:
            order = continued_by(memory, last, queries.embeddings, now, settings.similarity)
            queries, now = queries.take(order), None if now is None else now.take(order)
        memory, last = queries.embeddings, now
        yield queries.class_logits, queries.mask_embeddings


def _predictions(network: Network, outputs: FrameOutputs) -> Predictions:
    """Of all queries, the masks without their padding."""
    logits = network.run_masks(outputs.queries.mask_embeddings, outputs.device)
    return Predictions(outputs.queries.class_logits, mask_resize(outputs.fit).crop(logits))


def _rle(resize: MaskResize, logits: Floats) -> Rle | None:
    mask = resize.source_mask(resize.crop(logits))
    return None if mask is None else mask.rle
