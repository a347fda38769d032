"""Every form of deformable attention that is measured computes what the network's own computes."""

from __future__ import annotations

import pytest
import torch

from visrt.benchmarks.experiments.sampling_forms import FORMS, SHIPPED, attention_in_form
from visrt.models.deformable import DeformableAttention, pixel_centres

SIZES = [(2, 3), (4, 6), (8, 12)]
DIM, HEADS = 16, 2


@pytest.mark.parametrize("form", [*FORMS, SHIPPED])
def test_a_form_equals_the_attention_of_the_network(form: str) -> None:
    torch.manual_seed(0)
    own = DeformableAttention(DIM, HEADS).eval()
    for projection in (own.sampling_offsets, own.attention_weights):
        torch.nn.init.normal_(projection.weight)
    other = attention_in_form(form, DIM, HEADS, SIZES).eval()
    other.load_state_dict(own.state_dict())
    places = torch.cat([pixel_centres(size, torch.device("cpu")) for size in SIZES])
    query, value = torch.randn(2, 2, len(places), DIM)
    expected = own(query, value, places, SIZES)
    torch.testing.assert_close(other(query, value, places), expected, atol=1e-5, rtol=1e-5)
