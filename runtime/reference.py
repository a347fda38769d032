"""What torch computed on a few frames when a bundle was exported, so that parity is checked later without torch.

Kept in the bundle as `reference.npz`: the frames, and per role the expected values. Maps are kept at a sample of their
pixels, the same in every frame and channel.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.engine import Array
from visrt.runtime.errors import BundleError

__all__ = ["MAPS", "ROLES", "Reference", "reference_from_bytes"]

ROLES = ("class_logits", "embeddings", "mask_embeddings", "mask_features", "mask_logits")
"""What is compared, in the order it is computed. `mask_logits` are those of all queries of a frame."""

MAPS = ("mask_features", "mask_logits")

SAMPLES = 8192
"""Values kept of a map [channels or queries, h, w] of one frame, about."""

SEED = 20
INPUTS = ("images", "valid_sizes")
PLACES = "_at"
MOVED = "moved_share"


@dataclass(frozen=True)
class Reference:
    """Frames and what torch made of them.

    images uint8 RGB [T, H, W, 3]; valid_sizes int32 [T, 2]. expected, by role: float32 [T, ...], whole, or a map
    [T, channels or queries, N] at the N pixels in `places`, flat indices into [h, w]. moved_share: share of the queries
    that torch itself moved on these frames under noise as small as an engine's rounding.
    """

    images: NDArray[np.uint8]
    valid_sizes: NDArray[np.int32]
    expected: Mapping[str, Array]
    places: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    moved_share: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    def picked(self, role: str, values: Array) -> Array:
        """Of `values` [T, ...] of `role` what `expected` holds of it."""
        if role not in self.places:
            return values
        flat: Array = values.reshape(*values.shape[:2], -1)[:, :, self.places[role]]
        return flat

    def sampled(self) -> Reference:
        """This reference with the maps cut down to a seeded sample of pixels."""
        random = np.random.default_rng(SEED)
        places = {role: _sample(self.expected[role], random) for role in MAPS}
        small = replace(self, places=places)
        return replace(small, expected={role: small.picked(role, a) for role, a in self.expected.items()})

    def to_bytes(self) -> bytes:
        """The compressed npz, the same bytes for the same values."""
        inputs = {"images": self.images, "valid_sizes": self.valid_sizes}
        arrays = {**inputs, MOVED: np.array(self.moved_share), **self.expected}
        arrays |= {role + PLACES: at for role, at in self.places.items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()


def _sample(values: Array, random: np.random.Generator) -> NDArray[np.int64]:
    """Flat pixels of the maps `values` [T, channels or queries, h, w], in order; SAMPLES values of each frame."""
    _, channels, height, width = values.shape
    count = min(max(1, SAMPLES // channels), height * width)
    return np.sort(random.choice(height * width, count, replace=False)).astype(np.int64)


def reference_from_bytes(data: bytes, where: str) -> Reference:
    """The reference in `data`, read from `where`. Raises BundleError if it does not hold what it must."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where}: not an npz of plain arrays ({error}); export the bundle again") from None
    missing = [name for name in (*INPUTS, MOVED, *ROLES) if name not in arrays]
    if missing:
        raise BundleError(f"{where}: holds no {', '.join(missing)}; export the bundle again")
    frames = {len(arrays[name]) for name in (*INPUTS, *ROLES)}
    if len(frames) != 1 or 0 in frames:
        raise BundleError(f"{where}: its arrays have {sorted(frames)} frames; expected one number, 1 or more")
    places = {name.removesuffix(PLACES): at for name, at in arrays.items() if name.endswith(PLACES)}
    expected = {role: arrays[role] for role in ROLES}
    return Reference(arrays["images"], arrays["valid_sizes"], expected, places, float(arrays[MOVED]))
