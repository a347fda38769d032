"""The class names of a network: those its checkpoint holds or those its user gives, one for each class."""

from __future__ import annotations

from typing import Any

from visrt.models.checkpoints.checkpoint import Checkpoint
from visrt.models.checkpoints.published import DATASET_CLASSES
from visrt.runtime.errors import CheckpointError, UsageError

__all__ = ["chosen_classes"]


def chosen_classes(given: tuple[str, ...] | None, checkpoint: Checkpoint[Any, Any]) -> tuple[str, ...]:
    """`given`, or else the names that `checkpoint` holds."""
    path, count = checkpoint.path, checkpoint.settings.classes
    classes = checkpoint.classes if given is None else given
    if classes is None and checkpoint.classes_fault:
        raise CheckpointError(
            f"{checkpoint.classes_fault}; name the classes in the order of the class logits with --classes"
        )
    if classes is None:
        fitting = [name for name, names in DATASET_CLASSES.items() if len(names) == count]
        hint = f", as --classes {' or '.join(fitting)} if it was trained on that" if fitting else ""
        raise UsageError(f"{path}: holds no class names; name its {count} classes with --classes{hint}")
    if len(classes) != count:
        raise CheckpointError(
            f"{path}: the network has {count} classes but {len(classes)} names were given; give the class names of the "
            "data set it was trained on"
        )
    if len(set(classes)) != len(classes) or not all(classes):
        repeated = ", ".join(dict.fromkeys(name for name in classes if classes.count(name) > 1 or not name))
        raise UsageError(
            f"{path}: class names {repeated!r}: expected names that are not empty and differ; give others as --classes"
        )
    return classes
