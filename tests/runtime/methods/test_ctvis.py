"""What association with a memory bank promises, whatever the network says and however it is set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.errors import SettingsError
from visrt.runtime.methods.ctvis import CtVis, CtVisSettings, CtVisState
from visrt.runtime.methods.method import PerFrameMethod, Track
from visrt.runtime.methods.presets import PRESETS
from visrt.runtime.methods.queries import Queries
from visrt.runtime.methods.registry import METHODS, method_from_preset

CLASSES = 3
FPS = 10.0
SIDE = 6
CHANNELS = 16
MEMORY_PRESETS = [name for name, preset in PRESETS.items() if preset.family == "ctvis"]

EVERYTHING_SHOWN: dict[str, Any] = {
    "steady_frames": 1,
    "show_score": 0.0,
    "without_candidates": "take_none",
    "keep_score": 0.05,
}


@dataclass(frozen=True)
class Thing:
    """An object as the network sees it in one frame: who it is, how sure, and where (columns of a 6 x 6 mask).

    drift turns its embedding away from its usual look, in radians.
    """

    who: int
    score: float = 0.9
    columns: tuple[int, int] = (0, 1)
    label: int = 0
    drift: float = 0.0


Frame = tuple[Queries, NDArray[np.float32]]


def frame_of(things: Sequence[Thing], count: int = 8) -> Frame:
    """Queries of `things`, length 4, padded with background to `count`, and the mask [count, 6, 6] of each query."""
    logits = np.tile(logits_of(0.01, 0), (count, 1))
    embeddings = 0.1 * np.eye(count, CHANNELS, k=8, dtype=np.float32)
    masks = np.full((count, SIDE, SIDE), -1, dtype=np.float32)
    for row, thing in enumerate(things):
        logits[row] = logits_of(thing.score, thing.label)
        embeddings[row] = 0
        embeddings[row, thing.who], embeddings[row, thing.who + 4] = 4 * np.cos(thing.drift), 4 * np.sin(thing.drift)
        masks[row, :, thing.columns[0] : thing.columns[1]] = 1
    return Queries(logits, embeddings, np.eye(count, dtype=np.float32)), masks


def logits_of(score: float, label: int) -> NDArray[np.float32]:
    """Class logits whose softmax gives `score` to `label` and the rest to no object."""
    logits = np.full(CLASSES + 1, -30, dtype=np.float32)
    logits[label], logits[-1] = np.log(score), np.log(1 - score)
    return logits


def masks_from(masks: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda embeddings: np.einsum("md,dhw->mhw", embeddings, masks)


def run(family: PerFrameMethod[Any], frames: Sequence[Frame], fps: float = FPS) -> list[list[Track]]:
    """The tracks of each frame."""
    state, found = family.start(), []
    for index, (queries, masks) in enumerate(frames):
        tracks, state = family.associate(queries, masks_from(masks), index / fps, state)
        found.append(tracks)
    return found


def follow(frames: Sequence[Sequence[Thing]], fps: float = FPS, **settings: Any) -> list[list[Track]]:
    """The tracks of each frame, everything shown but for what `settings` say."""
    return run(CtVis(CtVisSettings(**{**EVERYTHING_SHOWN, **settings})), [frame_of(things) for things in frames], fps)


def ids(found: Sequence[Sequence[Track]]) -> list[list[int]]:
    return [[track.id for track in tracks] for tracks in found]


def test_ids_are_given_in_order_of_score() -> None:
    things = [Thing(0, 0.6, (0, 1), 0), Thing(1, 0.9, (2, 3), 1), Thing(2, 0.7, (4, 5), 2)]

    [tracks] = follow([things])

    assert [(track.id, track.label) for track in tracks] == [(0, 1), (1, 2), (2, 0)]


def test_masks_are_asked_for_once_for_the_candidates_and_shown_as_they_came() -> None:
    queries, masks = frame_of([Thing(0), Thing(1, columns=(2, 3)), Thing(2, score=0.02)])
    asked = []

    def masks_of(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(embeddings))
        return masks_from(masks)(embeddings)

    tracks, _ = CtVis(CtVisSettings(**EVERYTHING_SHOWN)).associate(queries, masks_of, 0.0, CtVisState())

    assert asked == [2]
    assert sorted(track.mask_logits.tobytes() for track in tracks) == sorted(mask.tobytes() for mask in masks[:2])


def test_without_a_candidate_the_best_query_is_taken_as_released_or_none() -> None:
    nothing = frame_of([])

    taken = run(CtVis(CtVisSettings(keep_score=0.5, birth_score=0.0, steady_frames=1, show_score=0)), [nothing])
    settings = CtVisSettings(keep_score=0.5, birth_score=0.0, steady_frames=1, show_score=0)
    dropped = run(CtVis(CtVisSettings(keep_score=0.5, steady_frames=1, show_score=0)), [nothing])
    none = follow([[]], keep_score=0.5, birth_score=0.0)

    assert settings.without_candidates == "take_best"
    assert ids(taken) == [[0]]
    assert [len(tracks) for tracks in dropped] == [0], "it is below the birth score"
    assert ids(none) == [[]]


def test_of_two_masks_on_one_object_the_better_stays() -> None:
    frames = [[Thing(0, 0.7), Thing(1, 0.9)], [Thing(0, 0.7), Thing(1, 0.9)]]

    assert ids(follow(frames, nms_iou=0.6)) == [[0], [0]]
    assert ids(follow(frames, nms_iou=1.0)) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_an_object_that_was_away_is_known_again_until_it_is_forgotten(name: str) -> None:
    here, other = Thing(0, columns=(0, 2)), Thing(1, columns=(4, 6))
    changes = {"lost_s": 0.65, "steady_frames": 1}

    def last_ids(away: int) -> list[int]:
        frames = [[here, other]] * 3 + [[other]] * away + [[here, other]]
        return ids(run(method_from_preset(name, changes), [frame_of(things) for things in frames]))[-1]

    assert last_ids(away=5) == [0, 1]
    assert last_ids(away=9) == [1, 2] or last_ids(away=9) == [0, 2]


@pytest.mark.parametrize("name", ["memory", "memory+guided"])
def test_a_memory_bears_one_misleading_frame_where_the_last_embedding_does_not(name: str) -> None:
    """Object 0 looks odd for one frame; then it is itself again and another turns up that looks just so odd."""
    steady, odd = Thing(0, columns=(0, 1)), Thing(0, columns=(0, 1), drift=0.9)
    other = Thing(0, columns=(4, 5), drift=1.4)
    frames = [frame_of(things) for things in [*[[steady]] * 5, [odd], [steady, other]]]

    def column_of_id_0(**changes: Any) -> int:
        [mask] = [track.mask_logits for track in run(method_from_preset(name, changes), frames)[-1] if track.id == 0]
        return int(np.flatnonzero(mask[0] > 0)[0])

    assert column_of_id_0() == 0
    assert column_of_id_0(memory="previous") == 4


def test_a_similarity_guided_memory_takes_little_from_what_looks_otherwise() -> None:
    frames = [[Thing(0)]] * 4 + [[Thing(0, drift=1.2)]]
    settings: dict[str, Any] = {
        **EVERYTHING_SHOWN,
        "memory": "similarity_guided",
        "similarity": "cosine",
        "similarity_floor": 0.0,
    }
    family = CtVis(CtVisSettings(**settings))
    state = family.start()
    for index, (queries, masks) in enumerate(map(frame_of, frames)):
        _, state = family.associate(queries, masks_from(masks), index / FPS, state)

    assert state.memory is not None
    beta = np.cos(1.2)
    [remembered] = state.memory.embeddings
    np.testing.assert_allclose(
        remembered[[0, 4]], [4 * (1 - beta) + 4 * beta * beta, 4 * beta * np.sin(1.2)], rtol=1e-5
    )


def test_what_overlaps_keeps_its_id_by_overlap_however_it_looks() -> None:
    frames = [[Thing(0, columns=(0, 3))], [Thing(1, columns=(1, 4))], [Thing(2, columns=(5, 6))]]

    assert ids(follow(frames, similarity="mask_iou", similarity_floor=0.2)) == [[0], [0], [1]]
    assert ids(follow(frames, similarity="cosine", similarity_floor=0.2)) == [[0], [1], [2]]


def test_overlap_and_looks_together_tell_apart_what_either_alone_confuses() -> None:
    """Two look-alikes side by side swap nothing, though one of them also moves onto the other's old place."""
    first = [Thing(0, columns=(0, 2), drift=0.0), Thing(0, columns=(2, 4), drift=0.5)]
    then = [Thing(0, columns=(1, 3), drift=0.05), Thing(0, columns=(3, 5), drift=0.45)]

    def columns(similarity: str) -> list[tuple[int, int]]:
        tracks = follow([first, then], similarity=similarity, similarity_floor=0.1, assignment="hungarian")[-1]
        return [(track.id, int(np.flatnonzero(track.mask_logits[0] > 0)[0])) for track in tracks]

    assert columns("mask_iou_and_cosine") == [(0, 1), (1, 3)]


def test_an_older_object_wins_a_close_contest_only_where_age_counts() -> None:
    """An old object and a young one; a detection is a little more like the young one."""
    old, young = Thing(0, columns=(0, 1)), Thing(0, columns=(4, 5), drift=1.0)
    between = Thing(0, columns=(2, 3), drift=0.55)
    frames = [[old]] * 6 + [[old, young], [between]]
    common: dict[str, Any] = {"similarity": "cosine", "similarity_floor": 0.3, "nms_iou": 1.0}

    assert ids(follow(frames, assignment="greedy_by_age", **common))[-1] == [0]
    assert ids(follow(frames, assignment="greedy", **common))[-1] == [1]
    assert ids(follow(frames, assignment="hungarian", **common))[-1] == [1]


def test_who_comes_back_looking_otherwise_is_a_new_object_if_it_must_look_alike() -> None:
    frames = [[Thing(0)], [], [Thing(0, drift=1.0)]]

    assert ids(follow(frames, revive_similarity=0.8)) == [[0], [], [1]]
    assert ids(follow(frames, revive_similarity=0.2)) == [[0], [], [0]]


class TestNoiseIsNotShownAndNothingShownIsTakenBack:
    def test_an_object_is_shown_from_its_third_frame_on_and_keeps_its_id(self) -> None:
        assert ids(follow([[Thing(0)]] * 4, steady_frames=3)) == [[], [], [0], [0]]

    def test_what_flashes_and_goes_is_never_shown_and_uses_no_id(self) -> None:
        flash = [[Thing(1, columns=(3, 4))]] * 2 + [[]] * 3
        lasting = [Thing(0)]

        found = follow([[*lasting, *things] for things in flash * 3], steady_frames=3, lost_s=9)

        assert {i for tracks in ids(found) for i in tracks} == {0}

    def test_once_shown_it_is_shown_at_once_when_it_comes_back(self) -> None:
        frames = [[Thing(0)]] * 3 + [[]] * 4 + [[Thing(0)]]

        assert ids(follow(frames, steady_frames=3)) == [[], [], [0], [], [], [], [], [0]]

    def test_the_past_of_a_stream_does_not_depend_on_its_future(self) -> None:
        frames = [[Thing(0)], [Thing(0), Thing(1, columns=(3, 4))], [Thing(0)], [], [Thing(1)], [Thing(0)]]
        whole = ids(follow(frames, steady_frames=2))

        for length in range(1, len(frames)):
            assert ids(follow(frames[:length], steady_frames=2)) == whole[:length]


@pytest.mark.parametrize("poison", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("name", MEMORY_PRESETS)
def test_rows_of_zero_or_no_number_are_dropped_for_the_frame_and_reach_no_memory(name: str, poison: float) -> None:
    family = method_from_preset(name, {"steady_frames": 1})
    things = [Thing(0, columns=(0, 2)), Thing(1, columns=(2, 4)), Thing(2, columns=(4, 6))]
    state, seen = family.start(), []
    for t in range(5):
        queries, masks = frame_of(things)
        if t in (0, 3):
            queries.embeddings[2] = poison
        tracks, state = family.associate(queries, masks_from(masks), t / FPS, state)
        assert np.isfinite(state.memory.embeddings).all()
        assert state.memory.embeddings.any(axis=1).all()
        seen.append([track.id for track in tracks])

    assert seen == [[0, 1], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1, 2]]


def test_a_frame_of_nothing_but_unusable_rows_is_empty_and_the_objects_are_known_again() -> None:
    family = CtVis(CtVisSettings(steady_frames=1, show_score=0))
    state, seen = family.start(), []
    for t in range(3):
        queries, masks = frame_of([Thing(0)])
        if t == 1:
            queries.embeddings[...] = 0
        tracks, state = family.associate(queries, masks_from(masks), t / FPS, state)
        seen.append([track.id for track in tracks])

    assert seen[0] == seen[2] != []
    assert seen[1] == []


def test_one_object_alone_is_taken_by_the_best_candidate_whatever_it_is_with_bisoftmax_as_released() -> None:
    """Similarity is relative: with one object remembered, or one candidate, every pair is above the floor."""
    frames = [[Thing(0, 0.8)], [Thing(0, 0.8), Thing(1, 0.9, (3, 5), label=1)]]

    def label_of_id_0(similarity: str) -> list[int]:
        return [
            track.label for track in follow(frames, similarity=similarity, score_window_frames=1)[-1] if track.id == 0
        ]

    assert label_of_id_0("bisoftmax") == [1]
    assert label_of_id_0("cosine") == [0]


def test_after_a_restart_ids_go_on() -> None:
    family = CtVis(CtVisSettings(**EVERYTHING_SHOWN))
    queries, masks = frame_of([Thing(0), Thing(1, columns=(2, 4))])
    _, state = family.associate(queries, masks_from(masks), 0.0, family.start())

    tracks, _ = family.associate(queries, masks_from(masks), 0.1, family.restart(state))

    assert [track.id for track in tracks] == [2, 3]


def test_masks_of_another_size_by_a_cell_are_still_compared() -> None:
    family = CtVis(CtVisSettings(**{**EVERYTHING_SHOWN, "similarity": "mask_iou"}))
    queries, masks = frame_of([Thing(0, columns=(0, 3))])
    _, state = family.associate(queries, masks_from(masks), 0.0, family.start())

    for size in ((SIDE - 1, SIDE), (SIDE + 1, SIDE + 1)):
        other = np.full((len(masks), *size), -1, dtype=np.float32)
        other[0, :, :3] = 1
        tracks, state = family.associate(queries, masks_from(other), 0.1, state)
        assert [track.id for track in tracks] == [0]


def test_the_memory_never_holds_more_than_it_may() -> None:
    random = np.random.default_rng(0)
    settings: dict[str, Any] = {
        **EVERYTHING_SHOWN,
        "lost_s": 1e9,
        "max_remembered": 20,
        "nms_iou": 1.0,
        "similarity_floor": 1.0,
    }
    family = CtVis(CtVisSettings(**settings))
    state = family.start()
    for t in range(30):
        queries, masks = frame_of([Thing(k) for k in range(4)])
        queries.embeddings[:] = random.normal(size=queries.embeddings.shape)
        tracks, state = family.associate(queries, masks_from(masks), t / FPS, state)
        assert state.memory is not None
        assert len(state.memory) <= 20 + 4
        assert len(tracks) == 4

    assert state.next_id == 120


things = st.builds(
    Thing,
    who=st.integers(0, 3),
    score=st.sampled_from([0.02, 0.3, 0.45, 0.55, 0.8, 0.9]),
    columns=st.tuples(st.integers(0, 2), st.integers(2, 5)),
    label=st.integers(0, 2),
    drift=st.sampled_from([0.0, 0.4, 1.2]),
)
videos = st.lists(st.lists(things, max_size=6), min_size=1, max_size=6)
methods = st.fixed_dictionaries(
    {
        "similarity": st.sampled_from(["bisoftmax", "cosine", "mask_iou", "mask_iou_and_cosine"]),
        "assignment": st.sampled_from(["hungarian", "greedy", "greedy_by_age"]),
        "memory": st.sampled_from(["previous", "momentum", "similarity_guided"]),
        "nms_iou": st.sampled_from([0.5, 1.0]),
        "steady_frames": st.sampled_from([1, 3]),
        "without_candidates": st.sampled_from(["take_best", "take_none"]),
        "lost_s": st.sampled_from([0.1, 9.0]),
    }
)


@given(videos, st.integers(0, 2**32 - 1), methods)
def test_permuting_the_queries_of_a_frame_permutes_nothing_the_user_sees(
    video: list[list[Thing]], seed: int, method: dict[str, Any]
) -> None:
    """With equal scores, equal looks and equal masks among them. Masks are pixels, so a query carries its own."""
    random = np.random.default_rng(seed)
    pixels = np.eye(SIDE * SIDE, dtype=np.float32).reshape(-1, SIDE, SIDE)
    plain, shuffled = [], []
    for things in video:
        queries, masks = frame_of(things)
        queries = Queries(queries.class_logits, queries.embeddings, masks.reshape(len(masks), -1))
        plain.append((queries, pixels))
        shuffled.append((queries.take(random.permutation(len(queries))), pixels))
    family = CtVis(CtVisSettings(**{"show_score": 0.0, **method}))

    assert told(run(family, plain)) == told(run(family, shuffled))


def told(found: Sequence[Sequence[Track]]) -> list[list[tuple[int, int, float, bytes]]]:
    return [[(t.id, t.label, round(t.score, 5), (t.mask_logits > 0).tobytes()) for t in tracks] for tracks in found]


@given(videos, methods)
def test_ids_are_distinct_in_a_frame_and_counted_without_gaps(video: list[list[Thing]], method: dict[str, Any]) -> None:
    found = ids(run(CtVis(CtVisSettings(**method)), [frame_of(things) for things in video]))

    assert all(frame == sorted(set(frame)) for frame in found)
    met = sorted({i for frame in found for i in frame})
    assert met == list(range(len(met)))


@given(videos, methods)
def test_a_frame_leaves_the_state_before_it_as_it_was(video: list[list[Thing]], method: dict[str, Any]) -> None:
    family = CtVis(CtVisSettings(**method))
    state = family.start()
    for index, things in enumerate(video):
        queries, masks = frame_of(things)
        once = family.associate(queries, masks_from(masks), index / FPS, state)
        twice = family.associate(queries, masks_from(masks), index / FPS, state)
        assert told([once[0]]) == told([twice[0]])
        state = once[1]


def test_settings_are_loaded_strictly() -> None:
    for wrong in ({"brith_score": 0.5}, {"keep_score": 1.5}, {"similarity": "euclidean"}, {"similarity_floor": -0.1}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            METHODS["ctvis"](wrong)
