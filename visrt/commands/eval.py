"""`visrt eval`: a bundle or a results file against annotated videos."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.benchmarks.evaluate import Evaluation
    from visrt.benchmarks.identity import IdentityCounts
    from visrt.benchmarks.ytvis import AnnotatedSet

__all__ = ["evaluate"]


class Rule(str, Enum):
    """How a bundle's output becomes tracks: frame by frame, or by the family's published video-level rule."""

    causal = "causal"
    official = "official"


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder with instances.json (YouTube-VIS) and JPEGImages/.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to run over the videos.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file (YouTube-VIS) to measure instead.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help='Class map (json): {"dog": "animal", "chair": null}; null leaves one out.')
    ] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What runs the network: cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    rule: Annotated[
        Rule, typer.Option(help="causal: what a stream gives; official: the video-level result.")
    ] = Rule.causal,
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
    mapped = load_class_map(classes) if classes else None
    if bundle is not None:
        evaluation = _of_bundle(bundle, data, mapped, association, engine, threads, fps, rule)
    else:
        assert results is not None
        annotated = load_annotations(data, None if mapped is None else _targets(mapped), mapped)
        evaluation = evaluate_results(annotated, load_results(results, annotated))
    report_console().print(videos_table(evaluation))
    report_console().print(tracks_table(evaluation))
    if json is not None:
        _write(
            json,
            evaluation,
            {"bundle": str(bundle), "results": str(results), "data": str(data), "engine": engine, "rule": rule.value},
        )


def _targets(mapped: dict[str, str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in mapped.values() if name is not None))


def _of_bundle(
    bundle: Path,
    data: Path,
    mapped: dict[str, str | None] | None,
    association: Path | None,
    engine: str,
    threads: int | None,
    fps: float,
    rule: Rule,
) -> Evaluation:
    from rich.console import Console
    from rich.progress import Progress

    from visrt.benchmarks.evaluate import evaluate_official, evaluate_session
    from visrt.benchmarks.ytvis import load_annotations
    from visrt.runtime.bundle import open_bundle
    from visrt.runtime.session import Session

    opened = open_bundle(bundle)
    annotated: AnnotatedSet = load_annotations(data, opened.manifest.classes, mapped)
    changes = _association(association)
    console = Console(stderr=True)
    with (
        Session.open(opened, engine, threads=threads, association=changes) as session,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("videos", total=len(annotated.videos))
        if rule is Rule.official:
            return evaluate_official(session, annotated, lambda _: progress.advance(task))
        return evaluate_session(session, annotated, fps, lambda _: progress.advance(task))


def _association(path: Path | None) -> dict[str, Any] | None:
    import json

    from visrt.runtime.errors import SettingsError

    if path is None:
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as json ({error}); expected one object of settings") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds a {type(values).__name__}; expected one object of settings")
    return values


def videos_table(evaluation: Evaluation) -> Table:
    """Identity by video, and over all."""
    from rich.table import Table

    table = Table("video", "frames", "recall", "duplicates a frame", "id switches", "ids lost over gaps", "spurious")
    for video in evaluation.videos:
        table.add_row(video.name, *_row(video.counts))
    table.add_section()
    table.add_row("all", *_row(evaluation.counts))
    return table


def _row(c: IdentityCounts) -> tuple[str, ...]:
    return (
        str(c.frames),
        f"{c.recall:.3f} ({c.found}/{c.wanted})",
        f"{c.duplicates_a_frame:.3f}",
        f"{c.switch_rate:.1%} ({c.switches}/{c.links})",
        f"{c.lost_ids}/{c.returns}",
        str(c.spurious),
    )


def tracks_table(evaluation: Evaluation) -> Table:
    """Whole tracks by the official rule."""
    from rich.table import Table

    p = evaluation.precision
    table = Table("AP", "AP50", "AP75", "AR1", "AR10", *p.by_size, *p.by_class, "FPS with reading")
    figures = (p.ap, p.ap50, p.ap75, p.ar1, p.ar10, *p.by_size.values(), *p.by_class.values())
    table.add_row(*(f"{100 * value:.1f}" for value in figures), f"{evaluation.fps:.1f}" if evaluation.fps else "-")
    return table


def _write(path: Path, evaluation: Evaluation, settings: dict[str, str]) -> None:
    import json
    import platform
    from dataclasses import asdict
    from importlib.metadata import version

    from visrt.runtime.output import write_atomically

    machine = {"machine": platform.machine(), "python": platform.python_version(), "visrt": version("visrt")}
    c = evaluation.counts
    figures = {"recall": c.recall, "duplicates_a_frame": c.duplicates_a_frame, "id_switch_rate": c.switch_rate}
    values = {"settings": settings, "versions": machine, "figures": figures, **asdict(evaluation)}
    write_atomically(path, [json.dumps(values, indent=1).encode() + b"\n"])
