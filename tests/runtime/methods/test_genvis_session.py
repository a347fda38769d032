"""GenVIS on a stream: clips, prototypes and memory, ids, bad input; on a fake network that looks at the pixels."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import patches
from fakes_genvis import BASE, SLOTS, ClipEngine, FrameEngine, MemoryEngine, genvis_manifest, genvis_session
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.bundles.bundle import Bundle, initial_states, state_bytes
from visrt.runtime.bundles.manifest import FileSpec
from visrt.runtime.errors import BundleError, NumericalError, SettingsError, UsageError
from visrt.runtime.methods.genvis import GenVisSettings, update_tracks
from visrt.runtime.methods.registry import method_of
from visrt.runtime.methods.slot_tracks import new_slot_tracks
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionEvents, SessionSettings
from visrt.runtime.times import Stopwatch
from visrt.runtime.tracker import StreamTracker, update_together

Frame = NDArray[np.uint8]
SIZE = (128, 192)
THREE: dict[str, Any] = {"clip_frames": 3, "clip_lengths": (1, 3)}


def moving(index: int, size: tuple[int, int] = SIZE) -> Frame:
    """A red patch that goes right and a green one that goes left, on grey."""
    return patches(size, (0, 8 + 4 * index, 16, 48, 40), (1, 120 - 4 * index, 72, 40, 40))


def run(session: Session, frames: list[Frame]) -> list[FrameResult]:
    results = [result for frame in frames for result in session.step(frame)]
    return results + session.flush()


def ids(results: list[FrameResult]) -> list[list[int]]:
    return [[found.id for found in result.objects] for result in results]


def clip_engine(session: Session) -> ClipEngine:
    engine = session.network._engines["clip"]
    assert isinstance(engine, ClipEngine)
    return engine


def memory_engine(session: Session) -> MemoryEngine:
    engine = session.network._engines["memory"]
    assert isinstance(engine, MemoryEngine)
    return engine


def frame_engine(session: Session) -> FrameEngine:
    engine = session.network._engines["frame"]
    assert isinstance(engine, FrameEngine)
    return engine


def test_genvis_online_results_come_at_once_with_masks_of_their_frame() -> None:
    session = genvis_session()
    results = run(session, [moving(t) for t in range(4)])
    assert ids(results) == [[0, 1]] * 4
    assert clip_engine(session).lengths == [1] * 4
    for t, result in enumerate(results):
        red = next(found for found in result.objects if found.label == 0)
        assert np.allclose(red.box, (8 + 4 * t, 16, 48, 40), atol=8)


class ShuffledClips(ClipEngine):
    """Gives its slots in another order in each clip; their prototypes say which they are."""

    def _answers(self, queries: NDArray[np.float32], start: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        answers = super()._answers(queries, start)
        answers["prototypes"] = np.eye(SLOTS, answers["prototypes"].shape[1], dtype=np.float32)
        return {role: np.roll(values, len(self.lengths), axis=0) for role, values in answers.items()}


@pytest.mark.parametrize(
    ("linking", "expected"), [("matched", [[0, 1]] * 4), ("carried", [[0, 1], [1, 2], [2, 3], [3, 4]])]
)
def test_genvis_clips_that_start_afresh_are_linked_by_their_prototypes(linking: str, expected: list[list[int]]) -> None:
    session = genvis_session(linking=linking)
    engine = ShuffledClips(session.manifest.graphs["clip"])
    session.network._engines = {**session.network._engines, "clip": engine}

    results = run(session, [moving(t) for t in range(4)])

    assert ids(results) == expected
    assert all(np.array_equal(start, BASE) for start in engine.starts) == (linking == "matched")
    labels = [{found.id: found.label for found in result.objects} for result in results]
    assert (labels == labels[:1] * 4) == (linking == "matched")


def test_genvis_a_matched_slot_that_is_nan_in_one_clip_is_linked_again_in_the_next() -> None:
    session = genvis_session(linking="matched", lost_s=None)
    engine = ShuffledClips(session.manifest.graphs["clip"], poisoned={1: [1]})
    session.network._engines = {**session.network._engines, "clip": engine}

    results = run(session, [moving(t) for t in range(3)])

    assert [len(one) for one in ids(results)] == [2, 1, 2]
    labels = [sorted(found.label for found in result.objects) for result in results]
    assert labels[0] == labels[2]


def test_genvis_semi_online_results_come_a_clip_late_at_most_and_the_last_clip_is_short() -> None:
    session = genvis_session(**THREE)
    ready = [[result.index for result in session.step(moving(t))] for t in range(8)]
    last = session.flush()
    assert ready == [[], [], [0, 1, 2], [], [], [3, 4, 5], [], []]
    assert [result.index for result in last] == [6, 7]
    assert clip_engine(session).lengths == [3, 3, 2]
    assert frame_engine(session).batches == [3, 3, 2]
    assert session.flush() == []
    assert session.events == SessionEvents(frames=8)


def test_genvis_every_frame_of_a_clip_has_its_own_masks_time_and_size() -> None:
    results = run(genvis_session(SessionSettings(default_fps=10), **THREE), [moving(t) for t in range(5)])
    assert [(r.index, r.time_s, r.size) for r in results] == [(t, t / 10, SIZE) for t in range(5)]
    for t, result in enumerate(results):
        red = next(found for found in result.objects if found.label == 0)
        assert np.allclose(red.box, (8 + 4 * t, 16, 48, 40), atol=8)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from([1, 2]))
@hypothesis_settings(max_examples=15)
def test_genvis_batches_of_any_size_give_what_single_frames_give(batches: list[int], in_flight: int) -> None:
    frames = [moving(t) for t in range(sum(batches))]
    session, at, results = genvis_session(SessionSettings(in_flight=in_flight), **THREE), 0, []
    for size in batches:
        results += session.step_batch(frames[at : at + size])
        at += size
    assert results + session.flush() == run(genvis_session(**THREE), frames)


def test_genvis_a_frame_that_the_caller_reuses_while_it_waits_is_seen_as_it_was() -> None:
    session, camera = genvis_session(**THREE), moving(0)
    results = []
    for t in range(3):
        camera[:] = moving(t)
        results += session.step(camera)
    assert results == run(genvis_session(**THREE), [moving(t) for t in range(3)])


def test_genvis_the_next_clip_starts_from_the_prototype_and_what_it_reads() -> None:
    session = genvis_session()
    run(session, [moving(t) for t in range(3)])
    first, second, third = clip_engine(session).starts
    assert np.array_equal(first, BASE)
    passed = np.tanh(first + np.array([1, 1, 0, 0, 0], np.float32)[:, None])
    np.testing.assert_allclose(second, passed * 0.5 + np.cos(2 * passed), rtol=1e-5)
    assert not np.allclose(third, second)


def test_genvis_a_network_without_memory_starts_from_the_prototype_alone() -> None:
    session = genvis_session(memory_read="nothing")
    run(session, [moving(0)] * 2)
    first, second = clip_engine(session).starts
    np.testing.assert_allclose(second, np.tanh(first + np.array([1, 1, 0, 0, 0], np.float32)[:, None]) * 0.5)


def test_genvis_an_object_that_comes_back_has_its_slot_and_its_id() -> None:
    frames = [moving(0), moving(1), patches(SIZE), patches(SIZE), moving(4)]
    assert ids(run(genvis_session(), frames)) == [[0, 1], [0, 1], [], [], [0, 1]]


def test_genvis_an_object_lost_for_too_long_is_another_one_if_asked_for() -> None:
    frames = [moving(0), patches(SIZE), patches(SIZE), patches(SIZE), moving(4)]
    session = genvis_session(SessionSettings(default_fps=1), lost_s=2.5)
    assert ids(run(session, frames)) == [[0, 1], [], [], [], [2, 3]]


def test_genvis_label_and_score_are_those_of_the_surest_clip_so_far() -> None:
    clips = [[[0.5, 0.1], [0.2, 0.1]], [[0.1, 0.9], [0.3, 0.2]], [[0.6, 0.2], [0.1, 0.2]]]
    tracks, seen = new_slot_tracks(2, next_id=4), []
    for time_s, probabilities in enumerate(clips):
        tracks, objects, _ = update_tracks(tracks, np.array(probabilities, np.float32), float(time_s), GenVisSettings())
        seen += objects
    assert [(number, label, round(score, 3)) for number, label, score in seen] == [
        (4, 0, 0.5),
        (4, 1, 0.9),
        (4, 1, 0.9),
    ]


def test_genvis_ids_are_given_in_order_of_score() -> None:
    probabilities = np.array([[0.6], [0.9], [0.1], [0.7]], np.float32)
    tracks, objects, _ = update_tracks(new_slot_tracks(4, next_id=0), probabilities, 0.0, GenVisSettings())
    assert tracks.ids.tolist() == [2, 0, -1, 1]
    assert [number for number, _, _ in objects] == [0, 1, 2]


def test_genvis_an_empty_frame_shows_nothing_and_makes_no_mask() -> None:
    session = genvis_session()
    assert ids(run(session, [patches(SIZE)] * 2)) == [[], []]
    assert session.network._engines["masks"].calls == 0  # type: ignore[attr-defined]


def test_genvis_no_more_objects_than_the_cap_are_shown() -> None:
    frame = patches(SIZE, *[(c, 10 + 45 * c, 20, 30, 60) for c in range(4)])
    assert len(run(genvis_session(max_objects=3), [frame])[0].objects) == 3


def test_genvis_another_aspect_in_mid_clip_closes_the_clip_and_starts_new_objects(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = genvis_session(**THREE)
    wide, tall = [moving(t) for t in range(4)], [moving(t, (192, 180)) for t in range(3)]
    results = run(session, wide + tall)
    assert clip_engine(session).lengths == [3, 1, 3]
    assert np.array_equal(clip_engine(session).starts[2], BASE)
    assert ids(results) == [[0, 1]] * 4 + [[2, 3]] * 3
    assert session.events == SessionEvents(frames=7, size_changes=1, restarts=1)
    [told] = caplog.messages
    assert told.startswith("after 4 frames pictures are 192x180 in place of 128x192 (height x width): objects and")


def test_genvis_another_size_of_the_same_aspect_goes_on_in_its_clip() -> None:
    session = genvis_session(**THREE)
    results = run(session, [moving(0), patches((256, 384), (0, 16, 32, 96, 80), (1, 240, 144, 80, 80)), moving(0)])
    assert ids(results) == [[0, 1]] * 3
    assert clip_engine(session).lengths == [3]
    assert [result.size for result in results] == [SIZE, (256, 384), SIZE]


def test_genvis_nan_in_a_slot_drops_that_slot_alone_and_is_counted() -> None:
    session, sound = genvis_session(), genvis_session()
    clip_engine(session).poisoned = {2: [0]}
    frames = [moving(t) for t in range(6)]
    results, expected = run(session, frames), run(sound, frames)
    assert ids(results) == [[0, 1], [0, 1], [1], [1, 2], [1, 2], [1, 2]]
    assert session.events == SessionEvents(frames=6, dropped_slots=1)
    given, wanted = clip_engine(session).starts, clip_engine(sound).starts
    assert np.array_equal(given[3][0], BASE[0])
    for mine, theirs in zip(given, wanted, strict=True):
        assert np.array_equal(mine[1:], theirs[1:])
    assert [o for r in results for o in r.objects if o.id == 1] == [o for r in expected for o in r.objects if o.id == 1]


def test_genvis_nan_in_every_slot_costs_the_clip_and_leaves_the_state() -> None:
    session = genvis_session()
    clip_engine(session).poisoned = {1: list(range(SLOTS))}
    assert ids(run(session, [moving(t) for t in range(3)])) == [[0, 1], [], [0, 1]]
    assert session.events == SessionEvents(frames=3, bad_frames=1)
    _, second, third = clip_engine(session).starts
    assert np.array_equal(second, third)


def test_genvis_a_bad_frame_is_left_out_of_its_clip() -> None:
    session = genvis_session(**THREE)
    frame_engine(session).poisoned = {1}
    assert ids(run(session, [moving(t) for t in range(3)])) == [[0, 1], [], [0, 1]]
    assert clip_engine(session).lengths == [3, 2]
    assert session.events == SessionEvents(frames=3, bad_frames=1)


def test_genvis_too_many_bad_clips_in_a_row_are_an_error() -> None:
    session = genvis_session(SessionSettings(bad_frames_max=3))
    clip_engine(session).poisoned = {t: list(range(SLOTS)) for t in range(1, 9)}
    with pytest.raises(NumericalError, match="3 frames in a row: the network gave NaN or infinity in every slot"):
        run(session, [moving(t) for t in range(8)])


def test_genvis_with_a_cap_above_the_length_results_are_those_without_one() -> None:
    frames = [moving(t % 7) for t in range(12)]
    capped, uncapped = genvis_session(memory_clips=12), genvis_session(memory_clips=10**6)
    assert run(capped, frames) == run(uncapped, frames)
    assert all(map(np.array_equal, clip_engine(capped).starts, clip_engine(uncapped).starts))
    tight = genvis_session(memory_clips=4)
    run(tight, frames)
    assert not np.array_equal(clip_engine(tight).starts[-1], clip_engine(uncapped).starts[-1])


def test_genvis_nothing_grows_once_the_cap_is_full() -> None:
    session, frame = genvis_session(memory_clips=16), moving(0)

    def bytes_held_after(count: int) -> int:
        for _ in range(count):
            session.step(frame)
        for kept in (clip_engine(session), memory_engine(session), frame_engine(session)):
            for name in ("starts", "lengths", "streams", "entries", "batches"):
                getattr(kept, name, []).clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early = bytes_held_after(100)
        late = bytes_held_after(400)
    finally:
        tracemalloc.stop()
    assert session.events.frames == 500
    assert late - early < 400 * 160  # half of what an entry takes in the rings


def test_genvis_after_a_reset_a_new_stream_begins() -> None:
    session = genvis_session(**THREE)
    before = run(session, [moving(t) for t in range(4)])
    session.step(moving(9))
    session.reset()
    assert run(session, [moving(t) for t in range(4)]) == before
    assert session.times.frames == 4


def test_genvis_the_clip_engine_has_its_stage() -> None:
    session = genvis_session()
    run(session, [moving(0)])
    assert session.times.ms_per_frame()["clip_engine"] > 0


def test_genvis_a_clip_length_that_the_bundle_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="clip_frames is 5, but the bundle was exported for clips of 1, 3 frames"):
        genvis_session(clip_frames=5, clip_lengths=(1, 3))
    with pytest.raises(SettingsError, match="clip_frames"):
        genvis_session(clip_frames=0)


def test_genvis_a_bundle_whose_states_do_not_fit_is_refused() -> None:
    manifest = genvis_manifest()
    without_memory = {name: graph for name, graph in manifest.graphs.items() if name != "memory"}
    with pytest.raises(BundleError, match=r"needs graph memory, found clip, frame, masks; export it again"):
        method_of(manifest.model_copy(update={"graphs": without_memory}))
    with pytest.raises(BundleError, match=r"states: missing state 'base'.*; export it again"):
        method_of(manifest.model_copy(update={"states": {}}))
    state = manifest.states["base"]
    for change, told in (
        ({"shape": (4, 8)}, r"states.base: expected float32 \[Q=5 C=8\], found float32 \[4 8\]"),
        ({"input": "queries"}, "states.base: feeds 'queries', which is no input of any graph"),
        ({"output": "next"}, "states.base: renewed by 'next', which is no output of any graph"),
    ):
        other = manifest.model_copy(update={"states": {**manifest.states, "base": state.model_copy(update=change)}})
        with pytest.raises(BundleError, match=told):
            method_of(other)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (BASE.astype(np.float64), r"state 'base' is float64 \[5, 8\], the manifest says float32 \[5, 8\]"),
        (BASE[:2], r"state 'base' is float32 \[2, 8\]"),
        (BASE * np.nan, "state 'base' holds NaN or infinity"),
        (None, "not a plain npy array"),
    ],
)
def test_genvis_a_state_file_that_is_not_what_the_manifest_says_is_refused(
    values: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=told):
        initial_states(bundle_with(state_bytes(values) if values is not None else b"no array", tmp_path))


def test_genvis_a_sound_state_file_is_read(tmp_path: Path) -> None:
    assert np.array_equal(initial_states(bundle_with(state_bytes(BASE), tmp_path))["base"], BASE)


def bundle_with(data: bytes, folder: Path) -> Bundle:
    """A bundle whose state file holds `data`."""
    from hashlib import sha256

    (folder / "base.npy").write_bytes(data)
    spec = FileSpec(file="base.npy", bytes=len(data), sha256=sha256(data).hexdigest())
    manifest = genvis_manifest()
    state = manifest.states["base"].model_copy(update={"initial": spec})
    return Bundle(folder, manifest.model_copy(update={"states": {"base": state}}))


def streams(count: int) -> tuple[Session, list[StreamTracker]]:
    """A session whose engines serve `count` streams."""
    session = genvis_session(**THREE)
    return session, [StreamTracker(session.method, session.networks, SessionSettings()) for _ in range(count)]


def test_genvis_eight_streams_in_one_call_give_what_eight_single_runs_give() -> None:
    """Each at another place of its memory; one pauses now and then, and what it leaves out is missing nowhere else."""
    session, trackers = streams(8)
    videos = [[moving((3 * v + t) % 20) for t in range(12 + v % 3)] for v in range(8)]
    given: list[list[FrameResult]] = [[] for _ in videos]
    waiting = [list(video) for video in videos]
    for turn in range(20):
        awake = [v for v in range(8) if waiting[v] and not (v == 3 and turn % 2)]
        calls = []
        for v in awake:
            clip, waiting[v] = waiting[v][:3], waiting[v][3:]
            calls.append((trackers[v], session.network.run_frames(clip)))
        for v, found in zip(awake, update_together(calls, Stopwatch()), strict=True):
            assert not isinstance(found, Exception)
            given[v] += [make() for make in found]
    assert max(clip_engine(session).streams) == 8
    for video, results in zip(videos, given, strict=True):
        assert results == run(genvis_session(**THREE), video)


def test_genvis_a_stream_of_nan_in_a_shared_call_spoils_no_other() -> None:
    session, trackers = streams(3)
    clip_engine(session).poisoned = {1: list(range(SLOTS))}
    frames = [moving(t) for t in range(3)]
    found = update_together([(one, session.network.run_frames(frames)) for one in trackers], Stopwatch())
    assert [[len(make().objects) for make in makes] for makes in found] == [[2] * 3, [0] * 3, [2] * 3]  # type: ignore[union-attr]
    assert [tracker.events.bad_frames for tracker in trackers] == [0, 3, 0]


def test_genvis_only_class_logits_and_kept_slots_cross_to_the_host() -> None:
    manifest = genvis_manifest()
    crossing = {
        name: {role for role in graph.outputs if role not in manifest.device_roles(name)}
        for name, graph in manifest.graphs.items()
    }
    assert crossing == {
        "frame": set(),
        "memory": set(),
        "clip": {"class_logits"},
        "masks": {"mask_logits", "kept_embeddings"},
    }
    taken = {role for role in manifest.graphs["memory"].inputs if role not in manifest.device_roles("memory")}
    assert taken == {"clips", "since"}


@pytest.mark.parametrize("memory_read", ["own_slot", "all_slots"])
def test_genvis_what_is_remembered_lies_in_rings_that_double_up_to_the_cap(memory_read: str) -> None:
    session = genvis_session(memory_clips=6, memory_read=memory_read)
    run(session, [moving(t) for t in range(11)])
    assert memory_engine(session).entries == [1, 2, 4, 4] + [8] * 7


def test_genvis_all_slots_read_what_all_slots_were() -> None:
    """The second clip starts from its base and the one entry of each slot, weighed by the likeness of their keys."""
    session = genvis_session(memory_read="all_slots")
    run(session, [moving(0)] * 2)
    first, second = clip_engine(session).starts
    passed = np.tanh(first + np.array([1, 1, 0, 0, 0], np.float32)[:, None])
    powers = np.exp(passed[:, ::-1] @ np.sin(3 * passed).T)
    expected = passed * 0.5 + powers / powers.sum(axis=1, keepdims=True) @ np.cos(2 * passed)
    np.testing.assert_allclose(second, expected, rtol=1e-5)
