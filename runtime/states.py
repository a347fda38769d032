"""What one stream carries from call to call: state tensors in the memory of the engines that read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array, Buffer, Tensor, Tensors
from visrt.runtime.bundles.manifest import Manifest, StateSpec, TensorSpec
from visrt.runtime.errors import UsageError

__all__ = ["NewBuffer", "StreamStates"]

NewBuffer = Callable[[tuple[int, ...], "np.dtype[Any]"], Buffer]


class StreamStates:
    """The state of one stream in one network. Memory is taken at the first use and given back by `close`."""

    def __init__(self, manifest: Manifest, initial: Tensors, buffer_for: Callable[[str], NewBuffer]) -> None:
        """initial: values before the first frame. buffer_for: makes a buffer where the graph of that name runs."""
        self._manifest, self._initial, self._buffer_for = manifest, initial, buffer_for
        self._buffers: dict[str, Buffer] = {}
        self._readers = {name: graph for graph in manifest.graphs for name in manifest.read_by(graph)}

    @property
    def bytes(self) -> int:
        """Of the engine's memory."""
        return sum(buffer.bytes for buffer in self._buffers.values())

    def tensor(self, name: str, entries: int | None = None) -> Tensor:
        """State `name`, for a call; of a ring all its `entries`, as many as it now has or more."""
        spec = self._manifest.states[name]
        return (self._ring(name, spec, entries) if spec.ring else self._plain(name)).tensor

    def renew(self, outputs: Mapping[str, Array | Tensor], entry: int | None = None) -> None:
        """Takes the next values of all states that are among `outputs`, by role; of rings as entry number `entry`,
        None leaves them as they are."""
        for name in self._readers:
            spec = self._manifest.states[name]
            if spec.output not in outputs:
                continue
            if not spec.ring:
                self._plain(name).write(outputs[spec.output])
            elif entry is not None:
                self._ring(name, spec, None).write_entries(entry, outputs[spec.output])

    def restart(self) -> None:
        """As before the first frame; what the frame graph reads was set when the frame was submitted."""
        self.reset(self._manifest.graphs.keys() - {"frame"})

    def reset(self, graphs: Collection[str]) -> None:
        """The states that `graphs` read as before the first frame."""
        for name in [name for name in self._buffers if self._readers[name] in graphs]:
            if self._manifest.states[name].ring:
                self._buffers.pop(name).close()
            else:
                self._buffers[name].write(self._initial[name])

    def save(self) -> dict[str, Array]:
        """Copies on the host, by name; a ring that holds nothing yet is left out."""
        names = [name for name in self._readers if not self._manifest.states[name].ring]
        rings = {name: buffer.numpy() for name, buffer in self._buffers.items() if self._manifest.states[name].ring}
        return {name: self._plain(name).numpy() for name in names} | rings

    def restore(self, values: Mapping[str, Array]) -> None:
        """Takes saved `values`. Raises UsageError where they do not fit, and then changes nothing."""
        for name, array in values.items():
            self._refuse_other(name, array)
        if missing := {name for name in self._readers if not self._manifest.states[name].ring} - values.keys():
            raise UsageError(f"the saved stream lacks state {', '.join(sorted(missing))}; restore it whole")
        self.reset(self._manifest.graphs)
        for name, array in values.items():
            spec = self._manifest.states[name]
            buffer = self._ring(name, spec, array.shape[-2]) if spec.ring else self._plain(name)
            buffer.write(array)

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()

    def _plain(self, name: str) -> Buffer:
        if name not in self._buffers:
            spec = self._manifest.states[name]
            self._buffers[name] = self._new(name, spec.shape)
            self._buffers[name].write(self._initial[name])
        return self._buffers[name]

    def _ring(self, name: str, spec: StateSpec, entries: int | None) -> Buffer:
        """With room for `entries`: it grows, and keeps what it holds; None for as many as it has."""
        fixed = self._input(name).shape[-2]
        entries = fixed if isinstance(fixed, int) else entries
        before = self._buffers.get(name)
        held = None if before is None else before.tensor.shape[-2]
        if before is not None and entries in (None, held):
            return before
        assert entries is not None, f"ring {name!r} is written before it was read"
        assert entries > (held or 0), f"ring {name!r} holds {held} entries, not {entries}"
        grown = self._new(name, (*spec.shape[:-1], entries, spec.shape[-1]))
        if before is not None:
            grown.write_entries(0, before.tensor)
            before.close()
        self._buffers[name] = grown
        return grown

    def _new(self, name: str, shape: tuple[int, ...]) -> Buffer:
        return self._buffer_for(self._readers[name])(shape, np.dtype(self._manifest.states[name].dtype))

    def _input(self, name: str) -> TensorSpec:
        return self._manifest.graphs[self._readers[name]].inputs[self._manifest.states[name].input]

    def _refuse_other(self, name: str, values: Array) -> None:
        known = ", ".join(self._readers) or "none"
        if name not in self._readers:
            raise UsageError(f"the saved stream holds state {name!r}, this network has {known}; use its own bundle")
        spec = self._manifest.states[name]
        shape = (*values.shape[:-2], values.shape[-1]) if spec.ring and values.ndim == 3 else values.shape
        if shape != spec.shape or values.dtype != spec.dtype or not np.isfinite(values).all():
            raise UsageError(
                f"saved state {name!r} is {values.dtype} {list(values.shape)}; expected finite {spec.dtype} "
                f"{list(spec.shape)}{' a ring entry' if spec.ring else ''}; use the bundle that it was saved with"
            )
