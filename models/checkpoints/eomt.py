"""EoMT in checkpoints: official files, folders of transformers, and visrt's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from visrt.models.checkpoints.architecture import Weights, check_shapes, layer_count
from visrt.models.checkpoints.checkpoint import FolderContents, NetworkKind, read_weights
from visrt.models.checkpoints.eomt_keys import TABLE, is_official, own_weights, whole_weights
from visrt.models.checkpoints.hugging_face import CONFIG, folder_config, folder_weights, normalised
from visrt.models.checkpoints.hugging_face_config import check_model, check_sizes, check_values, class_names
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.vit import ROTARY_BASE
from visrt.runtime.errors import CheckpointError, UsageError

__all__ = ["EOMT", "HEAD_DIM", "UNUSED", "eomt_with_base", "folder_contents", "vit_values"]

HEAD_DIM = 64
"""Channels of a head in all published networks; weights do not show it."""

DINOV3_NORM_EPS = 1e-5
"""Of the official networks, whose transformer is built as DINOv3's own."""

UPSCALED = "upscale_block.block.0.conv1.weight"
UPDATER = "query_updater.weight"
MASKS = "attn_mask_probs"
FIRST = "layers.0."
FOLDER_NORM_EPS = 1e-6
"""What transformers computes with where a configuration names no other, with DINOv3 too."""

# The weights whose shapes give the architecture, and their numbers of axes.
NEEDED = {
    "embeddings.cls_token": 3,
    "embeddings.register_tokens": 3,
    "embeddings.patch_embeddings.projection.weight": 4,
    "query.weight": 2,
    "class_predictor.weight": 2,
    MASKS: 1,
}
PATCHES = (8, 16, 32)
"""Pixels of a side, from which doubling leads to masks at a quarter of the image."""
UNUSED = (MASKS, "embeddings.mask_token", "encoder.pixel_")
NETWORKS = "an EoMT or VidEoMT network"

OPTIONS: dict[str, Any] = {"hidden_act": "gelu", "num_channels": 3}
ROTARY_OPTIONS: dict[str, Any] = {
    "use_gated_mlp": False,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "rope_theta": ROTARY_BASE,
}


def vit_values(weights: Weights, where: str) -> dict[str, Any]:
    """Settings of an EoMT or VidEoMT network whose weights have visrt's names.

    heads is 0, which makes no network, where the published size of heads does not divide the channels.
    """
    check_shapes(weights, NEEDED, where, NETWORKS)
    dim = weights["embeddings.cls_token"].shape[2]
    gated = FIRST + "mlp.gate_proj.weight" in weights
    out = FIRST + ("mlp.down_proj.weight" if gated else "mlp.fc2.weight")
    check_shapes(weights, {out: 2}, where, NETWORKS)
    return {
        "classes": weights["class_predictor.weight"].shape[0] - 1,
        "queries": weights["query.weight"].shape[0],
        "dim": dim,
        "blocks": layer_count(weights, "layers."),
        "heads": 0 if dim % HEAD_DIM else dim // HEAD_DIM,
        "query_blocks": len(weights[MASKS]),
        "feedforward_dim": weights[out].shape[1],
        "feedforward": "swiglu" if gated else "mlp",
        "patch": _patch(weights, where),
        "registers": weights["embeddings.register_tokens"].shape[1],
        **_positions(weights, where),
        **_normalisation(weights),
    }


def _patch(weights: Weights, where: str) -> int:
    channels, height, width = weights["embeddings.patch_embeddings.projection.weight"].shape[1:]
    if channels != 3 or height != width or height not in PATCHES:
        raise CheckpointError(
            f"{where}: its patches are {height}x{width} pixels of {channels} channels; expected squares of "
            f"{', '.join(map(str, PATCHES))} in RGB, from which doubling leads to masks at a quarter of the image"
        )
    return height


def _positions(weights: Weights, where: str) -> dict[str, Any]:
    if TABLE not in weights:
        return {"positions": "rotary", "table_side": 0, "norm_eps": DINOV3_NORM_EPS}
    check_shapes(weights, {TABLE: 2}, where, NETWORKS)
    rows = len(weights[TABLE])
    side = math.isqrt(rows)
    if side * side != rows:
        raise CheckpointError(
            f"{where}: its table has {rows} positions; expected those of a square, such as 1600 for 40 x 40"
        )
    return {"positions": "table", "table_side": side}


def _normalisation(weights: Weights) -> dict[str, Any]:
    """Mean and deviation in 0..255 units, of files that hold them in 0..1 units."""
    stored = {name: weights.get(f"encoder.{name}") for name in ("pixel_mean", "pixel_std")}
    return {
        name: tuple(round(255 * value, 4) for value in numbers.flatten().tolist())
        for name, numbers in stored.items()
        if numbers is not None
    }


def _settings_from_weights(weights: Weights, where: str) -> EomtSettings:
    return EomtSettings(**vit_values(weights, where))


def _published(weights: Weights, where: str, base: Path | str | None = None) -> Weights:
    """Weights of a file by visrt's names. `base`: a path, or "none" where the file is known to be whole."""
    own = own_weights(weights)
    if UPDATER in own:
        raise CheckpointError(f"{where}: this is a VidEoMT network, whose queries travel; expected EoMT")
    differences = is_official(weights) and TABLE not in own
    if not differences:
        if base is not None and UPSCALED in own:
            raise UsageError(f"{where}: holds whole weights; leave out the base {base}")
        return own
    if base is None:
        raise CheckpointError(
            f"{where}: EoMT with DINOv3 is published as differences to DINOv3's weights, which are not in the file; "
            "convert it with --base FOLDER of that DINOv3 network, or with --base none where it is whole and your own"
        )
    return own if str(base) == "none" else whole_weights(own, _base_weights(Path(base)), where, base)


def _base_weights(path: Path) -> Weights:
    return own_weights(folder_weights(path) if path.is_dir() else read_weights(path)[0])


def folder_contents(
    folder: Path, settings: EomtSettings, weights: Weights, config: Mapping[str, Any]
) -> FolderContents:
    """The contents of a folder of transformers with EoMT or VidEoMT, checked against its configuration."""
    path = folder / CONFIG
    rotary = settings.positions == "rotary"
    check_values(config, OPTIONS, "", path)
    if rotary:
        check_values({**config, **(config.get("rope_parameters") or {})}, ROTARY_OPTIONS, "", path)
    size = config.get("image_size")
    if size is not None and not isinstance(size, int):
        raise CheckpointError(
            f"{path}: image_size is {size!r}; expected one number, as transformers runs these networks on squares only"
        )
    eps = config.get("layer_norm_eps", FOLDER_NORM_EPS)
    if not isinstance(eps, float) or not eps > 0:
        raise CheckpointError(f"{path}: layer_norm_eps is {eps!r}; expected a small number above 0, such as 1e-6")
    settings = replace(settings, heads=_heads(config, settings.dim, path), norm_eps=eps)
    check_sizes(config, _sizes(settings), "", path)
    kept = {key: value.float() for key, value in weights.items() if not key.startswith((*UNUSED, "criterion."))}
    return FolderContents(kept, normalised(settings, folder), *class_names(config, settings.classes, path))


def _heads(config: Mapping[str, Any], dim: int, path: Path) -> int:
    heads = config.get("num_attention_heads", dim // HEAD_DIM)
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise CheckpointError(
            f"{path}: num_attention_heads is {heads!r}; expected a number that divides {dim} channels"
        )
    return heads


def _sizes(settings: EomtSettings) -> dict[str, Any]:
    """The sizes of the network under transformers' names."""
    sizes = {
        "hidden_size": settings.dim,
        "num_hidden_layers": settings.blocks,
        "num_blocks": settings.query_blocks,
        "num_queries": settings.queries,
        "num_register_tokens": settings.registers,
        "patch_size": settings.patch,
    }
    if settings.positions == "rotary":
        return {**sizes, "intermediate_size": settings.feedforward_dim}
    ratio = {} if settings.feedforward == "swiglu" else {"mlp_ratio": settings.feedforward_dim / settings.dim}
    return {**sizes, **ratio, "use_swiglu_ffn": settings.feedforward == "swiglu"}


def _read_folder(folder: Path) -> FolderContents:
    config = folder_config(folder)
    check_model(
        config,
        {"eomt": "EomtForUniversalSegmentation", "eomt_dinov3": "EomtDinov3ForUniversalSegmentation"},
        folder / CONFIG,
    )
    stored = folder_weights(folder)
    if is_official(stored):
        raise CheckpointError(f"{folder}: its weights are the official ones, not transformers'; give their file itself")
    weights = own_weights(stored)
    contents = folder_contents(folder, _settings_from_weights(weights, str(folder)), weights, config)
    if torch.any(weights[MASKS] > 0):
        raise CheckpointError(
            f"{folder}: {MASKS} is {weights[MASKS].tolist()}, so transformers runs it with masked attention; expected "
            "zeros: the published networks fade it out in training and run without"
        )
    return contents


EOMT = NetworkKind(
    expected="an EoMT network, official or from transformers",
    settings=EomtSettings,
    build=Eomt,
    settings_from_weights=_settings_from_weights,
    published=_published,
    mark=UPSCALED,
    ignored=UNUSED,
    not_in_weights=("heads", "norm_eps", "pixel_mean", "pixel_std"),
    read_folder=_read_folder,
)


def eomt_with_base(base: Path) -> NetworkKind[Eomt, EomtSettings]:
    """EoMT with DINOv3 from an official file of differences to the network at `base`, a folder of transformers or file.

    The path "none": the file is whole, as one that its owner trained.
    """
    return replace(EOMT, published=partial(_published, base=base))
