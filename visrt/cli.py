"""The command line. A verb's module is imported when that verb runs, so that `visrt --help` loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from visrt.console import say
from visrt.runtime.errors import INTERRUPTED, VisrtError, install_hint

__all__ = ["VERBS", "Verb", "app", "main"]


@dataclass(frozen=True)
class Verb:
    """One verb: where its function is, its line in `visrt --help`, and an example for its own help."""

    module: str
    function: str
    help: str
    example: str = ""


VERBS = {
    "track": Verb(
        "visrt.commands.track",
        "track",
        "Follow the objects of videos, image folders or a camera.",
        "visrt track street.mp4 --classes person --masks png",
    ),
    "inspect": Verb("visrt.commands.inspect", "inspect", "Show and check a bundle.", "visrt inspect default"),
    "doctor": Verb(
        "visrt.commands.doctor", "doctor", "Show what this machine can run, and what is in the way.", "visrt doctor"
    ),
    "train": Verb(
        "visrt.commands.train",
        "train",
        "Train a network on annotated images or videos.",
        "visrt train --data labelled/ --classes person,car --out runs/mine",
    ),
    "recipes": Verb(
        "visrt.commands.recipes", "recipes", "List the published trainings.", "visrt recipes minvis-r50-ytvis19"
    ),
    "convert": Verb(
        "visrt.commands.convert",
        "convert",
        "Turn a published checkpoint into visrt's own.",
        "visrt convert minvis_ytvis19_R50.pth --classes ytvis2019 --out minvis-r50.safetensors",
    ),
    "export": Verb(
        "visrt.commands.export",
        "export",
        "Turn a checkpoint into a bundle.",
        "visrt export runs/mine/model.safetensors --size 256x448 --out bundles/mine",
    ),
    "calibrate": Verb(
        "visrt.commands.calibrate",
        "calibrate",
        "Quantise a bundle to INT8 where quality allows, or fit its thresholds.",
        "visrt calibrate --bundle bundles/mine-fp16 --source street.mp4 --out bundles/mine-int8",
    ),
    "build": Verb(
        "visrt.commands.build",
        "build",
        "Build a bundle's TensorRT engines.",
        "visrt build --bundle bundles/mine --engine tensorrt",
    ),
    "verify": Verb(
        "visrt.commands.verify",
        "verify",
        "Check a bundle's engines against what torch computed.",
        "visrt verify bundles/mine --engine cpu",
    ),
    "bench": Verb(
        "visrt.commands.bench",
        "bench",
        "Measure how fast bundles are, and where the time goes.",
        "visrt bench --bundle bundles/mine --clip street.mp4 --html bench.html",
    ),
    "eval": Verb(
        "visrt.commands.eval",
        "evaluate",
        "Measure a bundle on annotated videos.",
        "visrt eval --bundle bundles/mine --data labelled/ --json eval.json",
    ),
    "reproduce": Verb(
        "visrt.commands.reproduce",
        "reproduce",
        "List the published figures, and the way to each of them.",
        "visrt reproduce minvis-r50-ytvis19",
    ),
    "data": Verb(
        "visrt.commands.data", "data", "Check, convert and draw annotated sets.", "visrt data check labelled/"
    ),
}

EXTRAS = {
    "onnxruntime": "cpu",
    "torch": "train",
    "accelerate": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "trackeval": "eval",
    "yaml": "eval",
    "filelock": "trt",
}
"""The extra that installs a package which only some verbs need."""


class LazyGroup(TyperGroup):
    """A group that knows its verbs by name and help, and imports one when it is to run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the verb's help; `resolve_command` puts the verb itself in its place."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name].help) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in and load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """One line and an exit code for what visrt refuses; a bug keeps its traceback."""
        try:
            return super().invoke(ctx)
        except VisrtError as error:
            say(str(error))
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            missing = _missing(str(ctx.invoked_subcommand), error)
            if missing is error:
                raise
            say(str(missing))
            raise typer.Exit(VisrtError.exit_code) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None


class WholeCommand(TyperCommand):
    """A command that tells all options that are missing at once, and not the first of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        given = {name for name, value in values.items() if isinstance(value, str | bool | int | list) and value != []}
        missing = [f"'{_shown_name(one)}'" for one in self.params if one.required and one.name not in given]
        if missing and not {*args} & {*ctx.help_option_names}:
            # One alone too: some releases of typer and click together let it pass.
            kind = "" if len(missing) > 1 else "option " if missing[0].startswith("'-") else "argument "
            ctx.fail(f"Missing {kind}{', '.join(missing)}.")
        return super().parse_args(ctx, args)


def _shown_name(parameter: Any) -> str:
    option = parameter.opts[0]
    return str(option if option.startswith("-") else parameter.name)


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """The entry point of the `visrt` command."""
    app(prog_name="visrt")


def load(name: str) -> Any:
    """The command of verb `name`, or the group of its own verbs, its module imported now."""
    verb = VERBS[name]
    try:
        function = getattr(import_module(verb.module), verb.function)
    except ModuleNotFoundError as error:
        raise _missing(name, error) from None
    if isinstance(function, typer.Typer):
        for own in function.registered_commands:
            own.cls = WholeCommand
        group = typer.main.get_command(function)
        group.epilog = f"Example: {verb.example}" if verb.example else None
        return group
    single = typer.Typer(add_completion=False)
    single.command(name, cls=WholeCommand, epilog=f"Example: {verb.example}" if verb.example else None)(function)
    return typer.main.get_command(single)


def _missing(verb: str, error: ModuleNotFoundError) -> Exception:
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    return VisrtError(f"{verb} needs {package}, which is not installed; run {install_hint(EXTRAS[package])}")


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print("visrt", version("visrt"))
        raise typer.Exit


@app.callback()
def visrt(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Video instance segmentation: from PyTorch training to a running deployment.

    Exit codes: 0 done, 3 done in part (a source was short or damaged), 2 wrong use or data, 4 input or output,
    5 bundle or engine, 130 interrupted.
    """
