"""`visrt track`: sources in; overlay video, JSON lines, YouTube-VIS json and a summary out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from visrt.commands.association import PRESET_HELP, association_in
from visrt.commands.device import Device
from visrt.runtime.engines.backends import BACKENDS

__all__ = ["track"]

SHOWN, DRAWN, WRITTEN, READ = "What is shown", "What the overlay has", "What is written", "What is read"


class Coding(str, Enum):
    """x264's presets that are fast enough to run at the same time as a network."""

    ultrafast = "ultrafast"
    superfast = "superfast"
    veryfast = "veryfast"
    faster = "faster"
    medium = "medium"


class Damaged(str, Enum):
    """What to do with frames the decoder flags."""

    keep = "keep"
    drop = "drop"


class MaskFiles(str, Enum):
    """Files that masks are written to."""

    png = "png"


def track(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Video, folder of images, glob, pattern (%04d.png), number of a camera, or - for the standard input.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="Folder that `visrt export` wrote, or the name of a bundle that comes with visrt.")
    ] = "default",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; of several sources each gets a folder in it. If not given: runs/track/NAME, "
            "with the next number where it is there."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"What runs the network: {', '.join(BACKENDS)} (TensorRT's are built on first use).")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    device: Device = 0,
    in_flight: Annotated[
        int,
        typer.Option(
            min=1,
            help="2 lets network and host work at a time, 3 on a CPU lets it see two frames at a time, each with half "
            "of the cores; results come so many frames later. With --streams it is chosen for the engine if not given.",
        ),
    ] = 1,
    streams: Annotated[
        int,
        typer.Option(
            min=1, help="Sources followed at a time: on a GPU in shared calls, on a CPU each core sees another."
        ),
    ] = 1,
    sources_list: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="A text file with a source a line. Those whose results are complete are left out.",
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's or the preset's.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what an earlier run wrote to the output folder, nothing else."),
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(help="First frame: seconds (12.5, 1:30) or a number (300f).", rich_help_panel=READ),
    ] = None,
    end: Annotated[str | None, typer.Option(help="The frame to stop before, as --start.", rich_help_panel=READ)] = None,
    every: Annotated[int, typer.Option(min=1, help="Every so many-th frame only.", rich_help_panel=READ)] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop each source after this many frames.", rich_help_panel=READ)
    ] = None,
    cuts: Annotated[
        bool,
        typer.Option(
            "--cuts/--no-cuts", help="End all tracks where the scene is cut; ids go on.", rich_help_panel=READ
        ),
    ] = False,
    damaged: Annotated[
        Damaged, typer.Option(help="Frames the decoder flags as damaged.", rich_help_panel=READ)
    ] = Damaged.keep,
    image_fps: Annotated[
        float, typer.Option(min=0.001, help="Frames a second of a folder of images.", rich_help_panel=READ)
    ] = 10.0,
    value_range: Annotated[
        str | None,
        typer.Option(
            help="Black and white of pictures of more than 8 bits, as 0,4095; by the first picture if not given.",
            rich_help_panel=READ,
        ),
    ] = None,
    raw: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT[:PIXELS]",
            help="The standard input carries raw frames: 640x480, of rgb24, or 640x480:bgr24, :gray.",
            rich_help_panel=READ,
        ),
    ] = None,
    raw_fps: Annotated[
        float | None, typer.Option(min=0.001, help="Raw frames a second; 25 if not given.", rich_help_panel=READ)
    ] = None,
    allow_playlists: Annotated[
        bool,
        typer.Option(
            "--allow-playlists",
            help="Let playlists (m3u8, ffconcat) open the files they name.",
            rich_help_panel=READ,
        ),
    ] = False,
    classes: Annotated[
        str | None, typer.Option(help="Classes to show, with commas: person,animal.", rich_help_panel=SHOWN)
    ] = None,
    score: Annotated[
        float, typer.Option(min=0, max=1, help="Least score of what is shown.", rich_help_panel=SHOWN)
    ] = 0.0,
    count_line: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,X,Y",
            help="Count what crosses a line, in pixels, by class and direction, in the summary. May be given again.",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay/--no-overlay", help="Write the overlay video.", rich_help_panel=WRITTEN)
    ] = True,
    masks: Annotated[
        MaskFiles | None,
        typer.Option(help="Write masks/000012.png, one indexed PNG of ids a frame.", rich_help_panel=WRITTEN),
    ] = None,
    crops: Annotated[
        bool,
        typer.Option(
            "--crops/--no-crops", help="Write crops/ID-CLASS/000012.jpg of each box.", rich_help_panel=WRITTEN
        ),
    ] = False,
    mot: Annotated[
        bool,
        typer.Option(
            "--mot/--no-mot", help="Write mot.txt: boxes in MOTChallenge's form (CSV).", rich_help_panel=WRITTEN
        ),
    ] = False,
    overlay_coding: Annotated[
        Coding | None,
        typer.Option(
            help="Preset of the overlay's encoder: the slower, the smaller the file; superfast if not given.",
            rich_help_panel=DRAWN,
        ),
    ] = None,
    no_masks: Annotated[bool, typer.Option("--no-masks", help="Draw no masks.", rich_help_panel=DRAWN)] = False,
    opacity: Annotated[
        float | None, typer.Option(min=0, max=1, help="Opacity of masks; 0.4 if not given.", rich_help_panel=DRAWN)
    ] = None,
    boxes: Annotated[bool | None, typer.Option("--boxes/--no-boxes", help="Draw boxes.", rich_help_panel=DRAWN)] = None,
    trails: Annotated[
        bool | None, typer.Option("--trails/--no-trails", help="Draw where objects came from.", rich_help_panel=DRAWN)
    ] = None,
    labels: Annotated[
        bool | None, typer.Option("--labels/--no-labels", help="Draw names, ids and scores.", rich_help_panel=DRAWN)
    ] = None,
    font: Annotated[
        Path | None,
        typer.Option(help="Font file of the labels; one that has their letters if not given.", rich_help_panel=DRAWN),
    ] = None,
) -> None:
    """Follow the objects of each SOURCE and write what was found.

    The folder gets overlay.mp4, results.jsonl (a line a frame, written as it runs), results.json (YouTube-VIS) and
    summary.json. Ctrl-C finishes the frame and writes everything; a second one ends at once.
    """
    from visrt.commands.track_run import TrackOptions, track_all
    from visrt.commands.tracking import options as read
    from visrt.commands.tracking.many import sources_in
    from visrt.runtime.sinks.overlay_video import VideoCoding

    named = list(sources or ())
    given = {
        "--out": out,
        "--overwrite": overwrite,
        "--overlay": overlay,
        "--overlay-coding": overlay_coding,
        "--no-masks": no_masks or None,
        "--opacity": opacity,
        "--boxes": boxes,
        "--trails": trails,
        "--labels": labels,
        "--font": font,
        "--raw": raw,
        "--raw-fps": raw_fps,
    }
    read.refuse_contradictions(named, sources_list is not None, given)
    video = read.video_settings(
        start,
        end,
        raw,
        raw_fps,
        every=every,
        cuts="find" if cuts else "ignore",
        damaged=damaged.value,
        image_fps=image_fps,
        playlists="allow" if allow_playlists else "refuse",
        value_range=read.value_range(value_range),
    )
    options = TrackOptions(
        bundle=bundle,
        association=association_in(association, preset),
        out=out,
        engine=engine,
        threads=threads,
        device=device,
        in_flight=in_flight,
        streams=streams,
        overlay=VideoCoding(preset=(overlay_coding or Coding.superfast).value) if overlay else None,
        limit=limit,
        existing="replace" if overwrite or sources_list is not None else "refuse",
        video=video,
        style=read.drawing(given),
        wishes=read.wishes(classes, score, masks is not None, crops, mot, count_line or ()),
        many=None if sources_list is None else sources_list.stem,
    )
    raise typer.Exit(track_all([*named, *(sources_in(sources_list) if sources_list else ())], options))
