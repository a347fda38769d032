"""InsPro's graphs in FP16: the network in halves, places and what travels from frame to frame in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from visrt.export.folding import folded
from visrt.export.half import Island, halved_network
from visrt.export.inspro_graphs import HeadGraph, InsProFrameGraph, LiteHeadGraph, with_frozen_norms
from visrt.models.inspro import InsPro

__all__ = ["halved_frame_graph", "halved_head"]

H = TypeVar("H", bound=HeadGraph | LiteHeadGraph)

OF_FRAMES = ("backbone", "mask_branch")
"""Parts of the network that see the frame, before any query does."""

INSIDE = "network."
"""A head graph's modules lie below the network that it holds."""


def halved_frame_graph(
    graph: InsProFrameGraph, pixels: Sequence[Tensor], kept: Sequence[str]
) -> tuple[InsProFrameGraph, list[Island]]:
    """The frame graph in FP16 but for its islands, found on `pixels`, each [1, 3, H, W], and those `kept`."""
    assert isinstance(graph.network, InsPro)
    network = folded(with_frozen_norms(graph.network), pixels[0])
    of_frames = [name for name in kept if name.startswith(OF_FRAMES)]
    half, found = halved_network(network, [(one,) for one in pixels], of_frames)
    whole = InsProFrameGraph(half, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float16, graph.resize)
    whole.pixel_mean, whole.pixel_std = graph.pixel_mean.clone(), graph.pixel_std.clone()
    return whole.eval(), found


def halved_head(graph: H, inputs: Sequence[tuple[Tensor, ...]], kept: Sequence[str]) -> tuple[H, list[Island]]:
    """A head in FP16 but for its islands, found on `inputs` of its float32 form, and those `kept`."""
    of_head = [INSIDE + name for name in kept if not name.startswith(OF_FRAMES)]
    half, found = halved_network(graph, inputs, of_head)
    whole = cast(H, half.eval())
    whole.precision = torch.float16
    return whole, [Island(island.module.removeprefix(INSIDE), island.largest) for island in found]
