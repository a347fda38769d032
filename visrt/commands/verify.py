"""`visrt verify`: does a bundle compute here what torch computed at export? Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.runtime.verify import TensorParity

__all__ = ["parity_table", "verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    engine: Annotated[str, typer.Option(help="What runs it: cpu or cuda.")] = "cpu",
) -> None:
    """Compare a bundle on this machine with what PyTorch computed when it was exported."""
    from visrt.console import report_console
    from visrt.runtime.verify import require_parity
    from visrt.runtime.verify import verify as verify_bundle

    table = verify_bundle(bundle, engine)
    report_console().print(parity_table(table, f"{bundle} on {engine} and its torch reference"))
    require_parity(table, str(bundle))


def parity_table(parity: Sequence[TensorParity], title: str) -> Table:
    """One row a tensor and batch size."""
    from rich.table import Table

    table = Table("graph", "tensor", "batch", "max abs", "max rel", "tolerance", "beyond", "", title=title)
    for row in parity:
        verdict = "[green]ok[/]" if row.passed else "[red]FAILS[/]"
        errors = (f"{row.max_abs:.1e}", f"{row.max_rel:.1e}", f"{row.tolerance:.0e}")
        table.add_row(row.graph, row.role, str(row.batch), *errors, f"{row.beyond} of {row.items}", verdict)
    return table
