"""The graphs of InsPro as torch modules to be traced: frame, head, for the lite variant head_lite, and masks.

The pyramid goes from the frame graph to a head on the device, pixel by pixel as the boxes read it. A head sees one
frame of one stream, so all its axes are fixed. Numbers that travel from frame to frame are float32 in every precision.
"""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visrt.export.graphs import FrameGraph
from visrt.models.condinst import dynamic_masks
from visrt.models.feature_pyramid import PyramidRows, pyramid_sizes
from visrt.models.inspro import InsPro, Pairs
from visrt.models.interaction import StageOutputs
from visrt.models.layers import FrozenBatchNorm2d

__all__ = [
    "HeadGraph",
    "HeadTensors",
    "InsProFrameGraph",
    "InsProFrameTensors",
    "InsProMasksGraph",
    "LiteHeadGraph",
    "LiteHeadTensors",
    "head_examples",
    "with_frozen_norms",
]


class InsProFrameTensors(NamedTuple):
    """Outputs of the `frame` graph: pyramid [B, S, C], p2..p5 one after another, in the network's precision;
    mask_features [B, F, H/8, W/8], None of a network of boxes alone, and picture_sizes [B, 2], height and width in
    pixels, float32."""

    pyramid: Tensor
    mask_features: Tensor | None
    picture_sizes: Tensor


class HeadTensors(NamedTuple):
    """Outputs of the `head` graph, float32, for N slots: class_logits [N, K], before sigmoid; boxes [N, 4], x1, y1, x2,
    y2 in pixels; mask_embeddings [N, P], the object's convolutions, None of a network of boxes alone; object_features
    [N, C], the bank's new entry; next_queries [N, C] and next_proposals [N, 4], as parts of the picture."""

    class_logits: Tensor
    boxes: Tensor
    mask_embeddings: Tensor | None
    object_features: Tensor
    next_queries: Tensor
    next_proposals: Tensor


class LiteHeadTensors(NamedTuple):
    """Outputs of the `head_lite` graph, as `HeadTensors`; queries stay those of the key frame."""

    class_logits: Tensor
    boxes: Tensor
    mask_embeddings: Tensor | None
    object_features: Tensor
    next_proposals: Tensor


class InsProFrameGraph(FrameGraph):
    """Raw frames in, pyramid and mask features out. `network` is an `InsPro` in `precision`."""

    def forward(self, images: Tensor, valid_sizes: Tensor) -> InsProFrameTensors:
        """`images` uint8 RGB [B, H, W, 3], or of the source's size; `valid_sizes` int32 [B, 2], height and width in
        the network input that each image fills."""
        maps = self.network(self.normalised(images, valid_sizes).to(self.precision))
        mask_features = None if maps.mask_features is None else maps.mask_features.float()
        return InsProFrameTensors(maps.pyramid.rows, mask_features, valid_sizes.float())


class _Head(nn.Module):
    """The inputs of both heads: one frame's tensors, as the network takes them."""

    def __init__(self, network: InsPro, height: int, width: int, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        self.sizes = pyramid_sizes(height, width)

    def _inputs(
        self, pyramid: Tensor, picture_size: Tensor, queries: Tensor, proposals: Tensor
    ) -> tuple[PyramidRows, Pairs, Tensor]:
        rows = PyramidRows(pyramid.unsqueeze(0), self.sizes)
        return rows, Pairs(queries.to(self.precision).unsqueeze(0), proposals.unsqueeze(0)), picture_size.unsqueeze(0)


class HeadGraph(_Head):
    """All stages and the hand-over to the next frame; what does not travel is handed over as it was learned."""

    def forward(
        self,
        pyramid: Tensor,
        picture_size: Tensor,
        queries: Tensor,
        proposals: Tensor,
        bank: Tensor | None = None,
        fill: Tensor | None = None,
    ) -> HeadTensors:
        """`pyramid` [S, C] and `picture_size` [2] of one frame, `queries` [N, C], `proposals` [N, 4] as parts of the
        picture, `bank` [T - 1, N, C], the newest entry last, `fill` [N]: how many of the newest count. The last two
        only where the network attends to the past."""
        rows, pairs, size = self._inputs(pyramid, picture_size, queries, proposals)
        last = self.network.stages(rows, pairs, size)[-1]
        bank = queries.new_zeros(0, *queries.shape) if bank is None else bank
        fill = queries.new_zeros(len(queries)) if fill is None else fill
        queries = self.network.next_queries(last.object_features, bank.unsqueeze(0), fill.unsqueeze(0))
        proposals = self.network.next_proposals(last.boxes, size)
        masks = self.network.mask_parameters(last) if self.network.settings.outputs == "masks" else None
        return HeadTensors(*_seen(last, masks), _alone(queries), _alone(proposals))


class LiteHeadGraph(_Head):
    """The one stage between key frames, and the hand-over of the boxes."""

    def forward(self, pyramid: Tensor, picture_size: Tensor, queries: Tensor, proposals: Tensor) -> LiteHeadTensors:
        """Inputs as those of `HeadGraph`."""
        rows, pairs, size = self._inputs(pyramid, picture_size, queries, proposals)
        last = self.network.lite(rows, pairs, size)[-1]
        masks = self.network.lite_mask_parameters(last) if self.network.settings.outputs == "masks" else None
        return LiteHeadTensors(*_seen(last, masks), _alone(self.network.next_proposals(last.boxes, size)))


class InsProMasksGraph(nn.Module):
    """Mask convolutions of chosen slots of one frame in, their stride-4 mask logits out."""

    def __init__(self, scale_px: float) -> None:
        super().__init__()
        self.scale_px = scale_px

    def forward(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Logits [masks, H/4, W/4] from `mask_embeddings` [masks, P] and one frame's `mask_features` [F, H/8, W/8]."""
        return dynamic_masks(mask_embeddings, mask_features, self.scale_px)


def head_examples(network: InsPro, height: int, width: int, precision: torch.dtype) -> dict[str, Tensor]:
    """Inputs of the `head` graph by name, of the right sizes."""
    settings, (queries, proposals) = network.settings, network.first_pairs()
    rows = sum(rows * columns for rows, columns in pyramid_sizes(height, width))
    return {
        "pyramid": torch.zeros(rows, settings.dim, dtype=precision),
        "picture_size": torch.tensor([height, width], dtype=torch.float32),
        "queries": queries.detach().float(),
        "proposals": proposals.detach().float(),
        "bank": torch.zeros(settings.bank_entries, settings.queries, settings.dim),
        "fill": torch.zeros(settings.queries),
    }


def with_frozen_norms(network: InsPro) -> InsPro:
    """A copy of `network` whose batch norms are constants, so that they can become part of their convolutions."""
    network = deepcopy(network)
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name, norm in norms:
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
        frozen.load_state_dict({key: value for key, value in norm.state_dict().items() if key in frozen.state_dict()})
        network.set_submodule(name, frozen)
    return network


def _seen(last: StageOutputs, mask_parameters: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    masks = None if mask_parameters is None else _alone(mask_parameters)
    return _alone(last.class_logits), _alone(last.boxes), masks, _alone(last.object_features)


def _alone(tensor: Tensor) -> Tensor:
    """Without the batch axis, in float32."""
    return tensor.squeeze(0).float()
