"""What InsPro does between engine calls: pairs, bank, key frames, ids, scores, and recovery; on a scripted head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from fakes import finish

from visrt.runtime.arrays import Array, Floats, Tensors
from visrt.runtime.errors import NumericalError, SettingsError
from visrt.runtime.image import letterbox
from visrt.runtime.methods.inspro import BANK, PROPOSALS, QUERIES, InsPro, InsProSettings, InsProState
from visrt.runtime.methods.inspro_pairs import first_pairs, reset_slots, too_small, update_bank
from visrt.runtime.methods.method import FrameOutputs, FrameTracks, Track
from visrt.runtime.settings import load_settings

SLOTS, CHANNELS, CLASSES, ENTRIES = 4, 3, 2, 3
BOX = np.array([0.1, 0.2, 0.7, 0.8], dtype=np.float32)
INITIAL = {
    QUERIES: np.arange(SLOTS * CHANNELS, dtype=np.float32).reshape(SLOTS, CHANNELS),
    PROPOSALS: np.tile(BOX, (SLOTS, 1)),
    BANK: np.zeros((ENTRIES, SLOTS, CHANNELS), dtype=np.float32),
}
FRAME = {"picture_sizes": np.array([60, 90], np.float32)}
SEEN = 0.9
"""Score of a slot that the script calls seen."""


@dataclass
class Heads:
    """Says, call by call, which slots are seen; features count the calls. Keeps what it was fed.

    scores: by call, the score of the first class of each slot. spoilt: by call, role and slot, what is put there.
    """

    scores: list[list[float]]
    spoilt: dict[int, list[tuple[str, int, Any]]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fed: list[Tensors] = field(default_factory=list)

    def __call__(self, graph: str, feeds: Tensors) -> Tensors:
        assert all(np.isfinite(values).all() for values in feeds.values())
        at = len(self.calls)
        self.calls.append(graph)
        self.fed.append(feeds)
        logits = np.full((SLOTS, CLASSES), -5, dtype=np.float32)
        probabilities = np.array(self.scores[at % len(self.scores)])
        logits[:, 0] = np.log(probabilities / (1 - probabilities))
        outputs = {
            "class_logits": logits,
            "boxes": np.ones((SLOTS, 4), np.float32),
            "mask_embeddings": np.eye(SLOTS, dtype=np.float32),
            "object_features": np.full((SLOTS, CHANNELS), at + 1, np.float32),
            "next_proposals": feeds["proposals"] + np.float32(0.01),
        }
        if graph == "head":
            outputs["next_queries"] = feeds["queries"] + 100
        for role, slot, value in self.spoilt.get(at, []):
            outputs[role][slot] = value
        return outputs


def steady(count: int = 1) -> list[list[float]]:
    """The first `count` slots are seen in every frame."""
    return [[SEEN] * count + [0.05] * (SLOTS - count)]


@dataclass
class HeadGraphs:
    """The graphs of a bundle without masks: those of the masks graph are the mask embeddings themselves."""

    heads: Heads

    def run(self, graph: str, feeds: Tensors) -> Tensors:
        return self.heads(graph, feeds)

    def masks(self, frame: FrameOutputs, mask_embeddings: Floats) -> Floats:
        return mask_embeddings[:, None]

    def state(self, name: str) -> Array:
        raise AssertionError(name)


class Answer(NamedTuple):
    """The tracks of one frame and the state after it."""

    frame: FrameTracks
    state: InsProState


def frame_at(time_s: float) -> FrameOutputs:
    return FrameOutputs(letterbox((60, 90), (64, 96)), FRAME, {}, time_s)


def run(method: InsPro, heads: Heads, frames: int, state: InsProState | None = None) -> list[Answer]:
    state, answers = state or method.start(INITIAL), []
    for t in range(frames):
        [tracks], state = finish(method.update([frame_at(t / 10)], HeadGraphs(heads), state))
        answers.append(Answer(tracks, state))
    return answers


def shown(answers: list[Answer]) -> list[list[int]]:
    return [[track.id for track in answer.frame.tracks] for answer in answers]


def slots_of(answer: Answer) -> list[int]:
    return [int(track.mask_logits.argmax()) for track in answer.frame.tracks if isinstance(track, Track)]


def test_inspro_the_first_frame_starts_from_the_learned_pairs_and_each_next_from_the_one_before() -> None:
    heads = Heads(steady())
    run(InsPro(), heads, 3)
    assert heads.calls == ["head"] * 3
    np.testing.assert_array_equal(heads.fed[0]["queries"], INITIAL[QUERIES])
    for t in (1, 2):
        np.testing.assert_array_equal(heads.fed[t]["queries"], INITIAL[QUERIES] + 100 * t)
        np.testing.assert_allclose(heads.fed[t]["proposals"], INITIAL[PROPOSALS] + 0.01 * t, rtol=1e-6)


def test_inspro_the_bank_holds_the_last_frames_the_newest_last() -> None:
    heads = Heads(steady())
    run(InsPro(), heads, 6)
    assert [feeds["fill"].tolist() for feeds in heads.fed[:5]] == [[n] * SLOTS for n in (0, 1, 2, 3, 3)]
    assert heads.fed[2]["bank"][:, 0, 0].tolist() == [0, 1, 2]
    assert heads.fed[5]["bank"][:, 0, 0].tolist() == [3, 4, 5]


def test_inspro_the_state_does_not_grow() -> None:
    answers = run(InsPro(), Heads(steady(SLOTS)), 30)
    sizes = {sum(a.nbytes for a in vars(answer.state.step.pairs).values()) for answer in answers}
    assert len(sizes) == 1


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_inspro_lite_looks_with_all_stages_every_so_many_frames_only(every: int) -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=every)), heads, 21)
    assert heads.calls == ["head" if t % every == 0 else "head_lite" for t in range(21)]


def test_inspro_lite_queries_and_bank_stay_those_of_the_key_frame_and_boxes_move() -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=3)), heads, 5)
    for t in (1, 2, 3):
        np.testing.assert_array_equal(heads.fed[t]["queries"], INITIAL[QUERIES] + 100)
        np.testing.assert_allclose(heads.fed[t]["proposals"], INITIAL[PROPOSALS] + 0.01 * t, rtol=1e-6)
    assert heads.fed[3]["fill"].tolist() == [1] * SLOTS
    assert heads.fed[3]["bank"][:, 0, 0].tolist() == [0, 0, 1]


def test_inspro_lite_the_bank_may_take_all_frames() -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=3, bank_takes="all")), heads, 4)
    assert heads.fed[3]["bank"][:, 0, 0].tolist() == [1, 2, 3]


def test_inspro_lite_a_drop_in_score_asks_for_a_key_frame_at_once() -> None:
    falling = [[score, 0.05, 0.05, 0.05] for score in (0.9, 0.85, 0.5, 0.9, 0.9, 0.9)]
    heads = Heads(falling)
    run(InsPro(InsProSettings(key_every_frames=10, key_score_drop=0.7)), heads, 6)
    assert heads.calls == ["head", "head_lite", "head_lite", "head", "head_lite", "head_lite"]
    heads = Heads(falling)
    run(InsPro(InsProSettings(key_every_frames=10)), heads, 6)
    assert heads.calls == ["head"] + ["head_lite"] * 5


@pytest.mark.parametrize("every", [0, -3])
def test_inspro_less_than_one_frame_from_key_to_key_is_refused(every: int) -> None:
    with pytest.raises(SettingsError, match=r"'key_every_frames' is .* greater than or equal to 1"):
        load_settings(InsProSettings, {"key_every_frames": every}, "association")


def test_inspro_only_the_lite_variant_needs_the_lite_head() -> None:
    assert set(InsPro().required_graphs()) == {"frame", "head", "masks"}
    assert set(InsPro(InsProSettings(key_every_frames=10)).required_graphs()) == {"frame", "head", "head_lite", "masks"}


def test_inspro_ids_are_given_in_order_of_score_and_stay_with_their_slot() -> None:
    heads = Heads([[0.6, 0.9, 0.05, 0.05], [0.9, 0.6, 0.05, 0.8]])
    answers = run(InsPro(), heads, 2)
    assert shown(answers) == [[0, 1], [0, 1, 2]]
    assert slots_of(answers[1]) == [1, 0, 3]


def test_inspro_an_object_is_born_sure_and_shown_while_it_is_likely() -> None:
    heads = Heads([[score, 0.05, 0.05, 0.05] for score in (0.45, 0.55, 0.45, 0.35, 0.45)])
    assert shown(run(InsPro(), heads, 5)) == [[], [0], [0], [], [0]]


def test_inspro_a_slot_is_one_object_for_ever_unless_objects_may_be_lost() -> None:
    gone = [[SEEN, 0.05, 0.05, 0.05], *[[0.05] * SLOTS] * 8, [SEEN, 0.05, 0.05, 0.05]]
    assert shown(run(InsPro(), Heads(gone), 10))[-1] == [0]
    assert shown(run(InsPro(InsProSettings(lost_s=0.5)), Heads(gone), 10))[-1] == [1]


def test_inspro_the_public_score_is_the_mean_of_what_was_seen_and_knows_no_future() -> None:
    scores = [0.9, 0.7, 0.5, 0.1, 0.5]
    heads = Heads([[score, 0.05, 0.05, 0.05] for score in scores])
    scores_shown = [[track.score for track in answer.frame.tracks] for answer in run(InsPro(), heads, 5)]
    expected = [[0.9], [0.8], [0.7], [], [0.65]]
    assert [pytest.approx(row, abs=1e-5) for row in expected] == scores_shown


def test_inspro_at_most_so_many_objects_are_shown_the_surest_first() -> None:
    answers = run(InsPro(InsProSettings(max_objects=2)), Heads([[0.6, 0.9, 0.7, 0.8]]), 1)
    assert slots_of(answers[0]) == [1, 3]


def test_inspro_a_slot_with_nan_begins_anew_alone_and_is_counted() -> None:
    heads = Heads(steady(2), spoilt={2: [("next_queries", 1, np.nan)]})
    answers = run(InsPro(), heads, 5)
    assert [answer.frame.dropped_slots for answer in answers] == [0, 0, 1, 0, 0]
    assert shown(answers) == [[0, 1], [0, 1], [0], [0, 2], [0, 2]]
    np.testing.assert_array_equal(heads.fed[3]["queries"][1], INITIAL[QUERIES][1])
    np.testing.assert_array_equal(heads.fed[3]["queries"][0], INITIAL[QUERIES][0] + 300)
    assert heads.fed[3]["fill"].tolist() == [3, 0, 3, 3]
    assert not heads.fed[3]["bank"][:, 1].any()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([0.5, 0.2, 0.5, 0.8], id="collapsed"),
        pytest.param([1.0, 0.2, 1.0, 0.8], id="clipped away at the edge"),
        pytest.param([0.7, 0.2, 0.5, 0.8], id="inside out"),
    ],
)
def test_inspro_a_box_that_cannot_grow_again_begins_anew_with_the_next_frame(box: list[float]) -> None:
    heads = Heads(steady(2), spoilt={1: [("next_proposals", 0, box)]})
    answers = run(InsPro(), heads, 4)
    assert [answer.frame.dropped_slots for answer in answers] == [0, 1, 0, 0]
    assert shown(answers) == [[0, 1], [0, 1], [1, 2], [1, 2]]
    np.testing.assert_array_equal(heads.fed[2]["proposals"][0], BOX)


def test_inspro_nothing_but_nan_is_an_error_and_leaves_the_state() -> None:
    heads = Heads(steady(), spoilt={1: [("class_logits", slot, np.nan) for slot in range(SLOTS)]})
    family = InsPro()
    [first] = run(family, heads, 1)
    with pytest.raises(NumericalError, match="NaN or infinity in every slot of its head"):
        finish(family.update([frame_at(0.1)], HeadGraphs(heads), first.state))
    assert shown(run(family, heads, 1, first.state)) == [[0]]


def test_inspro_after_a_restart_ids_go_on_and_pairs_begin_anew() -> None:
    heads, family = Heads(steady(2)), InsPro(InsProSettings(key_every_frames=5))
    answers = run(family, heads, 3)
    again = run(family, heads, 1, family.restart(answers[-1].state, INITIAL))
    assert shown(again) == [[2, 3]]
    assert heads.calls[-1] == "head"
    np.testing.assert_array_equal(heads.fed[-1]["queries"], INITIAL[QUERIES])
    assert not heads.fed[-1]["fill"].any()


def test_inspro_updates_leave_the_pairs_they_are_given_as_they_are() -> None:
    pairs = first_pairs(*(INITIAL[name] for name in (QUERIES, PROPOSALS, BANK)))
    before = {name: np.copy(values) for name, values in vars(pairs).items()}
    entry = np.ones((SLOTS, CHANNELS), np.float32)
    reset_slots(update_bank(pairs, entry), np.array([True, False, True, False]))
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(pairs, name), values)


def test_inspro_a_box_with_nan_is_too_small() -> None:
    pairs = first_pairs(*(INITIAL[name] for name in (QUERIES, PROPOSALS, BANK)))
    spoilt: Floats = pairs.proposals.copy()
    spoilt[2, 3] = np.nan
    assert too_small(first_pairs(pairs.queries, spoilt, pairs.bank), 0.001).tolist() == [False, False, True, False]
