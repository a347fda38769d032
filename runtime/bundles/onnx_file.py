"""Looks at the bytes of an ONNX file before a native loader does: is it one, and is it complete in itself?

A few lines that walk the protobuf wire format, so that neither the onnx package nor a C++ parser is needed. Only
what can hold a tensor is entered, weights are skipped unread.
"""

from __future__ import annotations

from collections.abc import Iterator

from visrt.runtime.errors import BundleError

__all__ = ["check_onnx"]

# Which fields of which message lead to tensors (onnx.proto).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_MODEL_GRAPH, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 7, 13, 14

_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer; run `git lfs pull`"),
    (b"<", "a web page or XML, probably a failed download"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x80", "a pickle, probably a checkpoint; export it first"),
)


def check_onnx(data: bytes, where: str) -> None:
    """Raises BundleError unless `data`, read from `where`, is one whole ONNX model without external data."""
    if not data:
        raise BundleError(f"{where}: empty, not an ONNX file; export the bundle again")
    for start, what in _IMPOSTORS:
        if data.lstrip().startswith(start):
            raise BundleError(f"{where}: not an ONNX file but {what}")
    try:
        _walk_model(memoryview(data), where)
    except (ValueError, IndexError):
        raise BundleError(f"{where}: not an ONNX file, or cut short; export the bundle again") from None


def _walk_model(data: memoryview, where: str) -> None:
    """Visits every message that can hold a tensor; a stack, as graphs nest as deep as a hostile file likes."""
    if not any(number == _MODEL_GRAPH and isinstance(value, memoryview) for number, value in _fields(data)):
        raise ValueError("a model without a graph")
    stack = [("Model", data)]
    while stack:
        kind, message = stack.pop()
        children = _CHILDREN[kind]
        for number, value in _fields(message):
            if kind == "Tensor" and _is_external(number, value):
                raise BundleError(f"{where}: keeps weights in another file; export it with all weights inside")
            if number in children and isinstance(value, memoryview):
                stack.append((children[number], value))


def _is_external(number: int, value: memoryview | int) -> bool:
    return number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The (field number, value) pairs of one message: nested bytes, or an integer."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _size(wire, data, at)
        if at + size > end:
            raise ValueError("a field that ends after its message")
        if wire == 2:
            yield key >> 3, data[at : at + size]
        at += size


def _size(wire: int, data: memoryview, at: int) -> tuple[int, int]:
    """Length of a field's value and where it starts."""
    if wire == 2:
        return _varint(data, at)
    if wire in (1, 5):
        return (8 if wire == 1 else 4), at
    raise ValueError(f"wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("an endless varint")
