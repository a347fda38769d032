"""The fakes have the names and parameters of the real libraries, as far as these can be imported or were recorded.

TensorRT-RTX's bindings import without a GPU, and their docstrings tell every signature. cuda-bindings does too.
pycuda needs a driver; its signatures were read from pycuda 2026.1, compiled (of the copy in two dimensions and the fill
with a byte, from its source), and are kept here as a table.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from fake_gpu import Gpu
from fake_pycuda import cuda_bindings, pycuda_driver

import visrt.runtime.engines.trt

ROOM = Path(visrt.runtime.engines.trt.__path__[0])
SOURCES = tuple(sorted(path.name for path in ROOM.glob("*.py")))

PYCUDA: dict[str, tuple[str, ...]] = {
    "init": ("flags",),
    "get_driver_version": (),
    "Device": ("arg1",),
    "Device.count": (),
    "Device.name": (),
    "Device.compute_capability": (),
    "Device.total_memory": (),
    "Device.retain_primary_context": (),
    "Context.push": (),
    "Context.pop": (),
    "Context.detach": (),
    "Stream": ("flags",),
    "Stream.synchronize": (),
    "Stream.wait_for_event": ("arg1",),
    "Event": ("flags",),
    "Event.record": ("stream",),
    "Event.synchronize": (),
    "DeviceAllocation.free": (),
    "mem_alloc": ("arg1",),
    "mem_get_info": (),
    "pagelocked_empty": ("shape", "dtype", "order", "mem_flags"),
    "memcpy_htod_async": ("dest", "src", "stream"),
    "memcpy_dtoh_async": ("dest", "src", "stream"),
    "memcpy_dtod_async": ("dest", "src", "size", "stream"),
    "memset_d8_async": ("dest", "data", "size", "stream"),
    "Memcpy2D": (),
    "Memcpy2D.set_src_device": ("arg1",),
    "Memcpy2D.set_dst_device": ("arg1",),
    "Memcpy2D.__call__": ("arg1",),
}
"""Parameters beside self; pycuda calls "arg1" what has no name and can be given by place only."""

PYCUDA_ERRORS = ("MemoryError", "LogicError", "LaunchError", "RuntimeError")
"""Children of pycuda.driver.Error."""

BINDINGS: dict[str, tuple[str, ...]] = {
    "cuCtxPopCurrent": (),
    "cuStreamBeginCapture": ("hStream", "mode"),
    "cuStreamEndCapture": ("hStream",),
    "cuGraphInstantiate": ("hGraph", "flags"),
    "cuGraphLaunch": ("hGraphExec", "hStream"),
    "cuGraphExecDestroy": ("hGraphExec",),
    "cuGraphDestroy": ("hGraph",),
}


@cache
def attributes_used() -> set[str]:
    """Every name that follows a dot in the files that know TensorRT and CUDA."""
    trees = [ast.parse((ROOM / name).read_text()) for name in SOURCES]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def members_used(kind: type) -> Iterator[str]:
    """Public members of a fake class that visrt's own code uses."""
    bases = [base for base in kind.__mro__ if base.__module__ == fake_tensorrt.__name__]
    own = {name for base in bases for name in (*vars(base), *_assigned(base))}
    return (name for name in sorted(own & attributes_used()) if not name.startswith(("_", "fake_")))


@cache
def _assigned(kind: type) -> set[str]:
    """Attributes that the methods of a fake class give to `self`."""
    classes = [node for node in ast.walk(ast.parse(inspect.getsource(fake_tensorrt))) if isinstance(node, ast.ClassDef)]
    nodes = [node for found in classes if found.name == kind.__name__ for node in ast.walk(found)]
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}


def named(function: Any) -> tuple[str, ...]:
    """Parameters of a Python function without self."""
    return tuple(name for name in inspect.signature(function).parameters if name != "self")


def documented(name: str, docstring: str) -> list[tuple[str, ...]]:
    """Parameters of each overload in a docstring as pybind11 and Cython write it, without self."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: ->.*)?$", docstring, re.MULTILINE)
    overloads = [tuple(_names(text)) for text in found if text != "*args, **kwargs"]
    return [tuple(parameter for parameter in overload if parameter != "self") for overload in overloads]


def _names(parameters: str) -> Iterator[str]:
    depth, part = 0, ""
    for letter in parameters + ",":
        depth += letter in "[(<"
        depth -= letter in "])>"
        if letter == "," and not depth:
            if part.strip():
                # "size: int = 3" as pybind11 has it, "unsigned int flags" as Cython has it.
                yield part.split(":")[0].split("=")[0].split()[-1]
            part = ""
        else:
            part += letter


def fake_classes() -> dict[str, type]:
    gpu = Gpu()
    modules = [fake_tensorrt.tensorrt_module(gpu, "tensorrt-rtx", "1.7.1.116")]
    found = {name: kind for module in modules for name, kind in vars(module).items() if isinstance(kind, type)}
    others = (fake_tensorrt.Builder, fake_tensorrt.Runtime, fake_tensorrt.IRuntimeConfig, fake_tensorrt.ParserError)
    return {**found, **{kind.__name__: kind for kind in others}}


def test_what_the_code_uses_of_tensorrt_is_found_by_reading_it() -> None:
    """The tests below compare what is found here: it must hold the calls that everything hangs on."""
    found = {f"{name}.{member}" for name, kind in fake_classes().items() for member in members_used(kind)}

    assert {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.active_optimization_profile",
        "IRuntimeConfig.set_runtime_cache",
    } <= found


def test_rtx_has_every_name_that_the_code_uses_of_the_fake_with_the_same_parameters() -> None:
    real = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    faults = []
    for name, kind in fake_classes().items():
        for member in members_used(kind):
            twin = getattr(getattr(real, name, None), member, None)
            if twin is None:
                faults.append(f"{name}.{member} is not in TensorRT-RTX")
            elif inspect.isfunction(function := inspect.getattr_static(kind, member, None)):
                overloads = documented(member, twin.__doc__ or "")
                if not any(_agree(named(function), overload) for overload in overloads):
                    faults.append(f"{name}.{member}{named(function)} is {overloads} in TensorRT-RTX")

    assert not faults


def _agree(fake: tuple[str, ...], real: tuple[str, ...]) -> bool:
    """The fake may leave out parameters at the end; "arg0" is a parameter without a name."""
    return len(fake) <= len(real) and all(b in (a, f"arg{i}") for i, (a, b) in enumerate(zip(fake, real, strict=False)))


def test_rtx_has_every_enum_member_that_the_code_uses() -> None:
    real = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    kinds = {name: kind for name, kind in fake_classes().items() if hasattr(kind, "__members__")}

    assert {"DataType", "TensorIOMode", "ExecutionContextAllocationStrategy"} <= kinds.keys()
    for name, kind in kinds.items():
        for member in kind.__members__.keys() & (attributes_used() | {"FLOAT", "HALF", "UINT8", "INT32", "INT64"}):
            assert hasattr(getattr(real, name), member), f"{name}.{member}"


def test_the_fake_of_pycuda_has_the_signatures_that_were_recorded() -> None:
    driver = pycuda_driver(Gpu())

    for path, parameters in PYCUDA.items():
        given = named(_at(driver, path))
        assert given == parameters or (parameters == ("arg1",) and len(given) == 1), f"{path}{given}"
    for name in PYCUDA_ERRORS:
        assert issubclass(getattr(driver, name), driver.Error)
    assert int(driver.event_flags.DISABLE_TIMING) == 2


def test_every_call_of_pycuda_was_recorded() -> None:
    """What visrt calls of a pycuda module or object has its line in the table."""
    tree = ast.parse((ROOM / "cuda_pycuda.py").read_text())
    calls = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_cuda"
    }

    known = {part for path in PYCUDA for part in path.split(".")} | {*PYCUDA_ERRORS, "Error", "event_flags"}
    assert {"mem_alloc", "memcpy_htod_async", "Stream", "Context"} <= calls
    assert calls <= known


def test_pycuda_where_it_imports_has_the_signatures_that_were_recorded() -> None:
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        pytest.skip(f"pycuda is not installed or finds no driver: {error}")

    for path, parameters in PYCUDA.items():
        real = _at(driver, path)
        name = "__init__" if isinstance(real, type) else path.split(".")[-1]
        docstring = getattr(real.__dict__["__init__"] if isinstance(real, type) else real, "__doc__", "")
        assert any(_boost(line, name) == parameters for line in (docstring or "").splitlines()), f"{path}: {docstring}"
    for kind in PYCUDA_ERRORS:
        assert issubclass(getattr(driver, kind), driver.Error)
    assert int(driver.event_flags.DISABLE_TIMING) == 2


def _boost(line: str, name: str) -> tuple[str, ...] | None:
    """Parameters in a line of Boost.Python, "record( (Event)arg1 [, (object)stream=None]) -> Event", without self."""
    if not line.startswith(f"{name}("):
        return None
    parameters = [(kind, word) for kind, word in re.findall(r"\((\w+)\)(\w+)", line.split("->")[0])]
    is_self = parameters and (parameters[0][1] == "self" or parameters[0][0][0].isupper() or name == "__init__")
    named_only = tuple(word for _, word in parameters[bool(is_self) :])
    return tuple("arg1" if word.startswith("arg") else word for word in named_only)


def test_the_fake_of_cuda_bindings_has_the_signatures_that_were_recorded() -> None:
    driver = cuda_bindings(Gpu())

    assert {name: named(getattr(driver, name)) for name in BINDINGS} == BINDINGS
    assert {name for name in attributes_used() if re.match(r"cu[A-Z]", name)} == BINDINGS.keys()


def test_cuda_bindings_where_it_imports_has_the_signatures_that_were_recorded() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

    for name, parameters in BINDINGS.items():
        assert documented(name, getattr(driver, name).__doc__)[0] == parameters
    assert driver.CUresult.CUDA_SUCCESS == 0
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
