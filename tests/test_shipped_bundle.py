"""Claims about what ships: the default bundle, its model card and the demo clip."""

from __future__ import annotations

import pytest
from data_sets import ROOT, data_set

from visrt.benchmarks.evaluate import Evaluation, evaluate_session
from visrt.benchmarks.ytvis import load_annotations, load_class_map
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session
from visrt.runtime.verify import verify
from visrt.runtime.video import read_video

BUNDLE = ROOT / "bundles" / "default"
CLIP = ROOT / "clips" / "demo.mp4"
CLASS_MAP = ROOT / "training" / "recipes" / "default" / "eval_classes.json"


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


def evaluated(name: str) -> Evaluation:
    folder = data_set(name)
    with Session.open(BUNDLE) as session:
        annotated = load_annotations(folder, session.manifest.classes, load_class_map(CLASS_MAP))
        return evaluate_session(session, annotated, fps=24)


def test_it_computes_here_what_torch_computed_when_it_was_exported() -> None:
    verify(BUNDLE).require(str(BUNDLE))


def test_it_is_small_enough_to_ship_and_has_a_model_card() -> None:
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) < 30e6
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


def test_data_named_objects_of_real_videos_are_found() -> None:
    counts = evaluated("davis_dev").counts
    assert counts.recall >= 0.77
    assert counts.duplicates_a_frame < 0.2


def test_data_crossing_objects_are_found_and_keep_their_ids() -> None:
    counts = evaluated("composite_dev").counts
    assert counts.recall >= 0.57
    assert counts.switch_rate <= 0.13
    assert counts.duplicates_a_frame < 0.2
