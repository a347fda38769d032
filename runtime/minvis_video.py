"""MinVIS's official video-level result: every query follows its slot, and a slot is a track of the whole video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from visrt.runtime.family import Floats
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import MaskResize
from visrt.runtime.masks import Rle
from visrt.runtime.minvis import MinVis, match_to_slots
from visrt.runtime.network import Network
from visrt.runtime.video_tracks import ReadFrames, VideoResult, VideoTrack, best_of_video, second_reading

__all__ = ["TOP_K", "minvis_result"]

TOP_K = 10
"""Pairs of slot and label in a result, fixed in the released code."""


@dataclass(frozen=True)
class Recording:
    """What is kept of the first reading, in slot order: mean_logits [Q, K + 1]; mask_embeddings [Q, D] a frame."""

    mean_logits: Floats
    mask_embeddings: list[Floats]


def minvis_result(network: Network, family: MinVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    recording = _record(network, read_frames())
    if recording is None:
        return VideoResult(0, ())
    winners = best_of_video(recording.mean_logits, top_k or TOP_K)
    slots = sorted({winner.slot for winner in winners})
    wanted = [{slot: embeddings[slot] for slot in slots} for embeddings in recording.mask_embeddings]
    masks = second_reading(network, read_frames(), wanted, _rle)
    tracks = tuple(VideoTrack(w.label, w.score, tuple(masks[w.slot].values())) for w in winners)
    return VideoResult(len(wanted), tracks)


def _record(network: Network, frames: Iterable[Frame]) -> Recording | None:
    """The first reading: every query follows its slot; None if there is no frame."""
    memory: Floats | None = None
    total = np.zeros(())
    kept: list[Floats] = []
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        queries = outputs.queries
        if memory is not None:
            queries = queries.take(match_to_slots(memory, queries.embeddings))
        memory = queries.embeddings
        total = total + queries.class_logits.astype(np.float64)
        kept.append(queries.mask_embeddings)
    return Recording((total / len(kept)).astype(np.float32), kept) if kept else None


def _rle(resize: MaskResize, logits: Floats) -> Rle | None:
    mask = resize.source_mask(resize.crop(logits))
    return None if mask is None else mask.rle
