"""The composed InsPro's video-level result, from its frames through our runtime; the network computes in torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import assert_same_finals, fit_officially, golden_sets, load_golden
from torch import nn

from visrt.benchmarks.video_level.inspro import inspro_result
from visrt.export.inspro_graphs import HeadGraph, InsProFrameGraph, InsProMasksGraph, LiteHeadGraph
from visrt.models.checkpoints import load_checkpoint
from visrt.models.inspro_checkpoints import INSPRO
from visrt.runtime.engine import Array, Engine, HostTensor, Tensor
from visrt.runtime.inspro import BANK, PROPOSALS, QUERIES, InsPro, InsProSettings
from visrt.runtime.manifest import InputSpec
from visrt.runtime.network import Network
from visrt.runtime.times import Stopwatch


@dataclass
class TorchEngine:
    """A graph in torch behind the Engine protocol; one that gives a tensor alone is the masks graph."""

    graph: nn.Module
    provider: str = "torch"

    @torch.inference_mode()
    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        given = {role: value if isinstance(value, np.ndarray) else value.numpy() for role, value in feeds.items()}
        made = self.graph(**{role: torch.from_numpy(values) for role, values in given.items()})
        roles = {"mask_logits": made} if isinstance(made, torch.Tensor) else made._asdict()
        return {role: HostTensor(tensor.numpy()) for role, tensor in roles.items()}

    def close(self) -> None: ...


def torch_network(golden: dict[str, Any], folder: Path) -> Network:
    weights = {name[3:]: torch.from_numpy(array) for name, array in golden.items() if name.startswith("sd/")}
    torch.save({"model": weights}, folder / "composed.pth")
    told = json.loads(str(golden["config_json"]))
    untold = {"heads": told["sparsercnn"]["NHEADS"], "bank_frames": told["bank_T"]}
    network = load_checkpoint(folder / "composed.pth", INSPRO, settings=untold).network()
    height, width = golden["frame0/image_normalized_padded"].shape[2:]
    modules: dict[str, nn.Module] = {
        "frame": InsProFrameGraph(network, network.settings.pixel_mean, network.settings.pixel_std),
        "head": HeadGraph(network, height, width),
        "masks": InsProMasksGraph(network.settings.mask_scale_px),
    }
    if network.settings.lite_stages:
        modules["head_lite"] = LiteHeadGraph(network, height, width)
    needs = InsPro(InsProSettings(key_every_frames=told["lite_K"] or 1)).needs()
    engines: dict[str, Engine] = {name: TorchEngine(modules[name]) for name in needs}
    queries, proposals = (part.detach().numpy() for part in network.first_pairs())
    bank = np.zeros((told["bank_T"] - 1, *queries.shape), dtype=np.float32)
    states = {QUERIES: queries, PROPOSALS: proposals, BANK: bank}
    return Network(engines, InputSpec(height=height, width=width), Stopwatch(), states=states)


@pytest.mark.parametrize("path", golden_sets("inspro_*composed_*"))
def test_golden_inspro_video_result(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden(path)
    every = json.loads(str(golden["config_json"]))["lite_K"] or 1
    fit_officially(monkeypatch, {"image_size": np.array(golden["in/resized_uint8_chw"].shape[2:])})
    frames = list(golden["in/frames_rgb_uint8"])
    family, finals = InsPro(InsProSettings(key_every_frames=every)), len(golden["out_assumed/labels"])
    result = inspro_result(torch_network(golden, tmp_path), family, lambda: frames, finals)
    assert result.frames == len(frames)
    expected = {
        "final_scores": golden["out_assumed/scores_mean_over_frames"],
        "final_labels": golden["out_assumed/labels"],
        "final_masks_packed": golden["out_assumed/masks_packed"],
        "final_masks_shape": golden["out_assumed/masks_shape"],
    }
    assert_same_finals(result, expected)
