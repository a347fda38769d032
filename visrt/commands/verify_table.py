"""Parity as tables: every tensor, every agreement, and a line for each engine that was not judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from visrt.runtime.parity.check import BatchParity, ParityReport
from visrt.runtime.parity.tolerances import TensorParity
from visrt.runtime.parity.verify import Failed, Skipped, Verification

__all__ = ["agreement_table", "lines_of", "parity_table", "tables_of"]


def tables_of(verification: Verification, title: str) -> Iterator[Table]:
    """For each engine that was judged its tensors, and then how far all of them agree."""
    reports = [(one.engine, one.provider, one.outcome) for one in verification.engines]
    judged = [(name, provider, report) for name, provider, report in reports if isinstance(report, ParityReport)]
    for name, provider, report in judged:
        if report.tensors:
            yield parity_table(report.tensors, escape(f"{name} ({provider}): {title}"))
    if judged:
        yield agreement_table([(name, report) for name, _, report in judged], verification.precision)


def parity_table(parity: Sequence[TensorParity], title: str) -> Table:
    """One row a tensor and batch size."""
    table = Table("graph", "tensor", "batch", "max abs", "max rel", "tolerance", "beyond", "", title=title)
    for row in parity:
        verdict = "[red]FAILS[/]" if not row.passed else "[green]ok[/]" if math.isfinite(row.tolerance) else "reported"
        tolerance = f"{row.tolerance:.0e}" if math.isfinite(row.tolerance) else "-"
        errors = (f"{row.max_abs:.1e}", f"{row.max_rel:.1e}", tolerance)
        table.add_row(row.graph, row.role, str(row.batch), *errors, f"{row.beyond} of {row.items}", verdict)
    return table


def agreement_table(reports: Sequence[tuple[str, ParityReport]], precision: str) -> Table:
    """One row an engine and batch size; floors above the figures."""
    columns = ("frames", "objects", "IoU mean", "IoU min", "top class", "assignment", "verdict")
    table = Table("engine", "batch", *columns, title=f"agreement, judged as {precision}")
    floors = reports[0][1].gate.floors
    limits = [f">= {floor:g}" for floor in (floors.iou_mean, floors.iou_min, floors.top_class, floors.assignment)]
    table.add_row("floor", "", "", "", *limits, "", end_section=True)
    for name, report in reports:
        for batch in report.batches:
            verdict = "[green]ok[/]" if batch.passed else "[red]FAILS[/]"
            table.add_row(name, str(batch.batch), *_figures(batch), verdict)
    return table


def _figures(batch: BatchParity) -> list[str]:
    found = batch.agreement
    if found is None:
        return ["-"] * 6
    shares = (found.iou_mean, found.iou_min, found.top_class, found.assignment)
    return [str(found.frames), str(found.objects), *("-" if math.isnan(share) else f"{share:.4f}" for share in shares)]


def lines_of(verification: Verification) -> Iterator[str]:
    """Remarks below the tables: engines not run and why, faults in words, masks that nobody kept."""
    for one in verification.engines:
        if isinstance(one.outcome, Skipped):
            yield escape(f"{one.engine}: not run, {one.outcome.reason}")
        elif isinstance(one.outcome, Failed):
            yield f"{one.engine}: [red]FAILS[/], {escape(one.outcome.reason)}"
        else:
            yield from (escape(f"{one.engine}: {fault}") for fault in one.outcome.faults())
    if not verification.masks:
        yield "the reference keeps no masks, so no IoU was judged; export the bundle again to have them"
