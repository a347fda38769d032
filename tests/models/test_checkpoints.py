"""Claims about reading and writing checkpoints, good and bad."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visrt.models.checkpoints import checkpoint as checkpoints
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import CheckpointError

SIZES: dict[str, Any] = {
    "classes": 3,
    "queries": 5,
    "conv_dim": 32,
    "mask_dim": 24,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 2,
    "decoder_feedforward_dim": 40,
}
RESNET = NetworkSettings(backbone=ResNetSettings(blocks=(1, 2, 1, 1), width=4, stem_width=6), **SIZES)
SWIN = NetworkSettings(
    backbone=SwinSettings(embed_dim=8, depths=(2, 1, 1, 2), heads=(1, 2, 4, 2), window=3, mlp_ratio=2), **SIZES
)
CTVIS = NetworkSettings(backbone=RESNET.backbone, reid_dim=16, reid_hidden_dim=20, **SIZES)
DEFAULT = NetworkSettings(
    backbone=EfficientNetLite0Settings(), pixel_decoder="fpn", pixel_mean=(127, 127, 127), pixel_std=(128, 128, 128),
    **SIZES,
)  # fmt: skip
CLASSES = ("person", "vehicle", "animal")
PREDICTOR = "sem_seg_head.predictor."

State = dict[str, Tensor]


def network(settings: NetworkSettings = RESNET) -> Mask2Former:
    torch.manual_seed(0)
    return Mask2Former(settings).eval()


def published_state(settings: NetworkSettings = RESNET) -> State:
    """What an official file holds under "model"."""
    return {**network(settings).state_dict(), "criterion.empty_weight": torch.ones(settings.classes + 1)}


def as_in_2021(key: str) -> str:
    """The names of the first Mask2Former files: no pixel decoder in them, and the query features are static."""
    return key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query")


def saved(path: Path, state: State) -> Path:
    torch.save({"model": state, "iteration": 5999, "optimizer": {"state": {}}}, path)
    return path


def assert_same_network(loaded: Mask2Former, expected: Mask2Former) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(loaded(images), expected(images), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("settings", [RESNET, SWIN, CTVIS], ids=["resnet", "swin", "ctvis"])
def test_an_official_file_says_its_architecture_by_its_shapes(settings: NetworkSettings, tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path / "official.pth", published_state(settings)), MASK2FORMER).network()
    assert loaded.settings == settings
    assert not loaded.training
    assert_same_network(loaded, network(settings))


def test_an_old_torch_file_without_zip_loads_too(tmp_path: Path) -> None:
    torch.save({"model": published_state()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_network(load_checkpoint(tmp_path / "old.pth", MASK2FORMER).network(), network())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_of_numpy_arrays_loads(protocol: int, tmp_path: Path) -> None:
    arrays = {key: np.asfortranarray(value.numpy()) for key, value in published_state().items()}
    contents = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "coco.pkl").write_bytes(pickle.dumps(contents, protocol))
    assert_same_network(load_checkpoint(tmp_path / "coco.pkl", MASK2FORMER).network(), network())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in published_state().items()}
    loaded = load_checkpoint(saved(tmp_path / "half.pth", half), MASK2FORMER).network()
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def test_position_indices_in_a_file_are_ignored_and_computed(tmp_path: Path) -> None:
    state = published_state(SWIN)
    wrong = {key: value * 0 for key, value in state.items() if key.endswith("relative_position_index")}
    assert wrong
    assert_same_network(
        load_checkpoint(saved(tmp_path / "swin.pth", {**state, **wrong}), MASK2FORMER).network(), network(SWIN)
    )


def test_names_of_old_mask2former_files_are_understood(tmp_path: Path) -> None:
    old = {as_in_2021(key): value for key, value in published_state().items()}
    assert_same_network(load_checkpoint(saved(tmp_path / "old.pth", old), MASK2FORMER).network(), network())


@pytest.mark.parametrize("settings", [RESNET, SWIN, CTVIS, DEFAULT], ids=["resnet", "swin", "ctvis", "default"])
def test_what_is_saved_comes_back_with_its_classes_and_notes(settings: NetworkSettings, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(network(settings), path, CLASSES, {"step": "7"})
    checkpoint = load_checkpoint(path, MASK2FORMER)
    assert (checkpoint.settings, checkpoint.classes, checkpoint.notes["step"]) == (settings, CLASSES, "7")
    assert_same_network(checkpoint.network(), network(settings))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_as_many_class_names_as_classes_are_saved_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 class names for a network of 3 classes"):
        save_checkpoint(network(), tmp_path / "model.safetensors", CLASSES[:2])
    assert not list(tmp_path.iterdir())


def test_a_class_count_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "official.pth", published_state())
    assert load_checkpoint(path, MASK2FORMER, expected_classes=3).network().settings.classes == 3
    with pytest.raises(CheckpointError, match="has 3 classes but 40 were given"):
        load_checkpoint(path, MASK2FORMER, expected_classes=40).network()


LISTS = Path(__file__).parents[2].parent / "shared" / "reference"


@pytest.mark.parametrize("name", ["minvis_ytvis19_r50", "minvis_ovis_swinl", "ctvis_ytvis19_r50", "ctvis_ovis_swinl"])
@pytest.mark.parametrize("rename", [str, as_in_2021], ids=["today", "2021"])
def test_all_weights_of_the_official_files_load_into_full_size_networks(
    name: str, rename: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By key and shape, without memory for the values: what is missing or unexpected would be refused."""
    listed = LISTS / f"keys_{name}.tsv"
    if not listed.exists():
        pytest.skip(f"no list of official keys at {listed}")
    rows = [line.split("\t") for line in listed.read_text().splitlines() if not line.startswith("#")]
    state = {
        rename(key): torch.empty(json.loads(f"[{shape.strip('(),')}]"), dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype, _ in rows
    }
    monkeypatch.setattr(checkpoints, "read_tensor_file", lambda _: ({"model": state, "iteration": 5999}, {}))
    (tmp_path / "official.pth").touch()
    loaded = load_checkpoint(
        tmp_path / "official.pth", MASK2FORMER, expected_classes=25 if "ovis" in name else 40
    ).network()
    # The loss's weight of "no object" is all that the network has no place for.
    assert len(loaded.state_dict()) == len(state) - 1


def without(*keys: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key not in keys}


def with_changed(key: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, key: value}


DECODER_BIAS = PREDICTOR + "mask_embed.layers.1.bias"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without(DECODER_BIAS), f"1 missing: {DECODER_BIAS}$"),
        (without("backbone.res3.0.conv1.weight"), "1 missing: backbone.res3.0.conv1.weight$"),
        (with_changed("backbone.fc.weight", torch.zeros(2)), "1 unexpected: backbone.fc.weight$"),
        (
            with_changed(PREDICTOR + "bbox_embed.weight", torch.zeros(4, 32)),
            "1 unexpected: .*predictor.bbox_embed.weight$",
        ),
        (with_changed(DECODER_BIAS, torch.zeros(7)), f"1 misshapen: {DECODER_BIAS} 7, expected 32$"),
        (with_changed(PREDICTOR + "query_embed.weight", torch.zeros(9, 32)), "query_embed.weight 9x32, expected 5x32$"),
        (without(PREDICTOR + "query_feat.weight"), "query_feat.weight; expected a MinVIS"),
        (with_changed(PREDICTOR + "query_feat.weight", torch.zeros(5)), r"query_feat.weight has shape \(5,\)"),
        (
            with_changed(
                "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.weight",
                torch.zeros(97, 32),
            ),
            r"sampling_offsets.weight has shape \(97, 32\)",
        ),
    ],
    ids=[
        "missing",
        "missing conv",
        "unexpected",
        "extra head",
        "misshapen",
        "queries",
        "no queries",
        "flat queries",
        "heads",
    ],
)
def test_a_key_that_does_not_fit_is_named(change: Callable[[State], State], told: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(saved(tmp_path / "changed.pth", change(published_state())), MASK2FORMER).network()


def test_many_faults_are_counted_and_the_first_twenty_named(tmp_path: Path) -> None:
    extra = {f"backbone.extra.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(saved(tmp_path / "more.pth", {**published_state(), **extra}), MASK2FORMER).network()
    message = str(raised.value)
    assert "50 unexpected: backbone.extra.0, " in message
    assert message.count("backbone.extra.") == 20
    assert message.endswith("and 30 more")


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["vita_module.query_feat.weight", "vita_module.pre_query_embed_k.weight"], "GenVIS"),
        (["vita_module.query_feat.weight"], "VITA"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "torchvision ResNet"),
        (["model.0.conv.weight", "model.22.dfl.conv.weight"], "YOLO"),
        (["transformer.encoder.layers.0.self_attn.in_proj_weight", "class_embed.weight"], "DETR"),
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"], "Swin transformer"),
        (["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"], "R-CNN"),
        (["sem_seg_head.predictor.query_feat.weight", "tracker.decoder_norm.weight"], "DVIS"),
        (["sem_seg_head.predictor.query_feat.weight", "refiner.decoder_norm.weight"], "DVIS"),
        (["model.pixel_level_module.decoder.level_embed"], "give the folder, with its config.json"),
        (["encoder.weight", "decoder.weight"], "expected a MinVIS"),
    ],
)
def test_a_checkpoint_of_another_family_is_told_in_one_line(keys: list[str], family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=family) as raised:
        load_checkpoint(saved(tmp_path / "other.pth", {key: torch.zeros(2, 2) for key in keys}), MASK2FORMER).network()
    assert "\n" not in str(raised.value)


def test_genvis_is_not_taken_for_the_network_inside_it(tmp_path: Path) -> None:
    state = {**published_state(), "vita_module.pre_memory_embed_k.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="GenVIS"):
        load_checkpoint(saved(tmp_path / "genvis.pth", state), MASK2FORMER).network()


class Payload:
    """A pickle that would make the directory it names."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.directory,)


@pytest.mark.parametrize("form", ["torch", "old torch", "plain"])
def test_a_pickle_with_a_payload_is_refused_and_the_payload_does_not_run(form: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "hostile.pth"
    contents = {"model": {"backbone.stem.conv1.weight": Payload(trap)}}
    if form == "plain":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match=r"refused.*mkdir") as raised:
        load_checkpoint(path, MASK2FORMER).network()
    assert not trap.exists()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [np.array([object()], dtype=object), np.zeros(2, dtype=[("a", "f4")]), np.dtype("O"), np.float32(1.0)],
    ids=["objects", "structures", "object dtype", "scalar"],
)
def test_a_plain_pickle_may_hold_arrays_of_plain_numbers_only(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": value}}))
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(path, MASK2FORMER).network()


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.safetensors"])
def test_a_cut_file_is_said_to_be_damaged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    writers: dict[str, Callable[[], object]] = {
        "model.pth": lambda: saved(path, published_state()),
        "model.pkl": lambda: path.write_bytes(pickle.dumps({k: v.numpy() for k, v in published_state().items()})),
        "model.safetensors": lambda: save_checkpoint(network(), path, CLASSES),
    }
    writers[name]()
    cut_in_half(path)
    with pytest.raises(CheckpointError, match="download it again") as raised:
        load_checkpoint(path, MASK2FORMER).network()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        (b"", "not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<!DOCTYPE html>", "not a checkpoint"),
        (pickle.dumps([1, 2]), "holds no weights"),
        (pickle.dumps({"model": {"a": 3}}), "'a' is a int, not a tensor"),
    ],
    ids=["empty", "lfs", "html", "list", "numbers"],
)
def test_what_is_no_checkpoint_is_refused(contents: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(path, MASK2FORMER).network()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "nowhere.pth", MASK2FORMER).network()


def test_settings_that_do_not_describe_the_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(network(), path, CLASSES)
    settings = json.loads(load_checkpoint(path, MASK2FORMER).notes["settings"])
    for changed, told in (({**settings, "queries": 6}, "misshapen"), ({**settings, "colour": 1}, "unknown setting")):
        save_file(load_file(path), tmp_path / "altered.safetensors", metadata={"settings": json.dumps(changed)})
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(tmp_path / "altered.safetensors", MASK2FORMER).network()


def test_reading_never_imports_what_a_pickle_names(tmp_path: Path) -> None:
    stream = io.BytesIO()
    stream.write(b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n.")
    path = tmp_path / "yolo.pt"
    path.write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match=r"refused.*ultralytics.nn.tasks.DetectionModel"):
        load_checkpoint(path, MASK2FORMER).network()
