"""`visrt export`: a checkpoint in, a bundle out, after it was checked against torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrt.commands.association import association_in
from visrt.commands.build import build, flavour_named
from visrt.runtime.engines.trt.library import FLAVOURS
from visrt.runtime.methods.registry import METHODS

if TYPE_CHECKING:
    from rich.console import Console

    from visrt.export.bundle import Export, ExportReport
    from visrt.export.sizes import SizesReport
    from visrt.runtime.parity.check import ParityReport

__all__ = ["Precision", "export"]


class Precision(str, Enum):
    """What an exported network computes in."""

    fp32 = "fp32"
    fp16 = "fp16"


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A published .pth or .pkl, a Hugging Face folder, or the .safetensors of `visrt train` or `convert`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW",
            help="Network input in pixels, divisible by 32: 192x320; repeat for a bundle of several sizes, of which "
            "each video takes its best.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="ytvis|FILE",
            help="In place of --size: those that 16:9, 9:16, 4:3 and 3:4 videos have after the published resize, or "
            "the videos of an annotation file.",
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Resize frames to this short side in pixels, as published, where that fits. With --sizes the model's "
            "own number if not given; else frames get as large as fits.",
        ),
    ] = None,
    long_side: Annotated[
        int | None, typer.Option(min=1, help="The most pixels of the long side in that resize.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's name by default.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order: a json file with a list or with annotations, names with commas, coco, "
            "ytvis2019, ytvis2021, ovis."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How objects are followed, by slots, a memory bank, or a video network of its own: "
            f"{', '.join(METHODS)}. The first by default.",
        ),
    ] = None,
    clip_lengths: Annotated[
        str | None,
        typer.Option(
            "--clip-lengths",
            metavar="T,...",
            help="Of genvis: frames of the clips it may be given, the usual number first; 1 is online. 1 by default.",
        ),
    ] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) other than the defaults.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Picture or video to check parity on; repeat for more.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="int8 is made from either by `visrt calibrate`.")
    ] = Precision.fp32,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE",
            help="Module that stays in fp32 in an fp16 bundle, as backbone; repeat. Found by measuring if not given.",
        ),
    ] = None,
    source_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Take frames of this size only, and resize them inside the graph, as exactly."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"Then build engines of {' or '.join(FLAVOURS)} for the GPU here, as `visrt build` does."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Build the engines for a GPU that is not here instead: see `visrt build`; repeat for more."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle at OUT.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs that compute what PyTorch computes, or refuse."""
    from rich.console import Console

    from visrt.commands.names import class_names, size_from_text, with_clip_lengths
    from visrt.console import report_console
    from visrt.export.bundle import Export
    from visrt.export.families import DEFAULT_FAMILY
    from visrt.export.sizes import export_sizes

    _check_engine(engine, target)
    given = [size_from_text(text) for text in size or ()]
    _check_size_options(given, sizes)
    request = Export(
        checkpoint=checkpoint,
        out=out,
        height=0,
        width=0,
        name=name,
        classes=class_names(classes) if classes is not None else None,
        association=with_clip_lengths(association_in(association, None).changes or {}, clip_lengths),
        references=tuple(reference or ()),
        overwrite=overwrite,
        precision=precision.value,
        family=family or DEFAULT_FAMILY,
        source=None if source_size is None else size_from_text(source_size),
        keep_fp32=None if keep_fp32 is None else tuple(keep_fp32),
        short_side=short_side,
        long_side=long_side,
    )
    console = report_console()
    with Console(stderr=True).status("reading the checkpoint") as status:
        if sizes is not None:
            request, given = _sizes_of_videos(request, sizes, console)
        report = export_sizes(
            request,
            given,
            on_stage=status.update,
            on_parity=lambda parity, what: _tell(console, parity, what),
        )
    for line in _summary(report):
        console.print(line)
    if engine is not None:
        build(out, engine, target=target)


def _check_size_options(given: list[tuple[int, int]], sizes: str | None) -> None:
    from visrt.runtime.errors import UsageError

    if given and sizes is not None:
        raise UsageError(f"--size and --sizes {sizes} were both given; give the one or the other")
    if not given and sizes is None:
        raise UsageError("no size was given; add --size HxW, as 384x640, or --sizes ytvis")


def _sizes_of_videos(export: Export, sizes: str, console: Console) -> tuple[Export, list[tuple[int, int]]]:
    """`export` with its published resize, and the sizes that videos need after it, the most frequent first."""
    from visrt.export.sizes import YTVIS_SHAPES, sizes_for_shapes, video_shapes, with_published_resize

    shapes = YTVIS_SHAPES if sizes == "ytvis" else video_shapes(Path(sizes))
    export = with_published_resize(export)
    assert export.short_side is not None
    counts = sizes_for_shapes(shapes, export.short_side, export.long_side)
    limit = "" if export.long_side is None else f", a long side of {export.long_side} at most"
    console.print(f"resize to a short side of {export.short_side}{limit}: {len(counts)} sizes")
    if sizes != "ytvis":
        for (height, width), videos in counts.items():
            console.print(f"  {height}x{width}: {videos} videos")
    return export, list(counts)


def _check_engine(engine: str | None, target: list[str] | None) -> None:
    """Refuses before the long work an engine that could not be built after it."""
    from visrt.runtime.engines.trt.library import load_tensorrt
    from visrt.runtime.errors import UsageError

    if engine is not None:
        load_tensorrt(flavour_named(engine))
    elif target:
        raise UsageError(f"--target {' '.join(target)} without --engine: add --engine tensorrt-rtx, or leave it out")


def _tell(console: Console, parity: ParityReport, what: str) -> None:
    from visrt.commands.verify_table import agreement_table, parity_table

    console.print(parity_table(parity.tensors, f"ONNX Runtime against torch, {what}"))
    if parity.precision != "fp32":
        console.print(agreement_table([("cpu", parity)], parity.precision))


def _summary(report: SizesReport) -> list[str]:
    megabytes = sum(spec.bytes for spec in report.manifest.files()) / 1e6
    of_sizes = [(one.manifest.input, line) for one in report.reports for line in _remarks(one)]
    several = len(report.reports) > 1
    return [
        *(f"{spec.text}: {line}" if several else line for spec, line in of_sizes),
        f"{report.folder}: {megabytes:.1f} MB, {len(report.manifest.classes)} classes"
        + (f", {len(report.reports)} sizes" if several else ""),
    ]


def _remarks(report: ExportReport) -> list[str]:
    from visrt.export.reference import NOISE

    moved, queries = (sum(getattr(frame, what) for frame in report.steadiness) for what in ("moved", "queries"))
    islands = [f"{name} stays in fp32: chosen for quality" for name in report.kept]
    islands += [f"{one.module} stays in fp32: its values reach {one.largest:.0f}" for one in report.found]
    return [
        *report.remarks,
        *islands,
        f"{len(report.steadiness)} reference frames; torch itself moves {moved} of {queries} queries under noise of "
        f"{NOISE:.0e}",
    ]
