"""Claims about how a plain transformer learns: a rate for each block, two warm-ups, decay on everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vit_runs import NETWORK

from visrt.models.videomt import VideoMt
from visrt.runtime.errors import SettingsError
from visrt.training.optim import optimizer_for, scheduler_for
from visrt.training.settings import LayerRates, OptimSettings
from visrt.training.vit.videomt_learner import TrainedVideoMt

RELEASED = OptimSettings(
    steps=40_000, lr=1e-4, clip_norm=0.0, warmup_steps=500, schedule="polynomial", layers=LayerRates()
)


def rates_at(settings: OptimSettings, steps: list[int]) -> dict[str, list[float]]:
    """Learning rates of each weight of a transformer of 3 blocks after so many steps."""
    trained = TrainedVideoMt(VideoMt(NETWORK))
    optimizer = optimizer_for(trained, settings)
    scheduler = scheduler_for(optimizer, settings)
    groups = [{id(weight) for weight in group["params"]} for group in optimizer.param_groups]
    group_of = {
        name: next(i for i, ids in enumerate(groups) if id(weight) in ids)
        for name, weight in trained.network.named_parameters()
    }
    factors = [
        [float(base) * factor(step) for step in steps]
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    return {name: factors[group] for name, group in group_of.items()}


def test_every_weight_learns_at_the_released_rate_of_its_depth_after_both_warm_ups() -> None:
    rates = rates_at(RELEASED, [0, 250, 500, 1000, 1500, 20_750, 40_000])

    heads = [0, 0.5e-4, 1e-4, *(1e-4 * (1 - (step - 500) / 39_500) ** 0.9 for step in (1000, 1500, 20_750)), 0]
    for name in ("class_predictor.weight", "query.weight", "query_updater.bias", "upscale_block.block.0.conv2.weight"):
        assert rates[name] == pytest.approx(heads)
    whole = [0, 0, 0, 0.5e-4, 1e-4, 1e-4 * 0.5**0.9, 0]
    assert rates["layernorm.weight"] == pytest.approx(whole)
    for block, share in enumerate((0.36, 0.6, 1.0)):
        assert rates[f"layers.{block}.mlp.fc1.weight"] == pytest.approx([share * rate for rate in whole])
    for name in ("patch_embeddings.projection.weight", "cls_token", "position_embeddings.weight"):
        assert rates[f"embeddings.{name}"] == pytest.approx([0.36 * rate for rate in whole])


def test_last_blocks_may_learn_at_the_whole_rate() -> None:
    rates = rates_at(replace(RELEASED, layers=LayerRates(decay=0.8, whole_blocks=2, warmup_steps=0)), [500])

    assert [rates[f"layers.{block}.norm1.bias"] for block in range(3)] == [[pytest.approx(0.64e-4)], [1e-4], [1e-4]]


def test_norms_and_embeddings_decay_too() -> None:
    groups = optimizer_for(TrainedVideoMt(VideoMt(NETWORK)), RELEASED).param_groups

    assert {group["weight_decay"] for group in groups} == {0.05}
    assert sum(weight.numel() for group in groups for weight in group["params"]) == sum(
        weight.numel() for weight in VideoMt(NETWORK).parameters()
    )


def test_rates_by_depth_are_refused_without_a_plain_transformer_or_its_schedule() -> None:
    with pytest.raises(SettingsError, match=r"optim\.layers is set, but the network is no plain vision transformer"):
        optimizer_for(torch.nn.Linear(2, 2), RELEASED)
    with pytest.raises(SettingsError, match=r"optim\.layers is set, but optim\.schedule is 'steps'"):
        optimizer_for(TrainedVideoMt(VideoMt(NETWORK)), replace(RELEASED, schedule="steps"))
