"""`visrt verify`: does a bundle compute here what torch computed? Needs no torch, but for --checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.device import Device
from visrt.runtime.engines.backends import BACKENDS

if TYPE_CHECKING:
    from visrt.runtime.bundles.bundle import Bundle
    from visrt.runtime.bundles.manifest import Manifest
    from visrt.runtime.parity.frames import Frames
    from visrt.runtime.parity.reference import Reference
    from visrt.runtime.parity.verify import Verification, VerifySettings

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What runs it: {', '.join(BACKENDS)}; repeat for more. All that this machine can run if not given."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Compare with this checkpoint, run by torch now, instead of the outputs stored in the bundle."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare with this fp32 bundle, run by ONNX Runtime on the CPU.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Compare on frames of this video; needs --checkpoint or --against.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the video at most.")] = 60,
    batch: Annotated[str, typer.Option(metavar="B,...", help="Frames a call, each a run of its own.")] = "1,3",
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="In place of the floor of the bundle's precision: iou_mean, iou_min, top_class or assignment; repeat.",
        ),
    ] = None,
    device: Device = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the verdict and all figures here too.")] = None,
) -> None:
    """Compare what a bundle computes on each engine of this machine, at each size, with what PyTorch computed.

    Leaves with 5 if an engine fails. Engines that this machine cannot run are skipped with a remark, or an error if
    --engine names them.
    """
    from visrt.benchmarks.new_folder import refuse_nowhere
    from visrt.commands.verify_table import lines_of, tables_of
    from visrt.console import report_console
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.parity.verify import VerifySettings, require_all

    refuse_nowhere(json)
    settings = VerifySettings(tuple(engine or ()), _batches(batch), _floors(floor or ()), device=device)
    expected = Expected(checkpoint, against, source, frames)
    opened = open_bundle(bundle)
    console = report_console()
    verified: list[Verified] = []
    for size in opened.sizes:
        name = f"{bundle} at {size.manifest.input.text}" if opened.manifest.other_sizes else str(bundle)
        one = Verified(name, *_verified(size, expected, settings))
        verified.append(one)
        for table in tables_of(one.verification, f"{name} and {one.expectation}"):
            console.print(table)
        for line in lines_of(one.verification):
            console.print(line)
    if json is not None:
        _write(json, opened.manifest, verified, settings)
    require_all({one.name: one.verification for one in verified})


@dataclass(frozen=True)
class Verified:
    """A bundle at one size, by its name in messages; expectation: the name of the reference."""

    name: str
    expectation: str
    verification: Verification


@dataclass(frozen=True)
class Expected:
    """The expected values: from torch run now, another bundle, or by default what the bundle stores."""

    checkpoint: Path | None
    against: Path | None
    source: str | None
    frames: int

    def __post_init__(self) -> None:
        from visrt.runtime.errors import UsageError

        if self.checkpoint is not None and self.against is not None:
            raise UsageError("--checkpoint and --against were both given; give the one to compare with")
        if self.source is not None and self.checkpoint is None and self.against is None:
            raise UsageError(
                f"--source {self.source}: what torch makes of these frames is not in the bundle; give --checkpoint "
                "with the file it was exported from, or --against with its fp32 bundle"
            )


def _verified(bundle: Bundle, expected: Expected, settings: VerifySettings) -> tuple[str, Verification]:
    """The name of the reference, and the verdict."""
    from rich.console import Console

    from visrt.runtime.parity.verify import require_available, verify_engines

    require_available(settings)
    with Console(stderr=True).status("computing what is expected") as status:
        expectation, reference = _reference(bundle, expected)
        return expectation, verify_engines(bundle, reference, settings, lambda name: status.update(f"running {name}"))


def _reference(bundle: Bundle, expected: Expected) -> tuple[str, Reference]:
    from visrt.runtime.parity.frames import Frames, clip_frames
    from visrt.runtime.parity.verify import stored_reference

    stored = stored_reference(bundle)
    if expected.source is None:
        clip, where = Frames(stored.images, stored.valid_sizes), f"its {len(stored)} reference frames"
    else:
        clip = clip_frames(expected.source, bundle.manifest.input, expected.frames)
        where = f"{len(clip)} frames of {expected.source}"
    if expected.checkpoint is not None:
        return f"torch, {expected.checkpoint.name} run now on {where}", _anew(expected.checkpoint, bundle, clip)
    if expected.against is not None:
        return f"{expected.against} on {where}", _of_bundle(expected.against, bundle, clip)
    return f"what torch computed at export on {where}", stored


def _anew(checkpoint: Path, bundle: Bundle, clip: Frames) -> Reference:
    from visrt.runtime.errors import UsageError, install_hint

    try:
        from visrt.export.reference import reference_from_checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--checkpoint needs {error.name}, which is not installed; run {install_hint('train')}, or leave it "
            "out to compare with what the bundle keeps"
        ) from None
    return reference_from_checkpoint(checkpoint, bundle.manifest, clip.images, clip.valid_sizes)


def _of_bundle(against: Path, bundle: Bundle, clip: Frames) -> Reference:
    from visrt.runtime.bundles.bundle import open_bundle
    from visrt.runtime.parity.verify import reference_from_bundle

    return reference_from_bundle(
        _of_the_same_size(open_bundle(against), bundle), bundle.manifest, clip.images, clip.valid_sizes
    )


def _of_the_same_size(against: Bundle, bundle: Bundle) -> Bundle:
    """Of several sizes of `against` that of `bundle`; where none is, the main one, whose size is refused later."""
    same = (size for size in against.sizes if size.manifest.input == bundle.manifest.input)
    return next(same, against.sizes[0])


def _batches(text: str) -> tuple[int, ...]:
    from visrt.runtime.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--batch {text}: expected numbers of frames with commas, as in 1,3") from None


def _floors(given: Sequence[str]) -> dict[str, float]:
    from visrt.runtime.errors import UsageError

    floors = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            floors[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise UsageError(f"--floor {text}: expected NAME=VALUE, as in iou_mean=0.99") from None
    return floors


def _write(path: Path, manifest: Manifest, verified: Sequence[Verified], settings: VerifySettings) -> None:
    """The values of the verification; of a bundle of several sizes those of each, by size."""
    import json

    from visrt.runtime.machine import machine_and_packages
    from visrt.runtime.parity.verify import verification_values
    from visrt.runtime.sinks.output import write_atomically

    of_sizes = {
        size.input.text: {**verification_values(one.verification), "reference": one.expectation}
        for size, one in zip(manifest.sizes, verified, strict=True)
    }
    values: dict[str, Any] = {"sizes": of_sizes} if len(of_sizes) > 1 else next(iter(of_sizes.values()))
    values = {**values, "batches": list(settings.batches), "machine": machine_and_packages()}
    write_atomically(path, [json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"])
