"""The two graphs of a per-frame model, which the runtime calls, as torch modules to be traced.

Other families share them. Both are written so that a trace is right at every batch size: sizes of the image are
constants, everything that depends on the data is arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from visrt.export.source_resize import SourceResize
from visrt.models.mask2former import FrameOutputs
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.image import fit_in

__all__ = ["FrameGraph", "MasksGraph", "SlotMasks", "SlotMasksGraph", "inside", "rows_of", "valid_slots"]


G = TypeVar("G", bound="FrameGraph")


class Normalisation(Protocol):
    """Settings of a network by which pixels are normalised: RGB in 0..255 units."""

    @property
    def pixel_mean(self) -> tuple[float, float, float]: ...

    @property
    def pixel_std(self) -> tuple[float, float, float]: ...


class FrameGraph(nn.Module):
    """Raw frames in, queries and mask features out.

    `network` takes normalised RGB [B, 3, H, W] in `precision` and returns a named tuple: `FrameOutputs`, or another one
    with `mask_features`. `pixel_mean` and `pixel_std` are RGB in 0..255 units; pixels are normalised in float32.
    `resize` takes frames of one size to the network's; without it they come fitted already.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        precision: torch.dtype = torch.float32,
        resize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.resize = resize
        self.precision = precision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(3, 1, 1))

    @classmethod
    def from_settings(cls: type[G], network: nn.Module, settings: Normalisation, spec: InputSpec) -> G:
        """The graph in float32 for images of `spec`, which it resizes itself where `spec` has a source."""
        resize = None if spec.source is None else SourceResize(fit_in(spec.source, spec))
        return cls(network, settings.pixel_mean, settings.pixel_std, resize=resize).eval()

    def forward(self, images: Tensor, valid_sizes: Tensor) -> Any:
        """`images` uint8 RGB [B, H, W, 3], or of the source's size; `valid_sizes` int32 [B, 2], height and width in
        the network input that each image fills. What the network returns, in float32 but for the mask features."""
        outputs = self.network(self.normalised(images, valid_sizes).to(self.precision))
        kept = outputs._replace(**{role: getattr(outputs, role).float() for role in outputs._fields})
        return kept._replace(mask_features=outputs.mask_features)

    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """One frame's outputs by role, without the batch axis, with the mask logits [Q, H/4, W/4] of all queries.

        `pixels` [1, 3, H, W] as `normalised` gives them.
        """
        outputs = self.network(pixels)
        tensors: dict[str, Tensor] = {role: getattr(outputs, role)[0] for role in FrameOutputs._fields}
        tensors["mask_logits"] = MasksGraph()(tensors["mask_embeddings"], tensors["mask_features"])
        return {role: tensor.numpy() for role, tensor in tensors.items()}

    def with_network(self: G, network: nn.Module, precision: torch.dtype = torch.float32) -> G:
        """The same graph around another `network`."""
        mean, std = self.pixel_mean.flatten().tolist(), self.pixel_std.flatten().tolist()
        return type(self)(network, mean, std, precision, self.resize).eval()

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """Network input [B, 3, H, W]. Padding is zero after normalising, as the published models were trained.

        Channels come first before the arithmetic: broadcasting along rows is several times faster than over channels.
        Not while they are bytes, as TensorRT does not transpose uint8.
        """
        levels = images.to(torch.float32).permute(0, 3, 1, 2)
        if self.resize is not None:
            levels = self.resize(levels)
        pixels = (levels - self.pixel_mean) / self.pixel_std
        return pixels * inside(valid_sizes, pixels.shape[2], pixels.shape[3]).unsqueeze(1).to(torch.float32)


def inside(valid_sizes: Tensor, height: int, width: int) -> Tensor:
    """Bool [B, H, W], true in the top-left area of each image's valid size."""
    rows = torch.arange(height, dtype=torch.int32, device=valid_sizes.device)
    columns = torch.arange(width, dtype=torch.int32, device=valid_sizes.device)
    return (rows < valid_sizes[:, 0:1]).unsqueeze(2) & (columns < valid_sizes[:, 1:2]).unsqueeze(1)


class MasksGraph(nn.Module):
    """Chosen mask embeddings of one frame in, their stride-4 mask logits out."""

    def forward(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Logits [masks, H/4, W/4] from `mask_embeddings` [masks, D] and one frame's `mask_features` [D, H/4, W/4].

        All in one precision.
        """
        logits = mask_embeddings @ mask_features.flatten(1)
        return logits.reshape(-1, mask_features.shape[1], mask_features.shape[2])


class SlotMasks(NamedTuple):
    """mask_logits [S, M, H/4, W/4] of the chosen slots of S streams and their kept_embeddings [S, M, D], float32."""

    mask_logits: Tensor
    kept_embeddings: Tensor


class SlotMasksGraph(nn.Module):
    """Chosen slots of one frame of each of S streams in, their stride-4 mask logits and mask embeddings out."""

    def forward(self, slots: Tensor, mask_embeddings: Tensor, mask_features: Tensor) -> SlotMasks:
        """`slots` int32 [S, M], `mask_embeddings` float32 [S, Q, D], `mask_features` [S, D, H/4, W/4]."""
        kept = rows_of(mask_embeddings, slots)
        logits = kept.to(mask_features.dtype) @ mask_features.flatten(2)
        return SlotMasks(logits.unflatten(2, mask_features.shape[2:]).float(), kept.float())


def rows_of(table: Tensor, slots: Tensor) -> Tensor:
    """Rows [S, M, D] of `table` [S, Q, D] at `slots` int32 [S, M]."""
    return table.gather(1, slots.long().unsqueeze(2).expand(-1, -1, table.shape[2]))


LARGEST = 3e38
"""Below float32's infinity. NaN is below nothing."""


def valid_slots(*outputs: Tensor, largest: float = LARGEST) -> Tensor:
    """Bool [S, Q], where all of the slot's numbers in each of `outputs` [S, Q, C] are finite, or below `largest`."""
    valid = [(rows.float().abs() < largest).all(dim=2) for rows in outputs]
    return torch.stack(valid).all(dim=0)
