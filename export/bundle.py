"""Checkpoint -> bundle: trace the two graphs, check them against torch through the runtime, then put them in place.

The bundle is built in a folder beside its target and checked there by what will run it. Only a bundle that passes is
renamed to the target, so a failed export leaves nothing and spoils nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from visrt.export.contract import file_spec, graph_spec, producer
from visrt.export.frames import Frames, frames_from_images, synthetic_frames
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.export.reference import NOISE, Steadiness, reference_of
from visrt.export.workplace import Existing, check_target, workplace
from visrt.models.checkpoints import Checkpoint, read_checkpoint
from visrt.runtime.backends import open_engines
from visrt.runtime.bundle import MANIFEST, open_bundle
from visrt.runtime.errors import CheckpointError, UsageError
from visrt.runtime.families import family_of
from visrt.runtime.manifest import InputSpec, Manifest
from visrt.runtime.minvis import MinVisSettings
from visrt.runtime.reference import Reference
from visrt.runtime.settings import load_settings
from visrt.runtime.verify import TensorParity, compare, require_parity

__all__ = ["Export", "ExportReport", "export_bundle"]

FAMILY = "minvis"
SIZE_DIVISOR = 32
REFERENCE_FRAMES = 3
CANDIDATES = 6


@dataclass(frozen=True)
class Export:
    """What to export and where to.

    height, width: of the network input in pixels, divisible by 32. classes: names in the order of the logits; None
    takes those in the checkpoint. association: settings that differ from the family's defaults. references: images to
    check on; none takes synthetic scenes. name: of the bundle; None takes the folder's.
    """

    checkpoint: Path
    out: Path
    height: int
    width: int
    name: str | None = None
    classes: tuple[str, ...] | None = None
    association: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[Path, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class ExportReport:
    """The bundle that was written, its parity with torch, and how steady torch itself is on the reference frames."""

    folder: Path
    manifest: Manifest
    parity: list[TensorParity]
    steadiness: list[Steadiness]


def export_bundle(
    export: Export,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_parity: Callable[[list[TensorParity]], None] = lambda _: None,
) -> ExportReport:
    """Write the bundle. Raises before the long work for what can be known; ParityError if the graphs are wrong.

    `on_stage` hears what is being done, `on_parity` the comparison with torch, before it is judged.
    """
    _check_size(export.height, export.width)
    check_target(export.out, Existing.REPLACE if export.overwrite else Existing.KEEP)
    association = asdict(load_settings(MinVisSettings, export.association, "association"))
    checkpoint = read_checkpoint(export.checkpoint)
    classes = _classes(export, checkpoint)
    frames = _candidates(export)
    on_stage("asking torch on reference frames")
    graph = FrameGraph(checkpoint.network(), checkpoint.settings.pixel_mean, checkpoint.settings.pixel_std).eval()
    reference, steadiness = reference_of(graph, frames, len(export.references) or REFERENCE_FRAMES)
    on_stage("tracing the network to ONNX")
    models = _models(graph, checkpoint, export.height, export.width)
    on_stage("comparing ONNX Runtime with torch")
    with workplace(export.out) as folder:
        manifest = _written(folder, export, models, reference, classes, association)
        parity = _parity(folder, reference)
        on_parity(parity)
        require_parity(parity, _judged(export, steadiness))
    return ExportReport(export.out, manifest, parity, steadiness)


def _judged(export: Export, steadiness: list[Steadiness]) -> str:
    """What was compared, with what speaks for another choice of frames if it fails."""
    moved = sum(frame.moved for frame in steadiness)
    hint = f" (torch itself moves {moved} queries under noise of {NOISE:.0e}: try --reference)" if moved else ""
    return f"{export.checkpoint.name} exported to ONNX{hint}"


def _check_size(height: int, width: int) -> None:
    if min(height, width) < SIZE_DIVISOR or height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        fits = [max(SIZE_DIVISOR, round(side / SIZE_DIVISOR) * SIZE_DIVISOR) for side in (height, width)]
        raise UsageError(
            f"size {height}x{width} (height x width) cannot be used; both must be divisible by {SIZE_DIVISOR}: "
            f"try {fits[0]}x{fits[1]}"
        )


def _classes(export: Export, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The class names, one for each of the network's classes."""
    classes = export.classes if export.classes is not None else checkpoint.classes
    if classes is None:
        raise UsageError(
            f"{export.checkpoint}: holds no class names; name its {checkpoint.settings.classes} classes with --classes"
        )
    if len(classes) != checkpoint.settings.classes:
        raise CheckpointError(
            f"{export.checkpoint}: the network has {checkpoint.settings.classes} classes but {len(classes)} names were "
            "given; give the class names of the data set it was trained on"
        )
    if len(set(classes)) != len(classes) or not all(classes):
        raise UsageError(f"class names {', '.join(classes)}: expected names that are not empty and differ")
    return classes


def _candidates(export: Export) -> Frames:
    if export.references:
        return frames_from_images(export.references, export.height, export.width)
    return synthetic_frames(CANDIDATES, export.height, export.width)


def _models(graph: FrameGraph, checkpoint: Checkpoint, height: int, width: int) -> dict[str, onnx.ModelProto]:
    dim = checkpoint.settings.mask_dim
    return {
        "frame": onnx_from_frame_graph(graph, height, width),
        "masks": onnx_from_masks_graph(MasksGraph(), dim, height, width),
    }


def _written(
    folder: Path,
    export: Export,
    models: dict[str, onnx.ModelProto],
    reference: Reference,
    classes: tuple[str, ...],
    association: dict[str, Any],
) -> Manifest:
    """The manifest, after all files of the bundle were written to `folder`."""
    files = {f"{name}.onnx": model.SerializeToString(deterministic=True) for name, model in models.items()}
    files["reference.npz"] = reference.sampled().to_bytes()
    specs = {name: file_spec(name, data) for name, data in files.items()}
    manifest = Manifest(
        name=export.name or export.out.resolve().name,
        family=FAMILY,
        classes=classes,
        input=InputSpec(height=export.height, width=export.width),
        graphs={name: graph_spec(model, specs[f"{name}.onnx"], "fp32") for name, model in models.items()},
        association=association,
        reference=specs["reference.npz"],
        producer=producer(export.checkpoint),
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    return manifest


def _parity(folder: Path, reference: Reference) -> list[TensorParity]:
    """The bundle as the runtime opens and runs it, against torch's whole tensors."""
    bundle = open_bundle(folder)
    family_of(bundle.manifest)
    engines = open_engines(bundle)
    try:
        return compare(engines, reference)
    finally:
        for engine in engines.values():
            engine.close()
