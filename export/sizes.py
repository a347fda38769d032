"""Export of one network at several sizes of its input, and the sizes that videos need after a published resize."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from visrt.export.bundle import SIZE_DIVISOR, Export, ExportReport, check_size, export_bundle
from visrt.export.families import published_resize, read_for, require_known
from visrt.export.joining import join_sizes
from visrt.export.workplace import Existing, check_target, workplace
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.bundles.manifest import InputSpec, Manifest
from visrt.runtime.errors import ParityError, UsageError
from visrt.runtime.image import published_size
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.parity.check import ParityReport
from visrt.training.data.layouts import SetPlaces
from visrt.training.data.picture_folder import MissingPictures
from visrt.training.data.set_formats import load_annotations

__all__ = ["YTVIS_SHAPES", "SizesReport", "export_sizes", "sizes_for_shapes", "video_shapes", "with_published_resize"]

Size = tuple[int, int]
"""Height and width in pixels."""

YTVIS_SHAPES: tuple[Size, ...] = ((720, 1280), (1280, 720), (960, 1280), (1280, 960))
"""The aspects of most videos of YouTube-VIS: 16:9, 9:16, 4:3, 3:4."""


@dataclass(frozen=True)
class SizesReport:
    """The bundle of several sizes that was written, and the report of each size in its order."""

    folder: Path
    manifest: Manifest
    reports: tuple[ExportReport, ...]


def video_shapes(annotations: Path) -> list[Size]:
    """Height and width of each video of an annotation file; their pictures need not be there."""
    if not annotations.is_file():
        raise UsageError(f"sizes {annotations}: there is no such file; expected an annotation file, or ytvis")
    places = SetPlaces(annotations.parent, annotations)
    return [video.size for video in load_annotations(places, missing=MissingPictures.keep).videos]


def sizes_for_shapes(shapes: Iterable[Size], short_side: int, long_side: int | None) -> dict[Size, int]:
    """The network inputs that frames of `shapes` (height, width) need after the published resize, padded as published,
    and how many of the shapes each is for, the most frequent first."""
    resized = (published_size(shape, short_side, long_side) for shape in shapes)
    padded = ((_padded(height), _padded(width)) for height, width in resized)
    return dict(Counter(padded).most_common())


def _padded(side: int) -> int:
    return -(-side // SIZE_DIVISOR) * SIZE_DIVISOR


def with_published_resize(export: Export) -> Export:
    """`export` with the resize by which its network is evaluated; a short side that it has already stays."""
    if export.short_side is not None:
        return export
    require_known(export.family)
    association = asdict(METHODS[export.family](export.association).settings)
    read = read_for(export.family, export.checkpoint, InputSpec(height=384, width=640), association).checkpoint
    resize = published_resize(export.family, read.settings, export.classes or read.classes or ())
    return replace(export, short_side=resize.short_side, long_side=export.long_side or resize.long_side)


def export_sizes(
    export: Export,
    sizes: Sequence[Size],
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_parity: Callable[[ParityReport, str], None] = lambda *_: None,
) -> SizesReport:
    """Writes the bundle of `export` at each of `sizes`, the first of which is the main one.

    Each size is exported and checked like a bundle of its own. What one of them must keep in float32, all keep.
    `on_stage` and `on_parity` as in `export_bundle`; of several sizes with the size in front.
    """
    _check_sizes(export, sizes)
    if len(sizes) == 1:
        report = export_bundle(_at(export, sizes[0]), on_stage=on_stage, on_parity=on_parity)
        return SizesReport(export.out, report.manifest, (report,))
    check_target(export.out, Existing.REPLACE if export.overwrite else Existing.KEEP)
    with (
        workplace(export.out) as folder,
        tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as at,
    ):
        reports = [_exported(export, size, Path(at), on_stage, on_parity) for size in sizes]
        kept = max((report.kept for report in reports), key=len)
        for i, size in enumerate(sizes):
            if reports[i].kept != kept:  # else weights would differ in precision, and be stored for each size
                again = replace(export, keep_fp32=kept, overwrite=True)
                reports[i] = _exported(again, size, Path(at), on_stage, on_parity)
        on_stage("storing shared weights once")
        manifest = join_sizes(folder, [open_bundle(report.folder) for report in reports])
    return SizesReport(export.out, manifest, tuple(reports))


def _exported(
    export: Export,
    size: Size,
    folder: Path,
    on_stage: Callable[[str], None],
    on_parity: Callable[[ParityReport, str], None],
) -> ExportReport:
    """The bundle of one size, in a folder of its own inside `folder`."""
    name = "{}x{}".format(*size)
    one = replace(_at(export, size), out=folder / name, name=export.name or export.out.resolve().name)
    try:
        return export_bundle(
            one,
            on_stage=lambda stage: on_stage(f"{name}: {stage}"),
            on_parity=lambda parity, what: on_parity(parity, f"{name}, {what}"),
        )
    except ParityError as error:
        raise ParityError(f"{name}: {error}") from error


def _at(export: Export, size: Size) -> Export:
    return replace(export, height=size[0], width=size[1])


def _check_sizes(export: Export, sizes: Sequence[Size]) -> None:
    for size in sizes:
        check_size(*size)
    _check_resize(export, sizes)
    if len(sizes) == 1:
        return
    given = [f"{height}x{width}" for height, width in sizes]
    if repeated := [name for name, times in Counter(given).items() if times > 1]:
        raise UsageError(f"size {', '.join(repeated)} was given more than once; give each size once")
    if export.source is not None:
        raise UsageError(
            f"a source size {export.source[0]}x{export.source[1]} with {len(sizes)} sizes: a graph that resizes takes "
            "frames of one shape only; give one size, or leave the source size out"
        )


def _check_resize(export: Export, sizes: Sequence[Size]) -> None:
    """Raises UsageError for a published resize that no frame can have in any of `sizes`; a square one needs least."""
    short_side, long_side = export.short_side, export.long_side
    if short_side is None:
        if long_side is not None:
            raise UsageError(f"a long side of {long_side} without a short side; give both, or the short side alone")
        return
    if long_side is not None and long_side < short_side:
        raise UsageError(f"a long side of {long_side} is below the short side of {short_side}; expected the larger")
    largest = max(min(size) for size in sizes)
    if largest < short_side:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise UsageError(
            f"a short side of {short_side} fits in none of the sizes {listed}; give a size of {_padded(short_side)} or "
            f"more on both sides, or a short side of {largest} at most"
        )
