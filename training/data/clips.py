"""Training clips: a filmed scene, objects pasted over it, and the visible mask of every object in every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import SettingsError
from visrt.training.data.annotations import NO_TARGET
from visrt.training.data.frames import AnnotatedFrame
from visrt.training.data.looks import LookSettings, colour_change, wear
from visrt.training.data.motion import Affine, CameraPath, CameraSettings, camera_path, clip_times
from visrt.training.data.pasting import Anchor, Pasted, PasteSettings, paste, plan_pasting
from visrt.training.data.pictures import MAX_OBJECTS, Picture
from visrt.training.data.sources import Base, Pool, PoolSettings, SourceSettings, load_pool
from visrt.training.data.warp import warp_ids, warp_picture

__all__ = [
    "Clip",
    "ClipDataset",
    "ClipSettings",
    "CropSettings",
    "JitterView",
    "ShortSideView",
    "make_clip",
]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """frames: uint8 RGB [T, H, W, 3]. masks: bool [N, T, H, W], the visible part of each object, empty where it is
    absent. labels: int64 [N].
    """

    frames: Image
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class CropSettings:
    """A crop before the resize, as released: with a `chance`, the picture's short side is resized to one of
    `short_sides_px` (none: the picture stays as large as it is stored), then height and width of a window are drawn
    from `window_px`. slides: the window moves, which only pseudo-videos may do.
    """

    chance: float = 0.5
    short_sides_px: tuple[int, ...] = (400, 500, 600)
    window_px: tuple[int, int] = (384, 600)
    slides: bool = False


@dataclass(frozen=True)
class ShortSideView:
    """Frames as the released loaders make them: the whole picture, its aspect kept, one size for a clip.

    The short side is drawn from `short_sides_px`; the long side is at most `longest_px`. flip: probability for a clip.
    crop, pseudo_crop: of real videos and photos, and of pseudo-videos (one picture filmed for several frames).
    rotation_deg: frames of a pseudo-video turn within +- this around one point; real videos never do.
    """

    kind: Literal["short_side"]
    short_sides_px: tuple[int, ...]
    longest_px: int = 1333
    flip: float = 0.5
    crop: CropSettings | None = None
    pseudo_crop: CropSettings | None = None
    rotation_deg: float = 0.0


@dataclass(frozen=True)
class JitterView:
    """Large-scale jitter, as Mask2Former trains on COCO: the picture is fitted into a square of `side_px` times a scale
    from `scales`, then a square of `side_px` is cut from it, padded right and below."""

    kind: Literal["jitter"]
    side_px: int = 1024
    scales: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5


@dataclass(frozen=True)
class ClipSettings(PoolSettings):
    """Everything about clips but their sources.

    view: how the published recipes see a picture; None: frames of height_px x width_px, filmed by `camera`.
    range_frames: as released, a real clip is a frame and others at most so far from it, drawn with repetition; None:
    from a stretch of `video_span_frames`.
    height_px, width_px: of the frames. frames: in a clip. min_area_px: an object smaller than this in a frame counts
    as absent there; so does one of which less than `min_visible` of its area in the frame is left. max_objects: the
    largest are kept. video_span_frames: frames of a real video are drawn from a stretch of this length.
    pad_rgb: of padding; the network's pixel_mean, because the runtime pads with zeros after normalising.
    """

    height_px: int = 192
    width_px: int = 320
    frames: int = 2
    view: ShortSideView | JitterView | None = None
    range_frames: int | None = None
    min_area_px: int = 80
    min_visible: float = 0.08
    max_objects: int = 24
    video_span_frames: int = 20
    returning: float = 0.0
    pad_rgb: tuple[int, int, int] = (124, 116, 104)
    camera: CameraSettings = field(default_factory=CameraSettings)
    paste: PasteSettings = field(default_factory=PasteSettings)
    looks: LookSettings = field(default_factory=LookSettings)


class ClipDataset:
    """`length` clips from `sources`, for a torch DataLoader. Clip i depends on (seed, i) only, so that a resumed run
    sees what it would have seen.
    """

    def __init__(self, sources: Sequence[SourceSettings], settings: ClipSettings, length: int, seed: int) -> None:
        if length < 1:
            raise SettingsError(f"length is {length}; a data set needs at least one clip")
        self.settings = settings
        self.pool = load_pool(sources, settings)
        self._length, self._seed = length, seed

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the labels."""
        return self.pool.classes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self._length:
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, index])
        return make_clip(self.pool, _times(self.settings, rng), self.settings, rng)


def _times(settings: ClipSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """Times of the frames of a clip, 0 to 1."""
    times = clip_times(settings.frames, rng)
    # Asked for first, so that clips without returns are what they were before there was such a setting.
    returns = settings.returning > 0 and rng.random() < settings.returning
    return 1 - np.abs(2 * times - 1) if returns else times


def make_clip(pool: Pool, times: NDArray[np.float64], settings: ClipSettings, rng: np.random.Generator) -> Clip:
    """A clip of a random scene of `pool`, at `times` (0 to 1)."""
    filmed = _filmed(pool.draw_base(rng), times, settings, rng)
    pictures = [pool.picture(frame) for frame in filmed]
    scene = _scene(pool, filmed[0], pictures, settings, rng)
    change = colour_change(settings.looks, 1.0, rng)
    worn = wear(len(times), settings.looks, rng)
    frames = np.empty((len(times), settings.height_px, settings.width_px, 3), np.uint8)
    frames[:] = settings.pad_rgb
    ids = np.zeros(frames.shape[:3], np.uint8)
    whole_px = np.zeros((len(times), 256), np.int64)
    h, w = scene.size
    for t, time in enumerate(times):
        rgb, numbers, whole_px[t] = scene.frame(pictures[t], float(time))
        frames[t, :h, :w] = worn(change(rgb), t)
        ids[t, :h, :w] = numbers
    return _clip(frames, ids, whole_px, scene.labels, settings)


def _filmed(
    base: Base, times: NDArray[np.float64], settings: ClipSettings, rng: np.random.Generator
) -> list[AnnotatedFrame]:
    """The background at each of `times`: always the same photo, or frames of a short stretch of a video."""
    span = min(len(base.frames), max(settings.video_span_frames, len(times)))
    start = int(rng.integers(len(base.frames) - span + 1))
    return [base.frames[start + int(time * (span - 1) + 0.5)] for time in times]


@dataclass(frozen=True)
class _Scene:
    """The parts of a clip that do not change within it. labels: of each id, NO_TARGET where there is none."""

    size: tuple[int, int]
    camera: CameraPath
    ids: dict[int, int]
    pasted: tuple[Pasted, ...]
    labels: NDArray[np.int64]

    def frame(self, picture: Picture, time: float) -> tuple[Image, Image, NDArray[np.int64]]:
        """RGB [h, w, 3], ids [h, w], and the pixels [256] each id would have in this frame with nothing before it."""
        to_frame = self.camera.at(time, self.size)
        rgb = warp_picture(picture.levels, to_frame, self.size)
        ids = self._numbers(picture)[warp_ids(picture.ids, to_frame, self.size)]
        whole_px = np.bincount(ids.ravel(), minlength=256)
        for k, one in enumerate(self.pasted):
            number = MAX_OBJECTS + 1 + k if one.is_target else 0
            whole_px[number] = paste(rgb, ids, one, number, time)
        return rgb, ids, whole_px

    def _numbers(self, picture: Picture) -> Image:
        """uint8 [256]: id in `picture` -> id in the clip."""
        numbers = np.zeros(256, np.uint8)
        for k, track in enumerate(picture.tracks):
            numbers[k + 1] = self.ids.get(track, 0)
        return numbers


def _scene(
    pool: Pool, frame: AnnotatedFrame, pictures: Sequence[Picture], settings: ClipSettings, rng: np.random.Generator
) -> _Scene:
    """Camera and pasted objects over `pictures`, of which `frame` is the first as annotated."""
    first = pictures[0]
    height, width = first.ids.shape
    targets = {
        track: label
        for picture in pictures
        for track, label in zip(picture.tracks, picture.labels, strict=True)
        if label != NO_TARGET
    }
    ids = {track: i + 1 for i, track in enumerate(list(targets)[:MAX_OBJECTS])}
    size = _valid_size((height, width), settings, rng)
    boxes = _boxes(first)
    focus = None
    if boxes and rng.random() < settings.camera.focus:
        x, y, w, h = boxes[int(rng.integers(len(boxes)))]
        focus = (x + w / 2, y + h / 2)
    camera = camera_path((height, width), size, focus, settings.camera, rng)
    pasted = plan_pasting(pool, frame, _anchors(boxes, camera, size), size, settings.paste, settings.looks, rng)
    labels = np.full(256, NO_TARGET, np.int64)
    for track, number in ids.items():
        labels[number] = targets[track]
    for k, one in enumerate(pasted):
        labels[MAX_OBJECTS + 1 + k] = one.cutout.label
    return _Scene(size, camera, ids, tuple(pasted), labels)


def _valid_size(picture: tuple[int, int], settings: ClipSettings, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of the part of the frame that shows the scene: all of it, or what the runtime leaves of a
    picture of another shape after fitting it inside.
    """
    full = (settings.height_px, settings.width_px)
    if rng.random() >= settings.camera.letterbox:
        return full
    aspect = picture[1] / picture[0] if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(1.2), np.log(2.4))))
    scale = min(full[1] / aspect, full[0])
    return max(32, min(full[0], round(scale))), max(32, min(full[1], round(scale * aspect)))


def _boxes(picture: Picture) -> list[tuple[int, int, int, int]]:
    """Boxes x, y, width, height of the targets of `picture` that are no mere specks."""
    boxes = []
    for k, label in enumerate(picture.labels):
        if label == NO_TARGET:
            continue
        rows, columns = np.nonzero(picture.ids == k + 1)
        if len(rows) >= 300:
            left, top = columns.min(), rows.min()
            boxes.append((int(left), int(top), int(columns.max() - left + 1), int(rows.max() - top + 1)))
    return boxes


def _anchors(boxes: Sequence[tuple[int, int, int, int]], camera: CameraPath, size: tuple[int, int]) -> list[Anchor]:
    """The scene's own objects that the camera sees, as things a pasted object may meet."""
    ends = [camera.at(time, size) for time in (0.0, 1.0)]
    anchors = []
    for x, y, w, h in boxes:
        centres = np.stack([_seen(m, (x + w / 2, y + h / 2)) for m in ends])
        if ((centres > 0) & (centres < [size[1], size[0]])).all():
            scale = np.sqrt(abs(np.linalg.det(ends[0][:, :2])))
            anchors.append(Anchor(centres, float(scale * max(w, h) * 0.7)))
    return anchors


def _seen(matrix: Affine, point: tuple[float, float]) -> NDArray[np.float64]:
    return np.asarray(matrix @ np.array([*point, 1.0]))


def _clip(
    frames: Image, ids: Image, whole_px: NDArray[np.int64], labels: NDArray[np.int64], settings: ClipSettings
) -> Clip:
    """Leave out what is too small or too hidden: for each frame, then objects absent from all of them."""
    visible_px = np.stack([np.bincount(frame.ravel(), minlength=256) for frame in ids])
    seen = (visible_px >= settings.min_area_px) & (visible_px >= settings.min_visible * whole_px)
    seen &= labels != NO_TARGET
    kept = np.flatnonzero(seen.any(0))
    kept = np.sort(kept[np.argsort(-visible_px[:, kept].max(0), kind="stable")][: settings.max_objects])
    masks = (ids[None] == kept[:, None, None, None].astype(np.uint8)) & seen.T[kept][:, :, None, None]
    return Clip(frames, masks, labels[kept])
