"""The state tensors of a bundle: what a stream starts from, read and checked."""

from __future__ import annotations

import io

import numpy as np

from visrt.runtime.bundle import Bundle
from visrt.runtime.clip_family import Tensors
from visrt.runtime.engine import Array
from visrt.runtime.errors import BundleError
from visrt.runtime.family import Floats
from visrt.runtime.manifest import StateSpec

__all__ = ["initial_states", "state_bytes"]


def state_bytes(values: Floats) -> bytes:
    """`values` as a file of a bundle: npy."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def initial_states(bundle: Bundle) -> Tensors:
    """The initial value of each state tensor by name; zeros where the bundle holds none.

    Raises BundleError for a file that is not what the manifest says, or numbers that are none.
    """
    return {name: _initial(bundle, name, spec) for name, spec in bundle.manifest.states.items()}


def _initial(bundle: Bundle, name: str, spec: StateSpec) -> Array:
    if spec.initial is None:
        return np.zeros(spec.shape, dtype=spec.dtype)
    where = f"{bundle.folder / spec.initial.file}"
    try:
        values: Array = np.load(io.BytesIO(bundle.read(spec.initial)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{where}: not a plain npy array ({error}); export the bundle again") from None
    if values.dtype != spec.dtype or values.shape != spec.shape:
        raise BundleError(
            f"{where}: state {name!r} is {values.dtype} {list(values.shape)}, the manifest says {spec.dtype} "
            f"{list(spec.shape)}; export the bundle again"
        )
    if not np.isfinite(values).all():
        raise BundleError(f"{where}: state {name!r} holds NaN or infinity; export the bundle again")
    return values
