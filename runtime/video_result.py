"""The official video-level result, by which published AP is measured. For benchmarks: streams never use it.

It needs the whole video before it can say anything, so it reads the video twice: once to follow all queries and
average their class logits, once more to make the masks of the winners alone. What it keeps grows by the mask
embeddings of a frame, [Q, D] float32: 100 KB a frame for 100 queries of 256 channels. The RLEs of the winners come
on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from visrt.runtime.errors import UsageError
from visrt.runtime.family import Floats, softmax
from visrt.runtime.image import Frame
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.minvis import match_to_slots
from visrt.runtime.network import Network
from visrt.runtime.session import Session

__all__ = ["OFFICIAL_RULES", "VideoResult", "VideoTrack", "Winner", "best_of_video", "official_result"]

ReadFrames = Callable[[], Iterable[Frame]]


@dataclass(frozen=True)
class VideoTrack:
    """One track of the whole video. masks: one a frame at the source's size, None where it is empty."""

    label: int
    score: float
    masks: tuple[Rle | None, ...]


@dataclass(frozen=True)
class VideoResult:
    """The tracks of a video of `frames` frames, best first. One slot may win with several labels."""

    frames: int
    tracks: tuple[VideoTrack, ...]


@dataclass(frozen=True)
class Winner:
    """A slot and a label among the best of the video."""

    slot: int
    label: int
    score: float


@dataclass(frozen=True)
class Recording:
    """What is kept of the first reading, in slot order: mean_logits [Q, K + 1]; mask_embeddings [Q, D] a frame."""

    mean_logits: Floats
    mask_embeddings: list[Floats]


def official_result(session: Session, read_frames: ReadFrames, top_k: int = 10) -> VideoResult:
    """The official result of the session's family; `read_frames()` reads the video from its start, called twice.

    Leaves the stream of `session` as it is: only its engines are used.
    """
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}; expected 1 or more")
    return OFFICIAL_RULES[session.manifest.family](session.network, read_frames, top_k)


def minvis_result(network: Network, read_frames: ReadFrames, top_k: int) -> VideoResult:
    """MinVIS: mean class logits of each slot over all frames, the best (slot, label) pairs, masks without a score."""
    recording = _record(network, read_frames())
    if recording is None:
        return VideoResult(0, ())
    winners = best_of_video(recording.mean_logits, top_k)
    masks = _masks_of_winners(network, read_frames(), recording, sorted({winner.slot for winner in winners}))
    tracks = tuple(VideoTrack(winner.label, winner.score, tuple(masks[winner.slot])) for winner in winners)
    return VideoResult(len(recording.mask_embeddings), tracks)


OFFICIAL_RULES: dict[str, Callable[[Network, ReadFrames, int], VideoResult]] = {"minvis": minvis_result}


def best_of_video(mean_logits: Floats, top_k: int) -> list[Winner]:
    """The `top_k` best (slot, label) pairs of mean logits [Q, K + 1], best first."""
    scores = softmax(mean_logits)[:, :-1]
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    return [Winner(int(at) // scores.shape[1], int(at) % scores.shape[1], float(scores.flat[at])) for at in best]


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


def _masks_of_winners(
    network: Network, frames: Iterable[Frame], recording: Recording, slots: list[int]
) -> dict[int, list[Rle | None]]:
    """The second reading: a mask a frame for each of `slots`."""
    masks: dict[int, list[Rle | None]] = {slot: [] for slot in slots}
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count > len(recording.mask_embeddings):
            break
        [outputs] = network.run_frames([frame])
        resize = mask_resize(outputs.fit)
        logits = resize.crop(network.run_masks(recording.mask_embeddings[count - 1][slots], outputs))
        for slot, mask_logits in zip(slots, logits, strict=True):
            mask = resize.source_mask(mask_logits)
            masks[slot].append(None if mask is None else mask.rle)
    if count != len(recording.mask_embeddings):
        raise UsageError(
            f"the video gave {len(recording.mask_embeddings)} frames at first and {count} or more when read again; "
            "read_frames must read the same frames each time"
        )
    return masks
