"""Frames to judge by are those on which torch itself is steady; what is kept of them fits in a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PUBLISHED_KIND
from torch import Tensor, nn

from visrt.export.frames import Frames, synthetic_frames
from visrt.export.graphs import FrameGraph, FrameTensors
from visrt.export.reference import reference_of
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD, Mask2Former
from visrt.runtime.errors import BundleError, ParityError
from visrt.runtime.reference import ROLES, Reference, reference_from_bytes

HEIGHT, WIDTH = 32, 64


class Edge(nn.Module):
    """Smooth but where the mean of an image is above `limit`: there its last digit decides, as at a mask logit of 0."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> FrameTensors:
        features = nn.functional.avg_pool2d(images, 4)
        queries = features.flatten(2)[:, :, :5].transpose(1, 2)
        jumps = (images.mean() > self.limit) * torch.frac(images.double().sum() * 1e3).float()
        return FrameTensors(queries + jumps, queries, queries, features)


def framed(network: nn.Module) -> FrameGraph:
    return FrameGraph(network, IMAGENET_MEAN, IMAGENET_STD)


def test_frames_on_which_torch_itself_jumps_are_left_out() -> None:
    candidates = synthetic_frames(6, HEIGHT, WIDTH)
    smooth = framed(Edge(float("inf")))
    means = [smooth.normalised(*inputs(candidates, i)).mean().item() for i in range(6)]
    limit = (sorted(means)[2] + sorted(means)[3]) / 2
    reference, looked = reference_of(framed(Edge(limit)), candidates, wanted=6)
    assert [frame.steady for frame in looked] == [mean < limit for mean in means]
    steady = [i for i in range(6) if means[i] < limit]
    np.testing.assert_array_equal(reference.images, candidates.images[steady])
    assert all(frame.role == "class_logits" for frame in looked if not frame.steady)


def inputs(candidates: Frames, index: int) -> tuple[Tensor, Tensor]:
    one = candidates.take([index])
    return torch.from_numpy(one.images), torch.from_numpy(one.valid_sizes)


def test_without_a_steady_frame_there_is_nothing_to_judge_by() -> None:
    with pytest.raises(ParityError, match="--reference"):
        reference_of(framed(Edge(float("-inf"))), synthetic_frames(2, HEIGHT, WIDTH), wanted=1)


def test_looking_stops_when_enough_frames_are_steady() -> None:
    reference, looked = reference_of(framed(Edge(float("inf"))), synthetic_frames(5, HEIGHT, WIDTH), wanted=2)
    assert len(reference) == len(looked) == 2


def test_synthetic_frames_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    one, same, other = (synthetic_frames(2, HEIGHT, WIDTH, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.images, same.images)
    assert (one.images != other.images).mean() > 0.5


def test_a_reference_comes_back_from_its_bytes_and_the_same_values_are_the_same_bytes() -> None:
    torch.manual_seed(0)
    graph = FrameGraph(Mask2Former(PUBLISHED_KIND).eval(), IMAGENET_MEAN, IMAGENET_STD)
    whole, _ = reference_of(graph, synthetic_frames(2, HEIGHT, WIDTH), wanted=2)
    kept = whole.sampled()
    again = reference_from_bytes(kept.to_bytes(), "here")
    for role in ROLES:
        np.testing.assert_array_equal(again.expected[role], kept.expected[role])
        np.testing.assert_array_equal(again.picked(role, whole.expected[role]), kept.expected[role])
    assert kept.to_bytes() == again.to_bytes()


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"", "not an npz"), (b"PK\x03\x04 cut", "not an npz"), ("no frames", "1 or more"), ("no logits", "class_logits")],
)
def test_a_file_that_is_no_reference_is_refused(data: bytes | str, told: str) -> None:
    if isinstance(data, str):
        data = damaged(data)
    with pytest.raises(BundleError, match=told):
        reference_from_bytes(data, "reference.npz")


def damaged(how: str) -> bytes:
    frames = 0 if how == "no frames" else 1
    roles = [role for role in ROLES if not (how == "no logits" and role == "class_logits")]
    expected = {role: np.zeros((frames, 2), np.float32) for role in roles}
    images = np.zeros((frames, 4, 4, 3), np.uint8)
    return Reference(images, np.zeros((frames, 2), np.int32), expected).to_bytes()
