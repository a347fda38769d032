"""Checkpoints in and out: published MinVIS, CTVIS and Mask2Former files and Hugging Face folders unchanged, and visrt's
own safetensors.

A checkpoint must fit its network key by key. What does not fit is refused with a list, never repaired; two renamings
of old Mask2Former files are the only exception.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visrt.models.architecture import other_family, settings_from_weights
from visrt.models.hugging_face import read_hugging_face
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.swin import Swin, relative_position_index
from visrt.models.tensor_files import read_tensor_file
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.runtime.json_file import parse_json
from visrt.runtime.settings import load_settings

__all__ = [
    "Checkpoint",
    "class_names_of",
    "fill",
    "fitted_network",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_weights",
    "save_checkpoint",
    "save_network",
    "settings_of",
]

N = TypeVar("N", bound=nn.Module)
S = TypeVar("S")

LISTED = 20
"""Keys named in an error, of each kind; the rest is counted."""

IGNORED_STARTS = ("criterion.", "vita_criterion.", "genvis_criterion.", "pixel_mean", "pixel_std")
INDEX = "relative_position_index"
PREDICTOR = "sem_seg_head.predictor."
CLASSIFIER = (PREDICTOR + "class_embed.weight", PREDICTOR + "class_embed.bias")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: weights by published key, the architecture, class names and notes if it has them."""

    path: Path
    weights: dict[str, Tensor]
    settings: NetworkSettings
    classes: tuple[str, ...] | None
    notes: dict[str, str]

    def network(self) -> Mask2Former:
        """The network with these weights, in eval mode. Raises CheckpointError listing the keys that do not fit."""
        return fitted_network(lambda: Mask2Former(self.settings), self.weights, self.path)


def load_checkpoint(path: Path | str, expected_classes: int | None = None) -> Mask2Former:
    """The network at `path`, float32, on the CPU, in eval mode; its architecture is read from the weights.

    `path`: an official .pth or .pkl, a Hugging Face Mask2Former's folder, or visrt's .safetensors. `expected_classes`:
    refuse another number of classes.
    """
    checkpoint = read_checkpoint(path)
    if expected_classes is not None and checkpoint.settings.classes != expected_classes:
        raise CheckpointError(
            f"{path}: the network has {checkpoint.settings.classes} classes but {expected_classes} were given; "
            "give the class names of the data set it was trained on"
        )
    return checkpoint.network()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Weights, architecture and class names of the file or folder at `path`; nothing in it is executed."""
    path = Path(path)
    if path.is_dir():
        model = read_hugging_face(path)
        return Checkpoint(path, model.weights, model.settings, model.classes, {})
    weights, metadata = read_weights(path)
    if family := other_family(weights):
        raise CheckpointError(f"{path}: this is {family}; expected a MinVIS, CTVIS or Mask2Former network")
    settings = settings_of(NetworkSettings, metadata, path) or settings_from_weights(weights, str(path))
    return Checkpoint(path, weights, settings, class_names_of(metadata, path), metadata)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What any checkpoint file holds: weights by published key, in float32, and the metadata of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint file; give the path of a .pth, .pkl or .safetensors file, or of "
            "a Hugging Face folder"
        )
    contents, metadata = read_tensor_file(path)
    return _published_keys(_state(contents, path)), metadata


def fitted_network(build: Callable[[], N], weights: Mapping[str, Tensor], path: Path) -> N:
    """The network that `build` makes with these weights, in eval mode; it is built without memory for its own.

    Raises CheckpointError listing the keys that do not fit.
    """
    network = _empty_network(build, path)
    _check_fit(network, weights, path)
    network.load_state_dict({**weights, **_position_indices(network)}, assign=True)
    return network.eval()


def load_weights(network: Mask2Former, path: Path | str) -> list[str]:
    """Start `network` from the weights at `path`; the keys that stay as they are.

    Every key must fit, but for what fine-tuning replaces: the classifier, if the number of classes differs, and an
    instance-embedding head that the file does not have.
    """
    checkpoint = read_checkpoint(path)
    weights = dict(checkpoint.weights)
    own = network.state_dict()
    kept = [key for key in CLASSIFIER if key in weights and weights[key].shape != own[key].shape]
    kept += [key for key in own if key.startswith(PREDICTOR + "reid_embed.") and key not in weights]
    fill(network, {**weights, **{key: own[key] for key in kept}}, checkpoint.path)
    return kept


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy `weights`, from the file at `path`, into `network`. Raises CheckpointError listing what does not fit."""
    _check_fit(network, weights, path)
    network.load_state_dict({**weights, **_position_indices(network)})


def save_checkpoint(
    network: Mask2Former, path: Path | str, classes: Sequence[str], notes: Mapping[str, str] | None = None
) -> None:
    """Write visrt's own checkpoint: the weights, and in the metadata the architecture, class names and `notes`.

    The file is complete or not there: it is written beside `path` and moved.
    """
    path, settings = Path(path), network.settings
    if len(classes) != settings.classes:
        raise CheckpointError(
            f"{path}: {len(classes)} class names for a network of {settings.classes} classes; give one for each"
        )
    described = {"settings": json.dumps(asdict(settings)), "classes": json.dumps(list(classes))}
    save_network(network, path, {**(notes or {}), **described})


def save_network(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """The weights of any network as safetensors, complete or not there."""
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.endswith(INDEX)}
    beside = path.with_name(path.name + ".part")
    save_file(weights, beside, metadata=dict(metadata))
    os.replace(beside, path)


def _state(contents: Any, path: Path) -> dict[str, Tensor]:
    """The state dictionary inside what a file holds: the whole of it, or its "model" or "state_dict"."""
    state = contents
    for name in ("model", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(name), dict):
            state = contents[name]
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path}: holds no weights; expected a dictionary of tensors, alone or under 'model'")
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path}: {strange[0]!r} is a {type(state[strange[0]]).__name__}, not a tensor; expected a dictionary of "
            "tensors, alone or under 'model'"
        )
    return state


def _published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in float32 by today's keys, without what is computed or belongs to training."""
    kept = {k: v for k, v in state.items() if not k.startswith(IGNORED_STARTS) and not k.endswith(INDEX)}
    return {_renamed(k): v.float() if v.is_floating_point() else v for k, v in kept.items()}


def _renamed(key: str) -> str:
    """Files of Mask2Former before its version 2 lack `pixel_decoder.` and call the query features static."""
    head, _, rest = key.partition("sem_seg_head.")
    if not head and not rest.startswith(("predictor.", "pixel_decoder.")):
        return "sem_seg_head.pixel_decoder." + rest
    return key.replace(PREDICTOR + "static_query.", PREDICTOR + "query_feat.")


def settings_of(cls: type[S], metadata: Mapping[str, str], path: Path) -> S | None:
    """The architecture in the metadata of visrt's own checkpoint; None in others."""
    if "settings" not in metadata:
        return None
    try:
        return load_settings(cls, _json(metadata["settings"], f"{path}: settings"), f"{path}: settings")
    except (SettingsError, TypeError, ValueError) as error:
        raise CheckpointError(f"{error}; it was written by another version of visrt or altered") from None


def class_names_of(metadata: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    """The class names in the metadata of visrt's own checkpoint; None in others."""
    return tuple(_json(metadata["classes"], f"{path}: classes")) if "classes" in metadata else None


def _json(text: str, where: str) -> Any:
    return parse_json(text, where, "what visrt wrote; the file was altered", CheckpointError)


def _empty_network(build: Callable[[], N], path: Path) -> N:
    """The network without memory for its weights, which are assigned from the file."""
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: the sizes in it do not make a network ({error})") from None


def _position_indices(network: nn.Module) -> dict[str, Tensor]:
    """Swin's index buffers, which are computed, never read."""
    backbone = network.get_submodule("backbone")
    if not isinstance(backbone, Swin):
        return {}
    index = relative_position_index(backbone.settings.window)
    return {key: index.clone() for key in network.state_dict() if key.endswith(INDEX)}


def _check_fit(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse, with lists, weights that are missing, unexpected or misshapen."""
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(INDEX)}
    faults = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "misshapen": [
            f"{key} {_shape(value)}, expected {_shape(own[key])}"
            for key, value in weights.items()
            if key in own and value.shape != own[key].shape
        ],
    }
    told = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in faults.items() if keys)
    if told:
        raise CheckpointError(f"{path}: does not fit the network read from it: {told}")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")
