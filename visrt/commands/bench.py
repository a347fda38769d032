"""`visrt bench`: how fast with everything included, where the time goes, and how that scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrt.commands.device import Device
from visrt.runtime.engines.backends import BACKENDS

if TYPE_CHECKING:
    from visrt.benchmarks.speed.bench import BenchReport

__all__ = ["bench"]


def bench(
    bundle: Annotated[list[Path], typer.Option(help="Bundle to measure; several are measured in turn.")],
    clip: Annotated[Path, typer.Option(help="Video that is followed.")] = Path("clips/demo.mp4"),
    engine: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(BACKENDS)}; repeat to compare. cpu if none is given."),
    ] = None,
    in_flight: Annotated[
        list[int] | None, typer.Option(min=1, help="Frames in flight, 1 if none is given; several are compared.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="eager, compile or ort: compare with it, post-processed as published; several in turn."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the peers in PyTorch.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames of the clip in a round.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each, after one that warms up.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    device: Device = 0,
    clip_lengths: Annotated[
        str, typer.Option(help="Frames of GenVIS's clips, such as 1,3,5,7: each in turn, as in the paper's figure 3.")
    ] = "",
    key_every: Annotated[
        str,
        typer.Option(help="Distances of InsPro-lite's key frames, such as 1,5,10,15: each in turn, as in its table 3."),
    ] = "",
    streams: Annotated[str, typer.Option(help="Numbers of streams at a time, such as 1,2,4.")] = "",
    live_fps: Annotated[float, typer.Option(min=0, help="Try the streams as cameras of this rate too.")] = 0.0,
    length: Annotated[int, typer.Option(min=0, help="Frames of an endless stream, for memory and time.")] = 0,
    objects: Annotated[str, typer.Option(help="Objects in sight, such as 1,10,100: work around the engines.")] = "",
    queries: Annotated[str, typer.Option(help="Queries of the network, such as 100,200: likewise.")] = "",
    heights: Annotated[str, typer.Option(help="Heights of the video, such as 360,720,1080: likewise.")] = "",
    gpu_model: Annotated[
        bool,
        typer.Option(
            "--gpu-model",
            help="Model one 480p file and eight streams on a GPU: the host's work is measured here, the network's time "
            "is given. No GPU runs.",
        ),
    ] = False,
    gpu_network_ms: Annotated[
        str, typer.Option(help="The network's time for the model: milliseconds of a call by the frames in it.")
    ] = "1:2.0,8:6.4",
    roofline: Annotated[int, typer.Option(min=0, help="Engine calls to time against the machine's peak.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here, a line of json each.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots here.")] = None,
) -> None:
    """Measure bundles on engines, side by side: time by stage, FPS, and on request streams, length, objects, peers.

    Latency and FPS include everything from the decoder to the results on disk.
    """
    from visrt.benchmarks.new_folder import refuse_nowhere
    from visrt.benchmarks.speed.bench import BenchSettings, bench, report_lines
    from visrt.benchmarks.speed.gpu_model import network_ms_of
    from visrt.benchmarks.speed.simulated_gpu import GpuSpeed
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.sinks.output import write_atomically

    settings = BenchSettings(
        clip=clip,
        frames=frames,
        rounds=rounds,
        threads=threads,
        device=device,
        engines=tuple(engine or ()) or ("cpu",),
        in_flight=tuple(in_flight or ()) or (1,),
        peers=tuple(peer or ()),
        checkpoint=checkpoint,
        clip_lengths=numbers(clip_lengths, "--clip-lengths"),
        key_every=numbers(key_every, "--key-every"),
        streams=numbers(streams, "--streams"),
        live_fps=live_fps,
        length=length,
        objects=numbers(objects, "--objects"),
        queries=numbers(queries, "--queries"),
        heights=numbers(heights, "--heights"),
        roofline=roofline,
    )
    refuse_nowhere(json, html)
    page_of = _page() if html is not None else None
    gpu = GpuSpeed(network_ms_of(gpu_network_ms)) if gpu_model else None
    with _heard() as say:
        report = bench([open_bundle(path) for path in bundle], settings, say, gpu)
    _print(report)
    if json is not None:
        write_atomically(json, (f"{line}\n".encode() for line in report_lines(report)))
    if html is not None and page_of is not None:
        write_atomically(html, [page_of(report).encode()])


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of a list such as 1,2,4; none of an empty one."""
    from visrt.runtime.errors import UsageError

    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{option} is {text!r}; expected numbers of 1 or more such as 1,2,4")
    return tuple(dict.fromkeys(map(int, parts)))


def _page() -> Callable[[BenchReport], str]:
    """What makes the page, before anything is measured: it needs a package that measuring does not."""
    from visrt.runtime.errors import UsageError, install_hint

    try:
        from visrt.benchmarks.speed.bench_page import page
    except ModuleNotFoundError as error:
        raise UsageError(f"--html needs {error.name}; run {install_hint('train')}") from None
    return page


@contextmanager
def _heard() -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield status.update


def _print(report: BenchReport) -> None:
    from visrt.benchmarks.speed.bench_tables import tables
    from visrt.benchmarks.speed.interleaved import METHOD
    from visrt.console import report_console

    console = report_console()
    for table in tables(report):
        console.print(table)
    settings, busy = report.settings, report.candidates[-1].busy
    console.print(f"How it was measured: {settings.rounds} rounds of {settings.frames} frames of {settings.clip.name}.")
    console.print(f"Load of the machine {busy:.1f} on {report.made_on['cores']} cores, {report.made_on['cpu']}.")
    for line in METHOD:
        console.print(f"- {line}")
    for reason in report.left_out:
        console.print(f"Left out: {reason}")
