from __future__ import annotations

from collections.abc import Mapping

from visrt.runtime.arrays import Array
from visrt.runtime.bundle import Bundle
from visrt.runtime.bundle_states import initial_states
from visrt.runtime.engine import Engine
from visrt.runtime.engine_outputs import FullOutputs, Outputs
from visrt.runtime.registry import method_of

__all__ = ["asker_of"]


def asker_of(bundle: Bundle) -> FullOutputs:
    """How all outputs of a bundle's engines are had, by its tracking method. Used by parity checks.

    Raises BundleError where the graphs do not fit the family.
    """
    method, initial = method_of(bundle.manifest), initial_states(bundle)

    def full_outputs(engines: Mapping[str, Engine], images: Array, valid_sizes: Array) -> Outputs:
        return method.full_outputs(engines, bundle.manifest, initial, images, valid_sizes)

    return full_outputs
