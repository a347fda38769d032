"""Weights of EoMT and VidEoMT, official and from transformers, under the names of visrt's networks.

There are four layouts: each project's, with DINOv2 as timm names it or with DINOv3 as transformers does, and those of
transformers' EoMT with DINOv2 and with DINOv3. visrt's names are those of transformers' EoMT with DINOv2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visrt.models.checkpoints.architecture import Weights
from visrt.runtime.errors import CheckpointError

__all__ = ["ENCODER", "TABLE", "is_official", "own_weights", "whole_weights"]

TABLE = "embeddings.position_embeddings.weight"
ENCODER = ("embeddings.", "layers.", "layernorm.")
"""Starts of the keys of the plain vision transformer."""

PATCHES = "embeddings.patch_embeddings.projection."
RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^(backbone|network)\.(encoder\.backbone\.)?", ""),
    (r"^q\.", "query."),
    (r"^class_head\.", "class_predictor."),
    (r"^mask_head\.([024])\.", lambda found: f"mask_head.fc{int(found[1]) // 2 + 1}."),
    (r"^upscale\.", "upscale_block.block."),
    (r"^(upscale_block\.block\.\d+)\.norm\.", r"\1.layernorm2d."),
    (r"^norm\.", "layernorm."),
    (r"^(patch_embed\.)?(cls_token|register_tokens|mask_token)$", r"embeddings.\2"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", TABLE),
    (r"^patch_embed\.proj\.", PATCHES),
    (r"^(patch_embed|embeddings)\.patch_embeddings\.(weight|bias)$", PATCHES + r"\2"),
    (r"^embeddings\.position_embeddings$", TABLE),
    (r"^(encoder\.|model\.)?(blocks|layer)\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.out_proj."),
    (r"\.attn\.qkv\.", ".attention.qkv_proj."),
    (r"\.(attn\.proj|attention\.o_proj)\.", ".attention.out_proj."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)
"""Patterns in published keys and what stands there in visrt's; all of them are tried, in order."""

LISTED = 5


def is_official(weights: Weights) -> bool:
    """Whether the keys are those of the official EoMT."""
    return any(key.startswith("network.encoder.backbone.") for key in weights)


def own_weights(weights: Weights) -> dict[str, Tensor]:
    """`weights` by the names of visrt's networks, what stands in one matrix there taken apart."""
    named = {_own_key(key): value for key, value in weights.items()}
    if TABLE in named and named[TABLE].dim() == 3:
        named[TABLE] = named[TABLE].flatten(0, 1)
    apart: dict[str, Tensor] = {}
    gated = _is_gated(named)
    for key, value in named.items():
        if ".attention.qkv_proj." in key:
            apart.update(_projections(key, value, rotary=TABLE not in named))
        elif ".mlp." in key:
            apart.update(_gated(key, value) if gated else {_plain_key(key): value})
        else:
            apart[key] = value
    return apart


def whole_weights(differences: Weights, base: Weights, where: str, base_path: object) -> dict[str, Tensor]:
    """`differences`, of which those of the transformer are added to `base`, both by visrt's names."""
    base = {key: value for key, value in base.items() if key != "embeddings.mask_token"}
    faults = [key for key in differences if key.startswith(ENCODER) and key not in base]
    faults += [key for key, value in base.items() if key not in differences or differences[key].shape != value.shape]
    if faults:
        more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise CheckpointError(
            f"{base_path}: {len(faults)} weights differ in name or shape from those of {where}: "
            f"{', '.join(faults[:LISTED])}{more}; expected the DINOv3 network that it was trained from"
        )
    return {key: value + base[key] if key in base else value for key, value in differences.items()}


def _own_key(key: str) -> str:
    for pattern, name in RENAMES:
        key = re.sub(pattern, name, key)
    return key


def _parts(key: str, value: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Equal parts of the rows of `value`, by the `names` of their layers."""
    if not value.dim() or len(value) % len(names):
        raise CheckpointError(f"{key} has shape {tuple(value.shape)}; expected {', '.join(names)} of one size")
    before, _, leaf = key.rpartition(".")
    block = before.rpartition(".")[0]
    return {f"{block}.{name}.{leaf}": part for name, part in zip(names, value.chunk(len(names)), strict=True)}


def _projections(key: str, value: Tensor, *, rotary: bool) -> dict[str, Tensor]:
    """Query, key and value projection of one matrix or bias; DINOv3's keys have no bias, there it is zero."""
    parts = _parts(key, value, ("q_proj", "k_proj", "v_proj"))
    bias = next((name for name in parts if name.endswith("k_proj.bias")), None)
    if rotary and bias is not None and torch.count_nonzero(parts.pop(bias)):
        raise CheckpointError(f"{key}: the keys have a bias; expected none, as in DINOv3")
    return parts


def _is_gated(weights: Weights) -> bool:
    """Whether feed-forward networks are gated: by name, or as timm has them, with twice the rows in as columns out."""
    if any(key.partition(".mlp.")[2].startswith(("gate_proj.", "weights_in.")) for key in weights):
        return True
    first, second = (weights.get(f"layers.0.mlp.fc{i}.weight") for i in (1, 2))
    if first is None or second is None or first.dim() != 2 or second.dim() != 2:
        return False
    return len(first) == 2 * second.shape[1]


def _gated(key: str, value: Tensor) -> dict[str, Tensor]:
    """A weight of a gated feed-forward network; timm and older transformers have gate and value in one matrix."""
    if re.search(r"\.mlp\.(fc1|weights_in)\.", key):
        return _parts(key, value, ("gate_proj", "up_proj"))
    return {re.sub(r"\.mlp\.(fc2|weights_out)\.", ".mlp.down_proj.", key): value}


def _plain_key(key: str) -> str:
    return key.replace(".mlp.up_proj.", ".mlp.fc1.").replace(".mlp.down_proj.", ".mlp.fc2.")
