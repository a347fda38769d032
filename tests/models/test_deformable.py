"""Claims about deformable attention without GridSample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.models.deformable import DeformableAttention, DeformablePixelDecoder, pixel_centres, sampled_sum

HEADS, POINTS, DIM = 2, 4, 8


def with_grid_sample(value: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The definition: bilinear samples with zero padding, weighted and summed."""
    batch, height, width, heads = value.shape[:4]
    grid = (torch.stack((x, y), dim=-1) + 0.5) * 2 / torch.tensor([width, height]) - 1
    maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, grid.transpose(1, 2).flatten(0, 1), align_corners=False)
    summed = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    out: Tensor = summed.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    return out


def some_samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points inside, on the border and well outside a 5x7 map."""
    torch.manual_seed(0)
    value = torch.randn(2, 5, 7, HEADS, DIM)
    x, y = (torch.rand(2, 30, HEADS, POINTS) * size - 3 for size in (13, 11))
    return value, x, y, torch.rand(2, 30, HEADS, POINTS)


def test_sampled_sum_equals_grid_sample_inside_on_the_border_and_outside() -> None:
    samples = some_samples()
    torch.testing.assert_close(sampled_sum(*samples), with_grid_sample(*samples), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrt", [0, 1, 2, 3], ids=["value", "x", "y", "weights"])
def test_sampled_sum_has_the_gradients_of_grid_sample(wrt: int) -> None:
    gradients = []
    for form in (sampled_sum, with_grid_sample):
        inputs = [x.clone().requires_grad_() for x in some_samples()]
        (form(*inputs) * torch.linspace(-1, 1, DIM)).sum().backward()
        gradients.append(inputs[wrt].grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_the_traced_form_equals_the_eager_form(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = some_samples()
    eager = sampled_sum(*samples)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(sampled_sum(*samples), eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
def test_a_point_that_is_no_place_crashes_nothing(bad: float) -> None:
    value, x, y, weights = some_samples()
    x[0, 0, 0, 0] = y[0, 1, 0, 0] = bad
    assert sampled_sum(value, x, y, weights)[1].isfinite().all()


def test_an_untrained_attention_gives_the_mean_of_its_points_with_offsets_in_pixels() -> None:
    """On a constant map every inner sample is the constant, whatever the offsets; only output_proj acts."""
    attention = DeformableAttention(DIM * HEADS, HEADS, levels=1).eval()
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(DIM * HEADS))
        attention.output_proj.weight.copy_(torch.eye(DIM * HEADS))
    value = torch.ones(1, 20 * 20, DIM * HEADS)
    places = pixel_centres((20, 20), torch.device("cpu"))
    out = attention(torch.randn(1, 400, DIM * HEADS), value, places, [(20, 20)]).reshape(20, 20, -1)
    torch.testing.assert_close(out[4:-4, 4:-4], torch.ones(12, 12, DIM * HEADS))
    assert (out[0, 0] < 1).any()


def test_pixel_centres_go_row_by_row_x_first() -> None:
    centres = pixel_centres((2, 4), torch.device("cpu"))
    assert centres.tolist()[:2] == [[0.125, 0.25], [0.375, 0.25]]
    assert centres.tolist()[-1] == [0.875, 0.75]


def decoder(**changes: int) -> DeformablePixelDecoder:
    torch.manual_seed(1)
    settings = {"dim": 32, "mask_dim": 16, "heads": 4, "layers": 2, "feedforward_dim": 64, **changes}
    return DeformablePixelDecoder({"res2": 8, "res3": 12, "res4": 20, "res5": 24}, **settings)


def features(batch: int) -> dict[str, Tensor]:
    channels = {"res2": 8, "res3": 12, "res4": 20, "res5": 24}
    return {n: torch.randn(batch, c, 16 // 2**i, 24 // 2**i) for i, (n, c) in enumerate(channels.items())}


def test_the_pixel_decoder_gives_three_levels_coarse_to_fine_and_stride_4_features() -> None:
    mask_features, levels = decoder()(features(2))
    assert mask_features.shape == (2, 16, 16, 24)
    assert [level.shape for level in levels] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]


def test_the_pixel_decoder_treats_each_image_of_a_batch_alone() -> None:
    network, batch = decoder().eval(), features(2)
    both, _ = network(batch)
    for i in range(2):
        alone, _ = network({name: feature[i : i + 1] for name, feature in batch.items()})
        torch.testing.assert_close(both[i], alone[0], atol=1e-4, rtol=1e-4)


def test_every_weight_of_the_pixel_decoder_gets_a_gradient() -> None:
    network = decoder()
    for name, parameter in network.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name:
            # Untrained, the weights are zero, and neither query nor level embedding has an effect yet.
            torch.nn.init.normal_(parameter, std=0.1)
    mask_features, levels = network(features(1))
    sum((x * torch.randn_like(x)).sum() for x in (mask_features, *levels)).backward()
    unmoved = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unmoved == []


def test_coordinates_stay_float32_under_mixed_precision() -> None:
    """In bfloat16 a column beyond 256 could not be told from its neighbour; values there must not move."""
    network = DeformableAttention(DIM, 1, levels=1).eval()
    with torch.no_grad():
        network.sampling_offsets.bias.zero_()
        network.value_proj.weight.copy_(torch.eye(DIM))
        network.output_proj.weight.copy_(torch.eye(DIM))
    width = 301
    value = (torch.arange(width) % 2).float()[None, :, None].expand(1, width, DIM).contiguous()
    places = pixel_centres((1, width), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.zeros(1, width, DIM), value, places, [(1, width)])
    torch.testing.assert_close(out.float(), value, atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pixel_decoder_is_float32_whatever_autocast_says(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    channels = {"res2": 8, "res3": 16, "res4": 24, "res5": 32}
    decoder = DeformablePixelDecoder(channels, dim=32, mask_dim=32, heads=2, layers=2, feedforward_dim=64)
    features = {
        name: torch.randn(1, channels[name], 64 // stride, 96 // stride).to(dtype)
        for name, stride in (("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32))
    }
    mask_features, levels = decoder({name: feature.float() for name, feature in features.items()})
    with torch.autocast("cpu", dtype):
        half_mask_features, half_levels = decoder(features)
        fine, _ = decoder.maps(features)
        apart = decoder.mask_features(fine)
    assert half_mask_features.dtype == torch.float32
    assert torch.equal(half_mask_features, mask_features)
    assert torch.equal(apart, mask_features)
    assert all(torch.equal(half, level) for half, level in zip(half_levels, levels, strict=True))
