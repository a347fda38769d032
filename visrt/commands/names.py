"""Reads options of `visrt export` and `visrt convert`: sizes, class names, clip lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrt.models.checkpoints.published import DATASET_CLASSES
from visrt.runtime.errors import SettingsError, UsageError
from visrt.runtime.json_file import read_json

__all__ = ["class_names", "size_from_text", "with_clip_lengths"]


def size_from_text(text: str) -> tuple[int, int]:
    """(height, width) from "192x320"."""
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if not found:
        raise UsageError(f"size {text!r} is not understood; expected height x width in pixels, as 192x320")
    return int(found[1]), int(found[2])


def with_clip_lengths(association: Mapping[str, Any], text: str | None) -> dict[str, Any]:
    """Association settings with the frames of clips from "1,3,7", the first for a start; without text as they are."""
    if text is None:
        return dict(association)
    if not re.fullmatch(r"[1-9]\d{0,3}(\s*,\s*[1-9]\d{0,3})*", text.strip()):
        raise UsageError(f"clip lengths {text!r} are not understood; expected numbers of frames with commas, as 1,3,7")
    lengths = tuple(int(part) for part in text.split(","))
    if len(set(lengths)) != len(lengths):
        raise UsageError(f"clip lengths {text!r}: expected each length once")
    return {"clip_frames": lengths[0], **association, "clip_lengths": lengths}


def class_names(text: str) -> tuple[str, ...]:
    """Class names from a json file (a list, or annotations), the name of a data set, or names with commas between."""
    if text in DATASET_CLASSES:
        return DATASET_CLASSES[text]
    if text.endswith(".json"):
        return _names_in(Path(text))
    return tuple(name.strip() for name in text.split(","))


NAMES_EXPECTED = "a json list of class names in the order of the class logits, or an annotation file with categories"


def _names_in(path: Path) -> tuple[str, ...]:
    """A list of names, or the categories of a COCO or YouTube-VIS annotation file in the order of their ids."""
    from visrt.training.data.annotation_files import categories_in

    names = read_json(path, NAMES_EXPECTED, SettingsError)
    if isinstance(names, dict) and "categories" in names:
        listed, label_of = categories_in(path, names)
        return tuple(listed[label] for _, label in sorted(label_of.items()))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{path}: expected {NAMES_EXPECTED}")
    return tuple(names)
