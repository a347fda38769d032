"""Whole tracks of a video, and the second reading that makes their masks.

The official video-level results know their winners only at the end. So the video is read twice: once to follow and to
score, once more to make the masks of the winners alone, and nothing as large as a mask is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from visrt.runtime.errors import UsageError
from visrt.runtime.family import Floats, softmax
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.network import Network

__all__ = ["ReadFrames", "VideoResult", "VideoTrack", "Winner", "best_of_scores", "best_of_video", "second_reading"]

ReadFrames = Callable[[], Iterable[Frame]]
M = TypeVar("M")


@dataclass(frozen=True)
class VideoTrack:
    """One track of the whole video. masks: one a frame at the source's size, None where it is empty."""

    label: int
    score: float
    masks: tuple[Rle | None, ...]


@dataclass(frozen=True)
class VideoResult:
    """The tracks of a video of `frames` frames, in the order of the official code. One may win with several labels."""

    frames: int
    tracks: tuple[VideoTrack, ...]


@dataclass(frozen=True)
class Winner:
    """A track, by its row in the logits, and a label among the best of the video."""

    slot: int
    label: int
    score: float


def best_of_video(mean_logits: Floats, top_k: int) -> list[Winner]:
    """The `top_k` best (track, label) pairs of mean logits [N, K + 1], best first."""
    return best_of_scores(softmax(mean_logits)[:, :-1], top_k)


def best_of_scores(scores: Floats, top_k: int) -> list[Winner]:
    """The `top_k` best (track, label) pairs of scores [N, K], best first."""
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    return [Winner(int(at) // scores.shape[1], int(at) % scores.shape[1], float(scores.flat[at])) for at in best]


def second_reading(
    network: Network,
    frames: Iterable[Frame],
    wanted: Sequence[dict[int, Floats]],
    make: Callable[[MaskResize, Floats], M],
) -> dict[int, dict[int, M]]:
    """What `make` makes of each mask that is wanted, by track and by frame.

    `wanted` has for each frame, by track, the mask embedding [D]. `make` gets the resize of the frame and the mask
    logits [h, w], padding included.
    """
    made: dict[int, dict[int, M]] = {track: {} for embeddings in wanted for track in embeddings}
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count > len(wanted):
            break
        embeddings = wanted[count - 1]
        if not embeddings:
            continue
        [outputs] = network.run_frames([frame])
        resize = mask_resize(outputs.fit)
        logits = network.run_masks(np.stack(list(embeddings.values())), outputs.device)
        for track, mask_logits in zip(embeddings, logits, strict=True):
            made[track][count - 1] = make(resize, mask_logits)
    if count != len(wanted):
        raise UsageError(
            f"the video gave {len(wanted)} frames at first and {count} or more when read again; "
            "read_frames must read the same frames each time"
        )
    return made
