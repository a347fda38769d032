"""What an engine may get wrong in each precision, and what never passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import fake_manifest
from recorded_engine import FRAMES, QUERIES, Change, Recorded, Values, reference_of_values

from visrt.runtime.arrays import HostTensor, Tensor
from visrt.runtime.errors import BundleError, EngineError, ParityError, UsageError
from visrt.runtime.parity.check import GATES, ParityReport, gate_of, judge, precision_of
from visrt.runtime.parity.reference import ROLES
from visrt.runtime.parity.tolerances import is_by_query, scale_of

PRECISIONS = tuple(GATES)


def judged(change: Change = lambda _: None, precision: str = "fp32", **other: Any) -> ParityReport:
    engine = Recorded(change)
    return judge({"frame": engine, "masks": engine}, reference_of_values(), precision, **other)


def failing_roles(change: Change, moved_share: float = 0.0) -> set[str]:
    engine = Recorded(change)
    reference = replace(reference_of_values(), moved_share=moved_share)
    report = judge({"frame": engine, "masks": engine}, reference)
    return {row.role for row in report.tensors if not row.passed}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_values_pass(precision: str) -> None:
    report = judged(precision=precision)
    assert report.passed
    assert report.faults() == []
    report.require("nothing to say")
    assert [batch.batch for batch in report.batches] == [1, 3]
    for batch in report.batches:
        assert batch.agreement is not None
        assert (batch.agreement.iou_min, batch.agreement.top_class, batch.agreement.assignment) == (1, 1, 1)


@pytest.mark.parametrize("role", [role for role in ROLES if is_by_query(role)])
def test_a_query_that_jumped_is_borne_in_float32_and_a_third_of_them_is_not(role: str) -> None:
    def jump(queries: int) -> Change:
        return lambda outputs: outputs[role].__setitem__((1, slice(queries)), 5.0)

    assert failing_roles(jump(1)) == set()
    assert failing_roles(jump(QUERIES // 3)) == {role}


def test_where_torch_itself_moves_queries_an_engine_may_move_twice_as_many() -> None:
    def jump(outputs: Values) -> None:
        outputs["embeddings"][0, :10] = 5.0

    assert failing_roles(jump, moved_share=5 / (QUERIES * FRAMES)) == set()
    assert failing_roles(jump, moved_share=4 / (QUERIES * FRAMES)) == {"embeddings"}


def test_mask_features_must_agree_everywhere() -> None:
    assert failing_roles(lambda outputs: outputs["mask_features"].__setitem__((2, 3, 1, 1), 9.0)) == {"mask_features"}


def test_errors_are_relative_to_the_largest_value_but_never_to_less_than_one() -> None:
    assert scale_of(np.array([-100.0, 1.0])) == 100
    assert scale_of(np.array([0.1, 0.0])) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_value_that_is_no_number_never_passes(role: str, value: float, precision: str) -> None:
    # Frame 0 is where the recorded engine looks if no mask embeddings match.
    report = judged(lambda outputs: outputs[role].reshape(-1).__setitem__(0, value), precision)
    assert role in {row.role for row in report.tensors if not row.passed}
    with pytest.raises(ParityError, match=role):
        report.require("bundle")


def test_masks_of_more_pixels_than_were_kept_never_pass_though_the_sample_agrees() -> None:
    engine = Recorded(
        lambda outputs: outputs.update(mask_logits=np.pad(outputs["mask_logits"], [(0, 0)] * 2 + [(0, 3), (0, 0)]))
    )
    report = judge({"frame": engine, "masks": engine}, reference_of_values(), "int8")
    assert "expected masks of 7 bytes a query" in " ".join(report.faults())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", ["class_logits", "embeddings", "mask_logits"])
def test_another_shape_never_passes_and_both_shapes_are_told(role: str, precision: str) -> None:
    def cut(outputs: Values) -> None:
        outputs[role] = outputs[role][..., :-1]

    report = judged(cut, precision)
    assert {row.role for row in report.tensors if not row.passed} == {role}
    assert all(batch.agreement is None for batch in report.batches)
    assert f"{role} is [" in " ".join(report.faults())


def moved(outputs: Values) -> None:
    """Queries as FP16 moves them: by hundredths, mask features by a thousandth of their scale."""
    random = np.random.default_rng(1)
    for role, by in {"embeddings": 2e-2, "mask_embeddings": 2e-2, "class_logits": 1e-3, "mask_features": 1e-3}.items():
        outputs[role] += (by * random.uniform(-1, 1, outputs[role].shape)).astype(np.float32)
    outputs["mask_logits"] *= 1.02


def test_what_fp16_moves_passes_as_fp16_and_int8_and_fails_as_float32() -> None:
    assert judged(moved, "fp16").passed
    assert judged(moved, "int8").passed
    assert not judged(moved, "fp32").passed


def shift_masks(outputs: Values) -> None:
    outputs["mask_logits"] = np.roll(outputs["mask_logits"], 1, axis=3)


def swap_classes(outputs: Values) -> None:
    outputs["class_logits"] = outputs["class_logits"][:, :, [1, 0, 2, 3]]


def swap_queries(outputs: Values) -> None:
    """Two objects change places in the second frame: every mask and class is there, under another query."""
    outputs["embeddings"][1, [0, 3]] = outputs["embeddings"][1, [3, 0]]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(
    ("change", "told"), [(shift_masks, "iou_mean"), (swap_classes, "top_class"), (swap_queries, "assignment")]
)
def test_shifted_masks_swapped_classes_and_objects_fail(change: Change, told: str, precision: str) -> None:
    report = judged(change, precision)
    assert not report.passed
    with pytest.raises(ParityError, match=rf"{told} 0\.\d+ below .* largest error is .* in (frame|masks)\."):
        report.require("bundle")


@pytest.mark.parametrize("flipped", [1, 2])
def test_one_class_of_150_may_flip_in_fp16_and_two_may_not(flipped: int) -> None:
    def flip(outputs: Values) -> None:
        outputs["class_logits"][0, : 3 * flipped : 3, 1] = 20

    assert judged(flip, "fp16").passed == (flipped == 1)


def test_mask_features_off_by_a_fiftieth_fail_as_fp16_and_are_told_as_int8() -> None:
    def off(outputs: Values) -> None:
        outputs["mask_features"] += 0.02 * np.abs(outputs["mask_features"]).max()

    assert {row.role for row in judged(off, "fp16").tensors if not row.passed} == {"mask_features"}
    report = judged(off, "int8")
    assert report.passed
    assert max(row.max_rel for row in report.tensors if row.role == "mask_features") > 0.019


def test_floors_of_the_user_take_the_place_of_those_of_the_precision() -> None:
    assert not judged(shift_masks, "int8", floors={"iou_mean": 0.9}).passed
    assert judged(shift_masks, "int8", floors={"iou_mean": 0.01}).passed
    with pytest.raises(UsageError, match=r"iou_maen is unknown; known are iou_mean"):
        gate_of("fp16", {"iou_maen": 0.9})


def test_a_reference_without_masks_is_judged_by_what_there_is() -> None:
    reference = replace(reference_of_values(), masks=None)

    def report(change: Change) -> ParityReport:
        return judge({"frame": Recorded(change), "masks": Recorded(change)}, reference, "fp16")

    assert report(shift_masks).passed
    assert not report(swap_classes).passed
    found = report(lambda _: None).batches[0].agreement
    assert found is not None
    assert np.isnan(found.iou_mean)
    with pytest.raises(UsageError, match="keeps no masks"):
        judge({"frame": Recorded(), "masks": Recorded()}, reference, "fp16", floors={"iou_min": 0.5})


class Failing(Recorded):
    """Refuses batches, as an engine does that runs out of memory."""

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(feeds.get("images", ())) > 1:
            raise EngineError("out of memory, 2 GB asked for")
        return super().__call__(feeds)


def test_an_engine_that_fails_mid_run_is_told_and_what_ran_before_is_kept() -> None:
    report = judge({"frame": Failing(), "masks": Recorded()}, reference_of_values())
    single, batched = report.batches
    assert single.passed
    assert len(single.tensors) == len(ROLES)
    assert not batched.passed
    with pytest.raises(ParityError, match=r"batch 3: it fails while it runs: out of memory, 2 GB"):
        report.require("bundle")


class Short(Recorded):
    """Answers for the first frame of a batch only."""

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        return {
            role: HostTensor(t.numpy()[:1]) if "images" in feeds else t for role, t in super().__call__(feeds).items()
        }


def test_an_engine_that_loses_frames_of_a_batch_fails() -> None:
    report = judge({"frame": Short(), "masks": Recorded()}, reference_of_values())
    assert report.batches[0].passed
    assert "1 frames of a batch of 3" in report.batches[1].faults[0]


def test_a_batch_that_the_frames_do_not_fill_ends_with_the_last_frame() -> None:
    seen: list[list[int]] = []

    class Listening(Recorded):
        def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
            seen.extend([feeds["images"].ravel().tolist()] if "images" in feeds else [])
            return super().__call__(feeds)

    judge({"frame": Listening(), "masks": Recorded()}, reference_of_values(), batches=(2, 4))
    assert seen == [[0, 1], [2, 2], [0, 1, 2, 2]]


def test_the_masks_graph_gets_embeddings_in_the_precision_of_the_features() -> None:
    given: list[str] = []

    class Half(Recorded):
        def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
            given.extend([str(feeds["mask_embeddings"].dtype)] if "mask_embeddings" in feeds else [])
            return super().__call__(feeds)

    def half(outputs: Values) -> None:
        outputs["mask_features"] = outputs["mask_features"].astype(np.float16)

    judge({"frame": Half(half), "masks": Half()}, reference_of_values(), "fp16", batches=(1,))
    assert given == ["float16"] * FRAMES


def precision_with(frame: str, masks: str) -> str:
    manifest = fake_manifest()
    graphs = {
        "frame": manifest.graphs["frame"].model_copy(update={"precision": frame}),
        "masks": manifest.graphs["masks"].model_copy(update={"precision": masks}),
    }
    return precision_of(manifest.model_copy(update={"graphs": graphs}))


def test_a_bundle_is_as_exact_as_its_least_exact_graph() -> None:
    assert precision_with("fp32", "fp32") == "fp32"
    assert precision_with("fp32", "fp16") == "fp16"
    assert precision_with("int8", "fp16") == "int8"
    with pytest.raises(BundleError, match=r"'fp4', expected one of fp32, fp16, int8"):
        precision_with("fp4", "fp32")
