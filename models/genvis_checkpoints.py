"""GenVIS checkpoints in and out: published files unchanged, and visrt's own safetensors.

As with other families: a file must fit its network key by key, and what does not fit is refused with a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from visrt.models.architecture import genvis_settings_from_weights
from visrt.models.checkpoints import class_names_of, fitted_network, read_weights, save_network, settings_of
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.runtime.errors import CheckpointError

__all__ = ["GenVisCheckpoint", "read_genvis_checkpoint", "save_genvis_checkpoint"]

MARK = "vita_module.pre_query_embed_k.weight"
VITA_MARK = "vita_module."


@dataclass(frozen=True)
class GenVisCheckpoint:
    """A checkpoint that was read: weights by published key, the architecture, class names and notes if it has them."""

    path: Path
    weights: dict[str, Tensor]
    settings: GenVisNetworkSettings
    classes: tuple[str, ...] | None
    notes: dict[str, str]

    def network(self) -> GenVis:
        """The network with these weights, in eval mode. Raises CheckpointError listing the keys that do not fit."""
        return fitted_network(lambda: GenVis(self.settings), self.weights, self.path)


def read_genvis_checkpoint(path: Path | str) -> GenVisCheckpoint:
    """Weights, architecture and class names of the file at `path`; nothing in the file is executed."""
    path = Path(path)
    weights, metadata = read_weights(path)
    if MARK not in weights:
        vita = any(key.startswith(VITA_MARK) for key in weights)
        told = "this is a VITA checkpoint, which has no memory" if vita else f"holds no {MARK}"
        raise CheckpointError(f"{path}: {told}; expected a GenVIS network, trained with visrt or published")
    settings = settings_of(GenVisNetworkSettings, metadata, path) or genvis_settings_from_weights(weights, str(path))
    return GenVisCheckpoint(path, weights, settings, class_names_of(metadata, path), metadata)


def save_genvis_checkpoint(
    network: GenVis, path: Path | str, classes: Sequence[str], notes: Mapping[str, str] | None = None
) -> None:
    """Write visrt's own checkpoint: the weights, and in the metadata the architecture, class names and `notes`."""
    path, settings = Path(path), network.settings
    if len(classes) != settings.classes:
        raise CheckpointError(
            f"{path}: {len(classes)} class names for a network of {settings.classes} classes; give one for each"
        )
    described = {"settings": json.dumps(asdict(settings)), "classes": json.dumps(list(classes))}
    save_network(network, path, {**(notes or {}), **described})
