"""The interface between the training loop and a family: where its network starts, its losses on a batch, its
quality."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from visrt.training.batches import Batch
from visrt.training.losses.mask2former import Mean

__all__ = ["Learner", "Trained"]


class Trained(nn.Module):
    """A `network` in training; `forward` returns everything that the losses need.

    DistributedDataParallel only follows `forward`, hence a module of its own around the network. The network has
    `settings`, which its checkpoint keeps. start_report: lines that say which weights were taken from a file.
    """

    network: nn.Module
    start_report: tuple[str, ...] = ()


class Learner(Protocol):
    """One run's settings as its family understands them."""

    def start(self) -> Trained:
        """A fresh network with the weights that the settings name."""
        ...

    def losses(self, trained: nn.Module, batch: Batch, mean: Mean) -> dict[str, Tensor]:
        """Weighted losses by name; `trained` is what `start` gave, perhaps wrapped for several processes."""
        ...

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """The quality of `network` on held-out clips, 0..1 by name."""
        ...
