"""VidEoMT's official video-level result: as MinVIS's, with a slot for a track and the state carried by the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    ReadFrames,
    VideoResult,
    VideoTrack,
    best_of_video,
    mean_over_frames,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.errors import UsageError
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.methods.method import FrameOutputs, masks_of_slots
from visrt.runtime.methods.videomt import VideoMt, decoded
from visrt.runtime.network import Network

__all__ = ["videomt_result"]

SlotOutputs = tuple[Floats, Floats]
"""Class logits [Q, K + 1] and mask embeddings [Q, D] of a frame."""


def videomt_result(network: Network, _: VideoMt, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    slots = mean_over_frames(outputs for _, outputs in _decoded(network, read_frames()))
    if slots is None:
        return VideoResult(0, ())
    winners = best_of_video(slots.mean, top_k or TOP_K)
    kept = sorted({winner.slot for winner in winners})
    frames = [_masks(network, frame, outputs, kept) for frame, outputs in _decoded(network, read_frames())]
    if len(frames) != len(slots.mask_embeddings):
        raise UsageError(
            f"the video gave {len(slots.mask_embeddings)} frames at first and {len(frames)} when read again; "
            "read_frames must read the same frames each time"
        )
    tracks = tuple(VideoTrack(w.label, w.score, tuple(frame[w.slot] for frame in frames)) for w in winners)
    return VideoResult(len(frames), tracks)


def _decoded(network: Network, frames: Iterable[Frame]) -> Iterator[tuple[FrameOutputs, SlotOutputs]]:
    """Class logits and mask embeddings of each frame of a video, from its start."""
    states = network.new_states()
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        logits, _ = network.alone(decoded(outputs), states)
        yield outputs, (logits, outputs.device["mask_embeddings"].numpy())


def _masks(network: Network, frame: FrameOutputs, outputs: SlotOutputs, slots: list[int]) -> dict[int, Rle | None]:
    """The masks of `slots` at the size of the source."""
    resize = mask_resize(frame.fit)
    logits, _ = network.alone(masks_of_slots(replace(frame, resize=resize), np.array(slots)), network.new_states())
    masks = [resize.source_mask(one) for one in logits]
    return {slot: mask.rle if mask else None for slot, mask in zip(slots, masks, strict=True)}
