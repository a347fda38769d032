"""Training clips: a filmed scene, objects pasted over it, and the visible mask of every object in every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.errors import SettingsError
from visrt.training.data.annotations import NO_TARGET
from visrt.training.data.frames import AnnotatedFrame
from visrt.training.data.looks import LookSettings, colour_change, wear
from visrt.training.data.motion import Affine, CameraSettings, camera_path, clip_times
from visrt.training.data.pasting import Anchor, Pasted, PasteSettings, paste, plan_pasting
from visrt.training.data.pictures import MAX_OBJECTS, Picture
from visrt.training.data.sources import Base, Material, Pool, PoolSettings, SourceSettings, load_pool
from visrt.training.data.views import (
    CropSettings,
    JitterView,
    Scene,
    ShortSideView,
    Shot,
    check_view,
    jitter_shot,
    kept_size,
    short_side_shot,
)
from visrt.training.data.warp import blank_beyond, warp_ids, warp_picture

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
class ClipSettings(PoolSettings):
    """Everything about clips but their sources.

    view: how the published recipes see a picture; then height_px, width_px, camera and picture_side_px play no part.
    None: frames of height_px x width_px, filmed by `camera`.
    range_frames: as released, a real clip is a frame and others at most so far from it, drawn with repetition; None:
    from a stretch of `video_span_frames`. Of as many frames as lie so near, 2 * range_frames + 1, it is that many
    consecutive ones, the last repeated in shorter videos (VidEoMT).
    min_area_px: an object smaller than this in a frame counts as absent there, at 0 one without a pixel; so does one of
    which less than `min_visible` of its area in the frame is left. max_objects: the largest are kept; never more than
    MAX_OBJECTS (150) of the scene itself. video_span_frames: frames of a real video are drawn from a stretch of this
    length.
    pad_rgb: of padding by `camera`; the network's pixel_mean, because the runtime pads with zeros after normalising.
    """

    height_px: int = 192
    width_px: int = 320
    view: ShortSideView | JitterView | None = None
    range_frames: Annotated[int, Field(ge=0)] | None = None
    min_area_px: int = 80
    min_visible: float = 0.08
    max_objects: int = 24
    video_span_frames: int = 20
    returning: float = 0.0
    pad_rgb: tuple[int, int, int] = (124, 116, 104)
    camera: CameraSettings = field(default_factory=CameraSettings)
    paste: PasteSettings = field(default_factory=PasteSettings)
    looks: LookSettings = field(default_factory=LookSettings)

    def kept_size(self, stored: tuple[int, int]) -> tuple[int, int]:
        return super().kept_size(stored) if self.view is None else kept_size(self.view, stored)


class ClipDataset:
    """`length` clips from `sources`, for a torch DataLoader. Clip i depends on (seed, i) only, so that a resumed run
    sees what it would have seen.
    """

    def __init__(
        self,
        sources: Sequence[SourceSettings],
        settings: ClipSettings,
        length: int,
        seed: int,
        material: Material | None = None,
    ) -> None:
        if length < 1:
            raise SettingsError(f"length is {length}; a data set needs at least one clip")
        check_view(settings.view)
        self.settings = settings
        self.pool = load_pool(sources, settings, material)
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
    base = pool.draw_base(rng)
    filmed = _filmed(base, times, settings, rng)
    pictures = [pool.picture(frame) for frame in filmed]
    scene = _scene(pool, base, filmed[0], pictures, times, settings, rng)
    change = colour_change(settings.looks, 1.0, rng)
    worn = wear(len(times), settings.looks, rng)
    frames = np.empty((len(times), *scene.shot.frame_size, 3), np.uint8)
    if scene.shot.shown != scene.shot.frame_size:
        frames[:] = scene.shot.pad_rgb
    ids = np.zeros((len(times), scene.depth, *scene.shot.frame_size), np.uint8)
    whole_px = np.zeros((len(times), 256), np.int64)
    h, w = scene.shot.shown
    for t, time in enumerate(times):
        rgb, numbers, whole_px[t] = scene.frame(pictures[t], t, float(time))
        frames[t, :h, :w] = worn(change(rgb), t)
        ids[t, :, :h, :w] = numbers
    return _clip(frames, ids, whole_px, scene.labels, settings)


def _filmed(
    base: Base, times: NDArray[np.float64], settings: ClipSettings, rng: np.random.Generator
) -> list[AnnotatedFrame]:
    """The background at each of `times`: always the same photo, or frames of a video that lie near each other."""
    if settings.range_frames is not None:
        return [base.frames[t] for t in _around_one(len(base.frames), len(times), settings.range_frames, rng)]
    span = min(len(base.frames), max(settings.video_span_frames, len(times)))
    start = int(rng.integers(len(base.frames) - span + 1))
    return [base.frames[start + int(time * (span - 1) + 0.5)] for time in times]


def _around_one(length: int, count: int, reach: int, rng: np.random.Generator) -> list[int]:
    """Sorted numbers of `count` frames of a video of `length`: one anywhere, the others within `reach` of it, drawn
    with repetition. Where nothing else is within reach the one is repeated.
    """
    if count == 2 * reach + 1:
        first = int(rng.integers(max(length - count, 0) + 1))
        return [min(first + t, length - 1) for t in range(count)]
    reference = int(rng.integers(length))
    near = [t for t in range(max(0, reference - reach), min(length, reference + reach + 1)) if t != reference]
    others = rng.choice(near or [reference], count - 1)
    return sorted([reference, *others.tolist()])


@dataclass(frozen=True)
class _Scene:
    """The parts of a clip that do not change within it. depth: how many objects of a picture may lie one behind the
    other. labels: of each id, NO_TARGET where there is none.
    """

    shot: Shot
    depth: int
    ids: dict[int, int]
    pasted: tuple[Pasted, ...]
    labels: NDArray[np.int64]

    def frame(self, picture: Picture, t: int, time: float) -> tuple[Image, Image, NDArray[np.int64]]:
        """Frame number `t`, at `time`: RGB [h, w, 3], ids [depth, h, w], the front first, and the pixels [256] each
        id would have in it with nothing before it.
        """
        to_frame, size = self.shot.to_frames[t], self.shot.shown
        rgb = warp_picture(picture.levels, to_frame, size)
        numbers = self._numbers(picture)
        ids = np.zeros((self.depth, *size), np.uint8)
        for level, behind in zip(ids, (picture.ids, *picture.hidden), strict=False):
            level[:] = numbers[warp_ids(behind, to_frame, size)]
        if self.shot.turns:
            blank_beyond(rgb, ids, self.shot.turns[t])
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
    pool: Pool,
    base: Base,
    frame: AnnotatedFrame,
    pictures: Sequence[Picture],
    times: NDArray[np.float64],
    settings: ClipSettings,
    rng: np.random.Generator,
) -> _Scene:
    """Shot and pasted objects over `pictures` of `base`, of which `frame` is the first as annotated."""
    targets = {
        track: label
        for picture in pictures
        for track, label in zip(picture.tracks, picture.labels, strict=True)
        if label != NO_TARGET
    }
    ids = {track: i + 1 for i, track in enumerate(list(targets)[:MAX_OBJECTS])}
    boxes = _boxes(pictures[0])
    shot = _shot(base, pictures[0].size, boxes, times, settings, rng)
    pasted = plan_pasting(pool, frame, _anchors(boxes, shot), shot.shown, settings.paste, settings.looks, rng)
    labels = np.full(256, NO_TARGET, np.int64)
    for track, number in ids.items():
        labels[number] = targets[track]
    for k, one in enumerate(pasted):
        labels[MAX_OBJECTS + 1 + k] = one.cutout.label
    # As released, masks that overlap are whole in a view; under the camera what is hidden is left out.
    depth = 1 if settings.view is None else 1 + max(len(picture.hidden) for picture in pictures)
    return _Scene(shot, depth, ids, tuple(pasted), labels)


Box = tuple[int, int, int, int]


def _shot(
    base: Base,
    kept: tuple[int, int],
    boxes: Sequence[Box],
    times: NDArray[np.float64],
    settings: ClipSettings,
    rng: np.random.Generator,
) -> Shot:
    """How the frames see the pictures of `base`, in memory of size `kept`, with objects in `boxes`."""
    view = settings.view
    if view is None:
        return _camera_shot(kept, boxes, times, settings, rng)
    stored = (base.frames[0].height_px, base.frames[0].width_px)
    if isinstance(view, JitterView):
        return jitter_shot(stored, kept, len(times), view, rng)
    scene: Scene = "pseudo" if len(base.frames) == 1 and len(times) > 1 else "real"
    return short_side_shot(stored, kept, times, scene, view, rng)


def _camera_shot(
    size: tuple[int, int],
    boxes: Sequence[Box],
    times: NDArray[np.float64],
    settings: ClipSettings,
    rng: np.random.Generator,
) -> Shot:
    shown = _shown(size, settings, rng)
    focus = None
    if boxes and rng.random() < settings.camera.focus:
        x, y, w, h = boxes[int(rng.integers(len(boxes)))]
        focus = (x + w / 2, y + h / 2)
    camera = camera_path(size, shown, focus, settings.camera, rng)
    frame_size = (settings.height_px, settings.width_px)
    to_frames = tuple(camera.at(float(time), shown) for time in times)
    return Shot(frame_size, shown, settings.pad_rgb, to_frames, (camera.at(0.0, shown), camera.at(1.0, shown)))


def _shown(picture: tuple[int, int], settings: ClipSettings, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of the part of the frame that shows the scene: all of it, or what the runtime leaves of a
    picture of another shape after fitting it inside.
    """
    full = (settings.height_px, settings.width_px)
    if rng.random() >= settings.camera.letterbox:
        return full
    aspect = picture[1] / picture[0] if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(1.2), np.log(2.4))))
    scale = min(full[1] / aspect, full[0])
    return max(32, min(full[0], round(scale))), max(32, min(full[1], round(scale * aspect)))


def _boxes(picture: Picture) -> list[Box]:
    """Boxes x, y, width, height of the targets of `picture` that are no mere specks."""
    boxes = []
    for k, label in enumerate(picture.labels):
        mask = (picture.ids == k + 1).view(np.uint8)
        if label != NO_TARGET and cv2.countNonZero(mask) >= 300:
            x, y, w, h = cv2.boundingRect(mask)
            boxes.append((x, y, w, h))
    return boxes


def _anchors(boxes: Sequence[Box], shot: Shot) -> list[Anchor]:
    """The scene's own objects that are in the shot, as things a pasted object may meet."""
    anchors = []
    for x, y, w, h in boxes:
        centres = np.stack([_seen(m, (x + w / 2, y + h / 2)) for m in shot.ends])
        if ((centres > 0) & (centres < [shot.shown[1], shot.shown[0]])).all():
            scale = np.sqrt(abs(np.linalg.det(shot.ends[0][:, :2])))
            anchors.append(Anchor(centres, float(scale * max(w, h) * 0.7)))
    return anchors


def _seen(matrix: Affine, point: tuple[float, float]) -> NDArray[np.float64]:
    return np.asarray(matrix @ np.array([*point, 1.0]))


def _clip(
    frames: Image, ids: Image, whole_px: NDArray[np.int64], labels: NDArray[np.int64], settings: ClipSettings
) -> Clip:
    """Leave out what is too small or too hidden, for each frame of `ids` [T, depth, H, W]; then what is in none."""
    visible_px = np.stack([np.bincount(frame.ravel(), minlength=256) for frame in ids])
    seen = (visible_px >= max(1, settings.min_area_px)) & (visible_px >= settings.min_visible * whole_px)
    seen &= labels != NO_TARGET
    kept = np.flatnonzero(seen.any(0))
    kept = np.sort(kept[np.argsort(-visible_px[:, kept].max(0), kind="stable")][: settings.max_objects])
    masks = np.zeros((len(kept), *frames.shape[:3]), bool)
    for mask, number in zip(masks, kept, strict=True):
        mask[seen[:, number]] = (ids[seen[:, number]] == np.uint8(number)).any(1)
    return Clip(frames, masks, labels[kept])
