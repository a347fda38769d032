"""MinVIS after the network: linking, video-level scores and final masks as the official code computed them."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ScriptedFrame, scripted_session
from golden import Golden, assert_same_finals, fit_officially, golden_sets
from numpy.typing import NDArray

from visrt.benchmarks.video_level.rules import official_result
from visrt.benchmarks.video_level.tracks import best_of_video
from visrt.runtime.image import Letterbox, pillow_bilinear
from visrt.runtime.mask_resize import mask_resize
from visrt.runtime.masks import decode
from visrt.runtime.methods.minvis import match_to_slots
from visrt.runtime.methods.queries import Queries

EVERY_SET = pytest.mark.parametrize("golden", golden_sets("minvis", "network", "track"), indirect=True)
NETWORK_SETS = pytest.mark.parametrize("golden", golden_sets("minvis", "network"), indirect=True)
TRACK_SETS = pytest.mark.parametrize("golden", golden_sets("minvis", "track"), indirect=True)


def linked(embeddings: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """The query of each slot, frame by frame from the second on."""
    memory, orders = embeddings[0], []
    for current in embeddings[1:]:
        orders.append(match_to_slots(memory, current))
        memory = current[orders[-1]]
    return orders


@EVERY_SET
def test_golden_minvis_queries_are_linked_as_the_official_code_does(golden: Golden) -> None:
    assert np.array_equal(np.stack(linked(golden["pred_embds"])), golden["match_perm"])


@TRACK_SETS
def test_golden_minvis_video_scores_come_from_mean_logits_of_the_slots(golden: Golden) -> None:
    orders = [np.arange(golden["pred_logits"].shape[1]), *linked(golden["pred_embds"])]
    mean = np.mean([logits[order] for logits, order in zip(golden["pred_logits"], orders, strict=True)], axis=0)

    finals, by_score = golden.finals, np.argsort(-golden.finals.scores)
    winners = best_of_video(mean, top_k=len(finals.scores))

    np.testing.assert_allclose(mean, golden["avg_logits"], atol=1e-5)
    np.testing.assert_allclose([w.score for w in winners], finals.scores[by_score], atol=1e-5)
    assert [w.label for w in winners] == finals.labels[by_score].tolist()


@TRACK_SETS
def test_golden_minvis_final_masks_equal_the_official_two_resizes(golden: Golden) -> None:
    resize = mask_resize(Letterbox(tuple(golden["output_size"]), golden.valid_size, golden.input_size))
    winners = best_of_video(golden["avg_logits"], top_k=len(golden.finals.scores))
    expected = golden.finals.masks[np.argsort(-golden.finals.scores)]

    wrong = 0
    for winner, masks in zip(winners, expected, strict=True):
        for logits, mask in zip(golden["aligned_masks"][winner.slot], masks, strict=True):
            made = resize.source_mask(resize.crop(logits[None])[0])
            wrong += int(((decode(made.rle) if made else np.zeros_like(mask)) != mask).sum())
    assert expected.any()
    assert wrong <= 1e-4 * expected.size


@NETWORK_SETS
def test_golden_minvis_frames_are_resized_as_for_the_published_models(golden: Golden) -> None:
    resized = np.stack([pillow_bilinear(frame, golden.valid_size) for frame in golden.frames])

    assert np.array_equal(resized.transpose(0, 3, 1, 2), golden.resized)


@NETWORK_SETS
def test_golden_minvis_official_result_end_to_end_from_stored_network_outputs(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored masks are fed as mask features and chosen by one-hot mask embeddings, so the whole way is walked."""
    fit_officially(monkeypatch, golden)
    picks = np.eye(golden["pred_logits"].shape[1], dtype=np.float32)
    script = [
        ScriptedFrame(Queries(logits, embeddings, picks), masks)
        for logits, embeddings, masks in zip(
            golden["pred_logits"], golden["pred_embds"], golden["pred_masks"], strict=True
        )
    ]
    session = scripted_session(script, size=golden.input_size)

    result = official_result(session, lambda: iter(golden.frames), len(golden.finals.scores))

    assert_same_finals(result, golden.finals)
