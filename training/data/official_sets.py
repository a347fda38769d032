"""The public data sets in the layouts in which they are downloaded: where a split's annotations and pictures lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.errors import DataError
from visrt.training.data.annotations import plain_name

__all__ = ["OFFICIAL_SETS", "OfficialSet", "SplitPlaces", "recognised"]


@dataclass(frozen=True)
class SplitPlaces:
    """A split of a set: its annotation file and its pictures, both relative to `folder`."""

    folder: Path
    annotations: str
    images: str


@dataclass(frozen=True)
class OfficialSet:
    """One public set. kind: of a training source. classes: the name of its classes in DATASET_CLASSES. fps: frames a
    second at which it is annotated; None where that differs.

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
        for images in self.images[split]:
            if (folder / images).is_dir():
                return SplitPlaces(folder, annotations, images)
        expected = " or ".join(self.images[split])
        raise DataError(f"{folder}: holds no {split} pictures of {self.title}; expected the folder {expected}")


def _youtube_vis(year: int, splits: tuple[str, ...]) -> OfficialSet:
    return OfficialSet(
        f"YouTube-VIS {year}",
        "youtube_vis",
        f"ytvis{year}",
        (f"ytvis_{year}", f"youtube_vis_{year}", f"YouTube-VIS-{year}", f"ytvis{year}"),
        {split: (f"{split}.json", f"{split}/instances.json", f"annotations/{split}.json") for split in splits},
        {split: (f"{split}/JPEGImages", f"{split}_all_frames/JPEGImages") for split in splits},
        fps=6.0,
    )


SPLITS = ("train", "valid", "test")

OFFICIAL_SETS: dict[str, OfficialSet] = {
    "ytvis19": _youtube_vis(2019, SPLITS),
    "ytvis21": _youtube_vis(2021, SPLITS),
    "ytvis22": _youtube_vis(2022, SPLITS),
    "ovis": OfficialSet(
        "OVIS",
        "youtube_vis",
        "ovis",
        ("ovis", "OVIS"),
        {
            split: (f"annotations_{split}.json", f"annotations/annotations_{split}.json", f"annotations/{split}.json")
            for split in SPLITS
        },
        {split: (split, f"{split}/JPEGImages") for split in SPLITS},
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

    Where years share their categories, the names of the file and its folders decide.
    """
    names = {plain_name(name) for name in categories}
    found = [
        key
        for key, one in OFFICIAL_SETS.items()
        if one.kind == kind and names == {plain_name(name) for name in DATASET_CLASSES[one.classes]}
    ]
    named = [key for key in found if {*OFFICIAL_SETS[key].folders} & {*path.absolute().parts}]
    return next(iter([*named, *found]), None)
