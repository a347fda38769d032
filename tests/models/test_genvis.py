"""The published GenVIS networks by size and key, and what holds for any GenVIS network."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.published import genvis, published
from visrt.models.genvis import GenVis, GenVisNetworkSettings, read_memory
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.runtime.errors import CheckpointError

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
OFFICIAL = {"r50": "keys_genvis_r50_ytvis.txt", "swin_l": "keys_genvis_swinl_ytvis.txt"}
SIZES: dict[str, Any] = {
    "classes": 3,
    "queries": 6,
    "conv_dim": 32,
    "mask_dim": 24,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 2,
    "decoder_feedforward_dim": 40,
}
SMALL = GenVisNetworkSettings(
    frame=NetworkSettings(backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6), **SIZES),
    instances=5,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    feedforward_dim=40,
)
CLASSES = ("person", "vehicle", "animal")


def small() -> GenVis:
    torch.manual_seed(0)
    return GenVis(SMALL).eval()


def shapeless(name: str) -> GenVis:
    """A published network without memory for its weights."""
    with torch.device("meta"):
        return GenVis(genvis(published(name, 40)))


@pytest.mark.parametrize(("name", "parameters"), [("r50", 57_398_226), ("swin_l", 228_975_558)])
def test_genvis_official_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in shapeless(name).parameters()) == parameters


@pytest.mark.parametrize("name", OFFICIAL)
def test_genvis_official_keys_and_shapes(name: str) -> None:
    """A line of the list stands for the keys of several layers: pattern, shape, type, layers."""
    listed = REFERENCE / OFFICIAL[name]
    if not listed.exists():
        pytest.skip(f"no {listed}")
    official: Counter[tuple[str, str]] = Counter()
    for line in listed.read_text().splitlines():
        if line.startswith("#") or "criterion." in line:
            continue
        pattern, shape, rest = re.fullmatch(r"(\S+)\s+(\[[^\]]*\])\s+(.*)", line.rstrip()).groups()  # type: ignore[union-attr]
        layers = rest.split()[1:]
        keys = [pattern.format(*layer.split("/")) for layer in layers] if layers else [pattern]
        official.update((key, shape) for key in keys)
    ours = Counter((key, str(list(value.shape))) for key, value in shapeless(name).state_dict().items())
    assert ours == official


def test_genvis_slots_are_permuted_with_their_learned_queries() -> None:
    network = small()
    frame_queries = torch.randn(1, 3, 6, 32)
    start, order = torch.randn(1, 5, 32), torch.tensor([3, 0, 4, 1, 2])
    with torch.inference_mode():
        before = network.clips(frame_queries, start)
        network.vita_module.query_embed.weight.copy_(network.vita_module.query_embed.weight[order])
        after = network.clips(frame_queries, start[:, order])
    torch.testing.assert_close(after.class_logits, before.class_logits[:, order])


def test_genvis_clips_in_a_batch_do_not_see_each_other() -> None:
    network = small()
    frame_queries, start = torch.randn(2, 3, 6, 32), torch.randn(2, 5, 32)
    with torch.inference_mode():
        both = network.clips(frame_queries, start)
        second = network.clips(frame_queries[1:], start[1:])
    torch.testing.assert_close(both.prototypes[1:], second.prototypes)


def test_genvis_a_slot_reads_its_own_past_only_and_nothing_from_an_empty_memory() -> None:
    key, keys = torch.randn(1, 5, 32), [torch.randn(1, 5, 32) for _ in range(3)]
    values = [torch.randn(1, 5, 32) for _ in range(3)]
    whole = read_memory(key, keys, values)
    one = read_memory(key[:, 2:3], [k[:, 2:3] for k in keys], [v[:, 2:3] for v in values])
    torch.testing.assert_close(whole[:, 2:3], one)
    assert not read_memory(key, [], []).any()


def test_genvis_what_is_saved_comes_back(tmp_path: Path) -> None:
    network = small()
    save_checkpoint(network, tmp_path / "model.safetensors", CLASSES, {"step": "7"})
    checkpoint = load_checkpoint(tmp_path / "model.safetensors", GENVIS)
    assert (checkpoint.settings, checkpoint.classes, checkpoint.notes["step"]) == (SMALL, CLASSES, "7")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(checkpoint.network()(images), network(images), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_genvis_checkpoints_of_other_families_are_refused(tmp_path: Path) -> None:
    torch.save(Mask2Former(SMALL.frame).state_dict(), tmp_path / "minvis.pth")
    with pytest.raises(CheckpointError, match="expected a GenVIS network"):
        load_checkpoint(tmp_path / "minvis.pth", GENVIS)
    vita = {key: value for key, value in small().state_dict().items() if ".pre_" not in key}
    torch.save(vita, tmp_path / "vita.pth")
    with pytest.raises(CheckpointError, match="this is a VITA checkpoint, which has no memory; expected a GenVIS"):
        load_checkpoint(tmp_path / "vita.pth", GENVIS)


def test_genvis_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["vita_module.fq_pos.weight"]
    torch.save({"model": state}, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: vita_module\.fq_pos\.weight"):
        load_checkpoint(tmp_path / "broken.pth", GENVIS).network()
