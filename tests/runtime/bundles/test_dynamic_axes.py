"""Which sizes engines are built for and run at, and which tensors stay on the device."""

from __future__ import annotations

import pytest
from fakes import fake_manifest

from visrt.runtime.bundles.dynamic_axes import (
    BATCH,
    CLIPS,
    FRAMES,
    MASKS,
    STREAMS,
    largest_sizes,
    profile_of,
    run_sizes,
)
from visrt.runtime.errors import BundleError


def test_a_frame_has_no_more_masks_than_queries() -> None:
    assert largest_sizes(fake_manifest(queries=100), 4) == {BATCH: 4, FRAMES: 4, STREAMS: 4, MASKS: 100}


@pytest.mark.parametrize(("setting", "room"), [(1, 1), (2, 2), (100, 128), (256, 256)])
def test_room_for_clips_is_doubled_until_all_that_are_remembered_find_it(setting: int, room: int) -> None:
    manifest = fake_manifest().model_copy(update={"association": {"memory_clips": setting}})

    assert largest_sizes(manifest, 4)[CLIPS] == room
    assert run_sizes(CLIPS, room) == tuple(2**power for power in range(room.bit_length()))


@pytest.mark.parametrize(("queries", "masks"), [(100, (1, 10, 100)), (4, (1, 4, 4)), (1, (1, 1, 1))])
def test_profiles_rise_from_one_to_the_largest(queries: int, masks: tuple[int, int, int]) -> None:
    manifest = fake_manifest(queries=queries)

    assert profile_of(manifest, "frame", 4) == {BATCH: (1, 4, 4)}
    assert profile_of(manifest, "masks", 4) == {MASKS: masks}


@pytest.mark.parametrize("largest", [1, 2, 3, 64, 100])
def test_masks_are_run_at_powers_of_two_and_at_all_and_batches_as_they_are(largest: int) -> None:
    masks = run_sizes(MASKS, largest)

    assert masks[-1] == largest
    assert list(masks) == sorted({*masks})
    assert all(size & (size - 1) == 0 for size in masks[:-1])
    assert all(min(size for size in masks if size >= count) < 2 * count for count in range(1, largest + 1))
    assert run_sizes(BATCH, largest) == run_sizes(STREAMS, largest) == tuple(range(1, largest + 1))


def test_mask_features_stay_on_the_device_and_mask_embeddings_pass_through_the_host() -> None:
    """The host picks mask embeddings; the features of a frame go into the masks graph whole."""
    manifest = fake_manifest()

    assert manifest.device_roles("frame") == manifest.device_roles("masks") == {"mask_features"}


def test_tensors_that_differ_in_size_or_type_do_not_stay_on_the_device() -> None:
    manifest = fake_manifest()
    masks = manifest.graphs["masks"]
    for change in ({"dtype": "float16"}, {"shape": (8, 16, 25)}):
        tensor = masks.inputs["mask_features"].model_copy(update=change)
        other = masks.model_copy(update={"inputs": {**masks.inputs, "mask_features": tensor}})
        strange = manifest.model_copy(update={"graphs": {**manifest.graphs, "masks": other}})
        assert strange.device_roles("frame") == frozenset()


def test_what_the_manifest_says_about_places_goes_before_what_shapes_suggest() -> None:
    manifest = fake_manifest()
    masks = manifest.graphs["masks"]
    host = {role: spec.model_copy(update={"place": "host"}) for role, spec in masks.inputs.items()}
    graphs = {**manifest.graphs, "masks": masks.model_copy(update={"inputs": host})}

    assert manifest.model_copy(update={"graphs": graphs}).device_roles("masks") == frozenset()


def test_a_number_of_queries_that_is_open_is_refused() -> None:
    manifest = fake_manifest()
    frame = manifest.graphs["frame"]
    tensor = frame.outputs["class_logits"].model_copy(update={"shape": ("batch", "queries", 4)})
    graph = frame.model_copy(update={"outputs": {**frame.outputs, "class_logits": tensor}})
    strange = manifest.model_copy(update={"graphs": {**manifest.graphs, "frame": graph}})

    with pytest.raises(BundleError, match="the number of queries is 'queries'; expected a fixed number"):
        largest_sizes(strange, 1)
