"""A GenVIS checkpoint becomes a bundle of four graphs and its states, and runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from genvis_bundles import LENGTHS, SETTINGS, exported_genvis, wanted_genvis
from networks import HEIGHT, PUBLISHED_KIND, WIDTH, saved
from written_clips import write_clip

from visrt.calibration.calibrate import Calibration, calibrate_bundle
from visrt.calibration.layers import layers_of
from visrt.export.bundle import ExportReport, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.export.genvis import ClipGraph
from visrt.export.reference import reference_from_checkpoint
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.genvis import ClipOutputs, GenVisModule, NextStart
from visrt.runtime.bundles.bundle import initial_states, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.build import build_engine, build_request
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.errors import BundleError, CheckpointError, UsageError
from visrt.runtime.parity.agreement import Floors
from visrt.runtime.parity.check import judge
from visrt.runtime.parity.verify import closing, verify
from visrt.runtime.session import Session


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return exported_genvis(tmp_path_factory)


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


def test_genvis_a_bundle_holds_four_graphs_and_what_the_first_clip_starts_from(report: ExportReport) -> None:
    bundle = open_bundle(report.folder)
    assert set(bundle.manifest.graphs) == {"frame", "memory", "clip", "masks"}
    network = load_checkpoint(report.folder.parent / "model.safetensors", GENVIS).network()
    with torch.no_grad():
        expected = network.first_start()
    for name, values in expected._asdict().items():
        assert np.array_equal(initial_states(bundle)[name], values.numpy())
    assert bundle.manifest.graphs["clip"].inputs["frame_queries"].shape == ("streams", "frames", 10, 32)
    assert bundle.manifest.graphs["memory"].inputs["memory_keys"].shape == (7, "clips", 32)
    assert bundle.manifest.graphs["clip"].macs > 0  # type: ignore[operator]


def test_genvis_parity_covers_every_output_at_every_clip_length(report: ExportReport) -> None:
    rows = {(row.graph, row.role) for row in report.parity.tensors}
    seen = {"class_logits", "embeddings", "mask_embeddings"}
    state = {"base", "key", "memory_key", "memory_value"}
    clip = seen | state | {f"{role}@{length}" for role in seen for length in LENGTHS if length > 1}
    expected = {("frame", "frame_queries"), ("frame", "mask_features"), ("masks", "mask_logits")}
    expected |= {("memory", "instance_queries")}
    assert rows == expected | {("clip", role) for role in clip}
    assert report.parity.passed


@pytest.mark.parametrize("length", [1, 2, 5])
def test_genvis_clips_of_any_length_of_any_number_of_streams_give_what_torch_gives(
    report: ExportReport, length: int
) -> None:
    network = load_checkpoint(report.folder.parent / "model.safetensors", GENVIS).network()
    random, streams = np.random.default_rng(length), 6 - length
    queries = random.standard_normal((streams, length, 10, 32), dtype=np.float32)
    start = random.standard_normal((streams, SETTINGS.instances, 32), dtype=np.float32)
    with torch.no_grad():
        expected = network.clips(torch.from_numpy(queries), torch.from_numpy(start))
    with closing(open_engines(open_bundle(report.folder), "cpu", EngineOptions(1))) as engines:
        given = engines["clip"]({"frame_queries": queries, "instance_queries": start})
    np.testing.assert_allclose(given["class_logits"].numpy(), expected.class_logits, atol=1e-4)
    np.testing.assert_allclose(given["prototypes"].numpy(), expected.prototypes, atol=1e-4)


def test_genvis_a_slot_with_nan_says_so_and_begins_again_and_no_other(report: ExportReport) -> None:
    """What the graph does, one stream of three and one slot of another being spoilt."""
    network = load_checkpoint(report.folder.parent / "model.safetensors", GENVIS).network()
    first = network.first_start()
    clip = ClipGraph(network.vita_module, NextStart(first.base.detach(), first.key.detach()))
    with torch.no_grad():
        queries, start = torch.randn(3, 2, 10, 32), torch.randn(3, SETTINGS.instances, 32)
        sound = clip(queries, start)
        clip.set_submodule("vita", SpoiltVita(network.vita_module))
        given = clip(queries, start)
    bad = torch.zeros(3, SETTINGS.instances, dtype=torch.bool)
    bad[0], bad[2, 4] = True, True
    begun = {"class_logits": torch.nan, "base": first.base, "key": first.key}
    for role, values in given._asdict().items():
        assert torch.equal(values[~bad], getattr(sound, role)[~bad])
        expected = torch.as_tensor(begun.get(role, 0.0)).expand(values.shape)
        assert torch.equal(values[bad].nan_to_num(nan=7), expected[bad].nan_to_num(nan=7))


class SpoiltVita(torch.nn.Module):
    """The video part whose outputs overflow in the first stream, and in slot 4 of the third."""

    def __init__(self, vita: GenVisModule) -> None:
        super().__init__()
        self.vita = vita
        self.next_start, self.memory_entry = vita.next_start, vita.memory_entry

    def forward(self, frame_queries: torch.Tensor, start: torch.Tensor) -> ClipOutputs:
        outputs: ClipOutputs = self.vita(frame_queries, start)
        prototypes, masks = outputs.prototypes.clone(), outputs.mask_embeddings.clone()
        prototypes[0], masks[2, 4, 1] = torch.nan, torch.inf
        return outputs._replace(prototypes=prototypes, mask_embeddings=masks)


def test_genvis_a_session_runs_the_bundle_and_gives_ids_that_stay(report: ExportReport) -> None:
    frames = list(synthetic_frames(4, 90, 120).images)
    with Session.open(report.folder, threads=1) as session:
        results = [result for frame in frames for result in session.step(frame)] + session.flush()
        assert [result.index for result in results] == [0, 1, 2, 3]
        assert results[0].objects
        with pytest.raises(UsageError, match="clip_frames is 2, but the bundle was exported for clips of 1, 3"):
            Session.open(report.folder, threads=1, association={"clip_frames": 2})
    with Session.open(report.folder, threads=1, association={"clip_frames": 1}) as online:
        assert [len(online.step(frame)) for frame in frames] == [1] * 4


def test_genvis_verify_judges_the_bundle_and_a_checkpoint_run_anew_agrees(report: ExportReport) -> None:
    assert verify(report.folder, threads=1).passed
    frames = synthetic_frames(1, HEIGHT, WIDTH, seed=5)
    anew = reference_from_checkpoint(
        report.folder.parent / "model.safetensors", report.manifest, frames.images, frames.valid_sizes
    )
    assert anew.expected["frame_queries"].shape == (1, 10, 32)
    with closing(open_engines(open_bundle(report.folder), "cpu", EngineOptions(1))) as engines:
        from visrt.runtime.parity.check import full_outputs_of

        assert judge(engines, anew, batches=(1,), outputs=full_outputs_of(open_bundle(report.folder))).passed


def test_genvis_a_state_file_that_was_altered_is_refused(report: ExportReport, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(report.folder, folder)
    path = folder / "base.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match=r"base\.npy: sha256 differs"):
        open_bundle(folder)


def test_genvis_int8_quantises_the_frame_graph_and_leaves_the_clip_graph_as_it_is(
    report: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers alone, as the ranking runs the network once a layer."""
    monkeypatch.setattr("visrt.calibration.measured.layers_of", lambda *given: layers_of(*given)[:2])
    pictures = synthetic_frames(8, HEIGHT, WIDTH, seed=3).images
    write_clip(tmp_path / "clip.mp4", frames=8, picture=lambda t: pictures[t])
    floors = Floors(iou_mean=0.5, top_class=0.5, assignment=0.0)
    found = calibrate_bundle(
        Calibration(report.folder, tmp_path / "int8", (str(tmp_path / "clip.mp4"),), frames=4, floors=floors)
    )
    assert found.quantised
    graphs = open_bundle(tmp_path / "int8").manifest.graphs
    assert graphs["frame"].precision == "int8"
    assert graphs["clip"] == report.manifest.graphs["clip"]
    with Session.open(tmp_path / "int8", threads=1, association={"clip_frames": 1}) as session:
        assert session.step(pictures[0])[0].objects


def test_genvis_checkpoints_go_to_their_own_family_only(report: ExportReport, tmp_path: Path) -> None:
    wanted = wanted_genvis(tmp_path)
    minvis = replace(wanted, family="minvis", association={})
    with pytest.raises(CheckpointError, match="this is a GenVIS checkpoint"):
        export_bundle(minvis)
    plain = saved(PUBLISHED_KIND, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="expected a GenVIS network"):
        export_bundle(replace(wanted, checkpoint=plain))


def test_rtx_genvis_compiles_all_graphs_in_fp16_without_a_warning(
    rtx: TensorRt, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The frame graph for batches, the clip graph for clips of one to three frames of up to four streams."""
    half = exported_genvis(tmp_path_factory, "fp16")
    assert half.parity.passed
    bundle = open_bundle(half.folder)
    profiles = {
        "frame": {"batch": (1, 3, 3)},
        "memory": {"clips": (1, 16, 256)},
        "clip": {"streams": (1, 4, 4), "frames": (1, 3, 3)},
        "masks": {"streams": (1, 4, 4), "masks": (1, 7, 7)},
    }
    for name, profile in profiles.items():
        built = build_engine(rtx, build_request(bundle, name, profile, ("8.6", "8.9", "12.0")))
        assert len(built.data) > 10_000
        assert not built.warnings
        kinds = {kind.split()[-1] for kind in built.precision if not kind.startswith("tensor ")}
        assert ("fp16" in kinds) == (name != "memory")
