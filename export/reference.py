"""What torch computes on the reference frames, and which frames are fit to judge by.

Masked attention is discontinuous where a mask logit is 0: a last-bit difference can flip a pixel of an attention mask
and move a query visibly, in torch as well as in any engine. So torch is asked first: a frame on which torch itself
moves under input noise of one part in a million says nothing about an export, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visrt.export.frames import Frames
from visrt.export.graphs import FrameGraph, FrameTensors, MasksGraph
from visrt.runtime.engine import Array
from visrt.runtime.errors import CheckpointError, ParityError
from visrt.runtime.reference import ROLES, Reference
from visrt.runtime.verify import TOLERANCES, scaled_error

__all__ = ["Steadiness", "reference_of"]

NOISE = 1e-6
NOISE_DRAWS = 2
STEADY_SHARE = 0.25
"""A steady frame moves by less than this share of the tolerance, so that most of it is left for the engine."""

Expected = dict[str, Array]


@dataclass(frozen=True)
class Steadiness:
    """How far torch itself moves on frame `index` under input noise of 1e-6, as a share of the tolerance."""

    index: int
    moved: float
    role: str

    @property
    def steady(self) -> bool:
        return self.moved <= STEADY_SHARE


def reference_of(graph: FrameGraph, candidates: Frames, wanted: int) -> tuple[Reference, list[Steadiness]]:
    """Torch's outputs on the first `wanted` steady frames, and how steady every frame was that was looked at.

    Raises CheckpointError if the network gives NaN or infinity, ParityError if no frame is steady.
    """
    outcomes: list[Expected] = []
    looked: list[Steadiness] = []
    for i in range(len(candidates)):
        expected, steadiness = _examined(graph, candidates, i)
        looked.append(steadiness)
        if steadiness.steady:
            outcomes.append(expected)
        if len(outcomes) == wanted:
            break
    if not outcomes:
        least = min(looked, key=lambda frame: frame.moved)
        raise ParityError(
            f"none of {len(looked)} reference frames is steady: under input noise of {NOISE:.0e} torch itself moves by "
            f"{least.moved:.2g} of the tolerance or more ({least.role}); give frames like those it was trained on with "
            "--reference"
        )
    kept = candidates.take([frame.index for frame in looked if frame.steady])
    stacked = {role: np.stack([outcome[role] for outcome in outcomes]) for role in ROLES}
    return Reference(kept.images, kept.valid_sizes, stacked), looked


@torch.no_grad()
def _examined(graph: FrameGraph, frames: Frames, index: int) -> tuple[Expected, Steadiness]:
    """What torch computes on frame `index`, and how far that moves under noise."""
    images = torch.from_numpy(frames.images[index : index + 1])
    pixels = graph.normalised(images, torch.from_numpy(frames.valid_sizes[index : index + 1]))
    expected = _arrays(graph.network(pixels))
    _refuse_nonfinite(expected)
    random = torch.Generator().manual_seed(index)
    moved = {role: 0.0 for role in ROLES}
    for _ in range(NOISE_DRAWS):
        noisy = _arrays(graph.network(pixels * (1 + NOISE * torch.randn(pixels.shape, generator=random))))
        for role in ROLES:
            share = scaled_error(noisy[role], expected[role])[1] / TOLERANCES[role]
            moved[role] = max(moved[role], share)
    worst = max(moved, key=lambda role: moved[role])
    return expected, Steadiness(index, moved[worst], worst)


def _arrays(outputs: FrameTensors) -> Expected:
    """One frame's outputs by role, without the batch axis, with the mask logits [Q, H/4, W/4] of all queries."""
    tensors: dict[str, Tensor] = {role: getattr(outputs, role)[0] for role in FrameTensors._fields}
    tensors["mask_logits"] = MasksGraph()(tensors["mask_embeddings"], tensors["mask_features"])
    return {role: tensor.numpy() for role, tensor in tensors.items()}


def _refuse_nonfinite(outputs: Expected) -> None:
    for role, values in outputs.items():
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"the network gives NaN or infinity in {role} on a reference frame; the weights are damaged or "
                "training diverged: export an earlier checkpoint"
            )
