"""Claims about what ships: the default bundle in its three precisions, its model card and the demo clip."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from data_sets import ROOT, data_set

from visrt.benchmarks.accuracy.evaluate import Evaluation, evaluate_session
from visrt.export.onnx_graph import check_uint8_inputs
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.trt.precision import node_precisions
from visrt.runtime.parity.agreement import Floors, FrameAnswer, agreement, answers
from visrt.runtime.parity.frames import clip_frames
from visrt.runtime.parity.verify import verify
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session
from visrt.runtime.sources.video import read_video
from visrt.training.data.annotations import load_class_map
from visrt.training.data.set_formats import load_annotations

BUNDLE = ROOT / "bundles" / "default"
FP16, INT8 = ROOT / "bundles" / "default-fp16", ROOT / "bundles" / "default-int8"
CLIP = ROOT / "clips" / "demo.mp4"
CLASS_MAP = ROOT / "training" / "recipes" / "default" / "eval_classes.json"
CLIP_FRAMES = 180


@pytest.fixture(scope="module")
def demo() -> list[FrameResult]:
    """The first 60 frames of the demo clip through the default bundle."""
    results: list[FrameResult] = []
    with Session.open(BUNDLE) as session:
        for frame in read_video(CLIP):
            results += session.step(frame.image, frame.time_s)
            if len(results) == 60:
                break
    return results


def evaluated(name: str, bundle: Path = BUNDLE) -> Evaluation:
    folder = data_set(name)
    with Session.open(bundle) as session:
        annotated = load_annotations(folder, session.manifest.classes, load_class_map(CLASS_MAP))
        return evaluate_session(session, annotated, fps=24)


@pytest.mark.parametrize("bundle", [BUNDLE, FP16, INT8], ids=lambda folder: folder.name)
def test_it_computes_here_what_torch_computed_when_it_was_exported(bundle: Path) -> None:
    verify(bundle).require(str(bundle))


@pytest.mark.parametrize("bundle", [BUNDLE, FP16, INT8], ids=lambda folder: folder.name)
def test_tensorrt_takes_its_uint8_inputs(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for name in opened.manifest.graphs:
        check_uint8_inputs(onnx.load_from_string(opened.graph(name)).graph)


@pytest.mark.parametrize("bundle", [BUNDLE, FP16, INT8], ids=lambda folder: folder.name)
def test_it_is_small_enough_to_ship_and_has_a_model_card(bundle: Path) -> None:
    assert sum(path.stat().st_size for path in bundle.iterdir()) < 30e6
    card = (ROOT / "bundles" / "default.md").read_text()
    for section in ("Data", "Licence", "Settings", "Measured quality"):
        assert f"## {section}" in card


def test_the_people_of_the_demo_clip_are_found_and_keep_their_ids(demo: list[FrameResult]) -> None:
    people = [[o for o in result.objects if o.label == 0] for result in demo]
    assert sum(len(seen) >= 2 for seen in people) >= 50
    lives: dict[int, int] = {}
    for seen in people:
        for one in seen:
            lives[one.id] = lives.get(one.id, 0) + 1
    assert sum(life >= 30 for life in lives.values()) >= 2, f"frames by id: {lives}"


@pytest.fixture(scope="module")
def demo_answers() -> list[FrameAnswer]:
    """What the FP32 bundle says of every query of every frame of the demo clip."""
    return clip_answers(BUNDLE)


def clip_answers(bundle: Path) -> list[FrameAnswer]:
    opened = open_bundle(bundle)
    frames = clip_frames(CLIP, opened.manifest.input, CLIP_FRAMES)
    engines = open_engines(opened)
    return answers(engines, frames.images, frames.valid_sizes)


def test_fp16_sees_the_demo_clip_as_fp32_does(demo_answers: list[FrameAnswer]) -> None:
    found = agreement(demo_answers, clip_answers(FP16))
    assert found.frames == CLIP_FRAMES
    assert not Floors(iou_mean=0.995, top_class=0.99, assignment=0.99).missed(found), found


def test_int8_sees_the_demo_clip_nearly_as_fp32_does(demo_answers: list[FrameAnswer]) -> None:
    found = agreement(demo_answers, clip_answers(INT8))
    assert not Floors(iou_mean=0.97, top_class=0.99, assignment=0.9).missed(found), found
    precisions = list(node_precisions(open_bundle(INT8))["frame"].values())
    assert precisions.count("int8") > len(precisions) / 2


@pytest.mark.full_size
def test_data_int8_finds_as_many_objects_as_fp32_to_two_points() -> None:
    counts = {
        bundle: [evaluated(name, bundle).counts for name in ("davis_dev", "composite_dev")] for bundle in (BUNDLE, INT8)
    }
    recalls = {bundle: sum(one.tp for one in sets) / sum(one.gt for one in sets) for bundle, sets in counts.items()}
    assert recalls[INT8] >= recalls[BUNDLE] - 0.02, recalls


def test_data_named_objects_of_real_videos_are_found() -> None:
    counts = evaluated("davis_dev").counts
    assert counts.recall >= 0.77
    assert counts.duplicates_a_frame < 0.2


def test_data_crossing_objects_are_found_and_keep_their_ids() -> None:
    counts = evaluated("composite_dev").counts
    assert counts.recall >= 0.57
    assert counts.switch_rate <= 0.13
    assert counts.duplicates_a_frame < 0.2
