"""The start of a training: from a file of weights a network takes what fits by name and shape, the rest is new.

The backbone must fit as a whole, as must most of what the file and the network both have: anything else is a network
of other sizes, and would cost days before it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.architecture import other_family
from visrt.models.checkpoints.backbones import backbone_alone, described
from visrt.models.checkpoints.checkpoint import INDEX, PREDICTOR, read_weights, remarks_in
from visrt.models.checkpoints.hugging_face import read_hugging_face
from visrt.models.efficientnet import imagenet_weights
from visrt.models.mask2former import BACKBONES
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.runtime.json_file import parse_json

__all__ = [
    "Start",
    "Takes",
    "backbone_prefix",
    "fitting",
    "read_start",
    "start_from_init",
    "take",
    "take_known_classes",
]

Takes = Literal["network", "backbone"]
"""What of a file a training starts from."""

PREFIXES = ("backbone.bottom_up.", "backbone.")
"""Of backbone keys in files: under a feature pyramid, and directly under pixel decoders; the longer first."""

OUTPUT_NORMS = r"norm\d\."
"""Swin's layer norms of the maps that it gives out, which an ImageNet network does not have."""

RCNN = r"(roi_heads|proposal_generator)\."

CLASSIFIERS = tuple((f"{name}.weight", f"{name}.bias") for name in (PREDICTOR + "class_embed", "class_predictor"))
"""Weights that give a query its class, in Mask2Former and in EoMT."""

LISTED = 12
"""Modules named in a line of the report; the rest is counted."""


@dataclass(frozen=True)
class Start:
    """What a network took from the file `path`: keys of its weights that are `taken` and `new`, and keys of the file
    that are `left`. remarks: what was chosen while it was read."""

    path: Path | str
    taken: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """For the user: how many weights were taken, and the modules that are new or left out."""
        total = len(self.taken) + len(self.new)
        lines = [*self.remarks, f"{self.path}: {len(self.taken)} of the network's {total} weights taken"]
        if self.new:
            lines.append(f"new: {_modules(self.new, self.taken)}")
        if self.left:
            lines.append(f"left out: {_modules(self.left, self.taken)}")
        return tuple(lines)

    def require(self, starts: tuple[str, ...], reason: str, but: Sequence[str] = ()) -> None:
        """Refuse if a weight whose key begins with one of `starts` is new, except those in `but`."""
        lacking = [key for key in self.new if key.startswith(starts) and key not in but]
        if lacking:
            raise CheckpointError(
                f"{self.path}: {reason}, but {len(lacking)} of its weights are not in the file or have another shape "
                f"there: {_modules(lacking, self.taken)}; make `network` agree with the file or give another"
            )


def start_from_init(network: nn.Module, init: str | None, takes: Takes) -> Start | None:
    """Start `network` from `init`, "imagenet" or a path; None if there is none. Raises SettingsError, CheckpointError.

    `takes`: all that fits of a file, or its backbone alone.
    """
    if not init:
        return None
    if init == "imagenet":
        return take(network, _imagenet(network), init)
    weights, remarks = read_start(init, network)
    if takes == "backbone":
        weights = {key: value for key, value in weights.items() if key.startswith(PREFIXES)}
    return replace(take(network, weights, init), remarks=remarks)


@torch.no_grad()
def take_known_classes(network: nn.Module, init: str | None, classes: Sequence[str]) -> tuple[str, ...]:
    """Give the classifier of `network`, of `classes`, the rows of the classes that the file `init` has by name.

    So is "no object"; a row of no such name is new. Only visrt's own files have names. What was done, in a line.
    """
    if not init or Path(init).suffix != ".safetensors" or not classes:
        return ()
    weights, metadata = read_weights(Path(init))
    own = network.state_dict()
    keys = next(keys for keys in CLASSIFIERS if keys[0] in own)
    if "classes" not in metadata or any(key not in weights for key in keys):
        return ()
    if weights[keys[0]].shape[1] != own[keys[0]].shape[1]:
        return ()
    altered = "what visrt wrote; the file was altered"
    theirs = [*parse_json(metadata["classes"], f"{init}: its classes", altered, CheckpointError), None]
    fresh = nn.Linear(own[keys[0]].shape[1], len(own[keys[0]]))
    for key, value in zip(keys, (fresh.weight, fresh.bias), strict=True):
        own[key].copy_(value)
        for row, name in enumerate([*classes, None]):
            if name in theirs:
                own[key][row] = weights[key][theirs.index(name)]
    known = [name for name in classes if name in theirs]
    return (f"classifier: {', '.join(known) or 'none of the classes'} and no object from the file, the rest new",)


def _imagenet(network: nn.Module) -> dict[str, Tensor]:
    kind = cast(Any, network.get_submodule(backbone_prefix(network)[:-1])).settings.kind
    if kind != "efficientnet_lite0":
        raise SettingsError(
            f"init is 'imagenet' but the backbone is {kind}: ImageNet weights come with EfficientNet-Lite0 only; give "
            "the path of a file: torchvision's or detectron2's R-50.pkl for a ResNet, the official one for Swin"
        )
    return {PREFIXES[-1] + key: value for key, value in imagenet_weights().items()}


def read_start(path: Path | str, network: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a file or Hugging Face folder by published key; those of a backbone alone below "backbone.".
    And what was chosen while they were read.

    Raises CheckpointError for files that cannot be a start, also for one that records another number of attention heads
    than `network`, which no shape shows.
    """
    path = Path(path)
    if path.is_dir():
        found = read_hugging_face(path)
        return dict(found.weights), found.remarks
    weights, metadata = read_weights(path)
    remarks = remarks_in(metadata)
    _check_heads(metadata, network, path)
    alone = backbone_alone(weights, str(path))
    if alone is not None:
        return {PREFIXES[-1] + key: value for key, value in alone.items()}, remarks
    if any(re.match(RCNN, key) for key in weights):
        raise CheckpointError(
            f"{path}: this is a detectron2 R-CNN, whose backbone takes BGR and has its strides in the 1x1 convolutions "
            "unless it was trained otherwise, which the file does not tell; give an ImageNet backbone"
        )
    return weights, remarks


def take(network: nn.Module, weights: Mapping[str, Tensor], path: Path | str) -> Start:
    """Copy what fits of `weights`, read by `read_start` from `path`, into `network`.

    A layer is taken as a whole or not at all. Raises CheckpointError, with `network` as it was, if the backbone does
    not fit as a whole, or less than half of what both have.
    """
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(INDEX)}
    prefix = backbone_prefix(network)
    found = _backbone(weights)
    if not found:
        other = other_family(weights)
        raise CheckpointError(
            f"{path}: {f'this is {other}' if other else 'holds no backbone'}; expected an ImageNet backbone "
            "(torchvision, detectron2, Swin) or a checkpoint with one: Mask2Former, MinVIS, CTVIS, VITA, GenVIS, InsPro"
        )
    backbone = {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}
    if len(found) == len(weights):
        backbone = {key: value for key, value in backbone.items() if not re.match(OUTPUT_NORMS, key)}
    _check_backbone(backbone, found, path)
    file_root = next(root for root in PREFIXES if any(key.startswith(root) for key in weights))
    rest = {key: value for key, value in weights.items() if not key.startswith(file_root)}
    given = {**rest, **{prefix + key: value for key, value in found.items()}}
    taken = fitting(own, given)
    _check_rest(own, given, path, prefix)
    with torch.no_grad():
        for key in taken:
            own[key].copy_(given[key])
    new, left = (tuple(key for key in keys if key not in taken) for keys in (own, given))
    return Start(path, tuple(taken), new, left)


def backbone_prefix(network: nn.Module) -> str:
    """What the keys of the backbone of `network` begin with."""
    kinds = tuple(cast(type[nn.Module], build) for _, build in BACKBONES.values())
    return f"{next(name for name, module in network.named_modules() if isinstance(module, kinds))}."


def _backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone in `weights`, without the prefix of its keys; nothing if there is none."""
    for root in PREFIXES:
        found = {key.removeprefix(root): value for key, value in weights.items() if key.startswith(root)}
        if found:
            return found
    return {}


def _check_heads(metadata: Mapping[str, str], network: nn.Module, path: Path) -> None:
    if "settings" not in metadata:
        return
    altered = "what visrt wrote; the file was altered"
    theirs = _heads(parse_json(metadata["settings"], f"{path}: its settings", altered, CheckpointError))
    for name, ours in _heads(asdict(cast(Any, network.settings))).items():
        if theirs.get(name, ours) != ours:
            raise CheckpointError(
                f"{path}: its network has {theirs[name]} attention heads, that of the settings {ours}; set {name} to "
                f"{theirs[name]}"
            )


def _heads(settings: Any) -> dict[str, Any]:
    """Numbers of attention heads by setting, of the settings of a network."""
    if not isinstance(settings, dict):
        return {}
    frame = settings.get("frame", settings)
    return {"network.heads": frame.get("heads")} | ({"genvis.heads": settings["heads"]} if "frame" in settings else {})


def _check_backbone(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse a backbone that lacks a weight of the network's, or has one that the network does not have."""
    wrong = [key for key in own if key not in found or found[key].shape != own[key].shape]
    more = [key for key in found if key not in own]
    if wrong or more:
        theirs, ours = described(found), described(own)
        told = f"its backbone is {theirs}, network.backbone {ours}" if theirs != ours else f"its backbone is no {ours}"
        raise CheckpointError(
            f"{path}: {told}: {len(wrong)} weights missing or misshapen{_first(wrong)}, {len(more)} too many"
            f"{_first(more)}; give weights of that backbone or change network.backbone"
        )


def _first(keys: Sequence[str]) -> str:
    return f", the first {keys[0]}" if keys else ""


def fitting(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, None]:
    """The keys of `own` of the layers all of whose weights are in `given` with their shapes."""
    broken = {_layer(key) for key in own if key not in given or given[key].shape != own[key].shape}
    return dict.fromkeys(key for key in own if _layer(key) not in broken)


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _check_rest(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path | str, prefix: str) -> None:
    """Refuse if most of what the file and the network both have, but for the backbone, has other shapes."""
    both = [key for key in own if key in given and not key.startswith(prefix)]
    unlike = [key for key in both if given[key].shape != own[key].shape]
    if 2 * len(unlike) > len(both):
        key = unlike[0]
        raise CheckpointError(
            f"{path}: {len(unlike)} of the {len(both)} weights behind the backbone have other shapes than in the "
            f"network of the settings, such as {key}, {tuple(given[key].shape)} for {tuple(own[key].shape)}; make "
            "`network` agree with the file, or set init_takes to 'backbone'"
        )


def _modules(keys: Iterable[str], others: Iterable[str]) -> str:
    """`keys` by module, with counts: the largest modules that hold none of the keys `others`."""
    mixed = {prefix for key in others for prefix in _above(key)}
    counts: dict[str, int] = {}
    for key in keys:
        module = next((prefix for prefix in _above(key) if prefix not in mixed), key)
        counts[module] = counts.get(module, 0) + 1
    named = [f"{module} ({count})" for module, count in counts.items()]
    return ", ".join(named[:LISTED]) + (f" and {len(named) - LISTED} more" if len(named) > LISTED else "")


def _above(key: str) -> list[str]:
    """The modules that hold `key`, the largest first."""
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
