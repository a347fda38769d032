"""The graphs of InsPro as torch modules to be traced: frame, head, for the lite variant head_lite, and masks.

The pyramid goes from the frame graph to a head on the device, pixel by pixel as the boxes read it. A head sees a frame
of each of S streams, none of which hangs on another. What travels from frame to frame is float32 in every precision,
and stays on the device: a slot that cannot go on is given its learned pair in the graph.
"""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visrt.export.graphs import FrameGraph, SlotMasks, rows_of, valid_slots
from visrt.models.condinst import dynamic_masks
from visrt.models.feature_pyramid import PyramidRows, pyramid_sizes
from visrt.models.inspro import InsPro, Pairs, entries_that_count
from visrt.models.interaction import StageOutputs
from visrt.models.layers import FrozenBatchNorm2d

__all__ = [
    "HeadGraph",
    "HeadTensors",
    "InsProFrameGraph",
    "InsProFrameTensors",
    "InsProMasksGraph",
    "LiteHeadGraph",
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
    """Outputs of both heads for the N slots of a frame of each of S streams, float32.

    class_logits [S, N, K], before sigmoid, NaN for a slot with NaN or infinity in any output; boxes [S, N, 4], x1, y1,
    x2, y2 in pixels; mask_embeddings [S, N, P], the object's convolutions, None of a network of boxes alone;
    object_features [S, N, C], the bank's new entry; next_queries [S, N, C] and next_proposals [S, N, 4], as parts of
    the picture; restarted [S, N], 1 where they are the learned pair.
    """

    class_logits: Tensor
    boxes: Tensor
    mask_embeddings: Tensor | None
    object_features: Tensor
    next_queries: Tensor
    next_proposals: Tensor
    restarted: Tensor


class InsProFrameGraph(FrameGraph):
    """Raw frames in, pyramid and mask features out. `network` is an `InsPro` in `precision`."""

    def forward(self, images: Tensor, valid_sizes: Tensor) -> InsProFrameTensors:
        """`images` uint8 RGB [B, H, W, 3], or of the source's size; `valid_sizes` int32 [B, 2], height and width in
        the network input that each image fills."""
        maps = self.network(self.normalised(images, valid_sizes).to(self.precision))
        mask_features = None if maps.mask_features is None else maps.mask_features.float()
        return InsProFrameTensors(maps.pyramid.rows, mask_features, valid_sizes.float())


class _Head(nn.Module):
    """What both heads share: their inputs as the network takes them, and the hand-over to the next frame."""

    def __init__(self, network: InsPro, height: int, width: int, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        self.sizes = pyramid_sizes(height, width)
        # No buffers, which would become FP16 with the network: they are a state's values before the first frame.
        self.learned = Pairs(*(part.detach().float() for part in network.first_pairs()))

    def _inputs(self, pyramid: Tensor, queries: Tensor, proposals: Tensor) -> tuple[PyramidRows, Pairs]:
        return PyramidRows(pyramid, self.sizes), Pairs(queries.to(self.precision), proposals)

    def _handed_over(
        self, last: StageOutputs, masks: Tensor | None, queries: Tensor, proposals: Tensor, box_side_min: Tensor
    ) -> HeadTensors:
        """The outputs. A slot with NaN or infinity, or whose box in the next frame has a side below `box_side_min` [S]
        of the picture, restarts from its learned pair: such a box collapsed, or was clipped away, and cannot grow."""
        seen = [tensor.float() for tensor in (last.class_logits, last.boxes, last.object_features)]
        masks = None if masks is None else masks.float()
        queries, proposals = queries.float(), proposals.float()
        every = (*seen, queries, proposals) if masks is None else (*seen, masks, queries, proposals)
        valid = valid_slots(*every)
        sides = proposals[..., 2:] - proposals[..., :2]
        goes_on = (valid & (sides >= box_side_min[:, None, None]).all(dim=2)).unsqueeze(2)
        valid = valid.unsqueeze(2)
        class_logits, boxes, object_features = seen
        return HeadTensors(
            torch.where(valid, class_logits, torch.nan),
            torch.where(valid, boxes, 0.0),
            None if masks is None else torch.where(valid, masks, 0.0),
            torch.where(valid, object_features, 0.0),
            torch.where(goes_on, queries, self.learned.queries),
            torch.where(goes_on, proposals, self.learned.proposals),
            1.0 - goes_on.squeeze(2).float(),
        )


class HeadGraph(_Head):
    """All stages and the hand-over to the next frame; what does not travel is handed over as it was learned."""

    def forward(
        self,
        pyramid: Tensor,
        picture_sizes: Tensor,
        queries: Tensor,
        proposals: Tensor,
        box_side_min: Tensor,
        bank: Tensor | None = None,
        ages: Tensor | None = None,
        fill: Tensor | None = None,
    ) -> HeadTensors:
        """`pyramid` [S, pixels, C] and `picture_sizes` [S, 2] of a frame of each stream, `queries` [S, N, C],
        `proposals` [S, N, 4] as parts of the picture, `box_side_min` [S]. Only where the network attends to the past:
        `bank` [S, N, E, C], a ring; `ages` int32 [S, E] and `fill` int32 [S, N] as of `entries_that_count`."""
        rows, pairs = self._inputs(pyramid, queries, proposals)
        last = self.network.stages(rows, pairs, picture_sizes)[-1]
        masks = self.network.mask_parameters(last) if self.network.settings.outputs == "masks" else None
        if bank is None or ages is None or fill is None:
            bank, counts = queries.new_zeros(1, 1, 0, 1), queries.new_zeros(1, 1, 0, dtype=torch.bool)
        else:
            counts = entries_that_count(ages, fill)
        queries = self.network.next_queries(last.object_features, bank, counts)
        proposals = self.network.next_proposals(last.boxes, picture_sizes)
        return self._handed_over(last, masks, queries, proposals, box_side_min)


class LiteHeadGraph(_Head):
    """The one stage between key frames, and the hand-over of the boxes; the queries stay those of the key frame."""

    def forward(
        self, pyramid: Tensor, picture_sizes: Tensor, queries: Tensor, proposals: Tensor, box_side_min: Tensor
    ) -> HeadTensors:
        """Inputs as those of `HeadGraph`."""
        rows, pairs = self._inputs(pyramid, queries, proposals)
        last = self.network.lite(rows, pairs, picture_sizes)[-1]
        masks = self.network.lite_mask_parameters(last) if self.network.settings.outputs == "masks" else None
        proposals = self.network.next_proposals(last.boxes, picture_sizes)
        return self._handed_over(last, masks, queries, proposals, box_side_min)


class InsProMasksGraph(nn.Module):
    """Chosen slots of one frame of each of S streams in, their stride-4 mask logits and mask convolutions out."""

    def __init__(self, scale_px: float) -> None:
        super().__init__()
        self.scale_px = scale_px

    def forward(self, slots: Tensor, mask_embeddings: Tensor, mask_features: Tensor) -> SlotMasks:
        """`slots` int32 [S, M], `mask_embeddings` [S, N, P], `mask_features` [S, F, H/8, W/8]."""
        kept = rows_of(mask_embeddings, slots)
        return SlotMasks(dynamic_masks(kept, mask_features, self.scale_px), kept)


def head_examples(network: InsPro, height: int, width: int, precision: torch.dtype, streams: int) -> dict[str, Tensor]:
    """Inputs of the `head` graph by name, of the right sizes, in the order of its `forward`."""
    settings, (queries, proposals) = network.settings, network.first_pairs()
    rows = sum(rows * columns for rows, columns in pyramid_sizes(height, width))
    slots, entries = settings.queries, settings.bank_entries
    return {
        "pyramid": torch.zeros(streams, rows, settings.dim, dtype=precision),
        "picture_sizes": torch.tensor([[height, width]] * streams, dtype=torch.float32),
        "queries": queries.detach().float().repeat(streams, 1, 1),
        "proposals": proposals.detach().float().repeat(streams, 1, 1),
        "box_side_min": torch.zeros(streams),
        "bank": torch.zeros(streams, slots, entries, settings.dim),
        "ages": torch.zeros(streams, entries, dtype=torch.int32),
        "fill": torch.zeros(streams, slots, dtype=torch.int32),
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
