"""A change is judged clip by clip: objects continue inside a clip, never from one into the next."""

from __future__ import annotations

import numpy as np
import pytest

from visrt.calibration.evaluator import Degradation, agreement_of_clips
from visrt.runtime.methods.queries import Queries
from visrt.runtime.parity.agreement import FrameAnswer, packed_masks

SURE, NONE = (9.0, 0.0), (0.0, 9.0)


def answer(order: tuple[int, ...] = (0, 1), logits: tuple[float, float] = SURE) -> FrameAnswer:
    """Two queries whose embeddings are those of objects `order`; the same masks always."""
    classes = np.array([logits, logits], np.float32)
    embeddings = np.eye(2, dtype=np.float32)[list(order)]
    return FrameAnswer(Queries(classes, embeddings, embeddings), packed_masks(np.ones((2, 4, 4))))


def test_two_clips_that_do_not_continue_each_other_agree_when_each_agrees() -> None:
    expected = [[answer((0, 1)), answer((0, 1))], [answer((0, 1)), answer((0, 1))]]
    given = [[answer((0, 1)), answer((0, 1))], [answer((1, 0)), answer((1, 0))]]
    assert agreement_of_clips(expected, given).assignment == 1


def test_a_swap_inside_a_clip_counts() -> None:
    expected = [[answer((0, 1)), answer((0, 1))], [answer((0, 1)), answer((0, 1))]]
    given = [[answer((0, 1)), answer((1, 0))], [answer((0, 1)), answer((0, 1))]]
    assert agreement_of_clips(expected, given).assignment == 0.5


def test_clips_that_show_no_object_say_nothing_of_the_assignment() -> None:
    expected = [[answer(), answer()], [answer(logits=NONE), answer(logits=NONE)]]
    given = [[answer(), answer()], [answer(logits=NONE), answer((1, 0), logits=NONE)]]
    assert agreement_of_clips(expected, given).assignment == 1


def test_clips_of_one_frame_have_no_assignment() -> None:
    assert np.isnan(agreement_of_clips([[answer()]], [[answer()]]).assignment)


def test_harm_is_the_mean_of_its_three_parts() -> None:
    assert Degradation(masks=0.3, classes=0.0, features=0.6).total == pytest.approx(0.3)
