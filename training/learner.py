"""What the training loop leaves to a family: where its network starts, what it loses on a batch, how well it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from visrt.training.batches import Batch

__all__ = ["Learner", "Mean", "Trained"]

Mean = Callable[[float], float]
"""A count of this process to its mean over all processes, at least 1: what sums of losses are divided by."""


class Trained(nn.Module):
    """What is trained: a `network`, and in `forward` everything of it that the losses ask for.

    DistributedDataParallel only follows `forward`, hence a module of its own around the network.
    """

    network: nn.Module


class Learner(Protocol):
    """One run's settings as its family understands them."""

    def start(self) -> Trained:
        """A fresh network with the weights that the settings name."""
        ...

    def losses(self, trained: nn.Module, batch: Batch, mean: Mean) -> dict[str, Tensor]:
        """Weighted losses by name; `trained` is what `start` gave, perhaps wrapped for several processes."""
        ...

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """How well `network` does on held-out clips, 0..1 by name."""
        ...

    def save(self, network: nn.Module, path: Path, classes: Sequence[str], notes: Mapping[str, str]) -> None:
        """Write the checkpoint that `visrt export` takes."""
        ...
