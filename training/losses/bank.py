"""The memory bank of CTVIS in training (Ying et al., ICCV 2023): what is remembered of one object of a clip.

Gradients flow through the bank: the frames of a clip go through the network together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BankSettings", "Remembered", "history", "remember"]


@dataclass(frozen=True)
class BankSettings:
    """The update of an object's average embedding e with its embedding v of the frame: e <- (1 - b) e + b v.

    average: "similarity_guided": b = max(0, mean cosine of v and the embeddings seen before), as published;
    "constant": b = `share`; "latest": b = 1, nothing is averaged.
    guides: b looks at so many of the embeddings seen last; None is all of them, as released for training, while the
    released tracker looks at 10.
    """

    average: Literal["similarity_guided", "constant", "latest"] = "similarity_guided"
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    guides: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class Remembered:
    """The memory of an object: its embeddings so far, `seen` [n, C], oldest first, and their `average` [C]."""

    seen: Tensor
    average: Tensor

    @property
    def latest(self) -> Tensor:
        return self.seen[-1]


def remember(known: Remembered | None, embedding: Tensor, settings: BankSettings) -> Remembered:
    """The memory after `embedding` [C] was seen; `known` is None before an object's first."""
    if known is None:
        return Remembered(embedding[None], embedding)
    share = SHARES[settings.average](known, embedding, settings)
    average = (1 - share) * known.average + share * embedding
    return Remembered(torch.cat((known.seen, embedding[None])), average)


def history(track: Sequence[Tensor | None], settings: BankSettings) -> tuple[Remembered | None, ...]:
    """The memory after each frame of `track`, one object's embeddings [C], None where it is absent."""
    known: Remembered | None = None
    states = []
    for embedding in track:
        known = known if embedding is None else remember(known, embedding, settings)
        states.append(known)
    return tuple(states)


def _similarity_guided(known: Remembered, embedding: Tensor, settings: BankSettings) -> Tensor:
    guides = known.seen if settings.guides is None else known.seen[-settings.guides :]
    return F.cosine_similarity(guides, embedding[None], dim=1).mean().clamp(min=0)


def _constant(known: Remembered, embedding: Tensor, settings: BankSettings) -> Tensor:
    return embedding.new_tensor(settings.share)


def _latest(known: Remembered, embedding: Tensor, settings: BankSettings) -> Tensor:
    return embedding.new_tensor(1.0)


SHARES: dict[str, Callable[[Remembered, Tensor, BankSettings], Tensor]] = {
    "similarity_guided": _similarity_guided,
    "constant": _constant,
    "latest": _latest,
}
