"""InsPro and InsPro-lite (He et al., NeurIPS 2022): query-proposal pairs that travel from frame to frame.

Frame by frame it is Sparse R-CNN with CondInst's masks, started from the pairs of the frame before: pair i is the same
object throughout the video. A query also looks at what it was in the last frames. The lite variant looks at most frames
with one stage in place of six. No official code was to be had; where the paper is silent, the official code of the two
networks it builds on decides, and after that a setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from visrt.models.condinst import MaskBranch, parameter_count, placed
from visrt.models.feature_pyramid import FeaturePyramid, PyramidRows, pyramid_rows
from visrt.models.interaction import InteractionStage, StageOutputs
from visrt.models.mask2former import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, BackboneSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.roi_align import Outside

__all__ = [
    "INSPRO_R50",
    "INSPRO_R50_LITE",
    "INSPRO_VID_R101",
    "FrameMaps",
    "InsPro",
    "InsProSettings",
    "Pairs",
    "clipped",
    "entries_that_count",
]


@dataclass(frozen=True)
class InsProSettings:
    """The architecture. The defaults are the published R50 network, and where nothing is published as said below.

    dynamic_dim: channels between a stage's two dynamic convolutions. class_layers, box_layers: hidden layers of the
    heads. outputs: "boxes" is InsPro-VID, without masks. mask_channels, mask_convolutions, mask_features: the mask
    branch, as in CondInst; the weight generator is one linear layer, the published count of parameters speaks for both.
    mask_scale_px: what relative places are divided by; CondInst takes it from the level, which a box head lacks.
    outside: what a box reads outside the picture, its nearest "edge", as RoIAlign written in Python does, or "zero"
    beyond a pixel, as detectron2's compiled one: the choice for weights that were trained with it.
    propagation: what a frame takes from the frame before: "both" its queries and proposals, or one of them, and the
    other as learned; "off" makes an image network of it. bank_frames: frames that intra-query attention sees, this one
    included; 1 = no such attention.
    importance: whether a past frame counts with one number or with one a channel; the paper's equation allows both.
    proposal_clip: boxes are clipped to the picture when they are handed to the next frame, or not at all; the paper
    states that they are, not where. lite_stages: of the head for the frames between key frames; 0 = not InsPro-lite.
    lite_masks: that head's weight generator is its "own" or is "shared".
    pixel_mean, pixel_std: RGB, in 0..255 units.
    """

    classes: int
    queries: int = 100
    backbone: BackboneSettings = field(default_factory=ResNetSettings)
    dim: int = 256
    heads: int = 8
    stages: int = 6
    feedforward_dim: int = 2048
    dynamic_dim: int = 64
    class_layers: int = 1
    box_layers: int = 3
    outputs: Literal["masks", "boxes"] = "masks"
    mask_channels: int = 128
    mask_convolutions: int = 4
    mask_features: int = 8
    mask_scale_px: float = 64.0
    outside: Outside = "edge"
    propagation: Literal["both", "queries", "proposals", "off"] = "both"
    bank_frames: Annotated[int, Field(ge=1)] = 18
    importance: Literal["scalar", "channel"] = "scalar"
    proposal_clip: Literal["handover", "off"] = "handover"
    lite_stages: int = 0
    lite_masks: Literal["own", "shared"] = "own"
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    @property
    def queries_travel(self) -> bool:
        return self.propagation in ("both", "queries")

    @property
    def proposals_travel(self) -> bool:
        return self.propagation in ("both", "proposals")

    @property
    def bank_entries(self) -> int:
        """Frames before this one whose object features are kept; 0 where no query that attends to them travels."""
        return self.bank_frames - 1 if self.queries_travel else 0


INSPRO_R50 = InsProSettings(classes=40)
"""As published, for the 40 classes of YouTube-VIS."""

INSPRO_R50_LITE = InsProSettings(classes=40, lite_stages=1)

INSPRO_VID_R101 = InsProSettings(classes=30, backbone=ResNetSettings(blocks=(3, 4, 23, 3)), outputs="boxes")
"""InsPro-VID as published, for the 30 classes of ImageNet VID."""


class FrameMaps(NamedTuple):
    """Maps of a frame, before any query is used: the pyramid, and mask features [B, F, H/8, W/8] or None."""

    pyramid: PyramidRows
    mask_features: Tensor | None


class Pairs(NamedTuple):
    """Query-proposal pairs: queries [B, N, C] and proposals [B, N, 4] (x1, y1, x2, y2 as parts of the picture)."""

    queries: Tensor
    proposals: Tensor


class Head(nn.Module):
    """Stages of dynamic instance interaction, one after the other."""

    def __init__(self, settings: InsProSettings, stages: int) -> None:
        super().__init__()
        self.head_series = nn.ModuleList(
            InteractionStage(
                dim=settings.dim,
                heads=settings.heads,
                feedforward_dim=settings.feedforward_dim,
                dynamic_dim=settings.dynamic_dim,
                classes=settings.classes,
                class_layers=settings.class_layers,
                box_layers=settings.box_layers,
                outside=settings.outside,
            )
            for _ in range(stages)
        )

    def forward(self, pyramid: PyramidRows, queries: Tensor, boxes: Tensor) -> list[StageOutputs]:
        """Each stage's outputs, from `queries` [B, N, C] and `boxes` [B, N, 4] in pixels.

        As in Sparse R-CNN a stage learns nothing through the boxes of the one before; the first boxes do learn.
        """
        outputs: list[StageOutputs] = []
        for stage in self.head_series:
            outputs.append(stage(pyramid, queries, boxes))
            queries, boxes = outputs[-1].object_features, outputs[-1].boxes.detach()
        return outputs


class IntraQueryAttention(nn.Linear):
    """Adds to a query a weighted mean of its own past, this frame included (equation 1 of the paper).

    The weights are the layer's output, one number a frame or one a channel. Float32 in every precision, as its result
    goes on for a whole video.
    """

    def forward(self, now: Tensor, past: Tensor, counts: Tensor) -> Tensor:  # type: ignore[override]
        """Queries [B, N, C] for the next frame from object features `now` [B, N, C] and those of frames before, `past`
        [B, N, E, C] in any order; `counts` bool [B, N, E]: which of them count, none in a query's first frame."""
        weights = self.weights(now, past, counts)
        entries = torch.cat((past.float(), now.float().unsqueeze(2)), dim=2)
        out: Tensor = (weights * entries).sum(dim=2) + now.float()
        return out

    def weights(self, now: Tensor, past: Tensor, counts: Tensor) -> Tensor:
        """Weights [B, N, E + 1, 1 or C] of `past` and, last, of `now`; 0 for what does not count."""
        before, own = (nn.functional.linear(x.float(), self.weight.float(), self.bias.float()) for x in (past, now))
        before = before.masked_fill(~counts.unsqueeze(-1), float("-inf"))
        return torch.cat((before, own.unsqueeze(2)), dim=2).softmax(dim=2)


def entries_that_count(ages: Tensor, fill: Tensor) -> Tensor:
    """Which of a ring's entries count for each query, bool [B, N, E].

    `ages` int32 [B, E]: 1 is the newest entry, 0 an empty one. `fill` int32 [B, N]: how many of the newest count.
    """
    age = ages.unsqueeze(1)
    return (age > 0) & (age <= fill.unsqueeze(2))


class InsPro(nn.Module):
    """Images in, maps out; pairs in, objects and the next pairs out.

    Images are normalised RGB [B, 3, H, W], H and W divisible by 32, the picture at the top left.
    """

    def __init__(self, settings: InsProSettings) -> None:
        super().__init__()
        self.settings = settings
        kind = settings.backbone.kind
        self.backbone = FeaturePyramid(BACKBONES[kind][1](settings.backbone), settings.backbone.channels, settings.dim)
        self.init_proposal_features = nn.Embedding(settings.queries, settings.dim)
        self.init_proposal_boxes = _whole_picture(settings.queries)
        self.head = Head(settings, settings.stages)
        if settings.bank_frames > 1:
            numbers = 1 if settings.importance == "scalar" else settings.dim
            self.intra_query_eps = IntraQueryAttention(settings.dim, numbers)
        if settings.outputs == "masks":
            self.mask_branch = MaskBranch(
                settings.dim, settings.mask_channels, settings.mask_convolutions, settings.mask_features
            )
            self.controller = _generator(settings)
        if settings.lite_stages:
            self.lite_head = Head(settings, settings.lite_stages)
            if settings.outputs == "masks" and settings.lite_masks == "own":
                self.lite_controller = _generator(settings)

    def forward(self, images: Tensor) -> FrameMaps:
        """The maps of a frame."""
        maps: list[Tensor] = self.backbone(images)
        mask_features = self.mask_branch(maps[1:]) if self.settings.outputs == "masks" else None
        return FrameMaps(pyramid_rows(maps), mask_features)

    def first_pairs(self) -> Pairs:
        """The learned pairs [N, C] and [N, 4] that every video starts from."""
        centre, size = self.init_proposal_boxes.weight.chunk(2, dim=-1)
        proposals = torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)
        return Pairs(self.init_proposal_features.weight, proposals)

    def stages(self, pyramid: PyramidRows, pairs: Pairs, sizes: Tensor) -> list[StageOutputs]:
        """All stages of a frame; `sizes` [B, 2]: height and width in pixels of the picture inside the input."""
        outputs: list[StageOutputs] = self.head(pyramid, pairs.queries, _in_pixels(pairs.proposals, sizes))
        return outputs

    def lite(self, pyramid: PyramidRows, pairs: Pairs, sizes: Tensor) -> list[StageOutputs]:
        """As `stages`, by the head for the frames between key frames."""
        outputs: list[StageOutputs] = self.lite_head(pyramid, pairs.queries, _in_pixels(pairs.proposals, sizes))
        return outputs

    def next_queries(self, now: Tensor, past: Tensor, counts: Tensor) -> Tensor:
        """The queries [B, N, C] of the next frame, from the last stage's object features; see `IntraQueryAttention`.

        Where queries do not travel, the learned ones.
        """
        if not self.settings.queries_travel:
            return self.first_pairs().queries.expand_as(now)
        if not self.settings.bank_entries:
            return now
        out: Tensor = self.intra_query_eps(now, past, counts)
        return out

    def next_proposals(self, boxes: Tensor, sizes: Tensor) -> Tensor:
        """The proposals [B, N, 4] of the next frame, from the last stage's `boxes` in pixels, or the learned ones."""
        if not self.settings.proposals_travel:
            return self.first_pairs().proposals.expand_as(boxes)
        proposals = boxes / _per_side(sizes)
        return clipped(proposals) if self.settings.proposal_clip == "handover" else proposals

    def mask_parameters(self, last: StageOutputs) -> Tensor:
        """The numbers each mask is computed from, [B, N, P], from the last stage's outputs for a frame."""
        return placed(self.controller(last.object_features), last.boxes, self.settings.mask_scale_px)

    def lite_mask_parameters(self, last: StageOutputs) -> Tensor:
        """As `mask_parameters`, for the lite head's outputs."""
        generator = self.lite_controller if self.settings.lite_masks == "own" else self.controller
        return placed(generator(last.object_features), last.boxes, self.settings.mask_scale_px)


def clipped(proposals: Tensor) -> Tensor:
    """`proposals` [..., 4] inside the picture."""
    return proposals.clamp(0, 1)


def _per_side(sizes: Tensor) -> Tensor:
    """`sizes` [B, 2], height and width, as what x1, y1, x2, y2 are multiplied by: float32 [B, 1, 4]."""
    return sizes.float().flip(-1).repeat(1, 2).unsqueeze(1)


def _in_pixels(proposals: Tensor, sizes: Tensor) -> Tensor:
    return proposals.float() * _per_side(sizes)


def _generator(settings: InsProSettings) -> nn.Linear:
    """Makes the weights of an object's mask convolutions from its features."""
    generator = nn.Linear(settings.dim, parameter_count(settings.mask_features))
    nn.init.normal_(generator.weight, std=0.01)
    nn.init.zeros_(generator.bias)
    return generator


def _whole_picture(queries: int) -> nn.Embedding:
    """Learned boxes, centre and size as parts of the picture; each begins as the whole of it."""
    boxes = nn.Embedding(queries, 4)
    with torch.no_grad():
        boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(queries, -1))
    return boxes
