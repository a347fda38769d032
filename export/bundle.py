"""Checkpoint -> bundle: trace the graphs, check them against torch through the runtime, then put them in place.

The bundle is built in a temporary folder next to its target and checked there by the runtime itself. Only a bundle that
passes is renamed to the target, so a failed export leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from visrt.export.contract import graph_spec, producer
from visrt.export.families import DEFAULT_FAMILY, read_for, require_known
from visrt.export.family import PRECISIONS, Exportable, InitialState
from visrt.export.frames import frames_from_sources, synthetic_frames
from visrt.export.half import Island
from visrt.export.nodes import NODES, computing_precisions, nodes_json
from visrt.export.reference import NOISE, Steadiness, reference_of
from visrt.export.workplace import Existing, check_target, workplace
from visrt.models.checkpoints.class_names import chosen_classes
from visrt.runtime.bundles.bundle import open_bundle, state_bytes
from visrt.runtime.bundles.manifest import FileSpec, InputSpec, Manifest, StateSpec, with_places
from visrt.runtime.bundles.writer import file_spec, write_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.errors import UsageError
from visrt.runtime.image import fit_in
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.parity.check import ParityReport, full_outputs_of, judge
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.reference import Reference
from visrt.runtime.parity.verify import closing

__all__ = ["PRECISIONS", "SIZE_DIVISOR", "Export", "ExportReport", "check_size", "export_bundle"]

SIZE_DIVISOR = 32
REFERENCE_FRAMES = 3
CANDIDATES = 6

ISLANDS: tuple[tuple[str, ...], ...] = ((), ("backbone",), ("backbone", "sem_seg_head.pixel_decoder"))
"""Modules that an FP16 network keeps in float32, tried in this order until its quality holds. Early layers come first:
precision lost there is lost for all that follow."""


@dataclass(frozen=True)
class Export:
    """The settings of one export.

    family: how objects are followed, a name in `export.families`. The families of single frames share their networks.
    height, width: of the network input in pixels, divisible by 32. classes: names in the order of the logits; None
    takes those in the checkpoint. association: settings that differ from the family's defaults. references: pictures
    and videos to check on; none takes synthetic scenes. name: of the bundle; None takes the folder's. precision: "fp32"
    or "fp16". keep_fp32: modules of the network that stay in float32 in an FP16 bundle; None finds out. source: height
    and width of the only frames it will take, which the graph then resizes on the device, exactly as the runtime would.
    short_side, long_side: the published resize in pixels, taken where it fits; None takes the largest that fits.
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
    precision: str = "fp32"
    keep_fp32: tuple[str, ...] | None = None
    source: tuple[int, int] | None = None
    family: str = DEFAULT_FAMILY
    short_side: int | None = None
    long_side: int | None = None

    @property
    def input(self) -> InputSpec:
        return InputSpec(
            height=self.height,
            width=self.width,
            source=self.source,
            short_side=self.short_side,
            long_side=self.long_side,
        )


@dataclass(frozen=True)
class ExportReport:
    """The bundle that was written, its parity with torch, and how steady torch itself is on the reference frames.

    kept: modules of an FP16 network that stay in float32 for quality; found: those whose values leave FP16's range.
    remarks: what was chosen while the checkpoint was read.
    """

    folder: Path
    manifest: Manifest
    parity: ParityReport
    steadiness: list[Steadiness]
    kept: tuple[str, ...]
    found: tuple[Island, ...]
    remarks: tuple[str, ...] = ()


def export_bundle(
    export: Export,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_parity: Callable[[ParityReport, str], None] = lambda *_: None,
) -> ExportReport:
    """Writes the bundle. What can be checked is checked before the long work; ParityError if the graphs are wrong.

    `on_stage` gets the name of each stage, `on_parity` each comparison with torch and the precision it was made in.
    """
    check_size(export.height, export.width)
    _check_precision(export)
    check_target(export.out, Existing.REPLACE if export.overwrite else Existing.KEEP)
    require_known(export.family)
    association = asdict(METHODS[export.family](export.association).settings)
    model = read_for(export.family, export.checkpoint, export.input, association)
    classes = chosen_classes(export.classes, model.checkpoint)
    frames = _candidates(export)
    on_stage("running torch on reference frames")
    _check_modules(export, model.network)
    reference, steadiness = reference_of(model, frames, len(frames) if export.references else REFERENCE_FRAMES)
    judged_on = Frames(reference.images, reference.valid_sizes)
    with workplace(export.out) as folder:
        for kept in _islands(export):
            on_stage(f"tracing the network to ONNX, {_precision_name(export, kept)}")
            traced = model.traced(export.precision, judged_on, kept)
            on_stage("comparing ONNX Runtime with torch")
            manifest = _written(folder, export, model, traced.models, reference, classes, association)
            parity = _parity(folder, reference, export.precision)
            on_parity(parity, _precision_name(export, kept))
            if parity.passed:
                break
        parity.require(_compared(export, steadiness))
    return ExportReport(export.out, manifest, parity, steadiness, traced.kept, traced.found, model.checkpoint.remarks)


def _islands(export: Export) -> tuple[tuple[str, ...], ...]:
    """The sets of modules that are kept in float32, one tried after the other."""
    if export.precision == "fp32":
        return ((),)
    return ISLANDS if export.keep_fp32 is None else (export.keep_fp32,)


def _precision_name(export: Export, kept: tuple[str, ...]) -> str:
    return export.precision + (f" with {' and '.join(kept)} in fp32" if kept else "")


def _compared(export: Export, steadiness: list[Steadiness]) -> str:
    """The exported checkpoint, with a hint at other reference frames for the error if the comparison fails."""
    moved = sum(frame.moved for frame in steadiness)
    hint = f" (torch itself moves {moved} queries under noise of {NOISE:.0e}: try --reference)" if moved else ""
    return f"{export.checkpoint.name} exported to ONNX{hint}"


def _check_precision(export: Export) -> None:
    if export.precision == "int8":
        raise UsageError("precision int8 needs frames to calibrate on: export fp16 or fp32, then run `visrt calibrate`")
    if export.precision not in PRECISIONS:
        raise UsageError(f"precision {export.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if export.precision == "fp32" and export.keep_fp32:
        raise UsageError("modules to keep in fp32 were given for an fp32 bundle; add --precision fp16")


def _check_modules(export: Export, network: nn.Module) -> None:
    names = dict(network.named_modules()).keys()
    for name in export.keep_fp32 or ():
        if name not in names or not name:
            known = ", ".join(name for name, _ in network.named_children())
            raise UsageError(f"module {name!r} is not in the network; expected a name as {known}, or one inside these")


def check_size(height: int, width: int) -> None:
    """Raises UsageError for a network input that is not divisible by SIZE_DIVISOR."""
    if min(height, width) < SIZE_DIVISOR or height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        fits = [max(SIZE_DIVISOR, round(side / SIZE_DIVISOR) * SIZE_DIVISOR) for side in (height, width)]
        raise UsageError(
            f"size {height}x{width} (height x width) cannot be used; both must be divisible by {SIZE_DIVISOR}: "
            f"try {fits[0]}x{fits[1]}"
        )


def _candidates(export: Export) -> Frames:
    if export.references:
        return frames_from_sources(export.references, export.input)
    frames = synthetic_frames(CANDIDATES, *export.input.image_size)
    if export.source is None:
        return frames
    fit = fit_in(export.source, export.input)
    return Frames(frames.images, np.full_like(frames.valid_sizes, fit.valid))


def _written(
    folder: Path,
    export: Export,
    model: Exportable[Any],
    models: Mapping[str, onnx.ModelProto],
    reference: Reference,
    classes: tuple[str, ...],
    association: dict[str, Any],
) -> Manifest:
    """The manifest, after all files of the bundle were written to `folder`."""
    files = {f"{name}.onnx": graph.SerializeToString(deterministic=True) for name, graph in models.items()}
    files |= {f"{name}.npy": state_bytes(state.values) for name, state in model.states.items() if not state.ring}
    files["reference.npz"] = reference.sampled().to_bytes()
    if export.precision != "fp32":
        files[NODES] = nodes_json({name: computing_precisions(graph) for name, graph in models.items()})
    specs = {name: file_spec(name, data) for name, data in files.items()}
    graphs = {
        name: graph_spec(graph, specs[f"{name}.onnx"], export.precision, model.meanings)
        for name, graph in models.items()
    }
    states = {name: _state_spec(state, specs.get(f"{name}.npy")) for name, state in model.states.items()}
    manifest = Manifest(
        name=export.name or export.out.resolve().name,
        family=export.family,
        classes=classes,
        input=export.input,
        graphs=with_places(graphs, states, model.unread),
        states=states,
        association=association,
        reference=specs["reference.npz"],
        nodes=specs.get(NODES),
        producer=producer(export.checkpoint),
    )
    write_bundle(folder, manifest, files)
    return manifest


def _state_spec(state: InitialState, file: FileSpec | None) -> StateSpec:
    values = state.values
    return StateSpec(
        input=state.input,
        output=state.output,
        dtype=values.dtype.name,  # type: ignore[arg-type]
        shape=values.shape,
        device=state.device,
        ring=state.ring,
        initial=file,
    )


def _parity(folder: Path, reference: Reference, precision: str) -> ParityReport:
    """The bundle as the runtime opens and runs it, against torch's whole tensors."""
    bundle = open_bundle(folder)
    ask = full_outputs_of(bundle)
    with closing(open_engines(bundle)) as engines:
        return judge(engines, reference, precision, outputs=ask)
