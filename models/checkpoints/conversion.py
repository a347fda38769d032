"""Rewrites a published checkpoint as visrt's own: safetensors with the architecture and the class names in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.models.checkpoints.checkpoint import NetworkKind, load_checkpoint, save_checkpoint
from visrt.models.checkpoints.class_names import chosen_classes
from visrt.models.checkpoints.fingerprint import checkpoint_sha256
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import OutputError, UsageError

__all__ = ["Converted", "convert_checkpoint"]

SUFFIX = ".safetensors"

KINDS: dict[str, tuple[NetworkKind[Any, Any], Callable[[Any], tuple[str, NetworkSettings]]]] = {
    "per-frame": (MASK2FORMER, lambda settings: ("ctvis" if settings.reid_dim else "minvis", settings)),
    "genvis": (GENVIS, lambda settings: ("genvis", settings.frame)),
}
"""Networks that are published as checkpoints; of the settings of one, its family and the settings of its frame part."""


@dataclass(frozen=True)
class Converted:
    """The checkpoint that was written: its family, the settings of its frame part, the number of learned weights, the
    class names."""

    family: str
    settings: NetworkSettings
    parameters: int
    classes: tuple[str, ...]


def convert_checkpoint(
    checkpoint: Path, out: Path, classes: tuple[str, ...] | None = None, kind: str = "per-frame"
) -> Converted:
    """Write the network at `checkpoint` to `out`, which is replaced if it is there, and is complete or not there.

    `classes`: names in the order of the logits; None takes those in the checkpoint. `kind`: one of `KINDS`. The
    notes of `out` name what it was made from. Raises CheckpointError, before anything is written, for what is not
    the published network.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: a converted checkpoint is a {SUFFIX} file; give a name that ends so")
    if out.resolve() == checkpoint.resolve():
        raise UsageError(f"{out}: is the checkpoint itself; choose another file")
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r} cannot be converted; choose one of {', '.join(KINDS)}")
    network_kind, described = KINDS[kind]
    loaded = load_checkpoint(checkpoint, network_kind)
    names = chosen_classes(classes, loaded.classes, loaded.settings.classes, checkpoint)
    network = loaded.network()
    source = {"converted_from": checkpoint.absolute().name, "converted_from_sha256": checkpoint_sha256(checkpoint)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(network, out, names, {**loaded.notes, **source})
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another file") from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Converted(*described(loaded.settings), parameters, names)
