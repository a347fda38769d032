"""Reading pickles that strangers wrote: arrays come out, nothing in the file is ever executed.

torch files go through `torch.load(weights_only=True)`. The plain pickles of numpy arrays in which COCO-trained
Mask2Former weights are published are read by an unpickler that knows numpy's few pickle names only, and answers them
with stand-ins of its own, so that not even numpy's unpickling code runs on bytes of the file.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from visrt.runtime.errors import CheckpointError

__all__ = ["read_pickle"]

ZIP_START = b"PK\x03\x04"
LEGACY_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLE_START = b"\x80"
DTYPES = frozenset(f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes)


def read_pickle(path: Path) -> Any:
    """The contents of the torch file or plain pickle of numpy arrays at `path`, arrays as tensors on the CPU."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_TORCH_START))
        if start.startswith(ZIP_START) or start == LEGACY_TORCH_START:
            return _read_torch(path)
        if start.startswith(PICKLE_START):
            file.seek(0)
            return _read_arrays(file, path)
    raise CheckpointError(
        f"{path}: not a checkpoint (it starts with {start[:16]!r}); expected a .pth, .pkl or .safetensors file; a "
        "download that failed or a git-lfs pointer looks like this"
    )


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, _name_in(str(error))) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from None


def _read_arrays(file: BinaryIO, path: Path) -> Any:
    try:
        return _tensors(ArrayUnpickler(file, encoding="latin1").load())
    except RefusedNameError as error:
        raise _refused(path, f"the name {error}") from None
    except Exception as error:
        # A hostile or cut pickle can raise nearly anything; all of it means the same to the reader.
        raise _damaged(path, error) from None


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: refused, because this pickle asks for {what}, and a checkpoint may hold arrays only; if you trust "
        "its origin, save its weights alone where it came from: torch.save({'model': model.state_dict()}, path)"
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    lines = str(error).strip().splitlines()
    return CheckpointError(
        f"{path}: damaged or no checkpoint ({type(error).__name__}: {lines[0][:120] if lines else 'no message'}); "
        "copy or download it again"
    )


def _name_in(message: str) -> str:
    """The forbidden name in torch's long message."""
    found = re.search(r"GLOBAL (\S+)", message)
    return f"the name {found.group(1)}" if found else "something other than tensors"


class RefusedNameError(Exception):
    """A pickle named something that is not part of a numpy array."""


class PickledDtype:
    """Stands in for `numpy.dtype`: plain numbers only, no objects, no structures."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in DTYPES:
            raise RefusedNameError(f"numpy.dtype({name!r})")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Only the byte order of numpy's state matters for plain numbers."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """Stands in for `numpy.ndarray`: a shape, a dtype and raw bytes."""

    array: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Format version, shape, dtype, whether in Fortran order, bytes."""
        _, shape, kind, fortran, raw = state
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        flat = np.frombuffer(raw, dtype=kind.dtype, count=math.prod(shape))
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> PickledArray:
    return PickledArray()


def _frombuffer(raw: bytes, kind: PickledDtype, shape: tuple[int, ...], order: str, axes: Any = None) -> PickledArray:
    """Arrays as protocol 5 writes them: bytes, dtype, shape, "C" or "F", and for order "K" the order of the axes."""
    if order not in ("C", "F") or axes is not None:
        raise RefusedNameError(f"an array in memory order {order!r}")
    array = PickledArray()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise RefusedNameError(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows these names and no other."""

    KNOWN: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): PickledDtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise RefusedNameError(f"{module}.{name}") from None


def _tensors(value: Any) -> Any:
    """`value` with every array in its dictionaries as a tensor."""
    if isinstance(value, PickledArray):
        return torch.from_numpy(np.ascontiguousarray(value.array, dtype=value.array.dtype.newbyteorder("=")).copy())
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return value
