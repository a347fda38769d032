"""A bundle on TensorRT or TensorRT-RTX: its graphs as engines on one GPU, in one context, on two streams."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.dynamic_axes import BATCH, STREAMS, combinations, largest_sizes, profile_of, run_sizes
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.build import (
    LEVELS,
    BuildRequest,
    BuiltEngine,
    build_engine,
    build_request,
)
from visrt.runtime.engines.trt.context import TrtContext
from visrt.runtime.engines.trt.cuda import Gpu
from visrt.runtime.engines.trt.engine import SLOTS, TrtEngine
from visrt.runtime.engines.trt.engine_cache import EngineCache, EngineKey, engine_key
from visrt.runtime.engines.trt.library import Flavour, load_tensorrt
from visrt.runtime.engines.trt.log import Line, log_text
from visrt.runtime.engines.trt.plan import Kernels, Plan
from visrt.runtime.errors import EngineError

__all__ = ["open_tensorrt", "start_engines"]


def open_tensorrt(bundle: Bundle, flavour: Flavour, options: EngineOptions) -> dict[str, Engine]:
    """Engines for the graphs of `bundle`, which only the thread that opens them may use.

    Each is taken from the engine cache, or built and cached now, which is logged and takes minutes. Then each runs once
    at all sizes that calls can have, which takes seconds, so that no call is slower than the others. Raises EngineError
    if there is no library, no GPU or not enough memory, or TensorRT refuses an engine.
    """
    library = load_tensorrt(flavour)
    context = TrtContext(Gpu(options.device), library)
    source = _Source(context, bundle, options.batch)
    engines = start_engines(context, bundle.manifest, options.batch, source.engine, source.kernels)
    try:
        for engine in engines.values():
            engine.warm(combinations(engine.axes, options.clip_frames))
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        for engine in engines.values():
            engine.close()
        raise
    return dict(engines)


class _Source:
    """Takes TensorRT's engines of a bundle from the cache, or builds them."""

    def __init__(self, context: TrtContext, bundle: Bundle, batch: int) -> None:
        self._context, self._bundle, self._batch = context, bundle, batch
        self._cache = EngineCache()
        self._built: set[str] = set()
        self._keys: dict[str, EngineKey] = {}

    def engine(self, name: str) -> Any:
        """TensorRT's own engine of graph `name`; the context must be current.

        It is of the highest optimisation level that is in the cache; a new one has TensorRT's own level.
        """
        request = build_request(self._bundle, name, profile_of(self._bundle.manifest, name, self._batch))
        main = engine_key(self._context.library, request, self._context.gpu.label, self._context.gpu.cuda)
        keys = [replace(main, level=level) for level in reversed(LEVELS)]
        key = next((known for known in keys if self._cache.holds(known)), main)
        request = replace(request, level=key.level)
        self._keys[name] = key
        file = request.graph.file.file
        with self._context.log.listening() as lines:
            engine = self._deserialized(request, key)
            if engine is None and name not in self._built and not _short_of_memory(lines):
                self._context.notice(f"{file}: TensorRT refuses the cached engine; a new one is built")
                self._cache.forget(key)
                engine = self._deserialized(request, key)
        if engine is None:
            raise EngineError(
                f"{file}: TensorRT refuses the engine; it says: {log_text(lines)}; end what else runs on "
                f"{self._context.gpu.name} if memory is short, or use --engine cpu"
            )
        return engine

    def kernels(self, name: str) -> Kernels | None:
        """What was compiled for graph `name`, once its engine is there; None for TensorRT, which compiles nothing."""
        if self._context.library.flavour == "tensorrt":
            return None
        key = self._keys[name]
        return Kernels(self._cache.kernels(key), partial(self._cache.keep_kernels, key))

    def _deserialized(self, request: BuildRequest, key: EngineKey) -> Any:
        def build() -> BuiltEngine:
            self._built.add(request.name)
            return build_engine(self._context.library, replace(request, timings=self._cache.timings(key)))

        return self._context.deserialize(self._cache.get_or_build(key, build))


def _short_of_memory(lines: list[Line]) -> bool:
    """Whether TensorRT ran out of memory, which a new engine would not change."""
    return any(re.search("out ?of ?memory", line.text, re.IGNORECASE) for line in lines)


def start_engines(
    context: TrtContext,
    manifest: Manifest,
    batch: int,
    deserialized: Callable[[str], Any],
    kernels: Callable[[str], Kernels | None] = lambda _: None,
) -> dict[str, TrtEngine]:
    """The engines of a bundle by graph. If one fails, all are freed.

    `deserialized` gives TensorRT's own by name, and then `kernels` what was compiled for it.
    """
    plans: dict[str, Plan] = {}
    engines: dict[str, TrtEngine] = {}
    context.join()
    try:
        largest = largest_sizes(manifest, batch)
        with context.gpu.current("opening the engines"):
            for name, graph in manifest.graphs.items():
                plans[name] = Plan(context.library.module, deserialized(name), graph, largest, kernels(name))
            for lane in (context.frames, context.side):
                if sizes := [plan.workspace_bytes for name, plan in plans.items() if context.lane(name) is lane]:
                    lane.reserve(max(sizes))
        for name, plan in plans.items():
            engines[name] = _started(context, plan, manifest, name, batch)
    except BaseException as error:
        # TensorRT's objects die with their last reference, and must not outlive the GPU's context in a traceback.
        traceback.clear_frames(error.__traceback__)
        context.gpu.release([*(engine.close for engine in engines.values()), *(plan.close for plan in plans.values())])
        raise
    finally:
        context.leave()
    return engines


def _started(context: TrtContext, plan: Plan, manifest: Manifest, name: str, batch: int) -> TrtEngine:
    axes = {symbol: run_sizes(symbol, sizes[-1]) for symbol, sizes in profile_of(manifest, name, batch).items()}
    answers = SLOTS if axes.keys() & {BATCH, STREAMS} else max(SLOTS, batch)
    lane, roles = context.lane(name), manifest.device_roles(name)
    return TrtEngine(context, lane, plan, manifest.graphs[name], axes, roles, answers)
