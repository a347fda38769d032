"""Claims about the published trainings: their numbers are the papers', and each takes steps at full network size.

The tables here are written from the papers and released configurations, independently of the module under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_layouts import make_official_sets
from typer.testing import CliRunner

from visrt.cli import app
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import DATASET_CLASSES, published
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.inspro import INSPRO_R50, INSPRO_R50_LITE, InsPro, InsProSettings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import DataError, SettingsError, UsageError
from visrt.training.data.clips import ClipDataset, CropSettings, JitterView, ShortSideView
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.loop import learner_of, train
from visrt.training.published_recipes import RECIPES, coco_map, recipe_named, recipe_settings, usual_settings
from visrt.training.run_settings import RunSettings, run_settings_from_file
from visrt.training.settings import LayerRates, TrainSettings
from visrt.training.vit.eomt_settings import EomtTrainSettings
from visrt.training.vit.videomt_settings import VideoMtTrainSettings

BASES = [name for name, recipe in RECIPES.items() if recipe.variant_of is None]
ROOT = Path("datasets")
VITS = ("eomt", "videomt")

STEPS = {
    # steps, decay at, clips a step, frames a clip, learning rate
    "mask2former-r50-coco": (368_750, (327_778, 355_092), 16, 1, 1e-4),
    "mask2former-swinl-coco": (737_500, (655_556, 710_184), 16, 1, 1e-4),
    "minvis-*-ytvis19": (6_000, (4_000,), 32, 1, 1e-4),
    "minvis-*-ytvis21": (8_000, (5_500,), 32, 1, 1e-4),
    "minvis-*-ovis": (10_000, (7_000,), 32, 1, 1e-4),
    "ctvis-r50-*": (16_000, (6_000, 12_000), 16, 10, 1e-4),
    "ctvis-swinl-ytvis19": (16_000, (6_000, 12_000), 16, 8, 1e-4),
    "ctvis-swinl-ytvis21": (16_000, (6_000, 12_000), 16, 8, 1e-4),
    "ctvis-swinl-ytvis22": (16_000, (6_000, 12_000), 16, 8, 1e-4),
    "ctvis-swinl-ovis": (16_000, (6_000, 12_000), 16, 6, 1e-4),
    "vita-*-ytvis19": (140_000, (75_000,), 8, 5, 5e-5),
    "vita-*-ytvis21": (187_500, (100_000,), 8, 6, 5e-5),
    "vita-*-ovis": (150_000, (50_000, 125_000), 8, 6, 5e-5),
    "genvis-online-*-ytvis19": (15_000, (10_000,), 8, 5, 5e-5),
    "genvis-online-*-ytvis21": (90_000, (50_000,), 8, 5, 5e-5),
    "genvis-online-*-ytvis22": (90_000, (50_000,), 8, 5, 5e-5),
    "genvis-online-*-ovis": (140_000, (100_000,), 8, 5, 5e-5),
    "genvis-semi-*-ytvis19": (15_000, (10_000,), 8, 15, 5e-5),
    "genvis-semi-*-ytvis21": (90_000, (50_000,), 8, 15, 5e-5),
    "genvis-semi-*-ytvis22": (90_000, (50_000,), 8, 15, 5e-5),
    "genvis-semi-*-ovis": (140_000, (100_000,), 8, 15, 5e-5),
    "inspro-r50-coco": (270_000, (210_000, 250_000), 16, 1, 2.5e-5),
    "inspro-vid-r101-coco": (270_000, (210_000, 250_000), 16, 1, 2.5e-5),
    "inspro-lite-*": (32_000, (24_000, 28_000), 8, 5, 2.5e-5),
    "inspro-joint-*": (32_000, (24_000, 28_000), 8, 3, 2.5e-5),
    "inspro-r50-*": (32_000, (24_000, 28_000), 8, 3, 2.5e-5),
    "inspro-vid-r101-imagenet": (32_000, (24_000, 28_000), 8, 3, 2.5e-5),
    "eomt-l-dinov3-*": (88_692, (), 16, 1, 2e-4),
    "eomt-*": (88_692, (), 16, 1, 1e-4),
    "videomt-segmenter-[sb]-ytvis19": (40_000, (), 40, 1, 1e-4),
    "videomt-segmenter-l-ytvis19": (60_000, (), 40, 1, 1e-4),
    "videomt-segmenter-*": (160_000, (), 40, 1, 1e-4),
    "videomt-[sb]-ytvis19": (40_000, (), 8, 5, 1e-4),
    "videomt-l-ytvis19": (60_000, (), 8, 5, 1e-4),
    "videomt-*": (160_000, (), 8, 5, 1e-4),
}


def published_steps(name: str) -> tuple[Any, ...]:
    fitting = [values for pattern, values in STEPS.items() if Path(name).match(pattern)]
    assert fitting, f"{name} is in no table of the papers here"
    return fitting[0]


@pytest.mark.parametrize("name", BASES)
def test_a_recipe_has_the_published_steps_batch_and_frames(name: str) -> None:
    settings = usual_settings(name, ROOT)
    steps, decay, batch, frames, rate = published_steps(name)

    assert (settings.optim.steps, settings.optim.batch, settings.optim.lr) == (steps, batch, rate)
    assert tuple(round(share * steps) for share in settings.optim.decay_at) == decay
    assert settings.data.clips.frames == frames
    assert settings.data.clips.classes == tuple(dict.fromkeys(settings.data.clips.classes))
    assert len(settings.data.clips.classes) == settings.network.classes


@pytest.mark.parametrize("name", [name for name in BASES if not name.startswith(("inspro", *VITS))])
def test_the_mask2former_families_share_their_optimiser_and_losses(name: str) -> None:
    settings = usual_settings(name, ROOT)
    assert isinstance(settings, TrainSettings)
    optim, loss = settings.optim, settings.loss

    assert (optim.backbone_factor, optim.weight_decay, optim.clip_norm, optim.schedule) == (0.1, 0.05, 0.01, "steps")
    assert optim.mixed_precision == "fp16"
    assert (loss.class_weight, loss.mask_weight, loss.dice_weight, loss.no_object_weight) == (2.0, 5.0, 5.0, 0.1)
    assert (loss.points, loss.oversample, loss.importance, loss.match.points) == (12544, 3.0, 0.75, 12544)
    assert (loss.match.class_cost, loss.match.mask_cost, loss.match.dice_cost) == (2.0, 5.0, 5.0)


@pytest.mark.parametrize("name", [name for name in BASES if name.startswith("inspro")])
def test_inspro_has_its_own_optimiser_and_losses(name: str) -> None:
    settings = usual_settings(name, ROOT)
    assert isinstance(settings, InsProTrainSettings)
    optim, loss = settings.optim, settings.loss

    assert (optim.backbone_factor, optim.weight_decay, optim.clip_norm) == (1.0, 1e-4, 1.0)
    assert (loss.label, loss.l1, loss.giou, loss.dice, loss.mask, loss.dedup) == (2.0, 5.0, 2.0, 5.0, 5.0, 1.0)
    assert loss.dedup_boxes == 5
    assert loss.dedup_margin == (0.15 if "imagenet" in name else 0.1)
    assert settings.network.bank_frames == 18


@pytest.mark.parametrize("name", [name for name in BASES if name.startswith(VITS)])
def test_plain_transformers_have_their_own_rates_and_mask2former_s_losses(name: str) -> None:
    settings = usual_settings(name, ROOT)
    assert isinstance(settings, EomtTrainSettings | VideoMtTrainSettings)
    optim, loss = settings.optim, settings.loss

    assert (optim.schedule, optim.weight_decay, optim.mixed_precision) == ("polynomial", 0.05, "fp16")
    assert optim.clip_norm == (0.0 if isinstance(settings, VideoMtTrainSettings) else 0.01)
    rates = (LayerRates(0.6, 0, 1000), 500)
    if name.startswith("eomt"):
        rates = (LayerRates(0.8, 4, 3000), 2000) if "dinov3" in name else (LayerRates(0.8, 0, 1000), 500)
    assert (optim.layers, optim.warmup_steps) == rates
    assert (loss.class_weight, loss.mask_weight, loss.dice_weight, loss.no_object_weight) == (2.0, 5.0, 5.0, 0.1)
    assert (loss.points, loss.oversample, loss.importance, loss.match.points) == (12544, 3.0, 0.75, 12544)
    assert (loss.match.class_cost, loss.match.mask_cost, loss.match.dice_cost) == (2.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [("s", (384, 12, 6, 3)), ("b", (768, 12, 12, 3)), ("l", (1024, 24, 16, 4)), ("l-dinov3", (1024, 24, 16, 4))],
)
def test_transformers_are_the_published_ones(size: str, sizes: tuple[int, ...]) -> None:
    names = ("videomt-{}-ovis", "videomt-segmenter-{}-ytvis21", "eomt-{}-coco")
    networks = [usual_settings(name.format(size), ROOT).network for name in names]

    for network in networks:
        assert isinstance(network, EomtSettings)
        assert (network.dim, network.blocks, network.heads, network.query_blocks) == sizes
        assert (network.queries, network.patch, network.registers) == (200, 16, 4)
        assert (network.positions, network.table_side) == (("rotary", 0) if "dinov3" in size else ("table", 40))
    assert [network.classes for network in networks] == [25, 40, 80]
    large = usual_settings("eomt-l-coco-1280", ROOT).network
    assert isinstance(large, EomtSettings)
    assert large.table_side == 80


def test_networks_are_the_published_ones() -> None:
    r50 = usual_settings("minvis-r50-ytvis19", ROOT).network
    swin = usual_settings("minvis-swinl-ovis", ROOT).network

    assert r50 == published("r50", 40)
    assert (swin.classes, swin.queries) == (25, 200)
    assert isinstance(swin, NetworkSettings)
    assert isinstance(swin.backbone, SwinSettings)
    assert swin.backbone.drop_path == 0.3
    ctvis = usual_settings("ctvis-r50-ovis", ROOT)
    assert isinstance(ctvis, TrainSettings)
    assert (ctvis.network.reid_dim, ctvis.network.reid_hidden_dim) == (256, 256)
    assert usual_settings("inspro-r50-ytvis19", ROOT).network == INSPRO_R50
    lite = usual_settings("inspro-lite-r50-ytvis19", ROOT)
    assert isinstance(lite, InsProTrainSettings)
    assert (lite.network, lite.phase, lite.key_frames) == (INSPRO_R50_LITE, "lite", 3)


@pytest.mark.parametrize(
    ("name", "range_frames"),
    [
        ("ctvis-r50-ytvis21", 20), ("ctvis-r50-ovis", 15), ("ctvis-swinl-ytvis19", 16), ("ctvis-swinl-ovis", 10),
        ("vita-r50-ytvis19", 20), ("vita-swinl-ovis", 8), ("genvis-online-r50-ovis", 6),
        ("genvis-semi-swinl-ytvis19", 12), ("videomt-b-ytvis22", 2),
    ],
)  # fmt: skip
def test_frames_of_a_clip_lie_within_the_published_range(name: str, range_frames: int) -> None:
    assert usual_settings(name, ROOT).data.clips.range_frames == range_frames


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("ctvis-r50-ytvis19", 1.5), ("ctvis-r50-ytvis21", 0.8), ("ctvis-swinl-ytvis22", 0.8), ("ctvis-r50-ovis", 0.75),
        ("vita-r50-ytvis21", 0.8),
        ("genvis-online-r50-ytvis19", 0.75), ("genvis-semi-r50-ytvis21", 0.75), ("genvis-online-swinl-ovis", 0.25),
        ("videomt-l-ytvis21", 1.0), ("videomt-segmenter-s-ovis", 1.0),
    ],
)  # fmt: skip
def test_videos_and_coco_photos_are_mixed_in_the_published_ratio(name: str, ratio: float) -> None:
    videos, photos = usual_settings(name, ROOT).data.sources
    assert (videos.kind, photos.kind) == ("youtube_vis", "coco")
    assert videos.base_weight / photos.base_weight == ratio


VIDEOMT_VIEW = ShortSideView(
    "short_side",
    (320, 352, 392, 416, 448, 480, 512, 544, 576, 608, 640),
    768,
    crop=CropSettings(0.5, (400, 500, 600), (384, 600)),
    pseudo_crop=CropSettings(0.5, (400, 500, 600), (384, 600), slides=True),
    rotation_deg=15.0,
)
SIZES = {
    "eomt": JitterView("jitter", 640, (0.1, 2.0), 0.5, (0, 0, 0)),
    "eomt-l-coco-1280": JitterView("jitter", 1280, (0.1, 2.0), 0.5, (0, 0, 0)),
    "eomt-l-dinov3-coco-1280": JitterView("jitter", 1280, (0.1, 2.0), 0.5, (0, 0, 0)),
    "videomt": VIDEOMT_VIEW,
    "mask2former": JitterView("jitter", 1024, (0.1, 2.0)),
    "minvis": ShortSideView("short_side", (360, 480), 1333),
    "ctvis": ShortSideView(
        "short_side",
        (320, 352, 392, 416, 448, 480, 512, 544, 576, 608, 640),
        768,
        crop=CropSettings(short_sides_px=(), slides=False),
        pseudo_crop=CropSettings(slides=True),
        rotation_deg=15.0,
    ),
    "genvis": ShortSideView(
        "short_side",
        (288, 320, 352, 384, 416, 448, 480, 512),
        768,
        crop=CropSettings(),
        pseudo_crop=CropSettings(),
        rotation_deg=15.0,
    ),
    "vita": ShortSideView(
        "short_side",
        (288, 320, 352, 384, 416, 448, 480, 512),
        768,
        crop=CropSettings(),
        pseudo_crop=CropSettings(),
        rotation_deg=15.0,
    ),
    "inspro-r50-coco": ShortSideView("short_side", (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333),
    "inspro-vid-r101-coco": ShortSideView("short_side", (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333),
    "inspro-vid-r101-imagenet": ShortSideView("short_side", (600,), 1000),
    "inspro": ShortSideView("short_side", (288, 320, 352, 384, 416, 448, 480, 512), 768),
}


@pytest.mark.parametrize("name", BASES)
def test_sizes_and_crops_are_the_published_ones(name: str) -> None:
    view = SIZES.get(name) or SIZES[name.split("-")[0]]

    clips = usual_settings(name, ROOT).data.clips

    assert clips.view == view
    assert (clips.min_area_px, clips.min_visible, clips.max_crowd) == (0, 0.0, 1.0)
    assert clips.paste.counts == clips.paste.bare_counts == (1.0,)
    assert not any(asdict(clips.looks)[name] for name in ("brightness", "jpeg", "grey", "blurred", "noisy", "coarse"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public sets in small, in their official layouts."""
    folder = tmp_path_factory.mktemp("datasets")
    make_official_sets(folder)
    return folder


@pytest.mark.parametrize("name", ["minvis-r50-ytvis19", "inspro-r50-ovis"])
def test_the_sizes_that_are_drawn_are_the_list(name: str, root: Path, tmp_path: Path) -> None:
    settings = recipe_settings(name, root, tmp_path)
    view = settings.data.clips.view
    assert isinstance(view, ShortSideView)
    clips = ClipDataset(settings.data.sources, replace(settings.data.clips, frames=1), 150, 0)

    short = {min(clips[i].frames.shape[1:3]) for i in range(len(clips))}

    capped = round(view.longest_px * 72 / 128)
    assert short == {min(side, capped) for side in view.short_sides_px}


def test_coco_is_mapped_by_the_released_pairs() -> None:
    assert {name: len(coco_map(name)) for name in ("ytvis19", "ytvis21", "ovis")} == {
        "ytvis19": 21,
        "ytvis21": 23,
        "ovis": 17,
    }
    assert coco_map("ytvis19")["skis"] == "snowboard"
    assert coco_map("ytvis21")["frisbee"] == "flying_disc"
    assert coco_map("ovis")["truck"] == "Vehical"
    same = {name for name in DATASET_CLASSES["coco"] if name in DATASET_CLASSES["ytvis2021"]}
    assert all(coco_map("ytvis21")[name] == name for name in same - {"mouse"} if name in coco_map("ytvis21"))


def test_every_set_is_found_in_its_official_layout(root: Path, tmp_path: Path) -> None:
    for name in BASES:
        for source in recipe_settings(name, root, tmp_path).data.sources:
            assert (Path(source.folder) / source.annotations).is_file()
            assert (Path(source.folder) / str(source.images)).is_dir()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_and_its_variants_can_start_and_be_kept_as_a_file(name: str, tmp_path: Path) -> None:
    settings = usual_settings(name, ROOT)

    learner_of(settings)

    path = tmp_path / "settings.json"
    path.write_text(json.dumps(asdict(settings)))
    assert run_settings_from_file(path) == run_settings_from_file(path)
    assert json.dumps(asdict(run_settings_from_file(path))) == path.read_text()


def test_variants_change_what_their_table_varies() -> None:
    def of(name: str) -> Any:
        return usual_settings(name, ROOT)

    assert of("minvis-r50-ovis-1pct").data.sources[0].label_fraction == 0.01
    assert of("minvis-r50-ytvis19-supervised").loss.identity_loss == "hinge"
    pseudo = of("ctvis-r50-ytvis21-pseudo-5pct").data.sources
    assert [(source.scene, source.label_fraction) for source in pseudo] == [("frame", 0.05)]
    assert of("ctvis-r50-ytvis19-coco-rotation-crop-paste").data.clips.paste.counts != (1.0,)
    assert of("genvis-online-r50-ytvis19-global-memory").genvis.memory == "all_slots"
    assert of("genvis-online-r50-ytvis19-clips-of-7").data.clips.frames == 35
    assert of("inspro-r50-ytvis19-queries-only").network.propagation == "queries"
    assert of("inspro-r50-ytvis19-bank-1").network.bank_frames == 1


def test_what_is_missing_is_one_clear_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean .*minvis-r50-ytvis19"):
        recipe_named("minvis-r50-ytvis2019")
    with pytest.raises(DataError, match=r"holds no train annotations of OVIS; expected ovis/annotations_train.json"):
        recipe_settings("minvis-r50-ovis", tmp_path, tmp_path)
    with pytest.raises(SettingsError, match=r"model_final_3c8ec9.pkl: is not there.*model zoo.*--from"):
        recipe_settings("minvis-r50-ytvis19", root)
    pictures = tmp_path / "ytvis_2019"
    pictures.mkdir()
    (pictures / "train.json").write_text("{}")
    with pytest.raises(DataError, match="holds no train pictures of YouTube-VIS 2019"):
        recipe_settings("minvis-r50-ytvis19", tmp_path, tmp_path)


def test_the_recipes_are_listed_and_one_is_printed_as_a_settings_file(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["recipes"])
    varied = CliRunner().invoke(app, ["recipes", "--variants"])
    printed = CliRunner().invoke(app, ["recipes", "ctvis-r50-ovis"])

    assert listed.exit_code == varied.exit_code == printed.exit_code == 0
    assert all(name in listed.stdout for name in BASES)
    assert "ctvis-r50-ovis-paper" not in listed.stdout
    assert "ctvis-r50-ovis-paper" in varied.stdout
    path = tmp_path / "settings.json"
    path.write_text(printed.stdout)
    assert run_settings_from_file(path).optim.steps == 16_000


# Two steps at full network size


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a checkpoint of random weights that a recipe may start from, by the recipe's name."""
    folder = tmp_path_factory.mktemp("weights")

    def start(name: str) -> Path:
        if name.startswith("inspro"):
            trained = usual_settings(name, ROOT).network
            assert isinstance(trained, InsProSettings)
            settings = replace(INSPRO_R50, backbone=trained.backbone, outputs="boxes" if "-vid-" in name else "masks")
            network: torch.nn.Module = InsPro(settings)
            path = folder / ("boxes.safetensors" if "-vid-" in name else "pairs.safetensors")
        elif name.startswith(VITS):
            vit = usual_settings(name, ROOT).network
            assert isinstance(vit, EomtSettings)
            path = folder / f"vit_{vit.dim}_{vit.positions}.safetensors"
            network = Eomt(eomt_for(vit, 40))
        else:
            kind = "swin_l" if "swinl" in name else "r50"
            network, path = Mask2Former(published(kind, 40)), folder / f"{kind}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            save_checkpoint(network, path, DATASET_CLASSES["ytvis2019"])
        return path

    return start


def eomt_for(vit: EomtSettings, classes: int) -> EomtSettings:
    """EoMT with the transformer of `vit`, its table that of 640 pixels."""
    own = {field.name: getattr(vit, field.name) for field in fields(EomtSettings)}
    return EomtSettings(**{**own, "classes": classes, "table_side": 40 if vit.table_side else 0})


def small_clips(settings: RunSettings) -> RunSettings:
    """`settings` on small pictures and few points, so that a network of full size steps in seconds on a CPU."""
    clips = settings.data.clips
    view = clips.view
    small: ShortSideView | JitterView
    if isinstance(view, ShortSideView):
        small = replace(view, short_sides_px=(64, 96), longest_px=128, crop=None, pseudo_crop=None)
    else:
        assert isinstance(view, JitterView)
        small = replace(view, side_px=96)
    changed = replace(settings, data=replace(settings.data, clips=replace(clips, view=small), workers=0))
    optim = replace(settings.optim, steps=2, batch=2, clips_at_once=1, mixed_precision="no")
    changed = replace(changed, optim=optim, save_every=10, validate_every=10)
    if not isinstance(changed, InsProTrainSettings):
        match = replace(changed.loss.match, points=256)
        changed = replace(changed, loss=replace(changed.loss, points=256, match=match))
    return changed


QUICK = ("minvis-r50-ytvis21", "inspro-lite-r50-ytvis19", "inspro-vid-r101-imagenet")
FULL_SIZE = (
    "mask2former-r50-coco", "minvis-swinl-ovis", "ctvis-r50-ovis", "vita-r50-ytvis21",
    "genvis-online-r50-ytvis19", "genvis-semi-r50-ytvis19", "inspro-r50-coco", "inspro-joint-r50-ovis",
    "eomt-l-coco", "videomt-segmenter-b-ovis", "videomt-s-ytvis19", "videomt-l-dinov3-ytvis21",
)  # fmt: skip


def marked(name: str) -> Any:
    """`name` with the marker of the run it belongs to; the quick ones belong to every run."""
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.full_size if name in FULL_SIZE else pytest.mark.every_recipe)


@pytest.mark.parametrize("name", [marked(name) for name in BASES])
def test_two_steps_at_full_network_size(name: str, root: Path, starts: Callable[[str], Path], tmp_path: Path) -> None:
    settings = small_clips(recipe_settings(name, root, starts(name)))

    train(settings, tmp_path / "run")

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (tmp_path / "run" / "model.safetensors").exists()
