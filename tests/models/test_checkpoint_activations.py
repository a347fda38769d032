"""Claims about activations that are computed again in the backward pass: same gradients, less memory, no new key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inspro_networks import SMALL as INSPRO
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.models.inspro import InsPro
from visrt.models.layers import checkpoint_activations
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.swin import SwinSettings

FRAME = NetworkSettings(
    classes=3,
    queries=6,
    backbone=ResNetSettings(blocks=(2, 2, 2, 2), width=8, stem_width=8),
    conv_dim=32,
    mask_dim=32,
    hidden_dim=32,
    heads=2,
    encoder_layers=2,
    decoder_layers=3,
)
SWIN = SwinSettings(embed_dim=16, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window=3, drop_path=0.5)
LIGHT = replace(FRAME, backbone=EfficientNetLite0Settings(), pixel_decoder="fpn")
VIDEO = GenVisNetworkSettings(FRAME, instances=5, heads=2, encoder_layers=2, decoder_layers=2, feedforward_dim=64)

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def frame_loss(network: nn.Module) -> Tensor:
    outputs = network(IMAGES)
    return torch.stack([output.square().mean() for output in outputs]).sum()


def clip_loss(network: nn.Module) -> Tensor:
    assert isinstance(network, GenVis)
    queries, mask_features = network(IMAGES)
    clip = network.clips(queries[None], network.first_start().base[None])
    outputs = (clip.class_logits, clip.mask_embeddings, mask_features)
    return torch.stack([output.square().mean() for output in outputs]).sum()


def pair_loss(network: nn.Module) -> Tensor:
    assert isinstance(network, InsPro)
    maps, pairs = network(IMAGES), network.first_pairs()
    both = type(pairs)(*(one.expand(2, -1, -1) for one in pairs))
    last = network.stages(maps.pyramid, both, torch.tensor([[64, 96]] * 2))[-1]
    return last.class_logits.square().mean() + network.mask_parameters(last).square().mean()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "resnet": (lambda: Mask2Former(FRAME), frame_loss),
    "swin_with_drop_path": (lambda: Mask2Former(replace(FRAME, backbone=SWIN)), frame_loss),
    "efficientnet_and_fpn": (lambda: Mask2Former(LIGHT), frame_loss),
    "genvis": (lambda: GenVis(VIDEO), clip_loss),
    "inspro": (lambda: InsPro(INSPRO), pair_loss),
}


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """The size of each storage that the forward pass inside keeps for the backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    sizes: list[int] = []
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    sizes.extend(storages.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same_with_less_kept(name: str) -> None:
    make, loss = NETWORKS[name]
    torch.manual_seed(0)
    plain = make().train()
    recomputing = copy.deepcopy(plain)
    checkpoint_activations(recomputing)
    gradients, kept = [], []
    for network in (plain, recomputing):
        torch.manual_seed(1)
        with kept_bytes() as sizes:
            total = loss(network)
        total.backward()
        kept.append(sum(sizes))
        gradients.append({key: p.grad for key, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, msg=key)
    assert kept[1] < 0.7 * kept[0]
    assert plain.state_dict().keys() == recomputing.state_dict().keys()


def test_a_copy_of_the_network_computes_with_its_own_weights() -> None:
    """The running average of the weights is such a copy."""
    network = Mask2Former(FRAME)
    checkpoint_activations(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert frame_loss(copied).item() != frame_loss(network).item()


def test_it_works_under_distributed_data_parallel(tmp_path: Path) -> None:
    network = Mask2Former(FRAME)
    checkpoint_activations(network)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        frame_loss(wrapped).backward()
    finally:
        torch.distributed.destroy_process_group()
    alone = copy.deepcopy(network)
    alone.zero_grad()
    frame_loss(alone).backward()
    torch.testing.assert_close(
        network.backbone.get_parameter("res2.0.conv1.weight").grad,
        alone.backbone.get_parameter("res2.0.conv1.weight").grad,
    )
