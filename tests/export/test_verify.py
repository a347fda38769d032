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
from networks import PUBLISHED_KIND, Exported, exported
from onnx import numpy_helper
from typer.testing import CliRunner

from visrt.cli import app
from visrt.export.contract import file_spec
from visrt.runtime.errors import BundleError, ParityError, UsageError
from visrt.runtime.verify import TensorParity, require_parity, scaled_error, verify

TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from visrt.runtime.verify import verify
assert all(row.passed for row in verify(sys.argv[1], threads=1))
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
    found = {(row.role, row.batch): row for row in verify(published_kind.folder)}
    whole = {(row.role, row.batch): row for row in published_kind.report.parity}
    assert found.keys() == whole.keys()
    assert all(row.passed for row in found.values())
    # Rounding may differ with the threads that happen to be free, not by an order.
    assert all(found[key].max_abs <= 3 * whole[key].max_abs + 1e-6 for key in whole)


@pytest.mark.parametrize("weight", ["class_embed.bias", "mask_features.weight", "stem.conv1.weight"])
def test_a_bundle_with_another_weight_fails_though_its_hashes_fit(bundle: Path, weight: str) -> None:
    alter(bundle, weight)
    failed = [row for row in verify(bundle) if not row.passed]
    assert failed
    with pytest.raises(ParityError, match="do not deploy"):
        require_parity(failed, "bundle")


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


def test_nan_and_another_shape_are_infinitely_wrong() -> None:
    ones = np.ones((2, 3), np.float32)
    assert scaled_error(ones * np.nan, ones)[1] == np.inf
    assert scaled_error(ones[:1], ones)[1] == np.inf
    assert not TensorParity("frame", "embeddings", 1, np.inf, np.inf, 1e-3).passed
    assert not TensorParity("frame", "embeddings", 1, np.nan, np.nan, 1e-3).passed


def test_errors_are_relative_to_the_largest_value_but_never_to_less_than_one() -> None:
    big, small = np.array([100.0, 1.0], np.float32), np.array([0.1, 0.0], np.float32)
    assert scaled_error(big + 1, big) == pytest.approx((1, 0.01))
    assert scaled_error(small + 1, small) == pytest.approx((1, 1))
