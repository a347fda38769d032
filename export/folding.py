"""Batch norms with constant statistics become part of the convolution before them, in float32.

The tracer would fold them too, but in the precision of the weights: in FP16 a small variance is lost before it is used.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from visrt.models.layers import FrozenBatchNorm2d

__all__ = ["folded"]


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `network` in which each batch norm that follows a convolution is inside that convolution.

    One run on `images`, normalised [B, 3, H, W], shows which follows which.
    """
    network = deepcopy(network)
    names = {module: name for name, module in network.named_modules()}
    for norm, conv in _pairs(network, images).items():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
        network.set_submodule(names[norm], nn.Identity())
    return network


def _pairs(network: nn.Module, images: Tensor) -> dict[FrozenBatchNorm2d, nn.Conv2d]:
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
