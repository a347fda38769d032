"""A checkpoint becomes a bundle that the runtime opens and that computes what torch computes, or nothing is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CLASSES, HEIGHT, LIGHT, PUBLISHED_KIND, WIDTH, Exported, exported, saved
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

import visrt.export.per_frame
from visrt.cli import app
from visrt.export.bundle import Export, export_bundle
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import CheckpointError, OutputError, ParityError, SettingsError, UsageError
from visrt.runtime.methods.ctvis import CtVisSettings
from visrt.runtime.methods.minvis import MinVisSettings
from visrt.runtime.parity.reference import ROLES
from visrt.runtime.parity.tolerances import TensorParity
from visrt.runtime.session import Session

BATCHES = (1, 3)


@pytest.fixture
def published_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture
def light(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(LIGHT, tmp_path_factory)


@pytest.mark.parametrize("kind", ["published_kind", "light"])
def test_onnx_equals_torch_alone_and_in_a_batch_that_was_not_traced(kind: str, request: pytest.FixtureRequest) -> None:
    parity = request.getfixturevalue(kind).report.parity.tensors
    assert {(row.role, row.batch) for row in parity} == {(role, batch) for role in ROLES for batch in BATCHES}
    assert all(row.max_rel < 1e-5 for row in parity)


def test_the_manifest_says_what_the_bundle_is(published_kind: Exported) -> None:
    manifest = open_bundle(published_kind.folder).manifest
    assert manifest.classes == CLASSES
    assert (manifest.input.height, manifest.input.width) == (HEIGHT, WIDTH)
    assert manifest.graphs["frame"].inputs["images"].shape == ("batch", HEIGHT, WIDTH, 3)
    assert manifest.graphs["frame"].outputs["mask_features"].shape == ("batch", 32, HEIGHT // 4, WIDTH // 4)
    assert manifest.graphs["masks"].inputs["mask_embeddings"].shape == ("masks", 32)
    assert manifest.association["birth_score"] == MinVisSettings().birth_score
    expected = hashlib.sha256(published_kind.checkpoint.read_bytes()).hexdigest()
    assert manifest.producer.checkpoint_sha256 == expected
    assert manifest.producer.versions.keys() >= {"torch", "onnx", "onnxruntime", "python"}


def test_a_bundle_names_no_folder_of_the_machine(published_kind: Exported) -> None:
    text = (published_kind.folder / "manifest.json").read_text()
    assert str(published_kind.checkpoint.parent) not in text
    assert str(Path.home()) not in text


def test_a_session_follows_frames_of_any_size_with_an_exported_bundle(light: Exported) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    with Session.open(light.folder, association={"birth_score": 0.0, "keep_score": 0.0}) as session:
        (result,) = session.step(frame)
    assert result.objects
    assert all(found.mask().shape == (50, 41) for found in result.objects)


def test_the_reference_is_small_and_holds_frames_that_fill_the_input_and_padded_ones(light: Exported) -> None:
    assert light.report.manifest.reference.bytes < 2**20
    with np.load(light.folder / "reference.npz") as reference:
        sizes = reference["valid_sizes"].tolist()
    assert [HEIGHT, WIDTH] in sizes
    assert any(height < HEIGHT for height, _ in sizes)
    assert any(width < WIDTH for _, width in sizes)


class TestWithoutTracing:
    """The graphs are those of the session's bundle, so that each claim takes no time."""

    @pytest.fixture(autouse=True)
    def _traced_before(self, published_kind: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
        model = onnx.load(published_kind.folder / "frame.onnx")
        monkeypatch.setattr(visrt.export.per_frame, "onnx_from_frame_graph", lambda *_: model)
        self.model = model

    def spoil(self) -> None:
        """One weight of the class head is off by a hundredth."""
        weight = next(w for w in self.model.graph.initializer if w.name.endswith("class_embed.bias"))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name))

    def test_a_graph_that_computes_something_else_is_refused_and_nothing_is_written(
        self, published_kind: Exported, tmp_path: Path
    ) -> None:
        self.spoil()
        shown: list[TensorParity] = []
        with pytest.raises(ParityError, match=r"frame\.class_logits"):
            export_bundle(
                replace(published_kind.wanted, out=tmp_path / "bundle"),
                on_parity=lambda report, _: shown.extend(report.tensors),
            )
        assert not list(tmp_path.iterdir())
        assert {row.role for row in shown if not row.passed} == {"class_logits"}

    def test_a_refused_export_leaves_the_bundle_that_was_there(self, published_kind: Exported, tmp_path: Path) -> None:
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", overwrite=True)
        export_bundle(wanted)
        before = files_of(wanted.out)
        self.spoil()
        with pytest.raises(ParityError):
            export_bundle(wanted)
        assert files_of(wanted.out) == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    def test_a_bundle_is_replaced_only_on_request(self, published_kind: Exported, tmp_path: Path) -> None:
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", name="first")
        export_bundle(wanted)
        (wanted.out / "engine-cache").write_text("belongs to the old bundle")
        with pytest.raises(OutputError, match="--overwrite"):
            export_bundle(replace(wanted, name="second"))
        export_bundle(replace(wanted, name="second", overwrite=True))
        assert open_bundle(wanted.out).manifest.name == "second"
        assert files_of(wanted.out).keys() == {"manifest.json", "frame.onnx", "masks.onnx", "reference.npz"}

    def test_a_folder_that_is_no_bundle_is_never_replaced(self, published_kind: Exported, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(OutputError, match="not a bundle"):
            export_bundle(replace(published_kind.wanted, out=tmp_path, overwrite=True))
        assert (tmp_path / "thesis.tex").exists()

    def test_the_same_moment_gives_the_same_bundle(
        self, published_kind: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        folders = [tmp_path / side / "bundle" for side in ("a", "b")]
        for folder in folders:
            export_bundle(replace(published_kind.wanted, out=folder))
        assert files_of(folders[0]) == files_of(folders[1])

    def test_association_settings_are_kept_in_the_manifest(self, published_kind: Exported, tmp_path: Path) -> None:
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", association={"birth_score": 0.7})
        association = export_bundle(wanted).manifest.association
        assert association["birth_score"] == 0.7
        assert association["keep_score"] == MinVisSettings().keep_score

    def test_the_family_is_the_users_choice_and_its_settings_are_written(
        self, published_kind: Exported, tmp_path: Path
    ) -> None:
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", family="ctvis", association={"nms_iou": 0.5})
        manifest = export_bundle(wanted).manifest
        assert manifest.family == "ctvis"
        assert manifest.association == asdict(CtVisSettings(nms_iou=0.5))

    def test_an_unknown_family_and_a_checkpoint_of_another_are_refused(
        self, published_kind: Exported, tmp_path: Path
    ) -> None:
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", family="maskformer")
        with pytest.raises(UsageError, match="family 'maskformer' cannot be exported; choose one of minvis, ctvis"):
            export_bundle(wanted)
        with pytest.raises(CheckpointError, match="expected an InsPro network"):
            export_bundle(replace(wanted, family="inspro"))

    def test_pictures_of_the_user_are_fitted_and_checked_on(self, published_kind: Exported, tmp_path: Path) -> None:
        gradient = np.add.outer(np.arange(40), np.arange(90)).astype(np.uint8)
        Image.fromarray(np.stack([gradient, gradient, 255 - gradient], axis=2)).save(tmp_path / "own.png")
        wanted = replace(published_kind.wanted, out=tmp_path / "bundle", references=(tmp_path / "own.png",))
        export_bundle(wanted)
        with np.load(wanted.out / "reference.npz") as reference:
            assert reference["valid_sizes"].tolist() == [[43, 96]]

    def test_the_command_shows_the_parity_and_then_refuses(self, published_kind: Exported, tmp_path: Path) -> None:
        self.spoil()
        outcome = run(published_kind.checkpoint, "--out", tmp_path / "bundle", "--size", f"{HEIGHT}x{WIDTH}")
        assert outcome.exit_code == ParityError.exit_code
        assert "class_logits" in outcome.stdout
        assert "FAILS" in outcome.stdout
        assert outcome.stderr.count("visrt:") == 1


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["--size", "60x96"], UsageError, "divisible by 32"),
        (["--size", "large"], UsageError, "height x width"),
        (["--size", "64x96", "--classes", "cat,dog"], CheckpointError, "3 classes but 2 names"),
        (["--size", "64x96", "--classes", "cat,dog,cat"], UsageError, "differ"),
        (["--size", "64x96", "--classes", "absent.json"], SettingsError, "absent.json"),
        (["--size", "64x96", "--association", "absent.json"], SettingsError, "absent.json"),
        (["--size", "64x96", "--reference", "absent.png"], visrt.runtime.errors.SourceError, "absent.png"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_an_exit_code(
    arguments: Sequence[str], error: type[visrt.runtime.errors.VisrtError], told: str, tmp_path: Path
) -> None:
    checkpoint = saved(PUBLISHED_KIND, tmp_path / "model.safetensors")
    outcome = run(checkpoint, "--out", tmp_path / "bundle", *arguments)
    assert outcome.exit_code == error.exit_code
    assert told in outcome.stderr
    assert outcome.stderr.strip().count("\n") == 0
    assert not (tmp_path / "bundle").exists()


def test_an_unknown_association_setting_is_named_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "association.json").write_text(json.dumps({"birth_scores": 0.5}))
    checkpoint = saved(PUBLISHED_KIND, tmp_path / "model.safetensors")
    arguments = ("--out", tmp_path / "bundle", "--size", "64x96", "--association", tmp_path / "association.json")
    outcome = run(checkpoint, *arguments)
    assert outcome.exit_code == SettingsError.exit_code
    assert "birth_scores" in outcome.stderr
    assert "birth_score," in outcome.stderr


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    outcome = run(tmp_path / "absent.pth", "--out", tmp_path / "bundle", "--size", "64x96")
    assert outcome.exit_code == CheckpointError.exit_code
    assert "absent.pth" in outcome.stderr


def test_a_published_checkpoint_without_class_names_asks_for_them(tmp_path: Path) -> None:
    import torch

    from visrt.models.mask2former import Mask2Former

    torch.save({"model": Mask2Former(PUBLISHED_KIND).state_dict()}, tmp_path / "published.pth")
    with pytest.raises(UsageError, match="--classes"):
        export_bundle(Export(tmp_path / "published.pth", tmp_path / "bundle", HEIGHT, WIDTH))


@pytest.mark.parametrize("settings", [PUBLISHED_KIND, LIGHT], ids=["published_kind", "light"])
def test_weights_that_are_not_numbers_are_refused(settings: NetworkSettings, tmp_path: Path) -> None:
    from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
    from visrt.models.checkpoints.mask2former import MASK2FORMER

    path = saved(settings, tmp_path / "model.safetensors")
    network = load_checkpoint(path, MASK2FORMER).network()
    network.sem_seg_head.predictor.class_embed.bias.data[0] = float("nan")
    save_checkpoint(network, path, CLASSES)
    with pytest.raises(CheckpointError, match="NaN or infinity in class_logits"):
        export_bundle(Export(path, tmp_path / "bundle", HEIGHT, WIDTH))


def test_a_target_below_a_file_is_refused_before_the_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="is a file"):
        export_bundle(Export(tmp_path / "absent.pth", tmp_path / "file" / "bundle", HEIGHT, WIDTH))


def test_a_full_disk_is_an_output_error_and_leaves_nothing(
    published_kind: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    model = onnx.load(published_kind.folder / "frame.onnx")
    monkeypatch.setattr(visrt.export.per_frame, "onnx_from_frame_graph", lambda *_: model)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        export_bundle(replace(published_kind.wanted, out=tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())
