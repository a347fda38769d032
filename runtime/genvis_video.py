"""GenVIS's official video-level result: the best score of any clip, times the quality of the masks of all.

The memory has no cap here, as in the published code: it grows by 205 KB a clip for 100 slots of 256 channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import numpy as np

from visrt.runtime.family import Floats, softmax
from visrt.runtime.genvis import BASE, GenVis, clip_step, first_step
from visrt.runtime.image import Frame, Letterbox
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.network import ClipGraphs, Network
from visrt.runtime.video_tracks import ReadFrames, VideoResult, VideoTrack, Winner, best_of_scores, second_reading

__all__ = ["genvis_result", "segmented"]

TOP_K = 10
"""For YouTube-VIS; 20 for OVIS."""

NO_CAP = 2**31


@dataclass(frozen=True)
class Segmented:
    """What is kept of a clip of `frames`: chances [S, K] of the classes, mask_embeddings [S, D]."""

    frames: int
    chances: Floats
    mask_embeddings: Floats


@dataclass(frozen=True)
class MadeMask:
    """The mask of one frame, None where it is empty; at the size the network saw, how sure its pixels are, in all, and
    how many they are."""

    rle: Rle | None
    certainty: float
    pixels: int


def genvis_result(network: Network, family: GenVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """The maximum over the clips of each slot's class chances, the best (slot, label) pairs, times mask quality."""
    clips = list(segmented(network, family, read_frames()))
    if not clips:
        return VideoResult(0, ())
    winners = best_of_scores(np.max([clip.chances for clip in clips], axis=0), top_k or TOP_K)
    slots = sorted({winner.slot for winner in winners})
    wanted = [{slot: clip.mask_embeddings[slot] for slot in slots} for clip in clips for _ in range(clip.frames)]
    made = second_reading(network, read_frames(), wanted, _made)
    return VideoResult(len(wanted), tuple(_track(winner, list(made[winner.slot].values())) for winner in winners))


def segmented(network: Network, family: GenVis, frames: Iterable[Frame]) -> Iterator[Segmented]:
    """The clips of a video, one after the other, the last one maybe short."""
    settings = replace(family.settings, memory_clips=NO_CAP)
    step, waiting = first_step(network.states[BASE]), iter(frames)
    while clip := list(islice(waiting, family.clip_frames)):
        seen = network.run_frames(clip)
        for outputs in seen:
            outputs.check_finite()
        graphs = ClipGraphs(network, seen, network.carried())
        told, step, broken = clip_step([outputs.tensors for outputs in seen], graphs.run, step, settings)
        chances = np.where(broken[:, None], np.float32(0), softmax(told["class_logits"])[:, :-1])
        yield Segmented(len(clip), chances, told["mask_embeddings"])


def _made(resize: MaskResize, logits: Floats) -> MadeMask:
    mask = resize.source_mask(resize.crop(logits))
    unresized = _unresized(resize.fit)
    certainty, pixels = unresized.certainty(unresized.crop(logits))
    return MadeMask(None if mask is None else mask.rle, certainty, pixels)


@lru_cache(maxsize=4)
def _unresized(fit: Letterbox) -> MaskResize:
    """To the size at which the network saw the frame; the same for all frames of a video."""
    return mask_resize(replace(fit, source=fit.valid))


def _track(winner: Winner, made: list[MadeMask]) -> VideoTrack:
    quality = sum(mask.certainty for mask in made) / (sum(mask.pixels for mask in made) + 1e-6)
    return VideoTrack(winner.label, winner.score * quality, tuple(mask.rle for mask in made))
