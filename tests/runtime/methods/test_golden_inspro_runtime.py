"""The composed InsPro's video-level result, from its frames through our runtime; the network computes in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fakes_inspro import inspro_manifest
from golden import Golden, assert_same_finals, fit_officially, golden_sets
from golden_networks import inspro, inspro_run, key_every
from torch import nn

from visrt.benchmarks.video_level.inspro import inspro_result
from visrt.export.inspro_graphs import HeadGraph, InsProFrameGraph, InsProMasksGraph, LiteHeadGraph
from visrt.models.condinst import parameter_count
from visrt.runtime.arrays import Feed, HostTensor, Tensor
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.methods.inspro import BANK, PROPOSALS, QUERIES, InsPro, InsProSettings
from visrt.runtime.network import Network
from visrt.runtime.times import Stopwatch


@dataclass
class TorchEngine(HostEngine):
    """A graph in torch behind the Engine protocol."""

    graph: nn.Module
    provider: str = "torch"

    @torch.inference_mode()
    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        given = {role: value if isinstance(value, np.ndarray) else value.numpy() for role, value in feeds.items()}
        made = self.graph(**{role: torch.from_numpy(values) for role, values in given.items()})
        return {role: HostTensor(tensor.numpy()) for role, tensor in made._asdict().items()}

    def close(self) -> None: ...


def torch_network(golden: Golden, family: InsPro) -> Network:
    network = inspro(golden)
    height, width = golden.input_size
    modules: dict[str, nn.Module] = {
        "frame": InsProFrameGraph(network, network.settings.pixel_mean, network.settings.pixel_std),
        "head": HeadGraph(network, height, width),
        "masks": InsProMasksGraph(network.settings.mask_scale_px),
    }
    if network.settings.lite_stages:
        modules["head_lite"] = LiteHeadGraph(network, height, width)
    engines: dict[str, Engine] = {name: TorchEngine(modules[name]) for name in family.required_graphs()}
    queries, proposals = (part.detach().numpy() for part in network.first_pairs())
    slots, dim = queries.shape
    states = {
        QUERIES: queries,
        PROPOSALS: proposals,
        BANK: np.zeros((slots, network.settings.bank_entries, dim), np.float32),
    }
    manifest = inspro_manifest((height, width), family="inspro_lite" if "head_lite" in engines else "inspro")
    return Network(engines, _of_size(manifest, slots, dim, network.settings.bank_entries), Stopwatch(), states=states)


def _of_size(manifest: Manifest, slots: int, dim: int, entries: int) -> Manifest:
    """The fake network's manifest with the state of another size."""
    shapes = {QUERIES: (slots, dim), PROPOSALS: (slots, 4), BANK: (slots, dim)}
    states = {name: state.model_copy(update={"shape": shapes[name]}) for name, state in manifest.states.items()}
    head, of_slots = manifest.graphs["head"], ("streams", slots, parameter_count(8))
    bank = head.inputs["bank"].model_copy(update={"shape": ("streams", slots, entries, dim)})
    masks = manifest.graphs["masks"]
    embeddings = masks.inputs["mask_embeddings"].model_copy(update={"shape": of_slots})
    graphs = {
        **manifest.graphs,
        "head": head.model_copy(update={"inputs": {**head.inputs, "bank": bank}}),
        "masks": masks.model_copy(update={"inputs": {**masks.inputs, "mask_embeddings": embeddings}}),
    }
    return manifest.model_copy(update={"graphs": graphs, "states": states})


@pytest.mark.parametrize("golden", golden_sets("inspro", "video"), indirect=True)
def test_golden_inspro_video_result(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_officially(monkeypatch, golden)
    family = InsPro(InsProSettings(key_every_frames=key_every(golden)))

    result = inspro_result(torch_network(golden, family), family, lambda: golden.frames, len(golden.finals.scores))

    assert result.frames == len(golden.frames)
    run = inspro_run(golden)
    assert_same_finals(result, golden.finals, run.chance_bound, run.mask_share)
