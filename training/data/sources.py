"""The sources of training pictures; base pictures and cut-outs are drawn from them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from visrt.runtime.errors import DataError, SettingsError
from visrt.training.data.annotations import NO_TARGET, AnnotatedSet, load_class_map, with_classes
from visrt.training.data.cutouts import DISTRACTOR, Cutout, CutoutFile, cut, cutout_files, cuttable, read_cutout
from visrt.training.data.frames import AnnotatedFrame, Frames, frames_of, subsampled
from visrt.training.data.pictures import ByteCache, Picture, read_picture, read_rgb
from visrt.training.data.segmentations import area_px
from visrt.training.data.set_formats import ANNOTATIONS, IMAGES, PICTURES, SetPlaces, read_set

__all__ = ["Pool", "PoolSettings", "SourceSettings", "is_in", "load_pool"]

Part = Literal["train", "held_out", "all"]

FORMATS = {"coco": "coco", "youtube_vis": "youtube-vis", "davis": "davis", "mots": "mots", "yolo": "yolo"}
"""Kinds of sources that are annotated sets, and the name of their format."""
PICTURE_FOLDERS = {"coco": IMAGES, "youtube_vis": PICTURES}


@dataclass(frozen=True)
class SourceSettings:
    """One folder of training material.

    kind: "coco" and "youtube_vis" are folders with annotations (default instances.json) and pictures (default images,
    JPEGImages); "davis" and "mots" are folders as `visrt data check` takes them; "yolo" is the folder of a data.yaml,
    which `annotations` names, and `images` the split's pictures; "cutouts" is a folder of PNGs with alpha and a map of
    name patterns to classes; "backgrounds" holds photos that show no object of any class.
    class_map: a map, or the path of its json, of source class -> class, or null to leave it out; classes it does not
    name are left out too and counted. Without a map the classes are the file's. For cut-outs: pattern -> class.
    needs_target: photos and frames without an object of any class are left out, as the released loaders do.
    base_weight: how often its pictures are the scene, relative to other sources. cutout_weight: how often its objects
    are pasted; relative, and times the root of how many it has of the class, so that few are not overused.
    label_fraction: of the frames of each video that keep their labels (MinVIS: 0.01, 0.05, 0.1).
    scene: what is filmed of a video: a stretch of the "video" as it is, or one labelled "frame" like a photo, which
    makes pseudo-videos of a fraction of the labels (CTVIS, table 7).
    held_out: fraction of the files, chosen by a hash of their name, kept for validation.
    """

    kind: Literal["coco", "youtube_vis", "davis", "mots", "yolo", "cutouts", "backgrounds"]
    folder: str
    annotations: str = "instances.json"
    images: str | None = None
    class_map: str | Mapping[str, str | None] | None = None
    needs_target: bool = False
    base_weight: float = 1.0
    cutout_weight: float = 1.0
    label_fraction: float = 1.0
    scene: Literal["video", "frame"] = "video"
    held_out: float = 0.0


@dataclass(frozen=True)
class Base:
    """A scene to film: the frames of a video, or one photo."""

    frames: Frames


@dataclass(frozen=True)
class FrameCut:
    """An object to be cut from an annotated frame."""

    frame: AnnotatedFrame
    track: int


CutoutPlace = FrameCut | CutoutFile
MOST_DRAWS = 30


@dataclass(frozen=True)
class Weighted:
    """Choices of one source with its weight."""

    weight: float
    choices: tuple[int, ...]


@dataclass(frozen=True)
class PoolSettings:
    """classes: their order; empty = as the sources name them. part: of each source, see SourceSettings.held_out.

    picture_side_px: long side of a picture in memory, at most. cache_mb: memory for decoded pictures, for each worker.
    max_crowd: photos with a larger part in crowd regions are no scenes. least_cutout_px: smaller objects are not cut
    out.
    """

    classes: tuple[str, ...] = ()
    part: Part = "train"
    picture_side_px: int = 640
    cache_mb: int = 1500
    max_crowd: float = 0.02
    least_cutout_px: int = 1600

    def kept_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) at which a picture of size `stored` is kept in memory."""
        scale = min(1.0, self.picture_side_px / max(stored))
        return max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))


class Pool:
    """All material of some sources. Labels are indices into `classes`; `remarks` tell what was left out."""

    def __init__(self, classes: tuple[str, ...], settings: PoolSettings) -> None:
        self.classes = classes
        self.remarks: list[str] = []
        self.bases: list[Base] = []
        self.cutouts: list[tuple[CutoutPlace, int]] = []
        self._base_groups: list[Weighted] = []
        self._cutout_groups: dict[int, list[Weighted]] = defaultdict(list)
        self._of_frame: dict[AnnotatedFrame, list[int]] = defaultdict(list)
        self._kept_size = settings.kept_size
        limit = settings.cache_mb * 2**20
        self._pictures: ByteCache[AnnotatedFrame, Picture] = ByteCache(self._read, attrgetter("nbytes"), 3 * limit // 4)
        self._cuts: ByteCache[int, Cutout | None] = ByteCache(self._cut, _weight, limit // 4)

    def add_bases(self, bases: Sequence[Base], weight: float) -> None:
        if bases and weight > 0:
            start = len(self.bases)
            self.bases.extend(bases)
            self._base_groups.append(Weighted(weight, tuple(range(start, len(self.bases)))))

    def add_cutouts(self, cutouts: Sequence[tuple[CutoutPlace, int]], weight: float) -> None:
        by_label: dict[int, list[int]] = defaultdict(list)
        for place, label in cutouts:
            by_label[label].append(len(self.cutouts))
            if isinstance(place, FrameCut) and label != NO_TARGET:
                self._of_frame[place.frame].append(len(self.cutouts))
            self.cutouts.append((place, label))
        for label, choices in by_label.items():
            if weight > 0:
                self._cutout_groups[label].append(Weighted(weight * len(choices) ** 0.5, tuple(choices)))

    @property
    def pasted_labels(self) -> tuple[int, ...]:
        """Labels of which there are cut-outs; NO_TARGET for distractors."""
        return tuple(sorted(self._cutout_groups))

    def draw_base(self, rng: np.random.Generator) -> Base:
        return self.bases[_drawn(self._base_groups, rng)]

    def draw_cutout(self, label: int, rng: np.random.Generator) -> Cutout | None:
        """A cut-out of `label`, one of `pasted_labels`; None if many objects drawn in a row are not recognisable."""
        for _ in range(MOST_DRAWS):
            cutout = self._cuts[_drawn(self._cutout_groups[label], rng)]
            if cutout is not None:
                return cutout
        return None

    def draw_twin(self, frame: AnnotatedFrame, rng: np.random.Generator) -> Cutout | None:
        """A cut-out of one of the objects of `frame` itself; None if none of them is recognisable."""
        choices = self._of_frame.get(frame, ())
        return self._cuts[choices[int(rng.integers(len(choices)))]] if choices else None

    def picture(self, frame: AnnotatedFrame) -> Picture:
        return self._pictures[frame]

    def _read(self, frame: AnnotatedFrame) -> Picture:
        return read_picture(frame, self._kept_size((frame.height_px, frame.width_px)))

    def _cut(self, index: int) -> Cutout | None:
        place, label = self.cutouts[index]
        if isinstance(place, CutoutFile):
            return read_cutout(place, label)
        return cut(self._pictures[place.frame], place.track, label)


def _weight(cutout: Cutout | None) -> int:
    return cutout.nbytes if cutout else 0


def _drawn(groups: Sequence[Weighted], rng: np.random.Generator) -> int:
    weights = np.array([group.weight for group in groups])
    group = groups[int(rng.choice(len(groups), p=weights / weights.sum()))]
    return group.choices[int(rng.integers(len(group.choices)))]


def load_pool(sources: Sequence[SourceSettings], settings: PoolSettings) -> Pool:
    """The pictures and cut-outs of `sources` that `settings` admit. Raises SettingsError if there is no scene."""
    sets = {i: _annotated(s) for i, s in enumerate(sources) if s.kind in FORMATS}
    files = {i: _cutout_files(s) for i, s in enumerate(sources) if s.kind == "cutouts"}
    pool = Pool(settings.classes or _classes(sets.values(), files.values()), settings)
    for i, source in enumerate(sources):
        if i in sets:
            _add_annotated(pool, source, sets[i], settings)
        elif i in files:
            _add_cutouts(pool, source, files[i], settings.part)
        else:
            _add_backgrounds(pool, source, settings.part)
    if not pool.bases:
        raise SettingsError(
            f"the {settings.part} part of {len(sources)} sources has no scene; give one a base_weight above 0 and, for "
            "validation, held_out above 0"
        )
    return pool


def _annotated(source: SourceSettings) -> AnnotatedSet:
    folder = Path(source.folder)
    class_map = load_class_map(Path(source.class_map)) if isinstance(source.class_map, str) else source.class_map
    annotations = None if source.annotations == ANNOTATIONS else folder / source.annotations
    read = read_set(
        SetPlaces(folder, annotations, folder / source.images if source.images else None), FORMATS[source.kind]
    )
    return with_classes(read.annotated, class_map, read.path)


def _cutout_files(source: SourceSettings) -> tuple[CutoutFile, ...]:
    if not isinstance(source.class_map, str):
        raise SettingsError(f"source {source.folder}: cut-outs need class_map, a json of name pattern -> class")
    return cutout_files(Path(source.folder), Path(source.class_map))


def _classes(sets: Iterable[AnnotatedSet], files: Iterable[Sequence[CutoutFile]]) -> tuple[str, ...]:
    named = [*(name for one in sets for name in one.classes), *(f.class_name for group in files for f in group)]
    return tuple(dict.fromkeys(name for name in named if name != DISTRACTOR))


def _add_annotated(pool: Pool, source: SourceSettings, annotated: AnnotatedSet, settings: PoolSettings) -> None:
    pool.remarks.extend(annotated.remarks)
    labels = {i: _label(pool, name, source) for i, name in enumerate(annotated.classes)}
    root = Path(source.folder) / (source.images or PICTURE_FOLDERS.get(source.kind, ""))
    videos = [
        subsampled(frames_of(video, labels), source.label_fraction)
        for video in annotated.videos
        if is_in(settings.part, video.pictures[0].relative_to(root).as_posix(), source.held_out)
    ]
    scenes = [scene for frames in videos for scene in SCENES[source.scene](frames)]
    bases = [Base(frames) for frames in scenes if max(map(_crowding, frames)) <= settings.max_crowd]
    pool.add_bases(bases, source.base_weight)
    pool.add_cutouts(
        [
            (FrameCut(frame, frame.objects[i].track), frame.objects[i].label)
            for frames in videos
            for frame in frames
            for i in cuttable(frame, settings.least_cutout_px)
        ],
        source.cutout_weight,
    )


SCENES: dict[str, Callable[[Frames], list[Frames]]] = {
    "video": lambda frames: [frames],
    "frame": lambda frames: [(frame,) for frame in frames],
}


def _crowding(frame: AnnotatedFrame) -> float:
    return sum(area_px(rle) for rle in frame.crowds) / (frame.height_px * frame.width_px)


def _label(pool: Pool, name: str, source: SourceSettings) -> int:
    if name not in pool.classes:
        raise SettingsError(f"source {source.folder}: class {name!r} is none of {', '.join(pool.classes)}")
    return pool.classes.index(name)


def _add_cutouts(pool: Pool, source: SourceSettings, files: Sequence[CutoutFile], part: Part) -> None:
    chosen = [f for f in files if is_in(part, f.path.name, source.held_out)]
    pool.add_cutouts(
        [(f, NO_TARGET if f.class_name == DISTRACTOR else _label(pool, f.class_name, source)) for f in chosen],
        source.cutout_weight,
    )


def _add_backgrounds(pool: Pool, source: SourceSettings, part: Part) -> None:
    paths = sorted(p for p in Path(source.folder).glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise DataError(f"{source.folder}: holds no .jpg or .png; expected a folder of background photos")
    chosen = [p for p in paths if is_in(part, p.name, source.held_out)]
    pool.add_bases([Base((_bare(p),)) for p in chosen], source.base_weight)


def _bare(path: Path) -> AnnotatedFrame:
    h, w = read_rgb(path).shape[:2]
    return AnnotatedFrame(path, h, w, ())


def is_in(part: Part, name: str, held_out: float) -> bool:
    if part == "all":
        return True
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return (place < held_out) == (part == "held_out")
