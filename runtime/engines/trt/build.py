"""From a checked ONNX graph to a TensorRT engine: always strongly typed, with every message accounted for.

The same code serves TensorRT 10.3 to 11 and TensorRT-RTX. TensorRT-RTX also builds for GPUs that are not here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.signature import Axis, EngineTensor, same_axis, signature_faults
from visrt.runtime.engines.trt.accepted_messages import sorted_messages
from visrt.runtime.engines.trt.build_progress import Progress, ProgressTree, ignore_progress, monitor_of
from visrt.runtime.engines.trt.interrupts import deferred_interrupt
from visrt.runtime.engines.trt.library import TensorRt
from visrt.runtime.engines.trt.log import Line, TensorRtLog, log_of
from visrt.runtime.engines.trt.precision import check_precision, node_precisions, precision_of
from visrt.runtime.errors import EngineError

__all__ = [
    "ACCEPT_MESSAGES",
    "DEFAULT_LEVEL",
    "LEVELS",
    "RECIPE",
    "BuildRefusedError",
    "BuildRequest",
    "BuiltEngine",
    "Profile",
    "build_engine",
    "build_request",
]

Profile = Mapping[str, tuple[int, int, int]]
"""Smallest, usual and largest size of each dynamic axis, by its symbol."""

RECIPE = 2
"""Raised with every change of how engines are built, so that cached engines of older versions are rebuilt."""


ACCEPT_MESSAGES = "VISRT_ACCEPT_MESSAGES"
"""Environment variable: 1 takes an engine whatever was logged while it was built."""

LEVELS = range(6)
DEFAULT_LEVEL = 3
"""Builder optimisation levels of TensorRT, and its own choice. Higher ones time more kernels for longer."""

# TensorRT has one log per process: with one build at a time every message belongs to that build.
_BUILDING = threading.Lock()


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    name: of the graph, in the bundle. model: the bytes of its ONNX file. targets: compute capabilities such as "8.6"
    that one engine of TensorRT-RTX is to run on; () is the GPU in this machine. nodes: precision by ONNX node, from
    nodes.json. timings: BuiltEngine.timings of an earlier build on this GPU. level: the builder's optimisation level.
    accept_all: take the engine whatever was logged.
    """

    name: str
    graph: GraphSpec
    model: bytes
    profile: Profile
    targets: tuple[str, ...] = ()
    nodes: Mapping[str, str] | None = None
    timings: bytes = b""
    level: int = DEFAULT_LEVEL
    accept_all: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine.

    precision: how many layers that multiply, by kind and precision, and how many tensors of each type the network has.
    warnings: TensorRT's messages that are known to be harmless. unaccounted: those that are not, which `accept_all` let
    pass. timings: of kernels, for the next build; TensorRT only.
    """

    data: bytes
    precision: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    timings: bytes = b""
    unaccounted: tuple[str, ...] = ()


class BuildRefusedError(EngineError):
    """There is no engine, or one that is not to be used. timings: of the kernels that were timed, as in BuiltEngine."""

    def __init__(self, message: str, timings: bytes = b"") -> None:
        super().__init__(message)
        self.timings = timings


def build_request(
    bundle: Bundle, name: str, profile: Profile, targets: tuple[str, ...] = (), level: int = DEFAULT_LEVEL
) -> BuildRequest:
    """The request for graph `name` of `bundle`, its bytes checked, with the precision of its nodes.

    $VISRT_ACCEPT_MESSAGES says whether all messages are accepted.
    """
    nodes = node_precisions(bundle).get(name)
    accept_all = os.environ.get(ACCEPT_MESSAGES, "") not in ("", "0")
    graph = bundle.manifest.graphs[name]
    return BuildRequest(name, graph, bundle.graph(name), profile, targets, nodes, level=level, accept_all=accept_all)


def build_engine(library: TensorRt, request: BuildRequest, progress: Progress = ignore_progress) -> BuiltEngine:
    """The engine of `request`, with a proof of its precision from the network's definition.

    `progress` gets the current phase and the fraction that is done. An error it raises ends the build and is raised
    here, as is Ctrl-C. Raises EngineError with TensorRT's log if there is no engine, or a message that is not accepted.
    """
    _check_profile(request)
    _check_level(request)
    _check_targets(library, request)
    log = log_of(library)
    with _BUILDING, deferred_interrupt() as interrupted, log.listening() as logged:
        tree = ProgressTree(progress, interrupted)
        built = _Build(library, request, log, logged).run(tree)
        progress("built", 1.0)
        return built


class _Build:
    """One build. TensorRT's objects live no longer than the method that makes them."""

    def __init__(self, library: TensorRt, request: BuildRequest, log: TensorRtLog, logged: list[Line]) -> None:
        self._trt, self._flavour = library.module, library.flavour
        self._request, self._log, self._logged = request, log, logged

    def run(self, tree: ProgressTree) -> BuiltEngine:
        builder = self._builder()
        network = builder.create_network(_network_flags(self._trt))
        self._parse(network)
        found = precision_of(network)
        check_precision(self._where, self._request.graph.precision, found, self._request.nodes)
        config = self._config(builder)
        monitor = monitor_of(self._trt, tree)
        config.progress_monitor = monitor
        timings = self._timing_cache(config)
        engine = builder.build_serialized_network(network, config)
        if tree.error is not None:
            raise tree.error
        measured = bytes(timings.serialize()) if timings else b""
        if engine is None:
            raise BuildRefusedError(str(self._refused("gave no engine")), measured)
        accepted, unaccounted = sorted_messages(self._logged, self._flavour)
        if unaccounted and not self._request.accept_all:
            refused = self._refused("built it with messages that nobody has accounted for")
            way = f"; {ACCEPT_MESSAGES}=1 takes the engine all the same: then judge it with `visrt verify`"
            raise BuildRefusedError(f"{refused}{way}", measured)
        return BuiltEngine(bytes(engine), found.counts, accepted, measured, unaccounted)

    @property
    def _where(self) -> str:
        return f"{self._request.graph.file.file} ({self._request.name})"

    def _builder(self) -> Any:
        try:
            return self._trt.Builder(self._log.logger)
        except (TypeError, RuntimeError) as error:
            raise self._refused(
                "does not start; it needs an NVIDIA GPU and its driver here (`visrt doctor`)"
            ) from error

    def _parse(self, network: Any) -> None:
        """Fills `network`; EngineError names the nodes that TensorRT does not take."""
        parser = self._trt.OnnxParser(network, self._log.logger)
        if not parser.parse(self._request.model):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = "; ".join(map(_parser_error, errors)) or self._refused_lines()
            raise EngineError(
                f"{self._where}: {self._flavour} cannot take this graph: {reasons}; export it again, or use "
                "--engine cpu"
            )
        inputs, outputs = _tensors(network, "input"), _tensors(network, "output")
        if faults := signature_faults(self._request.graph, inputs, outputs, _fits):
            raise EngineError(
                f"{self._where}: what {self._flavour} read does not fit the manifest: {'; '.join(faults)}; "
                "export the bundle again"
            )

    def _config(self, builder: Any) -> Any:
        config = builder.create_builder_config()
        # An island of FP32 is there for its accuracy; TF32 would round its operands to 10 bits, as FP16 does.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        # Otherwise the inspector of an engine knows the names of its layers and nothing else.
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        config.builder_optimization_level = self._request.level
        if self._flavour == "tensorrt-rtx":
            self._set_targets(config)
            # An engine that allocates while it runs cannot be recorded in a CUDA graph.
            if hasattr(self._trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
                config.set_flag(self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        shapes = _shapes(self._request)
        if shapes:
            profile = builder.create_optimization_profile()
            for name, sizes in shapes.items():
                profile.set_shape(name, *sizes)
            if config.add_optimization_profile(profile) < 0:
                raise self._refused(f"refuses the profile {dict(self._request.profile)}")
        return config

    def _set_targets(self, config: Any) -> None:
        kinds = self._trt.ComputeCapability
        chosen = [_sm(target) for target in self._request.targets] or ["CURRENT"]
        config.num_compute_capabilities = len(chosen)
        for index, name in enumerate(chosen):
            if not config.set_compute_capability(kinds.__members__[name], index):
                raise self._refused(f"refuses the target {name}")

    def _timing_cache(self, config: Any) -> Any:
        """A cache of TensorRT's kernel timings, which a build extends. TensorRT-RTX measures none."""
        if self._flavour == "tensorrt-rtx":
            return None
        before = len(self._logged)
        for known in (self._request.timings, b""):
            cache = config.create_timing_cache(known)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
            # Timings that do not fit only cost time: what was logged about them does not concern the engine.
            del self._logged[before:]
        return None

    def _refused(self, what: str) -> EngineError:
        hint = ""
        if self._flavour == "tensorrt-rtx" and not self._request.targets:
            hint = "; on a machine without an NVIDIA GPU name the GPUs it is for (targets such as 8.6)"
        return EngineError(f"{self._where}: {self._flavour} {what}; it says: {self._refused_lines()}{hint}")

    def _refused_lines(self) -> str:
        """What is not accepted, with what is behind it: where all kernels are left out, their lines say why."""
        accepted, refused = sorted_messages(self._logged, self._flavour)
        return " | ".join((*refused, *accepted)) or "nothing"


def _network_flags(trt: Any) -> int:
    """Older versions, where FP16 still is a choice of the builder, need a flag for strong typing."""
    if hasattr(trt.BuilderFlag, "FP16"):
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value)
    return 0


def _check_profile(request: BuildRequest) -> None:
    """Raises EngineError unless the profile gives sizes for the graph's dynamic axes and no others."""
    symbols = {axis for spec in request.graph.inputs.values() for axis in spec.shape if isinstance(axis, str)}
    where = f"{request.graph.file.file} ({request.name})"
    if symbols != request.profile.keys():
        raise EngineError(
            f"{where}: the profile has sizes for {', '.join(sorted(request.profile)) or 'nothing'}; expected the "
            f"dynamic axes of its inputs, {', '.join(sorted(symbols)) or 'of which there are none'}"
        )
    for symbol, (least, usual, most) in request.profile.items():
        if not 1 <= least <= usual <= most:
            raise EngineError(
                f"{where}: the profile of {symbol} is {least}, {usual}, {most}; expected smallest <= usual <= largest, "
                "from 1 on"
            )


def _check_level(request: BuildRequest) -> None:
    """Raises EngineError for an optimisation level that does not exist."""
    if request.level not in LEVELS:
        raise EngineError(f"optimisation level {request.level} was requested; expected {LEVELS[0]} to {LEVELS[-1]}")


def _check_targets(library: TensorRt, request: BuildRequest) -> None:
    """Raises EngineError for GPUs that the library cannot build for."""
    if not request.targets:
        return
    if library.flavour == "tensorrt":
        raise EngineError(
            f"targets {', '.join(request.targets)} were requested; tensorrt builds for the GPU of this machine only: "
            "give none, or use tensorrt-rtx"
        )
    known = {_capability(name): name for name in library.module.ComputeCapability.__members__ if name[:2] == "SM"}
    unknown = [target for target in request.targets if target not in known]
    if unknown or len(set(request.targets)) < len(request.targets):
        raise EngineError(
            f"targets {', '.join(request.targets)} were requested; {library.flavour} {library.version} builds for "
            f"{', '.join(known)}, each once"
        )


def _sm(target: str) -> str:
    return f"SM{target.replace('.', '')}"


def _capability(name: str) -> str:
    """ "12.0" of "SM120"."""
    return f"{name[2:-1]}.{name[-1]}"


def _shapes(request: BuildRequest) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest shape of each dynamic input, by its name in the graph."""
    return {
        spec.name: tuple(
            tuple(request.profile[axis][place] if isinstance(axis, str) else axis for axis in spec.shape)
            for place in range(3)
        )
        for spec in request.graph.inputs.values()
        if any(isinstance(axis, str) for axis in spec.shape)
    }


def _tensors(network: Any, side: str) -> list[EngineTensor]:
    tensors = (getattr(network, f"get_{side}")(index) for index in range(getattr(network, f"num_{side}s")))
    return [EngineTensor.reported(tensor.name, tensor.dtype.name, tensor.shape) for tensor in tensors]


def _fits(expected: int | str, found: Axis) -> bool:
    """As `same_axis`, but the parser may leave a size open that the builder computes later."""
    return found is None or same_axis(expected, found)


def _parser_error(error: Any) -> str:
    """One error of the parser with the node it is about."""
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return node + " ".join(error.desc().split())
