"""Builds of small graphs: by TensorRT-RTX where it is installed, and by a fake TensorRT of each version."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import Any

import fake_tensorrt
import pytest
from bundles import write_bundle
from fake_gpu import Gpu
from fake_tensorrt import FLAVOURS, install_tensorrt
from small_graphs import BATCHES, conv_int8, conv_of, island, one_node, request_of

from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.trt import accepted_messages
from visrt.runtime.engines.trt.accepted_messages import sorted_messages
from visrt.runtime.engines.trt.build import (
    ACCEPT_MESSAGES,
    BuildRefusedError,
    BuildRequest,
    build_engine,
    build_request,
)
from visrt.runtime.engines.trt.build_progress import ProgressTree, ignore_progress
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.engines.trt.log import Line, log_of
from visrt.runtime.errors import EngineError

ALL_VERSIONS = [(flavour, version) for flavour, versions in FLAVOURS.items() for version in versions]


@pytest.fixture
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


def faked(monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str, gpu: Gpu | None = None) -> TensorRt:
    install_tensorrt(monkeypatch, gpu or Gpu(), flavour, version)
    return load_tensorrt(flavour)


# What TensorRT-RTX really does


@pytest.mark.parametrize("targets", [("8.6", "8.9", "12.0"), ("8.0",)], ids=str)
@pytest.mark.parametrize("make", [lambda **k: conv_of("float32", **k), lambda **k: conv_of("float16", **k), conv_int8])
def test_rtx_builds_every_precision_for_gpus_that_are_not_here(
    rtx: TensorRt, make: Any, targets: tuple[str, ...]
) -> None:
    built = build_engine(rtx, make(targets=targets))
    assert len(built.data) > 10_000


def test_rtx_one_engine_for_several_gpus_is_not_the_engine_of_one(rtx: TensorRt) -> None:
    assert (
        build_engine(rtx, conv_of("float32", targets=("8.6", "8.9"))).data != build_engine(rtx, conv_of("float32")).data
    )


def test_rtx_a_graph_of_fixed_sizes_needs_no_profile(rtx: TensorRt) -> None:
    assert build_engine(rtx, conv_of("float32", batch=2, profile={})).data


def test_rtx_builds_the_graphs_of_a_bundle(rtx: TensorRt, tmp_path: Any) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    for name, profile in {"frame": BATCHES, "masks": {"masks": (1, 2, 4)}}.items():
        request = build_request(bundle, name, profile, ("8.9",))
        graph = request.graph.model_copy(update={"precision": "fp32"})
        assert build_engine(rtx, replace(request, graph=graph)).data


def test_rtx_counts_what_the_network_computes_in(rtx: TensorRt) -> None:
    assert build_engine(rtx, conv_of("float32")).precision == {"convolution fp32": 1, "tensor fp32": 2}
    assert build_engine(rtx, conv_of("float16")).precision == {"convolution fp16": 1, "tensor fp16": 2}
    int8 = build_engine(rtx, conv_int8()).precision
    assert (int8["convolution int8"], int8["convolution fp16"]) == (1, 1)


def test_rtx_without_a_gpu_the_targets_must_be_named(rtx: TensorRt) -> None:
    import ctypes.util

    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(EngineError, match=r"name the GPUs it is for \(targets such as 8\.6\)"):
        build_engine(rtx, conv_of("float32", targets=()))


@pytest.mark.parametrize("targets", [("9.0",), ("86",), ("CURRENT",), ("8.6", "8.6"), ("",)])
def test_rtx_targets_it_does_not_know_are_refused_with_those_it_does(rtx: TensorRt, targets: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match=r"8\.0, 8\.6, 8\.9, 12\.0"):
        build_engine(rtx, conv_of("float32", targets=targets))


@pytest.mark.parametrize("data", [b"", b"hello", b"<html>not found</html>", conv_of("float32").model[:-200]])
def test_rtx_what_is_no_whole_onnx_file_is_refused(rtx: TensorRt, data: bytes) -> None:
    """TensorRT takes some of these for a network of nothing."""
    with pytest.raises(EngineError, match=r"none\.onnx \(small\)"):
        build_engine(rtx, replace(conv_of("float32"), model=data))


def test_rtx_an_unknown_operator_is_named_with_its_node(rtx: TensorRt) -> None:
    tensors = {"x": ("float32", (1, 3))}, {"y": ("float32", (1, 3))}
    with pytest.raises(EngineError, match=r"node 'the node' \(Wondrous\): .*Plugin not found"):
        build_engine(rtx, one_node("Wondrous", *tensors))


def test_rtx_sizes_that_do_not_fit_are_told_with_the_node(rtx: TensorRt) -> None:
    inputs = {"a": ("float32", (1, 3)), "b": ("float32", (4, 3))}
    with pytest.raises(EngineError, match=r"node 'the node' \(MatMul\): .*dimension of input0 = 3"):
        build_engine(rtx, one_node("MatMul", inputs, {"y": ("float32", (1, 3))}))


def test_rtx_two_precisions_in_one_node_are_not_mixed(rtx: TensorRt) -> None:
    """Strongly typed: TensorRT casts nothing by itself."""
    inputs = {"a": ("float32", (1, 3)), "b": ("float16", (1, 3))}
    with pytest.raises(EngineError, match=r"types Float and Half"):
        build_engine(rtx, one_node("Add", inputs, {"y": ("float32", (1, 3))}))


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ({"x": ("float16", ("batch", 3, 16, 16))}, {}, r"'x': expected float16 .*, found float32"),
        ({"x": ("float32", ("batch", 3, 16, 32))}, {}, r"'x': expected .*32\], found .*16\]"),
        (
            {"x": ("float32", ("batch", 16, 16))},
            {},
            r"'x': expected float32 \[batch, 16, 16\], found float32 \[\?, 3, 16, 16\]",
        ),
        (
            {"image": ("float32", ("batch", 3, 16, 16))},
            {},
            r"input 'image' is not in the graph, which has x; input 'x' is in the graph but not in the manifest",
        ),
        (
            {},
            {"y": ("float32", ("batch", 8, 16, 16))},
            r"output 'y' is not in the graph, which has z; output 'z' is in the graph but not in the manifest",
        ),
    ],
)
def test_rtx_a_graph_that_is_not_the_manifest_s_is_refused(rtx: TensorRt, inputs: Any, outputs: Any, told: str) -> None:
    right = {"x": ("float32", ("batch", 3, 16, 16))}, {"z": ("float32", ("batch", 8, 16, 16))}
    with pytest.raises(EngineError, match=told):
        build_engine(rtx, request_of(conv_of("float32").model, inputs or right[0], outputs or right[1]))


def test_rtx_a_fixed_axis_is_not_taken_for_a_dynamic_one(rtx: TensorRt) -> None:
    dynamic, fixed = conv_of("float32"), conv_of("float32", batch=2)
    with pytest.raises(EngineError, match=r"expected float32 \[batch, 3, 16, 16\], found float32 \[2, 3, 16, 16\]"):
        build_engine(rtx, replace(dynamic, model=fixed.model))


def test_rtx_a_listed_warning_is_let_pass_and_told(rtx: TensorRt) -> None:
    assert any("scales to fp32" in warning for warning in build_engine(rtx, conv_int8()).warnings)


def test_rtx_a_warning_that_is_not_listed_fails_the_build(rtx: TensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted_messages, "ACCEPTED", accepted_messages.ACCEPTED[:1])
    with pytest.raises(EngineError, match=r"nobody has accounted for; it says: .*Converting conv"):
        build_engine(rtx, conv_int8())


def test_rtx_the_warnings_of_one_build_are_not_those_of_the_next(rtx: TensorRt) -> None:
    assert build_engine(rtx, conv_int8()).warnings
    assert not any("scales" in warning for warning in build_engine(rtx, conv_of("float32")).warnings)


def test_rtx_progress_is_heard_and_rises_to_the_end(rtx: TensorRt) -> None:
    told: list[tuple[str, float]] = []
    build_engine(rtx, conv_of("float32"), lambda phase, fraction: told.append((phase, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < 0.1
    assert len(set(fractions)) > 10
    assert told[-1] == ("built", 1.0)


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", [StopError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_rtx_what_progress_raises_ends_the_build_and_is_raised(
    rtx: TensorRt, kind: type[BaseException], after: float, capfd: pytest.CaptureFixture[str]
) -> None:
    raised = kind("enough")
    told: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        told.append(fraction)
        if fraction >= after:
            raise raised

    with pytest.raises(kind) as caught:
        build_engine(rtx, conv_of("float32"), progress)
    assert caught.value is raised
    assert told[-1] < 0.9
    # TensorRT's bindings print what comes through them.
    assert "Exception caught" not in "".join(capfd.readouterr())
    assert build_engine(rtx, conv_of("float32")).data


def test_rtx_ctrl_c_ends_the_build_and_is_raised_outside_of_tensorrt(
    rtx: TensorRt, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        told.append(fraction)
        if len(told) == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, conv_of("float32"), progress)
    assert len(told) < 10
    assert "Exception caught" not in "".join(capfd.readouterr())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rtx_a_program_that_handles_ctrl_c_itself_keeps_its_way(rtx: TensorRt) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        built = build_engine(rtx, conv_of("float32"), lambda *_: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert built.data
    assert heard


# What is asked of the library, whichever it is


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({}, r"sizes for nothing; expected the dynamic axes of its inputs, batch"),
        ({"masks": (1, 2, 4)}, r"sizes for masks; expected .* batch"),
        ({"batch": (1, 2, 4), "masks": (1, 2, 4)}, r"sizes for batch, masks; expected .* batch"),
        ({"batch": (4, 2, 1)}, r"smallest <= usual <= largest"),
        ({"batch": (0, 1, 1)}, r"from 1 on"),
    ],
)
def test_a_profile_has_sizes_for_the_dynamic_axes_and_no_others(
    monkeypatch: pytest.MonkeyPatch, profile: Any, told: str
) -> None:
    gpu = Gpu()
    library = faked(monkeypatch, "tensorrt", "10.3.0", gpu)
    with pytest.raises(EngineError, match=told):
        build_engine(library, conv_of("float32", profile=profile, targets=()))
    assert not gpu.counts["builds"]


def test_a_graph_without_dynamic_axes_takes_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    library = faked(monkeypatch, "tensorrt", "10.3.0")
    with pytest.raises(EngineError, match=r"of which there are none"):
        build_engine(library, conv_of("float32", batch=1, targets=()))


def test_tensorrt_builds_for_the_gpu_that_is_here_only(monkeypatch: pytest.MonkeyPatch) -> None:
    library = faked(monkeypatch, "tensorrt", "11.1.0")
    with pytest.raises(EngineError, match=r"give none, or use tensorrt-rtx"):
        build_engine(library, conv_of("float32", targets=("8.6",)))


class Witness:
    """What the builder was told: flags of networks, configurations, timing caches given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network_flags: list[int] = []
        self.configs: list[Any] = []
        self.timings: list[bytes] = []
        create_network = fake_tensorrt.Builder.create_network
        create_config = fake_tensorrt.Builder.create_builder_config
        create_cache = fake_tensorrt.IBuilderConfig.create_timing_cache

        def network(builder: Any, flags: int = 0) -> Any:
            self.network_flags.append(flags)
            return create_network(builder, flags)

        def config(builder: Any) -> Any:
            made = create_config(builder)
            tf32 = fake_tensorrt.BuilderFlag10.TF32, fake_tensorrt.BuilderFlag.TF32
            for flag in tf32:
                made.set_flag(flag)
            self.configs.append(made)
            return made

        def cache(made: Any, known: bytes) -> Any:
            self.timings.append(known)
            return create_cache(made, known)

        monkeypatch.setattr(fake_tensorrt.Builder, "create_network", network)
        monkeypatch.setattr(fake_tensorrt.Builder, "create_builder_config", config)
        monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "create_timing_cache", cache)


def here(request: BuildRequest) -> BuildRequest:
    return replace(request, targets=())


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_networks_are_strongly_typed_in_every_version(
    monkeypatch: pytest.MonkeyPatch, flavour: str, version: str
) -> None:
    """10.x must be told; later ones know nothing else."""
    witness = Witness(monkeypatch)
    built = build_engine(faked(monkeypatch, flavour, version), here(conv_of("float32")))
    assert built.data
    assert witness.network_flags == [2 if version.startswith("10.") else 0]


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_fp32_is_not_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str) -> None:
    witness = Witness(monkeypatch)
    library = faked(monkeypatch, flavour, version)
    build_engine(library, here(conv_of("float32")))
    assert not witness.configs[0].get_flag(library.module.BuilderFlag.TF32)


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_timings_are_kept_by_tensorrt_only(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str) -> None:
    witness = Witness(monkeypatch)
    built = build_engine(faked(monkeypatch, flavour, version), replace(here(conv_of("float32")), timings=b"measured"))
    assert (built.timings, witness.timings) == ((b"timings", [b"measured"]) if flavour == "tensorrt" else (b"", []))


def test_timings_that_tensorrt_refuses_cost_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    library = faked(monkeypatch, "tensorrt", "10.13.3.9")

    def fussy(config: Any, known: bytes) -> Any:
        if known:
            log_of(library).logger.log(fake_tensorrt.Severity.WARNING, "timing cache of another device")
            return None
        return fake_tensorrt.ITimingCache()

    monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "create_timing_cache", fussy)
    assert build_engine(library, replace(here(conv_of("float32")), timings=b"other")).timings == b"timings"


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_no_engine_is_an_error_with_what_the_library_said(
    monkeypatch: pytest.MonkeyPatch, flavour: str, version: str
) -> None:
    gpu = Gpu()
    gpu.faults.build = 1
    with pytest.raises(EngineError, match=rf"{flavour} gave no engine; it says: .*Could not find any implementation"):
        build_engine(faked(monkeypatch, flavour, version, gpu), here(conv_of("float32")))


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_any_warning_fails_the_build(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str) -> None:
    gpu = Gpu()
    gpu.faults.build_warnings = ["Profile kMAX values are not self-consistent"]
    with pytest.raises(EngineError, match=r"accounted for; it says: Profile kMAX"):
        build_engine(faked(monkeypatch, flavour, version, gpu), here(conv_of("float32")))


def test_a_builder_that_does_not_start_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    library = faked(monkeypatch, "tensorrt", "10.3.0")

    def none(logger: Any) -> Any:
        logger.log(fake_tensorrt.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(library.module, "Builder", none)
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU and its driver .*initialization failure"):
        build_engine(library, here(conv_of("float32")))


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_progress_ends_a_build_in_every_version(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str) -> None:
    def progress(phase: str, fraction: float) -> None:
        raise StopError

    with pytest.raises(StopError):
        build_engine(faked(monkeypatch, flavour, version), here(conv_of("float32")), progress)


UINT8 = {"images": ("uint8", (2, 4))}, {"y": ("int64", (2,))}


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_what_reads_uint8_without_a_cast_is_refused_with_its_node(
    monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str
) -> None:
    request = one_node("Shape", *UINT8)
    library = faked(monkeypatch, flavour, version)
    if flavour == "tensorrt-rtx":
        assert build_engine(library, here(request)).data
        return
    with pytest.raises(EngineError, match=r"node 'the node' \(Shape\): All UINT8 inputs must .*export it again"):
        build_engine(library, here(request))


@pytest.mark.parametrize("version", FLAVOURS["tensorrt-rtx"])
def test_rtx_has_no_kernels_for_a_gpu_that_its_configuration_took(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """CURRENT is accepted without a look at the GPU, here one of compute capability 9.0."""
    hopper = Gpu(name="NVIDIA H100", capability=(9, 0))
    with pytest.raises(EngineError, match=r"tensorrt-rtx gave no engine; it says: .*no kernels for \(9, 0\)"):
        build_engine(faked(monkeypatch, "tensorrt-rtx", version, hopper), here(conv_of("float32")))
    for_others = build_engine(faked(monkeypatch, "tensorrt-rtx", version, hopper), conv_of("float32", targets=("8.6",)))
    library = faked(monkeypatch, "tensorrt-rtx", version, hopper)
    with log_of(library).listening() as said:
        assert library.module.Runtime(log_of(library).logger).deserialize_cuda_engine(for_others.data) is None
    assert "incompatible device" in said[0].text


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_the_inspector_of_an_engine_knows_types_of_layers(
    monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str
) -> None:
    gpu = Gpu()
    library = faked(monkeypatch, flavour, version, gpu)
    built = build_engine(library, here(conv_of("float32")))
    engine = library.module.Runtime(log_of(library).logger).deserialize_cuda_engine(built.data)
    told = engine.create_engine_inspector().get_engine_information(library.module.LayerInformationFormat.JSON)
    assert json.loads(told)["Layers"] == [
        {"Name": "conv", "LayerType": "CONVOLUTION"},
        {"Name": "relu", "LayerType": "ELEMENTWISE"},
    ]


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
@pytest.mark.parametrize("level", [0, 3, 5])
def test_the_builder_is_told_the_level(monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str, level: int) -> None:
    witness = Witness(monkeypatch)
    build_engine(faked(monkeypatch, flavour, version), replace(here(conv_of("float32")), level=level))
    assert witness.configs[0].builder_optimization_level == level


@pytest.mark.parametrize("level", [-1, 6])
def test_a_level_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    library = faked(monkeypatch, "tensorrt", "11.1.0")
    with pytest.raises(EngineError, match=rf"level {level} was requested; expected 0 to 5"):
        build_engine(library, replace(here(conv_of("float32")), level=level))


# Messages

SKIPPED = "Error Code: 9: Skipping tactic 0x"
GOOD_BUILDS = [
    ("ERROR", f"{SKIPPED}aa15e43058248292 due to exception canImplement1"),
    ("ERROR", f"{SKIPPED}fe80445f7bb61a99 due to exception Assertion vol == 1 failed."),
    ("ERROR", f"Error[9]: {SKIPPED}0000000000000000 due to exception Unexpected type in resetWeightsTypeIfFP"),
    ("WARNING", "Skipping tactic 0x3197d5044d71e98e due to exception no kernel image is available for execution"),
    (
        "WARNING",
        "UNSUPPORTED_STATE: Skipping tactic 33 due to insufficient memory on requested size of 629145600 detected for "
        "tactic 0xa5a46bfbd719d757.",
    ),
    (
        "WARNING",
        "UNSUPPORTED_STATESkipping tactic 4 due to insufficient memory on requested size of 66048 detected for tactic "
        "0x000000000000001f.",
    ),
    (
        "ERROR",
        "Skipping tactic 3 due to insuficient memory on requested size of 449 detected for tactic 4. Try decreasing "
        "the workspace size with IBuilderConfig::setMaxWorkspaceSize().",
    ),
    ("WARNING", "Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use tactic."),
    ("ERROR", "Tactic Device request: 2304MB Available: 1536MB. Device memory is insufficient to use tactic."),
    (
        "WARNING",
        "Unknown embedded device detected. Using 52960MiB as the allocation cap for memory on embedded devices.",
    ),
    ("WARNING", "Unable to determine GPU memory usage: In nvinfer1::getGpuMemStatsInBytes at resources.cpp:1175"),
    (
        "WARNING",
        "CUDA lazy loading is not enabled. Enabling it can significantly reduce device memory usage and speed up "
        'TensorRT initialization. See "Lazy Loading" section of CUDA documentation',
    ),
    ("WARNING", "Detected invalid timing cache, setup a local cache instead"),
    ("WARNING", "ModelImporter.cpp:503: Make sure input slots has Int64 binding."),
]
"""As they were reported, from builds that ended well."""

WRONG_ENGINES = [
    ("ERROR", f"{SKIPPED}3197d5044d71e98e due to exception an illegal memory access was encountered"),
    ("WARNING", "Skipping tactic 0x3197d5044d71e98e due to exception Cuda Runtime (misaligned address)"),
    ("WARNING", "Detected layernorm nodes in FP16."),
    (
        "WARNING",
        "TensorRT encountered issues when converting weights between types and that could affect accuracy.",
    ),
    ("WARNING", "- 18 weights are affected by this issue: Detected values less than smallest positive FP16 value"),
    ("WARNING", "One or more weights outside the range of FLOAT was clamped"),
    ("WARNING", "Unused Input: valid_sizes"),
    ("WARNING", "The CUDA context changed between createInferBuilder and buildSerializedNetwork."),
    ("ERROR", "CUDA lazy loading is not enabled."),
    ("INTERNAL_ERROR", f"{SKIPPED}aa15e43058248292 due to exception canImplement1"),
    ("ERROR", "Error Code 10: Internal Error (Could not find any implementation for node)"),
]


def logging_builder(gpu: Gpu, messages: list[tuple[str, str]]) -> None:
    gpu.faults.build_warnings = [text for severity, text in messages if severity == "WARNING"]
    gpu.faults.build_errors = [text for severity, text in messages if severity == "ERROR"]


@pytest.mark.parametrize("version", FLAVOURS["tensorrt"])
def test_what_good_builds_log_is_let_pass_and_told(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = Gpu()
    logging_builder(gpu, GOOD_BUILDS)
    built = build_engine(faked(monkeypatch, "tensorrt", version, gpu), here(conv_of("float32")))
    assert built.data
    assert not built.unaccounted
    assert "CUDA lazy loading" in " ".join(built.warnings)


@pytest.mark.parametrize(("severity", "text"), GOOD_BUILDS)
def test_each_of_them_has_a_reason_of_its_own(severity: str, text: str) -> None:
    assert sorted_messages([Line(severity, text)], "tensorrt") == ((text,), ())


@pytest.mark.parametrize(("severity", "text"), WRONG_ENGINES)
def test_what_may_mean_a_wrong_engine_is_refused(severity: str, text: str) -> None:
    assert sorted_messages([Line(severity, text)], "tensorrt") == ((), (text,))


def test_rtx_times_no_kernels_and_so_skips_none() -> None:
    said = [Line(severity, text) for severity, text in GOOD_BUILDS if "tactic" in text]
    assert sorted_messages(said, "tensorrt-rtx")[0] == ()


def test_a_thousand_skipped_kernels_are_one_message() -> None:
    said = [Line("ERROR", f"{SKIPPED}{number:016x} due to exception canImplement1") for number in range(1000)]
    (told,), refused = sorted_messages([*said, *said], "tensorrt")
    assert told == f"{said[0].text} (and 999 like it)"
    assert not refused


def test_an_engine_that_is_refused_leaves_its_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    logging_builder(gpu, WRONG_ENGINES[:3])
    library = faked(monkeypatch, "tensorrt", "11.1.0", gpu)
    with pytest.raises(BuildRefusedError, match=rf"accounted for.*illegal memory.*; {ACCEPT_MESSAGES}=1") as raised:
        build_engine(library, here(conv_of("float32")))
    assert raised.value.timings == b"timings"
    gpu.faults.build = 1
    with pytest.raises(BuildRefusedError, match="gave no engine") as raised:
        build_engine(library, here(conv_of("float32")))
    assert raised.value.timings == b"timings"


def test_where_all_kernels_are_left_out_their_lines_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    logging_builder(gpu, GOOD_BUILDS)
    gpu.faults.build = 1
    with pytest.raises(EngineError, match=r"find any implementation.*Device memory is insufficient"):
        build_engine(faked(monkeypatch, "tensorrt", "10.3.0", gpu), here(conv_of("float32")))


@pytest.mark.parametrize(("flavour", "version"), ALL_VERSIONS)
def test_all_messages_can_be_let_pass_and_are_kept_with_the_engine(
    monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str
) -> None:
    gpu = Gpu()
    logging_builder(gpu, [GOOD_BUILDS[-1], WRONG_ENGINES[2], WRONG_ENGINES[-1]])
    library = faked(monkeypatch, flavour, version, gpu)
    built = build_engine(library, replace(here(conv_of("float32")), accept_all=True))
    assert built.warnings == (GOOD_BUILDS[-1][1],)
    assert built.unaccounted == (WRONG_ENGINES[2][1], WRONG_ENGINES[-1][1])


@pytest.mark.parametrize(("value", "accepted"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_says_whether_all_messages_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, value: str | None, accepted: bool
) -> None:
    monkeypatch.delenv(ACCEPT_MESSAGES, raising=False)
    if value is not None:
        monkeypatch.setenv(ACCEPT_MESSAGES, value)
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    assert build_request(bundle, "frame", BATCHES).accept_all is accepted


def test_a_warning_passes_for_the_flavour_it_is_listed_for_and_as_a_whole() -> None:
    said = Line("WARNING", "(foreignNode) Converting conv weight scales to fp32.")
    assert sorted_messages([said], "tensorrt-rtx") == ((said.text,), ())
    assert sorted_messages([said], "tensorrt") == ((), (said.text,))
    longer = Line("WARNING", f"{said.text} And the rest to int4.")
    assert sorted_messages([longer], "tensorrt-rtx") == ((), (longer.text,))


def test_an_error_is_never_let_pass() -> None:
    said = Line("ERROR", "(foreignNode) Converting conv weight scales to fp32.")
    assert sorted_messages([said], "tensorrt-rtx") == ((), (said.text,))


# How far it is


def test_phases_within_phases_fill_their_step() -> None:
    told: list[tuple[str, float]] = []
    tree = ProgressTree(lambda phase, fraction: told.append((phase, fraction)), lambda: False)
    tree.start("whole", None, 2)
    tree.start("part", "whole", 4)
    assert tree.step("part", 0)
    tree.finish("part")
    tree.step("whole", 0)
    tree.start("part", "whole", 1)
    tree.step("part", 0)
    tree.finish("part")
    tree.step("whole", 1)
    fractions = [fraction for _, fraction in told]
    assert fractions == [0.0, 0.0, 0.125, 0.5, 0.5, 1.0, 1.0]


def test_who_asked_to_stop_is_asked_after_each_step() -> None:
    answers = iter([False, True])
    tree = ProgressTree(ignore_progress, lambda: next(answers))
    tree.start("whole", None, 3)
    assert [tree.step("whole", 0), tree.step("whole", 1)] == [True, False]


def test_an_island_is_built_where_the_manifest_says_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_engine(faked(monkeypatch, "tensorrt", "11.1.0"), here(island())).data
