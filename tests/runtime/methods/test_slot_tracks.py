"""When a slot's object is lost: missed in an update, and out of sight for longer than the setting."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from visrt.runtime.methods.slot_tracks import NO_OBJECT, SlotTracks, mark_seen, new_slot_tracks, without_lost

SEEN, AWAY = 0.9, 0.1


def updated(tracks: SlotTracks, now_s: float, lost_s: float | None, *scores: float) -> SlotTracks:
    probabilities: NDArray[np.float32] = np.array(scores, np.float32)[:, None]
    tracks = without_lost(tracks, now_s, lost_s)
    tracks, _ = mark_seen(tracks, probabilities, now_s, birth_score=0.5, keep_score=0.5, max_objects=9)
    return tracks


@pytest.mark.parametrize("step_s", [0.1, 1.0, 60.0, 3600.0])
def test_what_is_seen_in_each_frame_is_never_lost(step_s: float) -> None:
    tracks = new_slot_tracks(2, next_id=0)
    for at in range(6):
        tracks = updated(tracks, at * step_s, 5.0, SEEN, AWAY)
    assert tracks.ids.tolist() == [0, NO_OBJECT]


@pytest.mark.parametrize(
    ("times_s", "lost_s", "expected"),
    [
        ((0, 60, 120), 5.0, 1),
        ((0, 2, 4), 5.0, 0),
        ((0, 2, 6), 5.0, 1),
        ((0, 60, 120), None, 0),
        ((0, 60, 120), 120.0, 0),
    ],
)
def test_it_is_lost_after_a_missed_frame_and_the_seconds_together(
    times_s: tuple[float, float, float], lost_s: float | None, expected: int
) -> None:
    """Shown, missed once, shown again."""
    tracks = new_slot_tracks(1, next_id=0)
    for now_s, score in zip(times_s, (SEEN, AWAY, SEEN), strict=True):
        tracks = updated(tracks, now_s, lost_s, score)
    assert tracks.ids.tolist() == [expected]
    assert tracks.visible.tolist() == [True]
