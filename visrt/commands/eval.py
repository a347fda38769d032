"""`visrt eval`: a bundle or a results file against annotated videos."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.association import PRESET_HELP, association_in
from visrt.commands.class_choice import CHOICE_HELP, class_choice
from visrt.runtime.engines.backends import BACKENDS

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.scores import BundleRun, Measured
    from visrt.training.data.annotations import ClassChoice

__all__ = ["evaluate"]


class Rule(str, Enum):
    """How a bundle's output becomes tracks: frame by frame, by the family's published video-level rule, or both."""

    causal = "causal"
    official = "official"
    both = "both"


class Coverage(str, Enum):
    """Whether every object of the known classes is annotated. The user says so; nothing is guessed."""

    complete = "complete"
    partial = "partial"


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of the annotated videos, as `visrt data check` takes it.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to run over the videos.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file (YouTube-VIS) to measure instead.")] = None,
    classes: Annotated[str | None, typer.Option(help=CHOICE_HELP)] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's or the preset's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    engine: Annotated[str, typer.Option(help=f"What runs the network: {', '.join(BACKENDS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            help="causal: what a stream gives; official: the video-level result, which sees the future; both."
        ),
    ] = Rule.causal,
    annotations: Annotated[
        Coverage,
        typer.Option(help="partial: objects are visible that nobody annotated, so AP and false positives mean little."),
    ] = Coverage.complete,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames a second of the videos, for ages.")] = 24.0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Empty or new folder for figures, plots and the worst videos.")
    ] = None,
) -> None:
    """Measure AP and AR of whole tracks by the YouTube-VIS rule; HOTA, IDF1, recall and id switches frame by frame.

    Of causal output a track's label is the one with the largest sum of scores, its score the mean over its frames.
    Where not every object is annotated, recall and id switches mean something, AP and false positives do not.
    """
    from visrt.benchmarks.accuracy.scores import BundleRun, evaluate_results_file
    from visrt.benchmarks.new_folder import new_folder
    from visrt.runtime.errors import UsageError

    if (bundle is None) == (results is None):
        raise UsageError("give either --bundle to run or --results to measure, and not both")
    if bundle is None and (association or preset or threads is not None or rule is not Rule.causal):
        raise UsageError(
            "--results are measured as they are: --association, --preset, --threads and --rule go with --bundle"
        )
    if report is not None:
        new_folder(report, "--report")
    choice = class_choice(classes)
    if bundle is not None:
        rules = ("causal", "official") if rule is Rule.both else (rule.value,)
        changes = association_in(association, preset).changes
        measured = _of_bundle(bundle, data, choice, BundleRun(engine, threads, changes, preset, fps, rules))
    else:
        assert results is not None
        measured = evaluate_results_file(results, data, choice)
    given = {"data": data, "bundle": bundle, "results": results, "classes": classes, "association": association}
    settings = {name: None if path is None else str(path) for name, path in given.items()}
    _write(measured, {**settings, **measured.settings, "annotations": annotations.value}, json, report)


def _of_bundle(bundle: Path, data: Path, choice: ClassChoice | None, run: BundleRun) -> Measured:
    """The evaluation, with a bar of its progress where someone watches."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from visrt.benchmarks.accuracy.scores import evaluate

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_video(rule: str, done: int, of: int) -> None:
            if rule not in tasks:
                tasks[rule] = progress.add_task(f"videos, {rule}", total=of)
            progress.update(tasks[rule], completed=done)

        return evaluate(bundle, data, choice, run, on_video)


def _write(measured: Measured, settings: dict[str, Any], json: Path | None, folder: Path | None) -> None:
    """Tables on stdout, remarks on stderr, and the files that were requested."""
    from visrt.benchmarks.accuracy.report import evaluation_report, write_folder, write_report
    from visrt.commands.eval_tables import PARTIAL_NOTE, eval_tables
    from visrt.console import report_console, say

    note = PARTIAL_NOTE if settings["annotations"] == Coverage.partial.value else None
    for table in eval_tables(measured.annotated, measured.scores, note):
        report_console().print(table)
    report = evaluation_report(measured.annotated, measured.scores, settings)
    for remark in report["remarks"]:
        say(remark)
    if json is not None:
        write_report(json, report)
    if folder is not None:
        write_folder(folder, measured.annotated, measured.scores, report)
