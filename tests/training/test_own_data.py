"""Claims about training on one's own pictures: what a short recipe means, and what it refuses before time is lost."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_layouts import make_split
from tiny_sets import coco_values, write_coco

from visrt.export.graphs import FrameGraph
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import Mask2Former
from visrt.runtime.errors import DataError, SettingsError
from visrt.runtime.settings import load_settings
from visrt.training.data.sources import load_pool
from visrt.training.frame_learner import FrameLearner
from visrt.training.own_data import LIGHT_NETWORK, SHIPPED, filled, own_run
from visrt.training.own_recipe import OwnRecipe, recipe_from_file, recipe_text
from visrt.training.settings import StopSettings, TrainSettings, check_settings

ROOT = Path(__file__).parents[2]


def own_set(folder: Path, pictures: int = 40, dogs: int = 0) -> Path:
    """Photos with a car each, the first of them with a dog instead; chairs are named and nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    values = coco_values(pictures)
    for annotation in values["annotations"][:dogs]:
        annotation["category_id"] = 7
    write_coco(folder, values)
    return folder


def recipe(data: Path, **values: Any) -> OwnRecipe:
    return load_settings(OwnRecipe, {"data": str(data), "start": "imagenet", **values}, "recipe")


def photos(settings: TrainSettings, part: Any) -> set[str]:
    pool = load_pool(settings.data.sources, replace(settings.data.clips, part=part))
    return {frame.path.name for base in pool.bases for frame in base.frames}


def test_a_share_is_held_out_that_training_never_sees(tmp_path: Path) -> None:
    run = own_run(recipe(own_set(tmp_path)))
    train, held_out = photos(run.settings, "train"), photos(run.settings, "held_out")
    assert len(held_out) >= 4
    assert len(train) + len(held_out) == 40
    assert not train & held_out
    assert any(f"measures on {len(held_out)} of the 40 photos" in line for line in run.lines)


def test_a_run_ends_early_unless_the_recipe_says_never(tmp_path: Path) -> None:
    data = own_set(tmp_path)
    assert own_run(recipe(data)).settings.optim.stop == StopSettings("recall", 5)
    assert own_run(recipe(data, early_stop=0)).settings.optim.stop is None


def test_a_split_of_the_set_s_own_is_what_is_measured_on(tmp_path: Path) -> None:
    own_set(tmp_path / "train", 5)
    own_set(tmp_path / "valid", 3)
    settings = own_run(recipe(tmp_path)).settings
    assert photos(settings, "train") == {f"{i}.png" for i in range(5)}
    assert photos(settings, "held_out") == {f"{i}.png" for i in range(3)}


def test_another_set_to_measure_on_goes_before_the_split(tmp_path: Path) -> None:
    own_set(tmp_path / "set" / "train", 5)
    own_set(tmp_path / "set" / "valid", 3)
    other = own_set(tmp_path / "other", 2)
    settings = own_run(recipe(tmp_path / "set", validation=str(other))).settings
    assert photos(settings, "held_out") == {"0.png", "1.png"}


@pytest.mark.parametrize("name", ["ytvis19", "uvo", "burst"])
def test_a_public_set_is_trained_on_as_downloaded_and_a_split_for_a_server_measures_nothing(
    name: str, tmp_path: Path
) -> None:
    root = make_split(tmp_path, name, "train", frames=4).folder
    make_split(tmp_path, name, "valid", annotated=name != "ytvis19", frames=4)
    run = own_run(recipe(root))
    pool = load_pool(run.settings.data.sources, replace(run.settings.data.clips, part="train"))
    assert {frame.path.parent.name for base in pool.bases for frame in base.frames} in (
        {"video1", "video2"},
        {"clip-1", "clip-2"},
    )
    kept_back = [line for line in run.lines if "valid.json: has no annotations and cannot measure quality" in line]
    assert len(kept_back) == (name == "ytvis19")


def test_too_few_photos_to_hold_some_out_are_all_trained_on_and_that_is_said(tmp_path: Path) -> None:
    run = own_run(recipe(own_set(tmp_path, 5)))
    assert len(photos(run.settings, "train")) == 5
    assert run.settings.data.validation_clips == 0
    assert run.settings.optim.stop is None
    assert "measures no quality: 5 photos are too few to hold some out; give a validation set" in run.lines


def test_classes_without_an_object_are_left_out_and_said(tmp_path: Path) -> None:
    run = own_run(recipe(own_set(tmp_path, 40, dogs=12)))
    assert run.settings.data.clips.classes == ("car", "dog")
    assert run.settings.network.classes == 2
    assert "left out, as no object is of it: chair" in run.lines


def test_classes_are_in_the_order_in_which_they_are_chosen(tmp_path: Path) -> None:
    settings = own_run(recipe(own_set(tmp_path, 40, dogs=12), classes=["dog", "car"])).settings
    assert settings.data.clips.classes == ("dog", "car")


def test_what_is_not_chosen_is_left_out_and_counted(tmp_path: Path) -> None:
    settings = own_run(recipe(own_set(tmp_path, 40, dogs=12), classes=["car"])).settings
    assert settings.data.clips.classes == ("car",)
    assert any(
        "leaves out 12 annotated objects: 12 dog" in r
        for r in load_pool(settings.data.sources, settings.data.clips).remarks
    )


def test_a_class_map_joins_categories(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"car": "thing", "dog": "thing"}')
    settings = own_run(recipe(own_set(tmp_path / "set", 40, dogs=12), classes=str(tmp_path / "map.json"))).settings
    assert settings.data.clips.classes == ("thing",)


def test_a_checkpoint_gives_the_architecture(tmp_path: Path) -> None:
    network = replace(LIGHT_NETWORK, classes=5, queries=20, decoder_layers=2)
    save_checkpoint(Mask2Former(network), tmp_path / "w.safetensors", "abcde")
    settings = own_run(recipe(own_set(tmp_path / "set"), start=str(tmp_path / "w.safetensors"))).settings
    assert settings.network == replace(network, classes=1)
    assert settings.init == str(tmp_path / "w.safetensors")
    assert settings.data.clips.max_objects == 20


@pytest.mark.parametrize("frames", [1, 2])
def test_every_recipe_is_settings_that_do_not_contradict_themselves(frames: int, tmp_path: Path) -> None:
    settings = own_run(recipe(own_set(tmp_path), frames=frames)).settings
    check_settings(settings)
    assert load_settings(TrainSettings, json.loads(json.dumps(asdict(settings))), "settings") == settings


def test_the_classifier_knows_the_classes_that_the_start_has_by_name(tmp_path: Path) -> None:
    before = Mask2Former(replace(LIGHT_NETWORK, classes=2))
    save_checkpoint(before, tmp_path / "w.safetensors", ("dog", "car"))
    settings = own_run(
        recipe(own_set(tmp_path / "set", 40, dogs=12), start=str(tmp_path / "w.safetensors"), classes=["car", "dog"])
    ).settings
    trained = FrameLearner(settings).start()
    old, new = (network.sem_seg_head.predictor.class_embed for network in (before, trained.network))
    assert torch.equal(new.weight, old.weight[[1, 0, 2]])
    assert torch.equal(new.bias, old.bias[[1, 0, 2]])
    assert "classifier: car, dog and no object from the file, the rest new" in trained.start_report


def test_a_class_of_another_name_is_new_even_where_the_numbers_agree(tmp_path: Path) -> None:
    before = Mask2Former(replace(LIGHT_NETWORK, classes=1))
    save_checkpoint(before, tmp_path / "w.safetensors", ("tree",))
    settings = own_run(recipe(own_set(tmp_path / "set"), start=str(tmp_path / "w.safetensors"))).settings
    new = FrameLearner(settings).start().network.sem_seg_head.predictor.class_embed
    old = before.sem_seg_head.predictor.class_embed
    assert not torch.equal(new.weight[0], old.weight[0])
    assert torch.equal(new.weight[1], old.weight[1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a category that is not there": ({"classes": ["truck"]}, r"lacks the category 'truck'; it has: car, chair, dog"),
    "a category without an object": ({"classes": ["car", "chair"]}, r"holds no object of chair"),
    "a start that is no file": (
        {"start": "defualt"},
        r"start is 'defualt', and there is no such file; expected \"default",
    ),
    "a size that does not divide": ({"size": "200x320"}, r"size is 200x320; both must be divisible by 32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_in_words(name: str, tmp_path: Path) -> None:
    values, message = REFUSED[name]
    with pytest.raises((DataError, SettingsError), match=message):
        own_run(recipe(own_set(tmp_path), **values))


def test_a_set_to_measure_on_without_a_trained_class_is_refused(tmp_path: Path) -> None:
    other = own_set(tmp_path / "other", 2)
    values = json.loads((other / "instances.json").read_text())
    values["categories"] = [{"id": 3, "name": "tree"}]
    (other / "instances.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="has none of the classes that are trained, car"):
        own_run(recipe(own_set(tmp_path / "set"), validation=str(other)))


def test_a_recipe_that_is_written_out_reads_back_with_a_comment_for_each_key(tmp_path: Path) -> None:
    before = filled(recipe(own_set(tmp_path / "set"), classes=["car"]))
    (tmp_path / "mine.toml").write_text(recipe_text(before))
    assert recipe_from_file(tmp_path / "mine.toml") == before
    assert recipe_text(before).count("\n# ") >= len(asdict(before))


BAD_RECIPES = {
    "an unknown key": ('data = "a"\nlr = 1', r"unknown setting 'lr'; known here: data, validation, classes, start"),
    "no data": ("steps = 4", r"setting 'data' is missing"),
    "three frames": ('data = "a"\nframes = 3', r"setting 'frames' is 3"),
    "no toml": ("data: a", r"mine\.toml: not TOML .*; expected a recipe in TOML"),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomli may be absent where nothing is trained")
@pytest.mark.parametrize("name", BAD_RECIPES)
def test_a_recipe_with_a_fault_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = BAD_RECIPES[name]
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        recipe_from_file(tmp_path / "mine.toml")


def test_the_shipped_weights_compute_what_the_shipped_bundle_computes() -> None:
    checkpoint = load_checkpoint(ROOT / SHIPPED, MASK2FORMER)
    network = checkpoint.network()
    assert checkpoint.settings == LIGHT_NETWORK
    assert checkpoint.classes == ("person", "vehicle", "animal")
    graph = FrameGraph(network, LIGHT_NETWORK.pixel_mean, LIGHT_NETWORK.pixel_std).eval()
    with np.load(ROOT / "bundles" / "default" / "reference.npz") as reference, torch.no_grad():
        outputs = graph(torch.from_numpy(reference["images"][:2]), torch.from_numpy(reference["valid_sizes"][:2]))
        for role in ("class_logits", "embeddings", "mask_embeddings"):
            np.testing.assert_allclose(getattr(outputs, role).numpy(), reference[role][:2], atol=5e-5)
