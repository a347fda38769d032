"""Bundle -> INT8 bundle: choose frames, measure ranges, rank layers, quantise as many as the quality floors allow.

The new bundle is built in a temporary folder next to its target and judged there by the runtime itself. Only a bundle
that holds the floors is renamed to the target, so a failed calibration leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from visrt.calibration.bundle import int8_graphs, write_calibrated
from visrt.calibration.evaluator import AgreementEvaluator, Stream, agreement_of_clips, model_outputs, stream_of
from visrt.calibration.frames import choose_frames, read_frames
from visrt.calibration.layers import Layer, precision_by_node
from visrt.calibration.measured import MeasuredGraph, MeasuredGraphs, all_layers, in_int8, measured_graph
from visrt.calibration.ranges import Hazard, hazards, refuse_overflow
from visrt.calibration.ranking import RankedLayer, Trial, rank_layers, select_layers
from visrt.calibration.report import CalibrationReport, write_report
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.errors import DataError, ParityError, UsageError
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.agreement import Agreement, Floors
from visrt.runtime.parity.check import GATES
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.verify import closing

__all__ = ["INT8_FLOORS", "Calibration", "calibrate_bundle"]

INT8_FLOORS = GATES["int8"].floors

RANKING_FRAMES = 4
RANKING_CLIPS = 2
LARGE_PIXELS = 2**18
"""Network inputs beyond this take half as many frames in the ranking, which runs the network once a layer and frame."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """The settings of a calibration: bundle, target, frames and quality floors.

    bundle: a folder, or a bundle that is open. sources: videos and folders of images. frames: how many are chosen, half
    for ranges and half for judging. floors: agreement with the unquantised bundle on the judging frames.
    """

    bundle: Path | Bundle
    out: Path
    sources: tuple[str, ...]
    frames: int = 32
    floors: Floors = INT8_FLOORS
    existing: Existing = Existing.KEEP


def calibrate_bundle(
    calibration: Calibration,
    progress: Progress = lambda *_: None,
    on_hazards: Callable[[list[Hazard]], None] = lambda _: None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> CalibrationReport:
    """Writes the INT8 bundle of a bundle of one size, and returns the report that lies in its folder `calibration`.

    What can be checked is checked before the long work. Raises ParityError if the floors cannot be met. `progress` gets
    a stage, the steps done and the steps in all; `on_hazards` the tensors beyond FP16's range; `on_trial` the agreement
    for each number of layers that is tried.
    """
    started = time.monotonic()
    check_target(calibration.out, calibration.existing)
    bundle = open_bundle(calibration.bundle) if isinstance(calibration.bundle, Path) else calibration.bundle
    if bundle.manifest.other_sizes:
        raise UsageError(
            f"{bundle.folder}: holds {len(bundle.sizes)} sizes; give one of its sizes, or `calibrate_sizes`"
        )
    names, plan = int8_graphs(bundle), method_of(bundle.manifest).int8
    choice = choose_frames(calibration.sources, calibration.frames, lambda name: progress(f"looking at {name}", 0, 0))
    frames = read_frames(choice, bundle.manifest.input, plan)
    stream = stream_of(bundle)
    with closing(_engines(bundle)) as engines:
        graphs = {name: _measured(bundle, name, engines, stream, frames.ranges, progress) for name in names}
        found = [hazard for graph in graphs.values() for hazard in hazards(graph.ranges)]
        on_hazards(found)
        for graph in graphs.values():
            refuse_overflow(graph.ranges, str(bundle.folder))
        _require_layers(bundle, graphs)
        expected = model_outputs(engines, stream, plan, frames.judging)
        evaluator = AgreementEvaluator(bundle.manifest.graphs, engines, stream, plan, frames.judging, expected)
        ranking = _ranking(evaluator, graphs, progress)
        selected = select_layers(evaluator, graphs, ranking, calibration.floors, on_trial)
    with workplace(calibration.out) as folder:
        _write_graphs(folder, bundle, graphs, selected.layers)
        report = CalibrationReport(
            bundle=bundle.manifest.name,
            choice=choice,
            floors=calibration.floors,
            compared=plan.compared,
            hazards=tuple(found),
            sha256={name: bundle.manifest.graphs[name].sha256 for name in names},
            graphs=graphs,
            ranking=ranking,
            trials=selected.trials,
            quantised=frozenset(selected.layers),
            agreement=_agreement_as_written(folder, evaluator, calibration.floors),
            seconds=time.monotonic() - started,
        )
        write_report(folder / "calibration", report)
    return report


def _engines(bundle: Bundle) -> dict[str, Engine]:
    return {name: CpuEngine(graph, bundle.graph(name)) for name, graph in bundle.manifest.graphs.items()}


def _measured(
    bundle: Bundle,
    name: str,
    engines: Mapping[str, Engine],
    stream: Stream,
    clips: Sequence[Frames],
    progress: Progress,
) -> MeasuredGraph:
    """The graph `name`, watched while the network sees `clips`."""

    def replay(engine: Engine) -> None:
        for clip in clips:
            for _ in stream({**engines, name: engine}, clip):
                pass

    return measured_graph(bundle, name, replay, lambda done, of: progress(f"ranges of {name}", done, of))


def _require_layers(bundle: Bundle, graphs: MeasuredGraphs) -> None:
    if not all_layers(graphs):
        raise DataError(
            f"{bundle.folder}: {' and '.join(graphs)} have no convolution or matrix product with a constant weight "
            "that sees anything on these frames; expected a network exported by `visrt export`"
        )


def _ranking(evaluator: AgreementEvaluator, graphs: MeasuredGraphs, progress: Progress) -> tuple[RankedLayer, ...]:
    height, width = evaluator.clips[0].images.shape[1:3]
    frames = RANKING_FRAMES // 2 if height * width > LARGE_PIXELS else RANKING_FRAMES
    few = evaluator.of_first_frames(max(RANKING_CLIPS, frames // evaluator.plan.ranked_frames))
    return rank_layers(few, graphs, lambda done, of: progress("ranking layers", done, of))


def _write_graphs(folder: Path, bundle: Bundle, graphs: MeasuredGraphs, layers: tuple[Layer, ...]) -> None:
    models = in_int8(graphs, layers)
    for model in models.values():
        onnx.checker.check_model(model, full_check=True)
    nodes = {name: _precisions(bundle, name, graphs, layers) for name in bundle.manifest.graphs}
    write_calibrated(folder, bundle, models, nodes)


def _precisions(bundle: Bundle, name: str, graphs: MeasuredGraphs, layers: tuple[Layer, ...]) -> dict[str, str]:
    """By node of the graph `name`, once `layers` are INT8."""
    model = graphs[name].model if name in graphs else onnx.load_from_string(bundle.graph(name))
    return precision_by_node(model, frozenset(node for layer in layers if layer.graph == name for node in layer.nodes))


def _agreement_as_written(folder: Path, evaluator: AgreementEvaluator, floors: Floors) -> Agreement:
    """The agreement of the bundle in `folder`, opened as the runtime opens it."""
    bundle = open_bundle(folder)
    with closing(_engines(bundle)) as engines:
        given = model_outputs(engines, stream_of(bundle), evaluator.plan, evaluator.clips)
    agreement = agreement_of_clips(evaluator.expected.clips, given.clips)
    if missed := floors.missed(agreement):
        raise ParityError(f"the bundle as written has {', '.join(missed)}, though its graphs held; do not deploy it")
    return agreement
