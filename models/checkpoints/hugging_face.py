"""A Hugging Face Mask2Former: a folder of config.json, weights and, for the normalisation, preprocessor_config.json.

Nothing of transformers is needed to read one, and nothing in the folder is executed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from visrt.models.checkpoints.architecture import settings_from_weights
from visrt.models.checkpoints.checkpoint import FolderContents, without_prefix
from visrt.models.checkpoints.hugging_face_config import check_agreement, check_options, class_names
from visrt.models.checkpoints.hugging_face_keys import published_weights, unknown_keys
from visrt.models.checkpoints.tensor_files import read_tensor_file
from visrt.runtime.errors import CheckpointError
from visrt.runtime.json_file import read_json_object

__all__ = ["CONFIG", "folder_config", "folder_files", "folder_weights", "normalised", "read_hugging_face"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names under which transformers saves the weights; the first that exists is read."""
INDEX_END = ".index.json"

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""transformers' defaults for this model, in 0..1 units: ImageNet's."""
BILINEAR = 2

S = TypeVar("S")

LISTED = 10
"""Unknown keys named in an error; the rest is counted."""


def read_hugging_face(folder: Path) -> FolderContents:
    """The model in `folder`. Raises CheckpointError for whatever is not the published network."""
    config = folder_config(folder)
    check_options(config, folder / CONFIG)
    stored, remarks = without_prefix(folder_weights(folder), folder)
    if unknown := unknown_keys(stored):
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise CheckpointError(
            f"{folder}: {len(unknown)} weights are no part of a Mask2Former: {', '.join(unknown[:LISTED])}{more}"
        )
    weights = {key: value.float() for key, value in published_weights(stored).items()}
    settings = settings_from_weights(weights, str(folder))
    check_agreement(config, settings, folder / CONFIG)
    return FolderContents(
        weights, normalised(settings, folder), *class_names(config, settings.classes, folder / CONFIG), remarks
    )


def folder_files(folder: Path) -> list[Path]:
    """The files of `folder` that determine what its network computes."""
    weights = _weights_path(folder)
    shards = _shards(weights) if weights.name.endswith(INDEX_END) else []
    return [path for path in (folder / CONFIG, folder / PREPROCESSOR, weights, *shards) if path.is_file()]


def _weights_path(folder: Path) -> Path:
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: holds no weights; expected one of {', '.join(WEIGHTS)}")
    return found


def folder_config(folder: Path) -> dict[str, Any]:
    """The configuration of the model in `folder`."""
    return _json(folder / CONFIG)


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """The weights by transformers' keys, from one file or from the shards of an index."""
    path = _weights_path(folder)
    if not path.name.endswith(INDEX_END):
        return _tensors(path)
    weights: dict[str, Tensor] = {}
    for shard in _shards(path):
        weights.update(_tensors(shard))
    missing = [key for key in _weight_map(path) if key not in weights]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weights are not in their files, the first is {missing[0]}")
    return weights


def _tensors(path: Path) -> dict[str, Tensor]:
    contents, _ = read_tensor_file(path)
    if not isinstance(contents, dict) or not all(isinstance(value, Tensor) for value in contents.values()):
        raise CheckpointError(f"{path}: holds no weights; expected a dictionary of tensors")
    return contents


def _shards(index: Path) -> list[Path]:
    """The files that `index` names, which must be in its folder."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: names the file {name!r}; expected files of the same folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names {name}, which is not there; copy or download the whole folder again")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{index}: holds no weight_map; expected a json object of files by weight")
    return named


def normalised(settings: S, folder: Path) -> S:
    """`settings` with pixel_mean and pixel_std of the preprocessor; without one the published ImageNet values stay.

    transformers multiplies pixels by a factor, then subtracts the mean and divides by the deviation. In 0..255 units
    both are larger by the factor's inverse.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return settings
    values = _json(path)
    if values.get("resample", BILINEAR) != BILINEAR:
        raise CheckpointError(
            f"{path}: resample is {values['resample']!r}; visrt resizes with {BILINEAR}, bilinear, only"
        )
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    mean, std = values.get("image_mean", IMAGE_MEAN), values.get("image_std", IMAGE_STD)
    if not values.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    (scale,) = _numbers([factor], 1, "rescale_factor", path, above=0.0)
    red, green, blue = _numbers(mean, 3, "image_mean", path)
    deviations = _numbers(std, 3, "image_std", path, above=0.0)
    mean = (red / scale, green / scale, blue / scale)
    red, green, blue = deviations
    normalisation = {"pixel_mean": mean, "pixel_std": (red / scale, green / scale, blue / scale)}
    return replace(settings, **normalisation)  # type: ignore[type-var]


def _numbers(values: Any, count: int, name: str, path: Path, above: float = -math.inf) -> list[float]:
    fits = isinstance(values, list | tuple) and len(values) == count and all(isinstance(v, int | float) for v in values)
    if not fits or not all(math.isfinite(value) and value > above for value in values):
        raise CheckpointError(
            f"{path}: {name} is {values!r}; expected {count} finite numbers" + (" above 0" if above == 0 else "")
        )
    return [float(value) for value in values]


def _json(path: Path) -> dict[str, Any]:
    expected = "a json object in a folder as transformers' save_pretrained writes it"
    return read_json_object(path, f"{expected}, or the path of a .pth, .pkl or .safetensors file", CheckpointError)
