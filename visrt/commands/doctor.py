"""`visrt doctor`: what this machine can run, and what is in the way."""

from __future__ import annotations

import typer

__all__ = ["doctor"]

PROBLEM = 5


def doctor() -> None:
    """Show versions, backends and GPUs; leave with 5 if something is in the way."""
    from rich.table import Table

    from visrt.console import report_console
    from visrt.runtime.engines.diagnostics import examine

    findings = examine()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row("[red]problem" if finding.problem else "", finding.subject, finding.found)
    console = report_console()
    console.print(table)
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        console.print(f"{finding.subject}: {finding.problem}", markup=False)
    console.print(f"{len(problems)} problems" if problems else "nothing is in the way")
    raise typer.Exit(PROBLEM if problems else 0)
