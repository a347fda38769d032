"""CTVIS's training of embeddings (Ying et al., ICCV 2023): an object's embedding is compared with what a tracker would
remember by then, over clips of 8 to 10 frames.

The defaults are the released code's, which differs from the paper; `CONTRASTS` names the variants of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from visrt.training.losses.bank import BankSettings, Remembered, history
from visrt.training.losses.targets import Matches

__all__ = [
    "CONTRASTS",
    "ContrastName",
    "ContrastSettings",
    "Item",
    "clip_tracks",
    "contrastive_items",
    "contrastive_losses",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
ABSENT = -1


@dataclass(frozen=True)
class ContrastSettings:
    """The items of a clip, each an anchor, a positive and negatives, and the weights of the two losses over them.

    momentum_positives: share of the items whose positive is the bank's average; the others have the latest embedding.
    unseen: an object not seen before has its first "future" embedding for a positive, or "none", and gives no item.
    negatives: of an object's item in frame t: "previous_frame": all other queries of frame t - 1, all queries if it is
    absent there; "bank": the averages of the other objects (major) and background (supplementary); "background": the
    latter alone. background: at most so many queries that found no object, drawn at random; background_from: the
    "previous" frame alone, the paper's local negatives, or "all" frames before t, its global ones.
    noise: chance that an absent object gets the embedding of a random query of that frame, in the bank and as an
    anchor: a tracker errs too. The release has 0.001, switched off.
    """

    reid_weight: float = 2.0
    aux_weight: float = 3.0
    bank: BankSettings = field(default_factory=BankSettings)
    momentum_positives: Fraction = 0.5
    unseen: Literal["future", "none"] = "future"
    negatives: Literal["previous_frame", "bank", "background"] = "previous_frame"
    background: Annotated[int, Field(ge=0)] = 20
    background_from: Literal["previous", "all"] = "previous"
    noise: Fraction = 0.0


NOISE = 0.001
RELEASED = ContrastSettings()
PAPER = ContrastSettings(aux_weight=0.0, momentum_positives=1.0, unseen="none", negatives="bank", noise=NOISE)

ContrastName = Literal[
    "released",
    "paper",
    "supplementary_only",
    "major_only",
    "global_negatives",
    "noise",
    "momentum_positives",
    "latest_positives",
    "constant_momentum",
    "tracker_bank",
    "bank_negatives",
]

CONTRASTS: Mapping[ContrastName, ContrastSettings] = MappingProxyType(
    {
        "released": RELEASED,
        "paper": PAPER,
        "supplementary_only": replace(PAPER, negatives="background"),
        "major_only": replace(PAPER, background=0),
        "global_negatives": replace(PAPER, background_from="all"),
        "noise": replace(RELEASED, noise=NOISE),
        "momentum_positives": replace(RELEASED, momentum_positives=1.0),
        "latest_positives": replace(RELEASED, momentum_positives=0.0),
        "constant_momentum": replace(RELEASED, bank=BankSettings(average="constant")),
        "tracker_bank": replace(RELEASED, bank=BankSettings(guides=10)),
        "bank_negatives": replace(RELEASED, negatives="bank", background_from="all"),
    }
)
"""By name. "paper" follows the paper's text where it is explicit, with the release's chance of noise. Its negatives are
the last row of table 4, local; the three names after it are the other rows, supplementary only without major ones,
major only, and global. The names after these change one thing of the release."""


@dataclass(frozen=True)
class Item:
    """anchor [C] should be like positive [C] and unlike negatives [M, C]."""

    anchor: Tensor
    positive: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class Track:
    """One object through a clip: its query of each frame or ABSENT, its embedding [C] or None, and what the bank knows
    after each frame.
    """

    queries: tuple[int, ...]
    embeddings: tuple[Tensor | None, ...]
    known: tuple[Remembered | None, ...]


def contrastive_losses(items: Sequence[Item], nothing: Tensor) -> tuple[Tensor, Tensor]:
    """The contrastive and the auxiliary loss, averaged over `items`; `nothing`: a zero to give where there are none.

    With v the anchor: log(1 + sum exp(v.k- - v.k+)), raw dot products; and the mean of (cosine - label)^2, label 1 for
    the positive and 0 for negatives.
    """
    if not items:
        return nothing, nothing
    reid = torch.stack([_reid(item) for item in items]).mean()
    return reid, torch.stack([_aux(item) for item in items]).mean()


def _reid(item: Item) -> Tensor:
    # Products and sums, which mixed precision leaves in float32: raw dot products may exceed float16.
    margins = ((item.negatives - item.positive) * item.anchor).sum(1)
    return torch.logsumexp(F.pad(margins, (1, 0)), dim=0)


def _aux(item: Item) -> Tensor:
    cosines = F.cosine_similarity(torch.cat((item.positive[None], item.negatives)), item.anchor[None], dim=1)
    labels = F.pad(torch.ones_like(cosines[:1]), (0, len(cosines) - 1))
    return ((cosines - labels) ** 2).mean()


def clip_tracks(frames: Tensor, matches: Sequence[Matches], settings: ContrastSettings) -> list[Track]:
    """The objects of a clip; `frames` [T, Q, C] are all embeddings, `matches` name each frame's objects by id."""
    queries: dict[int, list[int]] = {}
    for t, pairs in enumerate(matches):
        for query, identity in zip(pairs.queries.tolist(), pairs.objects.tolist(), strict=True):
            queries.setdefault(identity, [ABSENT] * len(matches))[t] = query
    return [_track(frames, tuple(queries[identity]), settings) for identity in sorted(queries)]


def _track(frames: Tensor, queries: tuple[int, ...], settings: ContrastSettings) -> Track:
    embeddings = tuple(
        frame[query] if query != ABSENT else _noise(frame, settings.noise)
        for frame, query in zip(frames, queries, strict=True)
    )
    return Track(queries, embeddings, history(embeddings, settings.bank))


def _noise(frame: Tensor, chance: float) -> Tensor | None:
    """The embedding of a random query of `frame` [Q, C], or more likely nothing."""
    if float(torch.rand(())) >= chance:
        return None
    return frame[int(torch.randint(len(frame), ()))]


def contrastive_items(frames: Tensor, tracks: Sequence[Track], settings: ContrastSettings) -> list[Item]:
    """An item for each of `tracks` in each frame but the first; `frames` [T, Q, C] are all embeddings of the clip."""
    items = []
    for t in range(1, len(frames)):
        for track in tracks:
            anchor = track.embeddings[t]
            positive = None if anchor is None else _positive(track, t, settings)
            if anchor is not None and positive is not None:
                items.append(Item(anchor, positive, NEGATIVES[settings.negatives](frames, tracks, track, t, settings)))
    return items


def _positive(track: Track, t: int, settings: ContrastSettings) -> Tensor | None:
    """The embedding that the object of `track` should be similar to in frame `t`."""
    known = track.known[t - 1]
    if known is not None:
        return known.average if float(torch.rand(())) < settings.momentum_positives else known.latest
    if settings.unseen == "none":
        return None
    return next((embedding for embedding in track.embeddings[t + 1 :] if embedding is not None), None)


def _of_previous_frame(
    frames: Tensor, tracks: Sequence[Track], track: Track, t: int, settings: ContrastSettings
) -> Tensor:
    query = track.queries[t - 1]
    if query == ABSENT:
        return frames[t - 1]
    return torch.cat((frames[t - 1, :query], frames[t - 1, query + 1 :]))


def _of_bank(frames: Tensor, tracks: Sequence[Track], track: Track, t: int, settings: ContrastSettings) -> Tensor:
    others = [known.average for other in tracks if other is not track and (known := other.known[t - 1]) is not None]
    background = _of_background(frames, tracks, track, t, settings)
    return torch.cat((*(average[None] for average in others), background))


def _of_background(frames: Tensor, tracks: Sequence[Track], track: Track, t: int, settings: ContrastSettings) -> Tensor:
    first = t - 1 if settings.background_from == "previous" else 0
    free = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    free[:first], free[t:] = False, False
    for one in tracks:
        for s, query in enumerate(one.queries[:t]):
            if query != ABSENT:
                free[s, query] = False
    background = frames[free]
    return background[torch.randperm(len(background), device=frames.device)[: settings.background]]


Negatives = Callable[[Tensor, Sequence[Track], Track, int, ContrastSettings], Tensor]
NEGATIVES: dict[str, Negatives] = {
    "previous_frame": _of_previous_frame,
    "bank": _of_bank,
    "background": _of_background,
}
