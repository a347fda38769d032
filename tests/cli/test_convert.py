"""`visrt convert`, and `visrt export` of what it reads: published files and Hugging Face folders, to a tracked clip."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_weights
import torch
from hugging_face_folders import CLASSES, save_folder, transformers_or_skip
from torch import Tensor
from typer.testing import CliRunner, Result
from written_clips import write_clip

from visrt.cli import app
from visrt.models.checkpoints.checkpoint import NetworkKind, load_checkpoint
from visrt.models.checkpoints.eomt import EOMT
from visrt.models.checkpoints.eomt_keys import ENCODER
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.eomt import Eomt, EomtSettings
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.videomt import VideoMt, VideoMtSettings
from visrt.runtime.bundles.bundle import open_bundle

TINY = {**small_weights.TINY, "decoder_layers": 2}
NAMES = ("person", "vehicle", "animal")

State = dict[str, Tensor]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def state(classes: int, **sizes: Any) -> State:
    torch.manual_seed(0)
    return Mask2Former(NetworkSettings(classes=classes, **TINY, **sizes)).eval().state_dict()


def as_in_2021(key: str) -> str:
    """The names of COCO's Mask2Former files: no pixel decoder in them, and the query features are static."""
    return key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query")


@pytest.fixture
def official(tmp_path: Path) -> Path:
    torch.save({"model": state(3), "iteration": 5999}, tmp_path / "minvis.pth")
    return tmp_path / "minvis.pth"


def assert_holds(path: Path, expected: State) -> None:
    weights = load_checkpoint(path, MASK2FORMER).weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_a_published_file_becomes_safetensors_with_names_and_where_they_came_from(
    official: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "minvis.safetensors"
    done = run("convert", official, "--classes", ",".join(NAMES), "--out", out)
    assert done.exit_code == 0, done.stderr
    assert_holds(out, state(3))
    checkpoint = load_checkpoint(out, MASK2FORMER)
    assert checkpoint.classes == NAMES
    assert checkpoint.notes["converted_from"] == "minvis.pth"
    assert checkpoint.notes["converted_from_sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert "6 queries, 3 classes (person, vehicle, animal)" in done.stdout
    assert f"visrt export {out}" in done.stdout


def test_a_coco_pickle_of_numpy_arrays_is_converted_with_cocos_names(tmp_path: Path) -> None:
    arrays = {as_in_2021(key): value.numpy() for key, value in state(80).items()}
    contents = {"model": {**arrays, "criterion.empty_weight": torch.ones(81).numpy()}, "__author__": "third party"}
    (tmp_path / "coco.pkl").write_bytes(pickle.dumps(contents))
    done = run("convert", tmp_path / "coco.pkl", "--classes", "coco", "--out", tmp_path / "coco.safetensors")
    assert done.exit_code == 0, done.stderr
    assert_holds(tmp_path / "coco.safetensors", state(80))
    names = load_checkpoint(tmp_path / "coco.safetensors", MASK2FORMER).classes or ()
    assert (names[0], names[9], names[79]) == ("person", "traffic light", "toothbrush")


def test_ctvis_keeps_its_instance_embeddings(tmp_path: Path) -> None:
    torch.save({"model": state(25, reid_dim=32, reid_hidden_dim=32)}, tmp_path / "ctvis.pth")
    done = run("convert", tmp_path / "ctvis.pth", "--classes", "ovis", "--out", tmp_path / "ctvis.safetensors")
    assert done.exit_code == 0, done.stderr
    assert load_checkpoint(tmp_path / "ctvis.safetensors", MASK2FORMER).settings.reid_dim == 32
    assert "instance embeddings of 32" in done.stdout
    assert "--family ctvis --size" in done.stdout


def test_genvis_is_known_by_its_weights_and_is_no_network_of_single_frames(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frame = NetworkSettings(classes=3, **TINY)
    network = GenVis(GenVisNetworkSettings(frame, instances=5, heads=4, encoder_layers=1, decoder_layers=1)).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "genvis.pth")
    arguments = ("convert", tmp_path / "genvis.pth", "--classes", ",".join(NAMES), "--out", tmp_path / "g.safetensors")
    refused = run(*arguments, "--kind", "per-frame")
    assert refused.exit_code == 5
    assert "convert it with --kind genvis" in refused.stderr
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    found = load_checkpoint(tmp_path / "g.safetensors", GENVIS)
    assert (found.classes, found.settings.instances) == (NAMES, 5)
    assert all(torch.equal(found.weights[key], value) for key, value in network.state_dict().items())
    assert "--family genvis --size" in done.stdout


VIT: dict[str, Any] = {
    "classes": 3, "queries": 6, "dim": 64, "blocks": 2, "heads": 1, "feedforward_dim": 64, "query_blocks": 1,
    "table_side": 3,
}  # fmt: skip
DINOV3: dict[str, Any] = {"positions": "rotary", "table_side": 0, "norm_eps": 1e-5}


def published_vit(path: Path, network: VideoMt | Eomt) -> Path:
    """A checkpoint with the names of transformers."""
    torch.save({"model": {**network.state_dict(), "attn_mask_probs": torch.zeros(1)}}, path)
    return path


def differences(path: Path, network: Eomt) -> Path:
    """A checkpoint with the prefixes of the official EoMT."""
    weights = {**network.state_dict(), "attn_mask_probs": torch.zeros(1)}
    prefixes = {key: "network.encoder.backbone." if key.startswith(ENCODER) else "network." for key in weights}
    torch.save({prefixes[key] + key: value for key, value in weights.items()}, path)
    return path


@pytest.mark.parametrize("family", ["videomt", "eomt"])
def test_videomt_and_eomt_are_known_by_their_weights(family: str, tmp_path: Path) -> None:
    network = VideoMt(VideoMtSettings(**VIT)) if family == "videomt" else Eomt(EomtSettings(**VIT))
    path, out = published_vit(tmp_path / "vit.pth", network), tmp_path / "vit.safetensors"
    done = run("convert", path, "--classes", ",".join(NAMES), "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "transformer of 2 blocks and 64 channels, table positions" in done.stdout
    assert "6 queries, 3 classes (person, vehicle, animal)" in done.stdout
    assert f"--family {family} --size" in done.stdout
    kind: NetworkKind[Any, Any] = VIDEOMT if family == "videomt" else EOMT
    found = load_checkpoint(out, kind)
    assert (found.classes, found.settings) == (NAMES, network.settings)
    assert all(torch.equal(found.weights[key], value) for key, value in network.state_dict().items())


def test_a_setting_that_no_weight_shows_is_given_by_name(tmp_path: Path) -> None:
    path = published_vit(tmp_path / "vit.pth", VideoMt(VideoMtSettings(**{**VIT, **DINOV3})))
    arguments = ("convert", path, "--classes", ",".join(NAMES), "--out", tmp_path / "vit.safetensors")
    assert run(*arguments, "--set", "norm_queries=true", "--set", "heads=2").exit_code == 0
    settings = load_checkpoint(tmp_path / "vit.safetensors", VIDEOMT).settings
    assert (settings.norm_queries, settings.heads) == (True, 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("norm_queries", "--set norm_queries: expected NAME=VALUE"),
        ("norm_queries=yes", "--set norm_queries: not json"),
        ("norm_queries=7", "setting 'norm_queries' is 7"),
        ("queries=7", "queries: the weights tell it; given can be heads, norm_eps, norm_queries"),
    ],
)
def test_a_setting_that_cannot_be_given_is_one_line(given: str, told: str, tmp_path: Path) -> None:
    path = published_vit(tmp_path / "vit.pth", VideoMt(VideoMtSettings(**VIT)))
    out = tmp_path / "vit.safetensors"
    done = run("convert", path, "--classes", ",".join(NAMES), "--out", out, "--overwrite", "--set", given)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert told in done.stderr


def test_differences_to_dinov3_need_the_base_that_they_are_added_to(tmp_path: Path) -> None:
    network = Eomt(EomtSettings(**{**VIT, **DINOV3}))
    path = differences(tmp_path / "pytorch_model.bin", network)
    arguments = ("convert", path, "--classes", ",".join(NAMES), "--out", tmp_path / "eomt.safetensors")
    refused = run(*arguments)
    assert (refused.exit_code, refused.stderr.count("\n")) == (5, 1)
    assert "published as differences to DINOv3's weights" in refused.stderr
    base = {key: torch.ones_like(value) for key, value in network.state_dict().items() if key.startswith(ENCODER)}
    torch.save(base, tmp_path / "dinov3.pth")
    done = run(*arguments, "--base", tmp_path / "dinov3.pth")
    assert done.exit_code == 0, done.stderr
    found = load_checkpoint(tmp_path / "eomt.safetensors", EOMT)
    assert all(torch.equal(found.weights[key], network.state_dict()[key] + 1) for key in base)
    assert torch.equal(found.weights["query.weight"], network.query.weight)
    assert found.notes["base_sha256"] == hashlib.sha256((tmp_path / "dinov3.pth").read_bytes()).hexdigest()
    needless = run("convert", official_minvis(tmp_path), "--out", tmp_path / "m.safetensors", "--base", tmp_path)
    assert needless.exit_code == 2
    assert "holds whole weights; leave out the base" in needless.stderr


def official_minvis(folder: Path) -> Path:
    torch.save({"model": state(3)}, folder / "minvis.pth")
    return folder / "minvis.pth"


def test_names_come_from_a_list_or_from_annotations(official: Path, tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "animal"}, {"id": 1, "name": "person"}, {"id": 3, "name": "vehicle"}]
    for contents in (list(NAMES), {"categories": categories, "videos": []}):
        (tmp_path / "names.json").write_text(json.dumps(contents))
        out = tmp_path / "out.safetensors"
        done = run("convert", official, "--classes", tmp_path / "names.json", "--out", out, "--overwrite")
        assert done.exit_code == 0, done.stderr
        assert load_checkpoint(out, MASK2FORMER).classes == NAMES


@pytest.mark.parametrize(
    ("names", "exit_code", "told"),
    [
        (None, 2, "holds no class names; name its 3 classes with --classes"),
        ("ytvis2019", 5, "the network has 3 classes but 40 names were given"),
        ("a,b,a", 2, "class names 'a': expected names that are not empty and differ"),
        (
            '{"categories": [{"name": "person"}]}',
            2,
            "categories[0].id: expected a whole number of zero or more; found None",
        ),
        ('{"videos": []}', 2, "expected a json list of class names"),
    ],
)
def test_names_that_do_not_fit_are_one_line(
    names: str | None, exit_code: int, told: str, official: Path, tmp_path: Path
) -> None:
    if names and names.startswith("{"):
        (tmp_path / "names.json").write_text(names)
        names = str(tmp_path / "names.json")
    given = [] if names is None else ["--classes", names]
    done = run("convert", official, "--out", tmp_path / "out.safetensors", *given)
    assert (done.exit_code, done.stderr.count("\n")) == (exit_code, 1)
    assert told in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


PREFIXES: dict[str, tuple[Callable[[State], Any], str]] = {
    "DDP": (lambda w: {"model": {f"module.{key}": value for key, value in w.items()}}, "module."),
    "Lightning": (lambda w: {"state_dict": {f"model.{key}": value for key, value in w.items()}}, "model."),
    "torch.compile": (lambda w: {f"_orig_mod.{key}": value for key, value in w.items()}, "_orig_mod."),
    "both": (lambda w: {"model": {f"module._orig_mod.{key}": value for key, value in w.items()}}, "module._orig_mod."),
    "of its own": (lambda w: {f"segmenter.{key}": value for key, value in w.items()}, "segmenter."),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_what_a_trainer_puts_before_every_key_is_taken_off_and_said(name: str, tmp_path: Path) -> None:
    wrap, prefix = PREFIXES[name]
    torch.save(wrap(state(3)), tmp_path / "trained.pth")
    done = run("convert", tmp_path / "trained.pth", "--classes", "a,b,c", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.stderr
    assert f"trained.pth: {prefix} stands before its {len(state(3))} keys" in " ".join(done.stderr.split())
    assert_holds(tmp_path / "out.safetensors", {k: v for k, v in state(3).items() if not k.endswith("_index")})


def test_a_prefix_of_some_keys_is_none_and_the_beginnings_of_all_are_named(tmp_path: Path) -> None:
    weights = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state(3).items()}
    torch.save(weights, tmp_path / "trained.pth")
    done = run("convert", tmp_path / "trained.pth", "--classes", "a,b,c", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 5
    assert "its keys begin with student. (" in done.stderr
    assert "teacher. (" in done.stderr


def test_what_stands_beside_a_network_behind_a_prefix_is_left_out_and_said(tmp_path: Path) -> None:
    weights = {f"model.{key}": value for key, value in state(3).items()}
    others = {"criterion.empty_weight": torch.zeros(4), "metric.total": torch.zeros(1), "epoch_loss": torch.zeros(1)}
    torch.save({"state_dict": {**weights, **others}}, tmp_path / "trained.ckpt")
    done = run("convert", tmp_path / "trained.ckpt", "--classes", "a,b,c", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "so are 2 other keys, such as metric.total" in " ".join(done.stderr.split())
    assert_holds(tmp_path / "out.safetensors", state(3))


@pytest.mark.parametrize("name", ["model_ema", "ema", "ema_state_dict", "state_dict_ema"])
def test_an_average_beside_the_weights_is_told(name: str, tmp_path: Path) -> None:
    weights = state(3)
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}
    torch.save({"model": weights, name: averaged, "optimizer": {"ema_rate": 0.9}}, tmp_path / "trained.pth")
    done = run("convert", tmp_path / "trained.pth", "--classes", "a,b,c", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert f"its 'model' is read; '{name}' beside it, which seems to be a running average (EMA), is not" in told
    assert_holds(tmp_path / "out.safetensors", weights)
    # Converted again there is nothing to choose.
    again = run("convert", tmp_path / "out.safetensors", "--out", tmp_path / "again.safetensors")
    assert again.stderr == ""


@pytest.mark.parametrize(
    "keys", [["backbone.conv1.weight", "panoptic_head.cls_embed.weight"], ["roi_head.0.fc.weight"]]
)
def test_mmdetection_is_named(keys: list[str], tmp_path: Path) -> None:
    torch.save({"state_dict": {key: torch.zeros(4, 3, 7, 7) for key in keys}}, tmp_path / "mmdet.pth")
    done = run("convert", tmp_path / "mmdet.pth", "--classes", "a,b,c", "--out", tmp_path / "out.safetensors")
    assert (done.exit_code, done.stderr.count("\n")) == (5, 1)
    assert "this is an mmdetection checkpoint" in done.stderr


def test_a_class_count_that_fits_a_data_set_is_told(tmp_path: Path) -> None:
    torch.save({"model": state(40)}, tmp_path / "minvis.pth")
    done = run("convert", tmp_path / "minvis.pth", "--out", tmp_path / "out.safetensors")
    assert "--classes ytvis2019 or ytvis2021" in done.stderr


def test_what_is_there_is_replaced_on_request_only_and_never_lost(official: Path, tmp_path: Path) -> None:
    arguments = ("convert", official, "--classes", ",".join(NAMES), "--out")
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    refused = run(*arguments, out)
    assert (refused.exit_code, out.read_text()) == (4, "mine")
    assert "add --overwrite" in refused.stderr
    spoilt = tmp_path / "spoilt.pth"
    torch.save({"model": {**state(3), "tracker.weight": torch.zeros(1)}}, spoilt)
    assert run("convert", spoilt, "--classes", ",".join(NAMES), "--out", out, "--overwrite").exit_code == 5
    assert out.read_text() == "mine"
    assert run(*arguments, out, "--overwrite").exit_code == 0
    assert_holds(out, state(3))


@pytest.mark.parametrize(
    ("out", "exit_code", "told"),
    [
        ("out.pth", 2, "a converted checkpoint is a .safetensors file"),
        (".", 4, "is no file; choose another name"),
        ("minvis.pth/out.safetensors", 4, "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    out: str, exit_code: int, told: str, official: Path, tmp_path: Path
) -> None:
    done = run("convert", official, "--classes", ",".join(NAMES), "--out", tmp_path / out, "--overwrite")
    assert (done.exit_code, done.stderr.count("\n")) == (exit_code, 1)
    assert told in done.stderr


def test_a_checkpoint_is_not_converted_onto_itself(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run("convert", official, "--classes", ",".join(NAMES), "--out", out)
    again = run("convert", out, "--out", out, "--overwrite")
    assert again.exit_code == 2
    assert "is the checkpoint itself" in again.stderr


def test_a_hugging_face_folder_is_converted_exported_and_tracked(tmp_path: Path) -> None:
    """Two commands lead from a folder to a tracked clip; converting it first changes nothing."""
    transformers_or_skip()
    folder = save_folder(tmp_path / "hf", "resnet", encoder_layers=1, decoder_layers=2)
    converted = run("convert", folder, "--out", tmp_path / "hf.safetensors")
    assert converted.exit_code == 0, converted.stderr
    ours = load_checkpoint(tmp_path / "hf.safetensors", MASK2FORMER)
    assert (ours.settings, ours.classes) == (load_checkpoint(folder, MASK2FORMER).settings, CLASSES)
    assert_holds(tmp_path / "hf.safetensors", load_checkpoint(folder, MASK2FORMER).weights)

    exported = run("export", folder, "--size", "64x64", "--out", tmp_path / "bundle")
    assert exported.exit_code == 0, exported.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.classes, manifest.producer.checkpoint) == (CLASSES, "hf")
    assert manifest.producer.checkpoint_sha256 == ours.notes["converted_from_sha256"]

    clip = write_clip(tmp_path / "clip.mp4", 6)
    tracked = run("track", clip, "--bundle", tmp_path / "bundle", "--out", tmp_path / "out", "--threads", 1)
    assert tracked.exit_code == 0, tracked.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    frames = [line for line in map(json.loads, lines) if "frame" in line]
    assert [line["frame"] for line in frames] == list(range(6))
    assert {shown["label"] for line in frames for shown in line["objects"]} <= set(range(len(CLASSES)))
