"""Claims about recording a network's outputs and associating from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from annotated_sets import set_values, write_set
from fakes import ColourEngine, MasksEngine, fake_manifest

from visrt.benchmarks.accuracy.evaluate import evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import RecordingEngine, ReplayEngine, feeds_key, record_outputs
from visrt.runtime.arrays import Array, HostTensor, Tensor
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import DataError, EngineError, NumericalError
from visrt.runtime.session import Session
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.set_formats import load_annotations

FRAMES = 4


@pytest.fixture
def annotated(tmp_path: Path) -> AnnotatedSet:
    """Two videos of red and green patches that move; a dog and a car, as the colour engine's classes."""
    import cv2

    folder = write_set(tmp_path / "data", set_values(videos=2, frames=FRAMES))
    for v in (1, 2):
        for t in range(FRAMES):
            picture = np.full((48, 64, 3), 120, np.uint8)
            picture[4:20, 2 + 2 * t : 22 + 2 * t] = (30, 30, 230)
            picture[24 + v : 44 + v, 30 + 2 * t : 46 + 2 * t] = (30, 230, 30)
            cv2.imwrite(str(folder / "JPEGImages" / f"video{v}" / f"{t:05d}.png"), picture)
    return load_annotations(folder, ("person", "vehicle", "animal"), {"dog": "person", "car": "vehicle"})


def colour_engine(manifest: Manifest) -> ColourEngine:
    return ColourEngine(manifest.graphs["frame"], np.random.default_rng(0))


def test_a_replay_gives_the_evaluation_of_the_network_itself(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    masks = MasksEngine(manifest.graphs["masks"])
    live = evaluate_session(Session(manifest, {"frame": colour_engine(manifest), "masks": masks}), annotated, fps=10)
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "kept")
    session = Session(manifest, {"frame": ReplayEngine(tmp_path / "kept", manifest), "masks": masks})
    replayed = evaluate_session(session, annotated, fps=10)
    assert live.counts.tp > 0
    assert replayed.counts == live.counts
    assert replayed.precision.ap50 == live.precision.ap50


def test_only_mask_features_are_rounded(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "half")
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "full", "float32")
    for half, full in zip(
        sorted((tmp_path / "half").glob("*.npz")), sorted((tmp_path / "full").glob("*.npz")), strict=True
    ):
        with np.load(half) as rounded, np.load(full) as exact:
            assert rounded["mask_features"].dtype == np.float16
            assert exact["mask_features"].dtype == np.float32
            for role in ("class_logits", "embeddings", "mask_embeddings"):
                assert rounded[role].dtype == np.float32
                assert np.array_equal(rounded[role], exact[role])


def test_what_is_recorded_is_not_asked_again(annotated: AnnotatedSet, tmp_path: Path) -> None:
    engine = colour_engine(manifest := fake_manifest())
    record_outputs(
        manifest, engine, AnnotatedSet(annotated.videos[:1], annotated.classes, annotated.label_of), tmp_path / "kept"
    )
    assert engine.calls == FRAMES
    record_outputs(manifest, engine, annotated, tmp_path / "kept")
    assert engine.calls == 2 * FRAMES


def test_a_frame_that_was_not_recorded_is_an_error(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "kept")
    masks = MasksEngine(manifest.graphs["masks"])
    with (
        Session(manifest, {"frame": ReplayEngine(tmp_path / "kept", manifest), "masks": masks}) as session,
        pytest.raises(EngineError, match="does not hold this frame"),
    ):
        session.step(np.zeros((48, 64, 3), np.uint8))


def test_a_recording_of_another_network_is_refused(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "kept")
    frame = manifest.graphs["frame"]
    file = frame.file.model_copy(update={"sha256": "1" * 64})
    graphs = {**manifest.graphs, "frame": frame.model_copy(update={"file": file})}
    other = manifest.model_copy(update={"graphs": graphs})
    with pytest.raises(DataError, match=r"frame_sha256 is '0+', expected '1+'; record into another folder"):
        ReplayEngine(tmp_path / "kept", other)
    with pytest.raises(DataError, match="record into another folder"):
        record_outputs(other, colour_engine(other), annotated, tmp_path / "kept")
    with pytest.raises(DataError, match="precision is 'float16', expected 'float32'"):
        record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "kept", "float32")


def test_a_folder_that_is_no_recording_or_a_damaged_one_is_told(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    with pytest.raises(DataError, match="record the videos first"):
        ReplayEngine(tmp_path, manifest)
    record_outputs(manifest, colour_engine(manifest), annotated, tmp_path / "kept")
    damaged = min((tmp_path / "kept").glob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{damaged.name}: not a video of a recording"):
        ReplayEngine(tmp_path / "kept", manifest)


def test_features_beyond_half_precision_are_refused_and_not_made_infinite() -> None:
    class Loud:
        provider = "fake"

        def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
            return {"mask_features": HostTensor(np.full((1, 2), 1e6, np.float32))}

        def close(self) -> None: ...

    with pytest.raises(NumericalError, match="beyond float16; record as float32"):
        RecordingEngine(Loud(), "float16")({"images": np.zeros(3, np.uint8)})


def test_the_key_of_a_frame_knows_values_shapes_and_names() -> None:
    images = np.arange(6, dtype=np.uint8)
    feeds = [
        {"images": images},
        {"images": images[::-1]},
        {"images": images.reshape(2, 3)},
        {"pictures": images},
    ]
    assert len({feeds_key(one).tobytes() for one in feeds}) == 4
    assert np.array_equal(feeds_key(feeds[0]), feeds_key({"images": HostTensor(images)}))
