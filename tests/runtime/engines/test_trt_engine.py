"""TensorRT engines as they run, on a fake GPU: what they compute, when they wait, what they hold and let go."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_rig
from bundles import SIZE
from fake_gpu import Gpu
from fake_tensorrt import FLAVOURS
from fakes import fake_manifest, patches
from trt_rig import Rig, in_fp16, models_of, rig_of

from visrt.runtime.arrays import Array, Tensor
from visrt.runtime.bundles.manifest import Manifest, TensorSpec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.engines.trt.library import Flavour
from visrt.runtime.errors import EngineError

pytestmark = pytest.mark.usefixtures("layer")

VERSIONS = [(flavour, version) for flavour, versions in FLAVOURS.items() for version in versions]
GONE = SIZE[1]
"""An x at which no patch is in the picture: query 0 sees no object, class 3."""

MASK_BYTES = 16 * 24 * 4
ALIGNED = 256
"""Bytes: each tensor of a block begins at a multiple of it."""

HOST_OUTPUTS_BYTES = 2 * ALIGNED + 4 * 8 * 4
"""Of one frame: class logits, embeddings and mask embeddings of 4 queries, 4 classes, 8 channels."""


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return rig_of(monkeypatch)


Feeds = Mapping[str, Array | Tensor]


def frames(*xs: int, size: tuple[int, int] = SIZE) -> dict[str, Array | Tensor]:
    """Feeds of the frame graph: a red patch at each x."""
    images = np.stack([patches(size, (0, x, 16, 24, 20)) for x in xs])
    return {"images": images, "valid_sizes": np.full((len(xs), 2), size, np.int32)}


def picks(count: int) -> Array:
    """Mask embeddings [count, 8]; each picks other channels of the features."""
    return np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)


def on_cpu(size: tuple[int, int] = SIZE, manifest: Manifest | None = None) -> dict[str, Engine]:
    known = manifest or fake_manifest(size, 4)
    models = models_of(known)
    return {name: CpuEngine(known.graphs[name], models[name].SerializeToString(), EngineOptions(1)) for name in models}


def expected_logits(x: int, embeddings: Array, size: tuple[int, int] = SIZE) -> Array:
    """What ONNX Runtime makes of a frame with the patch at x and `embeddings`."""
    cpu = on_cpu(size)
    features = cpu["frame"](frames(x, size=size))["mask_features"].row(0)
    feeds: Feeds = {"mask_embeddings": embeddings, "mask_features": features}
    return cpu["masks"](feeds)["mask_logits"].numpy()


def masks_of(rig: Rig, features: Array | Tensor, embeddings: Array) -> Tensor:
    return rig.masks({"mask_embeddings": embeddings, "mask_features": features})["mask_logits"]


def class_of(answer: Mapping[str, Tensor], item: int = 0) -> int:
    """What query 0 sees in one frame: the first class, or nothing, 3. Rubbish is neither."""
    seen = answer["class_logits"].numpy()[item, 0].tolist()
    return {(12, 0, 0, 6): 0, (0, 0, 0, 6): 3}[tuple(seen)]


def alive(gpu: Gpu) -> set[str]:
    """Kinds of TensorRT's and pycuda's objects that exist, but for the primary context."""
    return {type(thing).__name__ for thing in gpu.objects} - {"Context"}


# What they compute


@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
def test_every_version_computes_what_onnx_runtime_computes(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, version: str
) -> None:
    """Each batch and each number of masks three times: plain, recorded, replayed."""
    rig, cpu = rig_of(monkeypatch, flavour=flavour, version=version, batch=3), on_cpu()

    for xs in [(4,), (40, 8), (5, 20, 60), (44, 12), (60,), (8, 30), (30, 8, 2), (33,), (9, 41), (1, 2, 3)] * 2:
        feeds = frames(*xs)
        given, expected = rig.frame(feeds), cpu["frame"](feeds)
        for role in expected:
            np.testing.assert_array_equal(given[role].numpy(), expected[role].numpy())
        for index, count in zip(range(len(xs)), (1, 3, 4), strict=False):
            logits = masks_of(rig, given["mask_features"].row(index), picks(count))
            wanted: Feeds = {"mask_embeddings": picks(count), "mask_features": expected["mask_features"].row(index)}
            np.testing.assert_allclose(logits.numpy(), cpu["masks"](wanted)["mask_logits"].numpy(), atol=1e-5)

    assert rig.frame.captures == 6
    assert rig.gpu.counts["graph_launch"] > 10
    rig.close()
    assert not rig.gpu.left


def test_an_fp16_bundle_computes_and_moves_half_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = in_fp16(fake_manifest(SIZE, 4))
    rig, cpu = rig_of(monkeypatch, manifest=manifest), on_cpu(manifest=manifest)

    for x in (4, 8, 12, 16):
        before = rig.gpu.counts["dtoh_bytes"]
        given, expected = rig.frame(frames(x)), cpu["frame"](frames(x))
        wanted: Feeds = {
            "mask_embeddings": picks(3).astype(np.float16),
            "mask_features": expected["mask_features"].row(0),
        }
        logits = masks_of(rig, given["mask_features"].row(0), picks(3).astype(np.float16)).numpy()
        assert rig.gpu.counts["dtoh_bytes"] - before == HOST_OUTPUTS_BYTES + 3 * MASK_BYTES // 2
        assert (str(logits.dtype), str(given["embeddings"].dtype)) == ("float16", "float32")
        np.testing.assert_array_equal(logits, cpu["masks"](wanted)["mask_logits"].numpy())
        np.testing.assert_array_equal(given["mask_features"].numpy(), expected["mask_features"].numpy())


def test_tensors_know_shape_dtype_and_device_and_their_rows(rig: Rig) -> None:
    features = rig.frame(frames(4, 40))["mask_features"]

    assert (features.shape, str(features.dtype), features.device) == ((2, 8, 16, 24), "float32", "cuda:0")
    assert features.row(1).shape == (8, 16, 24)
    np.testing.assert_array_equal(features.row(1).numpy(), features.numpy()[1])
    np.testing.assert_array_equal(features.row(1).row(0).numpy(), features.numpy()[1, 0])
    with pytest.raises(IndexError):
        features.row(2)


def test_rows_of_what_is_copied_to_the_host_are_rows_of_the_copy(rig: Rig) -> None:
    logits = rig.frame(frames(4, GONE))["class_logits"]

    np.testing.assert_array_equal(logits.row(1).numpy(), logits.numpy()[1])
    assert not np.array_equal(logits.row(0).numpy(), logits.row(1).numpy())


def test_the_provider_is_the_library_and_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig_of(monkeypatch, version="10.3.0").frame.provider == "TensorRT 10.3.0"


# When they wait


def test_a_call_returns_before_anything_ran_and_reading_waits(rig: Rig) -> None:
    answer = rig.frame(frames(4))

    assert rig.gpu.counts["executions"] == 0
    assert class_of(answer) == 0
    assert rig.gpu.counts["executions"] == 1


def test_two_frames_are_in_flight_and_reading_the_first_waits_for_no_other(rig: Rig) -> None:
    first, second = rig.frame(frames(4)), rig.frame(frames(GONE))
    assert rig.gpu.counts["executions"] == 0

    seen = class_of(first)

    assert rig.gpu.counts["executions"] == 1
    assert seen == 0
    assert class_of(second) == 3


def test_a_third_call_waits_for_the_first_only(rig: Rig) -> None:
    for x in (4, 8, 12):
        rig.frame(frames(x))

    assert rig.gpu.counts["executions"] == 1


def test_masks_of_a_frame_are_its_own_though_the_next_frame_is_on_its_way(rig: Rig) -> None:
    for _ in range(4):
        first = rig.frame(frames(4))
        second = rig.frame(frames(60))
        logits = [masks_of(rig, answer["mask_features"].row(0), picks(2)) for answer in (first, second)]
        for x, tensor in zip((4, 60), logits, strict=True):
            np.testing.assert_allclose(tensor.numpy(), expected_logits(x, picks(2)), atol=1e-5)


def test_features_are_kept_until_the_masks_have_read_them(rig: Rig) -> None:
    """The frame after the next takes their memory, on another stream than the masks."""
    for _ in range(4):
        logits = masks_of(rig, rig.frame(frames(4))["mask_features"].row(0), picks(2))
        rig.frame(frames(60))
        assert class_of(rig.frame(frames(60))) == 0

        np.testing.assert_allclose(logits.numpy(), expected_logits(4, picks(2)), atol=1e-5)
    assert rig.gpu.counts["workspace_clashes"] == 0


def test_reading_the_masks_of_a_frame_waits_for_no_other_frame(rig: Rig) -> None:
    features = rig.frame(frames(4))["mask_features"].row(0)
    following = rig.frame(frames(60))
    masks_of(rig, features, picks(2)).numpy()

    assert [what.count("images") for what in rig.gpu.record if "execute" in what] == [1, 0]
    assert class_of(following) == 0


def test_what_the_caller_does_with_his_arrays_after_the_call_changes_nothing(rig: Rig) -> None:
    images = patches(SIZE, (0, 4, 16, 24, 20))[None]
    answer = rig.frame({**frames(4), "images": images})
    images[:] = 0

    assert class_of(answer) == 0


def test_arrays_that_were_read_stay_as_they_are(rig: Rig) -> None:
    seen = rig.frame(frames(4))["class_logits"].numpy()
    before = seen.copy()
    for _ in range(4):
        rig.frame(frames(GONE))["class_logits"].numpy()

    np.testing.assert_array_equal(seen, before)


@pytest.mark.parametrize("role", ["class_logits", "mask_features"])
def test_an_outdated_tensor_is_an_error_wherever_it_is_used(rig: Rig, role: str) -> None:
    first = rig.frame(frames(4))
    row = first["mask_features"].row(0)
    second = rig.frame(frames(8))
    rig.frame(frames(12))

    assert second[role].numpy().size
    with pytest.raises(EngineError, match=rf"'{role}' is outdated: its engine was called twice since.*\.numpy\(\)"):
        first[role].numpy()
    with pytest.raises(EngineError, match="'mask_features' is outdated"):
        masks_of(rig, row, picks(1))


def test_closing_outdates_tensors(rig: Rig) -> None:
    answer = rig.frame(frames(4))
    rig.close()

    with pytest.raises(EngineError, match=r"outdated: .* or was closed"):
        answer["class_logits"].numpy()


# What goes over the bus


def test_mask_features_go_from_graph_to_graph_on_the_device(rig: Rig) -> None:
    answer = rig.frame(frames(4, 40))
    masks_of(rig, answer["mask_features"].row(1), picks(3)).numpy()

    assert rig.gpu.counts["dtod_bytes"] == 8 * MASK_BYTES
    assert rig.gpu.counts["dtoh_bytes"] == ALIGNED + 2 * 2 * 4 * 8 * 4 + 3 * MASK_BYTES
    assert rig.gpu.counts["htod_bytes"] == 2 * (SIZE[0] * SIZE[1] * 3 + 8) + 3 * 8 * 4


def test_a_call_is_one_copy_up_and_one_down(rig: Rig) -> None:
    for xs in [(4,), (4, 40), (8,)]:
        before = dict(rig.gpu.counts)
        answer = rig.frame(frames(*xs))
        assert [answer[role].numpy().shape[0] for role in answer] == [len(xs)] * 4
        features = answer["mask_features"].row(0)
        assert rig.gpu.counts["htod"] - before.get("htod", 0) == 1
        assert rig.gpu.counts["dtoh"] - before.get("dtoh", 0) == 1 + 1
        masks_of(rig, features, picks(3)).numpy()
        assert rig.gpu.counts["htod"] - before.get("htod", 0) == 2
        assert rig.gpu.counts["dtoh"] - before.get("dtoh", 0) == 3


def test_a_row_at_any_address_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of 8 x 15 x 25 floats: the second row begins at no multiple of 256."""
    size = (60, 100)
    rig = rig_of(monkeypatch, size=size)

    for _ in range(3):
        features = rig.frame(frames(4, 40, size=size))["mask_features"]
        before = rig.gpu.counts["dtoh_bytes"]
        logits = [masks_of(rig, features.row(index), picks(2)) for index in range(2)]
        for x, tensor in zip((4, 40), logits, strict=True):
            np.testing.assert_allclose(tensor.numpy(), expected_logits(x, picks(2), size), atol=1e-5)
        assert rig.gpu.counts["dtoh_bytes"] - before == 2 * 2 * 15 * 25 * 4


def test_features_from_the_host_are_taken_too(rig: Rig) -> None:
    features = on_cpu()["frame"](frames(4))["mask_features"].row(0)

    for given in (features, features.numpy()):
        np.testing.assert_allclose(
            masks_of(rig, given, picks(2)).numpy(),
            expected_logits(4, picks(2)),
            atol=1e-5,
        )


def test_all_copies_are_of_page_locked_memory(rig: Rig) -> None:
    answer = rig.frame(frames(4, 40))
    masks_of(rig, answer["mask_features"].row(0), picks(2)).numpy()
    answer["mask_features"].numpy()

    assert rig.gpu.counts["htod"]
    assert rig.gpu.counts["pageable"] == 0


def test_no_masks_are_no_call(rig: Rig) -> None:
    features = rig.frame(frames(4))["mask_features"].row(0)
    before = dict(rig.gpu.counts)

    logits = masks_of(rig, features, picks(0))

    assert (logits.shape, str(logits.dtype)) == ((0, 16, 24), "float32")
    assert dict(rig.gpu.counts) == before


def test_no_frames_are_no_call(rig: Rig) -> None:
    answer = rig.frame({"images": np.zeros((0, *SIZE, 3), np.uint8), "valid_sizes": np.zeros((0, 2), np.int32)})

    assert answer["embeddings"].shape == (0, 4, 8)
    assert rig.gpu.counts["enqueued"] == 0


def test_buffers_are_allocated_also_where_python_skips_assertions(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys, pytest\nsys.path.append('runtime')\n"
        "from trt_rig import rig_of\nrig = rig_of(pytest.MonkeyPatch())\n"
        "print(rig.gpu.counts['allocate'], rig.gpu.counts['pin'])"
    )
    folder = Path(trt_rig.__file__).parent
    done = subprocess.run([sys.executable, "-O", "-c", script], cwd=folder, capture_output=True, text=True, check=True)

    counts = rig_of(monkeypatch).gpu.counts
    assert counts["pin"] > 0
    assert done.stdout.split() == [str(counts["allocate"]), str(counts["pin"])]


def test_once_warm_a_call_allocates_nothing(rig: Rig) -> None:
    def round_trip() -> None:
        answer = rig.frame(frames(4))
        masks_of(rig, answer["mask_features"].row(0), picks(3)).numpy()

    for _ in range(4):
        round_trip()
    kinds = ("allocate", "pin", "contexts", "instantiate", "create_event", "create_stream")
    warm = {kind: rig.gpu.counts[kind] for kind in kinds}
    for _ in range(6):
        round_trip()

    assert {kind: rig.gpu.counts[kind] for kind in kinds} == warm


# CUDA graphs


def test_the_second_call_of_a_slot_records_and_the_next_replay(rig: Rig) -> None:
    for _ in range(2):
        rig.frame(frames(4))["class_logits"].numpy()
    assert (rig.frame.captures, rig.gpu.counts["graph_launch"]) == (0, 0)

    for _ in range(4):
        rig.frame(frames(4))["class_logits"].numpy()

    assert (rig.frame.captures, rig.gpu.counts["graph_launch"]) == (2, 4)


def test_masks_are_padded_to_few_sizes_and_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of(monkeypatch)
    for _ in range(6):
        answer = rig.frame(frames(4))
        for count in (3, 4, 3, 4):
            logits = masks_of(rig, answer["mask_features"].row(0), picks(count))
            np.testing.assert_allclose(logits.numpy(), expected_logits(4, picks(count)), atol=1e-5)

    assert rig.masks.captures == 2
    assert "execute mask_embeddings [4, 8], mask_features [8, 16, 24]" in rig.gpu.record
    assert not any("mask_embeddings [3" in done for done in rig.gpu.record)


def test_rows_that_only_pad_are_neither_sent_nor_copied_back(rig: Rig) -> None:
    features = rig.frame(frames(4))["mask_features"].row(0)
    before = rig.gpu.counts["htod_bytes"], rig.gpu.counts["dtoh_bytes"]

    masks_of(rig, features, picks(3))

    assert rig.gpu.counts["htod_bytes"] - before[0] == 3 * 8 * 4
    assert rig.gpu.counts["dtoh_bytes"] - before[1] == 3 * MASK_BYTES


def test_a_graph_of_one_size_is_right_after_calls_of_another(rig: Rig) -> None:
    for xs in [(4,), (4,), (4,), (4,), (40, 8), (40, 8), (60,), (12,), (2, 33), (5, 6), (7, 8), (50,)]:
        feeds = frames(*xs)
        given, expected = rig.frame(feeds), on_cpu()["frame"](feeds)
        np.testing.assert_array_equal(given["mask_features"].numpy(), expected["mask_features"].numpy())


def old_driver(rig_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rig_options["gpu"].faults.missing_functions = {"cuGraphInstantiate"}


def refused(rig_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rig_options["gpu"].faults.capture = 99


def not_capturable(rig_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rig_options["gpu"].faults.not_capturable = True
    rig_options.update(flavour="tensorrt-rtx", version="1.7.1.116")


@pytest.mark.parametrize(
    ("hindrance", "told"),
    [
        (old_driver, 'cuGraphInstantiate cannot be called: Function "cuGraphInstantiate" not found'),
        (refused, "cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
        (not_capturable, "operations that cannot be captured"),
    ],
)
def test_without_capture_they_run_plainly_and_say_so_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hindrance: Callable[[dict[str, Any], pytest.MonkeyPatch], None],
    told: str,
) -> None:
    """Once an engine, after the third refusal."""
    options: dict[str, Any] = {"gpu": Gpu()}
    hindrance(options, monkeypatch)
    with caplog.at_level(logging.WARNING, "visrt.tensorrt"):
        rig = rig_of(monkeypatch, **options)
        for x in (4, 8, 12, 16, 20, 24):
            answer = rig.frame(frames(x))
            logits = masks_of(rig, answer["mask_features"].row(0), picks(2))
            np.testing.assert_allclose(logits.numpy(), expected_logits(x, picks(2)), atol=1e-5)

    assert (rig.frame.captures, rig.masks.captures) == (0, 0)
    assert (rig.frame.refusals, rig.masks.refusals) == (3, 3)
    assert len(rig.frame.notices) == len(caplog.messages) == 2
    assert all("without CUDA graphs, which costs some speed" in text for text in rig.frame.notices)
    assert all(text in caplog.messages for text in rig.frame.notices)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(rig.frame.notices[0])
    rig.close()
    assert not rig.gpu.left


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_recording_that_is_refused_is_tried_again(rig: Rig, refusals: int) -> None:
    rig.gpu.faults.capture = refusals
    for x in (4, 8, 12, 16, 20, 24, 28):
        assert class_of(rig.frame(frames(x))) == 0

    assert (rig.frame.refusals, rig.frame.captures, rig.frame.notices) == (refusals, 2, ())
    rig.close()
    assert not rig.gpu.left


# What they let go


@pytest.mark.parametrize("order", [("frame", "masks"), ("masks", "frame")])
def test_closing_in_any_order_and_twice_frees_everything(rig: Rig, order: tuple[str, str]) -> None:
    for _ in range(3):
        answer = rig.frame(frames(4))
        masks_of(rig, answer["mask_features"].row(0), picks(2))

    rig.engines[order[0]].close()
    assert rig.gpu.allocated
    rig.engines[order[1]].close()
    rig.close()

    assert not rig.gpu.left


def test_closing_waits_for_what_is_on_its_way(rig: Rig) -> None:
    """Memory that is freed under a kernel is memory of someone else."""
    rig.frame(frames(4))
    rig.close()

    assert rig.gpu.counts["executions"] == 1
    assert rig.gpu.lost is None


def test_an_engine_that_is_left_goes_on_when_another_is_closed(rig: Rig) -> None:
    rig.masks.close()

    assert class_of(rig.frame(frames(4))) == 0
    with pytest.raises(EngineError, match=r"masks\.onnx|none\.onnx: the engine is closed; open the bundle again"):
        rig.masks({"mask_embeddings": picks(1), "mask_features": np.zeros((8, 16, 24), np.float32)})


def test_engines_that_were_forgotten_free_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    rig = rig_of(monkeypatch, gpu)
    rig.frame(frames(4))
    del rig
    gc.collect()

    assert not gpu.left


def test_engines_are_closed_and_opened_again_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's static objects lie in the context of the first ones."""
    gpu = Gpu()
    for _ in range(3):
        rig = rig_of(monkeypatch, gpu)
        assert class_of(rig.frame(frames(4))) == 0
        rig.close()
        assert not gpu.left

    gpu.release()
    gpu.kept_contexts.clear()
    with pytest.raises(EngineError, match=r"does not start: .*context is destroyed"):
        rig_of(monkeypatch, gpu)


def test_no_call_leaves_the_context_pushed(rig: Rig) -> None:
    """pycuda aborts a process whose context is still pushed when it ends."""
    answer = rig.frame(frames(4))
    assert not rig.gpu.stack
    answer["class_logits"].numpy()
    assert not rig.gpu.stack
    rig.gpu.faults.execution = 2
    with pytest.raises(EngineError):
        rig.frame(frames(4))
    assert not rig.gpu.stack


# One owner


def test_only_the_thread_that_opened_the_engines_may_use_them(rig: Rig) -> None:
    answer = rig.frame(frames(4))
    faults: dict[str, Exception] = {}

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            faults[name] = error

    acts: dict[str, Callable[[], object]] = {
        "call": lambda: rig.frame(frames(4)),
        "read": answer["class_logits"].numpy,
        "close": rig.frame.close,
    }
    for name, act in acts.items():
        thread = threading.Thread(target=attempt, args=(name, act), name="stranger")
        thread.start()
        thread.join()

    assert faults.keys() == acts.keys()
    for fault in faults.values():
        assert isinstance(fault, EngineError)
        assert "thread 'stranger' uses an engine of thread 'MainThread'" in str(fault)
    assert class_of(answer) == 0
    rig.close()
    assert not rig.gpu.left


# What is refused


def test_more_than_the_engine_was_built_for_is_refused(rig: Rig) -> None:
    with pytest.raises(EngineError, match=r"batch is 3, the engine was opened for 1 to 2; .*--batch"):
        rig.frame(frames(4, 8, 12))
    with pytest.raises(EngineError, match=r"masks is 5, the engine was opened for 1 to 4"):
        masks_of(rig, rig.frame(frames(4))["mask_features"].row(0), picks(5))


def test_feeds_unlike_the_manifest_are_refused(rig: Rig) -> None:
    with pytest.raises(EngineError, match=r"'images' is float32 .*; expected uint8"):
        rig.frame({**frames(4), "images": np.zeros((1, *SIZE, 3), np.float32)})


def test_tensors_of_another_bundle_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    other = rig_of(monkeypatch, Gpu())

    with pytest.raises(EngineError, match="'mask_features' is of another bundle's engine"):
        masks_of(rig, other.frame(frames(4))["mask_features"].row(0), picks(1))


CHANGES: list[tuple[Mapping[str, Any], str]] = [
    (
        {"name": "elsewhere"},
        r"output 'elsewhere' is not in the graph, which has class_logits, .*'embeddings' is in the graph but not",
    ),
    ({"dtype": "float16"}, r"'embeddings': expected float16 \[batch, 4, 8\], found float32 \[\?, 4, 8\]"),
    ({"shape": ("batch", 4, 9)}, r"'embeddings': expected float32 \[batch, 4, 9\], found float32 \[\?, 4, 8\]"),
    ({"shape": (1, 4, 8)}, r"'embeddings': expected float32 \[1, 4, 8\], found float32 \[\?, 4, 8\]"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_an_engine_unlike_its_manifest_is_refused_with_both_told(
    monkeypatch: pytest.MonkeyPatch, change: Mapping[str, Any], told: str
) -> None:
    graph = fake_manifest(SIZE, 4).graphs["frame"]
    tensor = TensorSpec.model_validate({**graph.outputs["embeddings"].model_dump(), **change})
    other = graph.model_copy(update={"outputs": {**graph.outputs, "embeddings": tensor}})
    gpu = Gpu()

    words = rf"does not fit its manifest: .*{told}.*delete it from the engine cache"
    with pytest.raises(EngineError, match=words) as kept:
        rig_of(monkeypatch, gpu, told={"frame": other})

    assert not gpu.left
    assert kept.value


def test_an_engine_built_for_less_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import trt_rig

    made = trt_rig.serialised

    def for_one(gpu: Gpu, identity: str, manifest: Manifest, name: str, batch: int) -> bytes:
        return made(gpu, identity, manifest, name, 1)

    monkeypatch.setattr(trt_rig, "serialised", for_one)

    with pytest.raises(EngineError, match=r"built for \(1, 64, 96, 3\) to \(1, 64, 96, 3\), needed are .* to \(4, 64"):
        rig_of(monkeypatch, batch=4)


# What fails


def test_a_failure_spoils_no_call_that_is_still_on_its_way(rig: Rig) -> None:
    first = rig.frame(frames(4))
    rig.gpu.faults.execution = 1
    second = rig.frame(frames(GONE))

    assert class_of(first) == 0
    assert class_of(second) == 3


@pytest.mark.parametrize("fault", ["input_shape", "tensor_address", "execution", "context"])
def test_an_error_that_is_kept_keeps_nothing_of_the_gpu(rig: Rig, fault: str) -> None:
    """A traceback holds the frames it went through, and TensorRT's objects must not outlive CUDA's context."""
    setattr(rig.gpu.faults, fault, 2)

    with pytest.raises(EngineError, match="TensorRT refuses") as told:
        rig.frame(frames(4))
    rig.close()

    assert not rig.gpu.left
    assert told.value


@pytest.mark.parametrize("fault", ["execution", "context", "input_shape", "tensor_address"])
def test_what_fails_once_is_done_again_in_a_fresh_context_and_counted(rig: Rig, fault: str) -> None:
    for x in (4, 8):
        rig.frame(frames(x))
    setattr(rig.gpu.faults, fault, 1)

    answer = rig.frame(frames(4, 40))

    expected = on_cpu()["frame"](frames(4, 40))
    np.testing.assert_array_equal(answer["mask_features"].numpy(), expected["mask_features"].numpy())
    assert rig.frame.retries == 1


def test_a_graph_that_cannot_be_launched_is_run_plainly(rig: Rig) -> None:
    for x in (4, 8, 12, 16):
        rig.frame(frames(x))
    rig.gpu.faults.graph_launch = 1

    assert class_of(rig.frame(frames(4))) == 0
    assert rig.frame.retries == 1


def test_what_fails_again_is_an_error_with_tensorrts_own_words_and_the_engine_lives_on(rig: Rig) -> None:
    rig.gpu.faults.execution = 2

    with pytest.raises(
        EngineError,
        match=r"TensorRT refuses the execution, also in a fresh context; TensorRT says: .*enqueueV3.*--batch",
    ):
        rig.frame(frames(4))

    for x in (4, 8, 12, 16):
        assert class_of(rig.frame(frames(x))) == 0
    rig.close()
    assert not rig.gpu.left


def test_a_context_that_cannot_be_made_is_an_error_about_memory(rig: Rig) -> None:
    rig.gpu.faults.context = 2

    with pytest.raises(
        EngineError,
        match=r"refuses an execution context, also in a fresh context; TensorRT says: .*OutOfMemory.*smaller batch",
    ):
        rig.frame(frames(4))


def test_a_kernel_that_fails_is_told_when_its_answer_is_read_and_closing_still_works(rig: Rig) -> None:
    rig.gpu.faults.kernel = 1
    answer = rig.frame(frames(4))

    with pytest.raises(EngineError, match=r"reading 'class_logits': CUDA failed .*ILLEGAL_ADDRESS.*open the session"):
        answer["class_logits"].numpy()
    with pytest.raises(EngineError, match="CUDA failed"):
        rig.frame(frames(4))

    rig.close()
    assert not rig.gpu.stack
    assert not alive(rig.gpu)


def test_memory_that_runs_out_while_opening_is_an_error_in_megabytes_and_all_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = rig_of(monkeypatch)
    allocations = whole.gpu.counts["allocate"]
    assert allocations > 8
    for number in range(1, allocations + 1):
        gpu = Gpu()
        gpu.faults.out_of_memory_at = {number}
        told = r"needs \d+\.\d MB of GPU memory, \d+\.\d MB of 64\.0 MB are free on"
        with pytest.raises(EngineError, match=told) as kept:
            rig_of(monkeypatch, gpu)
        assert not gpu.left
        assert kept.value


def test_a_card_that_is_too_small_is_told_with_the_tensor_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EngineError,
        match=r"memory for 'images', 'valid_sizes', needs 3\.0 MB .* of 1\.0 MB are free on NVIDIA Fake.*--batch",
    ):
        rig_of(monkeypatch, Gpu(memory_mb=1), size=(1024, 1024), batch=1)


def test_page_locked_memory_that_is_refused_is_an_error_and_all_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    gpu.faults.pin = 1

    with pytest.raises(EngineError, match="of page-locked host memory, which is refused"):
        rig_of(monkeypatch, gpu)

    assert not gpu.left
