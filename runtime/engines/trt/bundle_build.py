"""The engines of a whole bundle, built ahead of time through the cache, for the GPU here or for others by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.dynamic_axes import profile_of
from visrt.runtime.engines.trt.build import DEFAULT_LEVEL, BuildRequest, BuiltEngine, build_engine, build_request
from visrt.runtime.engines.trt.build_progress import Progress
from visrt.runtime.engines.trt.engine_cache import EngineCache, EngineKey, KeptEngine, engine_key
from visrt.runtime.engines.trt.library import TensorRt, target_absence
from visrt.runtime.errors import EngineError

__all__ = ["BuildPlan", "EngineReport", "build_bundle"]


@dataclass(frozen=True)
class BuildPlan:
    """The targets of a build.

    batch: the most frames of one call. targets: compute capabilities such as "8.6", tensorrt-rtx only; () is the GPU
    of this machine. device: which one, where it has several. level: the builder's optimisation level, from 0 to 5.
    """

    batch: int = 1
    targets: tuple[str, ...] = ()
    device: int = 0
    level: int = DEFAULT_LEVEL


@dataclass(frozen=True)
class EngineReport:
    """One engine. size: of the network input, as 384x640. source: "built", or "kept" if it was in the cache. precision,
    warnings, unaccounted: as in BuiltEngine."""

    graph: str
    size: str
    source: str
    seconds: float
    bytes: int
    gpu: str
    profile: Mapping[str, tuple[int, int, int]]
    precision: Mapping[str, int]
    warnings: tuple[str, ...]
    unaccounted: tuple[str, ...]


def _raise(error: EngineError) -> None:
    raise error


def build_bundle(
    bundle: Bundle,
    library: TensorRt,
    plan: BuildPlan,
    cache: EngineCache,
    progress_of: Callable[[str], Progress],
    on_failure: Callable[[EngineError], None] = _raise,
) -> Iterator[EngineReport]:
    """An engine for each graph of `bundle` at each size, reported as it is there.

    `progress_of` gives a graph's listener by name and size. `on_failure` gets the error of a graph that cannot be
    built; if it returns, the others are built.
    """
    with _gpu(library, plan) as (gpu, cuda):
        for size in bundle.sizes:
            text = size.manifest.input.text
            for name in size.manifest.graphs:
                profile = profile_of(size.manifest, name, plan.batch)
                request = build_request(size, name, profile, plan.targets, plan.level)
                key = engine_key(library, request, gpu, cuda)
                try:
                    report = _reported(library, request, text, key, cache, progress_of(f"{name} {text}"))
                except EngineError as error:
                    on_failure(error)
                else:
                    yield report


def _reported(
    library: TensorRt, request: BuildRequest, size: str, key: EngineKey, cache: EngineCache, progress: Progress
) -> EngineReport:
    built: list[BuiltEngine] = []

    def build() -> BuiltEngine:
        built.append(build_engine(library, replace(request, timings=cache.timings(key)), progress))
        return built[0]

    start = time.perf_counter()
    data = cache.get_or_build(key, build, progress)
    seconds = time.perf_counter() - start
    engine = _built_or_kept(built, key, cache)
    return EngineReport(
        graph=request.name,
        size=size,
        source="built" if built else "kept",
        seconds=seconds,
        bytes=len(data),
        gpu=key.gpu,
        profile=dict(request.profile),
        precision=engine.precision,
        warnings=engine.warnings,
        unaccounted=engine.unaccounted,
    )


def _built_or_kept(built: list[BuiltEngine], key: EngineKey, cache: EngineCache) -> BuiltEngine | KeptEngine:
    """The build that was just done, or the sidecar of the cached engine."""
    for engine in built:
        return engine
    for kept in cache.kept(key.onnx_sha256):
        if kept.path.stem == key.stem:
            return kept
    raise EngineError(f"the engine of {key.graph} left the cache {cache.folder} while it was read; run it again")


@contextmanager
def _gpu(library: TensorRt, plan: BuildPlan) -> Iterator[tuple[str, str]]:
    """Label of the GPU in this machine and the version of CUDA that its driver serves. It is current meanwhile: engines
    without targets are built for it."""
    if plan.targets:
        yield "", ""
        return
    from visrt.runtime.engines.trt.cuda import Gpu

    try:
        gpu = Gpu(plan.device)
    except EngineError as error:
        if library.flavour == "tensorrt":
            raise
        raise EngineError(f"{error}; or name the GPUs it is for, as in --target 8.6 --target 8.9") from error
    try:
        if absence := target_absence(library, [gpu.capability]):
            raise EngineError(absence)
        with gpu.current("building engines"):
            yield gpu.label, gpu.cuda
    finally:
        gpu.close()
