"""Everything an InsPro or InsPro-lite training run depends on, and which of it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from visrt.models.inspro import InsProSettings
from visrt.runtime.errors import SettingsError
from visrt.training.data.clips import ClipSettings
from visrt.training.losses.inspro import InsProLossSettings
from visrt.training.settings import DataSettings, OptimSettings

__all__ = ["InsProTrainSettings", "check_inspro_settings", "refuse_moved"]

SIZE_DIVISOR = 32


@dataclass(frozen=True)
class InsProTrainSettings:
    """One run.

    phase: "pairs" trains the network of InsPro; "lite" then trains the head for the frames between key frames and
    nothing else, on clips whose first `key_frames` frames are key frames. What travels from frame to frame is a setting
    of the network, `network.propagation`; with "off" it learns as an image network, to begin from as the paper begins
    from COCO, or to compare with.
    init: "imagenet" for EfficientNet-Lite0, a checkpoint path, or nothing. init_takes: all of that checkpoint, which is
    then an InsPro one, or its "backbone" alone, which may be any visrt can read. first_boxes: where proposals begin if
    no checkpoint brings them: the whole "picture", as in Sparse R-CNN, or a "grid" over it, which helps short runs.
    first_lite: where a lite head that no checkpoint brings begins: a copy of the "last" stages and their weight
    generator, which helps short runs, or "random"; the paper does not say.
    """

    family: Literal["inspro"]
    network: InsProSettings
    data: DataSettings
    optim: OptimSettings
    loss: InsProLossSettings = field(default_factory=InsProLossSettings)
    phase: Literal["pairs", "lite"] = "pairs"
    key_frames: Annotated[int, Field(ge=1)] = 3
    init: str | None = None
    init_takes: Literal["network", "backbone"] = "network"
    first_boxes: Literal["picture", "grid"] = "picture"
    first_lite: Literal["last", "random"] = "last"
    seed: int = 0
    save_every: int = 250
    validate_every: int = 250

    @property
    def learns_masks(self) -> bool:
        """Whether it trains on masks, which a set of boxes lacks."""
        return self.network.outputs == "masks"


def refuse_moved(values: Mapping[str, Any], where: str) -> None:
    """Refuse a settings file of before `propagation` became a setting of the network. Raises SettingsError."""
    if "propagation" in values:
        raise SettingsError(
            f"{where}: setting 'propagation' is {values['propagation']!r}, but belongs into 'network' now, so that a "
            'bundle does what was trained; give network.propagation "both" in place of "on", or "queries", "proposals" '
            'or "off"'
        )


def check_inspro_settings(settings: InsProTrainSettings) -> None:
    """Refuse what contradicts itself. Raises SettingsError."""
    _check_clips(settings)
    if settings.phase == "lite":
        _check_lite(settings)
    elif settings.network.lite_stages:
        raise SettingsError(
            f"network.lite_stages is {settings.network.lite_stages}, but phase is 'pairs', in which the lite head "
            "learns nothing; leave it at 0, or begin phase 'lite' from this phase's checkpoint"
        )


def _check_clips(settings: InsProTrainSettings) -> None:
    clips, network = settings.data.clips, settings.network
    if settings.phase == "pairs" and network.propagation != "off" and clips.frames < 2:
        raise SettingsError(
            f"data.clips.frames is {clips.frames}, but network.propagation is {network.propagation!r}, which is "
            "learned from frame to frame; give clips of 3 frames as published, or 'off'"
        )
    if network.queries < clips.max_objects:
        raise SettingsError(
            f"network.queries is {network.queries}, but a clip may hold data.clips.max_objects = {clips.max_objects} "
            "objects, each of which keeps its query; give as many queries at least"
        )
    if clips.view is None:
        _check_fixed_frames(clips)


def _check_fixed_frames(clips: ClipSettings) -> None:
    if clips.height_px % SIZE_DIVISOR or clips.width_px % SIZE_DIVISOR:
        raise SettingsError(
            f"data.clips is {clips.height_px} x {clips.width_px} pixels; both must be divisible by {SIZE_DIVISOR}, as "
            "the pyramid's levels are"
        )
    if clips.camera.letterbox:
        raise SettingsError(
            f"data.clips.camera.letterbox is {clips.camera.letterbox}, but boxes are parts of the picture, and a frame "
            "that the camera pads does not say which part is picture; set it to 0"
        )


def _check_lite(settings: InsProTrainSettings) -> None:
    if not settings.network.lite_stages:
        raise SettingsError("phase is 'lite', but network.lite_stages is 0; give the lite head a stage, as published")
    if settings.data.clips.frames <= settings.key_frames:
        raise SettingsError(
            f"data.clips.frames is {settings.data.clips.frames} and key_frames {settings.key_frames}: no frame is left "
            "for the lite head; published are 5, of which 3 are key frames"
        )
    if not settings.network.proposals_travel:
        raise SettingsError(
            f"network.propagation is {settings.network.propagation!r}, but the lite head moves boxes that travel; "
            "expected 'both' or 'proposals', as phase 'pairs' was trained"
        )
    if settings.init in (None, "", "imagenet") or settings.init_takes != "network":
        raise SettingsError(
            f"init is {settings.init!r} and init_takes {settings.init_takes!r}, but in phase 'lite' all else stays as "
            "it is; give the checkpoint of phase 'pairs', and take the network"
        )
