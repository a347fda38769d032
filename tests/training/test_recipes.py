"""Claims about the recipes: each loads strictly, and those with published values hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visrt.models.inspro import INSPRO_R50, INSPRO_R50_LITE
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.settings import settings_from_file
from visrt.training.data.cutouts import DISTRACTOR
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.loop import learner_of
from visrt.training.run_settings import run_settings_from_file
from visrt.training.settings import TrainSettings

RECIPES = Path(__file__).parent.parent.parent / "training" / "recipes"
RUNS = sorted(path for path in RECIPES.glob("*/*.json") if "network" in json.loads(path.read_text()))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_is_a_run_that_can_start(path: Path) -> None:
    settings = run_settings_from_file(path)
    learner_of(settings)
    assert len(settings.data.clips.classes) == settings.network.classes
    for source in settings.data.sources:
        mapped = Path(source.class_map) if isinstance(source.class_map, str) else None
        if mapped and (RECIPES.parent.parent / mapped).exists():
            names = json.loads((RECIPES.parent.parent / mapped).read_text()).values()
            assert set(names) - {DISTRACTOR} <= set(settings.data.clips.classes)


def test_ctvis_is_trained_with_the_released_values() -> None:
    settings = settings_from_file(TrainSettings, RECIPES / "ctvis" / "youtube_vis_2019.json")
    assert settings.network == NetworkSettings(classes=40, reid_dim=256, reid_hidden_dim=256)
    optim, loss = settings.optim, settings.loss
    assert (optim.steps, optim.batch, optim.lr, optim.backbone_factor) == (16000, 16, 1e-4, 0.1)
    assert [fraction * optim.steps for fraction in optim.decay_at] == [6000, 12000]
    assert (optim.weight_decay, optim.clip_norm) == (0.05, 0.01)
    assert (settings.data.clips.frames, settings.data.clips.video_span_frames) == (10, 41)
    assert (loss.points, loss.oversample, loss.importance, loss.contrast) == (12544, 3.0, 0.75, "released")
    video, photos = settings.data.sources
    assert video.base_weight / photos.base_weight == 1.5


def test_minvis_is_trained_from_single_frames_with_the_published_values() -> None:
    settings = settings_from_file(TrainSettings, RECIPES / "minvis" / "youtube_vis_2019.json")
    assert settings.data.clips.frames == 1
    assert (settings.loss.contrast, settings.loss.identity_weight) == ("off", 0.0)
    assert (settings.optim.steps, settings.optim.batch) == (6000, 32)
    assert round(settings.optim.decay_at[0] * settings.optim.steps) == 4000
    assert settings.network == NetworkSettings(classes=40)


def test_pseudo_videos_of_a_fraction_differ_from_the_full_run_in_their_sources_only() -> None:
    full, part = (
        json.loads((RECIPES / "ctvis" / f"youtube_vis_2019{kind}.json").read_text()) for kind in ("", "_pseudo")
    )
    [source] = part["data"].pop("sources")
    full["data"].pop("sources")
    assert part == full
    assert source["scene"] == "frame"
    assert source["label_fraction"] == 0.05


def test_inspro_is_trained_with_the_published_values() -> None:
    settings = settings_from_file(InsProTrainSettings, RECIPES / "inspro" / "youtube_vis_2019.json")
    assert settings.network == INSPRO_R50
    optim, loss = settings.optim, settings.loss
    assert (optim.steps, optim.batch, optim.lr, optim.weight_decay) == (32000, 1, 2.5e-5, 1e-4)
    assert [fraction * optim.steps for fraction in optim.decay_at] == [24000, 28000]
    assert settings.data.clips.frames == 3
    assert (loss.label, loss.l1, loss.giou, loss.dice, loss.mask, loss.dedup) == (2.0, 5.0, 2.0, 5.0, 5.0, 1.0)


def test_the_lite_head_is_trained_on_three_key_frames_and_two_others() -> None:
    settings = settings_from_file(InsProTrainSettings, RECIPES / "inspro" / "youtube_vis_2019_lite.json")
    assert settings.network == INSPRO_R50_LITE
    assert (settings.phase, settings.key_frames, settings.data.clips.frames) == ("lite", 3, 5)
