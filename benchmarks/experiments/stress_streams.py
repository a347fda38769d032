"""Synthetic streams of queries with known owners, to break identities on purpose; no network, no pictures.

An object is a slowly turning direction, its appearance, and an ellipse on its way through the scene. Half hidden behind
another its embedding is half the other's, nearly hidden it is out of sight. One of the queries finds it, now and then
another takes over; the idle ones are background. All depends on a seed only; queries come in a new order every frame.

The defaults resemble what the shipped network shows on pseudo-videos of held-out pictures. Embeddings of an object in
successive frames are alike by 0.97, those of two objects by 0.42. In one frame of ten another query takes over; after
an absence, in one of three. In every second frame an object has a second query, less sure and alike by 0.78, which
stays for four frames or five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats
from visrt.runtime.methods.queries import Queries

__all__ = ["NOBODY", "StreamFrame", "StreamSettings", "make_stream"]

NOBODY = -1
CELLS = (36, 64)
"""Height and width of the masks."""

LEAST_VISIBLE = 0.25
TURNS = np.array([0.5, 1.0, 2.0])
"""Waves over the scene that tell a place, as a positional encoding does."""

Vectors = NDArray[np.float64]
Masks = NDArray[np.bool_]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class StreamSettings:
    """objects: in pairs. gap_frames: every second object is out of sight for so long, from about `before_frames` on;
    `after_frames` follow. 0: nobody is.

    likeness: cosine of what is individual in the appearances of a pair. meetings: the paths of a pair meet in the
    middle of the stream by "plan", or paths cross by "chance". drift: how far an appearance turns in a frame.
    kinship, place, trace: shares of the embedding that all objects have in common, that say where the object is, and
    that belong to the query that found it. noise: length of what is added to an embedding of length 1. length: of
    embeddings in the end.
    handover: probability that another query finds the object than in the frame before; handover_after_gap: than before
    it was out of sight. second_starts: that an object without a second query gets one; second_stays: that one with has
    it in the next frame too. aspect: length of what is peculiar to a second query. missed: that an object's score is
    too low to tell. false_alarms: a frame, on average; each is there for one frame only.
    """

    objects: int = 8
    gap_frames: int = 0
    before_frames: int = 12
    after_frames: int = 12
    likeness: float = 0.0
    meetings: Literal["plan", "chance"] = "chance"
    drift: float = 0.08
    kinship: float = 0.35
    place: float = 0.1
    trace: float = 0.1
    noise: float = 0.15
    length: float = 3.0
    handover: float = 0.1
    handover_after_gap: float = 0.35
    second_starts: float = 0.18
    second_stays: float = 0.78
    aspect: float = 0.55
    missed: float = 0.02
    false_alarms: float = 0.1
    queries: int = 50
    channels: int = 64
    classes: int = 3

    @property
    def frames(self) -> int:
        return self.before_frames + self.gap_frames + self.after_frames


@dataclass(frozen=True)
class StreamFrame:
    """One frame: its queries, whose mask embedding [1] is a row of `masks` [Q, h, w], and the object of each query
    [Q], or NOBODY. copies [Q]: it is the second query of its object. present [N]: which objects are in sight; away
    [N]: which are kept out of it by the script.
    """

    queries: Queries
    masks: Masks
    owners: Rows
    copies: NDArray[np.bool_]
    present: NDArray[np.bool_]
    away: NDArray[np.bool_]

    def mask_logits(self, mask_embeddings: Floats) -> Floats:
        """Logits [M, h, w] whose largest value tells the row, see `row_of`; mask_embeddings [M, 1]."""
        rows = mask_embeddings[:, 0].astype(np.intp)
        told = (rows + 1).astype(np.float32)[:, None, None]
        logits: Floats = np.where(self.masks[rows], told, np.float32(-1))
        return logits

    @staticmethod
    def row_of(mask_logits: Floats) -> int:
        """Which row of the masks the `mask_logits` [h, w] of a track are of."""
        return int(mask_logits.max()) - 1


@dataclass(frozen=True)
class _Objects:
    """centres [T, N, 2] and radii [N, 2] in shares of the scene; appearances [T, N, C] of length 1; labels [N];
    away [T, N]. Objects come front to back.
    """

    centres: Vectors
    radii: Vectors
    appearances: Vectors
    labels: Rows
    away: NDArray[np.bool_]


@dataclass(frozen=True)
class _Sight:
    """What shows of the objects in a frame: masks [N, h, w], the share of each [N] that is left, who hides most of it
    [N], and which are seen at all [N]."""

    masks: Masks
    share: Vectors
    hider: Rows
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class _Found:
    """Some queries of a frame: class logits [n, K + 1], embeddings [n, C], masks [n, h, w], owners [n]."""

    logits: Vectors
    embeddings: Vectors
    masks: Masks
    owners: Rows


@dataclass(frozen=True)
class _Seats:
    """The query that finds each object [N], and its second one [N], NOBODY where it has none."""

    first: Rows
    second: Rows


@dataclass(frozen=True)
class _Scene:
    """What a stream is made of. traces [Q, C]: of each query, what it says by itself. common [C]: of all objects.
    aspects [N, C]: of their second queries. waves [12, C]: of places.
    """

    settings: StreamSettings
    objects: _Objects
    traces: Vectors
    common: Vectors
    aspects: Vectors
    waves: Vectors


def make_stream(settings: StreamSettings, seed: int) -> list[StreamFrame]:
    rng = np.random.default_rng(seed)
    scene = _Scene(
        settings,
        _objects(settings, rng),
        traces=_directions((settings.queries, settings.channels), rng),
        common=_directions((settings.channels,), rng),
        aspects=_directions((settings.objects, settings.channels), rng),
        waves=rng.normal(size=(4 * len(TURNS), settings.channels)),
    )
    seats = _Seats(rng.permutation(settings.queries)[: settings.objects], np.full(settings.objects, NOBODY))
    stream = []
    seen_before = np.ones(settings.objects, dtype=bool)
    for t in range(settings.frames):
        sight = _sight(scene.objects, t)
        seats = _handed_over(seats, sight.present, seen_before, settings, rng)
        stream.append(_frame(scene, sight, seats, t, rng))
        seen_before = sight.present
    return stream


def _objects(settings: StreamSettings, rng: np.random.Generator) -> _Objects:
    count = settings.objects
    labels = np.repeat(rng.integers(settings.classes, size=(count + 1) // 2), 2)[:count]
    start = settings.before_frames + rng.integers(-3, 4, size=count)
    since = np.arange(settings.frames)[:, None] - start
    away = (since >= 0) & (since < settings.gap_frames) & (np.arange(count) % 2 == 0)
    radii = rng.uniform([0.05, 0.09], [0.09, 0.16], (count, 2))
    return _Objects(_centres(settings, rng), radii, _appearances(settings, rng), labels, away)


def _centres(settings: StreamSettings, rng: np.random.Generator) -> Vectors:
    """Straight paths [T, N, 2], thrown back at the borders; those of a pair meet half-way where that is planned."""
    places = rng.uniform(0.1, 0.9, (settings.objects, 2))
    velocities = rng.normal(0, 0.012, (settings.objects, 2))
    if settings.meetings == "plan":
        places[1::2] = places[0::2][: len(places[1::2])] + rng.normal(0, 0.01, places[1::2].shape)
    times = np.arange(settings.frames) - settings.frames / 2
    ways = places + times[:, None, None] * velocities - 0.1
    return np.asarray(0.1 + 0.8 * (1 - np.abs((ways / 0.8) % 2 - 1)))


def _appearances(settings: StreamSettings, rng: np.random.Generator) -> Vectors:
    """Directions [T, N, C] that turn slowly; those of a pair start as alike as the settings say."""
    now = _directions((settings.objects, settings.channels), rng)
    twins, others = now[0::2][: len(now[1::2])], now[1::2]
    now[1::2] = _unit(settings.likeness * twins + np.sqrt(1 - settings.likeness**2) * _across(others, twins))
    all_of_them = []
    for _ in range(settings.frames):
        all_of_them.append(now)
        now = _unit(now + settings.drift * _directions(now.shape, rng))
    return np.stack(all_of_them)


def _sight(objects: _Objects, t: int) -> _Sight:
    whole = _ellipses(objects.centres[t], objects.radii) & ~objects.away[t][:, None, None]
    left = whole & (np.cumsum(whole, axis=0) - whole == 0)
    share = left.sum(axis=(1, 2)) / np.maximum(whole.sum(axis=(1, 2)), 1)
    shared = np.tril(np.einsum("nhw,mhw->nm", whole.astype(float), whole.astype(float)), -1)
    hider = np.where(shared.any(axis=1), shared.argmax(axis=1), np.arange(len(whole)))
    return _Sight(left, share, hider, (share >= LEAST_VISIBLE) & ~objects.away[t])


def _handed_over(
    seats: _Seats,
    present: NDArray[np.bool_],
    seen_before: NDArray[np.bool_],
    settings: StreamSettings,
    rng: np.random.Generator,
) -> _Seats:
    """Who finds the objects now: mostly the same queries as before. One that takes over was idle."""
    first, second = seats.first.copy(), seats.second.copy()
    stays = rng.random(len(second)) < np.where(second == NOBODY, settings.second_starts, settings.second_stays)
    second[~(stays & present)] = NOBODY
    chance = np.where(seen_before, settings.handover, settings.handover_after_gap)
    moves = np.flatnonzero(present & (rng.random(len(first)) < chance))
    starts = np.flatnonzero(stays & present & (second == NOBODY))
    idle = rng.permutation(np.setdiff1d(np.arange(settings.queries), np.concatenate([first, second])))
    first[moves], second[starts] = idle[: len(moves)], idle[len(moves) : len(moves) + len(starts)]
    return _Seats(first, second)


def _frame(scene: _Scene, sight: _Sight, seats: _Seats, t: int, rng: np.random.Generator) -> StreamFrame:
    settings = scene.settings
    seen = np.flatnonzero(sight.present)
    twice = np.flatnonzero(seats.second != NOBODY)
    busy = np.concatenate([seats.first[seen], seats.second[twice]])
    idle = rng.permutation(np.setdiff1d(np.arange(settings.queries), busy))
    false, rest = np.split(idle, [min(int(rng.poisson(settings.false_alarms)), len(idle))])
    found = [
        _of_objects(scene, sight, seen, seats.first[seen], t, rng),
        _less_sure(scene, _of_objects(scene, sight, twice, seats.second[twice], t, rng), rng),
        _of_nothing(scene, false, rng),
        _background(scene, rest, rng),
    ]
    copies = np.repeat([False, True, False, False], [len(rows.owners) for rows in found])
    return _shuffled(found, copies, sight.present, scene.objects.away[t], settings, rng)


def _of_objects(scene: _Scene, sight: _Sight, owners: Rows, seats: Rows, t: int, rng: np.random.Generator) -> _Found:
    """What the queries `seats` [n] say of the objects `owners` [n]: the less shows of one, the more of its hider."""
    settings = scene.settings
    places = _unit(_told_place(scene.objects.centres[t]) @ scene.waves)
    own = 1 - settings.kinship - settings.place - settings.trace
    looks = np.sqrt(settings.kinship) * scene.common + np.sqrt(own) * scene.objects.appearances[t]
    looks = looks + np.sqrt(settings.place) * places
    hidden = ((1 - sight.share) / 2)[:, None]
    looks = ((1 - hidden) * looks + hidden * looks[sight.hider])[owners]
    missed = rng.random(len(owners)) < settings.missed
    logits = rng.normal(0, 0.3, (len(owners), settings.classes + 1))
    logits[np.arange(len(owners)), scene.objects.labels[owners]] += np.where(missed, 0.5, 2 + 2.5 * sight.share[owners])
    return _Found(logits, looks + np.sqrt(settings.trace) * scene.traces[seats], sight.masks[owners], owners)


def _less_sure(scene: _Scene, found: _Found, rng: np.random.Generator) -> _Found:
    """What second queries say: less surely, and each in its own way."""
    embeddings = found.embeddings + scene.settings.aspect * scene.aspects[found.owners]
    logits = found.logits * rng.uniform(0.1, 0.7, (len(found.owners), 1))
    return replace(found, logits=logits, embeddings=embeddings)


def _of_nothing(scene: _Scene, seats: Rows, rng: np.random.Generator) -> _Found:
    """Queries that are sure of an object where there is none."""
    settings, count = scene.settings, len(seats)
    logits = rng.normal(0, 0.3, (count, settings.classes + 1))
    logits[np.arange(count), rng.integers(settings.classes, size=count)] += 3
    looks = np.sqrt(settings.kinship) * scene.common + np.sqrt(settings.trace) * scene.traces[seats]
    own = 1 - settings.kinship - settings.trace
    looks = looks + np.sqrt(own) * _directions((count, settings.channels), rng)
    return _Found(logits, looks, _anywhere(count, rng), np.full(count, NOBODY))


def _background(scene: _Scene, seats: Rows, rng: np.random.Generator) -> _Found:
    """Idle queries: each says what it always says."""
    count = len(seats)
    logits = rng.normal(0, 0.3, (count, scene.settings.classes + 1))
    logits[:, -1] += 5
    return _Found(logits, scene.traces[seats], _anywhere(count, rng), np.full(count, NOBODY))


def _shuffled(
    found: Sequence[_Found],
    copies: NDArray[np.bool_],
    present: NDArray[np.bool_],
    away: NDArray[np.bool_],
    settings: StreamSettings,
    rng: np.random.Generator,
) -> StreamFrame:
    """One frame of all that is found, with noise on the embeddings, in a random order."""
    order = rng.permutation(settings.queries)
    embeddings = np.concatenate([rows.embeddings for rows in found])
    embeddings = settings.length * (embeddings + settings.noise * _directions(embeddings.shape, rng))
    logits = np.concatenate([rows.logits for rows in found])
    rows = np.arange(settings.queries, dtype=np.float32)[:, None]
    queries = Queries(logits[order].astype(np.float32), embeddings[order].astype(np.float32), rows)
    masks = np.concatenate([rows.masks for rows in found])
    owners = np.concatenate([rows.owners for rows in found])
    return StreamFrame(queries, masks[order], owners[order], copies[order], present, away)


def _anywhere(count: int, rng: np.random.Generator) -> Masks:
    return _ellipses(rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0.02, 0.15, (count, 2)))


def _ellipses(centres: Vectors, radii: Vectors) -> Masks:
    """Masks [N, h, w] of ellipses, centres and radii [N, 2] as (x, y) in shares of the scene."""
    h, w = CELLS
    y, x = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
    across = ((x - centres[:, :1]) / radii[:, :1]) ** 2
    down = ((y - centres[:, 1:]) / radii[:, 1:]) ** 2
    return np.asarray(across[:, None, :] + down[:, :, None] < 1)


def _told_place(centres: Vectors) -> Vectors:
    """Sines and cosines [N, 12] of the centres [N, 2]."""
    angles = 2 * np.pi * (centres[:, :, None] * TURNS).reshape(len(centres), -1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _directions(shape: tuple[int, ...], rng: np.random.Generator) -> Vectors:
    """Random vectors of length 1 along the last axis."""
    return _unit(rng.normal(size=shape))


def _across(vectors: Vectors, others: Vectors) -> Vectors:
    """The part of each of `vectors` [N, C] that is at right angles to that of `others` [N, C], at length 1."""
    along = np.einsum("nc,nc->n", vectors, others)[:, None]
    return _unit(vectors - along * others)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
