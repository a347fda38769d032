"""Settings for training GenVIS: its video part, what becomes of a video's frames, and the paper's ablations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import SettingsError
from visrt.runtime.methods.genvis import MemoryRead
from visrt.training.genvis_start import NewPart

__all__ = ["GenVisTraining", "check_genvis"]

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class GenVisTraining:
    """The defaults are the release's, online. The frame part is the run's `network`, from `init`, and stays as it is.

    stage: "genvis", or "vita", the step before it: frame part and VITA's part learn together, with the losses of both,
    from one clip of all frames and without a memory. As released, that is 5 frames of 41 on YouTube-VIS 2019 and 6 of
    17 on the other sets, from a Mask2Former of COCO, with new_part "random", at the learning rate and batch of GenVIS.
    instances, heads, encoder_layers, decoder_layers, feedforward_dim: of the video part, see GenVisNetworkSettings.
    clip_frames: a video's frames, data.clips.frames, are cut into clips of so many; 1 is online. streams: each of the
    last so many layers of the frame decoder gives frame queries, and so a video of its own.
    memory: a slot reads its "own_slot", or for the paper's ablations (table 5) "all_slots" or "nothing"; set the
    bundle's memory_read to the same. assignment: of objects to slots over the clips of a video: "unified" as released;
    "strict" as the paper has it, where a slot is never given away; "correspondence", where the pairs of the first clip
    hold and newcomers are not learned (table 4); or "each_clip" by itself. similarity_weight: of the loss that tells by
    inner products which frame queries and slots are one object.
    new_part: what of a video part that no checkpoint has starts as the frame part: its class and mask heads
    ("frame_heads"), which do the same for a clip; all of it ("frame_queries"), so that slots follow the frame queries
    that are like them from the first step; or nothing ("random").
    """

    stage: Literal["genvis", "vita"] = "genvis"
    instances: Count = 100
    heads: Count = 8
    encoder_layers: Count = 6
    decoder_layers: Count = 3
    feedforward_dim: Count = 2048
    clip_frames: Count = 1
    streams: Count = 3
    memory: MemoryRead = "own_slot"
    assignment: Literal["unified", "strict", "correspondence", "each_clip"] = "unified"
    similarity_weight: Annotated[float, Field(ge=0)] = 0.5
    new_part: NewPart = "frame_heads"

    def network(self, frame: NetworkSettings) -> GenVisNetworkSettings:
        """The whole network on the frame part `frame`."""
        return GenVisNetworkSettings(
            frame, self.instances, self.heads, self.encoder_layers, self.decoder_layers, self.feedforward_dim
        )


def check_genvis(settings: GenVisTraining, network: NetworkSettings, frames: int, max_objects: int) -> None:
    """Refuse what cannot be trained on videos of `frames` frames with up to `max_objects`. Raises SettingsError."""
    if settings.stage == "vita":
        _check_vita(settings, frames)
    elif frames % settings.clip_frames or frames < 2 * settings.clip_frames:
        raise SettingsError(
            f"data.clips.frames is {frames} and genvis.clip_frames {settings.clip_frames}; expected a video of two or "
            f"more whole clips, such as {5 * settings.clip_frames} frames"
        )
    if settings.instances < max_objects:
        raise SettingsError(
            f"genvis.instances is {settings.instances}, but data.clips.max_objects is {max_objects}: every object of "
            "a video needs a slot of its own; raise the one or lower the other"
        )
    if settings.new_part == "frame_queries" and settings.instances != network.queries:
        raise SettingsError(
            f"genvis.new_part is 'frame_queries' and genvis.instances {settings.instances}, but there are "
            f"{network.queries} frame queries (network.queries); give as many instances"
        )
    if settings.streams > network.decoder_layers:
        raise SettingsError(
            f"genvis.streams is {settings.streams}, but the frame decoder has {network.decoder_layers} layers "
            "(network.decoder_layers); give at most as many"
        )
    if network.hidden_dim % settings.heads:
        raise SettingsError(
            f"genvis.heads is {settings.heads}, which does not divide network.hidden_dim, {network.hidden_dim}"
        )
    if network.reid_dim:
        raise SettingsError(
            f"network.reid_dim is {network.reid_dim}, but in GenVIS slots are objects and nothing is compared; "
            "set it to 0 (a checkpoint's instance-embedding head is left out)"
        )


def _check_vita(settings: GenVisTraining, frames: int) -> None:
    if frames != settings.clip_frames:
        raise SettingsError(
            f"data.clips.frames is {frames} and genvis.clip_frames {settings.clip_frames}, but genvis.stage 'vita' "
            "learns from one clip of all frames; give the same number twice, 5 or 6 as released"
        )
    if settings.new_part == "frame_queries":
        raise SettingsError(
            "genvis.new_part is 'frame_queries', which is made for a frame part that stays as it is; with genvis.stage "
            "'vita' give 'random' as released, or 'frame_heads'"
        )
