"""GenVIS's official video-level result: the best score of any clip, times the quality of the masks of all.

The memory has no cap here, as in the published code: it grows by 205 KB a clip for 100 slots of 256 channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from math import ceil

import numpy as np

from visrt.benchmarks.video_level.tracks import (
    TOP_K,
    ReadFrames,
    ScoredMask,
    VideoResult,
    best_of_scores,
    embeddings_of_winners,
    scored_mask,
    scored_track,
    second_reading,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.bundles.dynamic_axes import CLIPS_SETTING
from visrt.runtime.image import Frame, Letterbox
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.methods.genvis import BASE, GenVis, GenVisSettings, clip_step, first_step
from visrt.runtime.methods.method import nonfinite
from visrt.runtime.network import Network, StreamGraphs

__all__ = ["genvis_result", "room_for_video", "segmented"]

NO_CAP = 2**31


@dataclass(frozen=True)
class Segmented:
    """What is kept of a clip of `frames` frames: class probabilities [S, K], mask_embeddings [S, D]."""

    frames: int
    probabilities: Floats
    mask_embeddings: Floats


def genvis_result(network: Network, family: GenVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """The maximum over the clips of each slot's probabilities, the best (slot, label) pairs, times mask quality."""
    clips = list(segmented(network, family, read_frames()))
    if not clips:
        return VideoResult(0, ())
    winners = best_of_scores(np.max([clip.probabilities for clip in clips], axis=0), top_k or TOP_K)
    frames = [clip.mask_embeddings for clip in clips for _ in range(clip.frames)]
    masks = second_reading(network, read_frames(), embeddings_of_winners(winners, frames), _scored)
    return VideoResult(len(frames), tuple(scored_track(winner, masks[winner.slot], len(frames)) for winner in winners))


def room_for_video(settings: GenVisSettings, frames: int) -> dict[str, int]:
    """The settings with which engines have room for all clips of a video of so many frames."""
    return {CLIPS_SETTING: max(1, ceil(frames / settings.clip_frames))}


def segmented(network: Network, family: GenVis, frames: Iterable[Frame]) -> Iterator[Segmented]:
    """The clips of a video in order; the last may be shorter."""
    settings, states = replace(family.settings, memory_clips=NO_CAP), network.new_states()
    step, waiting = first_step(len(network.states[BASE])), iter(frames)
    while images := list(islice(waiting, family.clip_frames)):
        seen = network.run_frames(images)
        steps = clip_step(seen, StreamGraphs(network, states), step, settings)
        clip, step = network.alone(steps, states)
        if not all(clip.finite):
            raise nonfinite("frame_queries")
        yield Segmented(len(seen), clip.probabilities, seen[-1].device["mask_embeddings"].numpy()[clip.rows])


def _scored(resize: MaskResize, logits: Floats) -> ScoredMask:
    """Its certainty at the size that the network saw."""
    return scored_mask(resize, logits, _unresized(resize.fit))


@lru_cache(maxsize=4)
def _unresized(fit: Letterbox) -> MaskResize:
    """To the size at which the network saw the frame; the same for all frames of a video."""
    return mask_resize(replace(fit, source=fit.valid))
