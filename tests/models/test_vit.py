"""Claims about the networks of EoMT and VidEoMT that hold for any weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visrt.models.decoder import mask_logits
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.layers import checkpoint_activations
from visrt.models.videomt import VideoMt, VideoMtOutputs, VideoMtSettings

SIZES: dict[str, Any] = {
    "classes": 3, "queries": 5, "dim": 32, "blocks": 4, "heads": 2, "feedforward_dim": 48, "query_blocks": 2,
    "registers": 2, "table_side": 3,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "table": {},
    "rotary": {"positions": "rotary", "table_side": 0, "norm_eps": 1e-5},
    "gated": {"feedforward": "swiglu"},
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)
HEIGHT, WIDTH = 32, 80


def randomised(network: nn.Module) -> nn.Module:
    """No weight is zero or one by its initialisation."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def eomt(variant: str = "table", **changed: Any) -> Eomt:
    torch.manual_seed(0)
    network = Eomt(EomtSettings(**{**SIZES, **VARIANTS[variant], **changed}))
    randomised(network)
    return network


def videomt(variant: str = "table", **changed: Any) -> VideoMt:
    torch.manual_seed(0)
    network = VideoMt(VideoMtSettings(**{**SIZES, **VARIANTS[variant], **changed}))
    randomised(network)
    return network


def images(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def assert_same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@EVERY
@torch.inference_mode()
def test_outputs_have_the_shapes_of_any_frame_network(variant: str) -> None:
    outputs = eomt(variant)(images(2))
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 4), (2, 5, 32), (2, 5, 32), (2, 32, 8, 20)]


@EVERY
@torch.inference_mode()
def test_a_batch_of_two_equals_twice_one(variant: str) -> None:
    network, frames = eomt(variant), images(2)
    both = network(frames)
    for i in range(2):
        assert_same([output[i : i + 1] for output in both], network(frames[i : i + 1]))


@EVERY
@torch.inference_mode()
def test_a_network_takes_images_of_any_multiple_of_a_patch(variant: str) -> None:
    network = eomt(variant)
    assert network(images(1, 16, 112)).mask_features.shape[2:] == (4, 28)
    assert network(images(1, 112, 16)).mask_features.shape[2:] == (28, 4)


def test_the_table_is_used_as_it_is_in_its_own_square_and_resampled_elsewhere() -> None:
    network = eomt()
    own = network.grid(48, 48).table
    other = network.grid(48, 64).table
    assert own is not None
    assert other is not None
    assert network.embeddings.position_embeddings is not None
    assert torch.equal(own[0], network.embeddings.position_embeddings.weight)
    assert other.shape == (1, 12, 32)


def test_rotation_turns_patches_and_leaves_the_tokens_before_them() -> None:
    grid = eomt("rotary").grid(HEIGHT, WIDTH)
    rotation = grid.rotation_after(3)
    assert rotation is not None
    assert rotation.cos.shape == rotation.sin.shape == (3 + 10, 16)
    assert torch.equal(rotation.cos[:3], torch.ones(3, 16))
    assert torch.equal(rotation.sin[:3], torch.zeros(3, 16))
    torch.testing.assert_close(rotation.cos**2 + rotation.sin**2, torch.ones(13, 16))
    assert len(torch.cat(rotation, dim=1)[3:].unique(dim=0)) == 10


@EVERY
@torch.inference_mode()
def test_permuting_queries_permutes_what_is_made_of_them(variant: str) -> None:
    network = videomt(variant)
    grid = network.grid(HEIGHT, WIDTH)
    tokens, order = network.encoder(images(1), grid), torch.tensor([3, 0, 4, 2, 1])
    before = network.mixed(tokens, network.first_queries(1), grid)
    after = network.mixed(tokens, network.first_queries(1)[:, order], grid)
    torch.testing.assert_close(after[:, :5], before[:, :5][:, order])
    torch.testing.assert_close(after[:, 5:], before[:, 5:])


@EVERY
@torch.inference_mode()
def test_the_halves_make_the_whole(variant: str) -> None:
    """Frames are encoded together or one by one, ahead of the state or with it."""
    network, frames = videomt(variant), images(3)
    grid, queries = network.grid(HEIGHT, WIDTH), network.first_queries(1)
    for frame, expected in zip(frames.split(1), network(frames), strict=True):
        outputs = network.decoder(network.encoder(frame, grid), queries, grid)
        assert_same(flat(outputs), flat(expected))
        queries = outputs.next_queries


def flat(outputs: VideoMtOutputs) -> list[Tensor]:
    return [*outputs.frame, outputs.next_queries]


@EVERY
@torch.inference_mode()
def test_two_streams_in_one_call_are_each_as_alone(variant: str) -> None:
    network, frames = videomt(variant), images(2)
    grid = network.grid(HEIGHT, WIDTH)
    states = torch.randn(2, 5, 32)
    tokens = network.encoder(frames, grid)
    both = flat(network.decoder(tokens, states, grid))
    for i in range(2):
        alone = network.decoder(tokens[i : i + 1], states[i : i + 1], grid)
        assert_same([output[i : i + 1] for output in both], flat(alone))


@torch.inference_mode()
def test_the_state_alone_carries_the_past() -> None:
    """The same frame gives other outputs later in a video, and the first ones after a reset."""
    network, frame = videomt(), images(1)
    first, second = network(torch.cat((frame, frame)))
    assert not torch.allclose(first.frame.class_logits, second.frame.class_logits)
    assert_same(flat(network(frame)[0]), flat(first))


@torch.inference_mode()
def test_normed_queries_are_another_network() -> None:
    plain = videomt()
    normed = videomt(norm_queries=True)
    queries = torch.randn(1, 5, 32)
    torch.testing.assert_close(normed.next_queries(queries), plain.next_queries(plain.layernorm(queries)))
    assert not torch.allclose(normed.next_queries(queries), plain.next_queries(queries))


def test_gradients_flow_through_the_state() -> None:
    network = videomt()
    network(images(2))[-1].frame.class_logits.sum().backward()
    assert network.query_updater.weight.grad is not None
    assert network.query_updater.weight.grad.abs().max() > 0


def test_activations_computed_again_give_the_same_gradients() -> None:
    plain, again = videomt("rotary"), videomt("rotary")
    checkpoint_activations(again)
    for network in (plain, again):
        network(images(2))[-1].frame.mask_features.square().mean().backward()
    for ours, theirs in zip(plain.parameters(), again.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


@torch.inference_mode()
def test_the_state_is_float32_in_half_precision_too() -> None:
    network = videomt().to(torch.bfloat16)
    network.query.float()
    grid = network.grid(HEIGHT, WIDTH)
    outputs = network.decoder(network.encoder(images(1).bfloat16(), grid), network.first_queries(1), grid)
    assert outputs.frame.class_logits.dtype == torch.bfloat16
    assert outputs.next_queries.dtype == torch.float32


@EVERY
@torch.inference_mode()
def test_masked_attention_that_has_faded_out_changes_nothing(variant: str) -> None:
    network = eomt(variant)
    grid = network.grid(HEIGHT, WIDTH)
    tokens = network.encoder(images(2), grid)
    layers = network.masked_layers(tokens, grid, [0.0, 0.0])
    assert len(layers) == 3
    assert_same(layers[-1], network.decoder(tokens, grid))


@torch.inference_mode()
def test_masked_attention_sees_its_own_mask_of_the_patches_and_all_other_tokens() -> None:
    network = eomt()
    grid = network.grid(HEIGHT, WIDTH)
    prediction = network.masked_layers(network.encoder(images(1), grid), grid, [1.0, 1.0])[0]
    visible = network._visible(prediction, 5 + 3 + 10, grid, 1.0)
    masks = mask_logits(prediction.mask_embeddings, prediction.mask_features)
    inside = nn.functional.interpolate(masks, (2, 5), mode="bilinear").flatten(2) > 0
    assert torch.equal(visible[:, :5, 8:], inside)
    assert 0 < inside.sum() < inside.numel()
    assert visible[:, :, :8].all()
    assert visible[:, 5:].all()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"heads": 3}, "32 channels in 3 heads; set heads to one that fits"),
        ({"heads": 0}, "32 channels in an unknown number of heads; set heads"),
        ({"query_blocks": 5}, "5 blocks with queries of 4"),
    ],
)
def test_sizes_that_make_no_network_are_refused(changed: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Eomt(replace(eomt().settings, **changed))  # type: ignore[arg-type]
