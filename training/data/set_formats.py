"""The formats of annotated sets, `FORMATS`: which of them a set is in, and how it is read and written.

Training, `visrt data` and `visrt eval` read sets through here and so take the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.json_file import read_json, read_json_object
from visrt.runtime.sinks.output import JOURNAL, cannot_write
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.annotations import AnnotatedSet, ClassChoice, with_classes
from visrt.training.data.formats.burst import FRAMES, burst_set, first_picture
from visrt.training.data.formats.coco import coco_set, picture_name, write_coco
from visrt.training.data.formats.cvat import XML, cvat_files, read_cvat, write_cvat
from visrt.training.data.formats.davis import MASKS, PICTURES, load_object_names, read_davis, write_davis
from visrt.training.data.formats.label_studio import TASKS, is_tasks, label_studio_set, write_label_studio
from visrt.training.data.formats.labelme import is_labelme, read_labelme
from visrt.training.data.formats.mots import CLASSES, find_mots, read_mots, write_mots
from visrt.training.data.formats.panoptic import is_panoptic, panoptic_set
from visrt.training.data.formats.placing import Pictures
from visrt.training.data.formats.tracked_run import read_run, run_folders
from visrt.training.data.formats.yolo import read_yolo, yolo_file
from visrt.training.data.formats.youtube_vis import write_youtube_vis, youtube_vis_set
from visrt.training.data.json_faults import short
from visrt.training.data.layouts import ANNOTATIONS, IMAGES, NAMES, SetPlaces, folders_for, only_set
from visrt.training.data.official_sets import OFFICIAL_SETS, recognised
from visrt.training.data.picture_folder import MissingPictures, ReadRules

__all__ = [
    "ANNOTATIONS",
    "FORMATS",
    "IMAGES",
    "NAMES",
    "PICTURES",
    "WRITTEN",
    "MissingPictures",
    "Pictures",
    "ReadSet",
    "SetPlaces",
    "load_annotations",
    "read_set",
    "write_set",
]


@dataclass(frozen=True)
class ReadSet:
    """A set, its format, the file or folder of its annotations, and of a json file the folder of its pictures."""

    annotated: AnnotatedSet
    format: str
    path: Path
    images: Path | None = None


TRIED = 100
"""Pictures that are looked for in each folder that may be the one."""


def read_set(
    places: SetPlaces,
    name: str | None = None,
    missing: MissingPictures = MissingPictures.refuse,
    skip_faulty: bool = False,
) -> ReadSet:
    """The set at `places` in the format `name`, or in the one it looks like. Raises DataError with all faults.

    missing: what becomes of videos that a json file lists and that are not on disk; other formats list pictures.
    skip_faulty: faulty entries are left out and counted in the remarks.
    """
    rules = ReadRules(missing, skip_faulty)
    if not places.folder.exists():
        raise UsageError(f"{places.folder}: there is no such folder; give the one that holds the set")
    if name is None or places.split is not None:
        kind, places = _placed(places)
        return _named(KINDS[name or kind](places, rules))
    return _named(FORMATS[name].read(places, rules))


def _placed(places: SetPlaces) -> tuple[str, SetPlaces]:
    """The kind of the set at `places`, and where exactly it lies."""
    file = places.annotations
    if file is None:
        found = only_set(places.folder, places.split)
        images, names = places.images or found.places.images, places.names or found.places.names
        return found.kind, replace(found.places, images=images, names=names)
    if file.is_dir():
        return "davis", places
    if file.suffix in (".yaml", ".yml"):
        return "yolo", places
    return "json", replace(places, image_folders=(places.folder / PICTURES, places.folder / IMAGES, *folders_for(file)))


def _named(read: ReadSet) -> ReadSet:
    """`read` with the key and the frame rate of the public set it is of, if any."""
    key = recognised(read.path, read.format.replace("-", "_"), read.annotated.classes)
    fps = read.annotated.fps if key is None else OFFICIAL_SETS[key].fps or read.annotated.fps
    return replace(read, annotated=replace(read.annotated, official=key, fps=fps))


def load_annotations(
    place: Path | SetPlaces,
    classes: Sequence[str] | None = None,
    choice: ClassChoice | None = None,
    missing: MissingPictures = MissingPictures.refuse,
    skip_faulty: bool = False,
) -> AnnotatedSet:
    """The set at `place`, its labels index `classes` (default: those of the choice or, without, the file's own).

    missing: as for `read_set`; with `MissingPictures.keep` the sizes of videos are known without any picture.
    """
    places = place if isinstance(place, SetPlaces) else SetPlaces(place)
    read = read_set(places, missing=missing, skip_faulty=skip_faulty)
    return with_classes(read.annotated, choice, read.path, classes)


def _values(places: SetPlaces) -> dict[str, Any]:
    return read_json_object(places.json_file, "one object with videos, images or sequences, annotations and categories")


def _youtube_vis(places: SetPlaces, rules: ReadRules, values: dict[str, Any] | None = None) -> ReadSet:
    path, values = places.json_file, _values(places) if values is None else values
    firsts = (names[0] for names in _each(values, "videos", "file_names") if isinstance(names, list) and names)
    pictures = _picture_folder(places, places.folder / PICTURES, firsts, rules.missing)
    return ReadSet(youtube_vis_set(path, values, pictures, rules), "youtube-vis", path, pictures)


def _coco(places: SetPlaces, rules: ReadRules, values: dict[str, Any] | None = None) -> ReadSet:
    path = places.json_file
    values, dropped = _without_root(_values(places) if values is None else values)
    listed = values.get("images")
    names = (picture_name(one) for one in (listed if isinstance(listed, list) else []) if isinstance(one, dict))
    pictures = _picture_folder(places, places.folder / IMAGES, names, rules.missing)
    annotated = coco_set(path, values, pictures, rules)
    if dropped:
        remark = f"{path}: category {dropped!r} is the name of the project and of no object, and is left out"
        annotated = replace(annotated, remarks=(*annotated.remarks, remark))
    return ReadSet(annotated, "coco", path, pictures)


def _each(values: dict[str, Any], entries: str, key: str) -> Iterator[Any]:
    """The value of `key` in each of the `entries`, which were not checked yet."""
    listed = values.get(entries)
    return (one.get(key) for one in (listed if isinstance(listed, list) else []) if isinstance(one, dict))


def _picture_folder(places: SetPlaces, usual: Path, names: Iterable[object], missing: MissingPictures) -> Path:
    """The folder of the pictures `names`: as given, or the first one in which one of the first pictures is. Names may
    also begin at the json file, as kwcoco's do, or above it."""
    folders = [places.images] if places.images is not None else [*places.image_folders] or [usual]
    there = [folder for folder in folders if folder.is_dir()]
    above = [] if places.images is not None else list(places.json_file.parents)[:2]
    tried = [name for name in islice(names, TRIED) if isinstance(name, str)]
    holding = (folder for name in tried for folder in (*there, *above) if (folder / name).is_file())
    found = next(holding, None)
    if found is None and not there and missing is not MissingPictures.keep:
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{places.json_file}: its folder of pictures was looked for in vain at {looked}; move the pictures there, "
            "or give their folder: `visrt eval` and `visrt data` take --images"
        )
    return found or (*there, *folders)[0]


def _without_root(values: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Roboflow's exports begin with a category of the project's name, the supercategory of all others. It goes where
    no object is of it; `values` as they are, and its name."""
    entries, objects = values.get("categories"), values.get("annotations")
    if not isinstance(entries, list) or len(entries) < 2 or not all(isinstance(one, dict) for one in entries):
        return values, None
    root, others = entries[0], entries[1:]
    named = root.get("supercategory") == "none" and all(one.get("supercategory") == root.get("name") for one in others)
    if not named or not isinstance(objects, list):
        return values, None
    if any(isinstance(one, dict) and one.get("category_id") == root.get("id") for one in objects):
        return values, None
    return {**values, "categories": others}, str(root.get("name"))


def _davis(places: SetPlaces, rules: ReadRules) -> ReadSet:
    pictures = places.images or places.folder / PICTURES
    named = places.names_file
    classes = None if named is None else load_object_names(named)
    masks = places.annotations or places.folder / MASKS
    annotated = read_davis(pictures, masks, classes, rules)
    bare = sum(len(images_in(v.pictures[0].parent)) - len(v.pictures) for v in annotated.videos)
    remarks = (f"{bare} pictures without a png of masks are left out",) if bare else ()
    return ReadSet(replace(annotated, remarks=(*annotated.remarks, *remarks)), "davis", masks)


def _mots(places: SetPlaces, rules: ReadRules) -> ReadSet:
    named = places.names_file
    classes = CLASSES if named is None else _class_numbers(named)
    return ReadSet(read_mots(find_mots(places.folder, places.images), classes, rules), "mots", places.folder)


def _class_numbers(path: Path) -> dict[int, str]:
    """{"1": "car", "2": "pedestrian"}: names of MOTS's class numbers."""
    expected = 'an object of class numbers and names: {"1": "car"}'
    values = read_json_object(path, expected)
    if not values:
        raise DataError(f"{path}: is empty; expected {expected}")
    for number, kind in values.items():
        if not (number.isdecimal() and isinstance(kind, str)):
            raise DataError(f"{path}: {number}: expected a number and the name of a class; found {short(kind)}")
    return {int(number): kind for number, kind in values.items()}


def _burst(places: SetPlaces, rules: ReadRules, values: dict[str, Any] | None = None) -> ReadSet:
    path, values = places.json_file, _values(places) if values is None else values
    listed = values.get("sequences")
    sequences = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    pictures = _picture_folder(places, places.folder / FRAMES, map(first_picture, sequences), rules.missing)
    return ReadSet(burst_set(path, values, pictures, rules), "burst", path, pictures)


def _panoptic(places: SetPlaces, rules: ReadRules, values: dict[str, Any] | None = None) -> ReadSet:
    path, values = places.json_file, _values(places) if values is None else values
    pictures = _picture_folder(places, places.folder / IMAGES, _each(values, "images", "file_name"), rules.missing)
    return ReadSet(panoptic_set(path, values, pictures, rules), "panoptic", path, pictures)


def _label_studio(places: SetPlaces, rules: ReadRules, values: Any = None) -> ReadSet:
    path = places.annotations or places.folder / TASKS
    expected = "a list of tasks, as Label Studio exports them as JSON"
    values = read_json(path, expected) if values is None else values
    if not is_tasks(values):
        raise DataError(f"{path}: holds {_held(values)}; expected {expected} (neither JSON-MIN nor CSV)")
    folders = [places.images] if places.images else [path.parent / IMAGES, path.parent]
    pictures = next((folder for folder in folders if folder.is_dir()), path.parent)
    return ReadSet(label_studio_set(path, values, pictures, rules), "label-studio", path, pictures)


def _cvat(places: SetPlaces, rules: ReadRules) -> ReadSet:
    files = (places.annotations,) if places.annotations else cvat_files(places.folder)
    if not files:
        raise DataError(f"{places.folder}: there is no {XML}, nor one in a folder in it; expected an export of CVAT")
    return ReadSet(read_cvat(files, places.images, rules), "cvat", files[0])


def _labelme(places: SetPlaces, rules: ReadRules) -> ReadSet:
    return ReadSet(read_labelme(places.folder, places.images, rules), "labelme", places.folder)


def _run(places: SetPlaces, _: ReadRules) -> ReadSet:
    runs = run_folders(places.folder)
    if not runs:
        raise DataError(f"{places.folder}: there is no {JOURNAL}; expected the folder of a run of `visrt track`")
    return ReadSet(read_run(places.folder, places.images), "run", runs[0] / JOURNAL)


def _json(places: SetPlaces, rules: ReadRules) -> ReadSet:
    """What a json file is shows in what it holds; COCO files of video frames hold images and videos."""
    path = places.json_file
    expected = "one object with videos, images or sequences, annotations and categories"
    values = read_json(path, expected)
    if is_tasks(values):
        return _label_studio(places, rules, values)
    if is_labelme(values):
        return _labelme(places, rules)
    if isinstance(values, list) and values and isinstance(values[0], dict) and "category_id" in values[0]:
        raise DataError(
            f"{path}: holds results, which are measured with `visrt eval --results`; for annotations give the folder "
            f"of the run with its {JOURNAL}"
        )
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected {expected}")
    if "sequences" in values:
        return _burst(places, rules, values)
    if "images" in values:
        return (_panoptic if is_panoptic(values) else _coco)(places, rules, values)
    if "videos" not in values and "annotations" not in values:
        raise DataError(
            f"{path}: holds {_held(values)}, which is no format that is known; expected {expected}, or a file of "
            f"{', '.join(FORMATS)}"
        )
    return _youtube_vis(places, rules, values)


def _held(values: object) -> str:
    """What json holds, in words."""
    if isinstance(values, dict):
        return "the keys " + ", ".join(map(str, list(values)[:6])) if values else "an empty object"
    return f"a {type(values).__name__}"


def _yolo(places: SetPlaces, rules: ReadRules) -> ReadSet:
    found = places
    if places.annotations is None or places.images is None:
        file = places.annotations or yolo_file(places.folder)
        found = only_set(file or places.folder).places
    described, pictures = places.annotations or found.annotations, places.images or found.images
    if described is None or pictures is None:
        raise DataError(f"{places.folder}: there is no data.yaml; expected one that names the classes and the folders")
    return ReadSet(read_yolo(described, pictures, rules), "yolo", described)


@dataclass(frozen=True)
class Format:
    """A format of annotated sets. write: from a set and an empty folder; returns what the format cannot say."""

    read: Callable[[SetPlaces, ReadRules], ReadSet]
    write: Callable[[AnnotatedSet, Path, Pictures], list[str]] | None = None


FORMATS: dict[str, Format] = {
    "youtube-vis": Format(_youtube_vis, write_youtube_vis),
    "coco": Format(_coco, write_coco),
    "cvat": Format(_cvat, write_cvat),
    "label-studio": Format(_label_studio, write_label_studio),
    "mots": Format(_mots, write_mots),
    "davis": Format(_davis, write_davis),
    "burst": Format(_burst),
    "labelme": Format(_labelme),
    "panoptic": Format(_panoptic),
    "run": Format(_run),
    "yolo": Format(_yolo),
}
KINDS = {"json": _json, **{name: one.read for name, one in FORMATS.items()}}
WRITTEN = tuple(name for name, one in FORMATS.items() if one.write)
"""Formats that sets are written in."""


def write_set(annotated: AnnotatedSet, folder: Path, name: str, pictures: Pictures) -> list[str]:
    """Writes `annotated` in the format `name` into the empty `folder`; returns what it could not say."""
    write = FORMATS[name].write
    if write is None:
        raise UsageError(f"sets are not written in the format {name}; choose one of {', '.join(WRITTEN)}")
    try:
        return write(annotated, folder, pictures)
    except OSError as error:
        raise cannot_write(folder, error) from None
