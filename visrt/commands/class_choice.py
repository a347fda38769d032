"""The option `--classes` of `visrt train`, `data check` and `eval`: one rule for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from visrt.runtime.errors import UsageError

if TYPE_CHECKING:
    from visrt.training.data.annotations import ClassChoice

__all__ = ["CHOICE_HELP", "class_choice"]

CHOICE_HELP = (
    'Categories to keep, with commas: person,car; or a class map (json): {"dog": "animal", "chair": null}. What it '
    "does not name is left out and counted."
)


def class_choice(text: str | None) -> ClassChoice | None:
    """The categories to keep, names with commas between, or the class map in a json file; None keeps all."""
    from visrt.training.data.annotations import load_class_map

    if text is None:
        return None
    if text.strip().endswith(".json"):
        return load_class_map(Path(text.strip()))
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--classes {text!r} is not understood; expected different names with commas, or a json file")
    return names
