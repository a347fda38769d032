"""The fakes have the names and parameters of the real libraries, as far as these can be imported or were recorded.

TensorRT-RTX's bindings import without a GPU, and their docstrings tell every signature. cuda-bindings does too.
It also runs here on a libcuda in software. pycuda needs a driver to be imported; its signatures were read from pycuda
2026.1, compiled, and are kept here as a table.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_cuda_bindings import cuda_bindings
from fake_gpu import Gpu
from fake_pycuda import pycuda_driver

import visrt.runtime.engines.trt
from visrt.runtime.engines.driver_api import DriverError, call
from visrt.runtime.engines.gpus import gpu_absence
from visrt.runtime.engines.trt.cuda_bindings import BindingsEvent, BindingsLayer, BindingsStream, raise_priority
from visrt.runtime.engines.trt.cuda_graph import Capture, CaptureRefusedError

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
    "cuInit": ("Flags",),
    "cuDriverGetVersion": (),
    "cuDeviceGetCount": (),
    "cuDeviceGet": ("ordinal",),
    "cuDeviceGetName": ("length", "dev"),
    "cuDeviceGetAttribute": ("attrib", "dev"),
    "cuDeviceTotalMem": ("dev",),
    "cuDevicePrimaryCtxRetain": ("dev",),
    "cuCtxPushCurrent": ("ctx",),
    "cuCtxPopCurrent": (),
    "cuCtxGetStreamPriorityRange": (),
    "cuStreamCreate": ("Flags",),
    "cuStreamCreateWithPriority": ("flags", "priority"),
    "cuStreamSetAttribute": ("hStream", "attr", "value"),
    "cuStreamSynchronize": ("hStream",),
    "cuStreamWaitEvent": ("hStream", "hEvent", "Flags"),
    "cuStreamDestroy": ("hStream",),
    "cuEventCreate": ("Flags",),
    "cuEventRecord": ("hEvent", "hStream"),
    "cuEventSynchronize": ("hEvent",),
    "cuEventDestroy": ("hEvent",),
    "cuMemAlloc": ("bytesize",),
    "cuMemFree": ("dptr",),
    "cuMemGetInfo": (),
    "cuMemHostAlloc": ("bytesize", "Flags"),
    "cuMemFreeHost": ("p",),
    "cuMemcpyHtoDAsync": ("dstDevice", "srcHost", "ByteCount", "hStream"),
    "cuMemcpyDtoHAsync": ("dstHost", "srcDevice", "ByteCount", "hStream"),
    "cuMemcpyDtoDAsync": ("dstDevice", "srcDevice", "ByteCount", "hStream"),
    "cuMemcpy2DAsync": ("pCopy", "hStream"),
    "cuMemsetD8Async": ("dstDevice", "uc", "N", "hStream"),
    "cuStreamBeginCapture": ("hStream", "mode"),
    "cuStreamEndCapture": ("hStream",),
    "cuGraphInstantiate": ("hGraph", "flags"),
    "cuGraphLaunch": ("hGraphExec", "hStream"),
    "cuGraphExecDestroy": ("hGraphExec",),
    "cuGraphDestroy": ("hGraph",),
}
"""Parameters of cuda-bindings' functions, as 13.5 has them."""

FIELDS = {
    "CUDA_MEMCPY2D": ("srcMemoryType", "srcDevice", "srcPitch", "dstMemoryType", "dstDevice", "dstPitch"),
    "CUstreamAttrValue": ("priority",),
}
ENUMS = ("CUstreamCaptureMode", "CUdevice_attribute", "CUmemorytype", "CUstreamAttrID", "CUresult")


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
    assert {name for name in attributes_used() if re.match(r"cu[A-Z]", name)} | {
        "cuDriverGetVersion"
    } == BINDINGS.keys()


@pytest.fixture
def real_bindings() -> Any:
    return pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")


def test_cuda_bindings_where_it_imports_has_the_signatures_that_were_recorded(real_bindings: Any) -> None:
    for name, parameters in BINDINGS.items():
        assert documented(name, getattr(real_bindings, name).__doc__)[0] == parameters
    for name, fields in FIELDS.items():
        assert set(fields) <= set(dir(getattr(real_bindings, name)))
    for name in ENUMS:
        for member in getattr(cuda_bindings(Gpu()), name):
            assert getattr(getattr(real_bindings, name), member.name) == member.value


class Answering:
    """cuda.bindings.driver where some functions answer as given."""

    def __init__(self, driver: Any, **answers: tuple[Any, ...]) -> None:
        self._driver, self._answers = driver, answers

    def __getattr__(self, name: str) -> Any:
        if name in self._answers:
            return lambda *given: self._answers[name]
        return getattr(self._driver, name)


def test_cuda_bindings_takes_what_the_layer_gives_it(real_bindings: Any) -> None:
    """Without a driver a call ends where it would enter the library, if its arguments are right, else in TypeError."""
    if not gpu_absence().startswith("no NVIDIA driver"):
        pytest.skip("a driver is here, which would take handles that were made up")
    layer = BindingsLayer(real_bindings)
    stream, event = BindingsStream(real_bindings, real_bindings.CUstream(1)), BindingsEvent(real_bindings, 2)
    asked = Answering(real_bindings, cuCtxGetStreamPriorityRange=(0, 0, -5), cuDeviceGet=(0, real_bindings.CUdevice(0)))
    array = np.zeros(8, np.uint8)
    calls: dict[str, Callable[[], Any]] = {
        "cuInit": layer.count,
        "cuDriverGetVersion": layer.version,
        "cuDeviceGet": lambda: layer.retain(0),
        "cuCtxPushCurrent": lambda: layer.push(real_bindings.CUcontext(3)),
        "cuCtxPopCurrent": layer.pop,
        "cuStreamCreate": lambda: layer.stream(1),
        "cuCtxGetStreamPriorityRange": lambda: layer.urgent_stream(1),
        "cuStreamCreateWithPriority": lambda: BindingsLayer(asked).urgent_stream(1),
        "cuEventCreate": lambda: layer.event(3),
        "cuMemAlloc": lambda: layer.allocate(8),
        "cuMemGetInfo": layer.memory,
        "cuMemHostAlloc": lambda: layer.pin(8),
        "cuMemFree": lambda: call(real_bindings.cuMemFree, real_bindings.CUdeviceptr(4)),
        "cuMemFreeHost": lambda: call(real_bindings.cuMemFreeHost, 5),
        "cuMemcpyHtoDAsync": lambda: layer.upload(6, array, stream),
        "cuMemcpyDtoHAsync": lambda: layer.download(array, 6, stream),
        "cuMemcpyDtoDAsync": lambda: layer.copy(6, 7, 8, stream),
        "cuMemcpy2DAsync": lambda: layer.copy_rows(6, 16, 7, 16, 8, 2, stream),
        "cuMemsetD8Async": lambda: layer.clear(6, 8, stream),
        "cuStreamSynchronize": stream.synchronize,
        "cuStreamWaitEvent": lambda: stream.wait(event),
        "cuEventRecord": lambda: event.record(stream),
        "cuEventSynchronize": event.synchronize,
        "cuStreamDestroy": stream.free,
        "cuEventDestroy": event.free,
        "cuStreamSetAttribute": lambda: raise_priority(asked, 1),
        "cuStreamBeginCapture": lambda: Capture(real_bindings, 1).record(lambda: True),
        "cuGraphLaunch": lambda: call(real_bindings.cuGraphLaunch, real_bindings.CUgraphExec(1), 1),
        "cuDeviceGetName": lambda: BindingsLayer(asked).card(0),
        "cuDeviceGetAttribute": lambda: BindingsLayer(Answering(asked, cuDeviceGetName=(0, b"name"))).card(0),
        "cuDevicePrimaryCtxRetain": lambda: BindingsLayer(asked).retain(0),
    }

    for name, made in calls.items():
        with pytest.raises((DriverError, CaptureRefusedError), match=f"^{name} cannot be called"):
            made()


USE = """
import numpy as np
from visrt.runtime.engines.trt.cuda import Gpu
from visrt.runtime.engines.trt.cuda_graph import open_capture
from visrt.runtime.errors import EngineError

for _ in range(2):
    gpu = Gpu()
    assert (gpu.label, gpu.cuda, gpu.notices) == ("Software GPU, compute capability 9.0", "13.5", [])
    with gpu.current("testing"):
        a, b = gpu.allocate(512, "a test"), gpu.allocate(512, "a test")
        up, down = gpu.pin(64, "a test"), gpu.pin(64, "a test")
        event = gpu.event()
        up.array[:] = range(64)
        gpu.upload(a.address, up.array[:32])
        event.record(gpu.stream)
        gpu.side.wait(event)
        event.synchronize()
        gpu.copy(b.address, a.address, 32, gpu.side)
        gpu.copy_rows(b.address + 32, 16, a.address, 8, 8, 2, gpu.side)
        gpu.clear(b.address, 8, gpu.side)
        gpu.download(down.array, b.address, gpu.side)
        gpu.side.synchronize()
        assert down.array[:32].tolist() == [0] * 8 + [*range(8, 32)]
        assert down.array[32:40].tolist() + down.array[48:56].tolist() == [*range(16)]
        try:
            gpu.allocate(2**31, "too much")
        except EngineError as error:
            assert "too much needs 2048.0 MB of GPU memory, 512.0 MB of 1024.0 MB are free" in str(error)
        capture = open_capture(gpu.stream.handle)
        graph = capture.record(lambda: True)
        assert graph.launch(gpu.stream.handle)
        graph.destroy()
    gpu.release([a.free, b.free, up.free, down.free, event.free])
    gpu.close()
"""


@pytest.fixture
def on_software(real_bindings: Any, tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose libcuda is ours, in software, behind the real cuda-bindings."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler, or not Linux")
    source, library = Path(__file__).with_name("software_driver.c"), tmp_path / "libcuda.so.1"
    built = [compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(library), "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(built, check=True, timeout=120)
    return {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}


def test_cuda_bindings_itself_makes_every_call_on_a_driver_in_software(on_software: dict[str, str]) -> None:
    """As far as a test without hardware can go: the library is the real one."""
    program = f"import sys\nsys.modules['pycuda'] = None\n{USE}"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=on_software, capture_output=True, text=True, timeout=120
    )

    assert ended.returncode == 0, ended.stderr
    told = ended.stderr.splitlines()
    assert told.count("retained") == 1
    assert told.count("stream flags 1") == told.count("stream flags 1 priority -5") == 2
    assert "capture mode 1 on 0x5001" in told
    assert "0x5003 on 0x5001" in told
    assert "0x5002 waits for 0x5003" in told
    assert told[-1] == "held 0"


def test_gpu_check_tries_the_cuda_layer_alone_by_cuda_bindings_itself(
    on_software: dict[str, str], tmp_path: Path
) -> None:
    """Without TensorRT, bundle and clip; a second run does nothing again."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "visrt.benchmarks.gpu_check", "--only", "cuda/cuda-bindings", "--out", str(out)]

    ended = subprocess.run(command, env=on_software, capture_output=True, text=True, timeout=300)
    again = subprocess.run(command, env=on_software, capture_output=True, text=True, timeout=300)

    assert (ended.returncode, again.returncode) == (0, 0), ended.stdout + ended.stderr
    assert "cuda/cuda-bindings: done, Software GPU, compute capability 9.0" in ended.stdout
    assert "**the CUDA layer passed; no engine was checked" in ended.stdout
    assert "part 1 of 1" in ended.stdout
    assert "(before)" in again.stdout
    assert "part 1 of 1" not in again.stdout
    told = (out / "logs" / "cuda-cuda-bindings.log").read_text().splitlines()
    assert "gpu_check.measure" in told[0]
    assert told[-1] == "held 0"


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
