"""CTVIS after the network: candidates, ids, memory, video-level scores and masks as the official code computed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedFrame, frame_outputs, scripted_session
from golden import Golden, assert_same_finals, fit_officially, golden_sets
from numpy.typing import NDArray

from visrt.benchmarks.video_level.ctvis import mean_logits, recorded
from visrt.benchmarks.video_level.rules import official_result
from visrt.runtime.arrays import Tensor
from visrt.runtime.engines.engine import HostEngine
from visrt.runtime.methods.ctvis import CtVis, CtVisSettings, CtVisState, Followed
from visrt.runtime.methods.memory import kept
from visrt.runtime.methods.queries import Queries
from visrt.runtime.session import Session

EVERY_SET = pytest.mark.parametrize("golden", golden_sets("ctvis", "network", "track"), indirect=True)
NETWORK_SETS = pytest.mark.parametrize("golden", golden_sets("ctvis", "network"), indirect=True)
TRACK_SETS = pytest.mark.parametrize("golden", golden_sets("ctvis", "track"), indirect=True)
FPS = 6.0


def queries_of(golden: Golden) -> list[Queries]:
    """One-hot mask embeddings, which choose the stored masks and tell which query is which."""
    picks = np.eye(golden["pred_logits"].shape[1], dtype=np.float32)
    pairs = zip(golden["pred_logits"], golden.embeddings, strict=True)
    return [Queries(logits, embeddings, picks) for logits, embeddings in pairs]


def followed(golden: Golden) -> Iterator[tuple[Followed, CtVisState]]:
    """Each frame's outcome, with every object given its id at birth, and the state before it."""
    family = CtVis(CtVisSettings(steady_frames=1, show_score=0))
    state = family.start()
    for t, (queries, masks) in enumerate(zip(queries_of(golden), golden["pred_masks"], strict=True)):
        outcome, after = family.follow(queries, partial(np.einsum, "qhw,mq->mhw", masks), t / FPS, state)
        yield outcome, state
        state = after


def query_indices(queries: Queries) -> NDArray[np.intp]:
    indices: NDArray[np.intp] = queries.mask_embeddings.argmax(axis=1)
    return indices


@EVERY_SET
def test_golden_ctvis_candidates_are_the_official_ones_in_their_order(golden: Golden) -> None:
    for t, (outcome, _) in enumerate(followed(golden)):
        expected = golden["trk_cand_query"][t]
        assert np.array_equal(query_indices(outcome.candidates.queries), expected[expected >= 0])
        np.testing.assert_allclose(outcome.candidates.scores, golden["trk_cand_score"][t][expected >= 0], atol=1e-6)


@EVERY_SET
def test_golden_ctvis_ids_are_the_official_ones_in_every_frame(golden: Golden) -> None:
    for t, (outcome, _) in enumerate(followed(golden)):
        ids = np.full(golden["trk_query_to_id"].shape[1], -1)
        ids[query_indices(outcome.candidates.queries)[outcome.chosen]] = outcome.memory.ids[outcome.rows]
        assert np.array_equal(ids, golden["trk_query_to_id"][t])


@EVERY_SET
def test_golden_ctvis_memory_holds_the_official_embeddings_and_ages(golden: Golden) -> None:
    steps = list(followed(golden))

    for t in range(1, len(steps)):
        memory = steps[t][1].memory
        assert memory is not None
        memory = kept(memory, t / FPS, CtVisSettings().lost_s, 1000)
        there = golden["trk_mem_ids_before"][t] >= 0
        assert np.array_equal(memory.ids, golden["trk_mem_ids_before"][t][there])
        assert np.array_equal(memory.seen_frames, golden["trk_mem_frames_before"][t][there])
        np.testing.assert_allclose(memory.embeddings, golden["trk_mem_embeds_before"][t][there], atol=1e-5)


@EVERY_SET
def test_golden_ctvis_noise_leaves_the_output_and_means_are_over_present_frames(golden: Golden) -> None:
    frames = []
    for outcome, _ in followed(golden):
        queries = outcome.candidates.queries.take(outcome.chosen)
        ids = outcome.memory.ids[outcome.rows].tolist()
        frames.append(list(zip(ids, queries.class_logits, queries.mask_embeddings, strict=True)))

    count, outputs = recorded(frames)

    assert count == len(golden["pred_logits"])
    np.testing.assert_allclose(mean_logits(outputs), golden["trk_video_logits"], atol=1e-5)
    if "trk_video_masks" in golden:
        present = [[t in output.mask_embeddings for t in range(count)] for output in outputs]
        assert np.array_equal(present, golden["trk_video_masks"].any(axis=(2, 3)))


@dataclass
class KnowingEngine(HostEngine):
    """Says of the t-th picture it ever meets what the script says of frame t, however often it meets it."""

    script: list[ScriptedFrame]
    met: dict[bytes, int] = field(default_factory=dict)
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        return frame_outputs([self.script[self.met.setdefault(i.tobytes(), len(self.met))] for i in feeds["images"]])

    def close(self) -> None: ...


def session_on(golden: Golden) -> Session:
    """A session whose network says what is stored: masks as mask features, chosen by one-hot mask embeddings."""
    script = [ScriptedFrame(q, masks) for q, masks in zip(queries_of(golden), golden["pred_masks"], strict=True)]
    session = scripted_session(script, size=golden.input_size)
    engines = {**session.network._engines, "frame": KnowingEngine(script)}
    return Session(session.manifest, engines, preset="ctvis")


@NETWORK_SETS
def test_golden_ctvis_official_result_end_to_end_from_stored_network_outputs(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)

    result = official_result(session_on(golden), lambda: iter(golden.frames), len(golden.finals.scores))

    assert_same_finals(result, golden.finals)


@TRACK_SETS
def test_golden_ctvis_track_official_result_from_stored_queries_and_masks(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_officially(monkeypatch, golden)
    pictures = [np.full((*golden["output_size"], 3), t, dtype=np.uint8) for t in range(len(golden["truth"]))]

    result = official_result(session_on(golden), lambda: pictures, len(golden.finals.scores))

    assert_same_finals(result, golden.finals, score_tolerance=1e-5)
