"""Claims about recording a network's outputs and tracking from them: nothing but mask features is another than live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fakes_genvis
import fakes_inspro
import numpy as np
import pytest
from annotated_sets import set_values, write_set
from fakes import ColourEngine, MasksEngine, fake_manifest, graph_spec, patches
from fakes_genvis import BASE, ClipEngine, FrameEngine, genvis_manifest
from fakes_inspro import inspro_manifest

from visrt.benchmarks.accuracy.evaluate import evaluate_session
from visrt.benchmarks.accuracy.recorded_outputs import recorded, recorded_sizes
from visrt.runtime.arrays import Array, Feed, HostTensor, Tensor, Tensors
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.backends import SizedEngines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.errors import DataError
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


def colour_engines(manifest: Manifest) -> dict[str, Engine]:
    frame = ColourEngine(manifest.graphs["frame"], np.random.default_rng(0))
    return {"frame": frame, "masks": MasksEngine(manifest.graphs["masks"])}


def test_a_recording_gives_the_evaluation_of_the_network_itself(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    live = evaluate_session(Session(manifest, colour_engines(manifest)), annotated, fps=10)
    engines = colour_engines(manifest)
    network = engines["frame"]
    assert isinstance(network, ColourEngine)
    for _ in ("records", "replays"):
        session = Session(manifest, recorded(manifest, engines, tmp_path / "kept"))
        found = evaluate_session(session, annotated, fps=10)
        assert live.counts.tp > 0
        assert found.counts == live.counts
        assert found.precision.ap50 == live.precision.ap50
        assert network.calls == 2 * FRAMES


class Counted(HostEngine):
    """Counts the calls of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.provider, self.calls = engine, engine.provider, 0

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self.calls += 1
        return self.engine(feeds)

    def close(self) -> None:
        self.engine.close()


class Network:
    """A family's manifest, initial states, and counted engines."""

    def __init__(self, manifest: Manifest, states: Tensors, engines: Mapping[str, Any]) -> None:
        self.manifest, self.states = manifest, states
        self.engines = {name: Counted(engines[name](graph)) for name, graph in manifest.graphs.items()}

    def results(self, engines: Mapping[str, Engine], **thresholds: Any) -> list[list[tuple[int, int, float]]]:
        """Id, label and score of the objects of each frame."""
        session = Session(self.manifest, engines, association=thresholds, states=self.states)
        results = [result for t, frame in enumerate(seen()) for result in session.step(frame, t / 10)]
        return [[(one.id, one.label, one.score) for one in result.objects] for result in results + session.flush()]

    def calls(self) -> dict[str, int]:
        return {name: engine.calls for name, engine in self.engines.items() if name not in ("masks", "memory")}


def seen() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Twelve frames: red is away for six of them, green comes when red is away."""
    for t in range(12):
        red = [] if 3 <= t < 9 else [(0, 8 + 4 * t, 16, 32, 24)]
        green = [(1, 100 - 4 * t, 72, 40, 40)] if t > 5 else []
        yield patches((128, 192), *red, *green)


def genvis(**association: Any) -> Network:
    engines = {
        "frame": FrameEngine,
        "memory": fakes_genvis.MemoryEngine,
        "clip": ClipEngine,
        "masks": fakes_genvis.MasksEngine,
    }
    return Network(genvis_manifest(association=association), {"base": BASE}, engines)


def inspro(family: str = "inspro", **association: Any) -> Network:
    head = fakes_inspro.HeadEngine
    engines = {"frame": fakes_inspro.FrameEngine, "head": head, "head_lite": head, "masks": fakes_inspro.MasksEngine}
    return Network(inspro_manifest(association=association, family=family), fakes_inspro.STATES, engines)


THRESHOLDS: list[dict[str, Any]] = [
    {"birth_score": 0.5, "keep_score": 0.4, "lost_s": None},
    {"birth_score": 1.0, "keep_score": 0.4, "lost_s": None},
    {"birth_score": 0.5, "keep_score": 0.4, "lost_s": 0.2},
    {"birth_score": 0.0, "keep_score": 0.0, "lost_s": 0.2},
]


@pytest.mark.parametrize(
    "make",
    [
        genvis,
        lambda: genvis(clip_frames=3, clip_lengths=(1, 3)),
        lambda: genvis(linking="matched"),
        inspro,
        lambda: inspro("inspro_lite", key_every_frames=3),
        lambda: inspro("inspro_lite", key_every_frames=3, bank_takes="all"),
    ],
    ids=["genvis", "genvis-clips", "genvis-matched", "inspro", "inspro-lite", "inspro-lite-bank"],
)
def test_thresholds_do_not_change_what_the_network_sees_so_one_run_serves_all(make: Any, tmp_path: Path) -> None:
    live, kept = make(), make()
    engines = recorded(kept.manifest, kept.engines, tmp_path / "kept")
    expected = [live.results(live.engines, **thresholds) for thresholds in THRESHOLDS]
    assert kept.results(engines, **THRESHOLDS[0]) == expected[0]
    calls = kept.calls()
    assert [kept.results(engines, **thresholds) for thresholds in THRESHOLDS] == expected
    assert kept.calls() == calls
    plain, none, more = (len({one[0] for frame in found for one in frame}) for found in expected[:3])
    assert 0 == none < plain <= more, "the thresholds matter: no birth, and new ids where an object was lost"


def test_where_thresholds_change_what_the_network_sees_it_runs_on_that_and_gives_the_same_ids(tmp_path: Path) -> None:
    """A drop of the scores that are shown makes the next frame a key frame, and what is shown is a matter of them."""
    settings = {"key_every_frames": 5, "key_score_drop": 0.9}
    live, kept = inspro("inspro_lite", **settings), inspro("inspro_lite", **settings)
    engines = recorded(kept.manifest, kept.engines, tmp_path / "kept")
    runs, results = [], []
    for thresholds in (*THRESHOLDS, *THRESHOLDS):
        results.append(kept.results(engines, **thresholds))
        runs.append(kept.calls()["head"])
    assert results == [live.results(live.engines, **thresholds) for thresholds in (*THRESHOLDS, *THRESHOLDS)]
    assert runs[0] < runs[len(THRESHOLDS) - 1], "a threshold asked for other key frames"
    assert runs[len(THRESHOLDS) - 1] == runs[-1], "and is answered from what was kept later"


def test_what_only_heads_take_from_the_device_is_not_kept(tmp_path: Path) -> None:
    network = inspro()
    network.results(recorded(network.manifest, network.engines, tmp_path / "kept"))
    frames = list((tmp_path / "kept").glob("frame-*.npz"))
    assert len(frames) == 10, "three of the twelve frames are the same grey"
    for path in frames:
        with np.load(path) as arrays:
            assert set(arrays) == {"mask_features"}


def test_only_mask_features_are_rounded(annotated: AnnotatedSet, tmp_path: Path) -> None:
    manifest = fake_manifest()
    session = Session(manifest, recorded(manifest, colour_engines(manifest), tmp_path / "kept"))
    evaluate_session(session, annotated, fps=10)
    for path in (tmp_path / "kept").glob("*.npz"):
        with np.load(path) as arrays:
            assert {role: str(arrays[role].dtype) for role in arrays} == {
                "class_logits": "float32",
                "embeddings": "float32",
                "mask_embeddings": "float32",
                "mask_features": "float16",
            }


class Says(HostEngine):
    """Gives the images, as float32, as every output."""

    provider = "fake"

    def __init__(self, *roles: str, times: float = 1.0) -> None:
        self.roles, self.times, self.calls = roles, times, 0

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self.calls += 1
        images = feeds["images"]
        assert isinstance(images, np.ndarray)
        return {role: HostTensor(images.astype(np.float32) * np.float32(self.times)) for role in self.roles}

    def close(self) -> None: ...


def small(sha256: str = "0" * 64) -> Manifest:
    """A frame graph that gives mask features [2] and a score [2]."""
    two = ("float32", ("batch", 2))
    frame = graph_spec({"images": ("uint8", ("batch", 2))}, {"mask_features": two, "score": two})
    frame = frame.model_copy(update={"file": frame.file.model_copy(update={"sha256": sha256})})
    masks = graph_spec({"mask_features": ("float32", (2,))}, {"mask_logits": ("float32", (2,))})
    return fake_manifest().model_copy(update={"graphs": {"frame": frame, "masks": masks}})


IMAGES = np.array([[3, 200]], np.uint8)


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_first_call_gives_what_later_ones_give(on_disk: bool, tmp_path: Path) -> None:
    engine = Says("mask_features", "score", times=1 / 3)
    frame = recorded(small(), {"frame": engine}, tmp_path if on_disk else None)["frame"]
    first, again = frame({"images": IMAGES}), frame({"images": IMAGES.copy()})
    assert engine.calls == 1
    for role in ("mask_features", "score"):
        assert first[role].numpy().dtype == np.float32
        assert np.array_equal(first[role].numpy(), again[role].numpy())
    assert np.array_equal(first["score"].numpy(), IMAGES.astype(np.float32) * np.float32(1 / 3))


def test_features_beyond_half_precision_are_not_rounded(tmp_path: Path) -> None:
    frame = recorded(small(), {"frame": Says("mask_features", "score", times=1e4)}, tmp_path)["frame"]
    for _ in ("records", "replays"):
        assert frame({"images": IMAGES})["mask_features"].numpy().tolist() == [[3e4, 2e6]]


def test_a_folder_may_hold_several_networks_and_each_gives_its_own(tmp_path: Path) -> None:
    one = recorded(small("1" * 64), {"frame": Says("mask_features", "score")}, tmp_path)["frame"]
    other = recorded(small("2" * 64), {"frame": Says("mask_features", "score", times=2)}, tmp_path)["frame"]
    for _ in ("records", "replays"):
        assert one({"images": IMAGES})["score"].numpy().tolist() == [[3, 200]]
        assert other({"images": IMAGES})["score"].numpy().tolist() == [[6, 400]]


def test_a_call_is_known_by_values_shapes_types_and_names(tmp_path: Path) -> None:
    engine = Says("mask_features", "score")
    frame = recorded(small(), {"frame": engine}, tmp_path)["frame"]
    same = np.arange(6, dtype=np.uint8)
    images = [same, same[::-1], same.reshape(2, 3), same.view(np.int8)]
    calls: list[dict[str, Array | Tensor]] = [{"images": one} for one in images]
    again: list[dict[str, Array | Tensor]] = [
        {"images": same, "also": same},
        {"images": same, "also": HostTensor(same)},
    ]
    for feeds in [*calls, *again, *calls]:
        frame(feeds)
    assert engine.calls == 5


def test_engines_of_a_size_that_are_opened_late_are_opened_once_for_all_sessions(tmp_path: Path) -> None:
    opened: list[Says] = []

    def late() -> dict[str, Engine]:
        opened.append(Says("mask_features", "score"))
        return {"frame": opened[-1]}

    now, later = recorded_sizes(
        [SizedEngines(small("1" * 64), {"frame": Says("mask_features", "score")}), SizedEngines(small("2" * 64), late)],
        tmp_path,
    )
    assert isinstance(now.engines, Mapping)
    assert not opened
    for _ in ("a session", "another"):
        assert callable(later.engines)
        later.engines()["frame"]({"images": IMAGES})
    assert [engine.calls for engine in opened] == [1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    frame = recorded(small(), {"frame": Says("mask_features", "score")}, tmp_path)["frame"]
    frame({"images": IMAGES})
    [path] = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{path.name}: not a call of a recording .*; delete it"):
        frame({"images": IMAGES})
