"""Training on one's own annotated pictures: the settings of a run from a short recipe and what its folder holds.

All that the recipe leaves open, optimiser, losses, pseudo-videos, follows from the network that training starts from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import visrt
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.efficientnet import PIXEL_MEAN, PIXEL_STD, EfficientNetLite0Settings
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import DataError, SettingsError
from visrt.training.data.annotations import ClassMap, chosen_map, load_class_map, require_annotations
from visrt.training.data.clips import ClipSettings
from visrt.training.data.layouts import FoundSet, found_sets
from visrt.training.data.set_columns import require_below
from visrt.training.data.set_formats import MissingPictures, ReadSet, read_set
from visrt.training.data.sources import FORMATS, PICTURE_FOLDERS, SourceSettings, is_in
from visrt.training.losses.mask2former import LossSettings
from visrt.training.losses.targets import MatchSettings
from visrt.training.own_recipe import OwnRecipe
from visrt.training.settings import DataSettings, OptimSettings, StopSettings, TrainSettings

__all__ = ["SHIPPED", "SHIPPED_ASSOCIATION", "OwnRun", "filled", "own_run"]

SHIPPED = Path("bundles") / "default.safetensors"
SHIPPED_ASSOCIATION = Path("training") / "recipes" / "default" / "association.json"
"""The association settings that were chosen for the shipped weights; networks trained from them begin with these."""
"""The weights of the default bundle, in the folder of visrt's source."""
HELD_OUT = (0.1, 0.2, 0.3)
"""Shares to hold out; the first that keeps enough."""
LEAST_HELD_OUT = 4
"""Photos or videos below which a measure of quality says nothing."""
SIZE_DIVISOR = 32


@dataclass(frozen=True)
class OwnRun:
    """The settings of a run, and in words what was found and decided."""

    settings: TrainSettings
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Manner:
    """How a network is trained further. size: of frames in pixels. points: where masks are compared, for the losses and
    for matching."""

    size: tuple[int, int]
    lr: float
    backbone_factor: float
    clip_norm: float
    points: tuple[int, int]


LIGHT = _Manner((192, 320), 1e-4, 0.2, 0.1, (1536, 1536))
"""As the default network was trained, at a lower rate than from ImageNet."""
PUBLISHED = _Manner((384, 640), 1e-4, 0.1, 0.01, (12544, 12544))
"""As the papers train networks of ResNet and Swin."""

LIGHT_NETWORK = NetworkSettings(
    classes=3,
    queries=50,
    backbone=EfficientNetLite0Settings(),
    pixel_decoder="fpn",
    conv_dim=128,
    mask_dim=128,
    hidden_dim=128,
    heads=4,
    encoder_layers=2,
    decoder_layers=6,
    decoder_feedforward_dim=512,
    reid_dim=128,
    pixel_mean=PIXEL_MEAN,
    pixel_std=PIXEL_STD,
)
"""The network of the default bundle."""


def own_run(recipe: OwnRecipe) -> OwnRun:
    """The settings that `recipe` means. Reads the annotations. Raises SettingsError and DataError."""
    network = _network(recipe.start)
    sets = found_sets(Path(recipe.data))
    skip = recipe.skip_faulty
    training = _read(sets.get("train") or sets.get("all"), recipe.data, sets, skip)
    chosen = _chosen(training, recipe)
    own_split, remarks = (None, ()) if "val" not in sets else _own_split(sets, recipe.data, skip)
    given = None if recipe.validation is None else _validation_set(recipe.validation, skip)
    held_out, measured, line = _measured_on(training, given or own_split)
    sources = [replace(_source(training, chosen, held_out), skip_faulty=skip)]
    if measured is not None:
        _require_classes(measured, chosen)
        sources.append(replace(_source(measured, chosen, 1.0), skip_faulty=skip))  # all of it is held out
    settings = _settings(filled(recipe), replace(network, classes=len(chosen.classes)), chosen.classes, tuple(sources))
    if not held_out and measured is None:
        data, optim = replace(settings.data, validation_clips=0), replace(settings.optim, stop=None)
        settings = replace(settings, data=data, optim=optim)
    return OwnRun(settings, (*chosen.lines, *remarks, line))


def filled(recipe: OwnRecipe) -> OwnRecipe:
    """`recipe` with a size and a learning rate that suit the network it starts from."""
    manner = _manner(_network(recipe.start))
    size = recipe.size or "{}x{}".format(*manner.size)
    return replace(recipe, size=size, learning_rate=recipe.learning_rate or manner.lr)


def _network(start: str) -> NetworkSettings:
    """The network that training starts from."""
    if start == "imagenet":
        return LIGHT_NETWORK
    if start != "default" and not Path(start).exists():
        raise SettingsError(
            f'start is {start!r}, and there is no such file; expected "default" (the shipped weights), "imagenet", or '
            "the path of a checkpoint"
        )
    return load_checkpoint(_start_file(start), MASK2FORMER).settings


def _start_file(start: str) -> Path:
    if start != "default":
        return Path(start)
    places = [Path(visrt.__file__).resolve().parents[1] / SHIPPED, Path.cwd() / SHIPPED]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SettingsError(
            f"the shipped weights are part of visrt's source, and not at {' or '.join(map(str, places))}; run in the "
            "folder of the source, or start from a checkpoint or from imagenet"
        )
    return found


def _manner(network: NetworkSettings) -> _Manner:
    return LIGHT if isinstance(network.backbone, EfficientNetLite0Settings) else PUBLISHED


@dataclass(frozen=True)
class _Part:
    """A set that was read, and where it lies."""

    found: FoundSet
    read: ReadSet

    @property
    def amount(self) -> str:
        videos = self.read.annotated.videos
        return f"{len(videos)} {'photos' if all(len(v.pictures) == 1 for v in videos) else 'videos'}"


def _read(found: FoundSet | None, data: str, sets: Mapping[str, FoundSet], skip_faulty: bool) -> _Part:
    if found is None:
        raise DataError(f"{data}: holds no training split, only {', '.join(sets)}; give the folder to train on")
    read = read_set(found.places, skip_faulty=skip_faulty)
    require_annotations(read.annotated, read.path, "training")
    part = _Part(found, read)
    require_below(read.annotated, _root(part))
    return part


def _own_split(sets: Mapping[str, FoundSet], data: str, skip_faulty: bool) -> tuple[_Part | None, tuple[str, ...]]:
    """The set's split for validation; None, and a remark, where a server keeps its annotations."""
    listed = read_set(sets["val"].places, missing=MissingPictures.keep, skip_faulty=skip_faulty)
    if not listed.annotated.annotated:
        return None, (f"{listed.path}: has no annotations and cannot measure quality",)
    return _read(sets["val"], data, sets, skip_faulty), ()


def _validation_set(place: str, skip_faulty: bool) -> _Part:
    """The set at `place`; of one that is divided the split for validation."""
    sets = found_sets(Path(place))
    return _read(sets.get("val") or sets.get("all") or next(iter(sets.values())), place, sets, skip_faulty)


@dataclass(frozen=True)
class _Chosen:
    """The classes in order, and the class of each category of the training set."""

    classes: tuple[str, ...]
    class_map: ClassMap
    lines: tuple[str, ...] = ()


def _chosen(training: _Part, recipe: OwnRecipe) -> _Chosen:
    """What the recipe chooses of the categories. One that is chosen by name must have objects."""
    annotated, path = training.read.annotated, training.read.path
    choice = load_class_map(Path(recipe.classes)) if isinstance(recipe.classes, str) else recipe.classes
    class_map = chosen_map(annotated.classes, choice, path)
    targets = dict.fromkeys(target for target in class_map.values() if target)
    counts = Counter(
        class_map.get(annotated.classes[track.label])
        for video in annotated.videos
        for track in video.tracks
        if not track.crowd and any(track.masks)
    )
    empty = [target for target in targets if not counts[target]]
    if empty and (choice is not None or len(empty) == len(targets)):
        raise DataError(f"{path}: holds no object of {', '.join(empty)}, of which the network would learn nothing")
    classes = tuple(target for target in targets if counts[target])
    listed = ", ".join(f"{name} ({counts[name]} objects)" for name in classes)
    lines = [f"trains on {training.found.given_as}: {training.read.format}, {training.amount}, {listed}"]
    if empty:
        lines.append(f"left out, as no object is of it: {', '.join(empty)}")
    return _Chosen(classes, class_map, tuple(lines))


def _require_classes(measured: _Part, chosen: _Chosen) -> None:
    """Refuses a set to measure on in which nothing is of the classes; it may lack some."""
    categories = measured.read.annotated.classes
    if not any(chosen.class_map.get(name) in chosen.classes for name in categories):
        raise DataError(
            f"{measured.read.path}: has none of the classes that are trained, {', '.join(chosen.classes)}, and cannot "
            f"measure them; it has: {', '.join(categories)}"
        )


def _measured_on(training: _Part, other: _Part | None) -> tuple[float, _Part | None, str]:
    """The share of the training set that is held out, or the other set, and in words what quality is measured on."""
    if other is not None:
        return 0.0, other, f"measures on {other.found.given_as}: {other.read.format}, {other.amount}"
    root = _root(training)
    names = [video.pictures[0].relative_to(root).as_posix() for video in training.read.annotated.videos]
    for share in HELD_OUT:
        count = sum(is_in("held_out", name, share) for name in names)
        if LEAST_HELD_OUT <= count < len(names):
            return share, None, f"measures on {count} of the {training.amount}, held out by their names"
    return 0.0, None, f"measures no quality: {training.amount} are too few to hold some out; give a validation set"


def _root(part: _Part) -> Path:
    """The folder that the names of its pictures begin in."""
    if part.read.format not in FORMATS.values():
        raise DataError(
            f"{part.read.path}: training reads no set of the format {part.read.format}; write it anew with `visrt data "
            "convert`, and train on that"
        )
    source = _source(part, None, 0.0)
    return Path(source.folder) / (source.images or PICTURE_FOLDERS.get(source.kind, ""))


def _source(part: _Part, chosen: _Chosen | None, held_out: float) -> SourceSettings:
    places = part.found.places
    kind: Any = part.read.format.replace("-", "_")
    source = SourceSettings(kind, str(places.folder), held_out=held_out)
    if places.annotations is not None:
        source = replace(source, annotations=_below(places.annotations, places.folder))
    images = part.read.images or places.images
    if images is not None and images != places.folder / PICTURE_FOLDERS.get(kind, ""):
        source = replace(source, images=_below(images, places.folder))
    return source if chosen is None else replace(source, class_map=_class_map(part, chosen))


def _class_map(part: _Part, chosen: _Chosen) -> dict[str, str | None] | None:
    """The class of each category of the set; None where each is its own."""
    categories = part.read.annotated.classes
    targets = {name: chosen.class_map.get(name) for name in categories}
    class_map = {name: target if target in chosen.classes else None for name, target in targets.items()}
    return None if all(name == target for name, target in class_map.items()) else class_map


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())


def _settings(
    recipe: OwnRecipe, network: NetworkSettings, classes: Sequence[str], sources: tuple[SourceSettings, ...]
) -> TrainSettings:
    """The settings of a recipe that leaves nothing open."""
    assert recipe.size is not None
    assert recipe.learning_rate is not None
    manner, (height, width) = _manner(network), (int(side) for side in recipe.size.split("x"))
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        raise SettingsError(f"size is {recipe.size}; both must be divisible by {SIZE_DIVISOR}, as 192x320 is")
    red, green, blue = (round(level) for level in network.pixel_mean)
    clips = ClipSettings(
        classes=tuple(classes),
        height_px=height,
        width_px=width,
        frames=recipe.frames,
        picture_side_px=max(ClipSettings.picture_side_px, height, width),
        max_objects=min(ClipSettings.max_objects, network.queries),
        pad_rgb=(red, green, blue),
    )
    optim = OptimSettings(
        steps=recipe.steps,
        batch=recipe.batch,
        lr=recipe.learning_rate,
        backbone_factor=manner.backbone_factor,
        clip_norm=manner.clip_norm,
        warmup_steps=min(50, max(recipe.steps // 10, 1)),
        schedule="trapezoid",
        mixed_precision=recipe.mixed_precision,
        stop=StopSettings("recall", recipe.early_stop) if recipe.early_stop else None,
    )
    points, match_points = manner.points
    identity = 2.0 if recipe.frames > 1 else 0.0
    every = max(recipe.steps // 10, 25)
    return TrainSettings(
        network,
        DataSettings(sources, clips),
        optim,
        LossSettings(points=points, identity_weight=identity, match=MatchSettings(points=match_points)),
        init="imagenet" if recipe.start == "imagenet" else str(_start_file(recipe.start)),
        seed=recipe.seed,
        save_every=every,
        validate_every=every,
    )
