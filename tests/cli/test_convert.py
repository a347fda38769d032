"""`visrt convert`, and `visrt export` of what it reads: published files and Hugging Face folders, to a tracked clip."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import CLASSES, save_folder, transformers_or_skip
from torch import Tensor
from typer.testing import CliRunner, Result
from written_clips import write_clip

from visrt.cli import app
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.runtime.bundles.bundle import open_bundle

TINY: dict[str, Any] = {
    "queries": 6,
    "conv_dim": 32,
    "mask_dim": 32,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 2,
    "decoder_feedforward_dim": 40,
    "backbone": ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6),
}
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


def test_genvis_is_converted_by_its_kind_and_the_way_there_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frame = NetworkSettings(classes=3, **TINY)
    network = GenVis(GenVisNetworkSettings(frame, instances=5, heads=4, encoder_layers=1, decoder_layers=1)).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "genvis.pth")
    arguments = ("convert", tmp_path / "genvis.pth", "--classes", ",".join(NAMES), "--out", tmp_path / "g.safetensors")
    refused = run(*arguments)
    assert refused.exit_code == 5
    assert "convert it with --kind genvis" in refused.stderr
    done = run(*arguments, "--kind", "genvis")
    assert done.exit_code == 0, done.stderr
    found = load_checkpoint(tmp_path / "g.safetensors", GENVIS)
    assert (found.classes, found.settings.instances) == (NAMES, 5)
    assert all(torch.equal(found.weights[key], value) for key, value in network.state_dict().items())
    assert "--family genvis --size" in done.stdout


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
            "categories[0] is {'name': 'person'}; expected an object with an id",
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
