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


def track(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Video, folder of images, glob, or number of a camera.")
    ],
    bundle: Annotated[Path, typer.Option(help="Folder that `visrt export` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; of several sources each gets a folder in it.")],
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
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="Write the overlay video.")] = True,
    overlay_coding: Annotated[
        Coding, typer.Option(help="Preset of the overlay's encoder: the slower, the smaller the file.")
    ] = Coding.superfast,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's or the preset's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop each source after this many frames.")] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the four files of an earlier run in the output folder, nothing else.",
        ),
    ] = False,
    damaged: Annotated[Damaged, typer.Option(help="Frames the decoder flags as damaged.")] = Damaged.keep,
    image_fps: Annotated[float, typer.Option(min=0.001, help="Frames a second of a folder of images.")] = 10.0,
    allow_playlists: Annotated[
        bool, typer.Option("--allow-playlists", help="Let playlists (m3u8, ffconcat) open the files they name.")
    ] = False,
) -> None:
    """Follow the objects of each SOURCE and write what was found.

    DIR gets overlay.mp4, results.jsonl (a line a frame, written as it runs), results.json (YouTube-VIS) and
    summary.json. Ctrl-C finishes the frame and writes everything; a second one ends at once.
    """
    from visrt.commands.track_run import TrackOptions, track_all
    from visrt.runtime.sinks.overlay_video import VideoCoding
    from visrt.runtime.sources.source import VideoSettings

    options = TrackOptions(
        bundle=bundle,
        association=association_in(association, preset),
        out=out,
        engine=engine,
        threads=threads,
        device=device,
        in_flight=in_flight,
        streams=streams,
        overlay=VideoCoding(preset=overlay_coding.value) if overlay else None,
        limit=limit,
        existing="replace" if overwrite else "refuse",
        video=VideoSettings(
            damaged=damaged.value, image_fps=image_fps, playlists="allow" if allow_playlists else "refuse"
        ),
    )
    raise typer.Exit(track_all(sources, options))
