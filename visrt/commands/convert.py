"""`visrt convert`: a published checkpoint in, visrt's own safetensors out, with architecture and class names in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from visrt.models.checkpoints.conversion import Converted

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Published .pth, .pkl or .bin of MinVIS, CTVIS, Mask2Former, GenVIS, VidEoMT or EoMT, or a Hugging "
            "Face folder of Mask2Former, VidEoMT or EoMT."
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
        str | None,
        typer.Option(
            help="What was published: per-frame (MinVIS, CTVIS, Mask2Former), genvis, videomt or eomt. The checkpoint "
            "tells it.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="For EoMT with DINOv3, whose files hold differences: the DINOv3 folder they are added to; none for a "
            "file of your own that is whole."
        ),
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the network that the weights do not show, such as norm_queries=true for VidEoMT with "
            "DINOv3 on VIPSeg and VSPW. May be given several times.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at OUT.")] = False,
) -> None:
    """Convert a published checkpoint to safetensors that hold the architecture and the class names too.

    Nothing in the checkpoint is executed. Weights that do not fit the published network are refused key by key.
    """
    from visrt.commands.names import class_names
    from visrt.console import report_console, say
    from visrt.export.families import DEFAULT_FAMILY
    from visrt.models.checkpoints.conversion import convert_checkpoint
    from visrt.runtime.errors import OutputError

    if out.exists() and not (overwrite and out.is_file()):
        hint = "choose another file or add --overwrite" if out.is_file() else "is no file; choose another name"
        raise OutputError(f"{out}: exists already; {hint}")
    names = None if classes is None else class_names(classes)
    settings = dict(map(_setting, set_values or ()))
    converted = convert_checkpoint(checkpoint, out, names, kind, base=base, settings=settings)
    for remark in converted.remarks:
        say(remark)
    console = report_console()
    console.print(f"{out}: {_told(converted)}")
    family = "" if converted.family == DEFAULT_FAMILY else f" --family {converted.family}"
    console.print(f"export it with `visrt export {out}{family} --size HxW --out BUNDLE`", markup=False)


def _setting(given: str) -> tuple[str, Any]:
    """The name and value of NAME=VALUE; the value is json."""
    from visrt.runtime.errors import UsageError
    from visrt.runtime.json_file import parse_json

    name, equals, value = given.partition("=")
    if not equals:
        raise UsageError(f"--set {given}: expected NAME=VALUE, such as norm_queries=true")
    return name, parse_json(value, f"--set {name}", "a number, true, false or a list", UsageError)


def _told(converted: Converted) -> str:
    shown = ", ".join(converted.classes[:3]) + (", ..." if len(converted.classes) > 3 else "")
    return (
        f"{converted.network}, {converted.parameters / 1e6:.2f} M parameters, {converted.queries} queries, "
        f"{len(converted.classes)} classes ({shown})"
    )
