"""Everything a training run of VidEoMT depends on, and which of it contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from visrt.models.checkpoints.start import Takes
from visrt.models.videomt import VideoMtSettings
from visrt.runtime.errors import SettingsError
from visrt.training.losses.mask2former import LossSettings
from visrt.training.losses.videomt import AbsentLabels
from visrt.training.settings import DataSettings, OptimSettings
from visrt.training.vit.eomt_settings import check_vit_run

__all__ = ["VideoMtTrainSettings", "check_videomt_settings"]


@dataclass(frozen=True)
class VideoMtTrainSettings:
    """One run of the online stage: clips whose queries travel from frame to frame, with the gradient through all.

    absent_labels: what an object is taught as that is not in the last frame of its clip: its "own" class, or "released"
    as the released code does, by mistake, the last class.
    init: the path of a trained EoMT (the segmenter), of VidEoMT, or of a DINOv2 or DINOv3 transformer, or nothing.
    init_takes: all that fits of it, or its transformer ("backbone") alone. first_updater: what a query updater does
    that no file brings: "random" as any linear layer, or "nothing", so that each frame starts as the segmenter's, which
    helps short runs.
    """

    family: Literal["videomt"]
    network: VideoMtSettings
    data: DataSettings
    optim: OptimSettings
    loss: LossSettings = field(default_factory=LossSettings)
    absent_labels: AbsentLabels = "own"
    init: str | None = None
    init_takes: Takes = "network"
    first_updater: Literal["random", "nothing"] = "random"
    seed: int = 0
    save_every: int = 250
    validate_every: int = 250

    @property
    def learns_masks(self) -> bool:
        """Whether it trains on masks, which a set of boxes lacks."""
        return True


def check_videomt_settings(settings: VideoMtTrainSettings) -> None:
    """Refuse what contradicts itself. Raises SettingsError."""
    check_vit_run(settings.network, settings.data, settings.loss)
    if settings.data.clips.frames < 2:
        raise SettingsError(
            f"data.clips.frames is {settings.data.clips.frames}, but queries travel from frame to frame; give clips of "
            "5 frames as published, or train images as EoMT"
        )
