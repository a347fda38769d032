"""Pooling inside boxes, against the definition written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from visrt.models.feature_pyramid import PyramidRows, pyramid_rows, pyramid_sizes
from visrt.models.roi_align import Outside, box_levels, roi_align

HEIGHT, WIDTH = 64, 96


def maps(batch: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, 3, height, width) for height, width in pyramid_sizes(HEIGHT, WIDTH)]


def boxes_around(count: int) -> Tensor:
    """Boxes of all sizes, many of them partly or wholly outside the picture."""
    torch.manual_seed(1)
    low = torch.rand(count, 2) * 160 - 40
    return torch.cat((low, low + torch.rand(count, 2) ** 3 * 700), dim=-1)


def pooled_by_definition(levels: list[Tensor], box: Tensor, outside: Outside) -> Tensor:
    """[49, C]: the mean of 2 x 2 bilinear samples in each of 7 x 7 bins, on the level that floor(4 + log2) says."""
    x1, y1, x2, y2 = box.tolist()
    side = math.sqrt((x2 - x1) * (y2 - y1))
    level = int(np.clip(math.floor(4 + math.log2(side / 224 + 1e-8)), 2, 5))
    scale, picture = 1 / 2**level, levels[level - 2][0]
    bins = []
    for i in range(7):
        for j in range(7):
            samples = [
                sample(
                    picture,
                    y1 * scale - 0.5 + (i + (a + 0.5) / 2) * (y2 - y1) * scale / 7,
                    x1 * scale - 0.5 + (j + (b + 0.5) / 2) * (x2 - x1) * scale / 7,
                    outside,
                )
                for a in range(2)
                for b in range(2)
            ]
            bins.append(sum(samples, start=torch.zeros(len(picture))) / 4)
    return torch.stack(bins)


def sample(picture: Tensor, y: float, x: float, outside: Outside) -> Tensor:
    height, width = picture.shape[1:]
    if outside == "zero" and not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(picture))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    down, right = y - top, x - left
    corners = picture[:, top : top + 2, left : left + 2]
    shares = torch.tensor([[(1 - down) * (1 - right), (1 - down) * right], [down * (1 - right), down * right]])
    return (corners * shares).sum(dim=(1, 2))


@pytest.mark.parametrize("outside", ["edge", "zero"])
def test_pooling_is_its_definition(outside: Outside) -> None:
    levels, boxes = maps(), boxes_around(12)
    # The smallest level must have two pixels a side for the loops above.
    pooled = roi_align(pyramid_rows(levels), boxes[None], outside)[0]
    for given, box in zip(pooled, boxes, strict=True):
        torch.testing.assert_close(given, pooled_by_definition(levels, box, outside), atol=2e-4, rtol=1e-4)


def test_the_two_choices_differ_outside_only() -> None:
    levels = pyramid_rows(maps())
    inside = torch.tensor([[[8.0, 8.0, 80.0, 50.0]]])
    beyond = torch.tensor([[[-60.0, -60.0, 20.0, 20.0]]])
    assert torch.equal(roi_align(levels, inside, "edge"), roi_align(levels, inside, "zero"))
    assert not torch.allclose(roi_align(levels, beyond, "edge"), roi_align(levels, beyond, "zero"))


def test_a_batch_of_two_is_twice_one() -> None:
    levels, boxes = maps(batch=2), torch.stack((boxes_around(6), boxes_around(6).flip(0)))
    both = roi_align(pyramid_rows(levels), boxes, "edge")
    for i in range(2):
        one = roi_align(pyramid_rows([level[i : i + 1] for level in levels]), boxes[i : i + 1], "edge")
        torch.testing.assert_close(both[i : i + 1], one)


def test_levels_change_exactly_at_their_bounds() -> None:
    sides = torch.tensor([0.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 1e6])
    boxes = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), dim=-1)
    assert box_levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert box_levels(torch.tensor([10.0, 10.0, 5.0, 20.0])) == 0, "a box turned inside out"


def test_a_box_without_area_reads_its_own_place() -> None:
    levels = maps()
    pooled = roi_align(pyramid_rows(levels), torch.tensor([[[10.0, 14.0, 10.0, 14.0]]]), "edge")
    torch.testing.assert_close(pooled[0, 0], levels[0][0, :, 3, 2].expand(49, -1))


def test_what_is_learned_reaches_the_pyramid() -> None:
    levels = pyramid_rows([level.requires_grad_() for level in maps()])
    roi_align(PyramidRows(levels.rows, levels.sizes), boxes_around(4)[None], "edge").sum().backward()
    assert levels.rows.grad_fn is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
def test_a_box_that_is_not_finite_spoils_no_other(bad: float) -> None:
    levels, boxes = pyramid_rows(maps(batch=2)), torch.stack((boxes_around(6), boxes_around(6).flip(0)))
    expected = roi_align(levels, boxes, "edge")
    spoilt = boxes.clone()
    spoilt[0, 2] = torch.tensor([bad, 10.0, 30.0, bad])
    given = roi_align(levels, spoilt, "edge")
    others = torch.ones(2, 6, dtype=torch.bool)
    others[0, 2] = False
    assert torch.equal(given[others], expected[others])
