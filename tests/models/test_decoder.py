"""Claims about the masked-attention decoder and the default network."""

from dataclasses import replace

import pytest
import torch
from small_networks import FRAME

from visrt.models.decoder import MaskedAttentionDecoder, mask_logits, visible_pixels
from visrt.models.efficientnet import EfficientNetLite0
from visrt.models.layers import Attention, sine_position
from visrt.models.mask2former import Mask2Former

TINY = replace(FRAME, queries=7, decoder_layers=3, decoder_feedforward_dim=64)


@pytest.fixture(scope="module")
def network() -> Mask2Former:
    torch.manual_seed(0)
    return Mask2Former(TINY).eval()


def test_attention_equals_torch_multihead_attention_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    query, memory, visible = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.rand(2, 5, 9) > 0.4
    visible[..., 0] = True
    expected, _ = theirs(query, memory, memory, attn_mask=~visible.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, memory, memory, visible), expected, atol=1e-5, rtol=1e-5)


def test_visible_pixels_are_the_mask_and_everything_where_the_mask_is_empty() -> None:
    features = torch.tensor([[[1.0, -1.0, 2.0]]])
    embeddings = torch.tensor([[[1.0], [-1.0]]])
    assert visible_pixels(embeddings, features).tolist() == [[[True, False, True], [False, True, False]]]
    assert visible_pixels(torch.tensor([[[1.0]]]), -features.abs()).all()


def test_attention_masks_from_resized_features_equal_those_from_resized_masks() -> None:
    torch.manual_seed(0)
    embeddings, features = torch.randn(1, 6, 16), torch.randn(1, 16, 24, 40)
    full = mask_logits(embeddings, features)
    resized_masks = torch.nn.functional.interpolate(full, size=(6, 10), mode="bilinear", align_corners=False)
    small = torch.nn.functional.interpolate(features, size=(6, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mask_logits(embeddings, small), resized_masks, atol=1e-5, rtol=1e-5)


def test_sine_position_has_y_first_and_no_half_pixel_offset() -> None:
    position = sine_position(3, 5, 8)
    assert position.shape == (8, 3, 5)
    y, x = position[:4], position[4:]
    assert torch.equal(y[:, :, 0], y[:, :, 4])
    assert torch.equal(x[:, 0], x[:, 2])
    torch.testing.assert_close(y[0, 0, 0], torch.tensor(1 / (3 + 1e-6) * 2 * torch.pi).sin())


def test_a_batch_of_two_equals_two_batches_of_one(network: Mask2Former) -> None:
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        both = network(images)
        singles = [network(image[None]) for image in images]
    for name in both._fields:
        pair = torch.cat([getattr(single, name) for single in singles])
        torch.testing.assert_close(getattr(both, name), pair, atol=2e-4, rtol=1e-4)


def test_the_predictor_says_one_prediction_more_than_it_has_layers(network: Mask2Former) -> None:
    layers, features = network.layers(torch.randn(1, 3, 64, 96))
    assert len(layers) == TINY.decoder_layers + 1
    assert features.shape == (1, 32, 16, 24)
    assert layers[-1].class_logits.shape == (1, 7, 4)


def test_a_decoder_of_another_width_than_the_pixel_decoder_projects_its_input() -> None:
    decoder = MaskedAttentionDecoder(
        in_dim=16, dim=32, mask_dim=8, heads=2, feedforward_dim=64, layers=1, queries=3, classes=2
    )
    levels = [torch.randn(1, 16, 2 * s, 3 * s) for s in (1, 2, 4)]
    assert decoder(levels, torch.randn(1, 8, 16, 24))[-1].mask_embeddings.shape == (1, 3, 8)
    assert "input_proj.0.weight" in decoder.state_dict()


def test_efficientnet_lite0_is_the_network_its_imagenet_weights_were_trained_in() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    from visrt.models.efficientnet import imagenet_weights

    ours = EfficientNetLite0().eval()
    ours.load_state_dict(imagenet_weights())
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(imagenet_weights(), strict=False)
    image = torch.rand(1, 3, 224, 224) * 2 - 1
    x = theirs._swish(theirs._bn0(theirs._conv_stem(image)))
    for block in theirs._blocks:
        x = block(x, drop_connect_rate=0.0)
    torch.testing.assert_close(ours(image)["res5"], x, atol=1e-4, rtol=1e-4)


def test_efficientnet_maps_have_the_promised_strides_and_channels() -> None:
    maps = EfficientNetLite0().eval()(torch.rand(1, 3, 64, 96))
    shapes = {name: tuple(feature.shape[1:]) for name, feature in maps.items()}
    assert shapes == {"res2": (24, 16, 24), "res3": (40, 8, 12), "res4": (112, 4, 6), "res5": (320, 2, 3)}
