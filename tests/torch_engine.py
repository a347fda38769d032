"""A torch module as an engine, so that a network is run by the runtime before it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from visrt.runtime.arrays import Feed, HostTensor, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import HostEngine


@dataclass
class TorchEngine(HostEngine):
    """`module` takes the graph's inputs in their order and returns its outputs in theirs."""

    spec: GraphSpec
    module: nn.Module
    provider: str = "torch"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self.spec, feeds)
        arrays = [tensor if isinstance(tensor, np.ndarray) else tensor.numpy() for tensor in feeds.values()]
        with torch.no_grad():
            answer = self.module(*(torch.from_numpy(array) for array in arrays))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return {role: HostTensor(t.numpy()) for role, t in zip(self.spec.outputs, outputs, strict=True)}

    def close(self) -> None: ...
