"""Claims about layers that several networks share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visrt.models.layers import in_float32


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@in_float32
def dtypes_seen(pair: Pair, maps: dict[str, list[Tensor]], *, mask: Tensor) -> list[torch.dtype]:
    """Those of the arguments, and that of a product computed inside."""
    product = pair.first @ pair.second
    return [pair.first.dtype, maps["one"][0].dtype, mask.dtype, product.dtype]


def test_in_float32_casts_tensors_wherever_they_are_and_computes_in_float32() -> None:
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        seen = dtypes_seen(Pair(half, half), {"one": [half]}, mask=half > 0)
        assert (half @ half).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32, torch.bool, torch.float32]


def test_in_float32_leaves_everything_as_it_is_without_autocast() -> None:
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    assert dtypes_seen(Pair(half, half), {"one": [half]}, mask=half > 0)[0] == torch.bfloat16
