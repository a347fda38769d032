"""Messages that TensorRT gives in good builds, each with the reason why the engine is right.

TensorRT builds broken engines with only a warning, so whatever is not listed here refuses the engine. What stays out,
among others: weights that change ("could affect accuracy", "clamped"), sums that may overflow ("layernorm nodes in
FP16"), inputs that nothing reads, profiles and contexts that do not fit, and whatever says that the GPU itself failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from visrt.runtime.engines.trt.library import Flavour
from visrt.runtime.engines.trt.log import Line

__all__ = ["ACCEPTED", "Accepted", "sorted_messages"]

WARNING, EITHER = ("WARNING",), ("WARNING", "ERROR")
TENSORRT: tuple[Flavour, ...] = ("tensorrt",)
RTX: tuple[Flavour, ...] = ("tensorrt-rtx",)


@dataclass(frozen=True)
class Accepted:
    """A message that does not refuse the engine. pattern: a regular expression for its whole text, in which all white
    space is one blank."""

    pattern: str
    reason: str
    flavours: tuple[Flavour, ...] = (*TENSORRT, *RTX)
    severities: tuple[str, ...] = WARNING


GPU_FAILED = r"illegal memory access|illegal instruction|misaligned address|launch failure|hardware stack|ECC error"
"""CUDA errors after which nothing that this process measures or builds can be trusted."""

ACCEPTED = (
    Accepted(
        r".*The logger passed into createInferBuilder differs from one already registered.*",
        "another library in this process uses TensorRT too; our builds are logged to us nevertheless",
    ),
    Accepted(
        r"\(foreignNode\) Converting conv (activation|weight) scales to fp32\.",
        "a scale of explicit quantisation goes from float16 to float32, which changes no value",
        RTX,
    ),
    Accepted(
        rf".*Skipping tactic \S+ due to exception (?!.*({GPU_FAILED})).*",
        "one candidate kernel cannot run here and another is taken; without any there is no engine "
        "(NVIDIA/TensorRT#4028, microsoft/onnxruntime#22164: at severity ERROR, from builds that end well)",
        TENSORRT,
        EITHER,
    ),
    Accepted(
        r".*Skipping tactic \S+ due to insuff?icient memory on requested size of .*",
        "one candidate kernel needs more scratch memory than is free and another is taken (NVIDIA/TensorRT-LLM#493: no "
        "problem as long as the engine is built; with UNSUPPORTED_STATE in front from 8.6 on)",
        TENSORRT,
        EITHER,
    ),
    Accepted(
        r"Tactic Device request: \d+ ?MB Available: \d+ ?MB\. Device memory is insufficient to use tactic\.",
        "the line that comes with the one above, on small cards and Jetson; ERROR in older versions",
        TENSORRT,
        EITHER,
    ),
    Accepted(
        r"\[Autotuner\]: Skipping tactic: ran out of scratch memory while compiling the auto-tuner subgraph\.",
        "as above, for candidates of fused layers",
        TENSORRT,
        EITHER,
    ),
    Accepted(
        r"Unknown embedded device detected\. Using \d+ ?MiB as the allocation cap for memory on embedded devices\.",
        "how much memory the builder may use on a Jetson that this version does not know",
        TENSORRT,
    ),
    Accepted(
        r"Unable to determine GPU memory usage.*",
        "the figure is for TensorRT's own log; without a GPU that works the builder does not start",
    ),
    Accepted(
        r"CUDA lazy loading is not enabled\..*",
        "costs memory and time at the start and changes no kernel (CUDA_MODULE_LOADING=LAZY turns it on)",
    ),
    Accepted(
        r"(.*: )?(Detected (an )?invalid timing cache.*|Failed to deserialize timing cache\..*"
        r"|Timing cache header mismatch.*|.*The timing cache will not be used!|Timing cache disabled\..*)",
        "kernels are timed again",
        TENSORRT,
    ),
    Accepted(
        r"(\S+: )?Make sure input .* has Int64 binding\.",
        "a reminder; types of inputs are compared with the manifest before the build and when the engine is opened",
    ),
    Accepted(
        r"To achieve better performance on this platform, Q/DQ nodes will not be fused because INT8 is slower than .*",
        "values are rounded as the graph says and multiplied in FP16",
    ),
)


def sorted_messages(lines: Iterable[Line], flavour: Flavour) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The logged lines: accepted ones, and everything else. Of lines that differ in numbers alone the first is given,
    with the number of others."""
    known = [accepted for accepted in ACCEPTED if flavour in accepted.flavours]
    accepted: list[str] = []
    refused: list[str] = []
    for line in lines:
        listed = any(line.severity in one.severities and re.fullmatch(one.pattern, line.text) for one in known)
        (accepted if listed else refused).append(line.text)
    return _gathered(accepted), _gathered(refused)


def _gathered(texts: Iterable[str]) -> tuple[str, ...]:
    alike: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        alike.setdefault(re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text), []).append(text)
    return tuple(
        found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} like it)" for found in alike.values()
    )
