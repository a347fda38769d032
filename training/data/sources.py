"""The sources of training pictures; base pictures and cut-outs are drawn from them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import DataError, SettingsError
from visrt.training.data.annotations import NO_TARGET, class_labels, left_out_remarks, load_class_map
from visrt.training.data.cutouts import (
    DISTRACTOR,
    Cutout,
    CutoutFile,
    cut,
    cutout_files,
    cuttable,
    read_cutout,
    worth_cutting,
)
from visrt.training.data.formats.burst import FRAMES
from visrt.training.data.frames import AnnotatedFrame, FrameGroups, Frames, LabelledSet, OnAccess, frames_of_videos
from visrt.training.data.pictures import ByteCache, Picture, read_picture, read_rgb
from visrt.training.data.set_cache import read_columns
from visrt.training.data.set_columns import SetColumns
from visrt.training.data.set_formats import ANNOTATIONS, IMAGES, PICTURES, SetPlaces

__all__ = [
    "Base",
    "Material",
    "NoSceneError",
    "Pool",
    "PoolSettings",
    "SourceSettings",
    "annotated_pictures",
    "is_in",
    "load_material",
    "load_pool",
]

Part = Literal["train", "held_out", "all"]

FORMATS = {
    "coco": "coco",
    "youtube_vis": "youtube-vis",
    "burst": "burst",
    "davis": "davis",
    "mots": "mots",
    "yolo": "yolo",
    "cvat": "cvat",
    "label_studio": "label-studio",
    "labelme": "labelme",
    "panoptic": "panoptic",
}
"""Kinds of sources that are annotated sets, and the name of their format."""
PICTURE_FOLDERS = {"coco": IMAGES, "youtube_vis": PICTURES, "burst": FRAMES, "panoptic": IMAGES}


@dataclass(frozen=True)
class SourceSettings:
    """One folder of training material.

    kind: "coco", "youtube_vis" and "burst" are folders with annotations (default instances.json) and pictures (default
    images, JPEGImages, frames); "davis", "mots", "cvat", "label_studio", "labelme" and "panoptic" are folders as `visrt
    data check` takes them; "yolo" is the folder of a data.yaml, which `annotations` names, and `images` the split's
    pictures; "cutouts" is a folder of PNGs with alpha and a map of name patterns to classes; "backgrounds" holds photos
    that show no object of any class.
    class_map: a map, or the path of its json, of source class -> class, or null to leave it out; classes it does not
    name are left out too and counted. Without a map the classes are the file's. For cut-outs: pattern -> class.
    needs_target: photos and frames without an object of any class are left out, as the released loaders do.
    base_weight: how often its pictures are the scene, relative to other sources. cutout_weight: how often its objects
    are pasted; relative, and times the root of how many it has of the class, so that few are not overused.
    label_fraction: of the frames of each video that keep their labels (MinVIS: 0.01, 0.05, 0.1).
    scene: what is filmed of a video: a stretch of the "video" as it is, or one labelled "frame" like a photo, which
    makes pseudo-videos of a fraction of the labels (CTVIS, table 7).
    held_out: fraction of the files, chosen by a hash of their name, kept for validation.
    skip_faulty: faulty annotations are left out and counted; otherwise they are refused.
    """

    kind: Literal[
        "coco",
        "youtube_vis",
        "burst",
        "davis",
        "mots",
        "yolo",
        "cvat",
        "label_studio",
        "labelme",
        "panoptic",
        "cutouts",
        "backgrounds",
    ]
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
    skip_faulty: bool = False


class NoSceneError(SettingsError):
    """The part of the sources that is asked for has nothing to film."""


@dataclass(frozen=True)
class Base:
    """A scene to film: frames of a video, or one photo."""

    frames: Frames


@dataclass(frozen=True)
class FrameCut:
    """An object to be cut from an annotated frame."""

    frame: AnnotatedFrame
    track: int


CutoutPlace = FrameCut | CutoutFile
MOST_DRAWS = 30


KEY_BYTES = 4096
"""What a cached cut-out holds besides its pixels: its frame with the annotated masks."""

T = TypeVar("T")


@dataclass(frozen=True)
class Weighted(Generic[T]):
    """Choices of one source with its weight."""

    weight: float
    choices: Sequence[T]


@dataclass(frozen=True)
class PoolSettings:
    """classes: their order; empty = as the sources name them. part: of each source, see SourceSettings.held_out.

    frames: in a clip. picture_side_px: long side of a picture in memory, at most. cache_mb: memory of each worker for
    decoded pictures.
    max_crowd: photos with a larger part in crowd regions are no scenes. least_cutout_px: smaller objects are not cut
    out.
    """

    classes: tuple[str, ...] = ()
    part: Part = "train"
    frames: int = 2
    picture_side_px: int = 640
    cache_mb: int = 1500
    max_crowd: float = 0.02
    least_cutout_px: int = 1600

    def kept_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) at which a picture of size `stored` is kept in memory."""
        scale = min(1.0, self.picture_side_px / max(stored))
        return max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))


class Pool:
    """All material of some sources. Labels are indices into `classes`; `remarks` state what was left out.

    material: what was read for it; another part of the sources can be drawn from it without reading again.
    """

    def __init__(self, classes: tuple[str, ...], settings: PoolSettings, material: Material) -> None:
        self.classes = classes
        self.material = material
        self.remarks: list[str] = []
        self._bases: list[Weighted[Base]] = []
        self._cutouts: dict[int, list[Weighted[CutoutPlace]]] = defaultdict(list)
        self._settings = settings
        limit = settings.cache_mb * 2**20
        self._pictures: ByteCache[AnnotatedFrame, Picture] = ByteCache(self._read, attrgetter("nbytes"), 3 * limit // 4)
        self._cuts: ByteCache[tuple[CutoutPlace, int], Cutout | None] = ByteCache(self._cut, _weight, limit // 4)

    def add_bases(self, bases: Sequence[Base], weight: float) -> None:
        if bases and weight > 0:
            self._bases.append(Weighted(weight, bases))

    def add_cutouts(self, places: Sequence[CutoutPlace], label: int, weight: float) -> None:
        if places and weight > 0:
            self._cutouts[label].append(Weighted(weight * len(places) ** 0.5, places))

    @property
    def bases(self) -> Sequence[Base]:
        """All scenes, one source after the other."""
        groups = [group.choices for group in self._bases]
        ends = np.cumsum([0, *map(len, groups)])

        def base(i: int) -> Base:
            k = int(np.searchsorted(ends, i, side="right")) - 1
            return groups[k][i - int(ends[k])]

        return OnAccess(int(ends[-1]), base)

    @property
    def cutout_counts(self) -> dict[int, int]:
        """By label, NO_TARGET for distractors, the number of cut-outs."""
        return {label: sum(len(group.choices) for group in groups) for label, groups in sorted(self._cutouts.items())}

    @property
    def pasted_labels(self) -> tuple[int, ...]:
        """Labels of which there are cut-outs; NO_TARGET for distractors."""
        return tuple(self.cutout_counts)

    def draw_base(self, rng: np.random.Generator) -> Base:
        return _drawn(self._bases, rng)

    def draw_cutout(self, label: int, rng: np.random.Generator) -> Cutout | None:
        """A cut-out of `label`, one of `pasted_labels`; None if many objects drawn in a row are not recognisable."""
        for _ in range(MOST_DRAWS):
            cutout = self._cuts[_drawn(self._cutouts[label], rng), label]
            if cutout is not None:
                return cutout
        return None

    def draw_twin(self, frame: AnnotatedFrame, rng: np.random.Generator) -> Cutout | None:
        """A cut-out of one of the objects of `frame` itself; None if none of them is recognisable."""
        worth = [frame.objects[i] for i in cuttable(frame, self._settings.least_cutout_px)]
        targets = [one for one in worth if one.label != NO_TARGET]
        if not targets:
            return None
        chosen = targets[int(rng.integers(len(targets)))]
        return self._cuts[FrameCut(frame, chosen.track), chosen.label]

    def picture(self, frame: AnnotatedFrame) -> Picture:
        return self._pictures[frame]

    def _read(self, frame: AnnotatedFrame) -> Picture:
        return read_picture(frame, self._settings.kept_size((frame.height_px, frame.width_px)))

    def _cut(self, labelled: tuple[CutoutPlace, int]) -> Cutout | None:
        place, label = labelled
        if isinstance(place, CutoutFile):
            return read_cutout(place, label)
        return cut(self._pictures[place.frame], place.track, label)


def _weight(cutout: Cutout | None) -> int:
    return KEY_BYTES + (cutout.nbytes if cutout else 0)


def _drawn(groups: Sequence[Weighted[T]], rng: np.random.Generator) -> T:
    weights = np.array([group.weight for group in groups])
    group = groups[int(rng.choice(len(groups), p=weights / weights.sum()))]
    return group.choices[int(rng.integers(len(group.choices)))]


@dataclass(frozen=True)
class MappedSet:
    """A set, the file or folder of its annotations, and what its class map makes of it: the classes, and for each
    category of the file its index in them."""

    path: Path
    columns: SetColumns
    classes: tuple[str, ...]
    labels: tuple[int | None, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Material:
    """What the folders of some sources hold, by the place of the source: annotated sets, and files of cut-outs."""

    sets: Mapping[int, MappedSet]
    files: Mapping[int, tuple[CutoutFile, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        named = [*(name for one in self.sets.values() for name in one.classes)]
        named += [file.class_name for files in self.files.values() for file in files]
        return tuple(dict.fromkeys(name for name in named if name != DISTRACTOR))


def load_material(sources: Sequence[SourceSettings]) -> Material:
    """Reads annotations and lists cut-outs. Raises DataError."""
    return Material(
        {i: _annotated(source) for i, source in enumerate(sources) if source.kind in FORMATS},
        {i: _cutout_files(source) for i, source in enumerate(sources) if source.kind == "cutouts"},
    )


def load_pool(sources: Sequence[SourceSettings], settings: PoolSettings, material: Material | None = None) -> Pool:
    """The pictures and cut-outs of `sources` that `settings` admit. Raises NoSceneError if there is no scene.

    material: of the same sources, where it has been read before.
    """
    material = load_material(sources) if material is None else material
    pool = Pool(settings.classes or material.classes, settings, material)
    for i, source in enumerate(sources):
        if i in material.sets:
            _add_annotated(pool, source, material.sets[i], settings)
        elif i in material.files:
            _add_cutouts(pool, source, material.files[i], settings.part)
        else:
            _add_backgrounds(pool, source, settings.part)
    pool.remarks = list(dict.fromkeys(pool.remarks))
    if not pool.bases:
        raise NoSceneError(
            f"the {settings.part} part of {len(sources)} sources has no scene; give one a base_weight above 0 and, for "
            "validation, held_out above 0"
        )
    return pool


def annotated_pictures(sources: Sequence[SourceSettings], material: Material) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Each picture of the annotated sets and its size (height, width) by its annotations."""
    for i, mapped in material.sets.items():
        columns, root = mapped.columns, _root(sources[i])
        sizes = np.repeat(columns.video_size, np.diff(columns.video_frame), axis=0).tolist()
        for name, (height, width) in zip(columns.all_names(), sizes, strict=True):
            yield root / name, (height, width)


def _annotated(source: SourceSettings) -> MappedSet:
    folder = Path(source.folder)
    class_map = load_class_map(Path(source.class_map)) if isinstance(source.class_map, str) else source.class_map
    annotations = None if source.annotations == ANNOTATIONS else folder / source.annotations
    places = SetPlaces(folder, annotations, folder / source.images if source.images else None)
    read = read_columns(places, FORMATS[source.kind], _root(source), source.skip_faulty)
    columns = read.columns
    classes, labels = class_labels(columns.categories, class_map, read.path)
    # In the order of their first track, as the reader of whole sets counts.
    found, first, counts = np.unique(columns.track_category, return_index=True, return_counts=True)
    left_out = {columns.categories[found[k]]: int(counts[k]) for k in np.argsort(first) if labels[found[k]] is None}
    remarks = (*read.remarks, *columns.remarks, *left_out_remarks(Counter(left_out), read.path))
    return MappedSet(read.path, columns, classes, tuple(labels), remarks)


def _root(source: SourceSettings) -> Path:
    """The folder that the names of its pictures begin in."""
    return Path(source.folder) / (source.images or PICTURE_FOLDERS.get(source.kind, ""))


def _cutout_files(source: SourceSettings) -> tuple[CutoutFile, ...]:
    if not isinstance(source.class_map, str):
        raise SettingsError(f"source {source.folder}: cut-outs need class_map, a json of name pattern -> class")
    return cutout_files(Path(source.folder), Path(source.class_map))


def _add_annotated(pool: Pool, source: SourceSettings, mapped: MappedSet, settings: PoolSettings) -> None:
    pool.remarks.extend(mapped.remarks)
    own = [NO_TARGET if label is None else _label(pool, mapped.classes[label], source) for label in mapped.labels]
    labelled = LabelledSet(mapped.columns, np.array(own, np.int64), _root(source))
    videos = _videos_in(settings.part, mapped.columns, source.held_out)
    labelled_frames = frames_of_videos(mapped.columns, videos, source.label_fraction)
    scenes = SCENES[source.scene](labelled_frames)
    if source.needs_target:
        scenes = _with_target(pool, scenes, labelled, settings.frames == 1)
    crowding = scenes.most(labelled.columns.crowding()[scenes.frames])
    scenes = scenes.only(crowding <= settings.max_crowd)
    pool.add_bases(OnAccess(len(scenes), _Scene(labelled, scenes)), source.base_weight)
    for label, masks in _cuttable_masks(labelled, labelled_frames.frames, settings.least_cutout_px).items():
        pool.add_cutouts(OnAccess(len(masks), _Cut(labelled, masks)), label, source.cutout_weight)


SCENES: dict[str, Callable[[FrameGroups], FrameGroups]] = {
    "video": lambda videos: videos,
    "frame": lambda videos: videos.apart(),
}


def _videos_in(part: Part, columns: SetColumns, held_out: float) -> NDArray[np.int64]:
    """The videos of `part`, chosen by the name of their first picture."""
    if part == "all" or held_out <= 0:
        return np.arange(0 if part == "held_out" else columns.videos)
    names = map(columns.name, columns.video_frame[:-1].tolist())
    return np.flatnonzero([is_in(part, name, held_out) for name in names])


def _with_target(pool: Pool, scenes: FrameGroups, labelled: LabelledSet, one_frame: bool) -> FrameGroups:
    """`scenes` that show an object of a class. Of clips of `one_frame`, a video loses its other frames; of longer clips
    it keeps them, as the released loaders do."""
    shown = labelled.has_target()[scenes.frames]
    kept = shown if one_frame else scenes.most(shown)
    found = scenes.only(kept)
    photos = labelled.columns.frames == labelled.columns.videos
    kind = "photos" if photos else "frames" if one_frame or len(scenes) == len(scenes.frames) else "videos"
    count = len(scenes) - len(found) if kind == "videos" else len(scenes.frames) - len(found.frames)
    if count:
        pool.remarks.append(f"{labelled.root}: {count} {kind} without an object of a class are left out")
    return found


def _cuttable_masks(labelled: LabelledSet, frames: NDArray[np.int64], least_px: int) -> dict[int, NDArray[np.int64]]:
    """By label, the masks in `frames` that are no crowd and worth cutting out."""
    columns = labelled.columns
    frame, track = columns.frame_of_masks(), columns.track_of_masks()
    chosen = np.zeros(columns.frames, np.bool_)
    chosen[frames] = True
    width_px = columns.video_size[columns.video_of(frame), 1]
    worth = worth_cutting(columns.mask_area_px, columns.mask_box_px, width_px, least_px)
    masks = np.flatnonzero(chosen[frame] & ~columns.track_crowd[track] & worth)
    labels = labelled.labels[columns.track_category[track[masks]]]
    return {label: masks[labels == label] for label in np.unique(labels).tolist()}


@dataclass(frozen=True)
class _Scene:
    """Scene i of a set; a function that can be sent to another process."""

    labelled: LabelledSet
    scenes: FrameGroups

    def __call__(self, i: int) -> Base:
        return Base(self.labelled.frames(self.scenes[i]))


@dataclass(frozen=True)
class _Cut:
    """Object i of a choice of masks."""

    labelled: LabelledSet
    masks: NDArray[np.int64]

    def __call__(self, i: int) -> FrameCut:
        return FrameCut(*self.labelled.frame_and_track(int(self.masks[i])))


def _label(pool: Pool, name: str, source: SourceSettings) -> int:
    if name not in pool.classes:
        raise SettingsError(f"source {source.folder}: class {name!r} is none of {', '.join(pool.classes)}")
    return pool.classes.index(name)


def _add_cutouts(pool: Pool, source: SourceSettings, files: Sequence[CutoutFile], part: Part) -> None:
    by_label: dict[int, list[CutoutFile]] = defaultdict(list)
    for file in files:
        if is_in(part, file.path.name, source.held_out):
            label = NO_TARGET if file.class_name == DISTRACTOR else _label(pool, file.class_name, source)
            by_label[label].append(file)
    for label, chosen in by_label.items():
        pool.add_cutouts(chosen, label, source.cutout_weight)


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
