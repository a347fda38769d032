"""Bundles of one size become one of several, which computes the same and stores what they share once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import write, write_bundle
from onnx import numpy_helper
from onnxruntime import InferenceSession

from visrt.export.joining import join_sizes
from visrt.runtime.bundles.bundle import MANIFEST, Bundle, open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import UsageError

SIZES = ((64, 96), (96, 64))
Edit = Callable[[onnx.ModelProto, tuple[int, int]], None]


def as_it_is(_: onnx.ModelProto, __: tuple[int, int]) -> None:
    pass


def opened(folder: Path, edit: Edit = as_it_is, **manifest: Any) -> list[Bundle]:
    """The fake network at both sizes, its frame graph changed by `edit`, with `manifest` in place in the second."""
    bundles = []
    for size in SIZES:
        path = write_bundle(folder / "{}x{}".format(*size), size=size)
        bundle = open_bundle(path)
        model = onnx.load_from_string(bundle.graph("frame"))
        edit(model, size)
        graphs = dict(bundle.manifest.graphs)
        file = write(path / "frame.onnx", model.SerializeToString())
        graphs["frame"] = graphs["frame"].model_copy(update={"file": file})
        changed = {"graphs": graphs, **(manifest if size == SIZES[1] else {})}
        rewrite(path, bundle.manifest.model_copy(update=changed))
        bundles.append(open_bundle(path))
    return bundles


def rewrite(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))


def joined(folder: Path, bundles: list[Bundle]) -> Bundle:
    folder.mkdir()
    join_sizes(folder, bundles)
    return open_bundle(folder)


def outputs(model: bytes, size: tuple[int, int]) -> list[Any]:
    images = np.random.default_rng(0).integers(0, 255, (1, *size, 3)).astype(np.uint8)
    feeds = {"images": images, "valid_sizes": np.array([size], np.int32)}
    return list(InferenceSession(model).run(None, feeds))


def weights_of(bundle: Bundle) -> dict[str, Any]:
    spec = bundle.manifest.graphs["frame"].weights
    assert spec is not None
    model = onnx.load_from_string(bundle.read(spec))
    assert not model.graph.node
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for weight in model.graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def assert_computes_the_same(bundle: Bundle, bundles: list[Bundle]) -> None:
    for view, one, size in zip(bundle.sizes, bundles, SIZES, strict=True):
        assert (view.manifest.input.height, view.manifest.input.width) == size
        onnx.checker.check_model(view.graph("frame"), full_check=True)
        for given, expected in zip(outputs(view.graph("frame"), size), outputs(one.graph("frame"), size), strict=True):
            np.testing.assert_array_equal(given, expected)


def test_each_size_computes_what_it_did_and_weights_are_stored_once(tmp_path: Path) -> None:
    bundles = opened(tmp_path)
    bundle = joined(tmp_path / "joined", bundles)

    assert_computes_the_same(bundle, bundles)
    assert list(weights_of(bundle)) == ["red"]
    names = {path.name for path in bundle.folder.iterdir()}
    assert {"frame-64x96.onnx", "frame-96x64.onnx", "frame.weights", "masks-96x64.onnx", "reference.npz"} < names
    for view in bundle.sizes:
        rest = onnx.load_from_string(bundle.read(view.manifest.graphs["frame"].file))
        assert "red" not in {one.name for one in rest.graph.initializer}


def test_weights_of_another_name_are_found_by_their_values(tmp_path: Path) -> None:
    """Also where a name means something else at another size."""

    def other_names(model: onnx.ModelProto, size: tuple[int, int]) -> None:
        renamed(model, {"red": "val_1", "planes": "val_2"} if size == SIZES[0] else {"red": "val_2", "planes": "val_1"})

    bundles = opened(tmp_path, other_names)
    bundle = joined(tmp_path / "joined", bundles)

    assert_computes_the_same(bundle, bundles)
    assert list(weights_of(bundle)) == ["shared.val_1"]


def test_weights_that_differ_stay_with_their_size(tmp_path: Path) -> None:
    def other_values(model: onnx.ModelProto, size: tuple[int, int]) -> None:
        [red] = [weight for weight in model.graph.initializer if weight.name == "red"]
        red.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(red) * size[0], "red"))

    bundles = opened(tmp_path, other_values)
    bundle = joined(tmp_path / "joined", bundles)

    assert_computes_the_same(bundle, bundles)
    assert bundle.manifest.graphs["frame"].weights is None


def test_tables_that_repeat_along_an_axis_are_stored_without_repetitions(tmp_path: Path) -> None:
    """As position tables do: sines of the row, the same in every column."""

    def with_table(model: onnx.ModelProto, size: tuple[int, int]) -> None:
        rows = np.random.default_rng(0).normal(size=(1, 8, size[0] // 4, 1)).astype(np.float32)
        table = np.ascontiguousarray(np.broadcast_to(rows, (64, 8, size[0] // 4, size[1] // 4)))
        model.graph.initializer.append(numpy_helper.from_array(table, "table"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
        renamed(model, {"mask_features": "plain"})
        model.graph.node.append(onnx.helper.make_node("ReduceMean", ["table", "first"], ["mean"], keepdims=1))
        model.graph.node.append(onnx.helper.make_node("Add", ["plain", "mean"], ["mask_features"]))

    bundles = opened(tmp_path, with_table)
    bundle = joined(tmp_path / "joined", bundles)

    assert_computes_the_same(bundle, bundles)
    assert bundles[0].manifest.graphs["frame"].file.bytes > 700_000
    assert bundle.manifest.graphs["frame"].file.bytes < 5_000


def test_a_size_of_a_joined_bundle_can_be_joined_again(tmp_path: Path) -> None:
    bundles = opened(tmp_path)
    once = joined(tmp_path / "once", bundles)
    again = joined(tmp_path / "again", list(once.sizes))

    assert_computes_the_same(again, bundles)
    assert again.manifest == once.manifest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("cat", "dog", "cow")}, "differ in classes; expected the same network at different sizes"),
        ({"association": {"birth_score": 0.1}}, "differ in association"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        joined(tmp_path / "joined", opened(tmp_path, **changed))


def test_bundles_of_one_size_are_refused(tmp_path: Path) -> None:
    [first, _] = opened(tmp_path)
    with pytest.raises(UsageError, match="bundles of 64x96, 64x96 to join; expected two or more, each of one size"):
        joined(tmp_path / "joined", [first, first])
