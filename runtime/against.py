"""A float32 bundle, run by ONNX Runtime on the CPU, as what another bundle of the same network must compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.asking import asker_of
from visrt.runtime.backends import open_engines
from visrt.runtime.bundle import Bundle
from visrt.runtime.engine_options import EngineOptions
from visrt.runtime.errors import UsageError
from visrt.runtime.judge import precision_of
from visrt.runtime.manifest import Manifest
from visrt.runtime.reference import Reference, reference_from_outputs
from visrt.runtime.verify import closing, stored_reference

__all__ = ["reference_against"]


def reference_against(
    expected: Bundle,
    judged: Manifest,
    images: NDArray[np.uint8],
    valid_sizes: NDArray[np.int32],
    threads: int | None = None,
) -> Reference:
    """What `expected` says of `images` [T, H, W, 3] as the network of `judged` sees them.

    Raises UsageError unless `expected` is in float32 and the same network at the same size. How many queries torch
    itself moves on these frames is not known without torch; taken for it is what was found at export.
    """
    _refuse_another(expected.manifest, judged)
    with closing(open_engines(expected, "cpu", EngineOptions(threads))) as engines:
        ask = asker_of(expected)
        outputs = (ask(engines, images[t : t + 1], valid_sizes[t : t + 1]) for t in range(len(images)))
        frames = ({role: array[0] for role, array in one.items()} for one in outputs)
        reference = reference_from_outputs(images, valid_sizes, frames)
    return replace(reference, moved_share=stored_reference(expected).moved_share)


def _refuse_another(expected: Manifest, judged: Manifest) -> None:
    if (precision := precision_of(expected)) != "fp32":
        raise UsageError(f"--against {expected.name!r}: its precision is {precision}; expected an fp32 bundle")
    pairs = {
        "checkpoint": (expected.producer.checkpoint_sha256[:12], judged.producer.checkpoint_sha256[:12]),
        "input": (_size(expected), _size(judged)),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UsageError(
                f"--against {expected.name!r}: its {what} is {theirs}, that of {judged.name!r} is {ours}; expected "
                "the same network, exported in fp32 at the same size"
            )


def _size(manifest: Manifest) -> str:
    network, images = (manifest.input.height, manifest.input.width), manifest.input.image_size
    return "{}x{}".format(*network) + ("" if images == network else " of images of {}x{}".format(*images))
