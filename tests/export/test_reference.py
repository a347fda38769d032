"""Frames to judge by are those on which torch itself is steady; what is kept of them fits in a bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import PUBLISHED_KIND
from torch import Tensor, nn

from visrt.export.frames import synthetic_frames
from visrt.export.graphs import FrameGraph
from visrt.export.reference import NOISE_DRAWS, reference_of, reference_on
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD, FrameOutputs, Mask2Former
from visrt.runtime.errors import BundleError
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.reference import ROLES, Reference, reference_from_bytes

HEIGHT, WIDTH = 32, 64
LIMIT = 0.3


class Edge(nn.Module):
    """Smooth but where the mean of an image is above `limit`: there its last digit decides, as at a mask logit of 0."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> FrameOutputs:
        features = nn.functional.avg_pool2d(images, 4)
        queries = features.flatten(2)[:, :, :5].transpose(1, 2)
        jumps = (images.mean() > self.limit) * torch.frac(images.double().sum() * 1e3).float()
        return FrameOutputs(queries + jumps, queries, queries, features)


def framed(network: nn.Module) -> FrameGraph:
    return FrameGraph(network, IMAGENET_MEAN, IMAGENET_STD)


def test_frames_on_which_torch_itself_jumps_are_left_out() -> None:
    candidates = synthetic_frames(6, HEIGHT, WIDTH)
    steady = [i for i, mean in enumerate(means_of(candidates)) if mean < LIMIT]
    assert 2 <= len(steady) < 6
    reference, kept = reference_of(framed(Edge(LIMIT)), candidates, count=len(steady))
    assert [frame.index for frame in kept] == steady
    assert all(frame.moved == 0 for frame in kept)
    np.testing.assert_array_equal(reference.images, candidates.images[steady])


def test_where_too_few_are_steady_the_steadiest_are_taken_and_tell_how_many_queries_move() -> None:
    candidates = synthetic_frames(6, HEIGHT, WIDTH)
    reference, kept = reference_of(framed(Edge(LIMIT)), candidates, count=6)
    expected = [0 if mean < LIMIT else 5 for mean in means_of(candidates)]
    assert [frame.moved for frame in kept] == expected
    assert [frame.queries for frame in kept] == [5] * 6
    assert reference.moved_share == sum(expected) / 30


def means_of(candidates: Frames) -> list[float]:
    graph = framed(nn.Identity())
    sizes = torch.from_numpy(candidates.valid_sizes)
    return [image.mean().item() for image in graph.normalised(torch.from_numpy(candidates.images), sizes)]


def test_looking_stops_when_enough_frames_are_steady() -> None:
    looked: list[Tensor] = []
    network = Edge(float("inf"))
    network.register_forward_hook(lambda module, given, out: looked.append(given[0]))
    reference, kept = reference_of(framed(network), synthetic_frames(5, HEIGHT, WIDTH), count=2)
    assert len(reference) == len(kept) == 2
    assert len(looked) == 2 * (1 + NOISE_DRAWS)


def test_synthetic_frames_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    one, same, other = (synthetic_frames(2, HEIGHT, WIDTH, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.images, same.images)
    assert (one.images != other.images).mean() > 0.5


def test_a_reference_comes_back_from_its_bytes_and_the_same_values_are_the_same_bytes() -> None:
    torch.manual_seed(0)
    graph = FrameGraph(Mask2Former(PUBLISHED_KIND).eval(), IMAGENET_MEAN, IMAGENET_STD)
    whole, _ = reference_of(graph, synthetic_frames(2, HEIGHT, WIDTH), count=2)
    kept = whole.sampled()
    again = reference_from_bytes(kept.to_bytes(), "here")
    for role in ROLES:
        np.testing.assert_array_equal(again.expected[role], kept.expected[role])
        np.testing.assert_array_equal(again.picked(role, whole.expected[role]), kept.expected[role])
    assert again.moved_share == whole.moved_share
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


def kept_reference() -> Reference:
    graph = FrameGraph(Mask2Former(PUBLISHED_KIND).eval(), IMAGENET_MEAN, IMAGENET_STD)
    return reference_of(graph, synthetic_frames(2, HEIGHT, WIDTH), count=2)[0]


def test_the_masks_of_all_queries_are_kept_pixel_by_pixel() -> None:
    whole = kept_reference()
    again = reference_from_bytes(whole.sampled().to_bytes(), "here")
    assert again.masks is not None
    height, width = HEIGHT // 4, WIDTH // 4
    bits = np.unpackbits(again.masks, axis=2)[:, :, : height * width].reshape(2, -1, height, width)
    np.testing.assert_array_equal(bits, whole.expected["mask_logits"] > 0)
    assert 0 < bits.mean() < 1


def test_a_reference_that_keeps_no_masks_opens() -> None:
    older = replace(kept_reference(), masks=None)
    again = reference_from_bytes(older.sampled().to_bytes(), "here")
    assert again.masks is None
    assert [answer.masks.shape for answer in again.answers()] == [(10, 0)] * 2


@pytest.mark.parametrize("cut", [np.s_[:, :, :-1], np.s_[:, :-1], np.s_[:1]])
def test_masks_of_another_size_than_the_frames_are_refused(cut: tuple[slice, ...]) -> None:
    whole = kept_reference()
    assert whole.masks is not None
    with pytest.raises(BundleError, match=r"its masks are uint8 \[.*\], expected uint8 of 2 frames, 10 queries"):
        reference_from_bytes(replace(whole, masks=whole.masks[cut]).sampled().to_bytes(), "here")


def test_a_reference_of_many_frames_is_made_one_by_one_and_equals_the_whole() -> None:
    torch.manual_seed(0)
    graph = FrameGraph(Mask2Former(PUBLISHED_KIND).eval(), IMAGENET_MEAN, IMAGENET_STD)
    frames = synthetic_frames(2, HEIGHT, WIDTH)
    whole, _ = reference_of(graph, frames, count=2)
    single = reference_on(graph, frames)
    assert single.to_bytes() == whole.sampled().to_bytes()
