"""An engine that remembers its answers, so that association settings can be compared without running the network again.

What the network says of a frame does not depend on how objects are associated. Remembering costs memory: about 1 MB a
frame at 192x320 with 128 channels, as mask features are kept in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from visrt.runtime.engine import Array, Engine, HostTensor, Tensor

__all__ = ["RememberingEngine"]


class RememberingEngine:
    """Answers as `engine` does; the second time from memory, mask features rounded to half precision both times."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[bytes, dict[str, Array]] = {}

    @property
    def provider(self) -> str:
        return self._engine.provider

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        key = _key(feeds)
        if key not in self._known:
            answer = self._engine(feeds)
            self._known[key] = {role: _small(role, tensor.numpy()) for role, tensor in answer.items()}
        return {role: HostTensor(array.astype(np.float32)) for role, array in self._known[key].items()}

    def close(self) -> None:
        self._known.clear()
        self._engine.close()


def _small(role: str, array: Array) -> Array:
    return array.astype(np.float16) if role == "mask_features" else array.copy()


def _key(feeds: Mapping[str, Array | Tensor]) -> bytes:
    digest = blake2b(digest_size=16)
    for role in sorted(feeds):
        value = feeds[role]
        array = value if isinstance(value, np.ndarray) else value.numpy()
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
