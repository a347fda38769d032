"""The synthetic stream is what it says, and following it keeps nothing that grows."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from visrt.benchmarks.experiments.association import (
    StreamSettings,
    array_bytes,
    endless,
    follower,
    frames_of,
)
from visrt.benchmarks.speed.scripted import disc_masks
from visrt.runtime.methods.presets import PRESETS

SMALL = StreamSettings(queries=12, objects=4, channels=16, classes=3, change=0.1)


def test_each_frame_has_its_objects_in_view_among_background() -> None:
    frames = list(islice(frames_of(SMALL), 50))

    in_view = [int((queries.scores() > 0.5).sum()) for queries in frames]
    assert all(len(queries) == SMALL.queries for queries in frames)
    assert max(in_view) == SMALL.objects
    assert 3 < np.mean(in_view) < SMALL.objects


def test_objects_of_a_calm_stream_keep_their_ids_and_those_that_change_get_new_ones() -> None:
    calm = StreamSettings(queries=12, objects=4, channels=16, classes=3, change=0, hidden=0)
    for settings, ids_given in ((calm, range(4, 5)), (SMALL, range(15, 60))):
        stream = follower("memory", np.ones((12, 1, 1), np.float32), nms_iou=1.0)
        for queries in islice(frames_of(settings), 60):
            stream.seconds(queries)
        assert stream.state.next_id in ids_given


@pytest.mark.parametrize("name", PRESETS)
def test_a_state_does_not_grow_with_births_and_deaths(name: str) -> None:
    stream = follower(name, disc_masks(12, (6, 8)), lost_s=0.2)
    sizes = []
    for queries in islice(frames_of(SMALL), 600):
        stream.seconds(queries)
        sizes.append(array_bytes(stream.state))

    assert stream.frames == 600
    assert max(sizes[300:]) <= 1.3 * max(sizes[50:300])


def test_a_thousand_frames_are_told_with_time_ids_and_bytes() -> None:
    [thousand] = endless("memory", 1, SMALL)

    assert thousand["frames"] == 1000
    assert thousand["ids_given"] > 50
    assert thousand["p50_ms"] > 0
    assert thousand["state_bytes"] < 200_000
