"""Claims about reading annotations and results: the first fault is told by its json path."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotated_sets import moving_box, set_values, write_set
from hypothesis import given
from hypothesis import strategies as st

from visrt.benchmarks.accuracy.evaluate import evaluate_results
from visrt.benchmarks.accuracy.scores import Scores, load_results, score
from visrt.runtime.errors import DataError
from visrt.training.data.annotations import AnnotatedSet, Track, load_class_map
from visrt.training.data.set_formats import load_annotations


def test_a_set_is_read_with_its_own_classes(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values(videos=2)))
    assert annotated.classes == ("dog", "car")
    assert [video.name for video in annotated.videos] == ["video1", "video2"]
    assert [track.label for track in annotated.videos[0].tracks] == [0, 1]


def test_categories_are_renamed_to_the_bundle_s_classes_or_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path, set_values())
    annotated = load_annotations(folder, ("person", "animal"), {"dog": "animal", "car": None})
    assert [track.label for track in annotated.videos[0].tracks] == [1]


UNFIT_MAPS: dict[str, tuple[dict[str, str | None] | None, str]] = {
    "no map": (None, r"car, dog are none of the classes person, animal; give a class map"),
    "one misspelt name": (
        {"dogs": "animal", "car": None},
        r"lacks the category 'dogs'; did you mean 'dog'\? It has: car",
    ),
    "one misspelt": ({"dog": "animla", "car": None}, r"animla are none of the classes person, animal"),
    "all to null": ({"dog": None, "car": None}, r"leaves out every category"),
}


@pytest.mark.parametrize("name", UNFIT_MAPS)
def test_a_class_map_that_does_not_fit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    mapped, told = UNFIT_MAPS[name]
    with pytest.raises(DataError, match=told):
        load_annotations(write_set(tmp_path, set_values()), ("person", "animal"), mapped)


def test_a_category_with_a_class_s_own_name_is_no_exception_from_the_map(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values()), ("dog", "vehicle"), {"car": "vehicle"})
    assert [track.label for track in annotated.videos[0].tracks] == [1]
    assert annotated.remarks == (f"{tmp_path}/instances.json: the class map leaves out 1 annotated objects: 1 dog",)


def test_a_list_keeps_these_categories_and_counts_the_others(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values()), choice=("car",))
    assert annotated.classes == ("car",)
    assert [track.label for track in annotated.videos[0].tracks] == [0]
    assert annotated.remarks == (f"{tmp_path}/instances.json: the class map leaves out 1 annotated objects: 1 dog",)


UNFIT_LISTS = {
    "another case": (("Dog",), r"lacks the category 'Dog'; did you mean 'dog'\? It has: car, dog"),
    "nothing like it": (("dog", "car", "zebra"), r"lacks the category 'zebra'; it has: car, dog"),
}


@pytest.mark.parametrize("name", UNFIT_LISTS)
def test_a_list_with_a_name_that_the_set_lacks_is_refused_with_the_names_it_has(name: str, tmp_path: Path) -> None:
    choice, message = UNFIT_LISTS[name]
    with pytest.raises(DataError, match=message):
        load_annotations(write_set(tmp_path, set_values()), choice=choice)


BAD_SETS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
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
    "a video id twice": (lambda v: v["videos"].append(v["videos"][0]), r"videos\[1\]\.id: 1 is the id of videos\[0\]"),
    "a category id twice": (
        lambda v: v["categories"].append(v["categories"][0]),
        r"categories\[2\]\.id: 2 is the id of",
    ),
    "a category name twice": (lambda v: v["categories"][1].update(name="dog"), r"categories\[1\]\.name: .*'dog'"),
    "an annotation id twice": (lambda v: v["annotations"][1].update(id=1), r"annotations\[1\]\.id: 1 is the id of"),
    "an annotation without id": (lambda v: v["annotations"][1].pop("id"), r"annotations\[1\]\.id: .*None"),
    "a crowd in words": (lambda v: v["annotations"][0].update(iscrowd="no"), r"annotations\[0\]\.iscrowd: .*'no'"),
    "no pixels": (
        lambda v: v["videos"][0].update(width=0),
        r"videos\[0\]\.width: expected .* one or more; found 0",
    ),
    "another length": (lambda v: v["videos"][0].update(length=4), r"videos\[0\]\.length: 4, but file_names holds 3"),
    "a way out": (
        lambda v: v["videos"][0].update(file_names=["a/../../x.png"] * 3),
        r"videos\[0\]\.file_names\[0\]: .* leads out",
    ),
    "no list of videos": (lambda v: v.pop("videos"), "videos: expected a list of at least one; found None"),
    "no videos": (lambda v: (v["videos"].clear(), v["annotations"].clear()), "videos: expected a list of at least one"),
    "no categories": (lambda v: (v["categories"].clear(), v["annotations"].clear()), "categories: expected a list of"),
    "runs that stop short": (
        lambda v: v["annotations"][0]["segmentations"][0].update(counts=[5]),
        r"annotations\[0\]\.segmentations\[0\]\.counts: runs cover 5 pixels",
    ),
    "a negative run": (
        lambda v: v["annotations"][0]["segmentations"][0].update(counts=[-1, 48 * 64 + 1]),
        r"annotations\[0\]\.segmentations\[0\]\.counts: expected run lengths of zero or more",
    ),
    "a missing picture": (
        lambda v: v["videos"][0]["file_names"].__setitem__(2, "no.png"),
        r"1 of 1 videos are not, or not whole, below .*: video1 \(1 of 3 frames, the first no\.png\)",
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
    "an endless score": ({"score": float("inf")}, r"\[0\]\.score: expected a finite number"),
    "a score beyond floats": ({"score": 10**400}, r"\[0\]\.score: expected a finite number"),
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


def test_all_faults_of_a_results_file_are_told_at_once(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values()))
    good = {"video_id": 1, "category_id": 2, "score": 0.5, "segmentations": moving_box(2, 4, 20, 16, 3)}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, {**good, "video_id": 7}, {**good, "score": "high"}, {**good, "video_id": 8}]))
    with pytest.raises(DataError, match=r"3 faults: 2 x \[1\]\.video_id: 7 .*\(also \[3\]\..*; 1 x \[2\]\.score"):
        load_results(path, annotated)


def test_two_results_of_one_id_are_refused(tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path, set_values()))
    one = {"id": 4, "video_id": 1, "category_id": 2, "score": 0.5, "segmentations": moving_box(2, 4, 20, 16, 3)}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([one, {**one, "id": 5}, one]))
    with pytest.raises(DataError, match=r"\[2\]\.id: 4 is the id of \[0\] too; ids must differ"):
        load_results(path, annotated)


def test_files_that_are_missing_or_no_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither instances\.json"):
        load_annotations(tmp_path)
    (tmp_path / "instances.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"instances\.json: not json \(nested too deeply\); expected one object with"):
        load_annotations(tmp_path)
    (tmp_path / "instances.json").write_text("<html>")
    with pytest.raises(DataError, match=r"instances\.json: not json \(.*line 1 column 1.*expected one object with"):
        load_annotations(tmp_path)
    (tmp_path / "map.json").write_text('{"dog": 3}')
    with pytest.raises(DataError, match=r"map\.json: dog is 3; expected one object of names"):
        load_class_map(tmp_path / "map.json")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-3, 9), max_size=3),
    st.dictionaries(st.sampled_from(["size", "counts", "id"]), st.integers(-2, 70), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The json path of everything below `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*path, key), *places(item, (*path, key)))]


def with_junk(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """A copy of `value` that holds `junk` at `path`."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    return copy


def refusal(measure: Callable[[], object]) -> str | None:
    """The words of the DataError, None if it went well; any other exception fails the test."""
    try:
        measure()
    except DataError as error:
        return str(error)
    return None


def scores_of(annotated: AnnotatedSet, predicted: dict[int, list[Track]]) -> Scores:
    return score(annotated, evaluate_results(annotated, predicted))


@given(st.data())
def test_junk_anywhere_in_annotations_is_refused_by_name_or_measured(data: st.DataObject) -> None:
    good = set_values()
    with tempfile.TemporaryDirectory() as name:
        folder = write_set(Path(name), good)
        broken = with_junk(good, data.draw(st.sampled_from(places(good))), data.draw(JUNK))
        (folder / "instances.json").write_text(json.dumps(broken))
        told = refusal(lambda: scores_of(load_annotations(folder), {}))
        assert told is None or "instances.json: " in told


@given(st.data())
def test_junk_anywhere_in_results_is_refused_by_name_or_measured(data: st.DataObject) -> None:
    good = [{"video_id": 1, "category_id": 2, "score": 0.5, "segmentations": moving_box(2, 4, 20, 16, 3)}]
    with tempfile.TemporaryDirectory() as name:
        annotated = load_annotations(write_set(Path(name), set_values()))
        path = Path(name) / "results.json"
        path.write_text(json.dumps(with_junk(good, data.draw(st.sampled_from(places(good))), data.draw(JUNK))))
        told = refusal(lambda: scores_of(annotated, load_results(path, annotated)[0]))
        assert told is None or "results.json: [0]" in told
