"""`visrt train`: a settings file in, a run folder with a checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    settings: Annotated[Path, typer.Argument(help="Settings file (json); a run folder's settings.json repeats it.")],
    out: Annotated[Path, typer.Option(help="Run folder; a run found there is resumed.")],
    steps: Annotated[
        int | None, typer.Option(help="Train this many steps instead of the settings' optim.steps.")
    ] = None,
) -> None:
    """Train a network on annotated images or videos, or resume an interrupted run."""
    from dataclasses import replace

    from visrt.console import say
    from visrt.training.loop import train as run_training
    from visrt.training.run_settings import run_settings_from_file

    chosen = run_settings_from_file(settings)
    if steps is not None:
        chosen = replace(chosen, optim=replace(chosen.optim, steps=steps))
    weights = run_training(chosen, out, on_remark=say)
    typer.echo(f"{weights}: export it with `visrt export {weights} --size HxW --out BUNDLE`")
