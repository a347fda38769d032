"""The network in FP16 with islands of FP32, as TensorRT's strong typing wants it: precision is in the graph.

Some islands are written in the models: sampling places and weights of deformable attention, position embeddings, the
sums inside a layer norm. Others are found, modules whose values leave FP16's range on the frames at hand, and others
are chosen by the user or by export, as quality needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visrt.export.graphs import FrameGraph, G
from visrt.models.layers import FrozenBatchNorm2d
from visrt.runtime.errors import CheckpointError
from visrt.runtime.parity.frames import Frames

__all__ = ["HEADROOM", "Island", "folded", "halved", "halved_network", "islands_of", "network_inputs"]

HEADROOM = 4.0
"""Values of other frames may be larger than those at hand by this factor."""

FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Island:
    """A module that stays in float32, and the largest absolute value inside it, or that goes in or comes out."""

    module: str
    largest: float


class InFloat32(nn.Module):
    """`module` in float32 between neighbours in FP16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return _cast(self.module(*_cast(inputs, torch.float32)), torch.float16)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value`, or what is inside a dictionary, list or tuple, with its floating-point tensors in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*(_cast(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `network` in which each batch norm that follows a convolution is part of that convolution, in float32.

    One run on `images`, normalised [B, 3, H, W], shows which follows which. The tracer would fold them too, but in
    FP16, where a small variance is lost before it is used.
    """
    network = deepcopy(network)
    names = {module: name for name, module in network.named_modules()}
    for norm, conv in _norms_with_convs(network, images).items():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
        network.set_submodule(names[norm], nn.Identity())
    return network


def _norms_with_convs(network: nn.Module, images: Tensor) -> dict[FrozenBatchNorm2d, nn.Conv2d]:
    """Each batch norm with the convolution that feeds it: one that holds it as a part, or whose output it is given."""
    holders = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    pairs = {
        part: conv for conv in holders for part in conv.children() if isinstance(part, FrozenBatchNorm2d)
    }  # the published residual networks
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}

    def after_conv(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        made[id(output)] = conv, output  # the tensor is kept, so that its id is not given to another

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, FrozenBatchNorm2d)
        if norm not in pairs and id(inputs[0]) in made:
            pairs[norm] = made[id(inputs[0])][0]

    hooks = [conv.register_forward_hook(after_conv) for conv in holders if not any(conv.children())]
    hooks += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def halved(graph: G, pixels: Sequence[Tensor], kept: Sequence[str] = ()) -> tuple[G, list[Island]]:
    """A copy of `graph` whose network computes in FP16 but for its islands: those found on `pixels` and those `kept`.

    `pixels`: network inputs [1, 3, H, W]. `kept` names modules of the network ("backbone") that stay in float32 as a
    whole.
    """
    half, found = halved_network(folded(graph.network, pixels[0]), [(one,) for one in pixels], kept)
    return graph.with_network(half, torch.float16), found


def network_inputs(graph: FrameGraph, frames: Frames) -> list[Tensor]:
    """The normalised network input [1, 3, H, W] of each frame."""
    images, sizes = torch.from_numpy(frames.images), torch.from_numpy(frames.valid_sizes)
    return [graph.normalised(images[t : t + 1], sizes[t : t + 1]) for t in range(len(frames))]


@torch.no_grad()
def halved_network(
    network: nn.Module, batches: Sequence[tuple[Tensor, ...]], kept: Sequence[str] = ()
) -> tuple[nn.Module, list[Island]]:
    """A copy of `network` in FP16 but for its islands: those found on `batches` of its inputs, and those `kept`."""
    found = [island for island in islands_of(network, batches) if not _inside(island.module, kept)]
    half = deepcopy(network).half()
    for name in (*kept, *(island.module for island in found)):
        half.set_submodule(name, InFloat32(network.get_submodule(name)))
    return half, found


def _inside(module: str, parents: Sequence[str]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


@torch.no_grad()
def islands_of(network: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> list[Island]:
    """The smallest modules that must stay in float32, as values inside come near the end of FP16's range on `batches`
    of the network's inputs while what they take and give does not.

    Raises CheckpointError if the values that leave the network itself do.
    """
    largest: dict[str, float] = {}
    with _watched(network, largest):
        for inputs in batches:
            network(*inputs)
    wide = {name for name, value in largest.items() if not value * HEADROOM <= FP16_MAX}
    if "" in wide:
        raise CheckpointError(
            f"the network's outputs reach {largest['']:.0f}, beyond FP16's {FP16_MAX:.0f} with a headroom of "
            f"{HEADROOM:g}; export it with --precision fp32"
        )
    found: dict[str, float] = {}
    for name in wide:
        around = _narrow_around(name, wide, largest)
        found[around] = max(found.get(around, 0.0), largest[name])
    return [Island(name, value) for name, value in found.items() if not _inside(name, [n for n in found if n != name])]


def _narrow_around(module: str, wide: set[str], watched: Mapping[str, float]) -> str:
    """The nearest module around `module` whose edges were watched and lie within FP16's range."""
    while module in wide or module not in watched:
        module = module.rpartition(".")[0]
    return module


@contextmanager
def _watched(network: nn.Module, largest: dict[str, float]) -> Iterator[None]:
    """Notes the largest absolute value of what goes into and comes out of each module, the network itself included."""

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            values = [float(tensor.abs().max()) for tensor in _floating((inputs, output))]
            largest[name] = max(largest.get(name, 0.0), *values)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _floating(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in `value`, however deep in dictionaries, lists and tuples."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
        yield value
    elif isinstance(value, Mapping):
        yield from _floating(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _floating(item)
