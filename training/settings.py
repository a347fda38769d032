"""Everything a training run depends on, in one file it can be repeated from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from visrt.models.checkpoints.start import Takes
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import SettingsError
from visrt.training.data.clips import ClipSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_settings import GenVisTraining, check_genvis
from visrt.training.losses.mask2former import LossSettings

__all__ = ["DataSettings", "LayerRates", "OptimSettings", "StopSettings", "TrainSettings", "check_settings"]


@dataclass(frozen=True)
class DataSettings:
    """The sources of clips. Paths are relative to the folder the command runs in.

    clips: size, frames a clip (MinVIS 1, the identity loss 2, CTVIS 8 to 10), motion, pasting, looks. workers:
    processes that make clips. validation_clips: held-out clips of `validation_frames` frames each, to watch the run
    with; 0 = none.
    """

    sources: tuple[SourceSettings, ...]
    clips: ClipSettings
    workers: int = 1
    validation_clips: int = 12
    validation_frames: int = 6


@dataclass(frozen=True)
class StopSettings:
    """Early stop: a run ends when `quality` on held-out clips has not improved for so many `validations`.

    The weights shipped are those of the best validation. "held" is InsPro's, "linked" that of all others.
    """

    quality: Literal["recall", "precision", "linked", "held"] = "recall"
    validations: Annotated[int, Field(ge=1)] = 5


@dataclass(frozen=True)
class LayerRates:
    """Learning rates by depth of a plain vision transformer.

    decay: a block learns at so many times the rate of the next, the last at the whole rate; the embeddings learn as the
    first block. whole_blocks: so many last blocks learn at the whole rate, whatever `decay` makes of the others.
    warmup_steps: the transformer stays as it is while the heads warm up, then warms up over so many steps.
    """

    decay: Annotated[float, Field(gt=0, le=1)] = 0.6
    whole_blocks: Annotated[int, Field(ge=0)] = 0
    warmup_steps: Annotated[int, Field(ge=0)] = 1000


@dataclass(frozen=True)
class OptimSettings:
    """AdamW as published: learning rate 1e-4, backbone x0.1, weight decay 0.05, gradient norm clipped at 0.01.

    batch: clips a step, over all processes. clips_at_once: the most that one process holds at a time; a step of more
    adds up gradients; None: as many as fall on a process. checkpoint_activations: activations of the backbone, pixel
    decoder and decoder are computed again in the backward pass, for long clips. schedule: "steps" multiplies the rate
    by 0.1 at each fraction in `decay_at`; "trapezoid" warms up, holds, and falls to zero over the last `cooldown`
    fraction; "polynomial" warms up and falls to zero as (1 - progress) ** 0.9. layers: of a plain vision transformer,
    in place of `backbone_factor`, with schedule "polynomial"; then everything has weight decay, norms too. clip_norm:
    0 = the gradient is not clipped. ema_decay: weights shipped are a running average of the trained ones; 0 = off.
    stop: None = all steps.
    """

    steps: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)] = 16
    clips_at_once: Annotated[int, Field(ge=1)] | None = None
    checkpoint_activations: bool = False
    lr: float = 1e-4
    backbone_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    warmup_steps: int = 10
    schedule: Literal["steps", "trapezoid", "polynomial"] = "steps"
    layers: LayerRates | None = None
    decay_at: tuple[float, ...] = (0.667,)
    cooldown: float = 0.2
    ema_decay: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    stop: StopSettings | None = None


@dataclass(frozen=True)
class TrainSettings:
    """One run. init: "imagenet" for EfficientNet-Lite0, the path of an ImageNet backbone or a checkpoint, or nothing.

    init_takes: of that file all that fits by name and shape, or its "backbone" alone.
    genvis: train GenVIS's video part on the frame network from `init`, or VITA; None = train the frame network.
    """

    network: NetworkSettings
    data: DataSettings
    optim: OptimSettings
    loss: LossSettings = field(default_factory=LossSettings)
    genvis: GenVisTraining | None = None
    init: str | None = None
    init_takes: Takes = "network"
    seed: int = 0
    save_every: int = 250
    validate_every: int = 250

    @property
    def learns_masks(self) -> bool:
        """Whether it trains on masks, which a set of boxes lacks."""
        return True


def check_settings(settings: TrainSettings) -> None:
    """Refuse losses over clips where there is nothing for them to compare. Raises SettingsError."""
    if settings.genvis is not None:
        _check_video_part(settings, settings.genvis)
        return
    loss, frames = settings.loss, settings.data.clips.frames
    contrast = loss.contrast != "off"
    if (contrast or loss.identity_weight) and frames < 2:
        raise SettingsError(
            f"data.clips.frames is {frames}, but {'loss.contrast' if contrast else 'loss.identity_weight'} compares "
            "the frames of a clip; give clips of 2 frames or more, or switch it off"
        )
    if contrast and not settings.network.reid_dim:
        raise SettingsError(
            "network.reid_dim is 0, but loss.contrast trains the instance-embedding head; "
            "give it a size, 256 as published"
        )


def _check_video_part(settings: TrainSettings, genvis: GenVisTraining) -> None:
    check_genvis(genvis, settings.network, settings.data.clips.frames, settings.data.clips.max_objects)
    if genvis.stage != "vita" and settings.init in (None, "", "imagenet"):
        raise SettingsError(
            f"init is {settings.init!r}, but under genvis the frame network stays as it is; give the path of a "
            "checkpoint: Mask2Former, VITA or GenVIS"
        )
    if settings.loss.contrast != "off" or settings.loss.identity_weight:
        raise SettingsError(
            "loss.contrast and loss.identity_weight train the embeddings of the frame network, which under genvis "
            "are not compared; switch them off"
        )
