"""A family at work on one stream: outputs of the frame engine in, tracks of each frame out; the state stays here.

Two kinds of families answer to the session in one way: those that decide frame by frame, and those that see clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from visrt.runtime.clip_family import AnyFamily, ClipFamily, RunGraph, Sighting, Tensors
from visrt.runtime.contract import GraphNeed
from visrt.runtime.errors import NumericalError
from visrt.runtime.family import Family, Floats, Track
from visrt.runtime.mask_resize import MaskResize
from visrt.runtime.network import FrameOutputs, Network

__all__ = ["ClipFollower", "FollowedFrame", "Follower", "PlacedFrame", "follower_of", "runner_on"]


@dataclass(frozen=True)
class PlacedFrame:
    """One frame of a clip: what the frame engine says of it, how its masks are resized, and when it is shown."""

    outputs: FrameOutputs
    resize: MaskResize
    now_s: float


@dataclass(frozen=True)
class FollowedFrame:
    """The tracks of one frame, by id; `error` where the network gave NaN or infinity, so that there are none.

    zero_queries, dropped_slots: as counted in SessionEvents.
    """

    tracks: tuple[Track, ...] = ()
    error: NumericalError | None = None
    zero_queries: int = 0
    dropped_slots: int = 0


class Follower(Protocol):
    """A family and its state on one stream."""

    @property
    def state(self) -> Any: ...

    @property
    def clip_frames(self) -> int:
        """Frames that are followed together."""
        ...

    def start(self) -> None:
        """Begins a new stream."""
        ...

    def restart(self) -> None:
        """Forgets all objects; ids go on."""
        ...

    def follow(self, clip: Sequence[PlacedFrame]) -> list[FollowedFrame]:
        """The next frames of the stream, at most `clip_frames`. One with NaN or infinity leaves the state as it was."""
        ...


def follower_of(family: AnyFamily, network: Network) -> FrameFollower | ClipFollower:
    if isinstance(family, ClipFamily):
        return ClipFollower(family, network)
    return FrameFollower(family, network)


def runner_on(outputs: FrameOutputs, network: Network, needs: Mapping[str, GraphNeed]) -> RunGraph:
    """Runs graphs; one whose `needs` name what stays on the device is given that of a frame's `outputs`."""

    def run(graph: str, feeds: Tensors) -> Tensors:
        kept = {role: tensor for role, tensor in outputs.kept.items() if role in needs[graph].inputs}
        return network.run(graph, {**feeds, **kept})

    return run


class FrameFollower:
    """A family that decides frame by frame."""

    clip_frames = 1

    def __init__(self, family: Family[Any], network: Network) -> None:
        self._family, self._network = family, network
        self.start()

    def start(self) -> None:
        self.state = self._family.start()

    def restart(self) -> None:
        self.state = self._family.restart(self.state)

    def follow(self, clip: Sequence[PlacedFrame]) -> list[FollowedFrame]:
        return [self._followed(frame) for frame in clip]

    def _followed(self, frame: PlacedFrame) -> FollowedFrame:
        def masks_of(mask_embeddings: Floats) -> Floats:
            return frame.resize.crop(self._network.run_masks(mask_embeddings, frame.outputs))

        queries = frame.outputs.queries
        try:
            frame.outputs.check_finite()
            tracks, self.state = self._family.associate(queries, masks_of, frame.now_s, self.state)
        except NumericalError as error:
            return FollowedFrame(error=error)
        return FollowedFrame(tuple(tracks), zero_queries=int(np.count_nonzero(~queries.embeddings.any(axis=1))))


class ClipFollower:
    """A family that sees clips. A frame with NaN or infinity is left out of its clip."""

    def __init__(self, family: ClipFamily[Any], network: Network) -> None:
        self._family, self._network, self._needs = family, network, family.needs()
        self.clip_frames = family.clip_frames
        self.start()

    def start(self) -> None:
        self.state = self._family.start(self._network.states)

    def restart(self) -> None:
        self.state = self._family.restart(self.state)

    def follow(self, clip: Sequence[PlacedFrame]) -> list[FollowedFrame]:
        answers: dict[int, FollowedFrame] = {}
        for place, frame in enumerate(clip):
            try:
                frame.outputs.check_finite()
            except NumericalError as error:
                answers[place] = FollowedFrame(error=error)
        sound = [place for place in range(len(clip)) if place not in answers]
        if sound:
            answers |= dict(zip(sound, self._followed([clip[place] for place in sound]), strict=True))
        return [answers[place] for place in range(len(clip))]

    def _followed(self, clip: Sequence[PlacedFrame]) -> list[FollowedFrame]:
        tensors, times_s = [frame.outputs.tensors for frame in clip], [frame.now_s for frame in clip]
        run = runner_on(clip[-1].outputs, self._network, self._needs)
        try:
            answer = self._family.follow(tensors, times_s, run, self.state)
        except NumericalError as error:
            return [FollowedFrame(error=error)] * len(clip)
        self.state = answer.state
        dropped = [answer.dropped_slots] + [0] * (len(clip) - 1)
        return [self._shown(*parts) for parts in zip(clip, answer.sightings, dropped, strict=True)]

    def _shown(self, frame: PlacedFrame, sightings: Sequence[Sighting], dropped_slots: int) -> FollowedFrame:
        if not sightings:
            return FollowedFrame(dropped_slots=dropped_slots)
        embeddings = np.stack([sighting.mask_embedding for sighting in sightings])
        try:
            logits = frame.resize.crop(self._network.run_masks(embeddings, frame.outputs))
        except NumericalError as error:
            return FollowedFrame(error=error, dropped_slots=dropped_slots)
        tracks = tuple(Track(one.id, one.label, one.score, mask) for one, mask in zip(sightings, logits, strict=True))
        return FollowedFrame(tracks, dropped_slots=dropped_slots)
