from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fakes import MasksEngine, colour_session, patches
from numpy.typing import NDArray

from visrt.benchmarks.video_level.rules import official_result
from visrt.benchmarks.video_level.tracks import best_of_video
from visrt.runtime.errors import UsageError
from visrt.runtime.masks import decode
from visrt.runtime.session import Session

SIZE = (128, 192)


def clip() -> list[NDArray[np.uint8]]:
    """A red patch that crosses the picture; a green one in the last three of six frames."""
    green = (1, 20, 76, 40, 40)
    return [patches(SIZE, (0, 16 * t, 16, 48, 40), *([green] if t > 2 else [])) for t in range(6)]


def test_the_best_pairs_of_slot_and_label_win_and_a_slot_may_win_twice() -> None:
    mean_logits = np.log(np.array([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5]], dtype=np.float32))

    winners = best_of_video(mean_logits, top_k=3)

    assert [(w.slot, w.label) for w in winners] == [(0, 0), (0, 1), (1, 1)]
    assert np.allclose([w.score for w in winners], [0.5, 0.4, 0.3])


def test_tracks_run_over_the_whole_video_and_absent_is_no_mask() -> None:
    result = official_result(colour_session(), clip, top_k=2)

    red, green = result.tracks
    assert result.frames == 6
    assert (red.label, green.label) == (0, 1)
    assert red.score > green.score
    assert all(rle is not None and decode(rle).shape == SIZE for rle in red.masks)
    assert [rle is not None for rle in green.masks] == [False] * 3 + [True] * 3


def test_masks_are_made_for_the_winners_alone() -> None:
    session = colour_session()
    masks = MasksEngine(session.manifest.graphs["masks"])
    session.network._engines = {**session.network._engines, "masks": masks}

    official_result(session, clip, top_k=1)

    assert (masks.calls, masks.rows) == (6, 6)


def test_an_empty_video_has_no_tracks() -> None:
    result = official_result(colour_session(), list)

    assert (result.frames, result.tracks) == (0, ())


def test_a_video_that_reads_otherwise_the_second_time_is_refused() -> None:
    once = iter(clip())

    def read() -> Iterator[NDArray[np.uint8]]:
        return once

    with pytest.raises(UsageError, match="6 frames at first and 0"):
        official_result(colour_session(), read)


def test_the_stream_of_the_session_is_left_as_it_was() -> None:
    session, untouched = colour_session(), colour_session()
    frames = clip()
    session.step(frames[0])
    untouched.step(frames[0])

    official_result(session, clip)

    assert session.step(frames[1]) == untouched.step(frames[1])
    assert session.events.frames == 2


def left_edges(preset: str) -> list[int]:
    """Of the best track, the first column of its mask in each frame; a patch at the left is red in two frames.

    In the third one it is green, and a red one has turned up at its right.
    """
    first = patches(SIZE, (0, 16, 16, 48, 40))
    last = patches(SIZE, (1, 16, 16, 48, 40), (0, 120, 16, 48, 40))
    plain = colour_session()
    session = Session(plain.manifest, plain.network._engines, preset=preset)
    best = official_result(session, lambda: [first, first, last], top_k=2).tracks[0]
    return [int(np.argmax(decode(rle).any(axis=0))) for rle in best.masks if rle is not None]


def test_minvis_s_heuristic_links_masks_and_its_published_rule_embeddings() -> None:
    assert left_edges("minvis") == pytest.approx([16, 16, 120], abs=4)
    assert left_edges("minvis-heuristics") == pytest.approx([16, 16, 16], abs=4)
