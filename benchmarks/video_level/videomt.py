"""VidEoMT's official video-level result: as MinVIS's, with a slot for a track and the state carried by the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    ReadFrames,
    VideoResult,
    VideoTrack,
    best_of_video,
    mean_over_frames,
)
from visrt.runtime.arrays import Tensors
from visrt.runtime.errors import UsageError
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.methods.method import FrameOutputs
from visrt.runtime.methods.videomt import VideoMt, decoded
from visrt.runtime.network import ClipGraphs, Network

__all__ = ["videomt_result"]


def videomt_result(network: Network, _: VideoMt, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    answers = (outputs for _, outputs in _decoded(network, read_frames()))
    slots = mean_over_frames((outputs["class_logits"], outputs["mask_embeddings"]) for outputs in answers)
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


def _decoded(network: Network, frames: Iterable[Frame]) -> Iterator[tuple[FrameOutputs, Tensors]]:
    """The outputs of each frame of a video, from its start."""
    carried = network.carried()
    for frame in frames:
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        yield outputs, decoded(ClipGraphs(network, [outputs], carried))


def _masks(network: Network, frame: FrameOutputs, outputs: Tensors, slots: list[int]) -> dict[int, Rle | None]:
    """The masks of `slots` at the size of the source."""
    resize = mask_resize(frame.fit)
    logits = network.run_masks(np.ascontiguousarray(outputs["mask_embeddings"][slots]), frame.device)
    masks = [resize.source_mask(resize.crop(one)) for one in logits]
    return {slot: mask.rle if mask else None for slot, mask in zip(slots, masks, strict=True)}
