"""`visrt convert`: a published checkpoint in, visrt's own safetensors out, with architecture and class names in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from visrt.models.checkpoints.conversion import Converted

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Published .pth or .pkl of MinVIS, CTVIS, Mask2Former or GenVIS, or a Hugging Face folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order, where the checkpoint has none: a json file with a list or with annotations, "
            "names with commas, coco, ytvis2019, ytvis2021, ovis."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="What was published: per-frame, a network of single frames, or genvis.")
    ] = "per-frame",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at OUT.")] = False,
) -> None:
    """Convert a published checkpoint to safetensors that hold the architecture and the class names too.

    Nothing in the checkpoint is executed. Weights that do not fit the published network are refused key by key.
    """
    from visrt.commands.names import class_names
    from visrt.console import report_console
    from visrt.export.families import DEFAULT_FAMILY
    from visrt.models.checkpoints.conversion import convert_checkpoint
    from visrt.runtime.errors import OutputError

    if out.exists() and not (overwrite and out.is_file()):
        hint = "choose another file or add --overwrite" if out.is_file() else "is no file; choose another name"
        raise OutputError(f"{out}: exists already; {hint}")
    converted = convert_checkpoint(checkpoint, out, None if classes is None else class_names(classes), kind)
    console = report_console()
    console.print(f"{out}: {_told(converted)}")
    family = "" if converted.family == DEFAULT_FAMILY else f" --family {converted.family}"
    console.print(f"export it with `visrt export {out}{family} --size HxW --out BUNDLE`", markup=False)


def _told(converted: Converted) -> str:
    settings = converted.settings
    embeddings = f", instance embeddings of {settings.reid_dim}" if settings.reid_dim else ""
    shown = ", ".join(converted.classes[:3]) + (", ..." if len(converted.classes) > 3 else "")
    return (
        f"{settings.backbone.kind}, {converted.parameters / 1e6:.2f} M parameters, {settings.queries} queries, "
        f"{settings.classes} classes ({shown}){embeddings}"
    )
