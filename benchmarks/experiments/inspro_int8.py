"""What INT8 does to InsPro-lite, graph by graph: quality of a trained network, size and builds of the published one.

    python -m visrt.benchmarks.experiments.inspro_int8 --bundle B --trained HOW --source VIDEO --source VIDEO --write

The bundle is one of family inspro_lite in FP32, trained by the three recipes of `training/recipes/inspro`. All layers
that can compute in INT8 do, of one graph or of all, which is the worst that `visrt calibrate` can choose. The network
is judged over streams through which its pairs travel; ranges are read on the frames before. Times are processor time in
turns on one thread of this CPU, and say nothing of a GPU's. Builds are of InsPro-lite R50 with random weights, as
whether a graph builds, and how large its engine is, hangs on operators and shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.inspro_export import PROFILES, SEED, half_graphs, one_stream, random_network
from visrt.benchmarks.experiments.inspro_lite import in_turns
from visrt.benchmarks.experiments.large_build import built_from
from visrt.benchmarks.experiments.large_graphs import in_int8 as whole_in_int8
from visrt.calibration.evaluator import agreement_of_clips, model_outputs, stream_of
from visrt.calibration.measured import MeasuredGraphs, all_layers, in_int8, measured_graph
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import DATASET_CLASSES
from visrt.models.inspro import INSPRO_R50_LITE
from visrt.runtime.arrays import Feed, Tensor
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.methods.inspro import INT8
from visrt.runtime.parity.agreement import agreement
from visrt.runtime.parity.frames import Frames, clip_frames
from visrt.runtime.parity.verify import closing

__all__ = ["main"]

RANGE_FRAMES, STREAM_FRAMES = 8, 16
ROUNDS = 9
SURE = 0.2
"""Score of the slots that are judged by themselves. Those of a network trained for minutes are low."""

ONE_THREAD = EngineOptions(threads=1)


class Recorded(HostEngine):
    """An engine that keeps what its last call was fed."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.fed = engine, dict[str, Feed]()

    @property
    def provider(self) -> str:
        return self.engine.provider

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self.fed = dict(feeds)
        return self.engine(feeds)

    def close(self) -> None:
        self.engine.close()


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    bundle = open_bundle(given.bundle)
    clips = [clip_frames(source, bundle.manifest.input, RANGE_FRAMES + STREAM_FRAMES) for source in given.source]
    spec, sources = bundle.manifest.input, [Path(one).name for one in given.source]
    figures: dict[str, Any] = {"trained": given.trained, "size": [spec.height, spec.width], "sources": sources}
    with closing(open_engines(bundle, "cpu", ONE_THREAD)) as opened:
        engines: dict[str, Engine] = {name: Recorded(engine) for name, engine in opened.items()}
        graphs = _measured(bundle, engines, [clip.take(range(RANGE_FRAMES)) for clip in clips])
        streams = [clip.take(range(RANGE_FRAMES, len(clip))) for clip in clips]
        figures |= _quality(bundle, engines, graphs, streams)
        figures["cpu"] = {name: _times(bundle, engines[name], name, graphs) for name in graphs}
    figures["builds"] = [] if given.skip_builds else _builds(tuple(given.target), given.size)
    write_result(given.out, settings_of(given), figures)
    print(given.out.read_text())


def _measured(bundle: Bundle, engines: Mapping[str, Engine], clips: Sequence[Frames]) -> MeasuredGraphs:
    stream = stream_of(bundle)

    def replay(name: str, engine: Engine) -> None:
        for clip in clips:
            for _ in stream({**engines, name: engine}, clip):
                pass

    names = [name for name in INT8.graphs if name in engines]
    return {name: measured_graph(bundle, name, partial(replay, name)) for name in names}


def _quality(
    bundle: Bundle, engines: Mapping[str, Engine], graphs: MeasuredGraphs, streams: Sequence[Frames]
) -> dict[str, Any]:
    """Agreement with the network as it is when all layers of a graph, or of all graphs, compute in INT8."""
    stream = stream_of(bundle)
    expected = model_outputs(engines, stream, INT8, streams).clips
    chosen = {name: graph.layers for name, graph in graphs.items()} | {"all": all_layers(graphs)}
    found = {}
    for name, layers in chosen.items():
        changed: dict[str, Engine] = {
            one: CpuEngine(bundle.manifest.graphs[one], model.SerializeToString(), ONE_THREAD)
            for one, model in in_int8(graphs, layers).items()
        }
        with closing(changed):
            given = model_outputs({**engines, **changed}, stream, INT8, streams).clips
        found[name] = {
            "layers": len(layers),
            "all_slots": asdict(agreement_of_clips(expected, given)),
            "surest_slots": [asdict(agreement(*pair, SURE)) for pair in zip(expected, given, strict=True)],
        }
    return {"quality": found}


def _times(bundle: Bundle, engine: Engine, name: str, graphs: MeasuredGraphs) -> dict[str, Any]:
    """Bytes and processor milliseconds of one call of the graph, as it is and in INT8."""
    assert isinstance(engine, Recorded)
    graph = bundle.manifest.graphs[name]
    model = in_int8(graphs, graphs[name].layers)[name]
    int8 = CpuEngine(graph, model.SerializeToString(), ONE_THREAD)
    with closing({name: int8}):
        calls = {"fp32": partial(engine.engine, engine.fed), "int8": partial(int8, engine.fed)}
        taken = in_turns(calls, ROUNDS)
    return {
        "onnx_mb": {"fp32": _megabytes(graphs[name].model), "int8": _megabytes(model)},
        "median_ms": {which: round(1e3 * median(seconds), 2) for which, seconds in taken.items()},
    }


def _megabytes(model: onnx.ModelProto) -> float:
    return round(int(model.ByteSize()) / 1e6, 2)


def _builds(targets: tuple[str, ...], size: str) -> list[dict[str, Any]]:
    """What TensorRT-RTX made of each graph of InsPro-lite R50 in FP16, and with all layers in INT8."""
    height, width = map(int, size.split("x"))
    library = load_tensorrt("tensorrt-rtx")
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.safetensors"
        save_checkpoint(random_network(INSPRO_R50_LITE), checkpoint, DATASET_CLASSES["ytvis2019"])
        half = half_graphs(checkpoint, (height, width))
    kinds = {"fp16": half, "int8": whole_in_int8(half, INT8.graphs)}
    return [
        {"precision": precision, **built_from(library, graphs, name, one_stream(name), targets)}
        for name in INT8.graphs
        for precision, graphs in kinds.items()
    ]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trained", required=True, help="how the bundle's network was trained, for the record")
    parser.add_argument("--source", action="append", required=True, help="video or folder of images; repeat for more")
    parser.add_argument("--size", default="384x640", help="of the builds")
    parser.add_argument("--target", nargs="+", default=["8.9"])
    parser.add_argument("--skip-builds", action="store_true", help="the bundle alone")
    add_result_options(parser, EXPERIMENT_RESULTS / "inspro_int8.json")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "range_frames": RANGE_FRAMES,
        "stream_frames": STREAM_FRAMES,
        "sure": SURE,
        "plan": asdict(INT8),
        "rounds": ROUNDS,
        "threads": 1,
        "built": {
            "network": asdict(INSPRO_R50_LITE),
            "size": given.size,
            "profiles": {name: PROFILES[name] for name in INT8.graphs},
            "targets": given.target,
            "seed": SEED,
        },
    }


if __name__ == "__main__":
    main()
