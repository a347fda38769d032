"""GenVIS through a whole training video: frame queries of all its frames at once, then clip after clip.

Prototypes and memory pass from clip to clip with their gradients, as released; the frame part has none. And VITA, for
which the video is one clip, and whose frame part learns too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from visrt.models.decoder import LayerPrediction
from visrt.models.genvis import GenVis, NextStart, Vita, VitaModule, read_memory
from visrt.runtime.methods.genvis import MemoryRead
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.learner import Trained
from visrt.training.losses.genvis import ClipPrediction, VideoOutputs

__all__ = ["ClipPrediction", "TrainedVideo", "TrainedVita", "VideoOutputs", "VitaOutputs"]

Read = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]


def read_across_slots(key: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Table 5's "global" reading: each slot, with `key` [N, S, C], sees what all slots were; as `read_memory` else."""
    if not keys:
        return torch.zeros_like(key)
    similarity = torch.einsum("nsc,nmc->nsm", key, torch.cat(keys, dim=1))
    return torch.einsum("nsm,nmc->nsc", similarity.softmax(dim=2), torch.cat(values, dim=1))


TORCH_READS: dict[MemoryRead, Read] = {
    "own_slot": read_memory,
    "all_slots": read_across_slots,
    "nothing": lambda key, keys, values: torch.zeros_like(key),
}
"""The readings of the runtime, with gradients."""


class TrainedVideo(Trained):
    """The network as the losses want it. Only what they use of the video part is trained."""

    network: GenVis

    def __init__(self, network: GenVis, settings: GenVisTraining) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        network.requires_grad_(False)
        network.vita_module.requires_grad_(True)
        for name in _unused(settings):
            network.vita_module.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor, frames: int) -> VideoOutputs:
        """`images` [B * F, 3, H, W], normalised RGB, of videos of F = `frames` frames."""
        vita = self.network.vita_module
        with torch.no_grad():
            layers, frame_mask_features, fine = _frame_part(self.network, images)
        layers = layers[-self.settings.streams :]
        clips = _streams(layers, frames).split(self.settings.clip_frames, dim=1)
        mask_features = vita.vita_mask_features(fine).unflatten(0, (-1, frames))
        return VideoOutputs(self._clips(clips), mask_features, layers, frame_mask_features)

    def _clips(self, clips: tuple[Tensor, ...]) -> list[ClipPrediction]:
        """The predictions for `clips`, each [N, T, Q, C]."""
        vita, read = self.network.vita_module, TORCH_READS[self.settings.memory]
        start = NextStart(*(one.expand(len(clips[0]), -1, -1) for one in self.network.first_start()))
        keys, values = list[Tensor](), list[Tensor]()
        predictions = []
        for clip in clips:
            tokens = vita.encode(clip)
            outputs = vita.decode(tokens, start.base + read(start.key, keys, values))
            predictions.append(_prediction(vita, tokens.unflatten(1, clip.shape[1:3]), outputs.layers))
            start = vita.next_start(outputs.prototypes)
            for memory, entry in zip((keys, values), vita.memory_entry(outputs.prototypes), strict=True):
                memory.append(entry)
        return predictions


class VitaOutputs(NamedTuple):
    """video: of the one clip. frame_layers: all predictions of the frame decoder, for the losses of frames."""

    video: VideoOutputs
    frame_layers: list[LayerPrediction]


class TrainedVita(Trained):
    """VITA as the losses want it: one clip of all frames, which starts from the learned queries; all of it learns.

    The encoder attends to the whole clip. In training that is what was released, as its windows of 6 frames hold the
    clips of 5 or 6; its shifted windows are for longer videos at test, and GenVIS, which goes on from here, has none.
    """

    network: Vita

    def __init__(self, network: Vita, settings: GenVisTraining) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        for name in SIMILARITY if not settings.similarity_weight else ():
            network.vita_module.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor, frames: int) -> VitaOutputs:
        """`images` [B * F, 3, H, W], normalised RGB, of videos of F = `frames` frames."""
        vita = self.network.vita_module
        every_layer, frame_mask_features, fine = _frame_part(self.network, images)
        layers = every_layer[-self.settings.streams :]
        clip = _streams(layers, frames)
        tokens = vita.encode(clip)
        outputs = vita.decode(tokens, vita.query_feat.weight.expand(len(clip), -1, -1))
        predicted = _prediction(vita, tokens.unflatten(1, clip.shape[1:3]), outputs.layers)
        mask_features = vita.vita_mask_features(fine).unflatten(0, (-1, frames))
        return VitaOutputs(VideoOutputs([predicted], mask_features, layers, frame_mask_features), every_layer)


def _frame_part(network: Vita, images: Tensor) -> tuple[list[LayerPrediction], Tensor, Tensor]:
    """Predictions of all layers of the frame decoder, its mask features, and the map that those are made of."""
    decoder = network.sem_seg_head.pixel_decoder
    fine, levels = decoder.maps(network.backbone(images))
    mask_features = decoder.mask_features(fine)
    return network.sem_seg_head.predictor(levels, mask_features), mask_features, fine


def _streams(layers: list[LayerPrediction], frames: int) -> Tensor:
    """The frame queries [L * B, F, Q, C] of L `layers`, each a video of its own, those of a layer together."""
    queries: Tensor = torch.stack([layer.queries for layer in layers]).unflatten(1, (-1, frames))
    return queries.flatten(0, 1)


SIMILARITY = ("sim_embed_frame", "sim_embed_clip")
"""Modules that only the similarity loss uses."""


def _prediction(vita: VitaModule, tokens: Tensor, layers: list[Tensor]) -> ClipPrediction:
    """The outputs of the heads; `tokens` [N, T, Q, C], the raw output of each decoder layer [N, S, C]."""
    pairs = [vita.predict(layer) for layer in layers]
    slots = vita.sim_embed_clip(vita.decoder_norm(layers[-1]))
    return ClipPrediction([p[0] for p in pairs], [p[1] for p in pairs], vita.sim_embed_frame(tokens), slots)


def _unused(settings: GenVisTraining) -> list[str]:
    """Modules of the video part that no loss reaches."""
    names = []
    if settings.memory == "nothing":
        names += ["pre_memory_embed_k", "pre_memory_embed_v", "pre_query_embed_k"]
    if not settings.similarity_weight:
        names += SIMILARITY
    return names
