"""Copy-and-paste with occlusion: which cut-outs cross a scene, along which paths, and blending them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.training.data.annotations import NO_TARGET
from visrt.training.data.cutouts import Cutout
from visrt.training.data.frames import AnnotatedFrame
from visrt.training.data.looks import ColourChange, LookSettings, colour_change
from visrt.training.data.motion import ObjectPath, Wave, object_pose
from visrt.training.data.sources import Pool
from visrt.training.data.warp import warp_cutout

__all__ = ["Anchor", "PasteSettings", "Pasted", "paste", "plan_pasting"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PasteSettings:
    """Settings of the objects pasted over a scene. Probabilities are for each pasted object unless said otherwise.

    counts: probability of pasting 0, 1, 2, ... objects in a clip; bare_counts: the same where the scene itself shows
    no object. distractor: it is no target but an occluder. twin: it repeats an earlier cut-out of the clip in the same
    colours; scene_twin: it repeats an object of the scene, nearly in its colours; same_class: it is at least of the
    class of an earlier one. Look-alikes and touching objects are what breaks identity.
    meet: its path passes another object's at a random time, their centres then 0..`meet_distance` of their mean size
    apart. long_side: its long side in frame heights, log-uniform; enlarged at most `most_enlarged` times. speed: frame
    widths per clip, log-uniform. growth: log change of size over the clip; turn_deg, tilt_deg: change of angle and
    angle; shear; stretch: log aspect. sway: probability of the non-rigid wave, up to `sway_size` of the long side.
    colour: strength of its own colour change, as a multiple of the clip's ranges. eroded: probability of losing one
    edge pixel; feather_px: sigma of the blurred alpha edge, so that a hard edge does not betray pasting. see_through:
    probability of a motion-blurred, very soft edge.
    """

    counts: tuple[float, ...] = (0.15, 0.2, 0.25, 0.2, 0.12, 0.08)
    bare_counts: tuple[float, ...] = (0.02, 0.13, 0.25, 0.3, 0.2, 0.1)
    distractor: float = 0.12
    twin: float = 0.15
    scene_twin: float = 0.12
    same_class: float = 0.35
    meet: float = 0.75
    meet_distance: float = 0.9
    long_side: tuple[float, float] = (0.25, 1.4)
    most_enlarged: float = 2.5
    speed: tuple[float, float] = (0.03, 0.9)
    growth: float = 0.25
    turn_deg: float = 12.0
    tilt_deg: float = 10.0
    shear: float = 0.1
    stretch: float = 0.12
    flip: float = 0.5
    sway: float = 0.5
    sway_size: float = 0.04
    colour: float = 0.7
    eroded: float = 0.5
    feather_px: tuple[float, float] = (0.3, 1.1)
    see_through: float = 0.05


@dataclass(frozen=True)
class Anchor:
    """Something to meet: its centre (x, y) at time 0 and 1 in the frame and its size, all in pixels."""

    centres: NDArray[np.float64]
    size_px: float

    def centre(self, time: float) -> NDArray[np.float64]:
        return np.asarray(self.centres[0] + (self.centres[1] - self.centres[0]) * time)


@dataclass(frozen=True)
class Pasted:
    """A cut-out on its way."""

    cutout: Cutout
    path: ObjectPath
    colour: ColourChange
    eroded: bool
    feather_px: float

    @property
    def is_target(self) -> bool:
        return self.cutout.label != NO_TARGET

    def centre(self, time: float) -> NDArray[np.float64]:
        return self.path.centre(time)

    @property
    def size_px(self) -> float:
        return float(self.path.long_px.mean()) * 0.7


def plan_pasting(
    pool: Pool,
    scene: AnnotatedFrame,
    anchors: Sequence[Anchor],
    size: tuple[int, int],
    settings: PasteSettings,
    looks: LookSettings,
    rng: np.random.Generator,
) -> list[Pasted]:
    """The objects to paste over `scene`, whose own objects are `anchors`, back to front; `size`: of the frame."""
    weights = np.array(settings.counts if anchors else settings.bare_counts)
    count = int(rng.choice(len(weights), p=weights / weights.sum())) if pool.pasted_labels else 0
    pasted: list[Pasted] = []
    for _ in range(count):
        one = _chosen(pool, scene, pasted, settings, looks, rng)
        if one is None:
            continue
        pasted.append(replace(one, path=_path(one.cutout, [*anchors, *pasted], size, settings, rng)))
    return [pasted[i] for i in rng.permutation(len(pasted))]


def _chosen(
    pool: Pool,
    scene: AnnotatedFrame,
    earlier: Sequence[Pasted],
    settings: PasteSettings,
    looks: LookSettings,
    rng: np.random.Generator,
) -> Pasted | None:
    """The next object to paste, its path still to come; None if there is no good cut-out for it."""
    kin = [p for p in earlier if p.is_target]
    feather_px = float(rng.uniform(*settings.feather_px)) * (3.0 if rng.random() < settings.see_through else 1.0)
    if kin and rng.random() < settings.twin:
        return replace(kin[int(rng.integers(len(kin)))], feather_px=feather_px)
    cutout = pool.draw_twin(scene, rng) if rng.random() < settings.scene_twin else None
    strength = settings.colour / 4
    if cutout is None:
        cutout, strength = pool.draw_cutout(_label(pool, kin, settings, rng), rng), settings.colour
    if cutout is None:
        return None
    colour = colour_change(looks, strength, rng)
    return Pasted(cutout, NOWHERE, colour, bool(rng.random() < settings.eroded), feather_px)


NOWHERE = ObjectPath(*(np.zeros(2),) * 3, 0.0, *(np.zeros(2),) * 3, 1.0, 1.0, None)


def _label(pool: Pool, kin: Sequence[Pasted], settings: PasteSettings, rng: np.random.Generator) -> int:
    targets = [label for label in pool.pasted_labels if label != NO_TARGET]
    if NO_TARGET in pool.pasted_labels and (not targets or rng.random() < settings.distractor):
        return NO_TARGET
    if kin and rng.random() < settings.same_class:
        return kin[int(rng.integers(len(kin)))].cutout.label
    return targets[int(rng.integers(len(targets)))]


def _path(
    cutout: Cutout,
    others: Sequence[Anchor | Pasted],
    size: tuple[int, int],
    settings: PasteSettings,
    rng: np.random.Generator,
) -> ObjectPath:
    h, w = size
    native = max(cutout.levels[0].shape[:2])
    long_px = min(_log_uniform(settings.long_side, rng) * h, native * settings.most_enlarged)
    meeting = float(rng.uniform(0, 1))
    position = rng.uniform([-0.05 * w, 0.1 * h], [1.05 * w, 1.0 * h])
    if others and rng.random() < settings.meet:
        other = others[int(rng.integers(len(others)))]
        reach = (long_px * 0.7 + other.size_px) / 2
        heading = rng.uniform(0, 2 * np.pi)
        away = np.array([np.cos(heading), 0.6 * np.sin(heading)]) * reach * rng.uniform(0, settings.meet_distance)
        position = other.centre(meeting) + away
    speed = _log_uniform(settings.speed, rng) * w
    heading = rng.uniform(0, 2 * np.pi)
    velocity = speed * np.array([np.cos(heading), 0.5 * np.sin(heading)])
    growth = rng.uniform(-1, 1) * settings.growth / 2
    tilt, turn = rng.uniform(-1, 1, 2) * (settings.tilt_deg, settings.turn_deg)
    return ObjectPath(
        position=position,
        velocity=velocity,
        acceleration=rng.normal(0, 0.5, 2) * speed,
        meeting=meeting,
        long_px=long_px * np.exp([-growth, growth]),
        angles_deg=np.array([tilt - turn / 2, tilt + turn / 2]),
        shears=rng.uniform(-settings.shear, settings.shear, 2),
        stretch=float(np.exp(rng.uniform(-1, 1) * settings.stretch / 2)),
        mirrored=-1.0 if rng.random() < settings.flip else 1.0,
        wave=_wave(long_px, settings, rng) if rng.random() < settings.sway else None,
    )


def _wave(long_px: float, settings: PasteSettings, rng: np.random.Generator) -> Wave:
    amplitude, length = rng.uniform(0, settings.sway_size, 2) * long_px, rng.uniform(0.5, 1.5, 2) * long_px
    phase = rng.uniform(0, 2 * np.pi, 2)
    return Wave(
        (float(amplitude[0]), float(amplitude[1])),
        (float(length[0]), float(length[1])),
        (float(phase[0]), float(phase[1])),
        float(rng.uniform(0.3, 3)),
    )


def _log_uniform(ends: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]))))


def paste(rgb: Image, ids: Image, one: Pasted, number: int, time: float) -> int:
    """Blend `one` into `rgb` [h, w, 3], in place, and write `number` where it covers into the front of `ids`
    [L, h, w], behind which nothing is left.

    Returns how many pixels of the frame it covers.
    """
    shape = one.cutout.levels[0].shape
    pose = object_pose(one.path, (shape[0], shape[1]), time)
    warped = warp_cutout(one.cutout.levels, pose, one.path.wave, time, rgb.shape[:2])
    if warped is None:
        return 0
    top, left, rgba = warped
    window = np.s_[top : top + rgba.shape[0], left : left + rgba.shape[1]]
    alpha = _soft(np.ascontiguousarray(rgba[..., 3]), one)
    colour = one.colour(np.ascontiguousarray(rgba[..., :3]))
    share = cv2.merge([alpha, alpha, alpha]).astype(np.uint16)
    mixed = colour * share + rgb[window] * (255 - share)
    rgb[window] = (mixed + 127) // 255
    covered = alpha > 127
    ids[(slice(1, None), *window)][:, covered] = 0
    ids[(0, *window)][covered] = number
    return int(covered.sum())


def _soft(alpha: Image, one: Pasted) -> Image:
    """The alpha with a blurred edge; the border is reflected so that objects stay solid at the frame's edge."""
    if one.eroded:
        alpha = np.asarray(cv2.erode(alpha, np.ones((3, 3), np.uint8)))
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), one.feather_px))
