"""`visrt calibrate`: a bundle in, an INT8 bundle out, as quantised as the quality floors allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.calibration.ranges import Hazard
    from visrt.calibration.ranking import Trial
    from visrt.calibration.report import CalibrationReport
    from visrt.runtime.agreement import Floors

__all__ = ["calibrate", "floors_from"]

FLOOR_NAMES = {"iou": "iou_mean", "iou_min": "iou_min", "top_class": "top_class", "assignment": "assignment"}
HAZARDS_SHOWN = 10


def calibrate(
    bundle: Annotated[Path, typer.Option(help="The fp32 or fp16 bundle.")],
    source: Annotated[list[str], typer.Option(help="Video, folder or glob of images; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder of the int8 bundle.")],
    frames: Annotated[int, typer.Option(min=2, help="Frames to choose: half for ranges, half for judging.")] = 32,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Agreement with the bundle that must hold: iou, iou_min, top_class, assignment; repeat for more. "
            "[iou=0.97 top_class=0.99 assignment=0.9]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle at OUT.")] = False,
) -> None:
    """Quantise a bundle to INT8, all layers but those that do too much harm. The report is in OUT/calibration."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from visrt.calibration.calibrate import INT8_FLOORS, Calibration, calibrate_bundle
    from visrt.console import report_console
    from visrt.export.workplace import Existing

    floors = floors_from(floor or [], INT8_FLOORS)
    existing = Existing.REPLACE if overwrite else Existing.KEEP
    wanted = Calibration(bundle, out, tuple(source), frames, floors, existing)
    console = report_console()
    trials: list[Trial] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening")

        def on_progress(stage: str, done: int, of: int) -> None:
            progress.update(task, description=stage, completed=done, total=of or None)

        def on_trial(trial: Trial) -> None:
            trials.append(trial)
            progress.update(task, description=f"tried {trial.layers} layers in INT8", completed=0, total=None)

        def on_hazards(found: list[Hazard]) -> None:
            for line in _hazard_lines(found):
                console.print(line)

        try:
            report = calibrate_bundle(wanted, on_progress, on_hazards, on_trial)
        finally:
            if trials:
                console.print(trials_table(trials, floors))
    for line in _summary(report, out):
        console.print(line)


def floors_from(texts: Sequence[str], defaults: Floors) -> Floors:
    """`defaults` with the floors written as "iou=0.97" in their places."""
    from visrt.runtime.errors import UsageError

    given: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in FLOOR_NAMES:
            raise UsageError(f"floor {text!r} is unknown; expected one of {', '.join(FLOOR_NAMES)}, as iou=0.97")
        try:
            given[FLOOR_NAMES[name]] = float(value)
        except ValueError:
            raise UsageError(f"floor {text!r} has no number; expected 0 to 1, as {name}=0.97") from None
    return replace(defaults, **given)


def trials_table(trials: Sequence[Trial], floors: Floors) -> Table:
    """One row for each number of layers that was tried."""
    from rich.table import Table

    title = "agreement with the unquantised bundle"
    table = Table("layers in INT8", "IoU mean", "IoU least", "top class", "assignment", "", title=title)
    for trial in sorted(trials, key=lambda trial: trial.layers):
        a = trial.agreement
        figures = [f"{value:.4f}" for value in (a.iou_mean, a.iou_min, a.top_class, a.assignment)]
        table.add_row(str(trial.layers), *figures, "[red]misses a floor[/]" if trial.missed else "[green]holds[/]")
    table.add_section()
    wanted = (floors.iou_mean, floors.iou_min, floors.top_class, floors.assignment)
    table.add_row("floors", *(f"{value:.4f}" for value in wanted), "")
    return table


def _hazard_lines(found: Sequence[Hazard]) -> list[str]:
    if not found:
        return ["every tensor stays within FP16's range on the calibration frames"]
    lines = [f"outside FP16's range: {hazard.told()}" for hazard in found[:HAZARDS_SHOWN]]
    return lines + ([f"and {len(found) - HAZARDS_SHOWN} more"] if len(found) > HAZARDS_SHOWN else [])


def _summary(report: CalibrationReport, out: Path) -> list[str]:
    nodes = sum(len(entry.layer.nodes) for entry in report.ranking if report.is_int8(entry.layer))
    notes = [f"source cut short: {note}" for note in report.choice.notes]
    return [
        *notes,
        f"{len(report.quantised)} of {len(report.ranking)} layers ({nodes} nodes) compute in INT8, "
        f"{report.int8_work:.0%} of their multiply-accumulates; "
        f"{report.choice.read} frames looked at, {len(report.choice.ranges)} for ranges, "
        f"{report.agreement.frames} for judging; {report.seconds:.0f} s",
        f"{out}: report and plot in {out / 'calibration'}",
    ]
