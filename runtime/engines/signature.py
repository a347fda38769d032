"""Whether the inputs and outputs of an engine are those of its manifest: one check for every backend.

A backend lists its tensors as `EngineTensor`s, and puts the differences into its own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from visrt.runtime.bundles.manifest import GraphSpec, TensorSpec

__all__ = ["Axis", "EngineTensor", "dtype_name", "same_axis", "signature_faults"]

Axis = int | str | None
"""A size; or a dynamic axis by its symbol, None where the backend keeps no symbols."""

_OTHER_NAMES = {"float": "float32", "half": "float16"}


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine. dtype: numpy's name of it."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    @staticmethod
    def reported(name: str, dtype: str, shape: Iterable[Axis]) -> EngineTensor:
        """A tensor as a backend reports it: dtype in its own words, and a negative size for a dynamic axis."""
        axes = (None if isinstance(axis, int) and axis < 0 else axis for axis in shape)
        return EngineTensor(name, dtype_name(dtype), tuple(axes))


def dtype_name(backend_name: str) -> str:
    """numpy's name of a dtype that ONNX Runtime calls "tensor(float)", and TensorRT "FLOAT"."""
    name = backend_name.removeprefix("tensor(").removesuffix(")").lower()
    return _OTHER_NAMES.get(name, name)


def same_axis(expected: int | str, found: Axis) -> bool:
    """Equal sizes, or dynamic on both sides, whatever the engine calls it."""
    return expected == found if isinstance(expected, int) else not isinstance(found, int)


def signature_faults(
    graph: GraphSpec,
    inputs: Iterable[EngineTensor],
    outputs: Iterable[EngineTensor],
    axis_fits: Callable[[int | str, Axis], bool] = same_axis,
) -> list[str]:
    """Differences between the tensors of an engine and those of `graph` in name, dtype and shape; [] if none."""
    return [
        *_faults("input", graph.inputs, inputs, axis_fits),
        *_faults("output", graph.outputs, outputs, axis_fits),
    ]


def _faults(
    side: str,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[EngineTensor],
    axis_fits: Callable[[int | str, Axis], bool],
) -> list[str]:
    expected = {spec.name: spec for spec in specs.values()}
    found = {tensor.name: tensor for tensor in tensors}
    faults = [f"{side} {name!r} is not in the graph, which has {', '.join(found)}" for name in expected.keys() - found]
    faults += [f"{side} {name!r} is in the graph but not in the manifest" for name in found.keys() - expected]
    for name in expected.keys() & found:
        spec, tensor = expected[name], found[name]
        same_rank = len(spec.shape) == len(tensor.shape)
        if spec.dtype != tensor.dtype or not same_rank or not all(map(axis_fits, spec.shape, tensor.shape)):
            faults.append(f"{side} {name!r}: expected {_described(spec)}, found {_described(tensor)}")
    return sorted(faults)


def _described(tensor: TensorSpec | EngineTensor) -> str:
    """ "float32 [batch, 3, ?]", with ? for a dynamic axis without a symbol."""
    return f"{tensor.dtype} [{', '.join('?' if axis is None else str(axis) for axis in tensor.shape)}]"
