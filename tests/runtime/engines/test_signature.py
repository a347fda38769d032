"""The tensors of an engine are compared with the manifest, in whatever words its backend reports them."""

from __future__ import annotations

from typing import get_args

import pytest
from fakes import graph_spec

from visrt.runtime.bundles.manifest import DType, GraphSpec
from visrt.runtime.engines.signature import EngineTensor, dtype_name, signature_faults

GRAPH: GraphSpec = graph_spec({"x": ("uint8", ("batch", 4))}, {"y": ("float16", ("batch", 2))})
ONNXRUNTIME = {"float16": "tensor(float16)", "float32": "tensor(float)"}
TENSORRT = {"float16": "HALF", "float32": "FLOAT"}


@pytest.mark.parametrize("dtype", get_args(DType))
def test_a_dtype_is_recognised_in_the_words_of_each_backend(dtype: str) -> None:
    assert dtype_name(ONNXRUNTIME.get(dtype, f"tensor({dtype})")) == dtype
    assert dtype_name(TENSORRT.get(dtype, dtype.upper())) == dtype


def faults(x: EngineTensor, y: EngineTensor) -> list[str]:
    return signature_faults(GRAPH, [x], [y])


def test_a_dynamic_axis_may_have_any_symbol_or_none() -> None:
    onnxruntime = faults(
        EngineTensor.reported("x", "tensor(uint8)", ["rows", 4]),
        EngineTensor.reported("y", "tensor(float16)", ["b", 2]),
    )
    tensorrt = faults(EngineTensor.reported("x", "UINT8", [-1, 4]), EngineTensor.reported("y", "HALF", [-1, 2]))
    assert onnxruntime == tensorrt == []


@pytest.mark.parametrize("shape", [[1, 4], [-1, 5], [-1, -1], [-1], [-1, 4, 1]])
def test_another_shape_is_a_fault_that_shows_both(shape: list[int]) -> None:
    [fault] = faults(EngineTensor.reported("x", "UINT8", shape), EngineTensor.reported("y", "HALF", [-1, 2]))
    found = ", ".join("?" if size < 0 else str(size) for size in shape)
    assert fault == f"input 'x': expected uint8 [batch, 4], found uint8 [{found}]"


def test_an_output_in_another_precision_is_a_fault() -> None:
    [fault] = faults(EngineTensor.reported("x", "UINT8", [-1, 4]), EngineTensor.reported("y", "BF16", [-1, 2]))
    assert fault == "output 'y': expected float16 [batch, 2], found bf16 [?, 2]"
