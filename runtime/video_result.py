"""The official video-level results, by which published AP is measured. For benchmarks: streams never use them.

What is kept grows with the video by the mask embeddings of a frame: at most [Q, D] float32, 100 KB a frame for 100
queries of 256 channels. The RLEs of the winners come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visrt.runtime.ctvis import CtVis
from visrt.runtime.ctvis_video import ctvis_result
from visrt.runtime.errors import UsageError
from visrt.runtime.genvis import GenVis
from visrt.runtime.genvis_video import genvis_result
from visrt.runtime.inspro import InsPro
from visrt.runtime.inspro_video import inspro_result
from visrt.runtime.method import TrackingMethod
from visrt.runtime.minvis import MinVis
from visrt.runtime.minvis_video import minvis_result
from visrt.runtime.network import Network
from visrt.runtime.session import Session
from visrt.runtime.video_tracks import ReadFrames, VideoResult, VideoTrack, Winner, best_of_video

__all__ = [
    "OFFICIAL_RULES",
    "OfficialRule",
    "VideoResult",
    "VideoTrack",
    "Winner",
    "best_of_video",
    "official_result",
    "official_rule",
]


@dataclass(frozen=True)
class OfficialRule:
    """How a family's result is made: from its engines, itself, the video, and how many tracks are wanted at most.

    None for the last takes the published number. takes_settings: whether association settings play a part.
    """

    make: Callable[[Network, Any, ReadFrames, int | None], VideoResult]
    takes_settings: bool


OFFICIAL_RULES: dict[type[Any], OfficialRule] = {
    InsPro: OfficialRule(inspro_result, takes_settings=True),
    MinVis: OfficialRule(minvis_result, takes_settings=False),
    CtVis: OfficialRule(ctvis_result, takes_settings=True),
    GenVis: OfficialRule(genvis_result, takes_settings=True),
}


def official_rule(family: TrackingMethod[Any]) -> OfficialRule:
    """The rule of `family`. Raises UsageError for one without."""
    if type(family) not in OFFICIAL_RULES:
        raise UsageError(f"{type(family).__name__} has no official video-level result; use the causal one")
    return OFFICIAL_RULES[type(family)]


def official_result(session: Session, read_frames: ReadFrames, top_k: int | None = None) -> VideoResult:
    """The official result of the session's family; `read_frames()` reads the video from its start, called twice.

    Leaves the stream of `session` as it is: only its engines are used. `top_k` pairs of track and label, by default
    as many as published.
    """
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k is {top_k}; expected 1 or more")
    return official_rule(session.method).make(session.network, session.method, read_frames, top_k)
