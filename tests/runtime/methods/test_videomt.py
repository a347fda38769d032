"""Claims about VidEoMT's tracks: when a slot is an object that a user sees, and with which id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fakes import finish

from visrt.runtime.arrays import Array
from visrt.runtime.errors import NumericalError, SettingsError
from visrt.runtime.image import letterbox
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.methods.method import Answer, Call, FrameOutputs, Track
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.methods.videomt import VideoMt, VideoMtSettings, VideoMtState

SLOTS, CLASSES = 4, 2
INITIAL = {"queries": np.zeros((SLOTS, 3), dtype=np.float32)}
NO_GRAPHS: Any = None
SURE, UNSURE = 0.9, 0.1
HERE, THERE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@dataclass
class Seen:
    """What the network says of a frame by slot: score of class 0, cells of the mask, mask embedding; nan: slots."""

    scores: Mapping[int, float] = field(default_factory=dict)
    cells: Mapping[int, int] = field(default_factory=dict)
    embeddings: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    nan: Sequence[int] = ()
    renewed: list[int | None] = field(default_factory=list)

    def answer(self, call: Call) -> Answer:
        return self.decoder() if call.graph == "decoder" else self.masks(call.feeds["slots"])

    def decoder(self) -> Answer:
        scores = np.array([self.scores.get(slot, UNSURE) for slot in range(SLOTS)])
        chances = np.stack([scores, np.full(SLOTS, 0.01), 0.99 - scores], axis=1)
        logits = np.log(chances).astype(np.float32)
        logits[list(self.nan)] = np.nan
        return Answer({"class_logits": logits}, {}, lambda entry=None: self.renewed.append(entry))

    def masks(self, slots: Array) -> Answer:
        """By default a mask has five cells."""
        logits = np.full((len(slots), 8, 8), -1, dtype=np.float32)
        for row, slot in enumerate(slots.tolist()):
            logits[row].flat[: self.cells.get(slot, 5)] = 1
        kept = np.array([self.embeddings.get(slot, HERE) for slot in slots.tolist()], dtype=np.float32)
        return Answer({"mask_logits": logits, "kept_embeddings": kept}, {}, lambda entry=None: None)


def follow(frames: list[Seen], fps: float = 10.0, **settings: Any) -> list[list[Track]]:
    """The tracks of each frame of a stream."""
    method = VideoMt(VideoMtSettings(**settings))
    state, shown = method.start(INITIAL), []
    for t, seen in enumerate(frames):
        [result], state = update(method, seen, state, t / fps)
        shown.append(result)
    return shown


def update(method: VideoMt, seen: Seen, state: VideoMtState, now_s: float) -> tuple[list[list[Track]], VideoMtState]:
    fit = letterbox((32, 32), (32, 32))
    frame = FrameOutputs(fit, {}, {}, time_s=now_s, resize=mask_resize(fit))
    [result], state = finish(method.update([frame], NO_GRAPHS, state), seen.answer)
    return [[track for track in result.tracks if isinstance(track, Track)]], state


def ids(shown: list[list[Track]]) -> list[list[int]]:
    return [[track.id for track in tracks] for tracks in shown]


def test_a_slot_is_one_object_from_the_first_frame_in_which_it_is_sure() -> None:
    one = Seen({2: SURE})
    both = Seen({0: 0.8, 2: SURE})
    shown = follow([Seen(), one, both, both])
    assert ids(shown) == [[], [0], [0, 1], [0, 1]]
    assert [track.label for track in shown[3]] == [0, 0]
    assert np.count_nonzero(shown[3][0].mask_logits > 0) == 5


def test_an_object_whose_mask_is_empty_is_absent_however_sure_its_class_is() -> None:
    gone = Seen({2: SURE}, cells={2: 0})
    assert ids(follow([gone, Seen({2: SURE}), gone, Seen({2: SURE})])) == [[], [0], [], [0]]
    speck = Seen({2: SURE}, cells={2: 3})
    assert ids(follow([Seen({2: SURE}), speck], mask_cells_min=4)) == [[0], []]
    assert ids(follow([gone], birth_score=0.0, keep_score=0.0)) == [[0, 1, 2]], "no threshold shows an empty mask"


def test_an_object_is_kept_at_a_lower_score_than_it_is_born_with() -> None:
    weak = Seen({1: 0.45})
    assert ids(follow([weak, Seen({1: SURE}), weak])) == [[], [0], [0]]


def test_a_slot_that_comes_back_as_something_else_is_another_object() -> None:
    here, there, nothing = Seen({1: SURE}), Seen({1: SURE}, embeddings={1: THERE}), Seen()
    assert ids(follow([here, nothing, there, there])) == [[0], [], [1], [1]]
    assert ids(follow([here, nothing, here])) == [[0], [], [0]]
    assert ids(follow([here, there])) == [[0], [0]], "what is seen without a gap stays itself"
    assert ids(follow([here, nothing, there], revive_similarity=-1.0)) == [[0], [], [0]]


def test_what_an_unseen_slot_looks_like_meanwhile_does_not_matter() -> None:
    elsewhere = Seen({1: SURE}, cells={1: 0}, embeddings={1: THERE})
    assert ids(follow([Seen({1: SURE}), elsewhere, Seen({1: SURE})])) == [[0], [], [0]]


def test_a_slot_that_was_not_seen_for_too_long_is_free_for_another_object() -> None:
    here, nothing = Seen({1: SURE}), Seen()
    frames = [here, *[nothing] * 60, here]
    assert ids(follow(frames, fps=10.0))[-1] == [1]
    assert ids(follow(frames, fps=20.0))[-1] == [0]
    assert ids(follow(frames, fps=10.0, lost_s=None))[-1] == [0]


def test_the_score_averages_the_frames_in_which_the_object_was_seen() -> None:
    shown = follow([Seen({1: 0.9}), Seen(), Seen({1: 0.6})])
    assert shown[2][0].score == pytest.approx(0.75, abs=1e-5)
    assert follow([Seen({1: 0.9}), Seen({1: 0.6})], score_window_frames=1)[1][0].score == pytest.approx(0.6, abs=1e-5)


def test_of_many_objects_the_best_are_shown() -> None:
    crowd = Seen({0: 0.6, 1: 0.7, 2: 0.8, 3: 0.9})
    assert [np.count_nonzero(t.mask_logits) for t in follow([crowd], max_objects=2)[0]] == [64, 64]
    assert [round(t.score, 3) for t in follow([crowd], max_objects=2)[0]] == [0.9, 0.8]


def test_a_frame_in_which_no_slot_is_finite_is_an_error_and_leaves_tracks_and_state_as_they_were() -> None:
    method, bad = VideoMt(), Seen({1: SURE}, nan=range(SLOTS))
    [_], state = update(method, Seen({1: SURE}), method.start(INITIAL), 0.0)
    with pytest.raises(NumericalError, match="NaN or infinity in every slot of its decoder graph"):
        update(method, bad, state, 0.1)
    assert bad.renewed == []
    [tracks], _ = update(method, Seen({1: SURE}), state, 0.2)
    assert [track.id for track in tracks] == [0]


def test_a_slot_that_is_not_finite_loses_its_object_and_no_other() -> None:
    both, bad = Seen({0: SURE, 1: SURE}), Seen({0: SURE, 1: SURE}, nan=[1])
    assert ids(follow([both, bad, both])) == [[0, 1], [0], [0, 2]]
    assert bad.renewed == [None]


def test_after_a_restart_ids_go_on() -> None:
    method = VideoMt()
    [_], state = update(method, Seen({1: SURE}), method.start(INITIAL), 0.0)
    [tracks], _ = update(method, Seen({1: SURE}), method.restart(state, INITIAL), 0.1)
    assert [track.id for track in tracks] == [1]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'brith_score'; known here: birth_score"):
        METHODS["videomt"]({"brith_score": 0.5})
