"""Claims about VidEoMT's tracks: when a slot is an object that a user sees, and with which id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from visrt.runtime.arrays import Floats, Tensors
from visrt.runtime.errors import NumericalError, SettingsError
from visrt.runtime.image import letterbox
from visrt.runtime.methods.method import FrameOutputs, Track
from visrt.runtime.methods.registry import METHODS
from visrt.runtime.methods.videomt import VideoMt, VideoMtSettings, VideoMtState

SLOTS, CLASSES = 4, 2
INITIAL = {"queries": np.zeros((SLOTS, 3), dtype=np.float32)}
SURE, UNSURE = 0.9, 0.1
HERE, THERE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@dataclass
class Seen:
    """What the network says of a frame by slot: score of class 0, cells of the mask, embedding."""

    scores: Mapping[int, float] = field(default_factory=dict)
    cells: Mapping[int, int] = field(default_factory=dict)
    embeddings: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    nan: str | None = None

    def run(self, graph: str, feeds: Tensors) -> Tensors:
        assert (graph, dict(feeds)) == ("decoder", {})
        scores = np.array([self.scores.get(slot, UNSURE) for slot in range(SLOTS)])
        chances = np.stack([scores, np.full(SLOTS, 0.01), 0.99 - scores], axis=1)
        embeddings = np.array([self.embeddings.get(slot, HERE) for slot in range(SLOTS)], dtype=np.float32)
        outputs = {
            "class_logits": np.log(chances).astype(np.float32),
            "embeddings": embeddings,
            "mask_embeddings": np.arange(SLOTS, dtype=np.float32)[:, None],
            "next_queries": embeddings,
        }
        if self.nan is not None:
            outputs[self.nan] = np.full_like(outputs[self.nan], np.nan)
        return outputs

    def masks(self, frame: FrameOutputs, mask_embeddings: Floats) -> Floats:
        """A mask embedding is the number of its slot; by default its mask has five cells."""
        logits = np.full((len(mask_embeddings), 8, 8), -1, dtype=np.float32)
        for row, slot in enumerate(mask_embeddings[:, 0].astype(int)):
            logits[row].flat[: self.cells.get(slot, 5)] = 1
        return logits


def follow(frames: list[Seen], fps: float = 10.0, **settings: Any) -> list[list[Track]]:
    """The tracks of each frame of a stream."""
    method = VideoMt(VideoMtSettings(**settings))
    state, shown = method.start(INITIAL), []
    for t, seen in enumerate(frames):
        [result], state = update(method, seen, state, t / fps)
        shown.append(result)
    return shown


def update(method: VideoMt, seen: Seen, state: VideoMtState, now_s: float) -> tuple[list[list[Track]], VideoMtState]:
    frame = FrameOutputs(letterbox((32, 32), (32, 32)), {}, {}, time_s=now_s)
    [result], state = method.update([frame], seen, state)
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


@pytest.mark.parametrize("role", ["class_logits", "embeddings", "mask_embeddings", "next_queries"])
def test_a_frame_that_is_not_finite_is_an_error_and_leaves_the_tracks_as_they_were(role: str) -> None:
    method = VideoMt()
    [_], state = update(method, Seen({1: SURE}), method.start(INITIAL), 0.0)
    with pytest.raises(NumericalError, match=role):
        update(method, Seen({1: SURE}, nan=role), state, 0.1)
    [tracks], _ = update(method, Seen({1: SURE}), state, 0.2)
    assert [track.id for track in tracks] == [0]


def test_after_a_restart_ids_go_on() -> None:
    method = VideoMt()
    [_], state = update(method, Seen({1: SURE}), method.start(INITIAL), 0.0)
    [tracks], _ = update(method, Seen({1: SURE}), method.restart(state, INITIAL), 0.1)
    assert [track.id for track in tracks] == [1]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'brith_score'; known here: birth_score"):
        METHODS["videomt"]({"brith_score": 0.5})
