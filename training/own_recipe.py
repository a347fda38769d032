"""A short recipe for training on one's own pictures: about ten choices in a commented TOML file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from visrt.runtime.errors import SettingsError
from visrt.runtime.settings import load_settings

__all__ = ["OwnRecipe", "recipe_from_file", "recipe_text"]


@dataclass(frozen=True)
class OwnRecipe:
    """About ten choices. Paths are relative to the folder the command runs in.

    data: a folder, or an annotation file, as `visrt data check` takes it. validation: another one that training never
    sees; without it the set's own split, else a share of the data. classes: names to keep, or the path of a class map;
    without it all. start: "default" are the shipped weights, "imagenet" the same network with an ImageNet backbone,
    else a checkpoint, whose architecture is kept. size: height and width of the training frames, and of the network
    that is exported. frames: in a clip; 2 trains embeddings to stay alike from frame to frame. batch: clips a step.
    early_stop: ends when recall has not improved in so many validations; 0 = never. skip_faulty: faulty annotations are
    left out and counted; otherwise they are refused, all at once.
    """

    data: str
    validation: str | None = None
    classes: tuple[str, ...] | str | None = None
    start: str = "default"
    size: Annotated[str, Field(pattern=r"^\d{2,4}x\d{2,4}$")] | None = None
    frames: Literal[1, 2] = 2
    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    early_stop: Annotated[int, Field(ge=0)] = 5
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    skip_faulty: bool = False
    seed: int = 0


COMMENTS = {
    "data": "folder (COCO, YouTube-VIS, Roboflow, YOLO segmentation, DAVIS, MOTS) or annotation file",
    "validation": "another one to measure on; without it the set's own split, else a tenth of the data",
    "classes": 'categories to keep, or the path of a class map such as {"van": "car", "dog": null}; without it all',
    "start": '"default" (the shipped weights), "imagenet", or the path of a checkpoint',
    "size": "height x width of the frames in pixels, divisible by 32; export with the same",
    "frames": "frames a clip: 2 also trains embeddings to stay alike from frame to frame; 1 is quicker",
    "steps": "training steps",
    "batch": "clips a step, over all GPUs",
    "learning_rate": "lower it if the loss is not finite",
    "early_stop": "end after so many validations without better recall, and keep the best weights; 0 = never",
    "mixed_precision": '"no", "bf16" or "fp16": the last two save time and memory on a GPU',
    "skip_faulty": "leave out faulty annotations, which are counted, rather than refuse the set",
    "seed": "another number, other clips",
}


def recipe_from_file(path: Path) -> OwnRecipe:
    """The recipe in the TOML file at `path`. Raises SettingsError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    expected = "a recipe in TOML, as --write-recipe writes it"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror or error}); expected {expected}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML ({' '.join(str(error).split())}); expected {expected}") from None
    return load_settings(OwnRecipe, values, str(path))


def recipe_text(recipe: OwnRecipe) -> str:
    """`recipe` as commented TOML; a key that is None is there as a comment."""
    lines = ["# A recipe of `visrt train THIS_FILE --out RUN`. Paths count from the folder in which it runs.", ""]
    for field in fields(OwnRecipe):
        value = getattr(recipe, field.name)
        shown = f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}"
        lines += [f"# {COMMENTS[field.name]}", shown]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Texts and numbers in TOML are as in json; so are lists of them."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
