"""Another's checkpoint, rewritten as visrt's own: safetensors with the architecture and the class names in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from visrt.models.checkpoints import read_checkpoint, save_checkpoint
from visrt.models.class_names import chosen_classes
from visrt.models.fingerprint import checkpoint_sha256
from visrt.models.genvis_checkpoints import read_genvis_checkpoint, save_genvis_checkpoint
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import OutputError, UsageError

__all__ = ["Converted", "convert_checkpoint"]

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """What was written: its family, the architecture of what sees a frame, the learned weights, the class names."""

    family: str
    settings: NetworkSettings
    parameters: int
    classes: tuple[str, ...]


def convert_checkpoint(
    checkpoint: Path, out: Path, classes: tuple[str, ...] | None = None, kind: str = "per-frame"
) -> Converted:
    """Write the network at `checkpoint` to `out`, which is replaced if it is there, and is complete or not there.

    `classes`: names in the order of the logits; None takes those in the checkpoint. `kind`: "per-frame" or "genvis".
    The notes of `out` tell what it was made from. Raises CheckpointError, before anything is written, for what is not
    the published network.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: a converted checkpoint is a {SUFFIX} file; give a name that ends so")
    if out.resolve() == checkpoint.resolve():
        raise UsageError(f"{out}: is the checkpoint itself; choose another file")
    converted, save = (_genvis if kind == "genvis" else _per_frame)(checkpoint, out, classes)
    source = {"converted_from": checkpoint.absolute().name, "converted_from_sha256": checkpoint_sha256(checkpoint)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(source)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another file") from error
    return converted


Save = Callable[[Mapping[str, str]], None]
"""Writes the file, with notes."""


def _per_frame(checkpoint: Path, out: Path, classes: tuple[str, ...] | None) -> tuple[Converted, Save]:
    found = read_checkpoint(checkpoint)
    names = chosen_classes(classes, found.classes, found.settings.classes, checkpoint)
    network = found.network()
    family = "ctvis" if found.settings.reid_dim else "minvis"
    return (
        Converted(family, found.settings, _weights(network), names),
        lambda source: save_checkpoint(network, out, names, {**found.notes, **source}),
    )


def _genvis(checkpoint: Path, out: Path, classes: tuple[str, ...] | None) -> tuple[Converted, Save]:
    found = read_genvis_checkpoint(checkpoint)
    names = chosen_classes(classes, found.classes, found.settings.classes, checkpoint)
    network = found.network()
    return (
        Converted("genvis", found.settings.frame, _weights(network), names),
        lambda source: save_genvis_checkpoint(network, out, names, {**found.notes, **source}),
    )


def _weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
