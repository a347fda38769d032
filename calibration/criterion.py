"""What association settings are chosen by: one number for what was found and for what went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from visrt.runtime.errors import UsageError

__all__ = ["Counts", "Criterion"]


class Counts(Protocol):
    """Counts over the frames of labelled videos.

    gt: objects in sight, summed over frames; tp: of these, reported. duplicates: reports of an object beyond the
    first; fp: of nothing that is labelled. id_switches, lost_ids: objects whose id changed from one frame to the next,
    and over a gap.
    """

    @property
    def gt(self) -> int: ...
    @property
    def tp(self) -> int: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def fp(self) -> int: ...
    @property
    def id_switches(self) -> int: ...
    @property
    def lost_ids(self) -> int: ...


@dataclass(frozen=True)
class Criterion:
    """True positives, less a price for each fault, as a share of the ground truth; 1 is perfect.

    With all prices at 1 this is MOTA (Bernardin and Stiefelhagen, 2008), ids lost over a gap counted as switches.
    Prices are in missed objects. spurious is 0 where not every object is labelled.
    """

    duplicate: float = 1.0
    spurious: float = 1.0
    changed_id: float = 1.0

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if not 0 <= price < float("inf"):
                raise UsageError(f"price {name} is {price}; expected 0 or more, in missed objects")

    def of(self, counts: Counts) -> float:
        """NaN where there is no ground truth."""
        faults = self.duplicate * counts.duplicates + self.spurious * counts.fp
        faults += self.changed_id * (counts.id_switches + counts.lost_ids)
        return (counts.tp - faults) / counts.gt if counts.gt else float("nan")
