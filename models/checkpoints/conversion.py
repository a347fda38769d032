"""Rewrites a published checkpoint as visrt's own: safetensors with the architecture and the class names in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.models.checkpoints.checkpoint import Checkpoint, NetworkKind, load_checkpoint, read_weights, save_checkpoint
from visrt.models.checkpoints.class_names import chosen_classes
from visrt.models.checkpoints.eomt import EOMT, eomt_with_base
from visrt.models.checkpoints.fingerprint import checkpoint_sha256
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.hugging_face import folder_config
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.checkpoints.published import backbone_in_words
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import OutputError, UsageError

__all__ = ["KINDS", "Converted", "convert_checkpoint", "kind_of"]

SUFFIX = ".safetensors"


def _frame_network(settings: NetworkSettings) -> tuple[str, int, str]:
    embeddings = f", instance embeddings of {settings.reid_dim}" if settings.reid_dim else ""
    return "ctvis" if settings.reid_dim else "minvis", settings.queries, backbone_in_words(settings) + embeddings


def _genvis(settings: GenVisNetworkSettings) -> tuple[str, int, str]:
    return "genvis", *_frame_network(settings.frame)[1:]


@dataclass(frozen=True)
class Kind:
    """A kind of network that is published. described: of its settings the family, the number of queries, and words.

    marks: starts of keys by which its files are known. model_types: those of its folders.
    """

    network: NetworkKind[Any, Any]
    described: Callable[[Any], tuple[str, int, str]]
    marks: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "videomt": Kind(
        VIDEOMT,
        lambda settings: ("videomt", settings.queries, backbone_in_words(settings)),
        marks=("query_updater.", "backbone.query_updater."),
        model_types=("videomt",),
    ),
    "eomt": Kind(
        EOMT,
        lambda settings: ("eomt", settings.queries, backbone_in_words(settings)),
        marks=("network.upscale", "upscale_block."),
        model_types=("eomt", "eomt_dinov3"),
    ),
    "genvis": Kind(GENVIS, _genvis, marks=("vita_module.pre_query_embed_k.",)),
    "per-frame": Kind(MASK2FORMER, _frame_network),
}
"""A file or folder is of the first kind that knows it, and of the last if none does."""


@dataclass(frozen=True)
class Converted:
    """The checkpoint that was written: its family, the number of queries, the network in words, the number of learned
    weights, the class names, and what was chosen while reading."""

    family: str
    queries: int
    network: str
    parameters: int
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def kind_of(checkpoint: Path) -> str:
    """The name in `KINDS` of what is at `checkpoint`, by the keys of a file or the configuration of a folder."""
    if checkpoint.is_dir():
        model_type = folder_config(checkpoint).get("model_type")
        known = (name for name, kind in KINDS.items() if model_type in kind.model_types)
    else:
        keys = list(read_weights(checkpoint)[0])
        known = (name for name, kind in KINDS.items() if any(key.startswith(kind.marks) for key in keys))
    return next(known, list(KINDS)[-1])


def convert_checkpoint(
    checkpoint: Path,
    out: Path,
    classes: tuple[str, ...] | None = None,
    kind: str | None = None,
    *,
    base: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Converted:
    """Write the network at `checkpoint` to `out`, which is replaced if it is there, and is complete or not there.

    `classes`: names in the order of the logits; None takes those in the checkpoint. `kind`: one of `KINDS`; None finds
    it. `base`: the network to which an EoMT with DINOv3 holds differences. `settings`: those that the weights do not
    show. The notes of `out` name what it was made from. Raises CheckpointError, before anything is written, for what
    is not the published network.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: a converted checkpoint is a {SUFFIX} file; give a name that ends so")
    if out.resolve() == checkpoint.resolve():
        raise UsageError(f"{out}: is the checkpoint itself; choose another file")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"kind {kind!r} cannot be converted; choose one of {', '.join(KINDS)}")
    chosen = KINDS[kind or kind_of(checkpoint)]
    loaded = load_checkpoint(checkpoint, _network_kind(chosen, checkpoint, base), settings=settings)
    names = chosen_classes(classes, loaded)
    parameters = _write(loaded, out, names, base)
    return Converted(*chosen.described(loaded.settings), parameters, names, loaded.remarks)


def _network_kind(kind: Kind, checkpoint: Path, base: Path | None) -> NetworkKind[Any, Any]:
    if base is None:
        return kind.network
    if kind.network is not EOMT or checkpoint.is_dir():
        raise UsageError(f"{checkpoint}: holds whole weights; leave out the base {base}")
    return eomt_with_base(base)


def _write(loaded: Checkpoint[Any, Any], out: Path, names: tuple[str, ...], base: Path | None) -> int:
    """Write the checkpoint; the number of learned weights."""
    network, origin = loaded.network(), loaded.path
    notes = {"converted_from": origin.absolute().name, "converted_from_sha256": checkpoint_sha256(origin)}
    if base is not None and base.exists():
        notes["base_sha256"] = checkpoint_sha256(base)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(network, out, names, {**loaded.notes, **notes})
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another file") from error
    return sum(parameter.numel() for parameter in network.parameters())
