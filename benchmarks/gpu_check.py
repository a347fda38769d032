"""Builds, verifies, inspects and times every engine on a GPU, in one command.

    python -m visrt.benchmarks.gpu_check --bundle bundles/default --clip clips/demo.mp4

Exits with 0 if at least one engine ran on a GPU and none failed, with 5 if one failed, and with 3 on a machine where
none could run: then only the CPU was measured, and the report says that this was no GPU check.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from visrt.benchmarks.speed.clip_timing import ClipTiming, EngineTiming, time_clip, time_engines
from visrt.benchmarks.speed.engine_layers import inspected_layers
from visrt.benchmarks.speed.memory import gpu_memory_mb
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.dynamic_axes import profile_of
from visrt.runtime.engines.backends import BACKENDS, open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.build import build_request
from visrt.runtime.engines.trt.engine_cache import EngineCache, engine_key
from visrt.runtime.engines.trt.library import OLDEST, Flavour, load_tensorrt
from visrt.runtime.errors import PARTIAL, EngineError, VisrtError
from visrt.runtime.machine import machine_and_packages
from visrt.runtime.parity.verify import VerifySettings, closing, stored_reference, verification_values, verify_engines
from visrt.runtime.sinks.output import write_atomically

__all__ = ["CheckSettings", "EngineCheck", "check", "exit_code", "main"]

FAILED = 5
ON_GPU = tuple(name for name, backend in BACKENDS.items() if backend.on_gpu)


@dataclass(frozen=True)
class CheckSettings:
    """batches: frames per call for which engines are built, verified and timed. frames: of the clip.

    repeats: timed calls of the engines alone. kept: masks of a frame in these calls.
    """

    batches: tuple[int, ...] = (1, 4)
    frames: int = 300
    repeats: int = 100
    kept: int = 10


@dataclass
class EngineCheck:
    """One bundle on one engine. state: "checked", "absent" or "failed"; reason: why it was not run or what failed.

    opened_s: seconds to open the engines, with building where they were not cached. memory_mb: GPU memory that the open
    engines take. layers: of each graph, by the engine inspector, or why they are not known.
    """

    bundle: str
    engine: str
    state: str = "checked"
    reason: str = ""
    opened_s: dict[int, float] = field(default_factory=dict)
    memory_mb: dict[int, int | None] = field(default_factory=dict)
    verified: dict[int, dict[str, Any]] = field(default_factory=dict)
    layers: dict[str, dict[str, int] | str] = field(default_factory=dict)
    alone: list[EngineTiming] = field(default_factory=list)
    clip: list[ClipTiming] = field(default_factory=list)


def check(
    bundles: Sequence[Bundle], clip: Path, settings: CheckSettings, say: Callable[[str], None] = print
) -> list[EngineCheck]:
    """Every bundle at every size on every engine of a GPU, on the CPU where there is none. `say` hears the findings."""
    absences = {engine: BACKENDS[engine].absence() for engine in ON_GPU}
    if all(absences.values()):
        absences["cpu"] = BACKENDS["cpu"].absence()
    checks = []
    for bundle in (size for whole in bundles for size in _named_sizes(whole)):
        for engine, absence in absences.items():
            if absence:
                checks.append(EngineCheck(bundle.manifest.name, engine, "absent", absence))
            else:
                checks.append(_checked(bundle, engine, clip, settings))
            for line in report_lines(checks[-1]):
                say(line)
    return checks


def _named_sizes(bundle: Bundle) -> list[Bundle]:
    """The bundle, or one for each of its sizes with the size in its name."""
    if not bundle.manifest.other_sizes:
        return [bundle]
    named = [(size, f"{size.manifest.name} {size.manifest.input.text}") for size in bundle.sizes]
    return [replace(size, manifest=size.manifest.model_copy(update={"name": name})) for size, name in named]


def exit_code(checks: Sequence[EngineCheck]) -> int:
    if any(found.state == "failed" for found in checks):
        return FAILED
    ran = any(found.state == "checked" and found.engine in ON_GPU for found in checks)
    return 0 if ran else PARTIAL


def _checked(bundle: Bundle, engine: str, clip: Path, settings: CheckSettings) -> EngineCheck:
    """The check up to the first failure, whose message is the reason."""
    found = EngineCheck(bundle.manifest.name, engine)
    try:
        for batch in settings.batches:
            _open(found, bundle, batch)
            _verify(found, bundle, batch)
            found.alone.append(time_engines(bundle, engine, batch, settings.kept, settings.repeats))
        for in_flight in (1, 2):
            found.clip.append(time_clip(bundle, engine, clip, in_flight, settings.frames))
    except VisrtError as error:
        found.state, found.reason = "failed", str(error)
        return found
    for flavour in OLDEST:
        if flavour == engine:
            _inspect(found, bundle, flavour)
    return found


def _open(found: EngineCheck, bundle: Bundle, batch: int) -> None:
    before, start = gpu_memory_mb(), perf_counter()
    with closing(open_engines(bundle, found.engine, EngineOptions(batch=batch))) as engines:
        found.opened_s[batch] = perf_counter() - start
        reference = stored_reference(bundle)
        engines["frame"]({"images": reference.images[:1], "valid_sizes": reference.valid_sizes[:1]})
        held = gpu_memory_mb()
    found.memory_mb[batch] = None if before is None or held is None else held - before


def _verify(found: EngineCheck, bundle: Bundle, batch: int) -> None:
    settings = VerifySettings((found.engine,), tuple(sorted({1, batch})))
    verification = verify_engines(bundle, stored_reference(bundle), settings)
    found.verified[batch] = verification_values(verification)
    verification.require(bundle.manifest.name)


def _inspect(found: EngineCheck, bundle: Bundle, flavour: Flavour) -> None:
    """The layers of each graph's cached engine for one frame."""
    for name in bundle.manifest.graphs:
        try:
            found.layers[name] = _layers(bundle, name, flavour)
        except EngineError as error:
            found.layers[name] = str(error)


def _layers(bundle: Bundle, name: str, flavour: Flavour) -> dict[str, int]:
    from visrt.runtime.engines.trt.cuda import Gpu

    library, gpu = load_tensorrt(flavour), Gpu()
    request = build_request(bundle, name, profile_of(bundle.manifest, name, 1))

    def missing() -> Any:
        raise EngineError(f"the engine of {name} is not in the cache, so it cannot be inspected; see why above")

    try:
        data = EngineCache().get_or_build(engine_key(library, request, gpu.label, gpu.driver), missing)
        with gpu.current("inspecting an engine"):
            return inspected_layers(library, data)
    finally:
        gpu.close()


def report_lines(found: EngineCheck) -> list[str]:
    lines = [f"{found.bundle} on {found.engine}: {found.state}{f', {found.reason}' if found.reason else ''}"]
    for batch, seconds in found.opened_s.items():
        memory = found.memory_mb.get(batch)
        held = "GPU memory unknown" if memory is None else f"{memory} MB of GPU memory"
        lines.append(f"  batch {batch}: opened in {seconds:.1f} s, {held}")
    for batch, verdict in found.verified.items():
        lines.append(f"  batch {batch}: verification {'passed' if verdict['passed'] else 'FAILED'}")
    for graph, layers in found.layers.items():
        counted = layers if isinstance(layers, str) else ", ".join(f"{count} {kind}" for kind, count in layers.items())
        lines.append(f"  {graph} by the inspector: {counted}")
    lines += [_engine_line(timing) for timing in found.alone]
    for timing in found.clip:
        lines += _clip_lines(timing)
    return lines


def _engine_line(timing: EngineTiming) -> str:
    frame, masks = timing.frame, timing.masks
    return (
        f"  engines alone, batch {timing.batch}: {timing.fps:.1f} FPS; frame {_ms(frame)}; "
        f"{timing.kept} masks {_ms(masks)}"
    )


def _clip_lines(timing: ClipTiming) -> list[str]:
    head = f"  clip of {timing.frames} frames, {timing.in_flight} in flight: {timing.fps:.1f} FPS end to end, "
    stages = [f"    {stage:14} {_ms(times)}" for stage, times in timing.stages.items()]
    return [f"{head}{timing.objects} objects; frame {_ms(timing.frame)}", *stages]


def _ms(times: Any) -> str:
    return f"p50 {times.p50_ms:.2f}, p95 {times.p95_ms:.2f}, p99 {times.p99_ms:.2f} ms"


def _arguments(arguments: Sequence[str] | None) -> Namespace:
    defaults = CheckSettings()
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, nargs="+", default=[Path("bundles/default")])
    parser.add_argument("--clip", type=Path, default=Path("clips/demo.mp4"))
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check.json"))
    parser.add_argument("--frames", type=int, default=defaults.frames)
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    parser.add_argument("--batch", type=int, nargs="+", default=list(defaults.batches))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; the report goes to stdout and, with machine and versions, to a json file."""
    given = _arguments(arguments)
    settings = CheckSettings(tuple(given.batch), given.frames, given.repeats)
    checks = check([open_bundle(folder) for folder in given.bundle], given.clip, settings)
    code = exit_code(checks)
    verdict = {
        0: "GPU check passed",
        FAILED: "GPU check FAILED",
        PARTIAL: "this was NOT a GPU check: no engine could run on a GPU here; the reasons are above",
    }[code]
    _write(given.out, settings, checks, verdict)
    print(f"{verdict}; written to {given.out}")
    return code


def _write(path: Path, settings: CheckSettings, checks: Sequence[EngineCheck], verdict: str) -> None:
    whole = {
        "verdict": verdict,
        "machine": machine_and_packages(),
        "settings": asdict(settings),
        "checks": [asdict(found) for found in checks],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [json.dumps(whole, indent=1).encode(), b"\n"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VisrtError as error:
        sys.exit(f"visrt: {error}")
