"""Bundle -> INT8 bundle: choose frames, measure ranges, rank layers, quantise as many as the quality floors allow.

The new bundle is built beside its target and judged there by what will run it; it takes the target's place only if it
holds the floors, so a failed calibration leaves nothing and spoils nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from visrt.calibration.bundle import refuse_family, refuse_int8, write_calibrated
from visrt.calibration.frames import CalibrationFrames, FrameChoice, choose_frames, read_frames
from visrt.calibration.judging import Judge, agreement_of_clips, opinion_of
from visrt.calibration.layers import Layer, layers_of, precision_by_node
from visrt.calibration.quantise import quantised
from visrt.calibration.ranges import Hazard, TensorRange, hazards, ranges_of, refuse_overflow
from visrt.calibration.ranking import RankedLayer, Trial, chosen, ranked
from visrt.calibration.report import CalibrationReport, write_report
from visrt.calibration.tensors import with_node_names
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.agreement import Agreement, Floors
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.engine import Engine
from visrt.runtime.errors import DataError, ParityError
from visrt.runtime.judge import GATES, full_outputs_of
from visrt.runtime.ort import CpuEngine
from visrt.runtime.verify import closing

__all__ = ["INT8_FLOORS", "Calibration", "calibrate_bundle"]

INT8_FLOORS = GATES["int8"].floors

RANKING_FRAMES = 4
LARGE_PIXELS = 2**18
"""Network inputs beyond this take half as many frames in the ranking, which runs the network once a layer and frame."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What to calibrate, where to, on what, and what must hold.

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
    """What the ranking starts from."""

    model: onnx.ModelProto
    ranges: dict[str, TensorRange]
    layers: tuple[Layer, ...]
    limits: dict[str, float]


def calibrate_bundle(
    wanted: Calibration,
    progress: Progress = lambda *_: None,
    on_hazards: Callable[[list[Hazard]], None] = lambda _: None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> CalibrationReport:
    """Writes the INT8 bundle and returns the report that lies in its folder `calibration`.

    Raises before the long work for what can be known, ParityError if the floors cannot be met. `progress` hears a
    stage, what is done of it and how much it is; `on_hazards` the tensors that FP16 does not hold; `on_trial` the
    agreement with each number of layers that is tried.
    """
    started = time.monotonic()
    check_target(wanted.out, wanted.existing)
    bundle = open_bundle(wanted.bundle)
    refuse_int8(bundle)
    refuse_family(bundle)
    choice = choose_frames(wanted.sources, wanted.frames, lambda name: progress(f"looking at {name}", 0, 0))
    frames = read_frames(choice, bundle.manifest.input)
    measured = _measured(bundle, frames, progress)
    on_hazards(hazards(measured.ranges))
    refuse_overflow(measured.ranges, str(wanted.bundle))
    with closing(_others(bundle)) as others:
        judge = _judge(bundle, others, frames)
        ranking = _ranked(judge, measured, progress)
        found = chosen(judge, measured.model, ranking, measured.limits, wanted.floors, on_trial)
    with workplace(wanted.out) as folder:
        _write_graphs(folder, bundle, measured, found.layers)
        agreement = _judged_as_written(folder, judge, wanted.floors)
        report = _report(wanted, bundle, choice, measured, ranking, found.trials, found.layers, agreement, started)
        write_report(folder / "calibration", report)
    return report


def _measured(bundle: Bundle, frames: CalibrationFrames, progress: Progress) -> _Measured:
    model = with_node_names(onnx.load_from_string(bundle.graph("frame")))
    graph = bundle.manifest.graphs["frame"]
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
    return {name: CpuEngine(graph, bundle.graph(name)) for name, graph in graphs.items() if name != "frame"}


def _judge(bundle: Bundle, others: dict[str, Engine], frames: CalibrationFrames) -> Judge:
    graph, ask = bundle.manifest.graphs["frame"], full_outputs_of(bundle)
    expected = opinion_of(graph, bundle.graph("frame"), others, ask, frames.clips)
    return Judge(graph, others, ask, frames.clips, expected)


def _ranked(judge: Judge, measured: _Measured, progress: Progress) -> tuple[RankedLayer, ...]:
    height, width = judge.clips[0].images.shape[1:3]
    few = judge.of_first_frames(RANKING_FRAMES // 2 if height * width > LARGE_PIXELS else RANKING_FRAMES)
    layers, limits = measured.layers, measured.limits
    return ranked(few, measured.model, layers, limits, lambda done, of: progress("ranking layers", done, of))


def _write_graphs(folder: Path, bundle: Bundle, measured: _Measured, layers: tuple[Layer, ...]) -> None:
    model = quantised(measured.model, layers, measured.limits)
    onnx.checker.check_model(model, full_check=True)
    int8 = frozenset(node for layer in layers for node in layer.nodes)
    others = [name for name in bundle.manifest.graphs if name != "frame"]
    nodes = {"frame": precision_by_node(measured.model, int8)}
    nodes |= {name: precision_by_node(onnx.load_from_string(bundle.graph(name)), frozenset()) for name in others}
    write_calibrated(folder, bundle, model, nodes)


def _judged_as_written(folder: Path, judge: Judge, floors: Floors) -> Agreement:
    """The agreement of the bundle in `folder`, opened as the runtime opens it."""
    bundle = open_bundle(folder)
    graph, ask = bundle.manifest.graphs["frame"], full_outputs_of(bundle)
    with closing(_others(bundle)) as others:
        given = opinion_of(graph, bundle.graph("frame"), others, ask, judge.clips)
    agreement = agreement_of_clips(judge.expected.clips, given.clips)
    if missed := floors.missed(agreement):
        raise ParityError(f"the bundle as written has {', '.join(missed)}, though its graph held; do not deploy it")
    return agreement


def _report(
    wanted: Calibration,
    bundle: Bundle,
    choice: FrameChoice,
    measured: _Measured,
    ranking: tuple[RankedLayer, ...],
    trials: tuple[Trial, ...],
    layers: tuple[Layer, ...],
    agreement: Agreement,
    started: float,
) -> CalibrationReport:
    return CalibrationReport(
        bundle=bundle.manifest.name,
        frame_sha256=bundle.manifest.graphs["frame"].file.sha256,
        choice=choice,
        floors=wanted.floors,
        hazards=tuple(hazards(measured.ranges)),
        ranges=measured.ranges,
        limits=measured.limits,
        ranking=ranking,
        trials=trials,
        quantised=frozenset(layer.name for layer in layers),
        agreement=agreement,
        seconds=time.monotonic() - started,
    )
