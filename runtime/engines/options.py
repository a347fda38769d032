"""Options for opening the engines of a bundle, the same for every backend."""

from __future__ import annotations

import os
from dataclasses import dataclass

from visrt.runtime.errors import UsageError

__all__ = ["EngineOptions", "usable_cores"]


@dataclass(frozen=True)
class EngineOptions:
    """threads: of one operator on the CPU; None takes all cores. device: number of the GPU, as CUDA counts those that
    CUDA_VISIBLE_DEVICES shows it. batch: the most frames of one call, which TensorRT engines are built for.
    clip_frames: of one stream, for a family that looks at clips."""

    threads: int | None = None
    device: int = 0
    batch: int = 1
    clip_frames: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.device < 0:
            raise UsageError(f"{self}: expected a batch of 1 or more and a device of 0 or more")


def usable_cores() -> int:
    """Cores this process may run on, which on a shared machine are fewer than it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
