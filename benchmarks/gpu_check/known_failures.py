"""What a failure on a GPU most likely means, and what to try: the one table of them.

Most were read in sources, release notes and reports of others before any GPU was seen; `where` says in which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["KNOWN", "UNKNOWN", "KnownFailure", "known_failures"]


@dataclass(frozen=True)
class KnownFailure:
    """pattern: a regular expression that is searched in "PART: REASON", with no regard to case. where: a source."""

    pattern: str
    meaning: str
    to_try: str
    where: str = ""


KNOWN = (
    KnownFailure(
        r"NO_DEVICE|no CUDA-capable device|finds no GPU",
        "this process is shown no GPU: a container without --gpus, or CUDA_VISIBLE_DEVICES hides it",
        "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES; in a container: docker run --gpus all",
    ),
    KnownFailure(
        r"factory function returned nullptr|INSUFFICIENT_DRIVER|driver version is insufficient|does not start",
        "the driver is older than the CUDA that TensorRT's wheel is for (CUDA 13 needs 580 or newer)",
        "nvidia-smi shows the driver; pip install tensorrt-cu12==10.13.3.9 in place of a cu13 wheel, or a newer driver",
    ),
    KnownFailure(
        r"SYSTEM_DRIVER_MISMATCH|unsupported display driver|error 803|COMPAT_NOT_SUPPORTED|error 804",
        "another libcuda than the driver's is found first, often a forward-compatibility one in a container",
        "ldconfig -p | grep libcuda; take .../compat out of LD_LIBRARY_PATH",
    ),
    KnownFailure(
        r"cannot be called: |cuda-bindings cannot be imported|cuda-bindings was requested",
        "cuda-bindings is missing, or is newer than the driver and looks for a function that the driver lacks",
        "pip install 'cuda-bindings<13' for a driver that serves CUDA 12; `visrt doctor` shows both versions",
    ),
    KnownFailure(
        r"pycuda is installed but does not load|Python argument types did not match|ArgumentError: ",
        "pycuda was compiled for another CUDA, or takes other arguments than its sources of 2026.1",
        "pip uninstall pycuda (cuda-bindings takes its place), and report the line; or compile it again here",
    ),
    KnownFailure(
        r"CONTEXT_IS_DESTROYED|context is destroyed",
        "the primary context went with the engine that was closed last, while TensorRT holds static objects in it",
        "run each engine in a process of its own; report it: visrt keeps the context, so something else resets it",
        "pycuda#460, NVIDIA/TensorRT#1632",
    ),
    KnownFailure(
        r"INVALID_CONTEXT|invalid device context",
        "another library has left its own context, or none, current in this thread",
        "see whether step 'beside torch' of part `cuda` alone fails; import that library after visrt has opened",
    ),
    KnownFailure(
        r"STREAM_CAPTURE|\berror 90\d\b|CUDA graph was refused|could not be enqueued|cannot be captured",
        "a CUDA graph could not be recorded or launched: a call in the recording that may not be there, or the mode",
        "pip uninstall cuda-bindings where pycuda is installed: engines then run without CUDA graphs, slower. If "
        "results are right only so, it is the recording",
    ),
    KnownFailure(
        r"of a CUDA graph: \d+ of \d+ bytes",
        "what is launched is not what was recorded: it reads other addresses, or the launch did nothing",
        "pip uninstall cuda-bindings where pycuda is installed: if engines agree only so, leave it out and report it",
    ),
    KnownFailure(
        r"(again|stream|zeros): \d+ of \d+ bytes",
        "a copy ran before what it waits for, or at another address",
        "compute-sanitizer --tool racecheck, then --tool memcheck, on the part's command (first line of its log)",
    ),
    KnownFailure(
        r"ILLEGAL_ADDRESS|illegal memory access|MISALIGNED|misaligned address|LAUNCH_FAILED|launch failure",
        "a kernel read or wrote outside its memory: an address, a size or the scratch memory of a call is wrong",
        "compute-sanitizer --tool memcheck on the part's command (first line of its log)",
    ),
    KnownFailure(
        r"/tensorrt(-rtx)?/.*uint8",
        "TensorRT lets a uint8 input feed a Cast and nothing else",
        "export the bundle again with this version; visrt's export checks it",
        "NVIDIA/TensorRT#3985",
    ),
    KnownFailure(
        r"messages that nobody has accounted for",
        "the engine was built, with lines in the log that visrt does not know; most such lines are harmless",
        "VISRT_ACCEPT_MESSAGES=1 make gpu-check: if `verify` then agrees, add the line with its reason to "
        "runtime/engines/trt/accepted_messages.py",
        "NVIDIA/TensorRT#4028",
    ),
    KnownFailure(
        r"has no target for compute capability|refuses the target",
        "TensorRT-RTX builds for the GPUs of workstations, not for those of data centres",
        "--engine tensorrt",
    ),
    KnownFailure(
        r"/cuda/verify/.*tolerance",
        "float32 computed as TF32 by ONNX Runtime or cuDNN, with 10 bits of mantissa",
        "NVIDIA_TF32_OVERRIDE=0 make gpu-check: if it then agrees, it was TF32",
    ),
    KnownFailure(
        r"/tensorrt(-rtx)?/verify/.*(tolerance|it fails while it runs)",
        "a kernel that computes wrongly, or our part. Right with one frame a call and wrong with more: profile, slot "
        "or row address. fp16 alone wrong on compute capability 12.0: fused attention before TensorRT 10.16.2",
        "another TensorRT (10.13.3.9, then 11.2 or newer); pip uninstall cuda-bindings where pycuda is installed, to "
        "leave out CUDA graphs; polygraphy run frame.onnx --trt --onnxrt to find the layer",
        "NVIDIA/TensorRT#4837",
    ),
    KnownFailure(
        r"was requested but CPUExecutionProvider took|its libraries did not load|libcu(dnn|blas|dart)",
        "ONNX Runtime does not find the libraries of CUDA or cuDNN 9, or they are of another CUDA than its wheel's",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'; its newest wheels are for CUDA 13: driver 580 or newer",
    ),
    KnownFailure(
        r"libnvinfer|libnvonnxparser",
        "TensorRT's bindings are there without its libraries, or with those of another version",
        "pip install --force-reinstall tensorrt; take other copies out of LD_LIBRARY_PATH",
    ),
    KnownFailure(
        r"out ?of ?memory|of GPU memory|page-locked host memory|SIGKILL",
        "the GPU or the host ran out of memory; in a build, kernels are timed at the largest batch",
        "--batch 1 4; nvidia-smi shows who else uses the GPU",
    ),
    KnownFailure(
        r"SIGSEGV|SIGABRT|SIGBUS",
        "a crash in a native library. TensorRT 10.3 crashes on Hopper while it runs; pycuda aborts at exit if a "
        "context is left current",
        "python -X faulthandler with the part's command (first line of its log); TensorRT 10.13.3.9 or newer",
        "NVIDIA/TensorRT#4395",
    ),
    KnownFailure(
        r"/build/.*took longer than",
        "builds of large networks take longer than the limit; what was timed so far is lost",
        "--limit-s 3600",
    ),
    KnownFailure(
        r"took longer than",
        "the part hangs, or this GPU is slow or busy",
        "the last line of its log; py-spy dump --pid; nvidia-smi for other processes; --limit-s",
    ),
    KnownFailure(
        r"was requested, this machine has",
        "CUDA counts only the GPUs that CUDA_VISIBLE_DEVICES shows, from 0",
        "--device 0",
    ),
)
"""All that match are told, in this order."""

UNKNOWN = KnownFailure("", "not a failure that is known", "read the part's log; run its command, the log's first line")


def known_failures(part: str, reason: str) -> tuple[KnownFailure, ...]:
    """What is known of the failure of a part; UNKNOWN alone if nothing is."""
    text = f"{part}: {reason}"
    found = tuple(known for known in KNOWN if re.search(known.pattern, text, re.IGNORECASE | re.DOTALL))
    return found or (UNKNOWN,)
