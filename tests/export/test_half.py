"""A network in FP16: its batch norms are folded in float32, what FP16 cannot hold stays in float32, outputs agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from networks import HEIGHT, LIGHT, PUBLISHED_KIND, WIDTH, Exported, exported
from torch import nn

from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.export.graphs import FrameGraph
from visrt.export.half import FP16_MAX, folded, halved, islands_of, network_inputs
from visrt.models.layers import FrozenBatchNorm2d
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.trt.precision import node_precisions
from visrt.runtime.errors import CheckpointError, UsageError
from visrt.runtime.parity.frames import Frames

KINDS = pytest.mark.parametrize("settings", [PUBLISHED_KIND, LIGHT], ids=["published_kind", "light"])


def graph_of(settings: NetworkSettings) -> FrameGraph:
    """A network with seeded weights and batch norms that do something."""
    torch.manual_seed(0)
    network = Mask2Former(settings).eval()
    for norm in norms_of(network):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return FrameGraph(network, settings.pixel_mean, settings.pixel_std).eval()


def norms_of(network: nn.Module) -> list[FrozenBatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]


def frames() -> Frames:
    return synthetic_frames(2, HEIGHT, WIDTH)


def tensors(given: Frames) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(given.images), torch.from_numpy(given.valid_sizes)


@KINDS
@torch.no_grad()
def test_folding_takes_every_batch_norm_and_changes_nothing_else(settings: NetworkSettings) -> None:
    network = graph_of(settings).network
    images = torch.randn(1, 3, HEIGHT, WIDTH)
    assert norms_of(network)
    lean = folded(network, images)
    assert not norms_of(lean)
    features = network(images).mask_features
    torch.testing.assert_close(lean(images).mask_features, features, atol=1e-4 * float(features.abs().max()), rtol=0)


@KINDS
@torch.no_grad()
def test_half_a_network_says_nearly_the_same(settings: NetworkSettings) -> None:
    graph = graph_of(settings)
    half, _ = halved(graph, network_inputs(graph, frames()))
    expected, given = graph(*tensors(frames())), half(*tensors(frames()))
    assert given.mask_features.dtype == torch.float16
    assert {given.class_logits.dtype, given.embeddings.dtype, given.mask_embeddings.dtype} == {torch.float32}
    scale = float(expected.mask_features.abs().max())
    assert float((given.mask_features.float() - expected.mask_features).abs().max()) < 1e-2 * max(1, scale)


@torch.no_grad()
def test_the_network_that_was_given_stays_as_it_was() -> None:
    graph = graph_of(LIGHT)
    before = [value.clone() for value in graph.state_dict().values()]
    halved(graph, network_inputs(graph, frames()), kept=["backbone"])
    after = graph.state_dict().values()
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(before, after, strict=True))


@torch.no_grad()
def test_what_leaves_the_range_of_fp16_is_found_and_stays_in_float32() -> None:
    graph = graph_of(PUBLISHED_KIND)
    stem = graph.network.get_submodule("backbone.stem.conv1.norm")
    assert isinstance(stem, FrozenBatchNorm2d)
    # The gain of a first norm that a second undoes: fine in float32, infinite in FP16.
    stem.weight *= 1e6
    second = graph.network.get_submodule("backbone.res2.0.conv1")
    shortcut = graph.network.get_submodule("backbone.res2.0.shortcut")
    for conv in (second, shortcut):
        assert isinstance(conv.weight, torch.Tensor)
        conv.weight *= 1e-6
    half, found = halved(graph, network_inputs(graph, frames()))
    [island] = found
    assert island.module == "backbone"  # the smallest module around it that FP16 can feed and hear
    assert island.largest > FP16_MAX
    assert torch.isfinite(half(*tensors(frames())).mask_features).all()


@torch.no_grad()
def test_a_tame_network_needs_no_island() -> None:
    graph = graph_of(LIGHT)
    assert islands_of(graph.network, [(torch.randn(1, 3, HEIGHT, WIDTH),)]) == []


def test_a_module_that_is_kept_stays_in_float32_as_a_whole() -> None:
    graph = graph_of(LIGHT)
    half, _ = halved(graph, network_inputs(graph, frames()), kept=["backbone"])
    kinds = {name.startswith("backbone."): set[torch.dtype]() for name, _ in half.network.named_parameters()}
    for name, parameter in half.network.named_parameters():
        kinds[name.startswith("backbone.")].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.float16}}


def test_the_offsets_of_deformable_attention_are_a_module_that_is_watched_and_can_be_kept() -> None:
    graph, given = graph_of(PUBLISHED_KIND), frames()
    name = next(name for name, _ in graph.network.named_modules() if name.endswith("self_attn.sampling_offsets"))
    half, found = halved(graph, network_inputs(graph, given), kept=[name])
    assert found == []
    assert next(half.network.get_submodule(name).parameters()).dtype == torch.float32
    assert all(tensor.isfinite().all() for tensor in half(*tensors(given)))

    offsets = graph.network.get_submodule(name)
    assert isinstance(offsets, nn.Linear)
    nn.init.constant_(offsets.bias, FP16_MAX)
    _, found = halved(graph, network_inputs(graph, given))
    assert any(name.startswith(island.module) for island in found)


@torch.no_grad()
def test_outputs_beyond_fp16_are_refused() -> None:
    graph = graph_of(PUBLISHED_KIND)
    last = graph.network.get_submodule("sem_seg_head.pixel_decoder.mask_features")
    assert isinstance(last.weight, torch.Tensor)
    last.weight *= 1e7
    with pytest.raises(CheckpointError, match=r"outputs reach .* --precision fp32"):
        halved(graph, network_inputs(graph, frames()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture(scope="module")
def half(whole: Exported, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("half") / "bundle"
    return export_bundle(Export(whole.checkpoint, out, HEIGHT, WIDTH, precision="fp16", keep_fp32=("backbone",)))


class TestBundle:
    """One FP16 bundle, exported once."""

    def test_it_says_of_every_node_what_it_computes_in(self, half: ExportReport) -> None:
        nodes = node_precisions(open_bundle(half.folder))
        assert set(nodes["frame"].values()) == {"fp32", "fp16"}
        assert set(nodes["masks"].values()) == {"fp16"}
        assert nodes == json.loads((half.folder / "nodes.json").read_text())

    def test_it_hands_the_mask_features_over_in_fp16_and_the_rest_in_float32(self, half: ExportReport) -> None:
        outputs = half.manifest.graphs["frame"].outputs
        assert {role: spec.dtype for role, spec in outputs.items() if spec.dtype == "float16"} == {
            "mask_features": "float16"
        }
        assert {spec.dtype for spec in half.manifest.graphs["masks"].inputs.values()} == {"float16"}

    def test_it_is_about_as_large_as_half_its_weights_allow(self, half: ExportReport, whole: Exported) -> None:
        sizes = [spec.graphs["frame"].file.bytes for spec in (half.manifest, whole.report.manifest)]
        assert 0.4 * sizes[1] < sizes[0] < sizes[1]

    @pytest.mark.parametrize(
        ("precision", "kept", "told"),
        [
            ("int8", None, "visrt calibrate"),
            ("fp8", None, "choose one of fp32, fp16"),
            ("fp32", ("backbone",), "add --precision fp16"),
            ("fp16", ("spine",), "'spine' is not in the network; expected a name as backbone"),
        ],
    )
    def test_what_cannot_be_kept_is_refused(
        self, whole: Exported, tmp_path: Path, precision: str, kept: Sequence[str] | None, told: str
    ) -> None:
        islands = None if kept is None else tuple(kept)
        wanted = Export(whole.checkpoint, tmp_path / "b", HEIGHT, WIDTH, precision=precision, keep_fp32=islands)
        with pytest.raises(UsageError, match=told):
            export_bundle(wanted)
        assert not list(tmp_path.iterdir())
