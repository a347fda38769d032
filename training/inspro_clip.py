"""InsPro through a clip, as it is trained: pairs travel from frame to frame, with gradients through the queries.

Boxes travel without, as they do between the stages of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from visrt.models.condinst import STRIDE
from visrt.models.feature_pyramid import PyramidRows
from visrt.models.inspro import FrameMaps, InsPro, Pairs
from visrt.models.interaction import StageOutputs
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.learner import Trained
from visrt.training.losses.inspro import FramePrediction

__all__ = ["TrainedPairs", "Walk", "first_walk", "frame_maps", "seen_of", "walked"]


class Walk(NamedTuple):
    """The state between frames of B clips: pairs [B, N, ...], and object features [B, N, C] of frames before."""

    pairs: Pairs
    past: tuple[Tensor, ...]


def first_walk(network: InsPro, clips: int) -> Walk:
    """The learned pairs for each of `clips`, without a past."""
    queries, proposals = network.first_pairs()
    return Walk(Pairs(queries.expand(clips, -1, -1), proposals.expand(clips, -1, -1)), ())


def walked(network: InsPro, walk: Walk, last: StageOutputs, sizes: Tensor) -> Walk:
    """After a frame in which all stages looked, of which `last` is the last; `sizes` [B, 2] of the pictures."""
    now = last.object_features
    past = torch.stack(walk.past, dim=2) if walk.past else now.new_zeros(*now.shape[:2], 0, now.shape[2])
    counts = torch.ones(past.shape[:3], dtype=torch.bool, device=now.device)
    pairs = Pairs(network.next_queries(now, past, counts), network.next_proposals(last.boxes.detach(), sizes))
    most = network.settings.bank_entries
    return Walk(pairs, (*walk.past, now)[-most:] if most else ())


def frame_maps(maps: FrameMaps, t: int, frames: int) -> FrameMaps:
    """Of the maps of B * T frames those of frame `t` of each clip."""
    rows = maps.pyramid.rows.unflatten(0, (-1, frames))[:, t]
    features = maps.mask_features
    return FrameMaps(
        PyramidRows(rows, maps.pyramid.sizes), None if features is None else features.unflatten(0, (-1, frames))[:, t]
    )


def seen_of(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the part of the network input whose masks are learned: the cells of mask features that show
    the picture of `size`, so that a clip learns the same whatever its batch pads it to.
    """
    height, width = (-(-side // STRIDE) * STRIDE for side in size)
    return height, width


def _within(size: tuple[int, int], frame: FramePrediction) -> FramePrediction:
    """`frame` with the mask features of `seen_of(size)` alone."""
    if frame.mask_features is None:
        return frame
    rows, columns = (side // STRIDE for side in seen_of(size))
    return replace(frame, mask_features=frame.mask_features[:, :rows, :columns])


class TrainedPairs(Trained):
    """An InsPro network through whole clips, as the phase of `settings` says and as its pairs travel."""

    network: InsPro

    def __init__(self, network: InsPro, settings: InsProTrainSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        if self._is_lite:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith("lite_"))
            return
        if not settings.optim.backbone_factor:
            network.backbone.bottom_up.requires_grad_(False)
        if network.settings.bank_frames > 1 and not network.settings.bank_entries:
            network.intra_query_eps.requires_grad_(False)

    @property
    def _is_lite(self) -> bool:
        return self.settings.phase == "lite"

    def train(self, mode: bool = True) -> TrainedPairs:
        """What the lite phase does not train keeps its running statistics too."""
        super().train(mode)
        if mode and self._is_lite:
            self.network.eval()
            self.network.lite_head.train()
        return self

    def forward(
        self, images: Tensor, frames: int, pictures: Sequence[tuple[int, int]] | None = None
    ) -> list[list[FramePrediction]]:
        """Predictions [clip][frame] for clips of `frames` frames, `images` normalised RGB [B * T, 3, H, W].

        pictures: height and width of each clip's pictures in the upper left of the images; None where they fill them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_lite):
            maps = self.network(images)
        pictures = pictures or [(images.shape[-2], images.shape[-1])] * (len(images) // frames)
        sizes = images.new_tensor(pictures)
        walk, predicted = first_walk(self.network, len(pictures)), []
        for t in range(frames):
            predictions, walk = self._look(frame_maps(maps, t, frames), walk, sizes, t)
            predicted.append([_within(size, frame) for size, frame in zip(pictures, predictions, strict=True)])
        return [list(clip) for clip in zip(*predicted, strict=True)]

    def _look(self, maps: FrameMaps, walk: Walk, sizes: Tensor, t: int) -> tuple[list[FramePrediction], Walk]:
        """Frame `t` of every clip: predictions [clip], and what passes on."""
        if not self._is_lite:
            return self._look_wholly(maps, walk, sizes)
        if t < self.settings.key_frames:
            with torch.no_grad():
                return self._look_wholly(maps, walk, sizes)
        stages = self.network.lite(maps.pyramid, walk.pairs, sizes)
        pairs = Pairs(walk.pairs.queries, self.network.next_proposals(stages[-1].boxes.detach(), sizes))
        return self._predictions(stages, maps, self.network.lite_mask_parameters), Walk(pairs, walk.past)

    def _look_wholly(self, maps: FrameMaps, walk: Walk, sizes: Tensor) -> tuple[list[FramePrediction], Walk]:
        stages = self.network.stages(maps.pyramid, walk.pairs, sizes)
        after = walked(self.network, walk, stages[-1], sizes)
        return self._predictions(stages, maps, self.network.mask_parameters), after

    def _predictions(
        self, stages: Sequence[StageOutputs], maps: FrameMaps, masks_of: Callable[[StageOutputs], Tensor]
    ) -> list[FramePrediction]:
        """By clip."""
        parameters: list[Tensor | None] = [None] * len(stages)
        if maps.mask_features is not None:
            first = 0 if self.settings.loss.mask_stages == "every" else len(stages) - 1
            parameters[first:] = [masks_of(stage) for stage in stages[first:]]
        scale_px = self.network.settings.mask_scale_px
        return [
            FramePrediction(
                [StageOutputs(*(tensor[b] for tensor in stage)) for stage in stages],
                [None if one is None else one[b] for one in parameters],
                None if maps.mask_features is None else maps.mask_features[b],
                scale_px,
            )
            for b in range(len(stages[0].boxes))
        ]
