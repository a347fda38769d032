"""The tables of `visrt eval`: the rules side by side, figures by size and class, and identity by video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.ap import Figures
    from visrt.benchmarks.accuracy.hota import TrackingFigures
    from visrt.benchmarks.accuracy.identity import IdentityCounts
    from visrt.benchmarks.accuracy.scores import Scores
    from visrt.training.data.annotations import AnnotatedSet

__all__ = ["PARTIAL_NOTE", "eval_tables"]

WHOLE = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
FOLLOWED = ("HOTA", "DetA", "AssA", "IDF1", "id switches")
PARTIAL_NOTE = "AP, HOTA, DetA and IDF1 not meaningful: partial annotation"

HOTA_NOTE = "HOTA and IDF1 count every reported track alike; official rules report a fixed number, whatever the score"


def eval_tables(annotated: AnnotatedSet, scores: Mapping[str, Scores], note: str | None) -> Iterator[Table]:
    """`note` stands over each table of figures that it holds for."""
    for rule, one in scores.items():
        yield _videos(annotated, rule, one)
        yield _details(rule, one, note)
        if one.evaluation.frame_ap50 is not None:
            yield _of_frames(rule, *one.evaluation.frame_ap50)
    if len(scores) > 1:
        yield _side_by_side(scores, note)


def _side_by_side(scores: Mapping[str, Scores], note: str | None) -> Table:
    """A row a rule, in percent."""
    table = Table("rule", *WHOLE, *FOLLOWED, "FPS, reading included", title=note, caption=HOTA_NOTE)
    for rule, one in scores.items():
        fps = f"{one.evaluation.fps:.1f}" if one.evaluation.fps else "-"
        table.add_row(rule, *_whole(one.evaluation.precision), *_followed(one.tracking), fps)
    return table


def _details(rule: str, scores: Scores, note: str | None) -> Table:
    """Over all, by size of object and by class, in percent; size means nothing to HOTA, which counts frames."""
    precision = scores.evaluation.precision
    fps = f"{scores.evaluation.fps:.1f}" if scores.evaluation.fps else "-"
    table = Table(rule, *WHOLE, *FOLLOWED, "FPS, reading included", title=note)
    table.add_row("all", *_whole(precision), *_followed(scores.tracking), fps)
    table.add_section()
    for size, figures in precision.by_size.items():
        table.add_row(size, *_whole(figures))
    table.add_section()
    for name, figures in precision.by_class.items():
        table.add_row(escape(name), *_whole(figures), *_followed(scores.by_class[name]))
    return table


def _of_frames(rule: str, mean: float, by_class: Mapping[str, float]) -> Table:
    """Boxes frame by frame, without regard to tracks, in percent."""
    table = Table(f"{rule}: boxes of single frames", "AP50", caption="the measure of ImageNet VID")
    table.add_row("all", _percent(mean))
    table.add_section()
    for name, ap50 in by_class.items():
        table.add_row(escape(name), _percent(ap50))
    return table


def _videos(annotated: AnnotatedSet, rule: str, scores: Scores) -> Table:
    """Identity by video, and over all."""
    counted = ("frames", "recall", "duplicates a frame", "id changes", "ids lost over gaps", "false positives")
    table = Table(f"{rule}: video", *counted, "HOTA", "IDF1")
    for video, one in zip(annotated.videos, scores.evaluation.videos, strict=True):
        found = scores.by_video[video.id]
        table.add_row(escape(one.name), *_counts(one.counts), _percent(found.hota), _percent(found.idf1))
    table.add_section()
    overall = scores.tracking
    table.add_row("all", *_counts(scores.evaluation.counts), _percent(overall.hota), _percent(overall.idf1))
    return table


def _counts(c: IdentityCounts) -> tuple[str, ...]:
    return (
        str(c.frames),
        f"{c.recall:.3f} ({c.tp}/{c.gt})" if c.gt else "-",
        f"{c.duplicates_a_frame:.3f}",
        f"{c.switch_rate:.1%} ({c.id_switches}/{c.links})" if c.links else "-",
        f"{c.lost_ids}/{c.returns}",
        str(c.fp),
    )


def _whole(p: Figures) -> tuple[str, ...]:
    return tuple(map(_percent, (p.ap, p.ap50, p.ap75, p.ar1, p.ar10, p.ar100)))


def _followed(found: TrackingFigures) -> tuple[str, ...]:
    switches = str(found.id_switches) if found.hota == found.hota else "-"
    return (*map(_percent, (found.hota, found.det_a, found.ass_a, found.idf1)), switches)


def _percent(share: float) -> str:
    """One decimal; a dash where there was nothing to measure."""
    return "-" if share != share else f"{100 * share:.1f}"
