"""Tracks of a whole video, and the second pass that makes their masks.

The best tracks are known only at the end of the video. So it is read twice: first to track and to score, then to make
the masks of the best tracks alone. No mask is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats, softmax
from visrt.runtime.errors import UsageError
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.network import Network

__all__ = [
    "FrameBoxes",
    "ReadFrames",
    "VideoResult",
    "VideoTrack",
    "Winner",
    "best_of_scores",
    "best_of_video",
    "second_reading",
]

ReadFrames = Callable[[], Iterable[Frame]]
M = TypeVar("M")

TOP_K = 10
"""Pairs of slot and label in a result for YouTube-VIS, fixed in the released code of MinVIS and GenVIS; 20 for OVIS."""


@dataclass(frozen=True)
class FrameBoxes:
    """Objects of one frame: labels int [N], scores float [N], boxes [N, 4] as x, y, width, height in pixels of the
    source, crowd bool [N]."""

    labels: NDArray[np.int64]
    scores: Floats
    boxes: Floats
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class VideoTrack:
    """One track of the whole video. masks: one a frame at the source's size, None where it is empty; of a network of
    boxes alone they fill its box."""

    label: int
    score: float
    masks: tuple[Rle | None, ...]


@dataclass(frozen=True)
class VideoResult:
    """The tracks of a video of `frames` frames, in the order of the official code; one slot may appear with several
    labels. boxes: of a network of boxes alone, the best of each frame by itself."""

    frames: int
    tracks: tuple[VideoTrack, ...]
    boxes: tuple[FrameBoxes, ...] | None = None


@dataclass(frozen=True)
class Winner:
    """One of the best (track, label) pairs; slot: the track's row in the scores."""

    slot: int
    label: int
    score: float


@dataclass(frozen=True)
class SlotScores:
    """Of a video whose slots are tracks. mean [N, K]: over the frames; mask_embeddings: [N, D] of each frame."""

    mean: Floats
    mask_embeddings: Sequence[Floats]


@dataclass(frozen=True)
class ScoredMask:
    """The mask of one frame, None where it is empty. certainty: the sum of its pixels' probabilities."""

    rle: Rle | None
    certainty: float
    pixels: int


def best_of_video(mean_logits: Floats, top_k: int) -> list[Winner]:
    """The `top_k` best (track, label) pairs of mean logits [N, K + 1], best first."""
    return best_of_scores(softmax(mean_logits)[:, :-1], top_k)


def best_of_scores(scores: Floats, top_k: int) -> list[Winner]:
    """The `top_k` best (track, label) pairs of scores [N, K], best first."""
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    return [Winner(int(at) // scores.shape[1], int(at) % scores.shape[1], float(scores.flat[at])) for at in best]


def mean_over_frames(frames: Iterable[tuple[Floats, Floats]]) -> SlotScores | None:
    """From the scores [N, K] and mask embeddings [N, D] of each frame, in slot order; None without a frame."""
    total = np.zeros(())
    kept: list[Floats] = []
    for scores, mask_embeddings in frames:
        total = total + scores.astype(np.float64)
        kept.append(mask_embeddings)
    return SlotScores((total / len(kept)).astype(np.float32), kept) if kept else None


def embeddings_of_winners(winners: Sequence[Winner], frames: Sequence[Floats]) -> list[dict[int, Floats]]:
    """For each frame's mask embeddings [N, D], those of the winners by slot."""
    slots = sorted({winner.slot for winner in winners})
    return [{slot: mask_embeddings[slot] for slot in slots} for mask_embeddings in frames]


def plain_result(
    network: Network,
    read_frames: ReadFrames,
    winners: Sequence[Winner],
    frames: Sequence[Floats],
    make: Callable[[MaskResize, Floats], Rle | None],
) -> VideoResult:
    """The winners with a mask from `make` in every frame; frames: mask embeddings [N, D] of each."""
    masks = second_reading(network, read_frames(), embeddings_of_winners(winners, frames), make)
    tracks = tuple(VideoTrack(w.label, w.score, tuple(masks[w.slot].values())) for w in winners)
    return VideoResult(len(frames), tracks)


def second_reading(
    network: Network,
    frames: Iterable[Frame],
    requested: Sequence[dict[int, Floats]],
    make: Callable[[MaskResize, Floats], M],
) -> dict[int, dict[int, M]]:
    """Run the network again and call `make` for each mask in `requested`; its results by track and frame.

    `requested`: for each frame, the mask embedding [D] by track. `make` takes the frame's resize and the mask logits
    [h, w], padding included. Raises UsageError if the second reading has another number of frames.
    """
    made: dict[int, dict[int, M]] = {track: {} for embeddings in requested for track in embeddings}
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count > len(requested):
            break
        embeddings = requested[count - 1]
        if not embeddings:
            continue
        [outputs] = network.run_frames([frame])
        resize = mask_resize(outputs.fit)
        logits = network.run_masks(np.stack(list(embeddings.values())), outputs.device)
        for track, mask_logits in zip(embeddings, logits, strict=True):
            made[track][count - 1] = make(resize, mask_logits)
    if count != len(requested):
        raise UsageError(
            f"the video gave {len(requested)} frames at first and {count} or more when read again; "
            "read_frames must read the same frames each time"
        )
    return made


def scored_mask(resize: MaskResize, logits: Floats, judged: MaskResize) -> ScoredMask:
    """The mask at the source's size from logits [h, w]; certainty and pixels at the size that `judged` resizes to."""
    mask = resize.source_mask(resize.crop(logits))
    certainty, pixels = judged.certainty(judged.crop(logits))
    return ScoredMask(None if mask is None else mask.rle, certainty, pixels)


def scored_track(winner: Winner, masks: Mapping[int, ScoredMask], frames: int) -> VideoTrack:
    """The winner's score times the mean probability of its pixels; masks by frame, absent where it is not tracked."""
    quality = sum(mask.certainty for mask in masks.values()) / (sum(mask.pixels for mask in masks.values()) + 1e-6)
    rles = tuple(masks[frame].rle if frame in masks else None for frame in range(frames))
    return VideoTrack(winner.label, winner.score * quality, rles)
