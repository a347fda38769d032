"""A bundle on TensorRT or TensorRT-RTX: its graphs as engines on one GPU, in one context, on one stream."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from visrt.runtime.dynamic_axes import handed_over, largest_sizes, profile_of, run_sizes
from visrt.runtime.manifest import Manifest
from visrt.runtime.trt_bench import Bench
from visrt.runtime.trt_engine import TrtEngine
from visrt.runtime.trt_plan import Plan

__all__ = ["start_engines"]


def start_engines(
    bench: Bench,
    manifest: Manifest,
    batch: int,
    deserialized: Callable[[str], Any],
) -> dict[str, TrtEngine]:
    """The engines of a bundle, by graph, from TensorRT's own by name. If one fails, all that was made is freed."""
    largest = largest_sizes(manifest, batch)
    plans: dict[str, Plan] = {}
    engines: dict[str, TrtEngine] = {}
    bench.join()
    try:
        with bench.gpu.current("opening the engines"):
            for name, graph in manifest.graphs.items():
                plans[name] = Plan(bench.library.module, deserialized(name), graph, largest)
            bench.reserve(max(plan.workspace_bytes for plan in plans.values()))
        for name, plan in plans.items():
            engines[name] = _started(bench, plan, manifest, name, batch)
    except BaseException as error:
        # TensorRT's objects die with their last reference, and must not outlive the GPU's context in a traceback.
        traceback.clear_frames(error.__traceback__)
        bench.gpu.release([*(engine.close for engine in engines.values()), *(plan.close for plan in plans.values())])
        raise
    finally:
        bench.leave()
    return engines


def _started(bench: Bench, plan: Plan, manifest: Manifest, name: str, batch: int) -> TrtEngine:
    axes = {symbol: run_sizes(symbol, sizes[-1]) for symbol, sizes in profile_of(manifest, name, batch).items()}
    return TrtEngine(bench, plan, manifest.graphs[name], axes, handed_over(manifest, name))
