"""The results for the user: a `FrameResult` per frame, with one id, one label and one score for each visible object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import UsageError, install_hint
from visrt.runtime.masks import Rle, decode

__all__ = ["FrameResult", "MakeResult", "SessionEvents", "Shown", "TrackedObject", "labels_of"]


@dataclass(frozen=True)
class TrackedObject:
    """One visible object of one frame.

    id: given at birth, never reused within a stream. label: index into the bundle's classes. score: causal, 0..1.
    box: x, y, width, height in pixels of the source frame, tight around the mask. rle: COCO compressed RLE, None from a
    bundle whose network gives boxes alone. name: of the class, where a session gives the result.
    """

    id: int
    label: int
    score: float
    box: tuple[int, int, int, int]
    rle: Rle | None
    name: str = field(default="", compare=False)

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """The box as its edges: left, top, right, bottom in pixels, right and bottom just outside."""
        x, y, width, height = self.box
        return x, y, x + width, y + height

    def mask(self) -> NDArray[np.bool_]:
        """The mask [H, W] at the size of the source frame. Raises UsageError where there are boxes alone."""
        if self.rle is None:
            raise UsageError("an object has no mask: this bundle's network gives boxes alone; use the object's box")
        return decode(self.rle)


@dataclass(frozen=True)
class FrameResult:
    """The visible objects of frame `index` at `time_s` seconds; `size` is the source frame's (height, width).

    image: the frame [H, W, 3], uint8 RGB, from `visrt.track`; elsewhere None. The arrays have a row for each of the N
    `objects`, in their order.
    """

    index: int
    time_s: float
    size: tuple[int, int]
    objects: tuple[TrackedObject, ...]
    image: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[N]."""
        return np.array([one.id for one in self.objects], dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N], indices into the bundle's classes."""
        return np.array([one.label for one in self.objects], dtype=np.int64)

    @property
    def scores(self) -> NDArray[np.float32]:
        """[N], 0..1."""
        return np.array([one.score for one in self.objects], dtype=np.float32)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[N, 4]: left, top, right, bottom in pixels."""
        return np.array([one.xyxy for one in self.objects], dtype=np.float32).reshape(-1, 4)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """[N, H, W] at the size of the frame. Raises UsageError where there are boxes alone."""
        masks = [one.mask() for one in self.objects]
        return np.stack(masks) if masks else np.zeros((0, *self.size), dtype=bool)

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`, with ids, class names and, where there are any, masks.

        Raises VisrtError where the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UsageError(
                f"to_supervision needs the package supervision, which is not installed; run "
                f"{install_hint('supervision')}"
            ) from None
        has_masks = all(one.rle is not None for one in self.objects) and bool(self.objects)
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks if has_masks else None,
            confidence=self.scores,
            class_id=self.labels,
            tracker_id=self.ids,
            data={"class_name": np.array([one.name for one in self.objects], dtype=str)},
        )


@dataclass(frozen=True)
class Shown:
    """Which objects are shown, and what their classes are called.

    classes: the bundle's names. labels: those that are shown, None for all. score: the least that is shown.
    """

    classes: tuple[str, ...]
    labels: frozenset[int] | None = None
    score: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise UsageError(f"score is {self.score}; expected 0 to 1")

    def of(self, result: FrameResult) -> FrameResult:
        """`result` with the objects that are shown, each with the name of its class."""
        objects = []
        for one in result.objects:
            if one.score >= self.score and (self.labels is None or one.label in self.labels):
                objects.append(replace(one, name=self.classes[one.label]))
        return replace(result, objects=tuple(objects))


def labels_of(classes: Sequence[str], chosen: str | Sequence[str] | None) -> frozenset[int] | None:
    """The labels of the classes `chosen`, names or one text with commas between; None for all.

    Raises UsageError that names every one the bundle lacks, with the nearest it has.
    """
    if chosen is None:
        return None
    names = [name.strip() for name in (chosen.split(",") if isinstance(chosen, str) else chosen)]
    unknown = [name for name in names if name not in classes]
    if unknown or not names:
        hints = [f"{name!r}{_nearest(name, classes)}" for name in unknown] or ["no name was given"]
        known = ", ".join(classes[:KNOWN_SHOWN]) + (
            f" and {len(classes) - KNOWN_SHOWN} more" * (len(classes) > KNOWN_SHOWN)
        )
        raise UsageError(f"classes that the bundle lacks: {'; '.join(hints)}. It has {known}")
    return frozenset(classes.index(name) for name in names)


KNOWN_SHOWN = 20


def _nearest(name: str, classes: Sequence[str]) -> str:
    lower = {one.lower(): one for one in reversed(classes)}
    near = difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(lower[one] for one in near)})" if near else ""


MakeResult = Callable[[], FrameResult]
"""Makes the result of a frame from its tracks, whose masks it resizes and encodes. From any thread."""


@dataclass(frozen=True)
class SessionEvents:
    """Counts of what happened to the stream.

    frames: taken in. size_changes: frames of another size than the one before. restarts: of these, the ones whose
    aspect differs, so that all objects were lost. cuts: scenes that the caller or a cut detector ended. bad_frames: the
    network gave NaN or infinity, so the frame has no objects. zero_queries: queries whose embedding was zero; such a
    one takes no part in its frame. dropped_slots: slots of a clip for which the network gave NaN or infinity; which
    then restarts. time_jumps: times that did not lie after the last one; after a step back of more than a second the
    stream's clock goes on from there.
    """

    frames: int = 0
    size_changes: int = 0
    restarts: int = 0
    cuts: int = 0
    bad_frames: int = 0
    zero_queries: int = 0
    dropped_slots: int = 0
    time_jumps: int = 0
