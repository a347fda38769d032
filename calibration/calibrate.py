"""Bundle -> INT8 bundle: choose frames, measure ranges, rank layers, quantise as many as the quality floors allow.

The new bundle is built in a temporary folder next to its target and judged there by the runtime itself. Only a bundle
that holds the floors is renamed to the target, so a failed calibration leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from visrt.calibration.bundle import GRAPH, require_calibratable, write_calibrated
from visrt.calibration.evaluator import AgreementEvaluator, agreement_of_clips, model_outputs
from visrt.calibration.frames import CalibrationFrames, choose_frames, read_frames
from visrt.calibration.layers import Layer, layers_of, precision_by_node
from visrt.calibration.quantise import quantised
from visrt.calibration.ranges import Hazard, TensorRange, hazards, ranges_of, refuse_overflow
from visrt.calibration.ranking import RankedLayer, Trial, rank_layers, select_layers
from visrt.calibration.report import CalibrationReport, write_report
from visrt.calibration.tensors import with_node_names
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.errors import DataError, ParityError
from visrt.runtime.parity.agreement import Agreement, Floors
from visrt.runtime.parity.check import GATES, full_outputs_of
from visrt.runtime.parity.verify import closing

__all__ = ["INT8_FLOORS", "Calibration", "calibrate_bundle"]

INT8_FLOORS = GATES["int8"].floors

RANKING_FRAMES = 4
LARGE_PIXELS = 2**18
"""Network inputs beyond this take half as many frames in the ranking, which runs the network once a layer and frame."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """The settings of a calibration: bundle, target, frames and quality floors.

    sources: videos and folders of images. frames: how many are chosen, half for ranges and half for judging. floors:
    agreement with the unquantised bundle on the judging frames.
    """

    bundle: Path
    out: Path
    sources: tuple[str, ...]
    frames: int = 32
    floors: Floors = INT8_FLOORS
    existing: Existing = Existing.KEEP


@dataclass(frozen=True)
class _Measured:
    """The measurements that the ranking starts from."""

    model: onnx.ModelProto
    ranges: dict[str, TensorRange]
    layers: tuple[Layer, ...]
    limits: dict[str, float]


def calibrate_bundle(
    calibration: Calibration,
    progress: Progress = lambda *_: None,
    on_hazards: Callable[[list[Hazard]], None] = lambda _: None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> CalibrationReport:
    """Writes the INT8 bundle and returns the report that lies in its folder `calibration`.

    What can be checked is checked before the long work. Raises ParityError if the floors cannot be met. `progress` gets
    a stage, the steps done and the steps in all; `on_hazards` the tensors beyond FP16's range; `on_trial` the agreement
    for each number of layers that is tried.
    """
    started = time.monotonic()
    check_target(calibration.out, calibration.existing)
    bundle = open_bundle(calibration.bundle)
    require_calibratable(bundle)
    choice = choose_frames(calibration.sources, calibration.frames, lambda name: progress(f"looking at {name}", 0, 0))
    frames = read_frames(choice, bundle.manifest.input)
    measured = _measured(bundle, frames, progress)
    found = hazards(measured.ranges)
    on_hazards(found)
    refuse_overflow(measured.ranges, str(calibration.bundle))
    with closing(_others(bundle)) as others:
        evaluator = _evaluator(bundle, others, frames)
        ranking = _ranking(evaluator, measured, progress)
        selected = select_layers(evaluator, measured.model, ranking, measured.limits, calibration.floors, on_trial)
    with workplace(calibration.out) as folder:
        _write_graphs(folder, bundle, measured, selected.layers)
        report = CalibrationReport(
            bundle=bundle.manifest.name,
            frame_sha256=bundle.manifest.graphs[GRAPH].file.sha256,
            choice=choice,
            floors=calibration.floors,
            hazards=tuple(found),
            ranges=measured.ranges,
            limits=measured.limits,
            ranking=ranking,
            trials=selected.trials,
            quantised=frozenset(layer.name for layer in selected.layers),
            agreement=_agreement_as_written(folder, evaluator, calibration.floors),
            seconds=time.monotonic() - started,
        )
        write_report(folder / "calibration", report)
    return report


def _measured(bundle: Bundle, frames: CalibrationFrames, progress: Progress) -> _Measured:
    model = with_node_names(onnx.load_from_string(bundle.graph(GRAPH)))
    graph = bundle.manifest.graphs[GRAPH]
    ranges = ranges_of(graph, model, frames.ranges, lambda done, of: progress("measuring ranges", done, of))
    layers = layers_of(model, ranges)
    if not layers:
        raise DataError(
            f"{bundle.folder}: its frame graph has no convolution or matrix product with a constant weight that sees "
            "anything on these frames; expected a network exported by `visrt export`"
        )
    limits = {name: ranges[name].magnitudes.int8_limit() for layer in layers for name in layer.inputs}
    return _Measured(model, ranges, layers, limits)


def _others(bundle: Bundle) -> dict[str, Engine]:
    """Engines of all graphs but the one that is quantised."""
    graphs = bundle.manifest.graphs
    return {name: CpuEngine(graph, bundle.graph(name)) for name, graph in graphs.items() if name != GRAPH}


def _evaluator(bundle: Bundle, others: dict[str, Engine], frames: CalibrationFrames) -> AgreementEvaluator:
    graph, ask = bundle.manifest.graphs[GRAPH], full_outputs_of(bundle)
    expected = model_outputs(graph, bundle.graph(GRAPH), others, ask, frames.clips)
    return AgreementEvaluator(graph, others, ask, frames.clips, expected)


def _ranking(evaluator: AgreementEvaluator, measured: _Measured, progress: Progress) -> tuple[RankedLayer, ...]:
    height, width = evaluator.clips[0].images.shape[1:3]
    few = evaluator.of_first_frames(RANKING_FRAMES // 2 if height * width > LARGE_PIXELS else RANKING_FRAMES)
    layers, limits = measured.layers, measured.limits
    return rank_layers(few, measured.model, layers, limits, lambda done, of: progress("ranking layers", done, of))


def _write_graphs(folder: Path, bundle: Bundle, measured: _Measured, layers: tuple[Layer, ...]) -> None:
    model = quantised(measured.model, layers, measured.limits)
    onnx.checker.check_model(model, full_check=True)
    int8 = frozenset(node for layer in layers for node in layer.nodes)
    others = [name for name in bundle.manifest.graphs if name != GRAPH]
    nodes = {GRAPH: precision_by_node(measured.model, int8)}
    nodes |= {name: precision_by_node(onnx.load_from_string(bundle.graph(name)), frozenset()) for name in others}
    write_calibrated(folder, bundle, model, nodes)


def _agreement_as_written(folder: Path, evaluator: AgreementEvaluator, floors: Floors) -> Agreement:
    """The agreement of the bundle in `folder`, opened as the runtime opens it."""
    bundle = open_bundle(folder)
    graph, ask = bundle.manifest.graphs[GRAPH], full_outputs_of(bundle)
    with closing(_others(bundle)) as others:
        given = model_outputs(graph, bundle.graph(GRAPH), others, ask, evaluator.clips)
    agreement = agreement_of_clips(evaluator.expected.clips, given.clips)
    if missed := floors.missed(agreement):
        raise ParityError(f"the bundle as written has {', '.join(missed)}, though its graph held; do not deploy it")
    return agreement
