"""A bundle that is not what was exported is refused before a native loader sees it, and the message says why."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from visrt.runtime.bundles import bundle
from visrt.runtime.bundles.bundle import MANIFEST, open_bundle
from visrt.runtime.bundles.onnx_file import check_onnx
from visrt.runtime.errors import BundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest on disk."""
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Other bytes in the place of graph `name`, with size and hash that fit: only its content can give it away."""
    path = folder / f"{name}.onnx"
    path.write_bytes(data)
    spec = {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda values: values["graphs"][name].update(file=spec))


def test_a_sound_bundle_opens_and_gives_its_checked_bytes(folder: Path) -> None:
    bundle = open_bundle(folder)

    assert bundle.graph("frame") == (folder / "frame.onnx").read_bytes()


def test_a_bundle_of_schema_1_opens_and_its_tensors_have_the_places_that_their_shapes_suggest(folder: Path) -> None:
    def older(values: dict[str, Any]) -> None:
        values["schema"] = 1
        for graph in values["graphs"].values():
            for tensor in [*graph["inputs"].values(), *graph["outputs"].values()]:
                tensor.pop("place", None)

    edit(folder, older)
    manifest = open_bundle(folder).manifest

    assert manifest.schema_version == 1
    assert manifest.device_roles("frame") == manifest.device_roles("masks") == {"mask_features"}


def test_a_graph_and_the_weights_it_shares_are_one_whole_model(folder: Path) -> None:
    whole = onnx.load(folder / "frame.onnx")
    weights = onnx.ModelProto()
    weights.graph.initializer.extend(whole.graph.initializer)
    del whole.graph.initializer[:]
    replace_file(folder, "frame", whole.SerializeToString())
    edit(folder, lambda values: values["graphs"]["frame"].update(weights=file_of(folder, weights.SerializeToString())))

    session = InferenceSession(open_bundle(folder).graph("frame"))

    assert [one.name for one in session.get_inputs()] == ["images", "valid_sizes"]
    (folder / "weights").write_bytes(b"other weights")
    with pytest.raises(BundleError, match="weights: 13 bytes, the manifest says"):
        open_bundle(folder)


def test_the_graphs_at_every_size_are_checked(folder: Path) -> None:
    data = (folder / "frame.onnx").read_bytes()

    def with_a_second_size(values: dict[str, Any]) -> None:
        own = {key: values[key] for key in ("graphs", "reference")}
        frame = {**own["graphs"]["frame"], "file": file_of(folder, data, "frame-96x64")}
        values["other_sizes"] = [
            {**own, "graphs": {**own["graphs"], "frame": frame}, "input": {"height": 96, "width": 64}}
        ]

    edit(folder, with_a_second_size)
    first, second = open_bundle(folder).sizes

    assert (first.manifest.input.height, second.manifest.input.height) == (64, 96)
    assert first.manifest.classes == second.manifest.classes
    assert second.manifest.other_sizes == ()
    assert second.graph("frame") == data
    (folder / "frame-96x64").unlink()
    with pytest.raises(BundleError, match="frame-96x64: missing from the bundle"):
        open_bundle(folder)


def file_of(folder: Path, data: bytes, name: str = "weights") -> dict[str, Any]:
    """The manifest's entry of a new file."""
    (folder / name).write_bytes(data)
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [MANIFEST, "frame.onnx", "masks.onnx", "reference.npz"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(BundleError, match=f"{name}: missing"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["frame.onnx", "masks.onnx", "reference.npz"])
def test_one_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)

    with pytest.raises(BundleError, match=f"{name}: sha256 differs"):
        open_bundle(folder)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"])
def test_another_size_is_found(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "masks.onnx"
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(BundleError, match=r"masks.onnx: .* the manifest says"):
        open_bundle(folder)


def test_a_file_altered_after_the_check_is_found_when_it_is_read(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "masks.onnx").write_bytes(bytes((folder / "masks.onnx").stat().st_size))

    with pytest.raises(BundleError, match="sha256 differs"):
        bundle.graph("masks")


def test_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "masks.onnx").rename(tmp_path / "masks.onnx")
    (folder / "masks.onnx").symlink_to(tmp_path / "masks.onnx")

    with pytest.raises(BundleError, match=r"masks.onnx: a symbolic link"):
        open_bundle(folder)


def test_a_hard_link_is_refused(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "masks.onnx", tmp_path / "elsewhere.onnx")

    with pytest.raises(BundleError, match=r"masks.onnx: a hard link"):
        open_bundle(folder)


def test_a_bundle_that_comes_with_visrt_is_found_by_name_however_it_was_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installers share the files of packages with their cache by hard links."""
    monkeypatch.setattr(bundle, "SHIPPED", folder.parent)
    os.link(folder / "masks.onnx", tmp_path / "in_the_cache.onnx")
    assert open_bundle("bundle").folder == folder
    with pytest.raises(BundleError, match=r"bundl: no such folder; .* a name of those that come with visrt: bundle"):
        open_bundle("bundl")
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path / "nowhere")
    with pytest.raises(BundleError, match="none comes with this visrt"):
        open_bundle("bundle")


@pytest.mark.parametrize("name", ["../frame.onnx", "/etc/passwd", "a/b.onnx", "..", "", "C:frame.onnx", "a\\b.onnx"])
def test_a_path_in_the_manifest_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda values: values["graphs"]["frame"]["file"].update(file=name))

    with pytest.raises(BundleError, match=r"graphs.frame.file.file is .*plain name"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(schema=99), "schema 99, this visrt reads up to 4; install a newer visrt"),
        (lambda m: m.update(schema=99, novelty=1), "install a newer visrt"),
        (lambda m: m.update(novelty=1), "novelty: unknown key"),
        (lambda m: m["graphs"]["frame"].update(novelty=1), "graphs.frame.novelty: unknown key"),
        (lambda m: m.pop("classes"), "classes: missing"),
        (lambda m: m.update(classes=[]), "classes is "),
        (lambda m: m.update(classes=["a", "a"]), "without repetition"),
        (lambda m: m["input"].update(width=333), "input.width is 333"),
        (lambda m: m["input"].update(colour_order="BGR"), "input.colour_order is 'BGR'"),
        (lambda m: m["graphs"]["masks"]["file"].update(sha256="0"), "graphs.masks.file.sha256 is '0'"),
    ],
)
def test_a_faulty_manifest_is_told_by_its_json_path(
    folder: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(folder, change)

    with pytest.raises(BundleError, match=told):
        open_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_told(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)

    with pytest.raises(BundleError, match=r"manifest.json: (not json|holds a list)"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        (b"\n <!doctype html><title>404</title>", "a web page"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"hello, world", "not an ONNX file"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX file"),
        (b"\x08\x09", "not an ONNX file"),
    ],
)
def test_what_is_no_onnx_is_called_by_its_name(folder: Path, data: bytes, told: str) -> None:
    replace_file(folder, "masks", data)

    with pytest.raises(BundleError, match=f"masks.onnx: .*{told}"):
        open_bundle(folder)


def test_a_truncated_onnx_is_told(folder: Path) -> None:
    replace_file(folder, "masks", (folder / "masks.onnx").read_bytes()[:-7])

    with pytest.raises(BundleError, match="not an ONNX file, or cut short"):
        open_bundle(folder)


def external(location: str) -> TensorProto:
    """A tensor whose numbers lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def as_initializer(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "g", [], [], initializer=[tensor])


def as_constant(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "g", [], [])


def in_a_branch(tensor: TensorProto) -> onnx.GraphProto:
    branch = as_initializer(tensor)
    return helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], "g", [], []
    )


@pytest.mark.parametrize("place", [as_initializer, as_constant, in_a_branch])
@pytest.mark.parametrize("location", ["../secrets", "/etc/passwd", "weights.bin"])
def test_weights_in_another_file_are_refused_wherever_the_graph_hides_them(
    place: Callable[[TensorProto], onnx.GraphProto], location: str
) -> None:
    model = helper.make_model(place(external(location)))

    with pytest.raises(BundleError, match="keeps weights in another file"):
        check_onnx(model.SerializeToString(), "model.onnx")


def test_weights_inside_are_accepted() -> None:
    inside = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    for place in (as_initializer, as_constant, in_a_branch):
        check_onnx(helper.make_model(place(inside)).SerializeToString(), "model.onnx")
