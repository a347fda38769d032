"""The public data sets in the layouts in which they are downloaded: where a split's annotations and pictures lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.errors import DataError
from visrt.training.data.annotations import plain_name

__all__ = ["OFFICIAL_SETS", "OfficialSet", "SplitPlaces", "official_folders", "recognised"]


@dataclass(frozen=True)
class SplitPlaces:
    """A split of a set: its annotation file and its pictures, both relative to `folder`."""

    folder: Path
    annotations: str
    images: str


@dataclass(frozen=True)
class OfficialSet:
    """One public set. kind: of a training source. classes: the name of its classes in DATASET_CLASSES, "" where they
    are as the file says. fps: frames a second at which it is annotated; None where that differs.

    folders: names that its folder below ROOT goes by; ROOT itself may be the set as well. annotations, images: by
    split, the places that downloads and the official repositories use, the usual one first.
    """

    title: str
    kind: str
    classes: str
    folders: tuple[str, ...]
    annotations: dict[str, tuple[str, ...]]
    images: dict[str, tuple[str, ...]]
    fps: float | None = None

    def has(self, categories: Set[str], path: Path) -> bool:
        """Whether the file at `path` with these plain `categories` is of this set."""
        if self.classes:
            return categories == {plain_name(name) for name in DATASET_CLASSES[self.classes]}
        return path.name in self.file_names

    @property
    def file_names(self) -> frozenset[str]:
        """The names of its annotation files, without folders."""
        return frozenset(Path(name).name for names in self.annotations.values() for name in names)

    def usual(self, root: Path, split: str) -> SplitPlaces:
        """The usual places of `split`, there or not."""
        return SplitPlaces(root / self.folders[0], self.annotations[split][0], self.images[split][0])

    def find(self, root: Path, split: str) -> SplitPlaces:
        """The places of `split` below `root`. Raises DataError that names what is missing and where it may lie."""
        folders = [folder for folder in (*(root / name for name in self.folders), root) if folder.is_dir()]
        files = [(folder, name) for folder in folders for name in self.annotations[split] if (folder / name).is_file()]
        if not files:
            expected = " or ".join(f"{self.folders[0]}/{name}" for name in self.annotations[split])
            raise DataError(f"{root}: holds no {split} annotations of {self.title}; expected {expected}")
        folder, annotations = files[0]
        there = [images for images in self.images[split] if (folder / images).is_dir()]
        if not there:
            expected = " or ".join(self.images[split])
            raise DataError(f"{folder}: holds no {split} pictures of {self.title}; expected the folder {expected}")
        exact = [images for images in there if images.endswith(PICTURES)]  # may lie in another one
        return SplitPlaces(folder, annotations, (*exact, *there)[0])


PICTURES = "JPEGImages"
SPLITS = ("train", "valid", "test")
VAL = {"train": "train", "valid": "val", "test": "test"}
"""The splits as some sets name them."""


def _youtube_vis(year: int) -> OfficialSet:
    """Of 2022, the short videos of 2021 and the long ones are in one file."""
    return OfficialSet(
        f"YouTube-VIS {year}",
        "youtube_vis",
        f"ytvis{year}",
        (f"ytvis_{year}", f"youtube_vis_{year}", f"YouTube-VIS-{year}", f"ytvis{year}"),
        {
            split: (
                f"{split}.json",
                f"{split}/instances.json",
                f"annotations/{split}.json",
                f"annotations/instances_{split}.json",
            )
            for split in SPLITS
        },
        {
            split: (f"{split}/{PICTURES}", f"{split}_all_frames/{PICTURES}", f"{VAL[split]}/{PICTURES}")
            for split in SPLITS
        },
        fps=6.0,
    )


OFFICIAL_SETS: dict[str, OfficialSet] = {
    "ytvis19": _youtube_vis(2019),
    "ytvis21": _youtube_vis(2021),
    "ytvis22": _youtube_vis(2022),
    "ovis": OfficialSet(
        "OVIS",
        "youtube_vis",
        "ovis",
        ("ovis", "OVIS"),
        {
            split: (f"annotations_{split}.json", f"annotations/annotations_{split}.json", f"annotations/{split}.json")
            for split in SPLITS
        },
        {split: (split, f"{split}/{PICTURES}", f"Images/{split}") for split in SPLITS},
        fps=6.0,
    ),
    "coco": OfficialSet(
        "COCO 2017",
        "coco",
        "coco",
        ("coco", "COCO"),
        {"train": ("annotations/instances_train2017.json",), "valid": ("annotations/instances_val2017.json",)},
        {"train": ("train2017", "images/train2017"), "valid": ("val2017", "images/val2017")},
    ),
    "uvo": OfficialSet(
        "UVO",
        "youtube_vis",
        "",
        ("uvo", "UVO", "UVOv1.0"),
        {
            split: tuple(
                f"{folder}VideoDenseSet/UVO_video_{VAL[split]}_dense{labels}.json"
                for labels in ("", "_with_label")
                for folder in ("", "annotations/")
            )
            for split in SPLITS
        },
        {split: ("uvo_videos_dense_frames", "uvo_videos_dense_frames_jpg", "uvo_frames") for split in SPLITS},
        fps=30.0,
    ),
    "burst": OfficialSet(
        "BURST",
        "burst",
        "",
        ("burst", "BURST"),
        {
            split: tuple(
                f"{folder}{VAL[split]}/{name}.json"
                for folder in ("annotations/", "")
                for name in ("all_classes", "train")
                if split == "train" or name != "train"
            )
            for split in SPLITS
        },
        {split: (f"frames/{VAL[split]}", f"images/{VAL[split]}") for split in SPLITS},
    ),
    "imagenet_vid": OfficialSet(
        "ImageNet VID",
        "coco",
        "imagenet_vid",
        ("ILSVRC", "imagenet_vid", "ILSVRC2015"),
        {"train": ("annotations/imagenet_vid_train.json",), "valid": ("annotations/imagenet_vid_val.json",)},
        {"train": ("Data/VID", "Data/VID/train"), "valid": ("Data/VID", "Data/VID/val")},
    ),
    "imagenet_det": OfficialSet(
        "ImageNet DET",
        "coco",
        "imagenet_vid",
        ("ILSVRC", "imagenet_det", "ILSVRC2015"),
        {"train": ("annotations/imagenet_det_30plus1cls.json",)},
        {"train": ("Data/DET", "Data/DET/train")},
    ),
}
"""ImageNet's are read from COCO-style json, as tools for video detection convert them."""


def recognised(path: Path, kind: str, categories: Sequence[str]) -> str | None:
    """The key of the set that the annotations at `path` are of, by its categories; None for any other.

    Where years share their categories, or the set has none of its own, the names of the file and its folders decide.
    """
    names = {plain_name(name) for name in categories}
    found = [key for key, one in OFFICIAL_SETS.items() if one.kind == kind and one.has(names, path)]

    def fit(key: str) -> tuple[bool, bool]:
        one = OFFICIAL_SETS[key]
        return not {*one.folders} & {*path.absolute().parts}, path.name not in one.file_names

    return min(found, key=fit, default=None)


def official_folders(annotations: Path) -> Iterator[Path]:
    """Where the pictures of the file `annotations` may be, by each public set that has a file of this name."""
    for one in OFFICIAL_SETS.values():
        for split, names in one.annotations.items():
            for root in (_root(annotations, name) for name in names):
                if root is not None:
                    yield from (root / images for images in one.images[split])


def _root(file: Path, name: str) -> Path | None:
    """The folder in which `file` is `name`."""
    parts = Path(name).parts
    if file.absolute().parts[-len(parts) :] != parts:
        return None
    parents = file.parents if len(file.parents) >= len(parts) else file.absolute().parents
    return parents[len(parts) - 1]
