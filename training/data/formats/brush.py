"""Label Studio's runs of brush masks: a stream of bits with the four channels of each pixel, row by row.

32 bits say how many values there are, 5 their bits less one, four times 4 the sizes of run lengths less one. Blocks
follow: one bit whether a value is repeated, 2 which size the length has, the length less one, the value or the values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import DataError
from visrt.runtime.masks import PIXELS_MAX
from visrt.training.data.json_faults import short

__all__ = ["brush_of_mask", "mask_of_brush"]

CHANNELS = 4
OPAQUE = 255
WORD_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)


def brush_of_mask(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask [H, W]."""
    flat = mask.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    lengths = np.diff(bounds) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{WORD_BITS - 1:05b}", *(f"{size - 1:04b}" for size in LENGTH_BITS)]
    for length, is_inside in zip(lengths.tolist(), flat[bounds[:-1]].tolist(), strict=True):
        value = f"{OPAQUE if is_inside else 0:08b}"
        longest = 2 ** LENGTH_BITS[-1]
        for part in [longest] * (length // longest) + ([length % longest] if length % longest else []):
            k = next(k for k, size in enumerate(LENGTH_BITS) if part <= 2**size)
            bits.append(f"1{k:02b}{part - 1:0{LENGTH_BITS[k]}b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


def mask_of_brush(runs: object, where: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [H, W] of `size` (height, width) of such bytes. Raises DataError with `where`."""
    pixels = size[0] * size[1]
    if not isinstance(runs, list) or not all(type(one) is int and 0 <= one < 256 for one in runs) or len(runs) < 8:
        raise DataError(f"{where}: expected a list of bytes, Label Studio's runs; found {short(runs)}")
    if pixels > PIXELS_MAX:
        raise DataError(f"{where}: {size[0]} x {size[1]} is beyond the limit of {PIXELS_MAX} pixels")
    bits = (np.unpackbits(np.array(runs, np.uint8)) + ord("0")).tobytes().decode()
    count, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    sizes = [int(bits[at : at + 4], 2) + 1 for at in range(37, 53, 4)]
    if count != pixels * CHANNELS:
        raise DataError(f"{where}: runs cover {count // CHANNELS} pixels; expected {size[0]} x {size[1]}")
    values = np.zeros(count, np.bool_)
    at, filled = 53, 0
    while filled < count:
        repeated, length_bits = bits[at : at + 1], sizes[int(bits[at + 1 : at + 3] or "0", 2)]
        start = at + 3 + length_bits
        length = int(bits[at + 3 : start] or "0", 2) + 1
        at = start + word * (1 if repeated == "1" else length)
        if at > len(bits) or filled + length > count:
            raise DataError(f"{where}: the runs are cut short or of another size")
        if repeated == "1":
            values[filled : filled + length] = "1" in bits[start:at]
        else:
            values[filled : filled + length] = ["1" in bits[k : k + word] for k in range(start, at, word)]
        filled += length
    inside: NDArray[np.bool_] = values.reshape(size[0], size[1], CHANNELS)[..., CHANNELS - 1]
    return inside
