"""Claims about training EoMT: masks fade, every prediction is taught, runs are repeated and resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sets import coco_values, write_coco
from torch import Tensor
from vit_runs import eomt_run, videomt_run

from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.eomt import EOMT
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.runtime.errors import SettingsError
from visrt.training.data.pasting import PasteSettings
from visrt.training.loop import Outcome, Run, learner_of, train
from visrt.training.run_settings import RunSettings, family_of, run_settings_from_file
from visrt.training.settings import OptimSettings
from visrt.training.vit.eomt_learner import EomtLearner, fading_masks
from visrt.training.vit.eomt_settings import EomtTrainSettings

KINDS: dict[str, Any] = {"eomt": EOMT, "videomt": VIDEOMT}
BOTH = pytest.mark.parametrize("family", KINDS)
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"mixed_precision": "bf16"},
    "checkpoint_activations": {"checkpoint_activations": True},
    "one at a time": {"clips_at_once": 1},
}
RUNS: dict[str, Any] = {"eomt": eomt_run, "videomt": videomt_run}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_coco(folder, coco_values(pictures=6))
    return folder


def weights_of(outcome: Outcome, family: str) -> dict[str, Tensor]:
    return dict(load_checkpoint(outcome.weights, KINDS[family]).weights)


@pytest.mark.parametrize(
    ("blocks", "starts"), [(4, (14_782, 29_564, 44_346, 59_128)), (3, (14_782, 36_955, 59_128))], ids=["L", "S and B"]
)
def test_masks_fade_block_by_block_as_published(blocks: int, starts: tuple[int, ...]) -> None:
    """In 12 epochs of 7,391 steps; each over two epochs, as (1 - progress) ** 0.9."""
    steps = 88_692
    for block, start in enumerate(starts):
        for step, probability in ((start - 1, 1.0), (start + 7_391, 0.5**0.9), (start + 14_783, 0.0)):
            assert fading_masks(step, steps, blocks)[block] == pytest.approx(probability, abs=1e-3)


def test_the_step_of_the_run_decides_how_far_masks_have_faded(photos: Path, tmp_path: Path) -> None:
    run = Run(eomt_run(photos, optim=replace(eomt_run(photos).optim, steps=6)), tmp_path / "run")
    run.resume()
    trained: Any = run.trained
    seen = []
    for batches in run.batches():
        run.advance(batches)
        seen.append(trained.probabilities())
    assert seen[0] == (1.0, 1.0)
    assert seen[3] == (0.0, 1.0)
    assert seen[5] == (0.0, 0.0)


@BOTH
def test_a_run_leaves_what_export_reads_and_is_repeated_from_its_file(
    family: str, photos: Path, tmp_path: Path
) -> None:
    settings = RUNS[family](photos, optim=replace(RUNS[family](photos).optim, ema_decay=0.5))
    weights = train(settings, tmp_path / "run").weights
    checkpoint = load_checkpoint(weights, KINDS[family])
    assert (checkpoint.settings, checkpoint.classes) == (settings.network, ("car", "dog", "chair"))
    again = run_settings_from_file(tmp_path / "run" / "settings.json")
    assert again == settings
    assert family_of(again) == family
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_class", "loss_mask", "loss_dice"} <= rows[0].keys()
    assert {"quality_recall", "quality_precision", "quality_linked"} <= rows[-1].keys()


@BOTH
def test_an_interrupted_run_ends_with_the_very_weights_of_a_whole_one(
    family: str, photos: Path, tmp_path: Path
) -> None:
    settings: RunSettings = RUNS[family](photos)
    whole = weights_of(train(settings, tmp_path / "whole"), family)
    run = Run(settings, tmp_path / "cut")
    run.resume()
    run.advance(next(iter(run.batches())))
    run.save()
    cut = weights_of(train(settings, tmp_path / "cut"), family)
    for key, value in whole.items():
        torch.testing.assert_close(cut[key], value, rtol=1e-4, atol=1e-6)


def gradients(settings: RunSettings, folder: Path, counts: Sequence[float] | None = None) -> dict[str, Tensor | None]:
    """Of every weight in training, from one batch."""
    [batch] = next(iter(Run(settings, folder).batches()))
    learner = learner_of(settings)
    trained = learner.start().train()
    losses = learner.losses(trained, batch, counts or [max(n, 1.0) for n in learner.counts(batch)])
    sum(losses.values(), torch.zeros(())).backward()
    return {name: weight.grad for name, weight in trained.named_parameters() if weight.requires_grad}


@BOTH
def test_every_weight_gets_a_gradient(family: str, photos: Path, tmp_path: Path) -> None:
    """Distributed training waits for the gradient of each."""
    assert not [name for name, grad in gradients(RUNS[family](photos), tmp_path).items() if grad is None]


@BOTH
@pytest.mark.parametrize("way", WAYS)
def test_a_step_in_bf16_or_with_less_memory_is_nearly_the_same(
    family: str, way: str, photos: Path, tmp_path: Path
) -> None:
    settings: RunSettings = RUNS[family](photos)
    optim: OptimSettings = replace(settings.optim, **WAYS[way])
    lost = []
    for name, one in (("plain", settings), (way, replace(settings, optim=optim))):
        run = Run(one, tmp_path / name)
        run.resume()
        lost.append(run.advance(next(iter(run.batches())))["loss"])
    assert lost[1] == pytest.approx(lost[0], rel=1e-5 if way == "checkpoint_activations" else 0.05)


def still(settings: EomtTrainSettings, steps: int, **changes: Any) -> EomtTrainSettings:
    """`settings` without pasted objects, for so many steps."""
    nothing = PasteSettings(counts=(1.0,), bare_counts=(1.0,))
    clips = replace(settings.data.clips, paste=nothing, **changes)
    data = replace(settings.data, clips=clips, validation_clips=4, validation_frames=4)
    rates: dict[str, Any] = {"lr": 3e-3, "batch": 4, "clip_norm": 1.0, "warmup_steps": 5, "layers": None}
    return replace(settings, data=data, optim=replace(settings.optim, steps=steps, **rates))


@pytest.fixture(scope="module")
def segmenter(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(still(eomt_run(photos), 30), tmp_path_factory.mktemp("segmenter") / "run")


def losses_in(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_segmenter_finds_the_car_of_made_photos(segmenter: Outcome) -> None:
    losses = losses_in(segmenter.weights.parent)
    assert losses[-1] < losses[0] / 2
    assert segmenter.quality["recall"] > 0.9
    assert segmenter.quality["precision"] > 0.9


def test_the_online_stage_keeps_the_car_in_one_slot(segmenter: Outcome, photos: Path, tmp_path: Path) -> None:
    settings: Any = videomt_run(photos, init=str(segmenter.weights), first_updater="nothing")
    outcome = train(still(settings, 8), tmp_path / "run")
    assert outcome.quality["recall"] > 0.9
    assert outcome.quality["linked"] == 1.0


def with_clips(settings: Any, **changes: Any) -> Any:
    return replace(settings, data=replace(settings.data, clips=replace(settings.data.clips, **changes)))


@pytest.mark.parametrize(
    ("family", "spoil", "told"),
    [
        ("eomt", lambda one: with_clips(one, max_objects=7), r"network\.queries is 6, but a clip may hold .* = 7"),
        ("eomt", lambda one: replace(one, network=replace(one.network, patch=14)), r"network\.patch is 14"),
        ("videomt", lambda one: with_clips(one, frames=1), r"data\.clips\.frames is 1, but queries travel"),
        ("videomt", lambda one: replace(one, loss=replace(one.loss, identity_weight=1.0)), r"loss\.identity_weight"),
    ],
)
def test_what_contradicts_itself_is_refused(family: str, spoil: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        learner_of(spoil(RUNS[family](Path("nowhere"))))


def test_masks_may_be_off_from_the_first_step(photos: Path) -> None:
    trained = EomtLearner(eomt_run(photos, masked_attention="off")).start()
    assert trained.probabilities() == (0.0, 0.0)
