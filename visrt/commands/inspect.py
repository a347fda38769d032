"""`visrt inspect`: what is in a bundle, after every file of it was checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.runtime.manifest import GraphSpec, Manifest, TensorSpec

__all__ = ["inspect"]


def inspect(bundle: Annotated[Path, typer.Argument(help="Folder that `visrt export` wrote.")]) -> None:
    """Check a bundle's files against its manifest and show what it holds."""
    from visrt.console import report_console
    from visrt.runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    console = report_console()
    console.print(_overview(opened.manifest))
    for name, graph in opened.manifest.graphs.items():
        console.print(_tensors(name, graph))
    files = list(opened.manifest.files())
    megabytes = sum(spec.bytes for spec in files) / 1e6
    console.print(f"{len(files)} files, {megabytes:.1f} MB: sizes and sha256 are those of the manifest")


def _overview(manifest: Manifest) -> Table:
    from rich.table import Table

    association = ", ".join(f"{key} {value}" for key, value in manifest.association.items()) or "the family's defaults"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.producer.versions.items())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("bundle", manifest.name)
    table.add_row("family", manifest.family)
    table.add_row("classes", f"{len(manifest.classes)}: {', '.join(manifest.classes)}")
    table.add_row("input", f"{manifest.input.height} x {manifest.input.width}, {manifest.input.resize}")
    table.add_row("association", association)
    table.add_row("checkpoint", f"{manifest.producer.checkpoint}, sha256 {manifest.producer.checkpoint_sha256[:12]}")
    table.add_row("made", f"{manifest.producer.created} with {versions}")
    return table


def _tensors(name: str, graph: GraphSpec) -> Table:
    from rich.table import Table

    title = f"{name}: {graph.file.file}, {graph.file.bytes / 1e6:.1f} MB, opset {graph.opset}, {graph.precision}"
    table = Table("", "role", "tensor", "dtype", "shape", title=title, title_justify="left")
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for role, spec in tensors.items():
            table.add_row(direction, role, spec.name, spec.dtype, _shape(spec))
    return table


def _shape(spec: TensorSpec) -> str:
    return " x ".join(str(side) for side in spec.shape)
