"""InsPro checkpoints in and out: the natural Sparse R-CNN and CondInst key layout, and visrt's own safetensors.

The keys of the published files are not known. As with other families, a file must fit its network key by key, and what
does not fit is refused with a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from visrt.models.architecture import other_family
from visrt.models.checkpoints import class_names_of, fitted_network, read_weights, save_network, settings_of
from visrt.models.inspro import InsPro, InsProSettings
from visrt.models.inspro_architecture import UNTOLD, inspro_settings_from_weights
from visrt.runtime.errors import CheckpointError, UsageError
from visrt.runtime.settings import load_settings

__all__ = ["InsProCheckpoint", "read_inspro_checkpoint", "save_inspro_checkpoint"]

MARK = "init_proposal_features.weight"
IGNORED = "mask_head."
"""CondInst's mask head has buffers that belong to training."""


@dataclass(frozen=True)
class InsProCheckpoint:
    """A checkpoint that was read: weights by key, the architecture, class names and notes if it has them."""

    path: Path
    weights: dict[str, Tensor]
    settings: InsProSettings
    classes: tuple[str, ...] | None
    notes: dict[str, str]

    def network(self) -> InsPro:
        """The network with these weights, in eval mode. Raises CheckpointError listing the keys that do not fit."""
        return fitted_network(lambda: InsPro(self.settings), self.weights, self.path)


def read_inspro_checkpoint(path: Path | str, untold: Mapping[str, Any] | None = None) -> InsProCheckpoint:
    """Weights, architecture and class names of the file at `path`; nothing in the file is executed.

    `untold`: settings that no weight tells, in place of the defaults, for a file that visrt did not write.
    """
    path, untold = Path(path), untold or {}
    weights, metadata = read_weights(path)
    weights = {key: value for key, value in weights.items() if not key.startswith(IGNORED)}
    if MARK not in weights:
        raise CheckpointError(f"{path}: this is {other_family(weights) or 'no InsPro network'}; expected an InsPro one")
    if unknown := untold.keys() - set(UNTOLD):
        raise UsageError(f"{', '.join(sorted(unknown))}: the weights tell it; given can be {', '.join(UNTOLD)}")
    settings = settings_of(InsProSettings, metadata, path)
    if settings is None:
        told = {**asdict(inspro_settings_from_weights(weights, str(path))), **untold}
        settings = load_settings(InsProSettings, told, f"{path}: settings")
    elif untold:
        raise UsageError(f"{path}: holds its own settings; leave out {', '.join(untold)}")
    return InsProCheckpoint(path, weights, settings, class_names_of(metadata, path), metadata)


def save_inspro_checkpoint(
    network: InsPro, path: Path | str, classes: Sequence[str], notes: Mapping[str, str] | None = None
) -> None:
    """Write visrt's own checkpoint: the weights, and in the metadata the architecture, class names and `notes`."""
    path, settings = Path(path), network.settings
    if len(classes) != settings.classes:
        raise CheckpointError(
            f"{path}: {len(classes)} class names for a network of {settings.classes} classes; give one for each"
        )
    described = {"settings": json.dumps(asdict(settings)), "classes": json.dumps(list(classes))}
    save_network(network, path, {**(notes or {}), **described})
