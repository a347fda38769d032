"""`visrt train`: a published recipe, a folder of one's own pictures or a settings file in, a checkpoint out."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.class_choice import CHOICE_HELP, class_choice
from visrt.runtime.errors import UsageError

if TYPE_CHECKING:
    from visrt.training.own_recipe import OwnRecipe
    from visrt.training.run_settings import RunSettings

__all__ = ["train"]

TESTED_SHORT_PX = 360
"""The short side that the papers test YouTube-VIS at."""
WAYS = (
    "give one of: `visrt train --data DIR --classes person,car --out RUN` for your own pictures, `visrt train --recipe "
    "NAME --data ROOT --out RUN` for a published recipe, `visrt train FILE --out RUN` for a recipe or settings file"
)


def train(
    settings: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Short recipe (toml, see --write-recipe) or settings (json; a run folder's settings.json repeats it).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; a run found there is resumed.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your annotated pictures, as `visrt data check` takes them; with --recipe the official sets."
        ),
    ] = None,
    classes: Annotated[str | None, typer.Option(help=CHOICE_HELP)] = None,
    recipe: Annotated[str | None, typer.Option(help="A published recipe by name; `visrt recipes` lists them.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WEIGHTS",
            help="Weights to start from: default (the shipped ones), imagenet, or a checkpoint. With --recipe the "
            "checkpoint that it begins with.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Set to measure on; without it the set's own split, else a tenth of the pictures."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the training frames; as the start's if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, in place of the recipe's.")] = None,
    clips_at_once: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most clips that a GPU holds at a time; a step of more adds up gradients. For little memory."
        ),
    ] = None,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="With --data: leave out faulty annotations, and count them.")
    ] = False,
    write_recipe: Annotated[
        Path | None,
        typer.Option(help="Write the recipe for your own pictures here (toml), to edit, and do not train."),
    ] = None,
) -> None:
    """Train a network on your own annotated pictures or by a published recipe, or resume an interrupted run.

    \b
    visrt train --data DIR --classes person,car --out RUN
    visrt train --recipe minvis-r50-ytvis19 --data ROOT --out RUN
    visrt train FILE --out RUN
    """
    options = {
        "--data": data,
        "--classes": classes,
        "--recipe": recipe,
        "--from": start,
        "--validation": validation,
        "--size": size,
        "--skip-faulty": skip_faulty or None,
        "--write-recipe": write_recipe,
    }
    given = [name for name, value in options.items() if value is not None]
    if settings is not None:
        _refuse(given, f"{settings} holds all of that but --out, --steps and --clips-at-once")
        chosen, lines = _from_file(settings, steps)
    elif recipe is not None:
        _refuse([name for name in given if name not in ("--recipe", "--data", "--from")], f"recipe {recipe} holds that")
        chosen, lines = _published(recipe, data, start)
    elif data is not None:
        own = _own_recipe(data, classes, start, validation, size, steps, skip_faulty)
        if write_recipe is not None:
            _write_recipe(own, write_recipe)
            return
        chosen, lines = _own(own)
    else:
        raise UsageError(f"nothing to train on: {WAYS}")
    if out is None:
        raise UsageError("--out is missing: the folder of the run, where the weights go")
    _run(_changed(chosen, steps, clips_at_once), lines, out)


def _refuse(given: list[str], reason: str) -> None:
    if given:
        raise UsageError(f"{', '.join(given)}: {reason}; leave out {', '.join(given)}")


def _from_file(path: Path, steps: int | None) -> tuple[RunSettings, tuple[str, ...]]:
    """A short recipe or full settings, by the file's suffix."""
    from visrt.training.own_recipe import recipe_from_file
    from visrt.training.run_settings import run_settings_from_file

    if path.suffix == ".toml":
        own = recipe_from_file(path)
        return _own(own if steps is None else replace(own, steps=steps))
    return run_settings_from_file(path), ()


def _published(name: str, root: Path | None, start: str | None) -> tuple[RunSettings, tuple[str, ...]]:
    from visrt.training.published_recipes import recipe_settings

    if root is None:
        raise UsageError(f"--recipe {name} without --data: give the folder that holds its official data sets")
    return recipe_settings(name, root, None if start is None else Path(start)), (f"recipe {name}, data in {root}",)


def _own_recipe(
    data: Path,
    classes: str | None,
    start: str | None,
    validation: Path | None,
    size: str | None,
    steps: int | None,
    skip_faulty: bool,
) -> OwnRecipe:
    """The recipe of the command line; what is not given keeps its default."""
    from visrt.runtime.settings import load_settings
    from visrt.training.own_recipe import OwnRecipe

    choice: Any = classes
    if classes is not None and isinstance(kept := class_choice(classes), tuple):
        choice = list(kept)
    values = {
        "data": str(data),
        "validation": None if validation is None else str(validation),
        "classes": choice,
        "start": start,
        "size": size,
        "steps": steps,
        "skip_faulty": skip_faulty,
    }
    return load_settings(OwnRecipe, {key: value for key, value in values.items() if value is not None}, "command line")


def _own(recipe: OwnRecipe) -> tuple[RunSettings, tuple[str, ...]]:
    from visrt.training.own_data import own_run

    run = own_run(recipe)
    return run.settings, run.lines


def _write_recipe(recipe: OwnRecipe, path: Path) -> None:
    """The recipe as it would be run, after its data and weights were looked at."""
    from visrt.console import say
    from visrt.runtime.errors import OutputError
    from visrt.training.own_data import filled, own_run
    from visrt.training.own_recipe import recipe_text

    if path.suffix != ".toml":
        raise UsageError(f"--write-recipe {path}: a recipe is a .toml file; give a name that ends so")
    for line in own_run(recipe).lines:
        say(line)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(recipe_text(filled(recipe)))
    except FileExistsError:
        raise OutputError(f"{path}: is there already; give another name, or edit it and train with it") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    typer.echo(f"{path}: edit it, then `visrt train {path} --out RUN`")


def _changed(settings: RunSettings, steps: int | None, clips_at_once: int | None) -> RunSettings:
    optim = settings.optim
    if steps is not None:
        optim = replace(optim, steps=steps)
    if clips_at_once is not None:
        optim = replace(optim, clips_at_once=clips_at_once)
    return replace(settings, optim=optim)


def _run(settings: RunSettings, lines: tuple[str, ...], out: Path) -> None:
    from visrt.console import say
    from visrt.training.loop import train as run_training

    # torchrun and accelerate launch number their processes; one speaks for all.
    is_main = os.environ.get("RANK", "0") == "0"
    for line in lines if is_main else ():
        say(line)
    weights = run_training(settings, out, on_line=say).weights
    if is_main:
        typer.echo(f"{weights}: {_next_step(settings, weights)}")


def _next_step(settings: RunSettings, weights: Path) -> str:
    from visrt.training.run_settings import family_of
    from visrt.training.settings import TrainSettings

    if isinstance(settings, TrainSettings) and settings.genvis is not None and settings.genvis.stage == "vita":
        return f"GenVIS starts from it with `visrt train --recipe NAME --data ROOT --from {weights} --out RUN`"
    height, width = _export_size(settings)
    family = "" if (name := family_of(settings)) is None else f" --family {name}"
    return (
        f"export it with `visrt export {weights}{family} --size {height}x{width}{_association(settings)} --out BUNDLE`"
    )


def _association(settings: RunSettings) -> str:
    """The option with which a network that began as the shipped one keeps the settings chosen for that one."""
    from visrt.training.own_data import SHIPPED, SHIPPED_ASSOCIATION

    start = Path(settings.init or "")
    chosen = start.parents[1] / SHIPPED_ASSOCIATION if start.name == SHIPPED.name else None
    return "" if chosen is None or not chosen.is_file() else f" --association {os.path.relpath(chosen)}"


def _export_size(settings: RunSettings) -> tuple[int, int]:
    """Height and width in pixels of the network as trained; of short sides that are drawn, the papers' at 16 to 9."""
    clips = settings.data.clips
    view = clips.view
    if view is None:
        return clips.height_px, clips.width_px
    if view.kind == "jitter":
        return view.side_px, view.side_px
    short = min(max(TESTED_SHORT_PX, min(view.short_sides_px)), max(view.short_sides_px))
    return _divisible(short), _divisible(short * 16 / 9)


def _divisible(side: float) -> int:
    return 32 * math.ceil(side / 32)
