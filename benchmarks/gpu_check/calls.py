"""The frame engine alone: one call at a time, calls in flight, and what TensorRT's own trtexec measures of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array, Tensor
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.dynamic_axes import profile_of
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import EngineError, one_line
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.verify import closing

__all__ = ["APART_MS", "timed_calls", "trtexec_ms", "trtexec_note", "trtexec_tool"]

FRAME = "frame"
USUAL_PLACES = (Path("/usr/src/tensorrt/bin/trtexec"), Path("/opt/tensorrt/bin/trtexec"))
"""Where Debian's packages and NVIDIA's containers put it, beside the PATH."""

APART_MS = 0.4
"""More than so many milliseconds between our calls and trtexec's figure are worth a look."""

LIMIT_S = 300.0
Feeds = Mapping[str, Array]


def timed_calls(bundle: Bundle, engine: str, frames: int, calls: int, device: int) -> dict[str, Any]:
    """Milliseconds of a call of the frame engine with `frames` frames, the median of `calls`.

    alone_ms: from the call to its outputs on the host, one call after the other. in_flight_ms: of each call where call
    n is made before the outputs of call n - 1 are read, so that the engine is never idle. mb: that one call moves
    between host and GPU.
    """
    graph = bundle.manifest.graphs[FRAME]
    feeds = frame_feeds(bundle, frames)
    clip_frames = int(method_of(bundle.manifest).clip_frames)
    options = EngineOptions(device=device, batch=frames, clip_frames=clip_frames)
    on_host = graph.outputs.keys() - bundle.manifest.device_roles(FRAME)

    def read(outputs: Mapping[str, Tensor]) -> int:
        return sum(outputs[role].numpy().nbytes for role in on_host)

    with closing(open_engines(bundle, engine, options)) as engines:
        run = engines[FRAME]
        read(run(feeds))
        alone: list[float] = []
        down = 0
        for _ in range(calls):
            start = perf_counter()
            down = read(run(feeds))
            alone.append(perf_counter() - start)
        start, before = perf_counter(), run(feeds)
        for _ in range(calls):
            outputs = run(feeds)
            read(before)
            before = outputs
        read(before)
        in_flight_s = (perf_counter() - start) / (calls + 1)
    up = sum(array.nbytes for array in feeds.values())
    return {"alone_ms": 1e3 * median(alone), "in_flight_ms": 1e3 * in_flight_s, "mb": (up + down) / 1e6}


def frame_feeds(bundle: Bundle, frames: int) -> dict[str, Array]:
    """Inputs of the frame graph by role, all axes at their largest: random images that fill it, else zeros."""
    sizes = {symbol: most for symbol, (_, _, most) in profile_of(bundle.manifest, FRAME, frames).items()}
    graph, size = bundle.manifest.graphs[FRAME], bundle.manifest.input
    feeds: dict[str, Array] = {
        role: np.zeros([sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype)
        for role, spec in graph.inputs.items()
    }
    feeds["images"][...] = np.random.default_rng(0).integers(0, 256, feeds["images"].shape, dtype=np.uint8)
    feeds["valid_sizes"][...] = (size.height, size.width)
    return feeds


def trtexec_tool() -> Path | None:
    """TensorRT's trtexec on this machine; None without."""
    found = shutil.which("trtexec")
    return Path(found) if found else next((path for path in USUAL_PLACES if path.is_file()), None)


def trtexec_ms(tool: Path, bundle: Bundle, frames: int, device: int) -> float:
    """The GPU's time for a call of the frame engine in the cache by trtexec's account: with a CUDA graph and without
    copies, the median in milliseconds. Raises EngineError with trtexec's reason where there is none."""
    graph = bundle.manifest.graphs[FRAME]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(tool), f"--loadEngine={_engine_file(bundle, frames)}", f"--device={device}"),
            *_inputs(graph, frame_feeds(bundle, frames), Path(folder)),
            *("--useCudaGraph", "--noDataTransfers", "--warmUp=500", "--duration=5"),
        ]
        print(" ".join(command), flush=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"{tool} does not run: {one_line(error)}") from None
    print(done.stdout, done.stderr, flush=True)
    found = re.search(r"GPU Compute Time:[^\n]*?median = ([\d.]+) ms", done.stdout)
    if done.returncode or not found:
        raise EngineError(f"{tool} gave no time (exit code {done.returncode}): {_first_error(done)}")
    return float(found[1])


def _engine_file(bundle: Bundle, frames: int) -> Path:
    """The engine that runs: of the highest optimisation level, for these sizes."""
    from visrt.runtime.engines.trt.engine_cache import EngineCache

    profile = {symbol: list(sizes) for symbol, sizes in profile_of(bundle.manifest, FRAME, frames).items()}
    kept = [
        engine
        for engine in EngineCache().kept(hashlib.sha256(bundle.graph(FRAME)).hexdigest())
        if engine.key["flavour"] == "tensorrt" and dict(engine.key["profile"]) == profile
    ]
    if not kept:
        raise EngineError("the engine cache holds no engine of the frame graph; do the part `build` first")
    return max(kept, key=lambda engine: int(engine.key["level"])).path


def _inputs(graph: GraphSpec, feeds: Feeds, folder: Path) -> Sequence[str]:
    """Shapes and values of the inputs: random sizes of images could be none at all."""
    files, shapes = [], []
    for role, spec in graph.inputs.items():
        path = folder / f"{role}.bin"
        path.write_bytes(feeds[role].tobytes())
        files.append(f"{spec.name}:{path}")
        if any(isinstance(axis, str) for axis in spec.shape):
            shapes.append(f"{spec.name}:{'x'.join(map(str, feeds[role].shape))}")
    return [f"--loadInputs={','.join(files)}", *([f"--shapes={','.join(shapes)}"] if shapes else [])]


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return next((line for line in lines if "[E]" in line), lines[-1] if lines else "it printed nothing")[:300]


def trtexec_note(alone_ms: float, in_flight_ms: float, trtexec: float, mb: float) -> str:
    """What a difference of more than APART_MS between our call and trtexec's figure means; empty if it is less."""
    apart = alone_ms - trtexec
    if abs(apart) <= APART_MS:
        return ""
    figures = f"a call takes {alone_ms:.2f} ms alone and {in_flight_ms:.2f} ms in flight, trtexec says {trtexec:.2f} ms"
    if apart < 0:
        return (
            f"{figures}: trtexec is slower, so the GPU was busy or its clock lower meanwhile; see nvidia-smi and run "
            "this part again"
        )
    if in_flight_ms - trtexec <= APART_MS:
        return f"{figures}: the rest is copies of {mb:.1f} MB and calls of the driver, which calls in flight hide"
    return (
        f"{figures}: the host or the copies of {mb:.1f} MB hold the engine up; nsys profile -t cuda,osrt shows which: "
        "copies that are not 'Pinned', gaps of about 5 ms (Python's interpreter lock), or no CUDA graph"
    )
