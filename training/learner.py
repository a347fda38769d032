"""The interface between the training loop and a family: where its network starts, its losses on a batch, its
quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from visrt.training.batches import Batch

__all__ = ["Learner", "Trained"]


class Trained(nn.Module):
    """A `network` in training; `forward` returns everything that the losses need.

    DistributedDataParallel only follows `forward`, hence a module of its own around the network. The network has
    `settings`, which its checkpoint keeps. start_report: lines that say which weights were taken from a file. step: how
    many steps are done, which the loop sets, for what changes while a network is trained.
    """

    network: nn.Module
    step: int = 0
    start_report: tuple[str, ...] = ()

    def freeze(self, prefix: str) -> None:
        """Leave the parameters of the network under `prefix` as they are: no loss reaches them."""
        for name, parameter in self.network.named_parameters():
            if name.startswith(prefix):
                parameter.requires_grad_(False)


class Learner(Protocol):
    """One run's settings as its family understands them. qualities: the names that `quality` measures."""

    qualities: tuple[str, ...]

    def start(self) -> Trained:
        """A fresh network with the weights that the settings name; what no loss reaches is frozen."""
        ...

    def counts(self, batch: Batch) -> list[float]:
        """The objects that sums of losses are divided by, of `batch` alone; as many numbers for every batch."""
        ...

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        """Weighted losses by name; `trained` is what `start` gave, perhaps wrapped for several processes.

        `counts`: those of the whole step, over all processes, times this batch's share of its clips. So the mean over
        batches, weighted by their clips, is the loss of one batch of all clips. Every parameter in training gets a
        gradient, also from a batch without objects.
        """
        ...

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """The quality of `network` on held-out clips, 0..1 by name."""
        ...
