"""What InsPro does between engine calls: what the bank takes, key frames, ids, scores, recovery; on a scripted head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from fakes import finish
from numpy.typing import NDArray

from visrt.runtime.arrays import Tensors
from visrt.runtime.errors import NumericalError, SettingsError
from visrt.runtime.image import letterbox
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.methods.inspro import BANK, PROPOSALS, QUERIES, InsPro, InsProSettings, InsProState
from visrt.runtime.methods.inspro_pairs import Past, forget_past, no_past, with_entry
from visrt.runtime.methods.method import Answer, Call, FrameOutputs, FrameTracks, Track
from visrt.runtime.settings import load_settings

SLOTS, CHANNELS, CLASSES, ENTRIES = 4, 3, 2, 3
INITIAL = {
    QUERIES: np.arange(SLOTS * CHANNELS, dtype=np.float32).reshape(SLOTS, CHANNELS),
    PROPOSALS: np.tile(np.array([0.1, 0.2, 0.7, 0.8], dtype=np.float32), (SLOTS, 1)),
    BANK: np.zeros((SLOTS, ENTRIES, CHANNELS), dtype=np.float32),
}
NO_GRAPHS: Any = None
SEEN = 0.9
"""Score of a slot that the script calls seen."""


@dataclass
class Heads:
    """Says, call by call, which slots are seen. Keeps what it was fed.

    scores: by call, the score of the first class of each slot. invalid, restarted: by call, slots with NaN, and slots
    that restart though they are valid. renewed: entries that the bank was given, None for none, call by call.
    """

    scores: list[list[float]]
    invalid: dict[int, Sequence[int]] = field(default_factory=dict)
    restarted: dict[int, Sequence[int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fed: list[Tensors] = field(default_factory=list)
    renewed: list[int | None] = field(default_factory=list)

    def __call__(self, call: Call) -> Answer:
        if call.graph == "masks":
            kept = np.eye(SLOTS, dtype=np.float32)[call.feeds["slots"]]
            masks = np.broadcast_to(kept[:, None], (len(kept), 8, SLOTS)).copy()
            return Answer({"mask_logits": masks, "kept_embeddings": kept}, {}, self.renew)
        at = len(self.calls)
        self.calls.append(call.graph)
        self.fed.append(dict(call.feeds))
        logits = np.full((SLOTS, CLASSES), -5, dtype=np.float32)
        probabilities = np.array(self.scores[at % len(self.scores)])
        logits[:, 0] = np.log(probabilities / (1 - probabilities))
        invalid, restarted = list(self.invalid.get(at, ())), np.zeros(SLOTS, np.float32)
        logits[invalid] = np.nan
        restarted[[*invalid, *self.restarted.get(at, ())]] = 1
        outputs = {"class_logits": logits, "boxes": np.ones((SLOTS, 4), np.float32), "restarted": restarted}
        return Answer(outputs, {}, self.renew)

    def renew(self, entry: int | None = None) -> None:
        self.renewed.append(entry)


def steady(count: int = 1) -> list[list[float]]:
    """The first `count` slots are seen in every frame."""
    return [[SEEN] * count + [0.05] * (SLOTS - count)]


class Seen(NamedTuple):
    """The tracks of one frame and the state after it."""

    frame: FrameTracks
    state: InsProState


def frame_at(time_s: float) -> FrameOutputs:
    fit = letterbox((32, 16), (32, 16))
    return FrameOutputs(fit, {}, {"mask_features": NO_GRAPHS}, time_s, mask_resize(fit))


def run(method: InsPro, heads: Heads, frames: int, state: InsProState | None = None) -> list[Seen]:
    state, answers = state or method.start(INITIAL), []
    for t in range(frames):
        [tracks], state = finish(method.update([frame_at(t / 10)], NO_GRAPHS, state), heads)
        answers.append(Seen(tracks, state))
    return answers


def shown(answers: list[Seen]) -> list[list[int]]:
    return [[track.id for track in answer.frame.tracks] for answer in answers]


def slots_of(answer: Seen) -> list[int]:
    return [int(track.mask_logits[0].argmax()) for track in answer.frame.tracks if isinstance(track, Track)]


def test_inspro_the_bank_takes_every_frame_where_the_oldest_lies() -> None:
    heads = Heads(steady())
    run(InsPro(), heads, 6)
    assert heads.renewed == [0, 1, 2, 0, 1, 2]
    assert [feeds["ages"].tolist() for feeds in heads.fed[:5]] == [
        [0, 0, 0],
        [1, 0, 0],
        [2, 1, 0],
        [3, 2, 1],
        [1, 3, 2],
    ]
    assert [feeds["fill"].tolist() for feeds in heads.fed[:5]] == [[n] * SLOTS for n in (0, 1, 2, 3, 3)]


def test_inspro_the_least_side_of_a_box_is_a_setting_and_not_a_number_of_the_graph() -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=2, box_side_min=0.25)), heads, 2)
    assert [float(feeds["box_side_min"]) for feeds in heads.fed] == [0.25, 0.25]


def ordered_bank(rng: np.random.Generator) -> tuple[Past, NDArray[np.int64], list[list[int]]]:
    """A ring of numbered entries after random frames, and for each slot the entries that count, kept as a list."""
    entries = int(rng.integers(1, 6))
    past, ring = no_past(SLOTS, entries), np.zeros(entries, dtype=np.int64)
    kept: list[list[int]] = [[] for _ in range(SLOTS)]
    for number in range(1, int(rng.integers(1, 30))):
        if rng.random() < 0.7:  # else a lite frame whose features the bank does not take
            ring[past.next_entry] = number
            past = with_entry(past)
            kept = [[*one, number][-entries:] for one in kept]
        gone = rng.random(SLOTS) < 0.1
        past = forget_past(past, gone)
        kept = [[] if restarts else one for one, restarts in zip(kept, gone, strict=True)]
    return past, ring, kept


@pytest.mark.parametrize("seed", range(20))
def test_inspro_the_ring_counts_what_a_list_of_the_last_frames_would_hold(seed: int) -> None:
    past, ring, kept = ordered_bank(np.random.default_rng(seed))
    for fill, expected in zip(past.fill, kept, strict=True):
        counts = (past.ages > 0) & (past.ages <= fill)
        assert sorted(ring[counts].tolist()) == expected
    assert past.ages.dtype == past.fill.dtype == np.int32


def test_inspro_the_state_does_not_grow() -> None:
    answers = run(InsPro(), Heads(steady(SLOTS)), 30)
    assert {answer.state.step.past.ages.size + answer.state.step.past.fill.size for answer in answers} == {7}


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_inspro_lite_looks_with_all_stages_every_so_many_frames_only(every: int) -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=every)), heads, 21)
    assert heads.calls == ["head" if t % every == 0 else "head_lite" for t in range(21)]


def test_inspro_lite_the_bank_takes_key_frames_alone() -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=3)), heads, 5)
    assert heads.renewed == [0, None, None, 1, None]
    assert heads.fed[3]["fill"].tolist() == [1] * SLOTS
    assert all("fill" not in heads.fed[t] for t in (1, 2, 4))


def test_inspro_lite_the_bank_may_take_all_frames() -> None:
    heads = Heads(steady())
    run(InsPro(InsProSettings(key_every_frames=3, bank_takes="all")), heads, 4)
    assert heads.renewed == [0, 1, 2, 0]
    assert heads.fed[3]["ages"].tolist() == [3, 2, 1]


def test_inspro_a_network_that_does_not_attend_to_the_past_is_fed_none_of_it() -> None:
    heads, method = Heads(steady()), InsPro()
    without = {name: values for name, values in INITIAL.items() if name != BANK}
    run(method, heads, 3, method.start(without))
    assert [set(feeds) for feeds in heads.fed] == [{"box_side_min"}] * 3
    assert heads.renewed == [None] * 3


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
    heads = Heads(steady(2), invalid={2: [1]})
    answers = run(InsPro(), heads, 5)
    assert [answer.frame.dropped_slots for answer in answers] == [0, 0, 1, 0, 0]
    assert shown(answers) == [[0, 1], [0, 1], [0], [0, 2], [0, 2]]
    assert heads.fed[3]["fill"].tolist() == [3, 0, 3, 3]


def test_inspro_a_slot_that_restarts_is_shown_once_more_and_then_another_object() -> None:
    """Its box was good in this frame, and is too small for the next."""
    heads = Heads(steady(2), restarted={1: [0]})
    answers = run(InsPro(), heads, 4)
    assert [answer.frame.dropped_slots for answer in answers] == [0, 1, 0, 0]
    assert shown(answers) == [[0, 1], [0, 1], [1, 2], [1, 2]]
    assert heads.fed[2]["fill"].tolist() == [0, 2, 2, 2]


def test_inspro_nothing_but_nan_is_an_error_and_leaves_the_state() -> None:
    heads = Heads(steady(), invalid={1: range(SLOTS)})
    method = InsPro()
    [first] = run(method, heads, 1)
    with pytest.raises(NumericalError, match="NaN or infinity in every slot of its head graph"):
        finish(method.update([frame_at(0.1)], NO_GRAPHS, first.state), heads)
    assert heads.renewed == [0]
    assert shown(run(method, heads, 1, first.state)) == [[0]]


def test_inspro_after_a_restart_ids_go_on_and_nothing_counts_in_the_bank() -> None:
    heads, family = Heads(steady(2)), InsPro(InsProSettings(key_every_frames=5))
    answers = run(family, heads, 3)
    again = run(family, heads, 1, family.restart(answers[-1].state, INITIAL))
    assert shown(again) == [[2, 3]]
    assert heads.calls[-1] == "head"
    assert not heads.fed[-1]["ages"].any()
    assert not heads.fed[-1]["fill"].any()


def test_inspro_updates_leave_the_past_they_are_given_as_it_is() -> None:
    past = with_entry(no_past(SLOTS, ENTRIES))
    forget_past(with_entry(past), np.array([True, False, True, False]))
    assert (past.written, past.fill.tolist(), past.ages.tolist()) == (1, [1] * SLOTS, [1, 0, 0])
