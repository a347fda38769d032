"""Every golden set is taken or skipped in sight, and what compares them can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Finals, Golden, assert_same_finals, comparing, unknown_sets
from golden_networks import INPUT_NOISE, ROUNDINGS, bounded_run
from torch import Tensor

from visrt.benchmarks.video_level.tracks import VideoResult, VideoTrack
from visrt.runtime.masks import encode_region

STORED = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
SET = Golden(
    Path("set.npz"),
    {
        "clip0/logits": STORED,
        "clip2/logits": STORED,
        "clip10/logits": STORED,
        "clip2/key": STORED,
        "config_json": np.array(json.dumps({"classes": 3})),
    },
)


@pytest.mark.parametrize("path", unknown_sets(), ids=lambda path: path.stem)
def test_golden_set_of_a_known_family(path: Path) -> None:
    pytest.skip(f"no code here for {path.stem}: neither its family and arrays nor its kind are in golden.KINDS")


def test_parts_are_in_the_order_of_their_numbers_and_hold_what_is_needed() -> None:
    assert SET.config == {"classes": 3}
    assert SET.parts("clip") == {0: "clip0/", 2: "clip2/", 10: "clip10/"}
    assert SET.parts("clip", "key") == {2: "clip2/"}
    with pytest.raises(pytest.skip.Exception, match="set stores value of no clip"):
        SET.parts("clip", "value")


def test_an_array_that_differs_by_more_than_its_bound_fails() -> None:
    with comparing(SET) as compare:
        compare("clip0/", {"logits": STORED + 2e-4})
    with pytest.raises(AssertionError, match="clip0/logits differs by"), comparing(SET) as compare:
        compare("clip0/", {"logits": STORED + 4e-4})
    with comparing(SET, {"clip0/logits": 1e-3}) as compare:
        compare("clip0/", {"logits": STORED + 4e-4})
    with pytest.raises(AssertionError, match="clip0/logits differs by nan"), comparing(SET) as compare:
        compare("clip0/", {"logits": STORED * np.nan})


def test_what_no_part_stores_skips_the_test_and_is_named() -> None:
    with comparing(SET) as compare:
        compare("clip0/", {"key": STORED})
        compare("clip2/", {"key": STORED})
    with pytest.raises(pytest.skip.Exception, match="set does not store value; the rest agrees"), comparing(SET) as c:
        c("clip0/", {"logits": STORED, "value": STORED})
    with pytest.raises(AssertionError, match="clip0/logits"), comparing(SET) as compare:
        compare("clip0/", {"value": STORED, "logits": STORED + 1})


def test_the_bound_of_a_recurrence_grows_with_what_it_makes_of_noise() -> None:
    def doubling(images: list[Tensor]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        total, arrays = torch.zeros_like(images[0]), {}
        for i, one in enumerate(images):
            total = 100 * total + one
            arrays[f"mask_logits{i}"] = (total / 100**i).numpy()
            arrays[f"difference{i}"] = (total - 100**i * images[0].new_ones(())).numpy()
        return arrays, {"probabilities": images[0].numpy()}

    run = bounded_run(doubling, [torch.ones(1000)] * 3)

    assert run.bounds["mask_logits0"] == pytest.approx(1e-4 + ROUNDINGS * 4 * INPUT_NOISE, rel=0.01)
    amplified = [run.bounds[f"difference{i}"] - 1e-4 for i in range(3)]
    assert amplified[1] > 50 * amplified[0] > 0
    assert run.chance_bound == run.bounds["probabilities"]
    assert run.mask_share == 1e-4


def track(label: int, score: float, mask: np.ndarray) -> VideoTrack:
    return VideoTrack(label, score, (encode_region(mask.T, (0, 0), mask.shape),))


def test_finals_are_compared_by_label_score_and_mask() -> None:
    left, right = np.zeros((2, 6, 8), dtype=bool)
    left[:, :4], right[:, 4:] = True, True
    finals = Finals(np.array([0.5, 0.7, 0.5]), np.array([1, 0, 1]), np.stack([left, left, right])[:, None])
    made = (track(1, 0.5, right), track(1, 0.5, left), track(0, 0.70001, left))
    assert_same_finals(VideoResult(1, made), finals)
    with pytest.raises(AssertionError, match="no track of label 0 and score"):
        assert_same_finals(VideoResult(1, (*made[:2], track(0, 0.71, left))), finals)
    with pytest.raises(AssertionError, match="no track of label 0"):
        assert_same_finals(VideoResult(1, (*made[:2], track(2, 0.7, left))), finals)
    with pytest.raises(AssertionError):
        assert_same_finals(VideoResult(1, (*made[:2], track(0, 0.7, right))), finals)
    with pytest.raises(AssertionError):
        assert_same_finals(VideoResult(1, made[:2]), finals)
