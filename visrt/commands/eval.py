"""`visrt eval`: a bundle or a results file against annotated videos."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.association import PRESET_HELP, Association, association_in

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.evaluate import Evaluation
    from visrt.benchmarks.accuracy.scores import Scores
    from visrt.benchmarks.datasets.ytvis import AnnotatedSet
    from visrt.runtime.session import Session

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
    data: Annotated[Path, typer.Option(help="Folder with instances.json (YouTube-VIS) and JPEGImages/.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to run over the videos.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file (YouTube-VIS) to measure instead.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help='Class map (json): {"dog": "animal", "chair": null}; null leaves one out.')
    ] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's or the preset's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    engine: Annotated[str, typer.Option(help="What runs the network: cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            help="causal: what a stream gives; official: the video-level result, which sees the future; both."
        ),
    ] = Rule.causal,
    annotations: Annotated[
        Coverage,
        typer.Option(help="partial: objects are visible that nobody annotated, so AP and spurious say little."),
    ] = Coverage.complete,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames a second of the videos, for ages.")] = 24.0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Empty or new folder for figures, plots and the worst videos.")
    ] = None,
) -> None:
    """Measure AP and AR of whole tracks by the YouTube-VIS rule; HOTA, IDF1, recall and id switches frame by frame.

    Of causal output a track's label is the one with the largest sum of scores, its score the mean over its frames.
    Where not every object is annotated, recall and id switches mean something, AP and spurious objects do not.
    """
    from visrt.benchmarks.accuracy.scores import score
    from visrt.benchmarks.datasets.ytvis import load_class_map
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
    mapped = load_class_map(classes) if classes else None
    if bundle is not None:
        run = BundleRun(bundle, association_in(association, preset), engine, threads, fps, rule)
        measured = _of_bundle(run, data, mapped)
    else:
        assert results is not None
        measured = _of_results(results, data, mapped)
    scores = {rule: score(measured.annotated, evaluation) for rule, evaluation in measured.evaluations.items()}
    given = {"data": data, "bundle": bundle, "results": results, "classes": classes, "association": association}
    settings = {name: None if path is None else str(path) for name, path in given.items()}
    settings = {**settings, **measured.made, "annotations": annotations.value}
    _tell(measured.annotated, scores, settings, json, report)


@dataclass(frozen=True)
class Measured:
    """What was evaluated on what, by rule, and how it was made."""

    annotated: AnnotatedSet
    evaluations: dict[str, Evaluation]
    made: dict[str, Any]


def _tell(
    annotated: AnnotatedSet,
    scores: dict[str, Scores],
    settings: dict[str, Any],
    json: Path | None,
    folder: Path | None,
) -> None:
    """Tables on stdout, remarks on stderr, and what is to be written."""
    from visrt.benchmarks.accuracy.eval_folder import write_folder
    from visrt.benchmarks.accuracy.report import evaluation_report, write_report
    from visrt.commands.eval_tables import PARTIAL_NOTE, eval_tables
    from visrt.console import report_console, say

    note = PARTIAL_NOTE if settings["annotations"] == Coverage.partial.value else None
    for table in eval_tables(annotated, scores, note):
        report_console().print(table)
    report = evaluation_report(annotated, scores, settings)
    for remark in report["remarks"]:
        say(remark)
    if json is not None:
        write_report(json, report)
    if folder is not None:
        write_folder(folder, annotated, scores, report)


def _of_results(results: Path, data: Path, mapped: dict[str, str | None] | None) -> Measured:
    from visrt.benchmarks.accuracy.evaluate import evaluate_results
    from visrt.benchmarks.datasets.ytvis import load_annotations, load_results

    annotated = load_annotations(data, None if mapped is None else _targets(mapped), mapped)
    return Measured(annotated, {"results": evaluate_results(annotated, load_results(results, annotated))}, {})


def _targets(mapped: dict[str, str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in mapped.values() if name is not None))


@dataclass(frozen=True)
class BundleRun:
    """How a bundle is run over the videos, `fps` frames a second."""

    bundle: Path
    association: Association
    engine: str
    threads: int | None
    fps: float
    rule: Rule


def _of_bundle(run: BundleRun, data: Path, mapped: dict[str, str | None] | None) -> Measured:
    from visrt.benchmarks.datasets.ytvis import load_annotations
    from visrt.runtime.bundle import open_bundle
    from visrt.runtime.session import Session

    opened = open_bundle(run.bundle)
    annotated = load_annotations(data, opened.manifest.classes, mapped)
    changes, preset = run.association.changes, run.association.preset
    with Session.open(opened, run.engine, threads=run.threads, association=changes, preset=preset) as session:
        made = _made_by(run, session)
        if run.rule is not Rule.causal:
            _refuse_unused(run, session)
        rules = (Rule.causal, Rule.official) if run.rule is Rule.both else (run.rule,)
        return Measured(annotated, {rule.value: _by_rule(rule, session, annotated, run.fps) for rule in rules}, made)


def _by_rule(rule: Rule, session: Session, annotated: AnnotatedSet, fps: float) -> Evaluation:
    """The evaluation, with a bar of its progress where someone watches."""
    from rich.console import Console
    from rich.progress import Progress

    from visrt.benchmarks.accuracy.evaluate import evaluate_official, evaluate_session

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"videos, {rule.value}", total=len(annotated.videos))
        if rule is Rule.official:
            return evaluate_official(session, annotated, lambda _: progress.advance(task))
        return evaluate_session(session, annotated, fps, lambda _: progress.advance(task))


def _refuse_unused(run: BundleRun, session: Session) -> None:
    from visrt.benchmarks.video_level.rules import official_rule
    from visrt.runtime.errors import UsageError

    if run.association.changes is not None and not official_rule(session.family).takes_settings:
        raise UsageError("this family's official rule follows every query through the video: it takes no --association")


def _made_by(run: BundleRun, session: Session) -> dict[str, Any]:
    """How it was run, what tells this bundle from another in its place, and the settings that were in force."""
    manifest = session.manifest
    return {
        "engine": run.engine,
        "threads": run.threads,
        "rule": run.rule.value,
        "fps_of_videos": run.fps,
        "bundle_name": manifest.name,
        "frame_sha256": manifest.graphs["frame"].file.sha256,
        **run.association.in_force(session.family),
    }
