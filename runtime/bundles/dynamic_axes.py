"""The dynamic axes of a bundle's graphs: the sizes engines are built for, and the few they are run at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from visrt.runtime.bundles.manifest import GraphSpec, Manifest
from visrt.runtime.errors import BundleError

__all__ = [
    "BATCH",
    "CLIPS",
    "CLIPS_SETTING",
    "FRAMES",
    "MASKS",
    "MASKS_USUAL",
    "PADDED",
    "STREAMS",
    "combinations",
    "largest_sizes",
    "one_frame",
    "profile_of",
    "run_sizes",
]

BATCH = "batch"
"""Frames of one call of the frame graph."""

FRAMES = "frames"
"""Frames of one clip, in families that look at clips."""

STREAMS = "streams"
"""Streams of one call, in families that carry state from frame to frame."""

MASKS = "masks"
"""Masks of one call of the masks graph, of one frame of each stream."""

CLIPS = "clips"
"""Clips that there is room for in the memory of one stream."""

PADDED = frozenset({MASKS})
"""Axes on which a graph may be run at a larger size: what is too much changes nothing and is dropped."""

MASKS_USUAL = 10
"""Masks of a frame in most videos."""

CLIPS_SETTING = "memory_clips"
"""The association setting that says how many clips are remembered at the most."""


def largest_sizes(manifest: Manifest, batch: int) -> dict[str, int]:
    """The most of each dynamic axis when frames come `batch` at once, of one stream or of as many: a frame has no more
    masks than queries. Room for clips is doubled when it is full, so it ends at a power of two."""
    outputs = [graph.outputs for graph in manifest.graphs.values()]
    queries = next((given["class_logits"].shape[-2] for given in outputs if "class_logits" in given), None)
    if not isinstance(queries, int):
        raise BundleError(f"bundle {manifest.name!r}: the number of queries is {queries!r}; expected a fixed number")
    return {BATCH: batch, FRAMES: batch, STREAMS: batch, MASKS: queries, **_room_for_clips(manifest)}


def one_frame(manifest: Manifest, masks: int) -> dict[str, int]:
    """The size of each dynamic axis where one frame of one stream, whose memory is full, has so many `masks`."""
    return {BATCH: 1, FRAMES: 1, STREAMS: 1, MASKS: masks, **_room_for_clips(manifest)}


def _room_for_clips(manifest: Manifest) -> dict[str, int]:
    clips = manifest.association.get(CLIPS_SETTING)
    return {CLIPS: 1 << (clips - 1).bit_length()} if isinstance(clips, int) else {}


def profile_of(manifest: Manifest, name: str, batch: int) -> dict[str, tuple[int, int, int]]:
    """Smallest, usual and largest size of each dynamic axis of graph `name`: what its engine is built for."""
    largest = largest_sizes(manifest, batch)
    usual = largest | {MASKS: min(MASKS_USUAL, largest[MASKS])}
    symbols = _symbols(manifest.graphs[name])
    if unknown := symbols - largest.keys():
        raise BundleError(
            f"bundle {manifest.name!r}: graph {name!r} has dynamic axes {', '.join(sorted(unknown))}; TensorRT engines "
            f"are built for {', '.join(largest)}"
        )
    return {symbol: (1, usual[symbol], largest[symbol]) for symbol in sorted(symbols)}


def run_sizes(symbol: str, largest: int) -> tuple[int, ...]:
    """The sizes an axis is run at, rising.

    A padded frame or stream would cost a whole one, and a clip sees all of its frames, so these are run as they are. A
    padded mask costs next to nothing, and each size costs an execution context and a CUDA graph: masks are run in
    powers of two and all. Room for clips comes in powers of two.
    """
    if symbol in (BATCH, FRAMES, STREAMS):
        return tuple(range(1, largest + 1))
    powers = (2**exponent for exponent in range(largest.bit_length()))
    return (*(size for size in powers if size < largest), largest)


def combinations(axes: Mapping[str, Sequence[int]], clip_frames: int) -> list[dict[str, int]]:
    """The sizes of dynamic axes that occur together, of those that each of `axes` is run at, where a stream gives up to
    `clip_frames` frames a call."""
    most = {FRAMES: clip_frames, **({STREAMS: max(1, axes[STREAMS][-1] // clip_frames)} if STREAMS in axes else {})}
    sizes = [[size for size in known if size <= most.get(axis, size)] for axis, known in axes.items()]
    return [dict(zip(axes, one, strict=True)) for one in product(*sizes)]


def _symbols(graph: GraphSpec) -> set[str]:
    specs = [*graph.inputs.values(), *graph.outputs.values()]
    return {axis for spec in specs for axis in spec.shape if isinstance(axis, str)}
