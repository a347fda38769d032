"""Claims about reading annotations and results: the first fault is told by its json path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotated_sets import moving_box, set_values, write_set

from visrt.benchmarks.ytvis import load_annotations, load_class_map, load_results
from visrt.runtime.errors import DataError


def test_a_set_is_read_with_its_own_classes(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values(videos=2)))
    assert annotated.classes == ("dog", "car")
    assert [video.name for video in annotated.videos] == ["video1", "video2"]
    assert [track.label for track in annotated.videos[0].tracks] == [0, 1]


def test_categories_are_renamed_to_the_bundle_s_classes_or_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path, set_values())
    annotated = load_annotations(folder, ("person", "animal"), {"dog": "animal", "car": None})
    assert [track.label for track in annotated.videos[0].tracks] == [1]
    with pytest.raises(DataError, match=r"categories car are none of the classes person, animal; give a class map"):
        load_annotations(folder, ("person", "animal"), {"dog": "animal"})


BAD_SETS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a list too short": (
        lambda v: v["annotations"][1]["segmentations"].pop(),
        r"annotations\[1\]\.segmentations: .*3 frames; found 2",
    ),
    "another size": (
        lambda v: v["annotations"][0]["segmentations"][1].update(size=[4, 4]),
        r"annotations\[0\]\.segmentations\[1\]\.size",
    ),
    "an unknown category": (
        lambda v: v["annotations"][0].update(category_id=9),
        r"annotations\[0\]\.category_id: 9 is none",
    ),
    "an unknown video": (lambda v: v["annotations"][0].update(video_id=9), r"annotations\[0\]\.video_id: 9 is none"),
    "a negative height": (lambda v: v["videos"][0].update(height=-1), r"videos\[0\]\.height"),
    "a video id twice": (lambda v: v["videos"].append(v["videos"][0]), "videos hold an id twice"),
    "a category id twice": (lambda v: v["categories"].append(v["categories"][0]), r"categories\[2\]"),
    "no videos": (lambda v: v.pop("videos"), "videos: expected a list"),
    "a missing picture": (
        lambda v: v["videos"][0]["file_names"].__setitem__(2, "no.png"),
        r"videos\[0\]\.file_names\[2\]: there is no picture",
    ),
    "malformed counts": (
        lambda v: v["annotations"][0]["segmentations"][0].update(counts="zz"),
        r"segmentations\[0\]\.counts",
    ),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_a_broken_set_is_refused_with_the_json_path_of_the_fault(name: str, tmp_path: Path) -> None:
    values = json.loads(json.dumps(set_values()))
    folder = write_set(tmp_path, values)
    breaks, told = BAD_SETS[name]
    breaks(values)
    (folder / "instances.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=told):
        load_annotations(folder)


BAD_RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a NaN score": ({"score": float("nan")}, r"\[0\]\.score: expected a finite number"),
    "a text score": ({"score": "high"}, r"\[0\]\.score"),
    "a wrong length": ({"segmentations": moving_box(0, 0, 9, 9, 2)}, r"\[0\]\.segmentations: .*3 frames; found 2"),
    "an unknown video": ({"video_id": 4}, r"\[0\]\.video_id: 4"),
    "a text video": ({"video_id": "1"}, r"\[0\]\.video_id: expected a whole number"),
    "an unknown category": ({"category_id": 3}, r"\[0\]\.category_id: 3"),
    "a list for a mask": ({"segmentations": [[1], None, None]}, r"\[0\]\.segmentations\[0\]"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_a_broken_results_file_is_refused_with_the_json_path_of_the_fault(name: str, tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values()))
    changes, told = BAD_RESULTS[name]
    good = {"video_id": 1, "category_id": 2, "score": 0.5, "segmentations": moving_box(2, 4, 20, 16, 3)}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**good, **changes}]))
    with pytest.raises(DataError, match=told):
        load_results(path, annotated)


def test_files_that_are_missing_or_no_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_annotations(tmp_path)
    (tmp_path / "instances.json").write_text("<html>")
    with pytest.raises(DataError, match="cannot be read as json"):
        load_annotations(tmp_path)
    (tmp_path / "map.json").write_text('{"dog": 3}')
    with pytest.raises(DataError, match=r"expected one json object of names"):
        load_class_map(tmp_path / "map.json")
