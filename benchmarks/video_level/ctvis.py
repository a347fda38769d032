"""CTVIS's official video-level result, with what its released code does to noise.

Objects are followed as in a stream. An object seen in few frames and then lost is taken out of the output, its past
included; if it is found again its output starts empty. That rewrites the past, so a stream cannot do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visrt.benchmarks.video_level.tracks import (
    ReadFrames,
    VideoResult,
    best_of_video,
    scored_mask,
    scored_track,
    second_reading,
)
from visrt.runtime.arrays import Floats
from visrt.runtime.image import Frame
from visrt.runtime.methods.ctvis import CtVis
from visrt.runtime.methods.method import FrameOutputs, MasksOf
from visrt.runtime.network import Network

__all__ = ["Output", "ctvis_result", "followed", "mean_logits", "recorded"]

FRAMES_A_SECOND = 6.0
"""The frames of YouTube-VIS videos; the released code counts frames, the settings seconds."""

NOISE_FROM_FRAME = 8
NOISE_FRAMES = 3
NOISE_GAP_FRAMES = 2
"""After frame 8, an object seen in fewer than 3 frames and not in the last 2 is noise."""

Found = list[tuple[int, Floats, Floats]]
"""Objects of one frame: number, class logits [K + 1], mask embedding [D]."""


@dataclass
class Output:
    """One object of the output. total [K + 1]: the sum of its class logits; mask_embeddings [D] by frame."""

    total: NDArray[np.float64] | float = 0.0
    mask_embeddings: dict[int, Floats] = field(default_factory=dict)

    def is_noise(self, frame: int) -> bool:
        last = next(reversed(self.mask_embeddings))
        return len(self.mask_embeddings) < NOISE_FRAMES and frame - last >= NOISE_GAP_FRAMES


def ctvis_result(network: Network, family: CtVis, read_frames: ReadFrames, top_k: int | None) -> VideoResult:
    """Mean class logits over the frames an object is in, the best (object, label) pairs, times their mask quality.

    Pairs are as many as there are classes, in the order they have before the quality, as released.
    """
    frames, outputs = recorded(followed(network, family, read_frames()))
    if not outputs:
        return VideoResult(frames, ())
    logits = mean_logits(outputs)
    winners = best_of_video(logits, top_k or logits.shape[1] - 1)
    requested: list[dict[int, Floats]] = [{} for _ in range(frames)]
    for slot in sorted({winner.slot for winner in winners}):
        for frame, embedding in outputs[slot].mask_embeddings.items():
            requested[frame][slot] = embedding
    masks = second_reading(
        network, read_frames(), requested, lambda resize, mask_logits: scored_mask(resize, mask_logits, resize)
    )
    return VideoResult(frames, tuple(scored_track(winner, masks[winner.slot], frames) for winner in winners))


def followed(network: Network, family: CtVis, frames: Iterable[Frame]) -> Iterator[Found]:
    """The objects of each frame, noise included, numbered by their births."""
    every = CtVis(replace(family.settings, steady_frames=1, show_score=0.0))
    state = every.start()
    for index, frame in enumerate(frames):
        [outputs] = network.run_frames([frame])
        outputs.check_finite()
        found, state = every.follow(outputs.queries, _masks(network, outputs), index / FRAMES_A_SECOND, state)
        queries = found.candidates.queries.take(found.chosen)
        numbers = found.memory.ids[found.rows].tolist()
        yield list(zip(numbers, queries.class_logits, queries.mask_embeddings, strict=True))


def recorded(frames: Iterable[Found]) -> tuple[int, list[Output]]:
    """The number of frames, and the output after the last, in the order of the released code."""
    outputs: dict[int, Output] = {}
    count = 0
    for frame, found in enumerate(frames):
        count = frame + 1
        for number, class_logits, mask_embedding in found:
            output = outputs.setdefault(number, Output())
            output.total = output.total + class_logits.astype(np.float64)
            output.mask_embeddings[frame] = mask_embedding
        if frame > NOISE_FROM_FRAME:
            outputs = {number: output for number, output in outputs.items() if not output.is_noise(frame)}
    return count, list(outputs.values())


def mean_logits(outputs: list[Output]) -> Floats:
    """Class logits [N, K + 1], each the mean over the frames its object is in."""
    return np.stack([output.total / len(output.mask_embeddings) for output in outputs]).astype(np.float32)


def _masks(network: Network, outputs: FrameOutputs) -> MasksOf:
    """Masks with their padding, which takes part in the released code's mask NMS."""
    return lambda mask_embeddings: network.run_masks(mask_embeddings, outputs.device)
