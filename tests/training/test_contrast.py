"""Claims about CTVIS's contrastive items and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from visrt.runtime.errors import SettingsError
from visrt.runtime.settings import load_settings
from visrt.training.losses.bank import BankSettings
from visrt.training.losses.contrast import (
    CONTRASTS,
    ContrastName,
    ContrastSettings,
    Item,
    clip_tracks,
    contrastive_items,
    contrastive_losses,
)
from visrt.training.losses.mask2former import LossSettings, association_losses
from visrt.training.losses.targets import Matches

LATEST = CONTRASTS["latest_positives"]
MOMENTUM = CONTRASTS["momentum_positives"]
BANK = replace(MOMENTUM, negatives="bank", background=0)


def clip(frames: int = 4, queries: int = 5, seed: int = 0) -> Tensor:
    """Embeddings [T, Q, 8], all different."""
    return torch.randn(frames, queries, 8, generator=torch.Generator().manual_seed(seed))


def matches(*frames: dict[int, int]) -> list[Matches]:
    """From object id -> query of each frame."""
    return [Matches(torch.tensor(list(one.values()), dtype=torch.int64), torch.tensor(list(one))) for one in frames]


def items_of(frames: Tensor, found: Sequence[Matches], settings: ContrastSettings) -> list[Item]:
    return contrastive_items(frames, clip_tracks(frames, found, settings), settings)


def test_an_item_compares_an_object_with_its_latest_embedding_and_all_other_queries_of_the_frame_before() -> None:
    frames = clip(2)
    [item] = items_of(frames, matches({7: 1}, {7: 3}), LATEST)
    assert torch.equal(item.anchor, frames[1, 3])
    assert torch.equal(item.positive, frames[0, 1])
    assert torch.equal(item.negatives, frames[0, [0, 2, 3, 4]])


def test_an_object_that_comes_back_is_compared_with_when_it_was_last_seen_and_against_all_queries_since() -> None:
    frames = clip(4)
    [item] = items_of(frames, matches({7: 1}, {}, {}, {7: 4}), LATEST)
    assert torch.equal(item.anchor, frames[3, 4])
    assert torch.equal(item.positive, frames[0, 1])
    assert torch.equal(item.negatives, frames[2])


def test_an_object_not_seen_before_is_compared_with_its_future() -> None:
    frames = clip(4)
    first, second = items_of(frames, matches({}, {7: 2}, {}, {7: 0}), LATEST)
    assert torch.equal(first.positive, frames[3, 0])
    assert torch.equal(first.negatives, frames[0])
    assert torch.equal(second.positive, frames[1, 2])


def test_an_object_seen_once_gives_no_item_and_the_first_frame_gives_none() -> None:
    assert items_of(clip(3), matches({}, {7: 2}, {}), LATEST) == []
    assert items_of(clip(3), matches({7: 2}, {}, {}), LATEST) == []
    unseen = replace(LATEST, unseen="none")
    assert len(items_of(clip(3), matches({}, {7: 2}, {7: 1}), unseen)) == 1


def test_momentum_positives_are_the_bank_s_average_of_the_frames_before() -> None:
    frames = clip(3)
    frames[1, 2] = 2 * frames[0, 1]  # cosine 1: the average becomes the newer one
    items = items_of(frames, matches({0: 1}, {0: 2}, {0: 3}), MOMENTUM)
    torch.testing.assert_close(items[1].positive, 2 * frames[0, 1])
    constant = replace(MOMENTUM, bank=BankSettings("constant", share=0.5))
    torch.testing.assert_close(
        items_of(frames, matches({0: 1}, {0: 2}, {0: 3}), constant)[1].positive, 1.5 * frames[0, 1]
    )


def test_the_release_takes_both_positives_about_equally_often() -> None:
    frames = clip(60)
    torch.manual_seed(0)
    items = items_of(frames, matches(*[{0: 1}] * 60), CONTRASTS["released"])
    latest = sum(torch.equal(item.positive, frames[t, 1]) for t, item in enumerate(items))
    assert len(items) == 59
    assert 15 < latest < 44


def test_bank_negatives_are_the_averages_of_the_other_objects_seen_so_far() -> None:
    frames = clip(3)
    items = items_of(frames, matches({0: 1, 5: 2}, {0: 3}, {0: 0, 5: 1, 9: 4}), BANK)
    # Frame 1 has object 0; frame 2 has 0 and 5, as 9 has neither past nor future.
    assert [len(item.negatives) for item in items] == [1, 1, 1]
    assert torch.equal(items[0].negatives[0], frames[0, 2])
    assert torch.equal(items[1].negatives[0], frames[0, 2])


def rows(tensor: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row.tolist()) for row in tensor}


def test_global_background_negatives_are_queries_of_all_earlier_frames_that_found_nothing() -> None:
    frames = clip(3)
    everywhere = replace(BANK, background=99, background_from="all")
    *_, item = items_of(frames, matches({0: 1, 5: 2}, {0: 3}, {0: 0}), everywhere)
    assert rows(item.negatives[1:]) == rows(torch.cat((frames[0, [0, 3, 4]], frames[1, [0, 1, 2, 4]])))
    few = items_of(frames, matches({0: 1}, {0: 3}, {0: 0}), replace(everywhere, background=2))
    assert len(few[0].negatives) == 2


def test_local_background_negatives_are_queries_of_the_preceding_frame_alone() -> None:
    frames = clip(3)
    *_, item = items_of(frames, matches({0: 1, 5: 2}, {0: 3}, {0: 0}), replace(BANK, background=99))
    assert torch.equal(item.negatives[0], frames[0, 2]), "object 5 is remembered though frame 1 has not seen it"
    assert rows(item.negatives[1:]) == rows(frames[1, [0, 1, 2, 4]])


def test_supplementary_negatives_alone_are_background_without_other_objects() -> None:
    frames = clip(3)
    alone = replace(BANK, negatives="background", background=99)
    *_, item = items_of(frames, matches({0: 1, 5: 2}, {0: 3}, {0: 0}), alone)
    assert rows(item.negatives) == rows(frames[1, [0, 1, 2, 4]])


def test_the_rows_of_table_4_differ_from_the_paper_s_choice_in_their_negatives_only() -> None:
    paper = CONTRASTS["paper"]
    assert (paper.negatives, paper.background_from) == ("bank", "previous")
    assert paper.background > 0
    assert CONTRASTS["supplementary_only"] == replace(paper, negatives="background")
    assert CONTRASTS["major_only"] == replace(paper, background=0)
    assert CONTRASTS["global_negatives"] == replace(paper, background_from="all")


def test_noise_stands_in_for_absent_objects_only() -> None:
    frames = clip(3)
    torch.manual_seed(0)
    certain = replace(LATEST, noise=1.0)
    tracks = clip_tracks(frames, matches({0: 1}, {}, {0: 2}), certain)
    noise = tracks[0].embeddings[1]
    assert noise is not None
    assert any(torch.equal(noise, query) for query in frames[1])
    _, last = contrastive_items(frames, tracks, certain)
    assert torch.equal(last.positive, noise)
    assert len(items_of(frames, matches({0: 1}, {}, {0: 2}), LATEST)) == 1


def test_the_losses_are_those_computed_by_hand() -> None:
    """v.k+ = 2, v.k- = 1 and -1, cosines 1, 0.5 and -0.5."""
    item = Item(
        torch.tensor([1.0, 0.0]),
        torch.tensor([2.0, 0.0]),
        torch.tensor([[1.0, math.sqrt(3)], [-1.0, math.sqrt(3)]]),
    )
    reid, aux = contrastive_losses([item], torch.zeros(()))
    assert reid.item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-3)))
    assert aux.item() == pytest.approx((0 + 0.25 + 0.25) / 3)
    other = replace(item, positive=torch.tensor([0.0, 1.0]))
    both, _ = contrastive_losses([item, other], torch.zeros(()))
    alone, _ = contrastive_losses([other], torch.zeros(()))
    assert both.item() == pytest.approx((reid.item() + alone.item()) / 2)


def test_an_item_without_negatives_costs_nothing_but_its_distance() -> None:
    alone = Item(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]), torch.empty(0, 2))
    reid, aux = contrastive_losses([alone], torch.zeros(()))
    assert reid == 0
    assert aux == 1


def test_great_dot_products_stay_finite() -> None:
    item = Item(torch.full((8,), 1e3), torch.full((8,), -1e3), torch.full((3, 8), 1e3))
    reid, _ = contrastive_losses([item], torch.zeros(()))
    assert reid.isfinite()


def test_dot_products_stay_in_float32_under_mixed_precision() -> None:
    item = Item(torch.full((8,), 10.0), torch.full((8,), 10.0), torch.full((1, 8), 10.001))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reid, _ = contrastive_losses([item], torch.zeros(()))
    assert reid.item() == pytest.approx(math.log(1 + math.exp(0.08)), abs=1e-4)


def batch(order: Sequence[int] = range(5)) -> tuple[Tensor, list[Matches]]:
    """Two clips of 4 frames whose queries are given in `order`."""
    place = {query: i for i, query in enumerate(order)}
    frames = torch.stack([clip(seed=1), clip(seed=2)])[:, :, list(order)]
    objects = [{0: 1, 1: 2}, {0: 3}, {1: 0, 0: 4}, {1: 2}, {}, {3: 1}, {3: 4, 2: 0}, {2: 1, 3: 3}]
    return frames, matches(*[{k: place[q] for k, q in one.items()} for one in objects])


@pytest.mark.parametrize("name", ["latest_positives", "momentum_positives"])
def test_the_order_of_queries_and_of_objects_does_not_matter(name: ContrastName) -> None:
    settings = LossSettings(contrast=name)
    frames, objects = batch()
    losses = association_losses(frames, objects, settings)
    permuted = association_losses(*batch([3, 1, 4, 0, 2]), settings)
    reversed_ids = [Matches(one.queries.flip(0), one.objects.flip(0)) for one in objects]
    renamed = [Matches(one.queries, 50 - one.objects) for one in objects]
    for other in (
        permuted,
        association_losses(frames, reversed_ids, settings),
        association_losses(frames, renamed, settings),
    ):
        for key in ("reid", "reid_aux"):
            torch.testing.assert_close(other[key], losses[key])


def test_losses_of_clips_average_over_all_their_items() -> None:
    frames, objects = batch()
    settings = LossSettings(contrast="latest_positives")
    both = association_losses(frames, objects, settings)["reid"]
    parts = [association_losses(frames[b : b + 1], objects[4 * b : 4 * b + 4], settings)["reid"] for b in (0, 1)]
    counts = [len(items_of(frames[b], objects[4 * b : 4 * b + 4], LATEST)) for b in (0, 1)]
    torch.testing.assert_close(both, (counts[0] * parts[0] + counts[1] * parts[1]) / sum(counts))


def test_clips_without_objects_cost_nothing_and_have_a_gradient() -> None:
    frames = clip()[None].requires_grad_()
    losses = association_losses(frames, matches({}, {}, {}, {}), LossSettings(contrast="released"))
    sum(losses.values(), start=torch.zeros(())).backward()
    assert losses["reid"] == losses["reid_aux"] == 0
    assert frames.grad is not None


def test_weights_are_the_published_ones() -> None:
    frames, objects = batch()
    once = ContrastSettings(reid_weight=1.0, aux_weight=1.0, momentum_positives=0.0)
    plain = association_losses(frames, objects, LossSettings(contrast=once))
    weighted = association_losses(frames, objects, LossSettings(contrast="latest_positives"))
    torch.testing.assert_close(weighted["reid"], 2 * plain["reid"])
    torch.testing.assert_close(weighted["reid_aux"], 3 * plain["reid_aux"])


def test_learning_from_the_losses_tells_objects_apart() -> None:
    """Descent on free embeddings ends with every anchor nearest to its object's embedding a frame before."""
    torch.manual_seed(0)
    frames = torch.randn(1, 6, 5, 8, requires_grad=True)
    objects = matches(*[{0: t % 5, 1: (t + 2) % 5} for t in range(6)])
    optimizer = torch.optim.SGD([frames], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        losses = association_losses(frames, objects, LossSettings(contrast="released"))
        sum(losses.values(), start=torch.zeros(())).backward()
        optimizer.step()
    for t in range(1, 6):
        nearest = (frames[0, t] @ frames[0, t - 1].T).argmax(1)
        assert nearest[t % 5] == (t - 1) % 5
        assert nearest[(t + 2) % 5] == (t + 1) % 5


def test_variants_differ_from_the_release_in_what_their_names_say() -> None:
    assert set(CONTRASTS) == set(get_args(ContrastName))
    released = CONTRASTS["released"]
    assert (released.reid_weight, released.aux_weight, released.noise) == (2.0, 3.0, 0.0)
    assert released.momentum_positives == 0.5
    assert released.negatives == "previous_frame"
    assert released.unseen == "future"
    assert released.bank.guides is None
    assert CONTRASTS["tracker_bank"].bank.guides == 10
    assert CONTRASTS["paper"].aux_weight == 0
    assert len(set(CONTRASTS.values())) == len(CONTRASTS)


def test_a_variant_is_chosen_by_name_or_spelt_out_and_misspelt_ones_are_refused() -> None:
    assert load_settings(LossSettings, {"contrast": "paper"}, "here").contrast == "paper"
    spelt = load_settings(LossSettings, {"contrast": {"noise": 0.01, "bank": {"guides": 5}}}, "here")
    assert spelt.contrast == ContrastSettings(noise=0.01, bank=BankSettings(guides=5))
    with pytest.raises(SettingsError, match="contrast"):
        load_settings(LossSettings, {"contrast": "papre"}, "here")
    with pytest.raises(SettingsError, match="noise"):
        load_settings(LossSettings, {"contrast": {"noise": 2}}, "here")
    with pytest.raises(SettingsError, match="unknown setting"):
        load_settings(LossSettings, {"contrast": {"noisy": 1}}, "here")
