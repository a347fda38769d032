"""A bundle is checked against its torch reference without torch, and a bundle that computes otherwise is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from visrt.runtime.engine import Array, HostTensor, Tensor
from visrt.runtime.errors import BundleError, ParityError, UsageError
from visrt.runtime.parity import BY_QUERY, scale_of
from visrt.runtime.reference import ROLES, Reference
from visrt.runtime.verify import compare, verify

TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from visrt.runtime.verify import verify
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
    whole = {(row.role, row.batch): row for row in published_kind.report.parity}
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


QUERIES, FRAMES = 50, 3


def fake_reference() -> Reference:
    random = np.random.default_rng(0)
    shapes = {
        "class_logits": (QUERIES, 4),
        "embeddings": (QUERIES, 8),
        "mask_embeddings": (QUERIES, 8),
        "mask_features": (8, 6, 9),
        "mask_logits": (QUERIES, 6, 9),
    }
    expected = {role: random.normal(size=(FRAMES, *shape)).astype(np.float32) for role, shape in shapes.items()}
    images = np.arange(FRAMES, dtype=np.uint8).reshape(FRAMES, 1, 1, 1)
    return Reference(images, np.zeros((FRAMES, 2), np.int32), expected)


class Recorded:
    """Engines that answer with what the reference expects, after `change` was made to one tensor."""

    provider = "recorded"

    def __init__(self, expected: Mapping[str, Array], change: Callable[[dict[str, Array]], None]) -> None:
        self.outputs = {role: array.copy() for role, array in expected.items()}
        change(self.outputs)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        if "images" not in feeds:
            # The frame is found by its mask embeddings.
            same = (self.outputs["mask_embeddings"] == feeds["mask_embeddings"]).all(axis=(1, 2))
            return {"mask_logits": HostTensor(self.outputs["mask_logits"][int(same.argmax())])}
        frames = feeds["images"].ravel()
        return {role: HostTensor(array[frames]) for role, array in self.outputs.items() if role != "mask_logits"}

    def close(self) -> None:
        pass


def failing_roles(change: Callable[[dict[str, Array]], None], moved_share: float = 0.0) -> set[str]:
    reference = replace(fake_reference(), moved_share=moved_share)
    engine = Recorded(reference.expected, change)
    return {row.role for row in compare({"frame": engine, "masks": engine}, reference) if not row.passed}


def test_the_same_values_pass() -> None:
    assert failing_roles(lambda outputs: None) == set()


@pytest.mark.parametrize("role", BY_QUERY)
def test_a_query_that_jumped_is_borne_and_a_third_of_them_is_not(role: str) -> None:
    def jump(queries: int) -> Callable[[dict[str, Array]], None]:
        return lambda outputs: outputs[role].__setitem__((1, slice(queries)), 5.0)

    assert failing_roles(jump(1)) == set()
    assert failing_roles(jump(QUERIES // 3)) == {role}


def test_where_torch_itself_moves_queries_an_engine_may_move_twice_as_many() -> None:
    def jump(outputs: dict[str, Array]) -> None:
        outputs["embeddings"][0, :10] = 5.0

    assert failing_roles(jump, moved_share=5 / (QUERIES * FRAMES)) == set()
    assert failing_roles(jump, moved_share=4 / (QUERIES * FRAMES)) == {"embeddings"}


def test_mask_features_must_agree_everywhere() -> None:
    assert failing_roles(lambda outputs: outputs["mask_features"].__setitem__((2, 3, 1, 1), 9.0)) == {"mask_features"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_value_that_is_no_number_fails(role: str, value: float) -> None:
    # Frame 0 is where the fake masks engine looks if no embeddings match.
    assert role in failing_roles(lambda outputs: outputs[role].reshape(-1).__setitem__(0, value))


def test_another_shape_fails() -> None:
    def cut(outputs: dict[str, Array]) -> None:
        outputs["embeddings"] = outputs["embeddings"][:, :, :-1]

    assert failing_roles(cut) == {"embeddings"}


def test_errors_are_relative_to_the_largest_value_but_never_to_less_than_one() -> None:
    assert scale_of(np.array([-100.0, 1.0])) == 100
    assert scale_of(np.array([0.1, 0.0])) == 1
