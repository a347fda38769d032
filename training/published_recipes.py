"""The published trainings, made from tables of the papers' and releases' values: `visrt train --recipe NAME`.

A recipe is a family on a data set with a backbone; its variants are the papers' ablations. Values are those of the
released configurations; where there are none (InsPro), of the paper, and of Sparse R-CNN, on which it builds. What
neither states is marked as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

from visrt.models.checkpoints.published import DATASET_CLASSES, ctvis, eomt, published, videomt
from visrt.models.inspro import INSPRO_VID_R101, InsProSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import SettingsError, UsageError
from visrt.training.data.clips import ClipSettings, CropSettings, JitterView, ShortSideView
from visrt.training.data.looks import LookSettings
from visrt.training.data.official_sets import OFFICIAL_SETS, SplitPlaces
from visrt.training.data.pasting import PasteSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.losses.inspro import InsProLossSettings
from visrt.training.losses.mask2former import LossSettings
from visrt.training.run_settings import RunSettings
from visrt.training.settings import DataSettings, LayerRates, OptimSettings, TrainSettings
from visrt.training.vit.eomt_settings import EomtTrainSettings
from visrt.training.vit.videomt_settings import VideoMtTrainSettings

__all__ = ["RECIPES", "Recipe", "Start", "recipe_named", "recipe_settings", "usual_settings"]


@dataclass(frozen=True)
class Start:
    """The weights a training starts from: `file` below ROOT/weights, what it holds, and where it comes from."""

    file: str
    what: str
    origin: str


Places = Mapping[str, SplitPlaces]
Make = Callable[[Places, str], RunSettings]


@dataclass(frozen=True)
class Recipe:
    """One training. rows: the paper's tables it belongs to. sets: names in OFFICIAL_SETS. make: its settings, from the
    places of its sets and the path of its start. variant_of: the recipe of which it is an ablation."""

    what: str
    rows: str
    start: Start
    sets: tuple[str, ...]
    make: Make
    variant_of: str | None = None


def recipe_named(name: str) -> Recipe:
    """The recipe `name`. Raises UsageError with names that are like it."""
    if name not in RECIPES:
        like = get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(like)}?" if like else ""
        raise UsageError(f"there is no recipe {name!r}{hint} `visrt recipes` lists them")
    return RECIPES[name]


def recipe_settings(name: str, root: Path, start: Path | None = None) -> RunSettings:
    """The settings of recipe `name` on the sets below `root`, from the weights `start` or those in `root`/weights.

    Raises UsageError, DataError or SettingsError where the recipe, a set or the weights are not there.
    """
    recipe = recipe_named(name)
    places = {one: OFFICIAL_SETS[one].find(root, "train") for one in recipe.sets}
    weights = start or root / "weights" / recipe.start.file
    if start is None and not weights.exists():
        raise SettingsError(
            f"{weights}: is not there; recipe {name} starts from {recipe.start.what} ({recipe.start.origin}); put it "
            "there, or name other weights with --from"
        )
    return recipe.make(places, str(weights))


def usual_settings(name: str, root: Path) -> RunSettings:
    """The settings of recipe `name` as they are where every set and the weights lie at their usual place."""
    recipe = recipe_named(name)
    places = {one: OFFICIAL_SETS[one].usual(root, "train") for one in recipe.sets}
    return recipe.make(places, str(root / "weights" / recipe.start.file))


# Backbones and starts

DROP_PATH = 0.3
BACKBONES = {"r50": "r50", "swinl": "swin_l"}
TITLES = {"r50": "ResNet-50", "swinl": "Swin-L"}
MODEL_ZOO = "model zoo of Mask2Former"
COCO_STARTS = {
    "r50": Start("model_final_3c8ec9.pkl", "Mask2Former, ResNet-50, trained on COCO instances", MODEL_ZOO),
    "swinl": Start("model_final_e5f453.pkl", "Mask2Former, Swin-L, trained on COCO instances", MODEL_ZOO),
}
IMAGENET_STARTS = {
    "r50": Start("R-50.pkl", "ResNet-50 trained on ImageNet", "detectron2's ImageNetPretrained/torchvision"),
    "r101": Start("R-101.pkl", "ResNet-101 trained on ImageNet", "detectron2's ImageNetPretrained/torchvision"),
    "swinl": Start(
        "swin_large_patch4_window12_384_22k.pth", "Swin-L trained on ImageNet-22k", "releases of Swin Transformer"
    ),
}


def _network(backbone: str, classes: int) -> NetworkSettings:
    """The published Mask2Former; Swin drops residual branches in training."""
    settings = published(BACKBONES[backbone], classes)
    if isinstance(settings.backbone, SwinSettings):
        settings = replace(settings, backbone=replace(settings.backbone, drop_path=DROP_PATH))
    return settings


# Data

COCO_IDS = (
    *range(1, 12),
    *range(13, 26),
    27,
    28,
    *range(31, 45),
    *range(46, 66),
    67,
    70,
    *range(72, 83),
    *range(84, 91),
)
"""Category ids of the 80 classes of COCO."""

COCO_PAIRS: dict[str, dict[int, int]] = {
    "ytvis19": {
        1: 1, 2: 21, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20, 24: 30,
        25: 22, 35: 33, 36: 33, 41: 5, 42: 27, 43: 40,
    },
    "ytvis21": {
        1: 26, 2: 23, 3: 5, 4: 23, 5: 1, 7: 36, 8: 37, 9: 4, 16: 3, 17: 6, 18: 9, 19: 19, 21: 7, 22: 12, 23: 2, 24: 40,
        25: 18, 34: 14, 35: 31, 36: 31, 41: 29, 42: 33, 43: 34,
    },
    "ovis": {
        1: 1, 2: 21, 3: 25, 4: 22, 5: 23, 6: 25, 8: 25, 9: 24, 17: 3, 18: 4, 19: 5, 20: 6, 21: 7, 22: 8, 23: 9, 24: 10,
        25: 11,
    },
}  # fmt: skip
"""The releases' maps of COCO's category ids to those of a video set, which count from 1."""
COCO_PAIRS["ytvis22"] = COCO_PAIRS["ytvis21"]


def coco_map(video_set: str) -> dict[str, str | None]:
    """COCO's class names to those of `video_set`; classes without a pair are left out."""
    coco = dict(zip(COCO_IDS, DATASET_CLASSES["coco"], strict=True))
    classes = _classes(video_set)
    return {coco[theirs]: classes[ours - 1] for theirs, ours in COCO_PAIRS[video_set].items()}


def _classes(name: str) -> tuple[str, ...]:
    return DATASET_CLASSES[OFFICIAL_SETS[name].classes]


def _source(places: Places, name: str, weight: float = 1.0, **more: Any) -> SourceSettings:
    """All of a set's train split as scenes; pictures without a target are left out, as the released loaders do."""
    at = places[name]
    return SourceSettings(
        cast(Any, OFFICIAL_SETS[name].kind),
        str(at.folder),
        annotations=at.annotations,
        images=at.images,
        needs_target=True,
        base_weight=weight,
        cutout_weight=0.0,
        **more,
    )


def _joint(places: Places, video_set: str, weight: float) -> tuple[SourceSettings, ...]:
    """The video set, `weight` times as often as COCO, whose photos become pseudo-videos."""
    return _source(places, video_set, weight), _source(places, "coco", class_map=coco_map(video_set))


NO_PASTING = PasteSettings(counts=(1.0,), bare_counts=(1.0,))
NO_CHANGE = LookSettings(
    **dict.fromkeys(
        ("brightness", "contrast", "saturation", "gamma", "hue_deg", "tint", "flicker"), 0.0
    ),
    **dict.fromkeys(("grey", "blurred", "motion_blur", "coarse", "noisy", "jpeg"), 0.0),
)  # fmt: skip


def _clips(
    classes: tuple[str, ...], frames: int, range_frames: int | None, view: ShortSideView | JitterView
) -> ClipSettings:
    """Clips as the releases make them: no colour change, nothing pasted, every annotated object kept."""
    return ClipSettings(
        classes=classes,
        frames=frames,
        range_frames=range_frames,
        view=view,
        cache_mb=200,
        max_crowd=1.0,
        min_area_px=0,
        min_visible=0.0,
        max_objects=100,
        paste=NO_PASTING,
        looks=NO_CHANGE,
    )


def _data(sources: tuple[SourceSettings, ...], clips: ClipSettings) -> DataSettings:
    """Everything is trained on, as published: nothing is held out."""
    return DataSettings(sources, clips, workers=4, validation_clips=0)


GPUS = 8


def _optim(steps: int, decay: tuple[int, ...], batch: int, **more: Any) -> OptimSettings:
    """The rate falls by 10 at the steps `decay`. A process holds what one of 8 GPUs held."""
    return OptimSettings(
        steps,
        batch,
        clips_at_once=max(1, batch // GPUS),
        warmup_steps=0,
        decay_at=tuple(step / steps for step in decay),
        **{"mixed_precision": "fp16", **more},
    )


SHORT_SIDES = tuple(range(288, 513, 32))
CROP = CropSettings()

# Mask2Former on COCO: where every other training begins

MASK2FORMER_STEPS = {"r50": (368_750, (327_778, 355_092)), "swinl": (737_500, (655_556, 710_184))}


def _mask2former(backbone: str, places: Places, init: str) -> TrainSettings:
    clips = _clips(_classes("coco"), 1, None, JitterView("jitter"))
    return TrainSettings(
        _network(backbone, 80),
        _data((_source(places, "coco"),), clips),
        _optim(*MASK2FORMER_STEPS[backbone], batch=16),
        init=init,
    )


# MinVIS

MINVIS_STEPS = {"ytvis19": (6_000, (4_000,)), "ytvis21": (8_000, (5_500,)), "ovis": (10_000, (7_000,))}
MINVIS_VIEW = ShortSideView("short_side", (360, 480))


def _minvis(backbone: str, video_set: str, places: Places, init: str) -> TrainSettings:
    classes = _classes(video_set)
    return TrainSettings(
        _network(backbone, len(classes)),
        _data((_source(places, video_set),), _clips(classes, 1, None, MINVIS_VIEW)),
        _optim(*MINVIS_STEPS[video_set], batch=32),
        init=init,
    )


# CTVIS


@dataclass(frozen=True)
class CtVisValues:
    """weight: of the videos against COCO. Frames of a clip, and how far they are from the one in its middle."""

    weight: float
    frames: dict[str, int]
    range_frames: dict[str, int]


YOUTUBE_FRAMES, YOUTUBE_RANGE = {"r50": 10, "swinl": 8}, {"r50": 20, "swinl": 16}
CTVIS_VALUES = {
    "ytvis19": CtVisValues(1.5, YOUTUBE_FRAMES, YOUTUBE_RANGE),
    "ytvis21": CtVisValues(0.8, YOUTUBE_FRAMES, YOUTUBE_RANGE),
    "ytvis22": CtVisValues(0.8, YOUTUBE_FRAMES, YOUTUBE_RANGE),
    "ovis": CtVisValues(0.75, {"r50": 10, "swinl": 6}, {"r50": 15, "swinl": 10}),
}
CTVIS_VIEW = ShortSideView(
    "short_side",
    (320, 352, 392, *range(416, 641, 32)),
    longest_px=768,
    crop=CropSettings(short_sides_px=()),
    pseudo_crop=CropSettings(slides=True),
    rotation_deg=15.0,
)


def _ctvis(backbone: str, video_set: str, places: Places, init: str) -> TrainSettings:
    values, classes = CTVIS_VALUES[video_set], _classes(video_set)
    clips = _clips(classes, values.frames[backbone], values.range_frames[backbone], CTVIS_VIEW)
    return TrainSettings(
        ctvis(_network(backbone, len(classes))),
        _data(_joint(places, video_set, values.weight), clips),
        _optim(16_000, (6_000, 12_000), batch=16, checkpoint_activations=backbone == "swinl"),
        LossSettings(contrast="released"),
        init=init,
    )


# GenVIS and, before it, VITA

GENVIS_STEPS = {
    "ytvis19": (15_000, (10_000,)),
    "ytvis21": (90_000, (50_000,)),
    "ytvis22": (90_000, (50_000,)),
    "ovis": (140_000, (100_000,)),
}
GENVIS_WEIGHT = {"ytvis19": 0.75, "ytvis21": 0.75, "ytvis22": 0.75, "ovis": 0.25}
GENVIS_VIEW = ShortSideView("short_side", SHORT_SIDES, longest_px=768, crop=CROP, pseudo_crop=CROP, rotation_deg=15.0)
CLIPS_A_VIDEO = 5


@dataclass(frozen=True)
class VitaValues:
    """weight: of the videos against COCO. frames: of the one clip of a video."""

    weight: float
    frames: int
    range_frames: int
    steps: int
    decay: tuple[int, ...]


VITA_VALUES = {
    "ytvis19": VitaValues(0.75, 5, 20, 140_000, (75_000,)),
    "ytvis21": VitaValues(0.8, 6, 8, 187_500, (100_000,)),
    "ovis": VitaValues(0.25, 6, 8, 150_000, (50_000, 125_000)),
}
GENVIS_RANGE = {1: 6, 3: 12}
VITA_YEARS = {"ytvis19": "ytvis2019", "ytvis21": "ytvis2021", "ytvis22": "ytvis2021", "ovis": "ovis"}
VITA_BACKBONES = {"r50": "r50", "swinl": "swin"}


def _genvis(backbone: str, video_set: str, clip_frames: int, places: Places, init: str) -> TrainSettings:
    classes = _classes(video_set)
    clips = _clips(classes, CLIPS_A_VIDEO * clip_frames, GENVIS_RANGE[clip_frames], GENVIS_VIEW)
    return TrainSettings(
        _network(backbone, len(classes)),
        _data(_joint(places, video_set, GENVIS_WEIGHT[video_set]), clips),
        _optim(*GENVIS_STEPS[video_set], batch=8, lr=5e-5),
        genvis=GenVisTraining(clip_frames=clip_frames),
        init=init,
    )


def _vita(backbone: str, video_set: str, places: Places, init: str) -> TrainSettings:
    """Frame part and video part together, from a Mask2Former: the step before GenVIS."""
    values, classes = VITA_VALUES[video_set], _classes(video_set)
    return TrainSettings(
        _network(backbone, len(classes)),
        _data(
            _joint(places, video_set, values.weight), _clips(classes, values.frames, values.range_frames, GENVIS_VIEW)
        ),
        _optim(values.steps, values.decay, batch=8, lr=5e-5, checkpoint_activations=backbone == "swinl"),
        genvis=GenVisTraining(stage="vita", clip_frames=values.frames, new_part="random"),
        init=init,
    )


def _vita_start(backbone: str, video_set: str) -> Start:
    return Start(
        f"vita_{VITA_BACKBONES[backbone]}_{VITA_YEARS[video_set]}.pth",
        f"VITA, {TITLES[backbone]}, trained on {OFFICIAL_SETS[video_set].title}",
        "model zoo of VITA, or a run of recipe vita-...; a Mask2Former given with --from works too",
    )


# InsPro

INSPRO_VIEW = ShortSideView("short_side", SHORT_SIDES, longest_px=768)
INSPRO_COCO_VIEW = ShortSideView("short_side", tuple(range(480, 801, 32)), longest_px=1333)
INSPRO_VID_VIEW = ShortSideView("short_side", (600,), longest_px=1000)
INSPRO_RANGE = 20
"""Ours: the paper takes three random frames of a video and does not say how far apart."""
INSPRO_SETS = ("ytvis19", "ytvis21", "ovis")


def _inspro_run(name: str, what: str) -> Start:
    return Start(f"{name}.safetensors", what, f"model.safetensors of a run of recipe {name}")


def _inspro_optim(steps: int, decay: tuple[int, ...], batch: int, **more: Any) -> OptimSettings:
    rates: dict[str, Any] = {"lr": 2.5e-5, "backbone_factor": 1.0, "weight_decay": 1e-4, "clip_norm": 1.0}
    return _optim(steps, decay, batch, **{**rates, "mixed_precision": "no", **more})


def _inspro_coco(network: InsProSettings, places: Places, init: str) -> InsProTrainSettings:
    """Images: nothing is carried between frames. As Sparse R-CNN is trained for 36 epochs."""
    optim = _inspro_optim(270_000, (210_000, 250_000), batch=16)
    return InsProTrainSettings(
        family="inspro",
        network=replace(network, propagation="off"),
        data=_data((_source(places, "coco"),), _clips(_classes("coco"), 1, None, INSPRO_COCO_VIEW)),
        optim=replace(optim, warmup_steps=1_000),
        init=init,
        init_takes="backbone",
    )


def _inspro(video_set: str, coco_weight: float, frames: int, places: Places, init: str) -> InsProTrainSettings:
    classes = _classes(video_set)
    sources: tuple[SourceSettings, ...] = (_source(places, video_set),)
    if coco_weight:
        sources = (*sources, _source(places, "coco", coco_weight, class_map=coco_map(video_set)))
    return InsProTrainSettings(
        family="inspro",
        network=InsProSettings(len(classes)),
        data=_data(sources, _clips(classes, frames, INSPRO_RANGE, INSPRO_VIEW)),
        optim=_inspro_optim(32_000, (24_000, 28_000), batch=8),
        init=init,
    )


def _inspro_lite(video_set: str, places: Places, init: str) -> InsProTrainSettings:
    """Three key frames and two others; the lite head alone learns."""
    settings = _inspro(video_set, 0.0, 5, places, init)
    return replace(settings, phase="lite", network=replace(settings.network, lite_stages=1))


def _inspro_vid(places: Places, init: str) -> InsProTrainSettings:
    """Boxes on ImageNet VID and DET, one to one (ours)."""
    classes = _classes("imagenet_vid")
    clips = _clips(classes, 3, INSPRO_RANGE, INSPRO_VID_VIEW)
    sources = tuple(_source(places, name) for name in ("imagenet_vid", "imagenet_det"))
    named = {name: name for name in classes}
    return InsProTrainSettings(
        family="inspro",
        network=INSPRO_VID_R101,
        data=_data((sources[0], replace(sources[1], class_map=named)), clips),
        optim=_inspro_optim(32_000, (24_000, 28_000), batch=8),
        loss=InsProLossSettings(dedup_margin=0.15),
        init=init,
    )


# EoMT, and VidEoMT from it

VITS = {"s": "ViT-S", "b": "ViT-B", "l": "ViT-L", "l-dinov3": "ViT-L, DINOv3"}
VIT_NETWORKS = {"s": "vit_s", "b": "vit_b", "l": "vit_l", "l-dinov3": "vit_l_dinov3"}
VIT_STARTS = {
    **{
        size: Start(
            f"dinov2_vit{size}14_reg4_pretrain.pth",
            f"ViT-{size.upper()} of DINOv2 with registers",
            "releases of DINOv2; timm's files and folders of transformers are read as well",
        )
        for size in ("s", "b", "l")
    },
    "l-dinov3": Start(
        "dinov3-vitl16-pretrain-lvd1689m", "ViT-L of DINOv3", "Hugging Face, facebook, under Meta's own licence"
    ),
}
EOMT_STEPS = 88_692
"""12 epochs of COCO."""
EOMT_SIDES = {640: ("s", "b", "l", "l-dinov3"), 1280: ("l", "l-dinov3")}
DINOV2_RATES: dict[str, Any] = {"lr": 1e-4, "warmup_steps": 500, "layers": LayerRates(decay=0.8, warmup_steps=1_000)}
DINOV3_RATES: dict[str, Any] = {
    "lr": 2e-4, "warmup_steps": 2_000, "layers": LayerRates(decay=0.8, whole_blocks=4, warmup_steps=3_000)
}  # fmt: skip
BLACK = (0, 0, 0)
VIDEOMT_LARGE_STEPS = {"l": 60_000, "l-dinov3": 160_000}
VIDEOMT_STEPS = {"s": 40_000, "b": 40_000, **VIDEOMT_LARGE_STEPS}
"""On YouTube-VIS 2019; on the other sets all take as many as DINOv3."""
VIDEOMT_SETS = ("ytvis19", "ytvis21", "ytvis22", "ovis")
VIDEOMT_VIEW = ShortSideView(
    "short_side",
    CTVIS_VIEW.short_sides_px,
    longest_px=768,
    crop=CROP,
    pseudo_crop=CropSettings(slides=True),
    rotation_deg=15.0,
)
"""The release crops each frame of a pseudo-video by itself; here the window slides."""
ONLINE_RATES: dict[str, Any] = {
    "lr": 1e-4, "clip_norm": 0.0, "warmup_steps": 500, "layers": LayerRates(decay=0.6, warmup_steps=1_000)
}  # fmt: skip


def _vit_optim(steps: int, batch: int, rates: Mapping[str, Any]) -> OptimSettings:
    return replace(_optim(steps, (), batch), schedule="polynomial", **rates)


def _eomt(size: str, side_px: int, places: Places, init: str) -> EomtTrainSettings:
    clips = _clips(_classes("coco"), 1, None, JitterView("jitter", side_px, pad_rgb=BLACK))
    network = eomt(VIT_NETWORKS[size], 80)
    if network.positions == "table":
        network = replace(network, table_side=side_px // network.patch)
    return EomtTrainSettings(
        family="eomt",
        network=network,
        data=_data((_source(places, "coco"),), clips),
        optim=_vit_optim(EOMT_STEPS, 16, DINOV3_RATES if size == "l-dinov3" else DINOV2_RATES),
        init=init,
    )


def _videomt_parts(video_set: str, frames: int, places: Places) -> DataSettings:
    """Consecutive frames; videos and pseudo-videos of COCO one to one."""
    clips = _clips(_classes(video_set), frames, frames // 2, VIDEOMT_VIEW)
    return _data(_joint(places, video_set, 1.0), clips)


def _videomt_steps(size: str, video_set: str) -> int:
    return VIDEOMT_STEPS[size] if video_set == "ytvis19" else VIDEOMT_STEPS["l-dinov3"]


def _segmenter(size: str, video_set: str, places: Places, init: str) -> EomtTrainSettings:
    """Ours: EoMT's masks, losses and clipping on single frames, with the data, steps and rates of the online stage.

    A step has as many frames as one of the online stage.
    """
    data = _videomt_parts(video_set, 1, places)
    optim = _vit_optim(_videomt_steps(size, video_set), 40, {**ONLINE_RATES, "clip_norm": 0.01})
    network = eomt(VIT_NETWORKS[size], len(data.clips.classes))
    return EomtTrainSettings(family="eomt", network=network, data=data, optim=optim, init=init)


def _videomt(size: str, video_set: str, places: Places, init: str) -> VideoMtTrainSettings:
    data = _videomt_parts(video_set, 5, places)
    return VideoMtTrainSettings(
        family="videomt",
        network=videomt(VIT_NETWORKS[size], len(data.clips.classes)),
        data=data,
        optim=_vit_optim(_videomt_steps(size, video_set), 8, ONLINE_RATES),
        init=init,
    )


# Ablations: what the papers' tables change of a training


@dataclass(frozen=True)
class Variant:
    """rows: of the paper. changes: values by the path of a setting; `sources`: for data.sources, given the recipe's."""

    rows: str
    changes: Mapping[str, Any]
    sources: Callable[[tuple[SourceSettings, ...]], tuple[SourceSettings, ...]] = lambda sources: sources


def _varied(make: Make, variant: Variant, places: Places, init: str) -> RunSettings:
    settings = make(places, init)
    settings = replace(settings, data=replace(settings.data, sources=variant.sources(settings.data.sources)))
    for path, value in variant.changes.items():
        settings = _with(settings, path.split("."), value)
    return settings


def _with(settings: Any, path: list[str], value: Any) -> Any:
    """`settings` with `value` at `path`."""
    name, *rest = path
    return replace(settings, **{name: _with(getattr(settings, name), rest, value) if rest else value})


def _labelled(percent: int, **more: Any) -> Callable[[tuple[SourceSettings, ...]], tuple[SourceSettings, ...]]:
    """The videos alone, with labels in so many of a hundred frames."""
    return lambda sources: (replace(sources[0], label_fraction=percent / 100, **more),)


FEWER_LABELS = {
    f"{percent}pct": Variant(f"tables 1 to 3: {percent} % of the frames", {}, _labelled(percent))
    for percent in (1, 5, 10)
}
HINGE = {"loss.identity_weight": 1.0, "loss.identity_loss": "hinge", "data.clips.frames": 2}
"""The weight is ours."""
MINVIS_VARIANTS = {
    **FEWER_LABELS,
    "supervised": Variant("table 5: supervised matching, consecutive frames", {**HINGE, "data.clips.range_frames": 1}),
    "supervised-range": Variant(
        "table 5: supervised matching, limited range", {**HINGE, "data.clips.range_frames": 20}
    ),
}

CONTRAST = "loss.contrast"
CTVIS_VARIANTS = {
    **{
        f"pseudo-{percent}pct": Variant(
            f"table 7: pseudo-videos of {percent} % of the frames", {}, _labelled(percent, scene="frame")
        )
        for percent in (1, 5, 10, 100)
    },
    "coco-rotation": Variant(
        "table 5: COCO alone, rotation", {"data.clips.view.pseudo_crop": None}, lambda both: both[1:]
    ),
    "coco-rotation-crop": Variant("table 5: COCO alone, rotation and crop", {}, lambda both: both[1:]),
    "coco-rotation-crop-paste": Variant(
        "table 5: COCO alone, rotation, crop, copy & paste",
        {"data.clips.paste": PasteSettings(distractor=0.0, see_through=0.0)},
        lambda both: (replace(both[1], cutout_weight=1.0),),
    ),
    "latest": Variant("table 3: no momentum-averaged embedding", {CONTRAST: "latest_positives"}),
    "momentum": Variant("table 3: momentum-averaged embedding, no noise", {CONTRAST: "momentum_positives"}),
    "noise": Variant("table 3: with noise", {CONTRAST: "noise"}),
    "supplementary-only": Variant("table 4: supplementary negatives only", {CONTRAST: "supplementary_only"}),
    "major-only": Variant("table 4: major negatives only", {CONTRAST: "major_only"}),
    "global": Variant("table 4: supplementary negatives of all earlier frames", {CONTRAST: "global_negatives"}),
    "paper": Variant("table 4, local, which the paper chose: noise, no auxiliary loss", {CONTRAST: "paper"}),
    **{
        f"frames-{frames}": Variant(f"figure 4: clips of {frames} frames", {"data.clips.frames": frames})
        for frames in (2, 4, 6, 8)
    },
}

GENVIS_VARIANTS = {
    "correspondence-2": Variant(
        "table 4: correspondence learning, 2 clips", {"genvis.assignment": "correspondence", "data.clips.frames": 2}
    ),
    "correspondence": Variant("table 4: correspondence learning, 5 clips", {"genvis.assignment": "correspondence"}),
    "no-memory": Variant("table 4: unified assignment without memory", {"genvis.memory": "nothing"}),
    "strict": Variant("section 3.2: a query once taken is never given away", {"genvis.assignment": "strict"}),
    "global-memory": Variant("table 5: each slot reads what all slots were", {"genvis.memory": "all_slots"}),
    **{
        f"clips-of-{frames}": Variant(
            f"table 6: clips of {frames} frames (how far apart is ours)",
            {
                "genvis.clip_frames": frames,
                "data.clips.frames": CLIPS_A_VIDEO * frames,
                "data.clips.range_frames": 4 * frames,
            },
        )
        for frames in (5, 7)
    },
}

CARRIED, MATCHING = "network.propagation", "loss.matching_over_time"
INSPRO_VARIANTS = {
    "no-propagation": Variant("table 2a, A: nothing is carried", {CARRIED: "off", MATCHING: "each_frame"}),
    "no-consistent-matching": Variant("table 2a, B: each frame is matched by itself", {MATCHING: "each_frame"}),
    "queries-only": Variant("table 2a, D: queries alone are carried", {CARRIED: "queries"}),
    "proposals-only": Variant("table 2a, E: boxes alone are carried", {CARRIED: "proposals"}),
    "no-dedup": Variant("table 2b: without box deduplication", {"loss.dedup": 0.0}),
    **{
        f"bank-{frames}": Variant(f"table 2c: a bank of {frames} frames", {"network.bank_frames": frames})
        for frames in (1, 9, 27, 36)
    },
}


# The registry


def _named() -> Iterator[tuple[str, Recipe]]:
    for backbone, title in TITLES.items():
        yield (
            f"mask2former-{backbone}-coco",
            Recipe(
                f"Mask2Former, {title}, COCO: where the others begin",
                "",
                IMAGENET_STARTS[backbone],
                ("coco",),
                partial(_mask2former, backbone),
            ),
        )
        for video_set in MINVIS_STEPS:
            what, make = f"MinVIS, {title}, {OFFICIAL_SETS[video_set].title}", partial(_minvis, backbone, video_set)
            recipe = Recipe(what, "MinVIS, tables 1 to 3", COCO_STARTS[backbone], (video_set,), make)
            yield from _with_variants(f"minvis-{backbone}-{video_set}", recipe, MINVIS_VARIANTS)
        for video_set in CTVIS_VALUES:
            what, make = f"CTVIS, {title}, {OFFICIAL_SETS[video_set].title}", partial(_ctvis, backbone, video_set)
            recipe = Recipe(what, "CTVIS, table 1", COCO_STARTS[backbone], (video_set, "coco"), make)
            yield from _with_variants(f"ctvis-{backbone}-{video_set}", recipe, CTVIS_VARIANTS)
        for video_set in VITA_VALUES:
            what = f"VITA, {title}, {OFFICIAL_SETS[video_set].title}: where GenVIS begins"
            recipe = Recipe(
                what,
                "GenVIS, section 4",
                COCO_STARTS[backbone],
                (video_set, "coco"),
                partial(_vita, backbone, video_set),
            )
            yield f"vita-{backbone}-{video_set}", recipe
        for video_set in GENVIS_STEPS:
            start = _vita_start(backbone, video_set)
            for mode, clip_frames in {"online": 1, "semi": 3}.items():
                what = f"GenVIS, {mode}, {title}, {OFFICIAL_SETS[video_set].title}"
                make = partial(_genvis, backbone, video_set, clip_frames)
                recipe = Recipe(what, "GenVIS, tables 1 to 3", start, (video_set, "coco"), make)
                variants = GENVIS_VARIANTS if clip_frames == 1 else {}
                yield from _with_variants(f"genvis-{mode}-{backbone}-{video_set}", recipe, variants)
    yield from _named_inspro()
    yield from _named_eomt()
    yield from _named_videomt()


def _named_inspro() -> Iterator[tuple[str, Recipe]]:
    coco = "inspro-r50-coco"
    yield (
        coco,
        Recipe(
            "InsPro, ResNet-50, COCO images: where its videos begin",
            "InsPro, table 5",
            IMAGENET_STARTS["r50"],
            ("coco",),
            partial(_inspro_coco, InsProSettings(80)),
        ),
    )
    start = _inspro_run(coco, "InsPro trained on COCO images")
    for video_set in INSPRO_SETS:
        title = OFFICIAL_SETS[video_set].title
        name = f"inspro-r50-{video_set}"
        recipe = Recipe(
            f"InsPro, ResNet-50, {title}",
            "InsPro, tables 1, 2, 4",
            start,
            (video_set,),
            partial(_inspro, video_set, 0.0, 3),
        )
        yield from _with_variants(name, recipe, INSPRO_VARIANTS)
        yield (
            f"inspro-joint-r50-{video_set}",
            Recipe(
                f"InsPro with COCO pseudo-videos (one to one is ours), {title}",
                "InsPro, table 1",
                start,
                (video_set, "coco"),
                partial(_inspro, video_set, 1.0, 3),
            ),
        )
        yield (
            f"inspro-lite-r50-{video_set}",
            Recipe(
                f"InsPro-lite's head, ResNet-50, {title}",
                "InsPro, tables 1, 3",
                _inspro_run(name, f"InsPro trained on {title}"),
                (video_set,),
                partial(_inspro_lite, video_set),
            ),
        )
    boxes = replace(INSPRO_VID_R101, classes=80)
    yield (
        "inspro-vid-r101-coco",
        Recipe(
            "InsPro-VID, ResNet-101, boxes of COCO images (ours)",
            "InsPro, appendix A.5",
            IMAGENET_STARTS["r101"],
            ("coco",),
            partial(_inspro_coco, boxes),
        ),
    )
    yield (
        "inspro-vid-r101-imagenet",
        Recipe(
            "InsPro-VID, ResNet-101, boxes of ImageNet VID and DET (ratio and sizes are ours)",
            "InsPro, table 6",
            _inspro_run("inspro-vid-r101-coco", "InsPro-VID trained on COCO images"),
            ("imagenet_vid", "imagenet_det"),
            _inspro_vid,
        ),
    )


def _named_eomt() -> Iterator[tuple[str, Recipe]]:
    for side_px, sizes in EOMT_SIDES.items():
        for size in sizes:
            ours = " (published as panoptic, twice as long)" if size in ("s", "b") else ""
            yield (
                f"eomt-{size}-coco" + ("" if side_px == 640 else f"-{side_px}"),
                Recipe(
                    f"EoMT, {VITS[size]}, COCO instances at {side_px} pixels{ours}",
                    "EoMT, model zoo",
                    VIT_STARTS[size],
                    ("coco",),
                    partial(_eomt, size, side_px),
                ),
            )


def _named_videomt() -> Iterator[tuple[str, Recipe]]:
    for size, network in VITS.items():
        for video_set in VIDEOMT_SETS:
            title = OFFICIAL_SETS[video_set].title
            segmenter = f"videomt-segmenter-{size}-{video_set}"
            yield (
                segmenter,
                Recipe(
                    f"EoMT, {network}, frames of {title} and COCO: where VidEoMT begins (ours)",
                    "",
                    VIT_STARTS[size],
                    (video_set, "coco"),
                    partial(_segmenter, size, video_set),
                ),
            )
            published_for = ("ytvis19", "ytvis21", "ytvis22") if size == "l-dinov3" else ("ytvis19",)
            known = size == "l" or video_set in published_for
            yield (
                f"videomt-{size}-{video_set}",
                Recipe(
                    f"VidEoMT, {network}, {title}"
                    + ("" if known else " (not published; the steps are those of ViT-L)"),
                    "VidEoMT, tables of results" if known else "",
                    Start(
                        f"{segmenter}.safetensors",
                        f"a segmenter, EoMT with {network} trained on {title}",
                        f"model.safetensors of a run of recipe {segmenter}; the release's dinov2_segmenter works too",
                    ),
                    (video_set, "coco"),
                    partial(_videomt, size, video_set),
                ),
            )


def _with_variants(name: str, recipe: Recipe, variants: Mapping[str, Variant]) -> Iterator[tuple[str, Recipe]]:
    yield name, recipe
    for suffix, variant in variants.items():
        yield (
            f"{name}-{suffix}",
            replace(recipe, rows=variant.rows, make=partial(_varied, recipe.make, variant), variant_of=name),
        )


RECIPES: dict[str, Recipe] = dict(_named())
