"""What MinVIS's association promises, whatever the network says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.arrays import softmax
from visrt.runtime.errors import SettingsError
from visrt.runtime.methods.method import Track
from visrt.runtime.methods.minvis import MinVis, MinVisSettings, MinVisState
from visrt.runtime.methods.queries import Queries
from visrt.runtime.methods.registry import METHODS

CLASSES = 3
FPS = 10.0
SIDE = 6


@dataclass(frozen=True)
class Thing:
    """An object as the network sees it in one frame: who it is, how sure, and where (columns of a 6 x 6 mask)."""

    who: int
    score: float = 0.9
    columns: tuple[int, int] = (0, 1)
    label: int = 0
    drift: float = 0.0


def logits_of(score: float, label: int) -> NDArray[np.float32]:
    """Class logits whose softmax gives `score` to `label` and the rest to no object."""
    logits = np.full(CLASSES + 1, -30, dtype=np.float32)
    logits[label], logits[-1] = np.log(score), np.log(1 - score)
    return logits


def frame_of(things: Sequence[Thing], count: int = 6) -> tuple[Queries, NDArray[np.float32]]:
    """Queries of `things`, padded with background to `count`, and the mask [count, 6, 6] of each query."""
    logits = np.tile(logits_of(0.01, 0), (count, 1))
    embeddings = np.zeros((count, 16), dtype=np.float32)
    masks = np.full((count, SIDE, SIDE), -1, dtype=np.float32)
    for row in range(count):
        embeddings[row, 15 - row] = 1
    for row, thing in enumerate(things):
        logits[row] = logits_of(thing.score, thing.label)
        embeddings[row] = 0
        embeddings[row, thing.who], embeddings[row, thing.who + 4] = np.cos(thing.drift), np.sin(thing.drift)
        masks[row, :, thing.columns[0] : thing.columns[1]] = 1
    return Queries(logits, embeddings, np.eye(count, dtype=np.float32)), masks


def masks_from(masks: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda embeddings: np.einsum("md,dhw->mhw", embeddings, masks)


def follow(frames: Sequence[Sequence[Thing]], fps: float = FPS, **settings: Any) -> list[list[Track]]:
    """The tracks of each frame."""
    family = MinVis(MinVisSettings(**{"nms_iou": 1.0, **settings}))
    state, found = family.start(), []
    for index, things in enumerate(frames):
        queries, masks = frame_of(things)
        tracks, state = family.associate(queries, masks_from(masks), index / fps, state)
        found.append(tracks)
    return found


def ids(found: Sequence[Sequence[Track]]) -> list[list[int]]:
    return [[track.id for track in tracks] for tracks in found]


def test_ids_are_given_in_order_of_score() -> None:
    [tracks] = follow([[Thing(0, 0.6, label=0), Thing(1, 0.9, label=1), Thing(2, 0.7, label=2)]])

    assert [(track.id, track.label) for track in tracks] == [(0, 1), (1, 2), (2, 0)]


def test_an_empty_frame_has_no_object_and_asks_for_no_mask() -> None:
    def no_masks(embeddings: object) -> NDArray[np.float32]:
        raise AssertionError("masks were asked for")

    queries, _ = frame_of([])
    tracks, state = MinVis().associate(queries, no_masks, 0.0, MinVisState())

    assert tracks == []
    assert state.next_id == 0


def test_masks_are_asked_for_the_candidates_only_and_at_once() -> None:
    asked = []

    def masks_of(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(embeddings))
        return masks_from(masks)(embeddings)

    queries, masks = frame_of([Thing(0), Thing(1), Thing(2, score=0.1)])
    MinVis().associate(queries, masks_of, 0.0, MinVisState())

    assert asked == [2]


def test_an_object_is_born_at_the_birth_score_and_stays_down_to_the_keep_score() -> None:
    scores = (0.45, 0.55, 0.45, 0.35, 0.45, 0.9)

    found = follow([[Thing(0, score)] for score in scores], birth_score=0.5, keep_score=0.4)

    assert ids(found) == [[], [0], [0], [], [0], [0]]


def test_an_object_unseen_for_too_long_is_gone_and_its_id_with_it() -> None:
    """Seconds count, not frames."""
    absent: list[list[Thing]] = [[Thing(0, score=0.1)]] * 4
    frames = [[Thing(0)], *absent, [Thing(0)]]

    assert ids(follow(frames, fps=10, lost_s=0.55))[-1] == [0]
    assert ids(follow(frames, fps=5, lost_s=0.55))[-1] == [1]


def test_what_turns_up_in_a_lost_objects_place_is_a_new_object_if_it_looks_otherwise() -> None:
    for drift, expected in ((0.2, 0), (1.4, 1)):
        frames = [[Thing(0)], [Thing(0, score=0.1, drift=drift)], [Thing(0, drift=drift)]]
        assert ids(follow(frames, revive_similarity=0.5, lost_s=9)) == [[0], [], [expected]]


def test_a_change_of_looks_while_visible_keeps_the_id() -> None:
    frames = [[Thing(0, drift=0.3 * t)] for t in range(6)]

    assert ids(follow(frames, revive_similarity=0.5)) == [[0]] * 6


def test_the_score_is_the_softmax_of_a_running_average_since_birth() -> None:
    scores = [0.9, 0.5, 0.7, 0.95, 0.6]
    mean = np.cumsum([logits_of(score, 0) for score in scores], axis=0) / np.arange(1, 6)[:, None]

    found = follow([[Thing(0, score)] for score in scores])

    assert np.allclose([tracks[0].score for tracks in found], softmax(mean.astype(np.float32))[:, 0], atol=1e-6)


def test_beyond_the_window_the_average_forgets() -> None:
    scores = [0.9] * 10 + [0.5] * 30

    short = follow([[Thing(0, score)] for score in scores], score_window_frames=4)[-1][0].score
    long = follow([[Thing(0, score)] for score in scores], score_window_frames=1000)[-1][0].score

    assert abs(short - 0.5) < 0.01
    assert long > 0.55


def test_a_newborn_in_a_used_slot_starts_its_score_afresh() -> None:
    frames = [[Thing(0, 0.99)]] * 5 + [[Thing(0, 0.1)]] * 5 + [[Thing(0, 0.6, label=2)]]

    [track] = follow(frames, lost_s=0.3)[-1]

    assert (track.id, track.label) == (1, 2)
    assert track.score == pytest.approx(0.6, abs=1e-5)


def test_of_two_masks_on_one_object_the_steadier_stays_and_the_newborn_gets_no_id() -> None:
    frames = [[Thing(0, 0.7)], [Thing(0, 0.7), Thing(1, 0.99)], [Thing(0, 0.1), Thing(1, 0.99)]]

    assert ids(follow(frames, nms_iou=0.6)) == [[0], [0], [1]]


def test_of_two_newborn_masks_on_one_object_the_surer_stays() -> None:
    [[track]] = follow([[Thing(0, 0.7, label=0), Thing(1, 0.8, label=1)]], nms_iou=0.6)

    assert (track.id, track.label) == (0, 1)


def test_masks_apart_do_not_compete_and_an_iou_of_one_is_off() -> None:
    apart = [Thing(0, columns=(0, 2)), Thing(1, columns=(3, 5))]
    together = [Thing(0), Thing(1)]

    assert ids(follow([apart], nms_iou=0.1)) == [[0, 1]]
    assert ids(follow([together], nms_iou=1.0)) == [[0, 1]]


def test_an_empty_mask_is_not_visible_and_gets_no_id() -> None:
    frames = [[Thing(0, columns=(0, 0)), Thing(1)], [Thing(0, columns=(2, 3)), Thing(1)]]

    assert ids(follow(frames)) == [[0], [0, 1]]


def test_no_more_objects_are_visible_than_allowed_and_the_steady_ones_go_first() -> None:
    frames = [[Thing(0, 0.6)], [Thing(0, 0.6), Thing(1, 0.8), Thing(2, 0.9)]]

    assert ids(follow(frames, max_objects=2)) == [[0], [0, 1]]


def test_a_memory_with_momentum_bears_one_misleading_frame() -> None:
    """An object looks odd for one frame; then it is itself again and another turns up that looks just so odd.

    The published rule compares with the last frame only and follows the look, a slow memory follows the object.
    """
    steady, odd = Thing(0, columns=(0, 1)), Thing(0, columns=(0, 1), drift=1.5)
    other = Thing(0, columns=(4, 5), drift=1.5)

    columns_of_id_0 = {}
    for momentum in (1.0, 0.1):
        found = follow([*[[steady]] * 5, [odd], [steady, other]], memory_momentum=momentum)
        [mask] = [track.mask_logits for track in found[-1] if track.id == 0]
        columns_of_id_0[momentum] = np.flatnonzero(mask[0] > 0).tolist()

    assert columns_of_id_0 == {1.0: [4], 0.1: [0]}


def test_a_slot_can_hold_what_an_object_looked_like_until_it_is_seen_again() -> None:
    """While unseen, the object's query drifts to look like nothing; a held memory still finds it."""

    def frame(score: float, drift: float) -> list[Thing]:
        return [Thing(0, score, drift=drift)]

    absent = [[Thing(3, 0.1)], [Thing(3, 0.1)]]
    back = [[Thing(3, 0.1), Thing(0, 0.9)]]
    found = {
        choice: ids(follow([frame(0.9, 0.0), *absent, *back], unseen_memory=choice, lost_s=9))[-1]
        for choice in ("follow", "hold")
    }

    assert found["hold"] == [0]
    assert found["follow"] == [1]


def test_a_query_with_an_embedding_of_zero_is_not_visible_and_the_memory_stays_as_it_was() -> None:
    family = MinVis(MinVisSettings(nms_iou=1.0))
    state, seen = family.start(), []
    for t in range(4):
        queries, masks = frame_of([Thing(0, 0.95), Thing(1, columns=(3, 5))])
        if t == 2:
            queries.embeddings[1] = 0
        tracks, state = family.associate(queries, masks_from(masks), t / FPS, state)
        assert state.slots is not None
        assert state.slots.memory.any(axis=1).all()
        seen.append([track.id for track in tracks])

    assert seen == [[0, 1], [0, 1], [0], [0, 1]]


def test_after_a_restart_ids_go_on() -> None:
    family = MinVis()
    queries, masks = frame_of([Thing(0), Thing(1, columns=(2, 4))])
    _, state = family.associate(queries, masks_from(masks), 0.0, family.start())

    tracks, _ = family.associate(queries, masks_from(masks), 0.1, family.restart(state))

    assert [track.id for track in tracks] == [2, 3]


scores = st.sampled_from([0.1, 0.3, 0.45, 0.55, 0.8, 0.9])
things = st.builds(
    Thing,
    who=st.integers(0, 3),
    score=scores,
    columns=st.tuples(st.integers(0, 2), st.integers(2, 5)),
    label=st.integers(0, 2),
    drift=st.sampled_from([0.0, 0.4, 1.2]),
)
videos = st.lists(st.lists(things, max_size=6), min_size=1, max_size=6)


@given(videos, st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0]), st.sampled_from([0.3, 1.0]))
def test_permuting_the_queries_of_a_frame_permutes_nothing_the_user_sees(
    video: list[list[Thing]], seed: int, nms_iou: float, momentum: float
) -> None:
    """With equal scores, equal looks and equal masks among them."""
    family = MinVis(MinVisSettings(nms_iou=nms_iou, memory_momentum=momentum, max_objects=4))
    random = np.random.default_rng(seed)
    plain, shuffled = family.start(), family.start()
    for index, frame in enumerate(video):
        queries, masks = frame_of(frame)
        queries = Queries(queries.class_logits, queries.embeddings, masks.reshape(len(masks), -1))
        pixels = np.eye(SIDE * SIDE, dtype=np.float32).reshape(-1, SIDE, SIDE)
        seen, plain = family.associate(queries, masks_from(pixels), index / FPS, plain)
        order = random.permutation(len(queries))
        seen_again, shuffled = family.associate(queries.take(order), masks_from(pixels), index / FPS, shuffled)
        assert [told(track) for track in seen] == [told(track) for track in seen_again]


def told(track: Track) -> tuple[int, int, float, bytes]:
    return track.id, track.label, track.score, track.mask_logits.tobytes()


@given(videos)
def test_ids_are_distinct_in_a_frame_and_counted_without_gaps(video: list[list[Thing]]) -> None:
    found = ids(follow(video, nms_iou=0.6, lost_s=0.15))

    assert all(len(set(frame)) == len(frame) for frame in found)
    met = sorted({i for frame in found for i in frame})
    assert met == list(range(len(met)))


def test_settings_are_loaded_strictly() -> None:
    with pytest.raises(SettingsError, match=r"association: unknown setting 'brith_score'; known here: similarity,"):
        METHODS["minvis"]({"brith_score": 0.5})
    with pytest.raises(SettingsError, match="keep_score"):
        METHODS["minvis"]({"keep_score": 1.5})
    with pytest.raises(SettingsError, match="unseen_memory"):
        METHODS["minvis"]({"unseen_memory": "forget"})


STEADY = [Thing(0, 0.9, columns=(0, 2)), Thing(1, 0.8, columns=(4, 6))]
SWAPPED = [Thing(1, 0.9, columns=(0, 2)), Thing(0, 0.8, columns=(4, 6))]
"""Where they were, each with the other's embedding."""


@pytest.mark.parametrize(
    ("similarity", "places"), [("cosine", [4, 0]), ("matching_cost", [0, 4]), ("matching_cost_and_cosine", [0, 4])]
)
def test_the_matching_cost_follows_masks_where_the_cosine_follows_embeddings(
    similarity: str, places: list[int]
) -> None:
    """The first column of the masks of ids 0 and 1 in the last frame. Masks that do not meet cost more than cosines."""
    *_, last = follow([STEADY, STEADY, SWAPPED], similarity=similarity)

    assert [track.id for track in last] == [0, 1]
    assert [int(np.argmax(np.any(track.mask_logits > 0, axis=0))) for track in last] == places


def test_the_matching_cost_follows_classes_where_masks_are_alike() -> None:
    covering = [Thing(0, label=0, columns=(0, 3)), Thing(1, label=1, columns=(0, 3))]
    changed = [Thing(2, label=1, columns=(0, 3)), Thing(3, label=0, columns=(0, 3))]

    first, last = follow([covering, changed], similarity="matching_cost", revive_similarity=-1)

    assert [track.label for track in last] == [track.label for track in first]
    assert ids([first, last]) == [[0, 1], [0, 1]]


def test_the_matching_cost_with_the_cosine_decides_by_embeddings_where_masks_and_classes_are_alike() -> None:
    alike = [Thing(0, 0.9, columns=(0, 3)), Thing(1, 0.8, columns=(0, 3))]
    tracks, state = [], MinVis().start()
    family = MinVis(MinVisSettings(nms_iou=1.0, similarity="matching_cost_and_cosine"))
    for things in (alike, alike[::-1]):
        queries, masks = frame_of(things)
        found, state = family.associate(queries, masks_from(masks), 0.0, state)
        tracks.append(found)
    assert ids(tracks) == [[0, 1], [0, 1]]
    assert state.slots is not None
    memory = state.slots.memory
    assert [int(memory[state.slots.ids == one].argmax()) for one in (0, 1)] == [0, 1]


def test_an_object_held_while_unseen_is_compared_by_the_mask_it_had() -> None:
    """Its slot meanwhile is given the query of something unsure elsewhere."""
    here = Thing(0, columns=(0, 3))
    unsure = Thing(0, 0.2, columns=(3, 6))
    frames = [[here], [unsure], [here]]

    assert ids(follow(frames, similarity="matching_cost", unseen_memory="hold")) == [[0], [], [0]]
