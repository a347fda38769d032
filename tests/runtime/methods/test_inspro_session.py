"""InsPro on a stream: pairs, key frames, ids, bad input; on a fake network that looks at the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import patches
from fakes_inspro import STATES, frame_engine_of, head_of, inspro_manifest, inspro_session
from numpy.typing import NDArray

from visrt.benchmarks.video_level.rules import official_result
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import BundleError, NumericalError, SettingsError
from visrt.runtime.methods.inspro import InsPro
from visrt.runtime.methods.registry import method_of
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionEvents, SessionSettings

Frame = NDArray[np.uint8]
SIZE = (128, 192)


def moving(index: int, size: tuple[int, int] = SIZE) -> Frame:
    """A red patch that goes right and a green one that goes left, on grey."""
    return patches(size, (0, 8 + 4 * index, 16, 48, 40), (1, 120 - 4 * index, 72, 40, 40))


def run(session: Session, frames: list[Frame]) -> list[FrameResult]:
    return [result for frame in frames for result in session.step(frame)] + session.flush()


def ids(results: list[FrameResult]) -> list[list[int]]:
    return [[found.id for found in result.objects] for result in results]


def lite(**association: Any) -> Session:
    return inspro_session(family="inspro_lite", **association)


@pytest.mark.parametrize("family", ["inspro", "inspro_lite"])
def test_inspro_objects_keep_their_ids_and_masks_are_those_of_their_frame(family: str) -> None:
    results = run(inspro_session(family=family), [moving(t) for t in range(6)])
    assert ids(results) == [[0, 1]] * 6
    for t, result in enumerate(results):
        red = next(found for found in result.objects if found.label == 0)
        assert np.allclose(red.box, (8 + 4 * t, 16, 48, 40), atol=17)


@pytest.mark.parametrize("family", ["inspro", "inspro_lite"])
def test_inspro_a_bundle_without_masks_gives_boxes_of_the_same_objects(family: str) -> None:
    """Slot s of the fake network has the proposal that it carries as its box."""
    frames = [moving(t) for t in range(3)]
    with_masks, boxes = (run(inspro_session(family=family, outputs=kind), frames) for kind in ("masks", "boxes"))
    assert ids(boxes) == ids(with_masks) == [[0, 1]] * 3
    height, width = SIZE
    x1, y1, x2, y2 = STATES["proposals"][0] * (width, height, width, height)
    assert boxes[0].objects[0].box == (round(x1), round(y1), round(x2) - round(x1), round(y2) - round(y1))
    assert all(found.rle is None for result in boxes for found in result.objects)


@pytest.mark.parametrize(("graph", "role"), [("head", "boxes"), ("head", "next_queries"), ("frame", "pyramid")])
def test_inspro_without_masks_every_other_tensor_is_needed(graph: str, role: str) -> None:
    manifest = inspro_manifest(outputs="boxes")
    method_of(manifest)
    spec = manifest.graphs[graph]
    kept = {name: tensor for name, tensor in spec.outputs.items() if name != role}
    graphs = {**manifest.graphs, graph: spec.model_copy(update={"outputs": kept})}
    with pytest.raises(BundleError, match=f"{graph}.outputs: missing role '{role}'"):
        method_of(manifest.model_copy(update={"graphs": graphs}))


def test_inspro_each_frame_starts_from_the_pairs_of_the_one_before() -> None:
    session = inspro_session()
    run(session, [moving(t) for t in range(3)])
    first, second, third = head_of(session).fed
    assert np.array_equal(first["queries"], STATES["queries"][None])
    assert second["fill"].tolist() == [[1] * 5]
    assert third["ages"].tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(third["proposals"][0], STATES["proposals"] * 0.99**2, rtol=1e-5)
    np.testing.assert_array_equal(third["bank"][:, :, 0], second["bank"][:, :, 0])
    assert first["picture_sizes"].tolist() == [[64, 96]]


def test_inspro_the_lite_family_has_a_key_frame_every_ten_frames_and_another_number_if_asked() -> None:
    for session, keys in ((lite(), 3), (lite(key_every_frames=4), 6), (lite(key_every_frames=1), 21)):
        run(session, [moving(t) for t in range(21)])
        head, between = len(head_of(session).fed), len(head_of(session, "head_lite").fed)
        assert (head, between) == (keys, 21 - keys)


def test_inspro_time_in_each_head_is_told() -> None:
    session = lite()
    run(session, [moving(t) for t in range(3)])
    told = session.times.ms_per_frame()
    assert told["head_engine"] > 0
    assert told["head_lite_engine"] > 0
    assert "clip_engine" not in told


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("batch", [2, 5])
def test_inspro_batches_give_what_single_frames_give(batch: int, in_flight: int) -> None:
    frames = [moving(t) for t in range(7)]
    session, results = inspro_session(SessionSettings(in_flight=in_flight), family="inspro_lite"), []
    for start in range(0, len(frames), batch):
        results += session.step_batch(frames[start : start + batch])
    assert results + session.flush() == run(lite(), frames)


def test_inspro_a_slot_with_nan_or_a_collapsed_box_begins_anew_and_is_counted() -> None:
    session = inspro_session()
    head_of(session).poisoned = {1: [0]}
    head_of(session).collapsed = {3: [1]}
    results = run(session, [moving(t) for t in range(6)])
    assert session.events == SessionEvents(frames=6, dropped_slots=2)
    assert ids(results) == [[0, 1], [1], [1, 2], [1, 2], [2, 3], [2, 3]]
    fed = head_of(session).fed
    assert np.array_equal(fed[2]["queries"][0, 0], STATES["queries"][0])
    assert np.array_equal(fed[4]["proposals"][0, 1], STATES["proposals"][1])
    assert fed[5]["fill"].tolist() == [[3, 1, 3, 3, 3]]


def test_inspro_a_frame_of_nan_leaves_the_state_as_it_was() -> None:
    session = inspro_session()
    head_of(session).poisoned = {2: [0, 1, 2, 3, 4]}
    frame_engine_of(session).poisoned = {4}
    results = run(session, [moving(t) for t in range(6)])
    assert ids(results) == [[0, 1], [0, 1], [], [0, 1], [], [0, 1]]
    assert session.events == SessionEvents(frames=6, bad_frames=2)
    bad, after = head_of(session).fed[2:4]
    for role in ("queries", "proposals", "bank", "ages", "fill"):
        assert np.array_equal(after[role], bad[role])


def test_inspro_a_network_that_gives_nothing_but_nan_ends_the_stream() -> None:
    session = inspro_session(SessionSettings(bad_frames_max=3))
    head_of(session).poisoned = {t: [0, 1, 2, 3, 4] for t in range(9)}
    with pytest.raises(NumericalError, match=r"3 frames in a row: .* every slot of its head"):
        run(session, [moving(t) for t in range(9)])


def test_inspro_another_aspect_is_another_picture_and_another_size_is_not() -> None:
    session = inspro_session()
    frames = [moving(0), moving(0, (256, 384)), moving(0, (128, 128)), moving(0, (128, 128))]
    results = run(session, frames)
    assert ids(results) == [[0, 1], [0, 1], [2], [2]]
    assert session.events.restarts == 1
    assert np.array_equal(head_of(session).fed[2]["queries"][0], STATES["queries"])
    assert not head_of(session).fed[2]["ages"].any()


def test_inspro_key_and_lite_heads_that_do_not_fit_each_other_are_refused() -> None:
    manifest = inspro_manifest(family="inspro_lite")
    spec = manifest.graphs["head_lite"]
    wrong = {**spec.inputs, "queries": spec.inputs["queries"].model_copy(update={"shape": ("streams", 7, 8)})}
    broken = with_graph(manifest, "head_lite", spec.model_copy(update={"inputs": wrong}))
    expected = r"head_lite\.inputs\.queries: expected float32 \[.* Q=5 C=8\], found .* \[streams 7 8\]"
    with pytest.raises(BundleError, match=expected):
        method_of(broken)


def test_inspro_a_bundle_without_a_lite_head_cannot_skip_stages() -> None:
    with pytest.raises(BundleError, match="needs graph head_lite, found frame, head, masks"):
        method_of(inspro_manifest(association={"key_every_frames": 10}))


def test_inspro_states_that_do_not_fit_the_head_are_refused() -> None:
    manifest = inspro_manifest()
    bank = manifest.states["bank"].model_copy(update={"shape": (5, 9)})
    with pytest.raises(BundleError, match=r"expected float32 \[Q=5 C=8\], found float32 \[5 9\]"):
        method_of(manifest.model_copy(update={"states": {**manifest.states, "bank": bank}}))


def test_inspro_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="'key_every_frames' is 0"):
        lite(key_every_frames=0)
    family = method_of(inspro_manifest(family="inspro_lite"))
    assert isinstance(family, InsPro)
    assert family.settings.key_every_frames == 10


def test_inspro_the_official_result_leaves_the_stream_as_it_is() -> None:
    session, frames = lite(), [moving(t) for t in range(4)]
    before = run(session, frames[:2])
    result = official_result(session, lambda: frames, top_k=2)
    assert ids(before + run(session, frames[2:])) == [[0, 1]] * 4
    assert (result.frames, [track.label for track in result.tracks]) == (4, [0, 1])
    assert all(len(track.masks) == 4 and all(track.masks) for track in result.tracks)


def with_graph(manifest: Manifest, name: str, graph: Any) -> Manifest:
    return manifest.model_copy(update={"graphs": {**manifest.graphs, name: graph}})
