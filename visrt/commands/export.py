"""`visrt export`: a checkpoint in, a bundle out, after it was checked against torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrt.commands.verify import parity_table

if TYPE_CHECKING:
    from visrt.export.bundle import ExportReport

__all__ = ["export"]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A published .pth or .pkl, or the .safetensors of `visrt train`.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    size: Annotated[str, typer.Option(metavar="HxW", help="Network input in pixels, divisible by 32: 192x320.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's name by default.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order: a json file with a list, names with commas, ytvis2019, ytvis2021, ovis."
        ),
    ] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) other than the defaults.")
    ] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="Image to check parity on; repeat for more.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle at OUT.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs that compute what PyTorch computes, or refuse."""
    from rich.console import Console

    from visrt.console import report_console
    from visrt.export.bundle import Export, export_bundle
    from visrt.export.names import association_from_file, class_names, size_from_text

    height, width = size_from_text(size)
    wanted = Export(
        checkpoint=checkpoint,
        out=out,
        height=height,
        width=width,
        name=name,
        classes=class_names(classes) if classes is not None else None,
        association=association_from_file(association) if association is not None else {},
        references=tuple(reference or ()),
        overwrite=overwrite,
    )
    console = report_console()
    with Console(stderr=True).status("reading the checkpoint") as status:
        report = export_bundle(
            wanted,
            on_stage=status.update,
            on_parity=lambda parity: console.print(parity_table(parity, "ONNX Runtime against torch")),
        )
    for line in _summary(report):
        console.print(line)


def _summary(report: ExportReport) -> list[str]:
    from visrt.export.reference import NOISE

    moved, queries = (sum(getattr(frame, what) for frame in report.steadiness) for what in ("moved", "queries"))
    megabytes = sum(spec.bytes for spec in report.manifest.files()) / 1e6
    return [
        f"{len(report.steadiness)} reference frames; torch itself moves {moved} of {queries} queries under noise of "
        f"{NOISE:.0e}",
        f"{report.folder}: {megabytes:.1f} MB, {len(report.manifest.classes)} classes",
    ]
