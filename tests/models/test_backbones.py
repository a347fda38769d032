"""Claims about the published backbones."""

from dataclasses import replace

import pytest
import torch

from visrt.models.resnet import ResNet, ResNetSettings
from visrt.models.swin import (
    HIDDEN,
    Swin,
    SwinBlock,
    SwinSettings,
    from_windows,
    relative_position_index,
    shift_mask,
    to_windows,
)

TINY_RESNET = ResNetSettings(blocks=(1, 2, 1, 1), width=4, stem_width=6)
TINY_SWIN = SwinSettings(embed_dim=8, depths=(2, 1, 1, 1), heads=(1, 2, 2, 4), window=3)


@pytest.mark.parametrize("backbone", [ResNet(TINY_RESNET), Swin(TINY_SWIN)], ids=["resnet", "swin"])
def test_maps_have_the_promised_strides_and_channels(backbone: ResNet | Swin) -> None:
    maps = backbone.eval()(torch.randn(2, 3, 64, 96))
    channels = backbone.settings.channels
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    for stride, (name, feature) in zip((4, 8, 16, 32), maps.items(), strict=True):
        assert feature.shape == (2, channels[name], 64 // stride, 96 // stride)


@pytest.mark.parametrize("backbone", [ResNet(TINY_RESNET), Swin(TINY_SWIN)], ids=["resnet", "swin"])
def test_a_batch_of_two_equals_two_batches_of_one(backbone: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 96)
    both = backbone.eval()(images)
    for i, image in enumerate(images):
        for name, feature in backbone(image[None]).items():
            torch.testing.assert_close(both[name][i], feature[0], atol=1e-4, rtol=1e-4)


def test_resnet_strides_on_the_3x3_convolution() -> None:
    block = ResNet(TINY_RESNET).get_submodule("res3.0")
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)


def test_windows_are_a_permutation_of_the_map_that_comes_back_whole() -> None:
    x = torch.arange(2 * 6 * 9 * 5.0).reshape(2, 6, 9, 5)
    windows = to_windows(x, 3)
    assert windows.shape == (2, 6, 9, 5)
    assert torch.equal(windows[0, 1], x[0, :3, 3:6].reshape(9, 5))
    assert torch.equal(from_windows(windows, 3, 6, 9), x)


def test_relative_position_depends_on_the_difference_of_two_places_only() -> None:
    index = relative_position_index(4)
    place = [(row, column) for row in range(4) for column in range(4)]
    seen: dict[tuple[int, int], int] = {}
    for i, a in enumerate(place):
        for j, b in enumerate(place):
            difference = (a[0] - b[0], a[1] - b[1])
            assert seen.setdefault(difference, int(index[i, j])) == index[i, j]
    assert sorted(seen.values()) == list(range(49))


def test_the_shift_mask_lets_only_former_neighbours_see_each_other() -> None:
    window, shift, size = 4, 2, 8
    mask = shift_mask(size, size, window, torch.device("cpu"))
    rows = torch.arange(size)[:, None].expand(size, size).roll((-shift, -shift), (0, 1))
    columns = torch.arange(size)[None, :].expand(size, size).roll((-shift, -shift), (0, 1))
    places = to_windows(torch.stack((rows, columns), dim=-1)[None], window)[0]
    distance = (places[:, :, None] - places[:, None, :]).abs().amax(dim=-1)
    assert torch.equal(mask[:, 0] == 0, distance < window)
    assert set(mask.unique().tolist()) == {0.0, HIDDEN}


def test_a_map_smaller_than_a_window_is_padded_not_the_window_shrunk() -> None:
    mask = shift_mask(2, 3, 7, torch.device("cpu"))
    assert mask.shape == (1, 1, 49, 49)
    swin = Swin(SwinSettings(embed_dim=8, depths=(2, 2, 2, 2), heads=(1, 1, 1, 1), window=7)).eval()
    assert swin(torch.randn(1, 3, 32, 32))["res5"].shape == (1, 64, 1, 1)


def test_swin_trains_and_every_weight_gets_a_gradient() -> None:
    swin = Swin(TINY_SWIN)
    sum(feature.square().mean() for feature in swin(torch.randn(1, 3, 64, 64)).values()).backward()
    unmoved = [name for name, p in swin.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unmoved == []


def test_drop_path_grows_linearly_over_the_blocks_to_the_given_rate() -> None:
    backbone = Swin(SwinSettings(embed_dim=8, depths=(2, 2, 3, 2), heads=(1, 2, 2, 4), window=3, drop_path=0.3))
    rates = [block.drop_path for block in backbone.modules() if isinstance(block, SwinBlock)]
    assert rates == pytest.approx([0.3 * i / 8 for i in range(9)])


def test_drop_path_drops_whole_images_and_keeps_the_mean_of_the_rest() -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window=3, shift=0, mlp_ratio=2, drop_path=0.25)
    branch = block._dropped(torch.ones(4000, 2, 3, 8)).flatten(1)
    assert torch.equal(branch.amin(dim=1), branch.amax(dim=1))
    assert set(branch[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert branch.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_changes_training_alone_and_no_key() -> None:
    torch.manual_seed(0)
    plain, dropping = Swin(TINY_SWIN), Swin(replace(TINY_SWIN, drop_path=0.5))
    dropping.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    expected = plain.eval()(images)["res5"]
    assert torch.equal(dropping.eval()(images)["res5"], expected)
    assert not torch.allclose(dropping.train()(images)["res5"], expected)
    assert torch.equal(plain.train()(images)["res5"], expected)
