"""`visrt calibrate`: a bundle in, an INT8 bundle out, or one with thresholds for its deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.benchmarks.accuracy.thresholds import Criterion, Fit
    from visrt.benchmarks.accuracy.thresholds import Trial as ThresholdTrial
    from visrt.calibration.ranges import Hazard
    from visrt.calibration.ranking import Trial
    from visrt.calibration.report import CalibrationReport
    from visrt.export.workplace import Existing
    from visrt.runtime.parity.agreement import Floors

__all__ = ["calibrate", "floors_from", "prices_from"]

FLOOR_NAMES = {"iou": "iou_mean", "iou_min": "iou_min", "top_class": "top_class", "assignment": "assignment"}
HAZARDS_SHOWN = 10


def calibrate(
    bundle: Annotated[Path, typer.Option(help="The fp32 or fp16 bundle; with --thresholds any bundle.")],
    source: Annotated[
        list[str],
        typer.Option(
            help="Video, folder or glob of images; repeat for more. With --thresholds: one folder with instances.json "
            "of labelled clips (YouTube-VIS, JPEGImages/) or images (COCO, images/), of which pseudo-videos are made."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="Fit score and similarity floors instead of quantising.")
    ] = False,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames to choose: half for ranges, half for judging. [32]")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Agreement with the bundle that must hold: iou, iou_min, top_class, assignment; repeat for more. "
            "[iou=0.97 top_class=0.99 assignment=0.9]",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="--thresholds: class map (json) of the labels; null leaves one out.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="--thresholds: what a fault costs, in missed objects: duplicate, spurious (0 where not every object "
            "is labelled), changed_id; repeat for more. [1 each]",
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="--thresholds: frames a second of the videos. [the set's, or 24]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle at OUT.")] = False,
) -> None:
    """Quantise a bundle to INT8, all layers but those that do too much harm; the report is in OUT/calibration.

    With --thresholds: the bundle with the floors that serve best on labelled data; OUT/thresholds.json tells why.
    """
    from visrt.export.workplace import Existing

    existing = Existing.REPLACE if overwrite else Existing.KEEP
    if thresholds:
        _refuse_options("does not go with --thresholds", frames=frames, floor=floor)
        _fit_thresholds(bundle, source, out, classes, price or [], fps, existing)
    else:
        _refuse_options("goes with --thresholds", classes=classes, price=price, fps=fps)
        _quantise(bundle, source, out, frames, floor or [], existing)


def _refuse_options(why: str, **options: object) -> None:
    from visrt.runtime.errors import UsageError

    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name} {why}; leave one of them out")


def _fit_thresholds(
    bundle: Path,
    source: Sequence[str],
    out: Path,
    classes: Path | None,
    prices: Sequence[str],
    fps: float | None,
    existing: Existing,
) -> None:
    from rich.console import Console

    from visrt.benchmarks.accuracy.fit_thresholds import ThresholdFit, fit_thresholds
    from visrt.benchmarks.accuracy.thresholds import Criterion
    from visrt.console import report_console
    from visrt.runtime.errors import UsageError

    if len(source) != 1:
        raise UsageError(f"{len(source)} sources were given; --thresholds are fitted on one folder of labelled data")
    criterion = prices_from(prices, Criterion())
    settings = ThresholdFit(bundle, out, Path(source[0]), classes, criterion, fps, existing=existing)
    tried: list[float] = []
    with Console(stderr=True).status("opening") as status:

        def on_trial(trial: ThresholdTrial) -> None:
            tried.append(trial.value)
            status.update(f"{len(tried)} settings tried, the best reaches {max(tried):.4f}")

        fitted = fit_thresholds(settings, status.update, on_trial)
    report_console().print(thresholds_table(fitted))
    report_console().print(f"{out}: {len(tried)} settings were tried; figures in {out / 'thresholds.json'}")


def prices_from(texts: Sequence[str], defaults: Criterion) -> Criterion:
    """`defaults` with the prices written as "changed_id=5" in their places."""
    return replace(defaults, **_numbers(texts, "price", {name: name for name in vars(defaults)}, "0 or more"))


def thresholds_table(fitted: Fit) -> Table:
    """The floors before and after, and what each made of the videos."""
    from rich.table import Table

    counted = ("tp", "duplicates", "fp", "id_switches", "lost_ids")
    table = Table("", *fitted.best.floors, "criterion", *(name.replace("_", " ") for name in counted))
    table.title = f"on {fitted.best.counts.gt} sights of labelled objects"
    for title, trial in (("before", fitted.before), ("chosen", fitted.best)):
        counts = [str(getattr(trial.counts, name)) for name in counted]
        values = ("never" if value is None else f"{value:g}" for value in trial.floors.values())
        table.add_row(title, *values, f"{trial.value:.4f}", *counts)
    return table


def _quantise(
    bundle: Path, source: Sequence[str], out: Path, frames: int | None, floor: Sequence[str], existing: Existing
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from visrt.calibration.calibrate import INT8_FLOORS, Calibration
    from visrt.calibration.sizes import calibrate_sizes
    from visrt.console import report_console

    floors = floors_from(floor, INT8_FLOORS)
    calibration = Calibration(bundle, out, tuple(source), floors=floors, existing=existing)
    if frames is not None:
        calibration = replace(calibration, frames=frames)
    console = report_console()
    trials: dict[str, list[Trial]] = {"": []}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening")

        def on_progress(stage: str, done: int, of: int) -> None:
            progress.update(task, description=stage, completed=done, total=of or None)

        def on_size(size: str) -> None:
            trials[size] = []

        def on_trial(trial: Trial) -> None:
            trials[next(reversed(trials))].append(trial)
            progress.update(task, description=f"tried {trial.layers} layers in INT8", completed=0, total=None)

        def on_hazards(found: list[Hazard]) -> None:
            for line in _hazard_lines(found):
                console.print(line)

        try:
            reports = calibrate_sizes(calibration, on_progress, on_hazards, on_trial, on_size)
        finally:
            for size, of_size in trials.items():
                if of_size:
                    console.print(trials_table(of_size, floors, size))
    for size, report in reports.items():
        for line in _summary(report):
            console.print(f"{size}: {line}" if len(reports) > 1 else line)
    console.print(f"{out}: report and plot in {out / 'calibration'}")


def floors_from(texts: Sequence[str], defaults: Floors) -> Floors:
    """`defaults` with the floors written as "iou=0.97" in their places."""
    return replace(defaults, **_numbers(texts, "floor", FLOOR_NAMES, "0 to 1"))


def _numbers(texts: Sequence[str], what: str, names: Mapping[str, str], expected: str) -> dict[str, float]:
    """The numbers of options written as NAME=VALUE, by what `names` calls them."""
    from visrt.runtime.errors import UsageError

    given: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in names:
            example = next(iter(names))
            raise UsageError(f"{what} {text!r} is unknown; expected one of {', '.join(names)}, as {example}=0.97")
        try:
            given[names[name]] = float(value)
        except ValueError:
            raise UsageError(f"{what} {text!r} has no number; expected {expected}, as {name}=0.97") from None
    return given


def trials_table(trials: Sequence[Trial], floors: Floors, size: str = "") -> Table:
    """One row for each number of layers that was tried, at `size` of several."""
    from rich.table import Table

    title = "agreement with the unquantised bundle" + (f" at {size}" if size else "")
    table = Table("layers in INT8", "IoU mean", "IoU least", "top class", "assignment", "", title=title)
    for trial in sorted(trials, key=lambda trial: trial.layers):
        a = trial.agreement
        reached = [f"{value:.4f}" for value in (a.iou_mean, a.iou_min, a.top_class, a.assignment)]
        table.add_row(str(trial.layers), *reached, "[red]misses a floor[/]" if trial.missed else "[green]holds[/]")
    table.add_section()
    figures = (floors.iou_mean, floors.iou_min, floors.top_class, floors.assignment)
    table.add_row("floors", *(f"{value:.4f}" for value in figures), "")
    return table


def _hazard_lines(found: Sequence[Hazard]) -> list[str]:
    if not found:
        return ["every tensor stays within FP16's range on the calibration frames"]
    lines = [f"outside FP16's range: {hazard.describe()}" for hazard in found[:HAZARDS_SHOWN]]
    return lines + ([f"and {len(found) - HAZARDS_SHOWN} more"] if len(found) > HAZARDS_SHOWN else [])


def _summary(report: CalibrationReport) -> list[str]:
    nodes = sum(len(layer.nodes) for layer in report.quantised)
    notes = [f"source cut short: {note}" for note in report.choice.notes]
    return [
        *notes,
        f"{len(report.quantised)} of {len(report.ranking)} layers ({nodes} nodes) compute in INT8, "
        f"{report.int8_work:.0%} of their multiply-accumulates; "
        f"{report.choice.read} frames looked at, {len(report.choice.ranges)} for ranges, "
        f"{report.agreement.frames} for judging; {report.seconds:.0f} s",
    ]
