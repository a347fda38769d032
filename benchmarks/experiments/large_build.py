"""A published network of full size with random weights, traced and built by TensorRT-RTX without a GPU; log kept.

    python -m visrt.benchmarks.experiments.large_build --network swin_l --precision fp16 --size 480x864 --write

Random weights: whether a graph builds hangs on its operators and shapes, not on what it learnt.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.large_graphs import FullSize, network_graphs
from visrt.models.checkpoints.published import PUBLISHED
from visrt.runtime.engines.trt.build import Profile, build_engine
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.errors import VisrtError

__all__ = ["built", "built_from", "main"]

PROFILES: dict[str, Profile] = {"frame": {"batch": (1, 1, 1)}, "masks": {"masks": (1, 10, 50)}}


def built(library: TensorRt, graphs: FullSize, name: str, targets: tuple[str, ...]) -> dict[str, Any]:
    """What the builder made of graph `name`, or why it refused."""
    return built_from(library, graphs, name, PROFILES[name], targets)


def built_from(
    library: TensorRt, graphs: FullSize, name: str, profile: Profile, targets: tuple[str, ...]
) -> dict[str, Any]:
    """The same for a `profile` of sizes."""
    model = graphs.models[name]
    told: dict[str, Any] = {"graph": name, "nodes": len(model.graph.node), "onnx_mb": round(model.ByteSize() / 1e6, 1)}
    start = time.perf_counter()
    try:
        engine = build_engine(library, graphs.request(name, profile, targets))
    except VisrtError as error:
        return {**told, "refused": str(error)}
    seconds = round(time.perf_counter() - start, 1)
    size = round(len(engine.data) / 1e6, 1)
    return {
        **told,
        "seconds": seconds,
        "engine_mb": size,
        "warnings": engine.warnings,
        "computes_in": dict(engine.precision),
    }


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--network", choices=list(PUBLISHED), default="swin_l")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp16")
    parser.add_argument("--size", default="480x864")
    parser.add_argument("--target", nargs="+", default=["8.6", "8.9", "12.0"])
    add_result_options(parser, EXPERIMENT_RESULTS / "swin_l_fp16_rtx_build.json")
    return parser.parse_args(argv)


def settings_of(given: Namespace) -> dict[str, Any]:
    return {
        "network": asdict(PUBLISHED[given.network]),
        "precision": given.precision,
        "size": given.size,
        "profiles": PROFILES,
        "targets": given.target,
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    library = load_tensorrt("tensorrt-rtx")
    start = time.perf_counter()
    graphs = network_graphs(PUBLISHED[given.network], given.precision, *map(int, given.size.split("x")))
    traced_s = round(time.perf_counter() - start, 1)
    engines = [built(library, graphs, name, tuple(given.target)) for name in graphs.models]
    builder = f"{library.flavour} {library.version}"
    figures = {"builder": builder, "traced_s": traced_s, "engines": engines}
    write_result(given.out, settings_of(given), figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
