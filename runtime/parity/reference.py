"""The reference of a bundle: torch's outputs for a few frames at export, so that parity is checked later without torch.

Kept in the bundle as `reference.npz`: the frames, and per role the expected values. Maps are kept at a sample of their
pixels, the same in every frame and channel; of the masks of all queries every pixel is kept besides, as one bit.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array
from visrt.runtime.errors import BundleError
from visrt.runtime.parity.agreement import FrameAnswer, packed_masks, queries_of, shape_role

__all__ = ["MAPS", "ROLES", "Reference", "reference_from_bytes", "reference_from_outputs"]

ROLES = ("class_logits", "embeddings", "mask_embeddings", "mask_features", "mask_logits")
"""The roles that are compared for every bundle, in the order of computation. `mask_logits` are those of all queries of
a frame. Families that say more of a frame have further roles; a network of boxes alone has box logits for masks."""

NEEDED = ("class_logits", "embeddings")
"""Of these what every network has."""

MAPS = ("mask_features", "mask_logits", "box_logits")

SAMPLES = 8192
"""Values kept of a map [channels or queries, h, w] of one frame, about."""

SEED = 20
INPUTS = ("images", "valid_sizes")
PLACES = "_at"
MOVED = "moved_share"
MASKS = "masks"


@dataclass(frozen=True)
class Reference:
    """Frames and what torch made of them.

    images uint8 RGB [T, H, W, 3]; valid_sizes int32 [T, 2]. expected, by role: float32 [T, ...], whole, or a map
    [T, channels or queries, N] at the N pixels in `places`, flat indices into [h, w]. moved_share: share of the queries
    that torch itself moved on these frames under noise as small as an engine's rounding. masks: uint8
    [T, Q, ceil(h * w / 8)], bits of mask logits > 0 of all pixels; None in older bundles.
    """

    images: NDArray[np.uint8]
    valid_sizes: NDArray[np.int32]
    expected: Mapping[str, Array]
    places: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    moved_share: float = 0.0
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def picked(self, role: str, values: Array) -> Array:
        """Of `values` [T, ...] of `role` what `expected` holds of it; all of them if they are too few to be a map."""
        if role not in self.places or self.places[role][-1] >= np.prod(values.shape[2:]):
            return values
        flat: Array = values.reshape(*values.shape[:2], -1)[:, :, self.places[role]]
        return flat

    def answers(self) -> list[FrameAnswer]:
        """Torch's answers, frame by frame; where no masks were kept, all masks are of no pixels."""
        queries = queries_of(self.expected)
        masks = np.empty((len(self), len(queries[0]), 0), np.uint8) if self.masks is None else self.masks
        return [FrameAnswer(*of_frame) for of_frame in zip(queries, masks, strict=True)]

    def sampled(self) -> Reference:
        """This reference with the maps cut down to a seeded sample of pixels."""
        places = _places({role: self.expected[role].shape[1:] for role in MAPS if role in self.expected})
        small = replace(self, places=places)
        return replace(small, expected={role: small.picked(role, a) for role, a in self.expected.items()})

    def to_bytes(self) -> bytes:
        """The compressed npz, the same bytes for the same values."""
        inputs = {"images": self.images, "valid_sizes": self.valid_sizes}
        arrays = {**inputs, MOVED: np.array(self.moved_share), **self.expected}
        arrays |= {role + PLACES: at for role, at in self.places.items()}
        arrays |= {} if self.masks is None else {MASKS: self.masks}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.int64]]:
    """Flat pixels, in order, of the maps of `shapes` (channels or queries, h, w): SAMPLES values of each frame."""
    random = np.random.default_rng(SEED)
    places = {}
    for role, (channels, height, width) in shapes.items():
        count = min(max(1, SAMPLES // channels), height * width)
        places[role] = np.sort(random.choice(height * width, count, replace=False)).astype(np.int64)
    return places


def reference_from_outputs(
    images: NDArray[np.uint8], valid_sizes: NDArray[np.int32], outputs: Iterable[Mapping[str, Array]]
) -> Reference:
    """A reference from the whole `outputs` of each frame, by role and without batch axis; held one at a time."""
    kept: list[Reference] = []
    for t, whole in enumerate(outputs):
        expected = {role: values[None].astype(np.float32) for role, values in whole.items()}
        masks = packed_masks(expected[shape_role(expected)])
        kept.append(Reference(images[t : t + 1], valid_sizes[t : t + 1], expected, masks=masks).sampled())
    stacked = {role: np.concatenate([one.expected[role] for one in kept]) for role in kept[0].expected}
    bits = [one.masks for one in kept if one.masks is not None]
    return Reference(images, valid_sizes, stacked, kept[0].places, masks=np.concatenate(bits))


def reference_from_bytes(data: bytes, where: str) -> Reference:
    """The reference in `data`, read from `where`. Raises BundleError if it does not hold what it must."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where}: not an npz of plain arrays ({error}); export the bundle again") from None
    needed = NEEDED if "box_logits" in arrays else ROLES
    missing = [name for name in (*INPUTS, MOVED, *needed) if name not in arrays]
    if missing:
        raise BundleError(f"{where}: holds no {', '.join(missing)}; export the bundle again")
    others = (*INPUTS, MOVED, MASKS)
    roles = [name for name in arrays if name not in others and not name.endswith(PLACES)]
    frames = {len(arrays[name]) for name in (*INPUTS, *roles)}
    if len(frames) != 1 or 0 in frames:
        raise BundleError(f"{where}: its arrays have {sorted(frames)} frames; expected one number, 1 or more")
    places = {name.removesuffix(PLACES): at for name, at in arrays.items() if name.endswith(PLACES)}
    expected = {role: arrays[role] for role in roles}
    masks = _masks(arrays, where)
    return Reference(arrays["images"], arrays["valid_sizes"], expected, places, float(arrays[MOVED]), masks)


def _masks(arrays: Mapping[str, Array], where: str) -> NDArray[np.uint8] | None:
    """The bits of the masks if they are there. BundleError if they are not those of these frames and queries."""
    if MASKS not in arrays:
        return None
    masks, logits = arrays[MASKS], arrays["class_logits"]
    last = int(np.max(arrays.get(shape_role(arrays) + PLACES, 0)))
    if masks.dtype != np.uint8 or masks.shape[:2] != logits.shape[:2] or masks.ndim != 3 or masks.shape[2] <= last // 8:
        raise BundleError(
            f"{where}: its masks are {masks.dtype} {list(masks.shape)}, expected uint8 of {len(logits)} frames, "
            f"{logits.shape[1]} queries and more than {last} pixels; export the bundle again"
        )
    return masks
