"""The video-level rule of each family, by which published AP is measured.

Memory grows with the video by the mask embeddings of each frame: at most [Q, D] float32, 100 KB per frame for 100
queries of 256 channels, and by the RLEs of the best tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visrt.benchmarks.video_level.ctvis import ctvis_result
from visrt.benchmarks.video_level.genvis import genvis_result, room_for_video
from visrt.benchmarks.video_level.inspro import inspro_result
from visrt.benchmarks.video_level.minvis import minvis_result
from visrt.benchmarks.video_level.tracks import ReadFrames, VideoResult
from visrt.benchmarks.video_level.videomt import videomt_result
from visrt.runtime.errors import UsageError
from visrt.runtime.methods.ctvis import CtVis
from visrt.runtime.methods.genvis import GenVis
from visrt.runtime.methods.inspro import InsPro
from visrt.runtime.methods.method import TrackingMethod
from visrt.runtime.methods.minvis import MinVis
from visrt.runtime.methods.videomt import VideoMt
from visrt.runtime.network import Network
from visrt.runtime.session import Session

__all__ = ["OFFICIAL_RULES", "OfficialRule", "official_result", "official_rule"]


@dataclass(frozen=True)
class OfficialRule:
    """make: the result from engines, family, video and number of (track, label) pairs; None is the published number.

    settings: the association settings that change the result; None is all of them. top_k: the number of pairs that
    was published for a public set, by its key in OFFICIAL_SETS, where it is not that of `make`. room_for: the
    association settings with which a session's engines have room for a video, from the family's settings and the number
    of its frames.
    """

    make: Callable[[Network, Any, ReadFrames, int | None], VideoResult]
    settings: tuple[str, ...] | None = None
    top_k: Mapping[str, int] = field(default_factory=dict)
    room_for: Callable[[Any, int], Mapping[str, Any]] = lambda settings, frames: {}


OFFICIAL_RULES: dict[type[Any], OfficialRule] = {
    InsPro: OfficialRule(inspro_result),
    MinVis: OfficialRule(minvis_result, settings=("similarity",)),
    CtVis: OfficialRule(ctvis_result),
    GenVis: OfficialRule(genvis_result, top_k={"ovis": 20}, room_for=room_for_video),
    VideoMt: OfficialRule(videomt_result, settings=(), top_k={"ovis": 20}),
}


def official_rule(family: TrackingMethod[Any]) -> OfficialRule:
    """The rule of `family`; UsageError if it has none."""
    if type(family) not in OFFICIAL_RULES:
        raise UsageError(f"{type(family).__name__} has no official video-level result; use the causal one")
    return OFFICIAL_RULES[type(family)]


def official_result(session: Session, read_frames: ReadFrames, top_k: int | None = None) -> VideoResult:
    """The official result of the session's family. `read_frames()` reads the video from its start and is called twice,
    with a bundle of several sizes once more for the size of the frames.

    Uses only the engines of `session`; its stream stays as it is. `top_k`: pairs of track and label, by default the
    published number.
    """
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k is {top_k}; expected 1 or more")
    network = session.network
    if len(session.networks) > 1 and (first := next(iter(read_frames()), None)) is not None:
        network = session.networks.of(first.shape[:2])
    return official_rule(session.method).make(network, session.method, read_frames, top_k)
