"""One stream from frames to objects, on a fake network that looks at the pixels."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from fakes import ColourEngine, MasksEngine, ScriptedFrame, colour_session, fake_manifest, patches, scripted_session
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.arrays import in_float32
from visrt.runtime.engines.backends import threads_of_each
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import BundleError, NumericalError, SettingsError, UsageError
from visrt.runtime.methods.minvis import MinVis, MinVisSettings
from visrt.runtime.methods.presets import PRESETS
from visrt.runtime.methods.queries import Queries
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionEvents, SessionSettings

Frame = NDArray[np.uint8]


def moving(index: int, size: tuple[int, int] = (128, 192)) -> Frame:
    """A red patch that goes right and a green one that goes left, on grey."""
    return patches(size, (0, 8 + 4 * index, 16, 48, 40), (1, 120 - 4 * index, 72, 40, 40))


def run(session: Session, frames: list[Frame]) -> list[FrameResult]:
    results = [result for frame in frames for result in session.step(frame)]
    return results + session.flush()


def ids(results: list[FrameResult]) -> list[list[int]]:
    return [[found.id for found in result.objects] for result in results]


def test_every_number_in_float16_is_the_same_in_float32() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 2)[:, ::-1]

    assert np.array_equal(in_float32(every), every.astype(np.float32), equal_nan=True)
    assert np.array_equal(in_float32(finite).view(np.int32), finite.astype(np.float32).view(np.int32))
    assert in_float32(every[:1].reshape(())).shape == ()
    assert in_float32(every[:0].reshape(0, 3)).shape == (0, 3)


def test_every_frame_gives_its_result_with_index_time_and_size() -> None:
    session = colour_session(SessionSettings(default_fps=10))

    results = run(session, [moving(t) for t in range(3)])

    assert [(r.index, r.time_s, r.size) for r in results] == [
        (0, 0.0, (128, 192)),
        (1, 0.1, (128, 192)),
        (2, 0.2, (128, 192)),
    ]


def test_objects_keep_their_ids_labels_and_places() -> None:
    results = run(colour_session(), [moving(t) for t in range(6)])

    assert ids(results) == [[0, 1]] * 6
    by_label = {found.label: found.id for found in results[0].objects}
    for t, result in enumerate(results):
        assert {found.label: found.id for found in result.objects} == by_label
        red = next(found for found in result.objects if found.label == 0)
        assert np.allclose(red.box, (8 + 4 * t, 16, 48, 40), atol=8)
        assert red.mask().shape == (128, 192)
        x, y, width, height = red.box
        assert red.mask()[y : y + height, x : x + width].sum() == red.mask().sum() > 0


@pytest.mark.parametrize("size", [(359, 639), (1, 1), (720, 80), (64, 96)])
def test_masks_have_the_size_of_the_frame_whatever_it_is(size: tuple[int, int]) -> None:
    [result] = colour_session().step(patches(size, (0, 0, 0, size[1], size[0])))

    assert result.size == size
    assert [found.mask().shape for found in result.objects] == [size]
    assert result.objects[0].mask().mean() > 0.7


def test_an_empty_frame_yields_no_object_and_no_call_of_the_masks_engine() -> None:
    manifest = fake_manifest()
    masks = MasksEngine(manifest.graphs["masks"])
    session = colour_session()
    session.network._engines = {**session.network._engines, "masks": masks}

    [result] = session.step(patches((90, 160)))

    assert result.objects == ()
    assert masks.calls == 0


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_queries_is_never_seen(seed: int) -> None:
    frames = [moving(t) for t in range(4)]

    assert run(colour_session(seed=seed), frames) == run(colour_session(seed=seed + 1), frames)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
@hypothesis_settings(max_examples=20)
def test_batches_of_any_size_give_what_single_frames_give(batches: list[int]) -> None:
    frames = [moving(t) for t in range(sum(batches))]
    session, at, results = colour_session(), 0, []
    for size in batches:
        results += session.step_batch(frames[at : at + size])
        at += size

    assert results == run(colour_session(), frames)
    assert session.events.frames == session.times.frames == len(frames)


def test_with_two_frames_in_flight_results_are_the_same_and_come_a_frame_later() -> None:
    frames = [moving(t) for t in range(5)]
    session = colour_session(SessionSettings(in_flight=2))

    ready = [[result.index for result in session.step(frame)] for frame in frames]
    last = session.flush()

    assert ready == [[], [0], [1], [2], [3]]
    assert [result.index for result in last] == [4]
    assert session.flush() == []
    assert session.times.frames == session.events.frames == 5
    session.reset()
    assert run(session, frames) == run(colour_session(), frames)


def test_frames_in_flight_are_forgotten_with_their_stream() -> None:
    session = colour_session(SessionSettings(in_flight=2))
    session.step(moving(0))
    session.reset()
    assert session.flush() == []
    assert session.events.frames == 0


def test_with_more_frames_in_flight_results_are_the_same_and_come_as_many_frames_later() -> None:
    frames = [moving(t) for t in range(5)]
    session = colour_session(SessionSettings(in_flight=4))

    assert [[result.index for result in session.step(frame)] for frame in frames] == [[], [], [], [0], [1]]
    assert [result.index for result in session.flush()] == [2, 3, 4]
    session.reset()
    assert run(session, frames) == run(colour_session(), frames)


def test_calls_at_a_time_share_the_threads() -> None:
    assert threads_of_each(None, 1) is None
    assert threads_of_each(6, 0) == threads_of_each(6, 1) == 6
    assert threads_of_each(6, 4) == 1
    assert threads_of_each(None, 10_000) == 1


def test_no_frames_in_flight_are_refused() -> None:
    with pytest.raises(UsageError, match="in_flight is 0"):
        SessionSettings(in_flight=0)


def test_an_engine_that_answers_by_itself_takes_two_frames_at_the_most() -> None:
    class Later(ColourEngine):
        is_async = True

    manifest = fake_manifest()
    frame = Later(manifest.graphs["frame"], np.random.default_rng(0))
    engines: dict[str, Engine] = {"frame": frame, "masks": MasksEngine(manifest.graphs["masks"])}
    Session(manifest, engines, SessionSettings(in_flight=2))
    with pytest.raises(UsageError, match="2 at the most"):
        Session(manifest, engines, SessionSettings(in_flight=3))


def test_times_given_by_the_caller_decide_who_is_lost() -> None:
    frames = [moving(0), patches((128, 192)), moving(0)]

    for gap_s, expected in ((0.2, [0, 1]), (5.0, [2, 3])):
        session = colour_session()
        results = [session.step(frame, time_s)[0] for frame, time_s in zip(frames, (0.0, 0.1, gap_s), strict=True)]
        assert ids(results) == [[0, 1], [], expected]
        assert results[2].time_s == gap_s


@pytest.mark.parametrize(
    ("given_s", "expected_s", "jumps"),
    [
        ((1.0, 0.5, 1.5), [1.0, 1.001, 1.5], 1),
        ((1000.0, 0.0, 0.1, 6.1), [1000.0, 1000 + 1 / 30, 1000.1 + 1 / 30, 1006.1 + 1 / 30], 1),
        ((5.0, None, 5.5, None), [5.0, 5.0 + 1 / 30, 5.5, 5.5 + 1 / 30], 0),
        ((None, None, 0.0), [0.0, 1 / 30, 1 / 30 + 0.001], 1),
        ((3.0, 3.0, -2.0, -1.5), [3.0, 3.001, 3.001 + 1 / 30, 3.501 + 1 / 30], 2),
    ],
)
def test_the_clock_of_a_session_is_that_of_files(
    given_s: tuple[float | None, ...], expected_s: list[float], jumps: int
) -> None:
    session = colour_session()

    results = [session.step(moving(0), time_s)[0] for time_s in given_s]

    assert [result.time_s for result in results] == pytest.approx(expected_s)
    assert session.events.time_jumps == jumps


def test_what_is_away_after_the_clock_began_again_is_forgotten_in_time() -> None:
    session = colour_session()
    away = [(patches((128, 192)), 0.5 * i) for i in range(13)]

    shown = [session.step(frame, time_s)[0] for frame, time_s in [(moving(0), 1000.0), *away, (moving(0), 6.5)]]

    assert ids(shown)[0] == [0, 1]
    assert ids(shown)[-1] == [2, 3]
    assert shown[-1].time_s == pytest.approx(1006.5 + 1 / 30)


@pytest.mark.parametrize("preset", [name for name in PRESETS if "heuristics" not in name])
def test_frames_further_apart_than_lost_s_lose_nobody_who_is_seen_in_each(preset: str) -> None:
    manifest = fake_manifest()
    engines: dict[str, Engine] = {
        "frame": ColourEngine(manifest.graphs["frame"], np.random.default_rng(0)),
        "masks": MasksEngine(manifest.graphs["masks"]),
    }
    steady = {"steady_frames": 1} if preset == "ctvis" else None
    session = Session(manifest, engines, association=steady, preset=preset)

    shown = [session.step(moving(t), 60.0 * t)[0] for t in range(5)]

    assert ids(shown) == [[0, 1]] * 5


def test_after_a_cut_ids_go_on_and_frames_and_time_too() -> None:
    session = colour_session()
    before = session.step(moving(0), 1.0)[0]
    session.cut()
    after = session.step(moving(0), 1.1)[0]

    assert ids([before, after]) == [[0, 1], [2, 3]]
    assert (after.index, after.time_s) == (1, 1.1)
    assert session.events == SessionEvents(frames=2, cuts=1)


def test_another_size_of_the_same_aspect_keeps_the_objects() -> None:
    session = colour_session()
    small, large = moving(0), patches((256, 384), (0, 16, 32, 96, 80), (1, 240, 144, 80, 80))

    results = run(session, [small, large, small])

    assert ids(results) == [[0, 1]] * 3
    assert [result.size for result in results] == [(128, 192), (256, 384), (128, 192)]
    assert results[1].objects[0].mask().shape == (256, 384)
    assert session.events == SessionEvents(frames=3, size_changes=2)


def test_another_aspect_starts_new_objects_whose_ids_were_never_used() -> None:
    session = colour_session()

    results = run(session, [moving(0), moving(0, size=(192, 180)), moving(0)])

    assert ids(results) == [[0, 1], [2, 3], [4, 5]]
    assert session.events == SessionEvents(frames=3, size_changes=2, restarts=2)


def test_after_a_reset_a_new_stream_begins() -> None:
    session = colour_session()
    before = run(session, [moving(t) for t in range(3)])

    session.reset()

    assert run(session, [moving(t) for t in range(3)]) == before
    assert session.events == SessionEvents(frames=3)
    assert session.times.frames == 3


@pytest.mark.parametrize(
    "frame",
    [
        None,
        "clip.mp4",
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused_and_leaves_the_stream_as_it_was(frame: Any) -> None:
    session = colour_session()

    with pytest.raises(UsageError, match=r"frame is .*; expected"):
        session.step_batch([moving(0), frame])

    assert session.events.frames == 0


@pytest.mark.parametrize("time_s", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused(time_s: float) -> None:
    with pytest.raises(UsageError, match="time_s is"):
        colour_session().step(moving(0), time_s)


def test_times_must_be_as_many_as_frames() -> None:
    with pytest.raises(UsageError, match="1 times were given for 2 frames"):
        colour_session().step_batch([moving(0), moving(1)], [0.0])


def script(count: int = 8) -> list[ScriptedFrame]:
    """Frames with one steady object in query 0."""
    logits = np.zeros((4, 4), dtype=np.float32)
    logits[:, -1], logits[0, 0] = 4, 9
    features = np.full((4, 16, 24), -1, dtype=np.float32)
    features[0, 4:9, 5:11] = 1
    eye = np.eye(4, dtype=np.float32)
    return [ScriptedFrame(Queries(logits.copy(), eye.copy(), eye.copy()), features.copy()) for _ in range(count)]


def poisoned(frame: ScriptedFrame, where: str, value: float) -> None:
    """Puts `value` into the object's own query, where it would do harm."""
    target = frame.mask_features if where == "mask_features" else getattr(frame.queries, where)
    target[0, ...] = value


@pytest.mark.parametrize("where", ["class_logits", "embeddings", "mask_embeddings", "mask_features"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_from_the_network_costs_its_frame_and_nothing_else(where: str, value: float) -> None:
    frames = script()
    for t in (2, 3, 5):
        poisoned(frames[t], where, value)
    session = scripted_session(frames)

    with np.errstate(invalid="ignore"):
        results = run(session, [patches((64, 96))] * 8)

    assert ids(results) == [[0], [0], [], [], [0], [], [0], [0]]
    assert session.events == SessionEvents(frames=8, bad_frames=3)
    scores = {found.score for result in results for found in result.objects}
    assert max(scores) - min(scores) < 1e-6


def test_nan_in_too_many_frames_in_a_row_is_an_error() -> None:
    frames = script()
    for t in (1, 3, 4, 5):
        poisoned(frames[t], "embeddings", np.nan)
    session = scripted_session(frames, settings=SessionSettings(bad_frames_max=3))

    with pytest.raises(NumericalError, match="3 frames in a row: the network gave NaN or infinity in 'embeddings'"):
        run(session, [patches((64, 96))] * 8)
    assert session.events.bad_frames == 4


def test_huge_scores_and_embeddings_are_survived() -> None:
    frames = script()
    for frame in frames:
        frame.queries.class_logits[...] *= 1e30
        frame.queries.embeddings[...] *= 1e18

    results = run(scripted_session(frames), [patches((64, 96))] * 3)

    assert ids(results) == [[0]] * 3
    assert results[0].objects[0].score == 1.0


def test_more_objects_than_the_cap_stay_out() -> None:
    frame = patches((128, 192), *[(c, 10 + 45 * c, 20, 30, 60) for c in range(4)])

    assert len(run(colour_session(max_objects=3), [frame])[0].objects) == 3


def test_closing_frees_the_engines_once_and_ends_the_session() -> None:
    manifest = fake_manifest()
    engines = {name: MasksEngine(spec) for name, spec in manifest.graphs.items()}
    with Session(manifest, engines) as session:
        assert not any(engine.closed for engine in engines.values())
    session.close()

    assert all(engine.closed for engine in engines.values())
    with pytest.raises(UsageError, match="the session is closed"):
        session.step(moving(0))


def test_stages_add_up_and_start_again_with_each_step() -> None:
    session = colour_session()
    run(session, [moving(t) for t in range(3)])

    assert session.times.frames == 3
    assert session.last_times.frames == 1
    assert all(ms > 0 for ms in session.times.ms_per_frame().values())
    assert all(session.last_times.seconds[stage] < total for stage, total in session.times.by_stage().items())


def test_a_bundle_of_an_unknown_family_or_for_other_classes_is_refused() -> None:
    manifest = fake_manifest()
    no_engines: dict[str, Engine] = {}

    with pytest.raises(BundleError, match="family 'seqformer' is unknown; this visrt knows minvis"):
        Session(manifest.model_copy(update={"family": "seqformer"}), no_engines)
    with pytest.raises(
        BundleError, match=r"class_logits: expected .* \[B=batch Q=8 L=3\], found float32 \[batch 8 4\]"
    ):
        Session(manifest.model_copy(update={"classes": ("a", "b")}), no_engines)
    with pytest.raises(BundleError, match="needs graph masks, found frame"):
        Session(manifest.model_copy(update={"graphs": {"frame": manifest.graphs["frame"]}}), no_engines)


def test_association_settings_come_from_the_manifest_and_may_be_changed() -> None:
    manifest = fake_manifest(association={"max_objects": 1, "birth_score": 0.3})
    no_engines: dict[str, Engine] = {}

    family = Session(manifest, no_engines, association={"birth_score": 0.7}).method
    assert family == MinVis(MinVisSettings(max_objects=1, birth_score=0.7))
    with pytest.raises(SettingsError, match="unknown setting 'max_object'"):
        Session(manifest, no_engines, association={"max_object": 1})


def test_unknown_session_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="resize 'nearest' is unknown; choose one of pillow_bilinear, cv2_area"):
        SessionSettings(resize="nearest")
    with pytest.raises(UsageError, match="default_fps"):
        SessionSettings(default_fps=0)


def array_bytes(value: object) -> int:
    """Bytes of all arrays a value holds."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(array_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def test_a_frame_leaves_nothing_behind_that_refers_to_itself() -> None:
    """It would hold masks and frames until Python looks for cycles."""
    session = scripted_session(script(1) * 4)
    frame = patches((64, 96))
    session.step(frame)
    gc.collect()
    gc.disable()
    try:
        for _ in range(8):
            session.step(frame)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_nothing_grows_with_the_number_of_frames() -> None:
    """The object comes and goes, so that ids and births are part of it."""
    present, absent = script(1), script(1)
    absent[0].queries.class_logits[0] = absent[0].queries.class_logits[1]
    session = scripted_session(present * 6 + absent * 4, lost_s=0.1)
    frame = patches((64, 96))

    def bytes_held_after(count: int) -> int:
        for _ in range(count):
            session.step(frame)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early, state_bytes = bytes_held_after(300), array_bytes(session._state)
        late = bytes_held_after(2700)
    finally:
        tracemalloc.stop()

    assert session.events.frames == 3000
    assert session._state.next_id == 300
    assert array_bytes(session._state) == state_bytes
    assert late - early < 2700 * 16, "less than the smallest object a frame: what else runs here allocates too"
