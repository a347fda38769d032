"""Layouts of annotated sets on disk: which sets a folder holds, by split, in which format and where.

Known are visrt's own instances.json, the public sets as they are downloaded (`OFFICIAL_SETS`), the standard COCO layout
(annotations/ next to folders of pictures), Roboflow's exports, YOLO's data.yaml, DAVIS, MOTS, runs of
`visrt track`, CVAT, Label Studio and labelme; each alone, or once in each of the folders train, valid and test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.sinks.output import JOURNAL
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.formats.cvat import XML, cvat_files
from visrt.training.data.formats.davis import MASKS, PICTURES
from visrt.training.data.formats.label_studio import TASKS
from visrt.training.data.formats.labelme import labelme_files
from visrt.training.data.formats.tracked_run import run_folders
from visrt.training.data.formats.yolo import LABELS, label_file, yolo_file, yolo_splits
from visrt.training.data.official_sets import OFFICIAL_SETS, official_folders

__all__ = ["ANNOTATIONS", "IMAGES", "NAMES", "FoundSet", "SetPlaces", "folders_for", "found_sets", "only_set"]

ANNOTATIONS = "instances.json"
ROBOFLOW = "_annotations.coco.json"
"""Annotations of Roboflow's COCO export, next to the pictures."""
IMAGES = "images"
"""Folder of pictures of COCO."""
NAMES = "names.json"
"""Classes of sets whose format knows none; written by visrt, and read where it lies next to the annotations."""

SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
"""Names that the folder of a split may have."""
NO_MASKS = ("captions", "person_keypoints", "image_info")
"""Beginnings of standard COCO files that hold no masks of all objects."""
PANOPTIC = "panoptic_"
"""Beginning of files that hold the same objects once more, as a segmentation of all pixels."""
MOST_FILES = 5
"""Files that an error names."""
UP = 3
"""Folders up from a split's pictures in which the annotations of a public set are looked for."""


@dataclass(frozen=True)
class SetPlaces:
    """The place of a set: its folder and, where they are not at the usual place in it, its annotations (a json or yaml
    file, or DAVIS's folder of masks), its pictures, and its names.json.

    split: which of several sets in the folder. image_folders: where its pictures may be, if `images` does not say.
    """

    folder: Path
    annotations: Path | None = None
    images: Path | None = None
    names: Path | None = None
    split: str | None = None
    image_folders: tuple[Path, ...] = ()

    @property
    def json_file(self) -> Path:
        return self.annotations or self.folder / ANNOTATIONS

    @property
    def names_file(self) -> Path | None:
        names_file = self.folder / NAMES
        return self.names or (names_file if names_file.is_file() else None)


@dataclass(frozen=True)
class FoundSet:
    """A set on disk. kind: "json" (COCO, YouTube-VIS and others, as the file says), "yolo", "davis", "mots", "run",
    "cvat" or "labelme". given_as: the folder or file that means this set and no other."""

    kind: str
    places: SetPlaces
    given_as: Path


Splits = dict[str, FoundSet]
"""Sets by split: "train", "val" and "test", or "all" for one that is not divided."""


def found_sets(place: Path) -> Splits:
    """The sets that `place` holds: a folder, the folder of a split of a public set, or an annotation file.

    Raises UsageError if there is no such place, DataError if it holds no set or sets of several layouts.
    """
    if not place.exists():
        raise UsageError(f"{place}: there is no such folder; give the one that holds the set")
    if place.is_file():
        return _of_file(place)
    found = {name: splits for name, splits in _layouts(place) if splits}
    official = _of_split_folder(place) if found.keys() <= {f"{MASKS}/"} else {}
    if official:  # pngs of masks come with YouTube-VIS too, for another task
        return official
    if not found:
        raise DataError(
            f"{place}: looks like no annotated set: it holds neither {ANNOTATIONS} with videos or images, nor "
            f"{ROBOFLOW}, annotations/*.json, data.yaml (YOLO), {MASKS}/, NAME/gt/gt.txt or instances_txt/, "
            f"{JOURNAL} (a run of `visrt track`), {XML} (CVAT), {TASKS} (Label Studio) or files of labelme, nor a "
            f"folder train that does, and is no public set as it is downloaded; {_hint(place)}"
        )
    if len(found) > 1:
        raise DataError(
            f"{place}: holds sets of several layouts: {', '.join(found)}; give the annotation file of one in place of "
            "the folder, or for `visrt data` the format with --from"
        )
    [splits] = found.values()
    return splits


def only_set(place: Path, split: str | None = None) -> FoundSet:
    """The one set that `place` holds, or its `split`. Raises DataError that lists them if there are several."""
    sets = found_sets(place)
    if split is not None:
        return _of_split(place, sets, split)
    if len(sets) == 1:
        return next(iter(sets.values()))
    listed = ", ".join(f"{found.given_as} ({split})" for split, found in sets.items())
    raise DataError(f"{place}: holds {len(sets)} sets; give one of: {listed}; `visrt eval` and `data` take --split too")


def _of_split(place: Path, sets: Splits, split: str) -> FoundSet:
    if sets.keys() == {"all"}:
        raise DataError(f"{place}: is one set and has no splits; leave the split {split} out")
    key = next((key for key, names in SPLITS.items() if split in (key, *names)), split)
    if key not in sets:
        raise DataError(f"{place}: has no split {split}; it has: {', '.join(sets)}")
    return sets[key]


def _hint(place: Path) -> str:
    """What to give in place of a folder that holds no set itself."""
    known = sorted({name for one in OFFICIAL_SETS.values() for name in one.folders if (place / name).is_dir()})
    inside = [name for name in known if _official(place / name)]
    if inside:
        return f"give one of the public sets in it: {', '.join(str(place / name) for name in inside)}"
    files = [path.name for pattern in ("*.json", "*.xml") for path in sorted(place.glob(pattern))]
    if files:
        more = ", ..." if len(files) > MOST_FILES else ""
        return f"give its annotation file in place of the folder: {', '.join(files[:MOST_FILES])}{more}"
    return "give the folder that does (`visrt data` and `visrt eval` take any arrangement by --annotations, --images)"


def _layouts(folder: Path) -> Iterator[tuple[str, Splits]]:
    """The name of each layout, and what there is of it in `folder`."""
    single = _single(folder)
    yield from ((name, {"all": found}) for name, found in single.items())
    official = {} if single else _official(folder)
    divided = {} if single else _divided(folder)
    standard = _standard_coco(folder, official)
    if official:
        same = {k: one for k, one in divided.items() if k not in official or _file_of(one) == _file_of(official[k])}
        yield "a public set", {**standard, **official, **same}
    else:
        yield "train/ and valid/", divided
        yield "annotations/*.json", standard
    described = yolo_file(folder)
    if described is not None:
        yield described.name, _yolo(described)
    elif not single and (split := _yolo_split(folder)):
        yield f"{LABELS}/", {"all": split}


def _file_of(found: FoundSet) -> Path:
    return found.places.json_file


def _official(folder: Path) -> Splits:
    """The splits of the public set that `folder` is, by the files that are there; their pictures may not be."""
    splits: Splits = {}
    for one in OFFICIAL_SETS.values():
        for split, names in one.annotations.items():
            files = [folder / name for name in names if (folder / name).is_file()]
            key = next(key for key, spelt in SPLITS.items() if split in spelt)
            if files and key not in splits:
                splits[key] = FoundSet(
                    "json", SetPlaces(folder, files[0], image_folders=folders_for(files[0])), files[0]
                )
    return splits


def _of_split_folder(place: Path) -> Splits:
    """`place` as the folder of pictures of a split of a public set, whose annotations lie further up."""
    folder = place.absolute()
    for root in list(folder.parents)[:UP]:
        found = [
            one
            for one in _official(root).values()
            if any(p.is_relative_to(folder) for p in official_folders(one.given_as))
        ]
        if len(found) > 1:
            listed = ", ".join(str(one.given_as) for one in found)
            raise DataError(f"{place}: holds the pictures of several sets; give the annotation file of one: {listed}")
        if found:
            return {"all": found[0]}
    return {}


def _single(folder: Path) -> dict[str, FoundSet]:
    """Undivided sets right in `folder`, by the name of what shows them."""
    found = {}
    if (folder / ANNOTATIONS).is_file():
        file = folder / ANNOTATIONS
        found[ANNOTATIONS] = FoundSet("json", SetPlaces(folder, image_folders=folders_for(file)), folder)
    if (folder / ROBOFLOW).is_file():
        found[ROBOFLOW] = FoundSet("json", SetPlaces(folder, folder / ROBOFLOW, folder), folder)
    if any(path.name == MASKS and path.is_dir() for path in folder.iterdir()):  # some disks ignore case
        found[f"{MASKS}/"] = FoundSet("davis", SetPlaces(folder), folder)
    if next(folder.glob("*/gt/gt.txt"), None) or (folder / "instances_txt").is_dir():
        found["MOTS txt"] = FoundSet("mots", SetPlaces(folder), folder)
    if run_folders(folder):
        found[JOURNAL] = FoundSet("run", SetPlaces(folder), folder)
    if cvat_files(folder):
        found[f"CVAT's {XML}"] = FoundSet("cvat", SetPlaces(folder), folder)
    if (folder / TASKS).is_file():
        file = folder / TASKS
        found[TASKS] = FoundSet("json", SetPlaces(folder, file, image_folders=folders_for(file)), folder)
    if not found and not (folder / "annotations").is_dir() and labelme_files(folder):
        found["labelme's json"] = FoundSet("labelme", SetPlaces(folder), folder)
    return found


def _divided(folder: Path) -> Splits:
    """A set in each of the folders train, valid and test."""
    splits = {}
    for split, names in SPLITS.items():
        inner = [folder / name for name in names if (folder / name).is_dir()]
        sets = [found for path in inner for found in _single(path).values()]
        if len(sets) > 1:
            listed = ", ".join(str(found.places.json_file) for found in sets)
            raise DataError(f"{folder}: {len(sets)} sets could be the split {split}: {listed}; remove all but one")
        if sets:
            splits[split] = sets[0]
    return splits


def _standard_coco(folder: Path, known: Splits) -> Splits:
    """annotations/instances_train2017.json with train2017/ or images/train2017/, and so on; but for `known` ones."""
    listed = {found.places.annotations for found in known.values()}
    files = [file for file in sorted((folder / "annotations").glob("*.json")) if file not in listed]
    files = [file for file in files if not file.name.startswith(NO_MASKS)]
    files = [file for file in files if not file.name.startswith(PANOPTIC)] or files
    splits: Splits = {}
    for file in files:
        split = _split_named(file.stem) if len(files) > 1 or known else "all"
        if split is None or split in splits:
            if known:
                continue
            names = ", ".join(file.name for file in files)
            raise DataError(
                f"{folder / 'annotations'}: {names}: which is for training does not show in the names; give one of "
                "these files in place of the folder"
            )
        splits[split] = FoundSet("json", SetPlaces(folder, file, image_folders=folders_for(file)), file)
    return splits


def _split_named(stem: str) -> str | None:
    """The split that the words of a file's name say."""
    words = re.split(r"[^a-z]+", stem.casefold())
    return next((split for split, names in SPLITS.items() if any(name in words for name in names)), None)


def folders_for(file: Path) -> tuple[Path, ...]:
    """Where the pictures of the json `file` may be, the likeliest first."""
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    usual = [folder / name for folder in dict.fromkeys((file.parent, root)) for name in (PICTURES, IMAGES)]
    if file.name == ANNOTATIONS:
        return tuple(dict.fromkeys([*usual, *official_folders(file), *sorted(file.parent.glob(f"*/{PICTURES}"))]))
    name = file.stem.removeprefix("instances_").removeprefix(PANOPTIC)
    beside = [file.parent] if file.parent.is_dir() and images_in(file.parent) else []
    named = [root / name / PICTURES, root / name, root / IMAGES / name]
    return tuple(dict.fromkeys([*official_folders(file), *beside, *named, *usual]))


def _yolo(file: Path) -> Splits:
    """The splits of data.yaml; one that has the pictures of another counts once."""
    splits: dict[str, FoundSet] = {}
    for split, pictures in yolo_splits(file).items():
        if not any(found.places.images == pictures for found in splits.values()):
            given_as = pictures.parent if pictures.name == IMAGES else pictures
            splits[split] = FoundSet("yolo", SetPlaces(file.parent, file, pictures), given_as)
    return splits


def _yolo_split(folder: Path) -> FoundSet | None:
    """`folder` as a split of a YOLO set: data.yaml lies one to three folders up."""
    pictures = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    if not label_file(pictures / "any").parent.is_dir():
        return None
    for root in list(folder.resolve().parents)[:3]:
        file = yolo_file(root)
        if file is not None and any(p.resolve() == pictures.resolve() for p in yolo_splits(file).values()):
            return FoundSet("yolo", SetPlaces(file.parent, file, pictures), folder)
    return None


def _of_file(file: Path) -> Splits:
    if file.suffix in (".yaml", ".yml"):
        return _yolo(file)
    if file.suffix == ".json":
        return {"all": FoundSet("json", SetPlaces(file.parent, file, image_folders=folders_for(file)), file)}
    if file.suffix == ".xml":
        return {"all": FoundSet("cvat", SetPlaces(file.parent, file), file)}
    if file.suffix == ".zip":
        raise UsageError(f"{file}: unpack it, and give the folder or the annotation file in it")
    if file.name == JOURNAL:
        return {"all": FoundSet("run", SetPlaces(file.parent), file)}
    raise UsageError(f"{file}: expected a folder, or an annotation file that ends in .json, .yaml or .xml")
