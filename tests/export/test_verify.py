"""A bundle is checked against its torch reference without torch, and a bundle that computes otherwise is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CLASSES, PUBLISHED_KIND, Exported, exported
from onnx import numpy_helper
from typer.testing import CliRunner, Result
from written_clips import write_clip

from visrt.cli import app
from visrt.export.reference import reference_from_checkpoint
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.errors import BundleError, CheckpointError, ParityError, UsageError
from visrt.runtime.parity.reference import ROLES, Reference
from visrt.runtime.parity.verify import stored_reference, verify

TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from visrt.runtime.parity.verify import verify
assert verify(sys.argv[1], threads=1).passed
"""


@pytest.fixture
def published_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture
def bundle(published_kind: Exported, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(published_kind.folder, tmp_path / "bundle"))


def test_a_sound_bundle_is_verified_where_torch_is_not_installed(published_kind: Exported) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", TORCHLESS, published_kind.folder], check=True, timeout=60)


def test_the_stored_sample_finds_the_same_errors_as_the_whole_tensors(published_kind: Exported) -> None:
    found = {(row.role, row.batch): row for row in verify(published_kind.folder).tensors}
    whole = {(row.role, row.batch): row for row in published_kind.report.parity.tensors}
    assert found.keys() == whole.keys()
    assert all(row.passed for row in found.values())
    # Rounding may differ with the threads that happen to be free, not by an order.
    assert all(found[key].max_abs <= 3 * whole[key].max_abs + 1e-6 for key in whole)


@pytest.mark.parametrize("weight", ["class_embed.bias", "mask_features.weight", "stem.conv1.weight"])
def test_a_bundle_with_another_weight_fails_though_its_hashes_fit(bundle: Path, weight: str) -> None:
    alter(bundle, weight)
    report = verify(bundle)
    assert not report.passed
    with pytest.raises(ParityError, match=r"bundle: .*worst is .* do not deploy"):
        report.require("bundle")


def alter(bundle: Path, weight: str) -> None:
    """Scale a weight by 1.1 and add 0.01, and write a manifest that knows."""
    model = onnx.load(bundle / "frame.onnx")
    found = next(w for w in model.graph.initializer if w.name.endswith(weight))
    changed = numpy_helper.to_array(found) * np.float32(1.1) + np.float32(0.01)
    found.CopyFrom(numpy_helper.from_array(changed, found.name))
    data = model.SerializeToString()
    (bundle / "frame.onnx").write_bytes(data)
    edit_manifest(bundle, data)


def edit_manifest(bundle: Path, data: bytes) -> None:
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["frame"]["file"] = file_spec("frame.onnx", data).model_dump()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_the_command_prints_every_tensor_and_leaves_with_the_right_code(bundle: Path) -> None:
    sound = CliRunner().invoke(app, ["verify", str(bundle)])
    assert sound.exit_code == 0
    assert "mask_logits" in sound.stdout
    alter(bundle, "class_embed.bias")
    wrong = CliRunner().invoke(app, ["verify", str(bundle)])
    assert wrong.exit_code == ParityError.exit_code
    assert "FAILS" in wrong.stdout
    assert "class_logits" in wrong.stderr


def test_an_altered_file_and_an_unknown_engine_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="warp"):
        verify(bundle, "warp")
    (bundle / "reference.npz").write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"reference\.npz"):
        verify(bundle)


def anew(bundle: Exported, checkpoint: Path) -> Reference:
    opened = open_bundle(bundle.folder)
    stored = stored_reference(opened)
    return reference_from_checkpoint(checkpoint, opened.manifest, stored.images, stored.valid_sizes)


def test_a_checkpoint_run_anew_gives_what_the_bundle_keeps(published_kind: Exported) -> None:
    stored = stored_reference(open_bundle(published_kind.folder))
    again = anew(published_kind, published_kind.checkpoint)
    assert again.masks is not None
    assert stored.masks is not None
    assert np.unpackbits(again.masks ^ stored.masks).mean() < 1e-3
    for role in ROLES:
        assert again.expected[role].shape == stored.expected[role].shape
        np.testing.assert_allclose(again.expected[role], stored.expected[role], atol=1e-4)


def test_another_checkpoint_than_the_bundles_is_refused(published_kind: Exported, tmp_path: Path) -> None:
    network = load_checkpoint(published_kind.checkpoint, MASK2FORMER).network()
    save_checkpoint(network, tmp_path / "copy.safetensors", CLASSES, {"note": "the same weights in another file"})
    with pytest.raises(CheckpointError, match=r"copy\.safetensors: sha256 .* was exported from model\.safetensors"):
        anew(published_kind, tmp_path / "copy.safetensors")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", frames=5)


def test_a_clip_is_compared_with_torch_and_with_another_bundle(
    published_kind: Exported, bundle: Path, clip: Path, tmp_path: Path
) -> None:
    for other in (("--checkpoint", published_kind.checkpoint), ("--against", published_kind.folder)):
        out = tmp_path / f"{other[0]}.json"
        done = run(bundle, "--source", clip, "--frames", 4, *other, "--engine", "cpu", "--batch", 2, "--json", out)
        assert done.exit_code == 0, done.stderr
        assert "4 frames of" in done.stdout
        (engine,) = json.loads(out.read_text())["engines"]
        assert engine["batches"][0]["agreement"]["frames"] == 4


def test_a_bundle_that_computes_otherwise_than_the_one_it_is_held_against_fails(
    published_kind: Exported, bundle: Path
) -> None:
    alter(bundle, "stem.conv1.weight")
    ended = run(bundle, "--against", published_kind.folder, "--engine", "cpu", "--batch", 1)
    assert ended.exit_code == ParityError.exit_code
    assert "worst is" in ended.stderr


def test_the_json_tells_every_figure_and_what_was_not_run_and_why(bundle: Path, tmp_path: Path) -> None:
    assert run(bundle, "--json", tmp_path / "verdict.json").exit_code == 0
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert told["passed"]
    assert told["precision"] == "fp32"
    states = {engine["engine"]: engine for engine in told["engines"]}
    assert states.keys() == BACKENDS.keys()
    assert all(engine["reason"] for engine in states.values() if engine["state"] == "skipped")
    cpu = states["cpu"]
    assert cpu["provider"] == "CPUExecutionProvider"
    assert [batch["batch"] for batch in cpu["batches"]] == [1, 3]
    assert {row["role"] for row in cpu["batches"][0]["tensors"]} == set(ROLES)
    assert cpu["batches"][0]["agreement"]["iou_mean"] > 0.99
    assert told["machine"]["onnxruntime"]


def test_a_failed_verdict_is_written_before_the_program_leaves(bundle: Path, tmp_path: Path) -> None:
    alter(bundle, "class_embed.bias")
    ended = run(bundle, "--engine", "cpu", "--json", tmp_path / "verdict.json")
    assert ended.exit_code == ParityError.exit_code
    (engine,) = json.loads((tmp_path / "verdict.json").read_text())["engines"]
    assert engine["state"] == "failed"
    assert "class_logits" in engine["faults"][0]


def test_a_floor_of_the_user_is_judged(bundle: Path) -> None:
    done = run(bundle, "--engine", "cpu", "--batch", 1, "--floor", "iou-mean=0.9", "--floor", "top_class=0.9")
    assert done.exit_code == 0
    assert ">= 0.9" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--source", "clip.mp4"), "--checkpoint"),
        (("--checkpoint", "a.pth", "--against", "b"), "the one to compare with"),
        (("--batch", "one"), "--batch one"),
        (("--batch", "0"), "1 or more"),
        (("--floor", "iou_mean"), "NAME=VALUE"),
        (("--floor", "iou=0.9"), "known are iou_mean"),
        (("--floor", "iou_mean=1.5"), "0 to 1"),
        (("--engine", "warp"), "choose of cpu"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_could_be(published_kind: Exported, options: Any, told: str) -> None:
    ended = run(published_kind.folder, *options)
    assert ended.exit_code == UsageError.exit_code
    assert told in ended.stderr


def test_a_bundle_of_another_network_is_no_measure(published_kind: Exported, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["producer"]["checkpoint_sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ended = run(published_kind.folder, "--against", bundle)
    assert ended.exit_code == UsageError.exit_code
    assert "its checkpoint is 000000000000" in ended.stderr


def run(bundle: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["verify", str(bundle), *map(str, options)])
