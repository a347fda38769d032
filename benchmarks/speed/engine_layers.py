"""The layers of a built engine and their types, from TensorRT's engine inspector. Needs the engine's GPU."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from visrt.runtime.engines.trt.library import TensorRt
from visrt.runtime.engines.trt.log import log_of
from visrt.runtime.errors import EngineError

__all__ = ["counted_layers", "inspected_layers"]

TYPES = {
    "fp32": r"FP32|\bFloat\b",
    "fp16": r"FP16|\bHalf\b",
    "bf16": r"BF16|BFloat16",
    "int8": r"\bI(NT|nt)8\b",
    "int32": r"\bI(NT|nt)32\b",
    "int64": r"\bI(NT|nt)64\b",
    "bool": r"\bB(OOL|ool)\b",
    "uint8": r"\bU(INT|Int)8\b",
}
"""How the inspector of TensorRT 10 to 11 writes the types in a tensor's format."""


def inspected_layers(library: TensorRt, engine: bytes) -> dict[str, int]:
    """Layers of `engine` by "kind type". A CUDA context must be current.

    Raises EngineError if the engine cannot be read here or was built without details.
    """
    trt = library.module
    opened = trt.Runtime(log_of(library).logger).deserialize_cuda_engine(engine)
    if opened is None:
        raise EngineError(f"{library.flavour} {library.version} refuses the engine on this machine")
    return counted_layers(opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def counted_layers(inspected: str) -> dict[str, int]:
    """Layers by kind and type of their first output in the inspector's json; EngineError if it has no types."""
    try:
        layers: list[Any] = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        raise EngineError("the engine inspector gave no json with layers; precision is known from the build") from None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise EngineError(
            "the engine keeps only the names of its layers, not their types; precision is known from the build alone"
        )
    return dict(sorted(Counter(f"{layer.get('LayerType', 'layer')} {_type(layer)}" for layer in layers).items()))


def _type(layer: dict[str, Any]) -> str:
    """The type of the first output, "unknown" if the inspector does not name it."""
    tensors = layer.get("Outputs") or layer.get("Inputs") or [{}]
    formats = " ".join(str(tensors[0].get(key, "")) for key in ("Format/Datatype", "Format", "Datatype"))
    return next((name for name, pattern in TYPES.items() if re.search(pattern, formats)), "unknown")
