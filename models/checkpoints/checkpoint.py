"""Checkpoints in and out, of every family: published files and folders unchanged, and visrt's own safetensors.

A checkpoint must fit its network key by key. What does not fit is refused with a list, never repaired; two renamings
of old Mask2Former files are the only exception. What is particular to a family is its `NetworkKind`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visrt.models.checkpoints.architecture import Weights, other_family, trainers_prefix
from visrt.models.checkpoints.tensor_files import read_tensor_file
from visrt.models.swin import Swin, relative_position_index
from visrt.runtime.errors import CheckpointError, SettingsError, UsageError
from visrt.runtime.json_file import parse_json
from visrt.runtime.settings import load_settings

__all__ = [
    "INDEX",
    "PREDICTOR",
    "Checkpoint",
    "FolderContents",
    "NetworkKind",
    "load_checkpoint",
    "read_weights",
    "remarks_in",
    "save_checkpoint",
    "without_prefix",
]


class HasClasses(Protocol):
    """Settings of a network, a frozen dataclass."""

    @property
    def classes(self) -> int: ...


N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound=HasClasses)

LISTED = 20
"""Keys named in an error, of each kind; the rest is counted."""

IGNORED_STARTS = ("criterion.", "vita_criterion.", "genvis_criterion.", "pixel_mean", "pixel_std")
REMARKS = "visrt.remarks"
"""Among the metadata of weights: remarks from reading them, as a json list."""
INDEX = "relative_position_index"
PREDICTOR = "sem_seg_head.predictor."


class FolderContents(NamedTuple):
    """A checkpoint that is a folder: float32 weights by published key, the architecture, class names if it has them.

    classes_fault: why the names that it has are none for this network. remarks: what was chosen while reading.
    """

    weights: dict[str, Tensor]
    settings: Any
    classes: tuple[str, ...] | None
    classes_fault: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkKind(Generic[N, S]):
    """One kind of network, as checkpoints hold it.

    expected: its name in errors. settings_from_weights: the architecture, from weights and the file's name for errors.
    mark: a key that only networks of this kind have; without one, files of known other families are refused. ignored:
    starts of keys that the network does not have, looked at for the architecture only. not_in_weights: settings that
    the weights do not show. unclear: those of them that must be given for such an architecture, each with the reason.
    published: from weights and the file's name for errors, the weights by the network's own
    keys, where it is published with others. read_folder: for checkpoints that are folders.
    """

    expected: str
    settings: type[S]
    build: Callable[[S], N]
    settings_from_weights: Callable[[Weights, str], S]
    mark: str | None = None
    ignored: tuple[str, ...] = ()
    not_in_weights: tuple[str, ...] = ()
    unclear: Callable[[S], Mapping[str, str]] | None = None
    published: Callable[[Weights, str], Weights] | None = None
    read_folder: Callable[[Path], FolderContents] | None = None


@dataclass(frozen=True)
class Checkpoint(Generic[N, S]):
    """A checkpoint that was read: weights by published key, the architecture, class names and notes if it has them.

    classes_fault: why class names that it has are none for this network. remarks: what was chosen while reading.
    """

    kind: NetworkKind[N, S]
    path: Path
    weights: dict[str, Tensor]
    settings: S
    classes: tuple[str, ...] | None
    notes: dict[str, str]
    classes_fault: str = ""
    remarks: tuple[str, ...] = ()

    def network(self) -> N:
        """The network with these weights, float32, on the CPU, in eval mode.

        Raises CheckpointError listing the keys that do not fit.
        """
        try:
            with torch.device("meta"):  # without memory for its weights, which are assigned from the file
                network = self.kind.build(self.settings)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{self.path}: the sizes in it do not make a network ({error})") from None
        _check_fit(network, self.weights, self.path)
        network.load_state_dict({**self.weights, **_position_indices(network)}, assign=True)
        return network.eval()


def load_checkpoint(
    path: Path | str,
    kind: NetworkKind[N, S],
    *,
    expected_classes: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint[N, S]:
    """Weights, architecture and class names of the file or folder at `path`; nothing in it is executed.

    `expected_classes`: refuse another number of classes. `settings`: those that the weights do not show, in place of
    the defaults, for a file that visrt did not write.
    """
    path = Path(path)
    if kind.read_folder is not None and path.is_dir():
        if settings:
            raise UsageError(f"{path}: its configuration tells the settings; leave out {', '.join(settings)}")
        found = kind.read_folder(path)
        checkpoint = Checkpoint(kind, path, *found[:3], {}, found.classes_fault, found.remarks)
    else:
        checkpoint = _from_file(path, kind, settings or {})
    classes = checkpoint.settings.classes
    if expected_classes is not None and classes != expected_classes:
        raise CheckpointError(
            f"{path}: the network has {classes} classes but {expected_classes} were given; give the class names of "
            "the data set it was trained on"
        )
    return checkpoint


def _from_file(path: Path, kind: NetworkKind[N, S], given: Mapping[str, Any]) -> Checkpoint[N, S]:
    found, metadata = read_weights(path)
    remarks = remarks_in(metadata)
    weights = found if kind.published is None else kind.published(found, str(path))
    if kind.mark is None or kind.mark not in weights:
        other = other_family(found)
        if other or kind.mark:
            raise CheckpointError(
                f"{path}: {f'this is {other}' if other else f'holds no {kind.mark}'}; expected {kind.expected}"
            )
    if unknown := given.keys() - set(kind.not_in_weights):
        known = ", ".join(kind.not_in_weights) or "none"
        raise UsageError(f"{', '.join(sorted(unknown))}: the weights tell it; given can be {known}")
    settings = _stored_settings(kind.settings, metadata, path)
    if settings is None:
        settings = kind.settings_from_weights(weights, str(path))
        for name, reason in (kind.unclear(settings) if kind.unclear else {}).items():
            if name not in given:
                raise UsageError(f"{path}: {reason}")
        if given:
            values = {**asdict(settings), **given}  # type: ignore[call-overload]
            settings = load_settings(kind.settings, values, f"{path}: settings")
    elif given:
        raise UsageError(f"{path}: holds its own settings; leave out {', '.join(given)}")
    classes = tuple(_json(metadata["classes"], "classes", path)) if "classes" in metadata else None
    kept = {key: value for key, value in weights.items() if not key.startswith(kind.ignored)}
    return Checkpoint(kind, path, kept, settings, classes, metadata, remarks=remarks)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of any checkpoint file by published key, in float32, and the metadata of a safetensors file.

    Left out is what is computed or belongs to training, and from each key what a trainer put before all of them. The
    metadata tell what was chosen so, for `remarks_in`.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint file; give the path of a .pth, .pkl or .safetensors file, or of "
            "a Hugging Face folder"
        )
    contents, metadata = read_tensor_file(path)
    state, remarks = _state(contents, path)
    metadata = {key: value for key, value in metadata.items() if key != REMARKS}
    state, remark = without_prefix(state, path)
    remarks += remark
    if remarks:
        metadata[REMARKS] = json.dumps(remarks)
    kept = {k: v for k, v in state.items() if not k.startswith(IGNORED_STARTS) and not k.endswith(INDEX)}
    return {_renamed(k): v.float() if v.is_floating_point() else v for k, v in kept.items()}, metadata


def without_prefix(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`state` without what a trainer put before its keys, and what else stood there; and a remark if there was any."""
    own = [key for key in state if not key.startswith(IGNORED_STARTS)]
    prefix = trainers_prefix(own)
    if not prefix:
        return state, ()
    others = [key for key in own if not key.startswith(prefix)]
    more = f"; so are {len(others)} other keys, such as {others[0]}" if others else ""
    remark = (
        f"{path}: {prefix} stands before its {len(own) - len(others)} keys, as trainers write it, and is left out{more}"
    )
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, (remark,)


def remarks_in(metadata: dict[str, str]) -> tuple[str, ...]:
    """What `read_weights` has to say, which is taken out of its `metadata`."""
    return tuple(json.loads(metadata.pop(REMARKS, "[]")))


def save_checkpoint(
    network: nn.Module, path: Path | str, classes: Sequence[str], notes: Mapping[str, str] | None = None
) -> None:
    """Write visrt's own checkpoint: the weights, and in the metadata the network's settings, class names and `notes`.

    The file is complete or not there: it is written to a temporary name and moved.
    """
    path, settings = Path(path), cast(Any, network.settings)
    if len(classes) != settings.classes:
        raise CheckpointError(
            f"{path}: {len(classes)} class names for a network of {settings.classes} classes; give one for each"
        )
    described = {"settings": json.dumps(asdict(settings)), "classes": json.dumps(list(classes))}
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.endswith(INDEX)}
    part = path.with_name(path.name + ".part")
    save_file(weights, part, metadata={**(notes or {}), **described})
    os.replace(part, path)


def _state(contents: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dictionary inside what a file holds: the whole of it, or its "model" or "state_dict"; and remarks."""
    state, taken = contents, ""
    for name in ("model", "state_dict", "blobs"):
        if isinstance(contents, dict) and isinstance(contents.get(name), dict):
            state, taken = contents[name], name
    averages = [name for name in contents if _is_average(name, contents[name])] if taken else []
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path}: holds no weights; expected a dictionary of tensors, alone or under 'model'")
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path}: {strange[0]!r} is a {type(state[strange[0]]).__name__}, not a tensor; expected a dictionary of "
            "tensors, alone or under 'model'"
        )
    if not averages:
        return state, []
    other = averages[0]
    return state, [
        f"{path}: its {taken!r} is read; {other!r} beside it, which seems to be a running average (EMA), is not: to "
        f"take it, save it alone: torch.save({{'model': torch.load(FILE, weights_only=True)[{other!r}]}}, NEW)"
    ]


def _is_average(name: object, value: Any) -> bool:
    """Whether the entry of a checkpoint is weights too, averaged over a training."""
    named = isinstance(name, str) and re.search(r"(^|_)(ema|swa|avg|average|averaged)(_|$)", name, re.IGNORECASE)
    return bool(named) and isinstance(value, dict) and any(isinstance(one, Tensor | dict) for one in value.values())


def _renamed(key: str) -> str:
    """Files of Mask2Former before its version 2 lack `pixel_decoder.` and call the query features static."""
    head, _, rest = key.partition("sem_seg_head.")
    if not head and not rest.startswith(("predictor.", "pixel_decoder.")):
        return "sem_seg_head.pixel_decoder." + rest
    return key.replace(PREDICTOR + "static_query.", PREDICTOR + "query_feat.")


def _stored_settings(cls: type[S], metadata: Mapping[str, str], path: Path) -> S | None:
    """The architecture in the metadata of visrt's own checkpoint; None in others."""
    if "settings" not in metadata:
        return None
    try:
        return load_settings(cls, _json(metadata["settings"], "settings", path), f"{path}: settings")
    except (SettingsError, TypeError, ValueError) as error:
        raise CheckpointError(f"{error}; it was written by another version of visrt or altered") from None


def _json(text: str, what: str, path: Path) -> Any:
    return parse_json(text, f"{path}: its {what}", "what visrt wrote; the file was altered", CheckpointError)


def _position_indices(network: nn.Module) -> dict[str, Tensor]:
    """Swin's index buffers, which are computed, never read."""
    return {
        f"{name}.{key}": relative_position_index(module.settings.window)
        for name, module in network.named_modules()
        if isinstance(module, Swin)
        for key in module.state_dict()
        if key.endswith(INDEX)
    }


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
    message = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in faults.items() if keys)
    if message:
        raise CheckpointError(f"{path}: does not fit the network read from it: {message}")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")
