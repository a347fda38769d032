"""The start of EoMT's and VidEoMT's training: a plain transformer of DINOv2 or DINOv3, an EoMT or a VidEoMT.

The transformer must fit as a whole. Patches and positions of another size are resampled, as the published trainings do
with DINOv2's patches of 14 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.models.checkpoints.architecture import layer_count, other_family
from visrt.models.checkpoints.checkpoint import read_weights, remarks_in
from visrt.models.checkpoints.eomt_keys import ENCODER, TABLE, is_official, own_weights
from visrt.models.checkpoints.hugging_face import folder_weights
from visrt.models.checkpoints.start import Start, Takes, fitting
from visrt.models.eomt import Eomt
from visrt.models.videomt import VideoMt
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.runtime.json_file import parse_json

__all__ = ["resampled_patches", "resampled_positions", "start_vit"]

CLASS = "embeddings.cls_token"
REGISTERS = "embeddings.register_tokens"
PATCHES = "embeddings.patch_embeddings.projection.weight"
QUERIES = "query.weight"
MASKS = "attn_mask_probs"
UNUSED = ("embeddings.mask_token", MASKS, "encoder.pixel_", "head.")
EXPECTED = "a DINOv2 transformer with registers, a DINOv3 one, an EoMT or a VidEoMT"


def start_vit(network: Eomt | VideoMt, init: str | None, takes: Takes) -> Start | None:
    """Start `network` from the file or Hugging Face folder `init`; None if there is none.

    `takes`: all that fits, or the transformer ("backbone") alone. Raises CheckpointError or SettingsError, with
    `network` as it was, if the transformer does not fit.
    """
    if not init:
        return None
    if init == "imagenet":
        raise SettingsError(f"init is 'imagenet', whose weights are EfficientNet-Lite0's; give the path of {EXPECTED}")
    given, remarks = _read(Path(init), network, takes)
    if takes == "backbone":
        given = {key: value for key, value in given.items() if key.startswith(ENCODER)}
    own = network.state_dict()
    taken = fitting(own, given)
    new, left = (tuple(key for key in keys if key not in taken) for keys in (own, given))
    start = Start(init, tuple(taken), new, left, remarks)
    start.require(ENCODER, "the transformer must fit as a whole")
    with torch.no_grad():
        for key in taken:
            own[key].copy_(given[key])
    return start


def _read(path: Path, network: Eomt | VideoMt, takes: Takes) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights at `path` by the names of `network`, of its patch and table; refused if their sizes are others.

    And what was chosen while they were read.
    """
    read, metadata = (folder_weights(path), {}) if path.is_dir() else read_weights(path)
    remarks = remarks_in(metadata)
    weights = _without_class_position(own_weights({key: value.float() for key, value in read.items()}))
    if not {CLASS, PATCHES} <= weights.keys() or weights[PATCHES].dim() != 4:
        other = other_family(read)
        raise CheckpointError(
            f"{path}: {f'this is {other}' if other else 'holds no such network'}; expected {EXPECTED}"
        )
    if is_official(read) and TABLE not in weights:
        raise CheckpointError(
            f"{path}: EoMT with DINOv3 is published as differences to DINOv3's weights; add them first with `visrt "
            "convert --base`, and start from the file that it writes"
        )
    _check_sizes(_sizes(weights, metadata, takes, path), network, path)
    settings = network.settings
    weights[PATCHES] = resampled_patches(weights[PATCHES], settings.patch)
    if TABLE in weights:
        weights[TABLE] = resampled_positions(weights[TABLE], settings.table_side)
    return {key: value for key, value in weights.items() if not key.startswith(UNUSED)}, remarks


def _without_class_position(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without a position of the class token, which DINOv2's own files have: it is added to the token."""
    table = weights.get(TABLE)
    if table is None or table.dim() != 2 or math.isqrt(len(table) - 1) ** 2 != len(table) - 1:
        return weights
    return {**weights, CLASS: weights[CLASS] + table[0], TABLE: table[1:]}


def _sizes(weights: Mapping[str, Tensor], metadata: Mapping[str, str], takes: Takes, path: Path) -> dict[str, Any]:
    """Settings that the file shows and that must be those of the network."""
    gate = "layers.0.mlp.gate_proj.weight"
    inner = next((weights[key] for key in (gate, "layers.0.mlp.fc1.weight") if key in weights), None)
    sizes: dict[str, Any] = {
        "dim": weights[CLASS].shape[-1],
        "blocks": layer_count(weights, "layers."),
        "feedforward": "swiglu" if gate in weights else "mlp",
        "feedforward_dim": 0 if inner is None else len(inner),
        "registers": weights[REGISTERS].shape[1] if REGISTERS in weights else 0,
        "positions": "table" if TABLE in weights else "rotary",
    }
    if takes == "network" and QUERIES in weights:
        sizes["queries"] = len(weights[QUERIES])
    if takes == "network" and MASKS in weights:
        sizes["query_blocks"] = len(weights[MASKS])
    if "settings" not in metadata:
        return sizes
    altered = "what visrt wrote; the file was altered"
    stored = parse_json(metadata["settings"], f"{path}: its settings", altered, CheckpointError)
    names = ("heads", "query_blocks") if takes == "network" else ("heads",)
    return sizes | {name: stored[name] for name in names if name in stored}


def _check_sizes(theirs: Mapping[str, Any], network: Eomt | VideoMt, path: Path) -> None:
    unlike = {name: value for name, value in theirs.items() if getattr(network.settings, name) != value}
    if unlike:
        listed = ", ".join(f"{name} {value}" for name, value in unlike.items())
        ours = ", ".join(f"network.{name} {getattr(network.settings, name)}" for name in unlike)
        raise CheckpointError(
            f"{path}: its network has {listed}; expected {ours}; make `network` agree with the file or give another"
        )


def resampled_patches(weight: Tensor, patch: int) -> Tensor:
    """The patch projection `weight` [D, 3, p, p] for patches of `patch` pixels.

    The new weights give of an enlarged patch what the old ones gave of the patch itself, as nearly as they can
    (FlexiViT, Beyer et al., CVPR 2023, equation 3).
    """
    old = weight.shape[-1]
    if old == patch:
        return weight
    unit = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    enlarged = F.interpolate(unit, (patch, patch), mode="bicubic", antialias=True, align_corners=False).flatten(1)
    resampled = torch.linalg.pinv(enlarged) @ weight.double().flatten(2).transpose(1, 2)
    new: Tensor = resampled.transpose(1, 2).reshape(*weight.shape[:2], patch, patch)
    return new.to(weight.dtype)


def resampled_positions(table: Tensor, side: int) -> Tensor:
    """The position table [G * G, D] of a square as one of `side` x `side`, bicubic with antialiasing."""
    old = math.isqrt(len(table))
    if old == side or old * old != len(table):
        return table
    square = table.T.reshape(1, -1, old, old)
    resampled = F.interpolate(square, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return resampled[0].flatten(1).T.contiguous()
