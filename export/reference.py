"""Torch's outputs on the reference frames, and the choice of frames that parity is judged on.

Masked attention is discontinuous where a mask logit is 0: a last-bit difference can flip a pixel of an attention mask
and move a query visibly, in torch as well as in any engine. So frames on which torch's own queries stay
where they are under a little noise are preferred to those on which they move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visrt.export.contract import producer
from visrt.export.families import read_for
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import CheckpointError
from visrt.runtime.parity.agreement import packed_masks, shape_role
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.reference import ROLES, Reference, reference_from_outputs
from visrt.runtime.parity.tolerances import TOLERANCE, TOLERANCES, errors_of_items, is_by_query, scale_of

__all__ = ["NOISE", "Steadiness", "TorchModel", "reference_from_checkpoint", "reference_of", "reference_on"]

NOISE = 1e-5
"""Relative noise on the normalised input. It moves mask features about as much as another engine's rounding does."""

NOISE_DRAWS = 2
STEADY_SHARE = 0.5
"""A steady query moves by less than this share of the tolerance, so that the rest is left for the engine."""

JUDGED_BY = (*(role for role in ROLES if is_by_query(role)), "box_logits")

Expected = dict[str, Array]


@dataclass(frozen=True)
class Steadiness:
    """Number of its `queries` that noise moves in torch itself on frame `index`."""

    index: int
    moved: int
    queries: int


class TorchModel(Protocol):
    """A network in torch whose outputs a bundle's engines must repeat."""

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """Network input [B, 3, H, W] of `images`, the frame graph's input."""
        ...

    def full_outputs(self, pixels: Tensor) -> Expected:
        """All roles of one frame, without the batch axis; `pixels` [1, 3, H, W]."""
        ...


def reference_of(graph: TorchModel, candidates: Frames, count: int) -> tuple[Reference, list[Steadiness]]:
    """Torch's outputs on `count` frames of `candidates`, and how steady each of them is.

    Takes the first frames without a query that moves; if there are too few, then those where the fewest move. Raises
    CheckpointError if the network gives NaN or infinity.
    """
    looked: list[tuple[Expected, Steadiness]] = []
    for i in range(len(candidates)):
        looked.append(_examined(graph, candidates, i))
        if sum(frame.moved == 0 for _, frame in looked) == count:
            break
    steadiest = sorted(looked, key=lambda outcome: outcome[1].moved)[:count]
    kept = sorted(steadiest, key=lambda outcome: outcome[1].index)
    frames = candidates.take([frame.index for _, frame in kept])
    stacked = {role: np.stack([expected[role] for expected, _ in kept]) for role in kept[0][0]}
    steadiness = [frame for _, frame in kept]
    reference = Reference(
        images=frames.images,
        valid_sizes=frames.valid_sizes,
        expected=stacked,
        moved_share=_moved_share(steadiness),
        masks=packed_masks(stacked[shape_role(stacked)]),
    )
    return reference, steadiness


def reference_on(graph: TorchModel, frames: Frames) -> Reference:
    """Torch's outputs on each of `frames`, steady or not, with maps sampled; whole outputs are held one at a time."""
    steadiness: list[Steadiness] = []

    def outputs() -> Iterator[Expected]:
        for i in range(len(frames)):
            expected, steady = _examined(graph, frames, i)
            steadiness.append(steady)
            yield expected

    reference = reference_from_outputs(frames.images, frames.valid_sizes, outputs())
    return replace(reference, moved_share=_moved_share(steadiness))


def reference_from_checkpoint(
    path: Path, manifest: Manifest, images: NDArray[np.uint8], valid_sizes: NDArray[np.int32]
) -> Reference:
    """Torch's float32 outputs from the checkpoint at `path` on `images` [T, H, W, 3], the frame graph's input.

    Raises CheckpointError if the bundle of `manifest` was not exported from that very file: a difference from another
    network's outputs would mean nothing.
    """
    model = read_for(manifest.family, path, manifest.input, manifest.association)
    made = manifest.producer
    given = producer(path).checkpoint_sha256
    if given != made.checkpoint_sha256:
        raise CheckpointError(
            f"{path}: sha256 {given[:12]}; bundle {manifest.name!r} was exported from {made.checkpoint}, sha256 "
            f"{made.checkpoint_sha256[:12]}: give that file, or export this one"
        )
    return reference_on(model, Frames(images, valid_sizes))


def _moved_share(steadiness: list[Steadiness]) -> float:
    return sum(frame.moved for frame in steadiness) / sum(frame.queries for frame in steadiness)


@torch.no_grad()
def _examined(graph: TorchModel, frames: Frames, index: int) -> tuple[Expected, Steadiness]:
    """Torch's outputs on frame `index`, and the number of queries that noise moves."""
    images = torch.from_numpy(frames.images[index : index + 1])
    pixels = graph.normalised(images, torch.from_numpy(frames.valid_sizes[index : index + 1]))
    expected = graph.full_outputs(pixels)
    _refuse_nonfinite(expected)
    random = torch.Generator().manual_seed(index)
    moved = np.zeros(len(expected["class_logits"]), dtype=bool)
    for _ in range(NOISE_DRAWS):
        noisy = graph.full_outputs(pixels * (1 + NOISE * torch.randn(pixels.shape, generator=random)))
        for role in (role for role in JUDGED_BY if role in expected):
            errors = errors_of_items(role, noisy[role][None], expected[role][None])
            moved |= errors > STEADY_SHARE * TOLERANCES.get(role, TOLERANCE) * scale_of(expected[role])
    return expected, Steadiness(index, int(moved.sum()), len(moved))


def _refuse_nonfinite(outputs: Expected) -> None:
    for role, values in outputs.items():
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"the network gives NaN or infinity in {role} on a reference frame; the weights are damaged or "
                "training diverged: export an earlier checkpoint"
            )
