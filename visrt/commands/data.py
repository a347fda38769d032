"""`visrt data`: check, convert and draw annotated sets."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrt.commands.class_choice import CHOICE_HELP, class_choice

if TYPE_CHECKING:
    from rich.table import Table

    from visrt.benchmarks.datasets.set_check import SetSurvey
    from visrt.training.data.annotations import ClassChoice
    from visrt.training.data.set_formats import ReadSet, SetPlaces

__all__ = ["SkipFaulty", "SkipMissing", "check", "convert", "data", "draw"]

data = typer.Typer(add_completion=False, no_args_is_help=True, help="Check, convert and draw annotated sets.")


class Format(str, Enum):
    """Of an annotated set."""

    youtube_vis = "youtube-vis"
    coco = "coco"
    cvat = "cvat"
    label_studio = "label-studio"
    mots = "mots"
    davis = "davis"
    burst = "burst"
    labelme = "labelme"
    panoptic = "panoptic"
    run = "run"
    yolo = "yolo"


class Written(str, Enum):
    """Formats that sets are written in."""

    youtube_vis = "youtube-vis"
    coco = "coco"
    cvat = "cvat"
    label_studio = "label-studio"
    mots = "mots"
    davis = "davis"


class Look(str, Enum):
    """How far a picture is read: its head tells its size; a torn one shows when it is decoded."""

    headers = "headers"
    decode = "decode"


class Placing(str, Enum):
    """How pictures come into a new set."""

    copy = "copy"
    link = "link"


Folder = Annotated[
    Path,
    typer.Argument(help="Folder of the set, of one of its splits, its annotation file, or a run of `visrt track`."),
]
From = Annotated[Format | None, typer.Option("--from", help="Its format; by its files if not given.")]
Annotations = Annotated[
    Path | None, typer.Option(help="Its json, xml or yaml file, or folder of masks, if not in its usual place.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="Its folder of pictures, if not in its usual place; of a run and of CVAT also its video."),
]
NAMES_HELP = (
    'Classes, where the format knows none. davis: {"VIDEO": {"1": "dog"}}; mots: {"1": "car", "2": "pedestrian"}. '
    "names.json in the folder if there is one."
)
Names = Annotated[Path | None, typer.Option(help=NAMES_HELP)]
Split = Annotated[str | None, typer.Option(help="train, valid or test, of a folder that holds several.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out videos that are listed but not on disk.")]
SkipFaulty = Annotated[bool, typer.Option("--skip-faulty", help="Leave out faulty annotations, and count them.")]


@data.command(epilog="Example: visrt data check labelled/")
def check(
    folder: Folder,
    format: From = None,
    annotations: Annotations = None,
    images: Images = None,
    names: Names = None,
    split: Split = None,
    skip_missing: SkipMissing = False,
    skip_faulty: SkipFaulty = False,
    classes: Annotated[str | None, typer.Option(help=CHOICE_HELP)] = None,
    pictures: Annotated[Look, typer.Option(help="headers: sizes only; decode: every picture whole.")] = Look.headers,
) -> None:
    """Read a set strictly, count what it holds and name what looks wrong. Faults end with exit code 2."""
    from visrt.benchmarks.datasets.set_check import decoded_size, survey
    from visrt.console import report_console, say
    from visrt.training.data.picture_size import refuse_pictures, size_of
    from visrt.training.data.set_formats import SetPlaces

    places = SetPlaces(folder, annotations, images, names, split)
    read = _read(places, format, skip_missing, skip_faulty, class_choice(classes))
    found = survey(read.annotated, decoded_size if pictures is Look.decode else size_of)
    report_console().print(_summary(read, found))
    report_console().print(_classes(found))
    for oddity in found.oddities:
        say(oddity)
    refuse_pictures(found.faults)


@data.command(epilog="Example: visrt data convert runs/track/street --to cvat --out annotations/")
def convert(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Empty or new folder for the converted set.")],
    format: From = None,
    to: Annotated[Written, typer.Option(help="The format to write.")] = Written.youtube_vis,
    annotations: Annotations = None,
    images: Images = None,
    names: Names = None,
    split: Split = None,
    skip_missing: SkipMissing = False,
    skip_faulty: SkipFaulty = False,
    pictures: Annotated[Placing, typer.Option(help="Copy the pictures, or link to them.")] = Placing.copy,
) -> None:
    """Write a set in another format, by default the one that `visrt eval` and `visrt train` read; tell what is lost."""
    from visrt.benchmarks.new_folder import new_folder
    from visrt.console import report_console, say
    from visrt.training.data.annotations import require_annotations
    from visrt.training.data.set_formats import Pictures, SetPlaces, read_set, write_set

    read = _read(SetPlaces(folder, annotations, images, names, split), format, skip_missing, skip_faulty)
    if to in (Written.davis, Written.mots):
        require_annotations(read.annotated, read.path, f"the format {to.value}")
    new_folder(out, "--out")
    for remark in write_set(read.annotated, out, to.value, Pictures(pictures.value)):
        say(remark)
    again = read_set(SetPlaces(out), to.value).annotated
    content = (
        f"{len(again.videos)} videos, {sum(len(v.tracks) for v in again.videos)} objects, read again without a fault"
    )
    report_console().print(f"{out}: {to.value}, {content}")


@data.command(epilog="Example: visrt data draw labelled/ --out sample.png")
def draw(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Picture (png) to write.")],
    format: From = None,
    annotations: Annotations = None,
    images: Images = None,
    names: Names = None,
    split: Split = None,
    skip_missing: SkipMissing = False,
    skip_faulty: SkipFaulty = False,
    videos: Annotated[int, typer.Option(min=1, max=60, help="Videos, or photos, drawn at random.")] = 6,
    frames: Annotated[int, typer.Option(min=1, max=20, help="Frames of each video; photos in a row.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another number, another sample.")] = 0,
) -> None:
    """Draw a sample of a set with its masks, ids and classes as one contact sheet."""
    from visrt.benchmarks.accuracy.contact_sheet import sample_sheet, write_sheet
    from visrt.benchmarks.new_folder import refuse_nowhere
    from visrt.console import report_console
    from visrt.training.data.set_formats import SetPlaces

    refuse_nowhere(out)
    read = _read(SetPlaces(folder, annotations, images, names, split), format, skip_missing, skip_faulty)
    picture = sample_sheet(read.annotated, videos, frames, seed)
    write_sheet(out, picture)
    report_console().print(f"{out}: {picture.shape[1]} x {picture.shape[0]} pixels")


def _read(
    places: SetPlaces,
    format: Format | None,
    skip_missing: bool,
    skip_faulty: bool,
    choice: ClassChoice | None = None,
) -> ReadSet:
    """The set with its chosen classes; what was left out of it is reported on stderr."""
    from visrt.console import say
    from visrt.training.data.annotations import with_classes
    from visrt.training.data.set_formats import MissingPictures, read_set

    missing = MissingPictures.leave_out if skip_missing else MissingPictures.refuse
    read = read_set(places, format.value if format else None, missing, skip_faulty)
    read = replace(read, annotated=with_classes(read.annotated, choice, read.path))
    for remark in read.annotated.remarks:
        say(remark)
    return read


def _summary(read: ReadSet, found: SetSurvey) -> Table:
    from rich.table import Table

    sizes = ", ".join(f"{height} x {width} ({count})" for (height, width), count in list(found.sizes.items())[:4])
    more = ", ..." if len(found.sizes) > 4 else ""
    table = Table("format", "videos", "frames", "height x width (videos)")
    table.add_row(read.format, str(found.videos), str(found.frames), sizes + more)
    return table


def _classes(found: SetSurvey) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", "objects", "in videos", "masks", "crowds")
    for name, count in found.classes.items():
        table.add_row(escape(name), *map(str, (count.objects, count.videos, count.masks, count.crowds)))
    return table
