"""Outputs of a network, kept in memory or on disk, so that tracking runs many times and the network once.

A call is known by its graph and all it is fed. Fed the same again, its outputs are those that were kept; what was never
fed before runs, and is kept too. So tracking gives what it gives with the network itself, even where it decides what
the network sees next, as with InsPro's key frames after a drop of the scores. The masks graph always runs, as tracking
decides of which objects masks are made. Only mask features are rounded to half precision; all else stays exact to the
last bit. A frame takes about 1 MB at 192x320 with 128 channels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array, Feed, HostTensor, Joined, Tensor
from visrt.runtime.bundles.manifest import GraphSpec, Manifest
from visrt.runtime.engines.backends import OpenEngines, SizedEngines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.errors import DataError

__all__ = ["RecordedEngine", "recorded", "recorded_sizes"]

MASKS, MASK_FEATURES = "masks", "mask_features"

Feeds = Mapping[str, Feed]
Outputs = dict[str, Tensor]


def recorded(manifest: Manifest, engines: Mapping[str, Engine], folder: Path | None = None) -> dict[str, Engine]:
    """The engines of a bundle, which keep what they give: in `folder`, which may serve several bundles, or in memory.

    They own `engines` and are called from one thread. What stays on the device for other graphs than the masks, as
    InsPro's feature pyramid, is larger than all else and not kept: it is computed again where a call of them is new. A
    graph that does nothing but read a ring, as GenVIS's memory, always runs: it takes less time than to look it up.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    of_masks = set(manifest.graphs[MASKS].inputs) if MASKS in manifest.graphs else set()
    taken = {role for name, spec in manifest.graphs.items() if name != MASKS for role in spec.inputs}
    found = dict(engines)
    for name in engines.keys() - {MASKS}:
        spec, on_device = manifest.graphs[name], manifest.device_roles(name)
        carried = {state.output for state in manifest.renewed_by(name).values()}
        kept = {role for role in spec.outputs if role in of_masks | carried or role not in on_device & taken}
        if not kept and any(state.ring for state in manifest.read_by(name).values()):
            continue
        rounded = kept & on_device & {MASK_FEATURES}
        found[name] = RecordedEngine(engines[name], name, spec, kept, rounded, folder)
    return found


def recorded_sizes(sizes: Sequence[SizedEngines], folder: Path | None = None) -> list[SizedEngines]:
    """The same for a bundle of several sizes. Engines that are opened late are opened once for all sessions."""
    return [one._replace(engines=_recorded_late(one.manifest, one.engines, folder)) for one in sizes]


def _recorded_late(
    manifest: Manifest, engines: Mapping[str, Engine] | OpenEngines, folder: Path | None
) -> Mapping[str, Engine] | OpenEngines:
    if isinstance(engines, Mapping):
        return recorded(manifest, engines, folder)
    return cache(lambda: recorded(manifest, engines(), folder))


class RecordedEngine(HostEngine):
    """Runs `engine` once per distinct input, and gives the same outputs then and later.

    kept: the outputs that are kept; the others are computed again where they are needed. rounded: to half precision,
    where they are within its range.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        spec: GraphSpec,
        kept: Collection[str],
        rounded: Collection[str],
        folder: Path | None,
    ) -> None:
        self._engine, self._name, self._spec, self._folder = engine, name, spec, folder
        self._kept, self._rounded = kept, rounded
        self._memory: dict[str, dict[str, Array]] = {}

    @property
    def provider(self) -> str:
        return self._engine.provider

    def __call__(self, feeds: Mapping[str, Feed]) -> Outputs:
        key = self._key(feeds)
        run = cache(lambda: self._engine({role: _computed(value) for role, value in feeds.items()}))
        values = self._known(key)
        if values is None:
            values = {
                role: self._as_kept(role, run()[role].numpy()) for role in self._spec.outputs if role in self._kept
            }
            self._keep(key, values)
        return {role: self._output(role, key, values, run) for role in self._spec.outputs}

    def close(self) -> None:
        self._memory.clear()
        self._engine.close()

    def _output(self, role: str, key: str, values: Mapping[str, Array], run: Callable[[], Outputs]) -> Tensor:
        if role in values:
            return HostTensor(values[role].astype(self._spec.outputs[role].dtype))
        return UnkeptTensor(f"{key} {role}", lambda: run()[role])

    def _key(self, feeds: Feeds) -> str:
        """A hash of the graph, its provider, and the names, shapes, types and values of `feeds`."""
        files = [self._spec.file, *([self._spec.weights] if self._spec.weights else [])]
        digest = blake2b(" ".join([self.provider, *(file.sha256 for file in files)]).encode(), digest_size=16)
        for role in sorted(feeds):
            value = feeds[role]
            if (key := _key_of(value)) is not None:
                digest.update(f"{role} {key}".encode())
                continue
            array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())
            digest.update(f"{role} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def _as_kept(self, role: str, values: Array) -> Array:
        if role not in self._rounded:
            return values.copy()
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        return half if np.array_equal(np.isfinite(half), np.isfinite(values)) else values.copy()

    def _known(self, key: str) -> dict[str, Array] | None:
        if self._folder is None:
            return self._memory.get(key)
        path = self._path(self._folder, key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {role: arrays[role] for role in self._kept}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a call of a recording ({error}); delete it, and it is made again") from None

    def _keep(self, key: str, values: dict[str, Array]) -> None:
        if self._folder is None:
            self._memory[key] = values
            return
        path = self._path(self._folder, key)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **values)
        temporary.replace(path)

    def _path(self, folder: Path, key: str) -> Path:
        return folder / f"{self._name}-{key}.npz"


@dataclass(frozen=True)
class UnkeptTensor:
    """An output that is known by the call that gives it, `key`; `run` gives its values where they are needed."""

    key: str
    run: Callable[[], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.run().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.run().dtype

    @property
    def device(self) -> str:
        return self.run().device

    def row(self, index: int) -> UnkeptTensor:
        return UnkeptTensor(f"{self.key} {index}", lambda: self.run().row(index))

    def numpy(self) -> Array:
        return self.run().numpy()


def _key_of(value: Feed) -> str | None:
    """The key of an output that was not kept, or of several that are joined."""
    rows = value.rows if isinstance(value, Joined) else (value,)
    keys = [row.key for row in rows if isinstance(row, UnkeptTensor)]
    return " ".join(keys) if len(keys) == len(rows) else None


def _computed(value: Feed) -> Feed:
    if isinstance(value, Joined):
        return Joined(tuple(_computed_row(row) for row in value.rows), value.lead)
    return value if isinstance(value, np.ndarray) else _computed_row(value)


def _computed_row(row: Tensor) -> Tensor:
    return row.run() if isinstance(row, UnkeptTensor) else row
