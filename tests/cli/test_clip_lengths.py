"""What the user writes for --clip-lengths."""

from __future__ import annotations

import pytest

from visrt.commands.names import with_clip_lengths
from visrt.runtime.errors import UsageError


def test_the_first_length_is_the_usual_one_and_settings_of_the_user_stay() -> None:
    assert with_clip_lengths({"keep_score": 0.1}, "3, 1,7") == {
        "keep_score": 0.1,
        "clip_frames": 3,
        "clip_lengths": (3, 1, 7),
    }
    assert with_clip_lengths({"clip_frames": 7}, "3,7") == {"clip_frames": 7, "clip_lengths": (3, 7)}


def test_without_lengths_settings_are_as_they_were() -> None:
    assert with_clip_lengths({"keep_score": 0.1}, None) == {"keep_score": 0.1}


@pytest.mark.parametrize("text", ["", "0", "1,,3", "a", "1.5", "3 frames", "-1"])
def test_what_is_no_list_of_lengths_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="are not understood; expected numbers of frames with commas"):
        with_clip_lengths({}, text)


def test_a_length_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="expected each length once"):
        with_clip_lengths({}, "3,1,3")
