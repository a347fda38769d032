"""Small layers that several networks share. Parameter names follow the published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "FeedForward",
    "FrozenBatchNorm2d",
    "GeluFeedForward",
    "checkpoint_activations",
    "in_float32",
    "sine_position",
    "split_heads",
]

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """`function` computing in float32 whatever autocast says, for what half precision ruins.

    Tensors in its arguments, also inside lists, tuples and dictionaries, come in as float32, and nothing inside is
    autocast. Without autocast it is called as it is, so that a traced graph does not change.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((tensor.device.type for tensor in _tensors((args, kwargs))), None)
        if device is None or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*_float32(args), **_float32(kwargs))

    return called


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _float32(value: Any) -> Any:
    """`value` with the floating-point tensors in its lists, tuples and dictionaries as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _float32(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_float32, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_float32, value))
    return value


class Block(nn.Module):
    """A repeated part of a network, which can keep its inputs alone for the backward pass and compute the rest again.

    That takes about a third more time and far less memory; gradients stay the same, random numbers included.
    """

    recomputes = False

    def __call__(self, *args: Any) -> Any:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


def checkpoint_activations(network: nn.Module) -> None:
    """Let every block of backbone, pixel decoder and decoder in `network` compute its activations again in the backward
    pass."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recomputes = True


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine are constants, as detection networks train with small batches."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class MLP(nn.Module):
    """Linear layers with ReLU between, none at the end."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 3) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class Attention(nn.Module):
    """Multi-head attention, batch first, with the packed parameters of `nn.MultiheadAttention`.

    Written out because the boolean mask is one for all heads, and because it must trace to plain ONNX operators.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attended values [B, Q, C]; `query` [B, Q, C], `key` and `value` [B, S, C], `visible` bool [B, Q, S]."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        q = split_heads(F.linear(query, wq, bq), self.heads)
        k = split_heads(F.linear(key, wk, bk), self.heads)
        v = split_heads(F.linear(value, wv, bv), self.heads)
        mask = None if visible is None else visible.unsqueeze(1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, C] -> [B, heads, S, C / heads]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


class GeluFeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class FeedForward(Block):
    """Linear, ReLU, linear, added to the input and normalised."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return out


def sine_position(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sine position embedding [dim, height, width], y channels first, as DETR normalises it (scale 2 pi, eps 1e-6)."""
    per_axis = dim // 2
    index = torch.arange(per_axis, dtype=torch.float32, device=device)
    frequency = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / per_axis)

    def axis(size: int) -> Tensor:
        place = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * 2 * math.pi
        angle = place[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = axis(height)[:, None, :].expand(height, width, per_axis)
    x = axis(width)[None, :, :].expand(height, width, per_axis)
    return torch.cat((y, x), dim=2).permute(2, 0, 1)
