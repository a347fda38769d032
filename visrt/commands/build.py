"""`visrt build`: the engines of a bundle, ahead of time: for the GPU of this machine, or for others by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.device import Device
from visrt.runtime.engines.trt.library import FLAVOURS

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.runtime.engines.trt.build_progress import Progress
    from visrt.runtime.engines.trt.bundle_build import EngineReport
    from visrt.runtime.engines.trt.library import Flavour

__all__ = ["build", "flavour_named"]


def build(
    bundle: Annotated[Path, typer.Option(help="Folder that `visrt export` wrote.")],
    engine: Annotated[str, typer.Option(help=f"{' or '.join(FLAVOURS)}.")] = "tensorrt",
    batch: Annotated[int, typer.Option(min=1, help="The most frames of one call.")] = 1,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability of a GPU that is not here (8.6), tensorrt-rtx only; may be repeated."),
    ] = None,
    device: Device = 0,
    optimize: Annotated[
        int, typer.Option(min=0, max=5, help="The builder's level: a higher one times more kernels, for longer.")
    ] = 3,
    out_log: Annotated[Path | None, typer.Option(help="Json file for what was built, or why not.")] = None,
) -> None:
    """Build an engine for each graph and size of a bundle and keep it in the cache; leave with 5 if one cannot be.

    TensorRT tells faults of an engine in its log alone, so a message that visrt does not know to be harmless refuses
    the engine. VISRT_ACCEPT_MESSAGES=1 takes it all the same, shows the messages and keeps them with the engine.
    """
    from visrt.console import report_console, say
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.engines.trt.bundle_build import BuildPlan, build_bundle
    from visrt.runtime.engines.trt.engine_cache import EngineCache
    from visrt.runtime.engines.trt.library import load_tensorrt

    flavour = flavour_named(engine)
    plan = BuildPlan(batch, tuple(target or ()), device, optimize)
    opened = open_bundle(bundle)
    console, cache = report_console(), EngineCache(notice=say)
    reports: list[EngineReport] = []
    settings = {"bundle": opened.manifest.name, "engine": flavour, "plan": asdict(plan)}
    with _logged(out_log, settings, reports), _shown_progress() as progress_of:
        reports.extend(build_bundle(opened, load_tensorrt(flavour), plan, cache, progress_of))
    console.print(_table(reports, f"{bundle} for {reports[0].gpu}"))
    for warning in dict.fromkeys(text for report in reports for text in report.warnings):
        console.print(f"accepted message: {warning}", markup=False)
    for text in dict.fromkeys(text for report in reports for text in report.unaccounted):
        console.print(f"NOT accounted for: {text}", markup=False)
    console.print(f"kept in {cache.folder}", markup=False)
    if plan.targets:
        console.print("these engines were built for GPUs by name and were not run: `make gpu-check` on each such GPU")


def flavour_named(engine: str) -> Flavour:
    """The flavour the user wrote; UsageError for any other word."""
    from visrt.runtime.errors import UsageError

    for flavour in FLAVOURS:
        if flavour == engine:
            return flavour
    raise UsageError(f"--engine {engine}: expected {' or '.join(FLAVOURS)}; other engines run the bundle as it is")


@contextmanager
def _logged(path: Path | None, settings: Mapping[str, Any], reports: Sequence[EngineReport]) -> Iterator[None]:
    """Writes the log to `path` on leaving, whether all was built or not."""
    from visrt.runtime.errors import VisrtError

    refused = ""
    try:
        yield
    except VisrtError as error:
        refused = str(error)
        raise
    finally:
        if path is not None:
            _write_log(path, {**settings, "refused": refused, "engines": [asdict(report) for report in reports]})


def _write_log(path: Path, log: Mapping[str, Any]) -> None:
    from visrt.runtime.machine import machine_and_packages
    from visrt.runtime.sinks.output import write_atomically

    whole = {"machine": machine_and_packages(), **log}
    write_atomically(path, [json.dumps(whole, indent=1).encode(), b"\n"])


@contextmanager
def _shown_progress() -> Iterator[Callable[[str], Progress]]:
    """A bar a graph on stderr; gives the function that starts one."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:

        def start(graph: str) -> Progress:
            bar = bars.add_task(graph, total=1.0)
            return lambda phase, done: bars.update(bar, completed=done, description=f"{graph}: {phase[:60]}")

        yield start


def _table(reports: Sequence[EngineReport], title: str) -> Table:
    """One row an engine."""
    from rich.table import Table

    table = Table("graph", "size", "profile", "MB", "seconds", "", "computes in", title=title, title_justify="left")
    for report in reports:
        profile = ", ".join(f"{symbol} {'/'.join(map(str, sizes))}" for symbol, sizes in report.profile.items())
        layers = (f"{count} {kind}" for kind, count in report.precision.items() if not kind.startswith("tensor "))
        numbers = (f"{report.bytes / 1e6:.1f}", f"{report.seconds:.1f}")
        table.add_row(report.graph, report.size, profile, *numbers, report.source, ", ".join(layers))
    return table
