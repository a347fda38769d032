"""`visrt eval`: a bundle or a results file against annotated videos."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.association import PRESET_HELP, Association, association_in

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.benchmarks.evaluate import Evaluation
    from visrt.benchmarks.identity import IdentityCounts
    from visrt.benchmarks.ytvis import AnnotatedSet
    from visrt.runtime.session import Session

__all__ = ["evaluate"]


class Rule(str, Enum):
    """How a bundle's output becomes tracks: frame by frame, or by the family's published video-level rule."""

    causal = "causal"
    official = "official"


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
        Rule, typer.Option(help="causal: what a stream gives; official: the video-level result.")
    ] = Rule.causal,
    annotations: Annotated[
        Coverage,
        typer.Option(help="partial: objects are visible that nobody annotated, so AP and spurious say little."),
    ] = Coverage.complete,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames a second of the videos, for ages.")] = 24.0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure AP and AR of whole tracks by the YouTube-VIS rule; recall, duplicates and id switches frame by frame.

    Of causal output a track's label is the one with the largest sum of scores, its score the mean over its frames.
    Where not every object is annotated, recall and id switches mean something, AP and spurious objects do not.
    """
    from visrt.benchmarks.evaluate import evaluate_results
    from visrt.benchmarks.ytvis import load_annotations, load_class_map, load_results
    from visrt.console import report_console
    from visrt.runtime.errors import UsageError

    if (bundle is None) == (results is None):
        raise UsageError("give either --bundle to run or --results to measure, and not both")
    if bundle is None and (association or preset or threads is not None or rule is Rule.official):
        raise UsageError(
            "--results are measured as they are: --association, --preset, --threads and --rule go with --bundle"
        )
    mapped = load_class_map(classes) if classes else None
    made: dict[str, Any] = {}
    if bundle is not None:
        run = BundleRun(bundle, association_in(association, preset), engine, threads, fps, rule)
        evaluation, made = _of_bundle(run, data, mapped)
    else:
        assert results is not None
        annotated = load_annotations(data, None if mapped is None else _targets(mapped), mapped)
        evaluation = evaluate_results(annotated, load_results(results, annotated))
    report_console().print(videos_table(evaluation))
    report_console().print(tracks_table(evaluation, annotations))
    if json is not None:
        given = {"data": data, "bundle": bundle, "results": results, "classes": classes, "association": association}
        settings = {name: None if path is None else str(path) for name, path in given.items()}
        _write(json, evaluation, {**settings, **made, "annotations": annotations.value})


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


def _of_bundle(run: BundleRun, data: Path, mapped: dict[str, str | None] | None) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and what it was made by."""
    from rich.console import Console
    from rich.progress import Progress

    from visrt.benchmarks.evaluate import evaluate_official, evaluate_session
    from visrt.benchmarks.ytvis import load_annotations
    from visrt.runtime.bundle import open_bundle
    from visrt.runtime.session import Session

    opened = open_bundle(run.bundle)
    annotated: AnnotatedSet = load_annotations(data, opened.manifest.classes, mapped)
    changes, preset = run.association.changes, run.association.preset
    console = Console(stderr=True)
    with (
        Session.open(opened, run.engine, threads=run.threads, association=changes, preset=preset) as session,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        made = _made_by(run, session)
        task = progress.add_task("videos", total=len(annotated.videos))
        if run.rule is Rule.official:
            _refuse_unused(run, session)
            return evaluate_official(session, annotated, lambda _: progress.advance(task)), made
        return evaluate_session(session, annotated, run.fps, lambda _: progress.advance(task)), made


def _refuse_unused(run: BundleRun, session: Session) -> None:
    from visrt.runtime.errors import UsageError
    from visrt.runtime.video_result import official_rule

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


def videos_table(evaluation: Evaluation) -> Table:
    """Identity by video, and over all."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("video", "frames", "recall", "duplicates a frame", "id switches", "ids lost over gaps", "spurious")
    for video in evaluation.videos:
        table.add_row(escape(video.name), *_row(video.counts))
    table.add_section()
    table.add_row("all", *_row(evaluation.counts))
    return table


def _row(c: IdentityCounts) -> tuple[str, ...]:
    return (
        str(c.frames),
        f"{c.recall:.3f} ({c.found}/{c.wanted})" if c.wanted else "-",
        f"{c.duplicates_a_frame:.3f}",
        f"{c.switch_rate:.1%} ({c.switches}/{c.links})" if c.links else "-",
        f"{c.lost_ids}/{c.returns}",
        str(c.spurious),
    )


def tracks_table(evaluation: Evaluation, coverage: Coverage) -> Table:
    """Whole tracks by the official rule, in percent."""
    from rich.table import Table

    p = evaluation.precision
    by_size = [f"AP {name}" for name in p.by_size]
    by_class = [f"AP of {name}" for name in p.by_class]
    note = "not meaningful: partial annotation" if coverage is Coverage.partial else None
    columns = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", *by_size, *by_class, "FPS, reading included")
    table = Table(*columns, title=note)
    figures = (p.ap, p.ap50, p.ap75, p.ar1, p.ar10, p.ar100, *p.by_size.values(), *p.by_class.values())
    table.add_row(*map(_percent, figures), f"{evaluation.fps:.1f}" if evaluation.fps else "-")
    return table


def _percent(share: float) -> str:
    """One decimal; a dash where there was nothing to measure."""
    return "-" if share != share else f"{100 * share:.1f}"


def _write(path: Path, evaluation: Evaluation, settings: dict[str, Any]) -> None:
    import json

    from visrt.benchmarks.report import evaluation_report
    from visrt.runtime.output import write_atomically

    report = evaluation_report(evaluation, settings)
    write_atomically(path, [json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"])
