"""TensorRT's warnings: each is an error unless it is listed here with its reason.

TensorRT builds broken engines with no more than a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from visrt.runtime.tensorrt_library import Flavour
from visrt.runtime.tensorrt_log import Line

__all__ = ["ACCEPTED", "Accepted", "sorted_out"]


@dataclass(frozen=True)
class Accepted:
    """A warning that is let pass. pattern: what the whole of its text matches."""

    pattern: str
    reason: str
    flavours: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


ACCEPTED = (
    Accepted(
        r".*The logger passed into createInferBuilder differs from one already registered.*",
        "another library in this process uses TensorRT too; the builder tells us of our builds all the same",
    ),
    Accepted(
        r"\(foreignNode\) Converting conv (activation|weight) scales to fp32\.",
        "a scale of explicit quantisation goes from float16 to float32, which changes no value",
        ("tensorrt-rtx",),
    ),
)


def sorted_out(lines: Iterable[Line], flavour: Flavour) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was said, each text once: warnings that are listed, and everything else."""
    accepted: dict[str, None] = {}
    refused: dict[str, None] = {}
    for line in lines:
        listed = line.severity == "WARNING" and _listed(line.text, flavour)
        (accepted if listed else refused)[line.text] = None
    return tuple(accepted), tuple(refused)


def _listed(text: str, flavour: Flavour) -> bool:
    return any(flavour in known.flavours and re.fullmatch(known.pattern, text) for known in ACCEPTED)
