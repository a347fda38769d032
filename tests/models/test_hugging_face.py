"""Claims about Hugging Face Mask2Formers: what transformers computes, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import CLASSES, hugging_face_model, save_folder, transformers_or_skip
from safetensors.torch import load_file, save_file
from torch import Tensor

from visrt.models.checkpoints.architecture import settings_from_weights
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.class_names import chosen_classes
from visrt.models.checkpoints.fingerprint import checkpoint_sha256
from visrt.models.checkpoints.hugging_face_keys import published_weights, unknown_keys
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.checkpoints.published import published
from visrt.models.checkpoints.start import start_from_init
from visrt.models.decoder import mask_logits
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD, Mask2Former
from visrt.runtime.errors import CheckpointError

transformers = transformers_or_skip()

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Sides that are no multiples of a window of 3 tokens: Swin pads every map and shifts over padding.
HEIGHT, WIDTH = 64, 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet, for tests that only read it."""
    return save_folder(tmp_path_factory.mktemp("folders") / "resnet")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same folder, to be altered."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def assert_computes(network: Mask2Former, model: Any) -> None:
    torch.manual_seed(1)
    images = torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        ours, theirs = network(images), model(images)
    masks = mask_logits(ours.mask_embeddings, ours.mask_features)
    torch.testing.assert_close(ours.class_logits, theirs.class_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, theirs.masks_queries_logits, atol=1e-4, rtol=0)
    assert min(theirs.class_queries_logits.std(), theirs.masks_queries_logits.std()) > 0.1, "nothing to tell apart"


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize(
    "options", [{}, {"feature_size": 64}, {"max_shard_size": "50KB"}], ids=["plain", "wide", "shards"]
)
def test_a_saved_model_gives_the_logits_and_masks_of_transformers(
    backbone: str, options: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {name: size for name, size in options.items() if name != "max_shard_size"}
    model = hugging_face_model(backbone, **sizes)
    model.save_pretrained(tmp_path, max_shard_size=options.get("max_shard_size", "1GB"))
    assert (tmp_path / INDEX).exists() == ("max_shard_size" in options)
    assert_computes(load_checkpoint(tmp_path, MASK2FORMER).network(), model)


def test_a_folder_is_a_start_of_training_for_another_number_of_classes(folder: Path) -> None:
    settings = load_checkpoint(folder, MASK2FORMER).settings
    start = start_from_init(Mask2Former(replace(settings, classes=7)), str(folder), "network")
    assert start is not None
    assert {key.split(".")[-2] for key in start.new} == {"class_embed"}


def test_names_of_transformers_5_in_a_file_are_understood_too(tmp_path: Path) -> None:
    """`save_pretrained` writes the older names of Swin; a plain state dictionary has the newer ones."""
    model = hugging_face_model("swin")
    model.save_pretrained(tmp_path)
    newer = {key: value.contiguous() for key, value in model.state_dict().items()}
    assert newer.keys() != load_file(tmp_path / WEIGHTS).keys()
    save_file(newer, tmp_path / WEIGHTS)
    assert_computes(load_checkpoint(tmp_path, MASK2FORMER).network(), model)


def test_a_torch_file_in_the_place_of_safetensors_is_read(copied: Path, folder: Path) -> None:
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    (copied / WEIGHTS).unlink()
    ours, theirs = (
        load_checkpoint(copied, MASK2FORMER).network().state_dict(),
        load_checkpoint(folder, MASK2FORMER).network().state_dict(),
    )
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("prefix", ["model.", "module."])
def test_a_prefix_before_all_weights_of_a_folder_is_left_out_and_said(prefix: str, copied: Path, folder: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    save_file({prefix + key: value for key, value in weights.items()}, copied / "model.safetensors")
    checkpoint = load_checkpoint(copied, MASK2FORMER)
    assert checkpoint.weights.keys() == load_checkpoint(folder, MASK2FORMER).weights.keys()
    assert checkpoint.remarks == (
        f"{copied}: {prefix} stands before its {len(weights)} keys, as trainers write it, and is left out",
    )


def test_half_precision_becomes_float32(copied: Path) -> None:
    save_file({key: value.to(torch.bfloat16) for key, value in load_file(copied / WEIGHTS).items()}, copied / WEIGHTS)
    assert {value.dtype for value in load_checkpoint(copied, MASK2FORMER).network().state_dict().values()} == {
        torch.float32
    }


PUBLISHED_SWIN = {
    "swin_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin_l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}


@pytest.mark.parametrize("name", ["r50", *PUBLISHED_SWIN])
def test_full_size_models_have_every_weight_of_the_published_networks(name: str) -> None:
    expected = published(name, 80)
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    with torch.device("meta"):
        backbone = transformers.ResNetConfig if name == "r50" else transformers.SwinConfig
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone(**stages, **PUBLISHED_SWIN.get(name, {})),
            num_queries=expected.queries,
            num_labels=80,
        )
        model = transformers.Mask2FormerForUniversalSegmentation(config)
        ours = Mask2Former(expected).state_dict()
    weights = published_weights(model.state_dict())
    assert unknown_keys(model.state_dict()) == []
    assert settings_from_weights(weights, name) == expected
    shapes = {key: value.shape for key, value in ours.items() if not key.endswith("relative_position_index")}
    assert {key: value.shape for key, value in weights.items()} == shapes


def test_class_names_come_in_the_order_of_the_logits(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, MASK2FORMER)
    assert checkpoint.classes == CLASSES
    assert checkpoint.settings.classes == 3


def config_with(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        for name, value in changed.items():
            outer, _, inner = name.rpartition("__")
            (config[outer] if outer else config)[inner] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"0": "person", "1": "car"}, "id2label names 2 classes, 0: person, 1: car; the weights with it have 3"),
        ({"1": "a", "3": "b", "7": "c"}, "id2label names 3 classes, 1: a, 3: b, 7: c; .*expected the numbers 0 to 2"),
        (["a", "b", "c"], "id2label is no json object of names"),
        ({str(i): f"coco {i}" for i in range(80)}, r"id2label names 80 classes, .* \.\.\.; the weights with it have 3"),
    ],
)
def test_names_that_are_none_of_the_network_are_refused_only_where_no_others_are_given(
    names: object, told: str, copied: Path
) -> None:
    config_with(id2label=names)(copied)
    checkpoint = load_checkpoint(copied, MASK2FORMER)
    assert checkpoint.classes is None
    assert chosen_classes(("x", "y", "z"), checkpoint) == ("x", "y", "z")
    with pytest.raises(CheckpointError, match=rf"config\.json: {told}.*; name the classes .* with --classes") as raised:
        chosen_classes(None, checkpoint)
    assert "\n" not in str(raised.value)
    # A training takes the weights and has names of its own.
    assert start_from_init(Mask2Former(replace(checkpoint.settings, classes=5)), str(copied), "network") is not None


def test_a_model_without_names_leaves_them_to_the_user(copied: Path) -> None:
    config_with(id2label=None)(copied)
    assert load_checkpoint(copied, MASK2FORMER).classes is None


def preprocessor(folder: Path, **values: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_without_a_preprocessor_the_normalisation_is_imagenets(folder: Path) -> None:
    settings = load_checkpoint(folder, MASK2FORMER).settings
    assert (settings.pixel_mean, settings.pixel_std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({}, IMAGENET_MEAN, IMAGENET_STD),
        ({"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 1.0]}, (127.5, 63.75, 31.875), (127.5, 127.5, 255)),
        ({"image_mean": [1, 2, 3], "image_std": [4, 5, 6], "do_rescale": False}, (1, 2, 3), (4, 5, 6)),
        ({"do_normalize": False, "rescale_factor": 0.5}, (0, 0, 0), (2, 2, 2)),
    ],
    ids=["defaults", "own", "not rescaled", "not normalised"],
)
def test_the_preprocessors_normalisation_is_kept_in_0_255_units(
    values: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], copied: Path
) -> None:
    preprocessor(copied, **values)
    settings = load_checkpoint(copied, MASK2FORMER).settings
    assert settings.pixel_mean == pytest.approx(mean)
    assert settings.pixel_std == pytest.approx(std)
    pixel = torch.tensor(200.0)
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    given = values if values.get("do_normalize", True) else {"image_mean": [0], "image_std": [1]}
    theirs = (pixel * factor - given.get("image_mean", [0.485])[0]) / given.get("image_std", [0.229])[0]
    assert (pixel - settings.pixel_mean[0]) / settings.pixel_std[0] == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]; expected 3 finite numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std .* expected 3 finite numbers above 0"),
        ({"image_mean": "grey"}, "image_mean is 'grey'"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"resample": 3}, "resample is 3; visrt resizes with 2, bilinear, only"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(values: dict[str, Any], told: str, copied: Path) -> None:
    preprocessor(copied, **values)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(copied, MASK2FORMER)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (config_with(model_type="maskformer"), "a model of type 'maskformer'; expected a Mask2FormerForUniversal"),
        (config_with(architectures=["Mask2FormerModel"]), "describes Mask2FormerModel; expected"),
        (config_with(backbone_config=None, backbone="resnet50"), "no backbone_config, so how its backbone 'resnet50'"),
        (
            config_with(backbone_config__model_type="timm_backbone"),
            "of type 'timm_backbone'; expected .* resnet or swin",
        ),
        (
            config_with(backbone_config__model_type="swin", backbone_config__hidden_act="gelu"),
            "model_type is 'swin' but the weights .* have 'resnet'",
        ),
        (
            config_with(backbone_config__downsample_in_bottleneck=True),
            "downsample_in_bottleneck is True; .* False only",
        ),
        (config_with(backbone_config__hidden_act="gelu"), "hidden_act is 'gelu'; visrt computes 'relu' only"),
        (config_with(backbone_config__depths=[3, 4, 6, 3]), r"depths is \[3, 4, 6, 3\] but .* have \[1, 2, 1, 1\]"),
        (config_with(backbone_config__out_features=["stage2", "stage4"]), "backbone_config.out_features is"),
        (config_with(activation_function="gelu"), "activation_function is 'gelu'; visrt computes 'relu' only"),
        (config_with(pre_norm=True), "pre_norm is True"),
        (config_with(common_stride=8), "common_stride is 8; visrt computes 4 only"),
        (config_with(feature_strides=[2, 4, 8, 16]), "feature_strides is"),
        (config_with(enforce_input_projection=True), "enforce_input_projection is True"),
        (config_with(num_attention_heads=8), "num_attention_heads is 8 but the weights with it have 4"),
        (config_with(decoder_layers=10), "decoder_layers is 10 but the weights with it have 5"),
        (config_with(num_queries=100), "num_queries is 100 but the weights with it have 6"),
    ],
)
def test_a_configuration_of_what_is_not_computed_is_refused(
    change: Callable[[Path], None], told: str, copied: Path
) -> None:
    change(copied)
    with pytest.raises(CheckpointError, match=told) as raised:
        load_checkpoint(copied, MASK2FORMER)
    assert "\n" not in str(raised.value)


def test_options_that_change_nothing_in_inference_are_let_pass(copied: Path) -> None:
    config_with(dropout=0.3, use_auxiliary_loss=False, no_object_weight=0.5, train_num_points=7)(copied)
    assert load_checkpoint(copied, MASK2FORMER).settings.queries == 6


def weights_with(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def altered(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return altered


QUERY = "model.transformer_module.decoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda w: w.update({"tracker.head.weight": torch.zeros(2)}),
            "1 weights .* no part of .*: tracker.head.weight",
        ),
        (lambda w: w.pop("model.transformer_module.queries_features.weight"), "query_feat.weight; expected"),
        (lambda w: w.pop(QUERY), "1 missing: .*layers.0.self_attn.in_proj_weight"),
        (lambda w: w.update({QUERY: torch.zeros(3, 3)}), r"query, key and value have shapes \[\(3, 3\), \(32, 32\)\]"),
        (lambda w: w.update({"class_predictor.bias": torch.zeros(9)}), "1 misshapen: .*class_embed.bias 9, expected 4"),
    ],
    ids=["extra head", "no queries", "no query projection", "projections", "classes"],
)
def test_weights_that_do_not_fit_are_named(change: Callable[[Any], None], told: str, copied: Path) -> None:
    weights_with(change)(copied)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(copied, MASK2FORMER).network()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda folder: (folder / CONFIG).unlink(),
            r"json: no such file; expected a json object in a folder as transformers'",
        ),
        (lambda folder: (folder / CONFIG).write_text("{"), r"config.json: not json"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "holds a list; expected a json object"),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights; expected one of model.safetensors"),
        (lambda folder: cut(folder / WEIGHTS), "not a readable safetensors file .* download it again"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "not a readable safetensors file"),
    ],
    ids=["no config", "cut config", "list", "no weights", "cut weights", "empty weights"],
)
def test_a_damaged_folder_is_one_line(spoil: Callable[[Path], object], told: str, copied: Path) -> None:
    spoil(copied)
    with pytest.raises(CheckpointError, match=told) as raised:
        load_checkpoint(copied, MASK2FORMER).network()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"a": "../../etc/passwd"}, r"names the file '../../etc/passwd'; expected files of the same folder"),
        ({"a": ".."}, r"names the file '..'"),
        ({"a": "model-00002.safetensors"}, "names model-00002.safetensors, which is not there"),
        ({"absent": "shard.safetensors"}, "1 weights are not in their files, the first is absent"),
        ([], "holds no weight_map"),
        ({"a": 1}, "holds no weight_map"),
    ],
)
def test_an_index_leads_to_whole_files_beside_it_only(weight_map: Any, told: str, copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "shard.safetensors")
    (copied / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(copied, MASK2FORMER)


class Payload:
    """A pickle that would make the directory it names."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.directory,)


def test_a_torch_file_with_a_payload_is_refused_and_the_payload_does_not_run(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"class_predictor.weight": Payload(copied / "ran")}))
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(copied, MASK2FORMER)
    assert not (copied / "ran").exists()


def test_the_weights_without_their_folder_are_told_to_need_it(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Hugging Face Mask2Former \(give the folder, with its config.json\)"):
        load_checkpoint(folder / WEIGHTS, MASK2FORMER)


def test_a_folder_is_known_again_by_all_files_that_matter(copied: Path) -> None:
    before = checkpoint_sha256(copied)
    (copied / "README.md").write_text("a card")
    assert checkpoint_sha256(copied) == before
    preprocessor(copied, image_mean=[0.1, 0.2, 0.3])
    assert checkpoint_sha256(copied) != before


def test_class_numbers_are_not_taken_for_positions_in_the_file(copied: Path) -> None:
    config_with(id2label={"2": "c", "0": "a", "1": "b"})(copied)
    assert load_checkpoint(copied, MASK2FORMER).classes == ("a", "b", "c")
