"""The official GenVIS network and ours compute the same, stage by stage and clip after clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_sets, load_golden
from numpy.typing import NDArray
from torch import Tensor

from visrt.models.checkpoints import load_checkpoint
from visrt.models.decoder import mask_logits
from visrt.models.genvis import GenVis, read_memory
from visrt.models.genvis_checkpoints import GENVIS
from visrt.runtime.genvis_memory import MemoryEntry, empty_memory, read, remembered

SETS = [*golden_sets("genvis_online_*"), *golden_sets("genvis_semionline_*")]
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Golden:
    """One set: its arrays and the network with its weights."""

    arrays: dict[str, NDArray[Any]]
    network: GenVis

    @property
    def clips(self) -> list[str]:
        """Prefixes of the clips, in order."""
        count = len({name.split("/")[0] for name in self.arrays if name.startswith("clip")})
        return [f"clip{i}/" for i in range(count)]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    arrays = load_golden(request.param)
    weights = {name[3:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("sd/")}
    torch.save({"model": weights}, tmp_path / "official.pth")
    return Golden(arrays, load_checkpoint(tmp_path / "official.pth", GENVIS).network())


def assert_stage(computed: Mapping[str, Tensor | NDArray[Any]], golden: Golden, clip: str) -> None:
    """Within 1e-4 times the larger of 1 and the largest stored value, array by array."""
    for name, given in computed.items():
        stored = golden.arrays[clip + name]
        worst = np.abs(np.asarray(given).reshape(stored.shape) - stored).max()
        assert worst <= 1e-4 * max(1.0, float(np.abs(stored).max())), f"{clip}{name}: {worst}"


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_genvis_backbone_and_pixel_decoder(golden: Golden) -> None:
    decoder = golden.network.sem_seg_head.pixel_decoder
    for clip in golden.clips:
        maps = golden.network.backbone(golden.tensor(clip + "image_normalized_padded"))
        assert_stage({f"backbone_{name}": maps[name] for name in STAGES}, golden, clip)
        fine, levels = decoder.maps({name: golden.tensor(f"{clip}backbone_{name}") for name in STAGES})
        scales = {f"pd_multi_scale_{i}": level for i, level in enumerate(levels)}
        assert_stage({"pd_clip_mask_features": fine, **scales}, golden, clip)
        assert_stage({"pd_mask_features": decoder.mask_features(fine)}, golden, clip)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_genvis_frame_decoder_and_mask_features(golden: Golden) -> None:
    head = golden.network.sem_seg_head.predictor
    for clip in golden.clips:
        features = golden.tensor(clip + "pd_mask_features")
        last = head([golden.tensor(f"{clip}pd_multi_scale_{i}") for i in range(3)], features)[-1]
        masks = mask_logits(last.mask_embeddings, features)
        computed = {"m2f_pred_logits": last.class_logits, "m2f_pred_masks": masks, "frame_queries": last.queries}
        assert_stage(computed, golden, clip)
        fine = golden.tensor(clip + "pd_clip_mask_features")
        assert_stage({"vita_mask_features": golden.network.vita_module.vita_mask_features(fine)}, golden, clip)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_genvis_object_encoder_and_decoder(golden: Golden) -> None:
    vita = golden.network.vita_module
    for clip in golden.clips:
        frame_queries = golden.tensor(clip + "frame_queries")
        assert_stage({"encoder_output": vita.encode(frame_queries)}, golden, clip)
        tokens = golden.tensor(clip + "encoder_output").flatten(0, 1).transpose(0, 1)
        outputs = vita.decode(tokens, golden.tensor(clip + "query_init").transpose(0, 1))
        layers = {f"objdec_layer{i}_out": layer for i, layer in enumerate(outputs.layers[:-1])}
        heads = {"pred_logits": outputs.class_logits, "pred_mask_embed": outputs.mask_embeddings}
        assert_stage({**layers, **heads, "prototypes_out": outputs.prototypes}, golden, clip)


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_genvis_prototypes_and_memory(golden: Golden) -> None:
    """With stored inputs; the memory read by torch, as in training, and by numpy, as at run time."""
    vita = golden.network.vita_module
    slots, channels = golden.arrays["clip0/prev_prototypes_q"][:, 0].shape
    memory = empty_memory(slots)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for i, clip in enumerate(golden.clips):
        start = vita.next_start(golden.tensor(clip + "prev_prototypes_q")[:, 0])
        assert_stage({"pre_query_k": start.key}, golden, clip)
        key = golden.tensor(clip + "pre_query_k")[:, 0]
        seen, seen_by_torch = read(memory, key.numpy()), read_memory(key[None], keys, values)
        assert_stage({"memory_read_z": seen}, golden, clip)
        assert_stage({"memory_read_z": seen_by_torch}, golden, clip)
        assert_stage({"query_init": start.base.numpy() + golden.arrays[clip + "memory_read_z"][:, 0]}, golden, clip)
        entry = vita.memory_entry(golden.tensor(clip + "prototypes_out")[:, 0])
        assert_stage({"memory_k_new": entry[0], "memory_v_new": entry[1]}, golden, clip)
        stored = [golden.arrays[f"{clip}memory_{name}_new"].reshape(slots, channels) for name in "kv"]
        memory = remembered(memory, MemoryEntry(i, stored[0], stored[1]), cap=10**6)
        keys.append(torch.from_numpy(stored[0])[None])
        values.append(torch.from_numpy(stored[1])[None])


@pytest.mark.parametrize("golden", SETS, indirect=True)
@torch.inference_mode()
def test_golden_genvis_end_to_end(golden: Golden) -> None:
    """From images through all clips; errors may add up to 2e-3 of the logits, 1e-4 of mask pixels may differ."""
    network, vita = golden.network, golden.network.vita_module
    start = network.first_start()
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for clip in golden.clips:
        frames = network(golden.tensor(clip + "image_normalized_padded"))
        read_out = read_memory(start.key[None], keys, values)[0]
        outputs = network.clips(frames.frame_queries[None], (start.base + read_out)[None])
        start = vita.next_start(outputs.prototypes[0])
        key, value = vita.memory_entry(outputs.prototypes)
        keys.append(key)
        values.append(value)
        masks = torch.einsum("sd,tdhw->sthw", outputs.mask_embeddings[0], frames.mask_features).numpy()
        stored = golden.arrays[clip + "mask_logits_stride4_all_queries"]
        assert np.count_nonzero((masks > 0) != (stored > 0)) <= 1e-4 * stored.size
        assert np.abs(masks - stored).max() <= 2e-3
        assert np.abs(outputs.class_logits.numpy() - golden.arrays[clip + "pred_logits"][0]).max() <= 2e-3
        prototypes = golden.arrays[clip + "prototypes_out"][:, 0]
        assert np.abs(outputs.prototypes[0].numpy() - prototypes).max() <= 2e-3


@pytest.mark.parametrize("golden", SETS, indirect=True)
def test_golden_genvis_architecture_is_read_from_the_shapes(golden: Golden) -> None:
    settings = golden.network.settings
    assert (settings.classes, settings.instances, settings.heads) == (7, 10, 4)
    assert (settings.encoder_layers, settings.decoder_layers, settings.feedforward_dim) == (2, 2, 48)
    assert settings.frame.queries == golden.arrays["clip0/frame_queries"].shape[2]
