"""Everything a training run of EoMT depends on, and which of it contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from visrt.models.checkpoints.start import Takes
from visrt.models.eomt import EomtSettings
from visrt.runtime.errors import SettingsError
from visrt.training.losses.mask2former import LossSettings
from visrt.training.settings import DataSettings, OptimSettings

__all__ = ["EomtTrainSettings", "check_eomt_settings", "check_vit_run"]

SIZE_DIVISOR = 32
"""Batches are padded to multiples of it."""


@dataclass(frozen=True)
class EomtTrainSettings:
    """One run on images, also the segmenter stage from which VidEoMT starts.

    How VidEoMT's segmenter was trained is not released. Here it is EoMT's own training on single frames of the video
    set and photos of COCO, with its fading masked attention, and in the published recipes with the sizes, crops and
    layer decay of the online stage that follows.

    masked_attention: "fading" as published: a query sees of the patches only those in the mask that was predicted
    before the block, with a probability that falls to zero block after block (`fading_masks`). "off" trains what is
    run from the first step.
    init: the path of a DINOv2 or DINOv3 transformer, of EoMT or of VidEoMT, or nothing. init_takes: all that fits of
    it, or its transformer ("backbone") alone.
    """

    family: Literal["eomt"]
    network: EomtSettings
    data: DataSettings
    optim: OptimSettings
    loss: LossSettings = field(default_factory=LossSettings)
    masked_attention: Literal["fading", "off"] = "fading"
    init: str | None = None
    init_takes: Takes = "network"
    seed: int = 0
    save_every: int = 250
    validate_every: int = 250

    @property
    def learns_masks(self) -> bool:
        """Whether it trains on masks, which a set of boxes lacks."""
        return True


def check_eomt_settings(settings: EomtTrainSettings) -> None:
    """Refuse what contradicts itself. Raises SettingsError."""
    check_vit_run(settings.network, settings.data, settings.loss)


def check_vit_run(network: EomtSettings, data: DataSettings, loss: LossSettings) -> None:
    """Refuse what neither EoMT nor VidEoMT can train with. Raises SettingsError."""
    if SIZE_DIVISOR % network.patch:
        raise SettingsError(
            f"network.patch is {network.patch}, but frames are padded to multiples of {SIZE_DIVISOR} pixels; give a "
            "patch that divides them, 16 as published"
        )
    if network.queries < data.clips.max_objects:
        raise SettingsError(
            f"network.queries is {network.queries}, but a clip may hold data.clips.max_objects = "
            f"{data.clips.max_objects} objects, each of which needs a query; give as many queries at least"
        )
    if loss.contrast != "off" or loss.identity_weight:
        raise SettingsError(
            "loss.contrast and loss.identity_weight train embeddings of Mask2Former, which this network does not have; "
            "switch them off"
        )
