"""The frame graph prepares frames as the published models do; the masks graph is their product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import Golden, golden_sets
from torch import nn

from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.models.decoder import mask_logits
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD

FRAME = FrameGraph(nn.Identity(), IMAGENET_MEAN, IMAGENET_STD)


def sizes(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int32)


def test_beyond_the_valid_size_the_network_sees_zeros_whatever_the_image_holds() -> None:
    images = torch.randint(1, 256, (2, 8, 12, 3), dtype=torch.uint8)
    pixels = FRAME.normalised(images, sizes((5, 12), (8, 7)))
    assert (pixels[0, :, 5:] == 0).all()
    assert (pixels[1, :, :, 7:] == 0).all()
    assert (pixels[0, :, :5] != 0).any(dim=0).all()
    assert (pixels[1, :, :, :7] != 0).any(dim=0).all()


def test_each_channel_is_normalised_by_its_own_mean_and_deviation() -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[..., 0] = 255
    red, green, blue = FRAME.normalised(image, sizes((4, 4)))[0]
    assert red[0, 0].item() == pytest.approx((255 - 123.675) / 58.395)
    assert green[0, 0].item() == pytest.approx(-116.28 / 57.12)
    assert blue[0, 0].item() == pytest.approx(-103.53 / 57.375)


@pytest.mark.parametrize("golden", golden_sets("minvis", "network"), indirect=True)
def test_golden_minvis_network_input(golden: Golden) -> None:
    resized, expected = golden.resized, golden["net_input"]
    frames, _, height, width = resized.shape
    images = np.zeros((frames, *expected.shape[2:], 3), np.uint8)
    images[:, :height, :width] = resized.transpose(0, 2, 3, 1)
    given = FRAME.normalised(torch.from_numpy(images), sizes(*[(height, width)] * frames))
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-5)


def test_mask_logits_of_chosen_queries_are_those_the_network_would_form() -> None:
    embeddings, features = torch.randn(1, 7, 16), torch.randn(1, 16, 6, 9)
    chosen = [4, 0, 6]
    given = MasksGraph()(embeddings[0, chosen], features[0])
    torch.testing.assert_close(given, mask_logits(embeddings, features)[0, chosen])
