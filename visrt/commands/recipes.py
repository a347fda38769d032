"""`visrt recipes`: the published trainings, and the settings of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from visrt.training.published_recipes import Recipe

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print the settings of this recipe as json.")] = None,
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("datasets"),
    variants: Annotated[bool, typer.Option("--variants", help="List the papers' ablations too.")] = False,
) -> None:
    """List the published trainings that `visrt train --recipe NAME --data ROOT --out RUN` runs."""
    import json
    from dataclasses import asdict

    from visrt.training.published_recipes import RECIPES, usual_settings

    if name is not None:
        print(json.dumps(asdict(usual_settings(name, data)), indent=1))
        return
    _list({key: recipe for key, recipe in RECIPES.items() if variants or recipe.variant_of is None})
    if not variants:
        print("\nAblations of the papers: visrt recipes --variants. Settings of one: visrt recipes NAME.")


def _list(chosen: Mapping[str, Recipe]) -> None:
    from rich.console import Console
    from rich.table import Table

    from visrt.training.published_recipes import usual_settings

    table = Table("recipe", "trains", "rows", "steps x clips x frames", "starts from", box=None, pad_edge=False)
    for key, recipe in chosen.items():
        settings = usual_settings(key, Path("datasets"))
        size = f"{settings.optim.steps} x {settings.optim.batch} x {settings.data.clips.frames}"
        table.add_row(key, recipe.what, recipe.rows, size, f"ROOT/weights/{recipe.start.file}")
    table.columns[0].no_wrap = True
    # A file or pipe has no width: a line a recipe.
    Console(width=None if Console().is_terminal else 240).print(table)
