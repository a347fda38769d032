"""Families whose networks carry state, added from outside: export, verify, sessions, pipelines and TensorRT take
them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_sources import FakeSource
from fake_tensorrt import install_tensorrt
from numpy.typing import NDArray
from stateful_families import KIND, KINDS, NetworkSettings, QueryNetwork, register
from streams_together import assert_together_as_alone

from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from visrt.runtime.arrays import Feed, HostTensor, Tensor
from visrt.runtime.bundles.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.engines.backends import SizedEngines, open_engines
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import BundleError, EngineError, UsageError
from visrt.runtime.image import letterbox, network_input, pillow_bilinear
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.verify import verify
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionEvents, SessionSettings
from visrt.runtime.sources.source import Image

SIZE = (64, 96)
CLASSES = ("person", "vehicle", "animal")
Frame = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("stateful") / "model.safetensors"
    save_checkpoint(QueryNetwork(NetworkSettings()).eval(), path, CLASSES)
    return path


_EXPORTED: dict[str, Path] = {}


@pytest.fixture(params=list(KINDS))
def bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, registered: None
) -> Bundle:
    family = request.param
    if family not in _EXPORTED:
        out = tmp_path_factory.mktemp("bundles") / family
        _EXPORTED[family] = export_bundle(Export(checkpoint, out, *SIZE, family=family)).folder
    return open_bundle(_EXPORTED[family])


def noise(seed: int, size: tuple[int, int] = (80, 120)) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


FRAMES = [noise(t) for t in range(6)]


def run(session: Session, frames: list[Frame]) -> list[FrameResult]:
    return [result for frame in frames for result in session.step(frame)] + session.flush()


def scores_in_torch(checkpoint: Path, frames: list[Frame]) -> list[list[float]]:
    """The best class score of each slot, frame by frame, from the recurrence in torch."""
    network, settings = load_checkpoint(checkpoint, KIND).network(), NetworkSettings()
    queries, scores = network.first_queries[None], []
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.pixel_mean, settings.pixel_std))
    for frame in frames:
        fit, image = letterbox((frame.shape[0], frame.shape[1]), SIZE), np.empty((*SIZE, 3), np.uint8)
        network_input(frame, fit, pillow_bilinear, image)
        pixels = (torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std
        pixels[:, fit.valid[0] :], pixels[:, :, fit.valid[1] :] = 0, 0
        with torch.no_grad():
            outputs = network.decode(network.encode(pixels[None]), queries)
        queries = outputs.next_queries
        scores.append(torch.softmax(outputs.class_logits[0], dim=1)[:, :-1].amax(dim=1).tolist())
    return scores


def by_slot(results: list[FrameResult]) -> list[dict[int, float]]:
    return [{one.id: one.score for one in result.objects} for result in results]


def test_the_manifest_says_what_stays_on_the_device_and_what_is_the_next_calls_input(bundle: Bundle) -> None:
    manifest = bundle.manifest
    owner = "frame" if manifest.family == "fused" else "decoder"
    assert {name: list(manifest.read_by(name)) for name in manifest.graphs if manifest.read_by(name)} == {
        owner: ["queries"]
    }
    assert manifest.states["queries"].device == "engine"
    assert manifest.graphs[owner].outputs["mask_features"].place == "device"
    assert manifest.graphs[owner].outputs["class_logits"].place == "host"
    if owner == "decoder":
        assert manifest.graphs["frame"].outputs["tokens"].place == "device"


def test_verify_passes_at_every_batch(bundle: Bundle) -> None:
    report = verify(bundle.folder)
    assert report.passed, report.faults()
    assert {row.role for row in report.tensors} >= {"class_logits", "next_queries", "mask_features", "mask_logits"}


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_each_frame_starts_from_the_queries_of_the_frame_before(
    bundle: Bundle, checkpoint: Path, in_flight: int
) -> None:
    expected = scores_in_torch(checkpoint, FRAMES)
    with Session.open(bundle, threads=1, settings=SessionSettings(in_flight=in_flight)) as session:
        results = run(session, FRAMES)
    order = np.argsort([-score for score in expected[0]], kind="stable")  # ids are given in order of score
    assert len(results) == len(FRAMES)
    for shown, scores in zip(by_slot(results), expected, strict=True):
        for number, score in shown.items():
            assert score == pytest.approx(scores[order[number]], abs=1e-5)
    assert sum(map(len, by_slot(results))) > len(FRAMES)
    alone = by_slot([result for frame in FRAMES for result in fresh(bundle, frame)])
    assert by_slot(results)[1:] != alone[1:], "the state makes no difference"


def fresh(bundle: Bundle, frame: Frame) -> list[FrameResult]:
    with Session.open(bundle, threads=1) as session:
        return session.step(frame)


def test_batches_resets_and_repeated_streams_give_the_same(bundle: Bundle) -> None:
    with Session.open(bundle, threads=1, batch=3) as session:
        one_by_one = run(session, FRAMES)
        session.reset()
        assert session.step_batch(FRAMES[:3]) + session.step_batch(FRAMES[3:]) == one_by_one
        session.reset()
        assert run(session, FRAMES) == one_by_one


def test_another_aspect_starts_from_the_initial_state(bundle: Bundle) -> None:
    tall = [noise(t, (120, 60)) for t in range(3)]
    for in_flight in (1, 3):
        with Session.open(bundle, threads=1, settings=SessionSettings(in_flight=in_flight)) as session:
            changed = run(session, FRAMES[:2] + tall)[2:]
            assert session.events == SessionEvents(frames=5, size_changes=1, restarts=1)
            session.reset()
            expected = run(session, tall)
        assert [[o.score for o in r.objects] for r in changed] == [[o.score for o in r.objects] for r in expected]
        assert min(one.id for one in changed[0].objects) > 0


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_camera_that_is_turned_goes_on_at_the_other_size_of_the_bundle(
    bundle: Bundle, checkpoint: Path, tmp_path: Path, in_flight: int
) -> None:
    """As each size alone; the second starts from the learned queries, and its ids go on."""
    export = Export(checkpoint, tmp_path / "tall", *SIZE[::-1], family=bundle.manifest.family)
    upright = open_bundle(export_bundle(export).folder)
    tall = [noise(t, (120, 80)) for t in range(4)]
    parts = []
    for one, frames in ((bundle, FRAMES[:3]), (upright, tall), (bundle, FRAMES[3:])):
        with Session.open(one, threads=1) as session:
            parts.append(run(session, frames))
    wide_engines, tall_engines = (open_engines(one, options=EngineOptions(threads=1)) for one in (bundle, upright))
    other = SizedEngines(upright.manifest, tall_engines, initial_states(upright))
    settings = SessionSettings(in_flight=in_flight)
    states = initial_states(bundle)
    with Session(bundle.manifest, wide_engines, settings, states=states, other_sizes=[other]) as session:
        turned = run(session, FRAMES[:3] + tall + FRAMES[3:])

    assert session.events == SessionEvents(frames=10, size_changes=2, restarts=2)
    next_id = 0
    for part in parts:
        expected = [[replace(one, id=one.id + next_id) for one in result.objects] for result in part]
        assert [[*result.objects] for result in turned[: len(part)]] == expected
        next_id, turned = 1 + max(one.id for objects in expected for one in objects), turned[len(part) :]


@dataclass
class Poisoned(HostEngine):
    """Gives NaN for one output at call number `at`, and at `more` after it."""

    engine: Engine
    role: str
    at: int
    more: int = 0
    calls: int = 0
    provider: str = "fake"

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        outputs = self.engine(feeds)
        self.calls += 1
        if self.at < self.calls <= self.at + 1 + self.more:
            outputs = {role: HostTensor(tensor.numpy() * np.nan) for role, tensor in outputs.items()}
        return outputs

    def close(self) -> None:
        self.engine.close()


def test_nan_costs_its_frame_and_leaves_the_state(bundle: Bundle) -> None:
    owner = "frame" if bundle.manifest.family == "fused" else "decoder"
    engines = open_engines(bundle)
    engines[owner] = Poisoned(engines[owner], "next_queries", at=2)
    with Session(bundle.manifest, engines, states=initial_states(bundle)) as session:
        results = run(session, FRAMES)
        assert session.events == SessionEvents(frames=6, bad_frames=1)
    with Session.open(bundle, threads=1) as session:
        expected = run(session, FRAMES[:2] + FRAMES[3:])
    assert results[2].objects == ()
    assert [result.objects for at, result in enumerate(results) if at != 2] == [result.objects for result in expected]


class Stream(FakeSource):
    """A file of noise that begins at another seed for each stream."""

    def __init__(self, first: int) -> None:
        super().__init__(len(FRAMES))
        self._first = first

    def __iter__(self):  # type: ignore[no-untyped-def]
        for frame in super().__iter__():
            yield replace(frame, image=noise(self._first + frame.index))


class Kept:
    def __init__(self) -> None:
        self.results: list[FrameResult] = []

    def write(self, result: FrameResult, image: Image) -> None:
        self.results.append(result)

    def close(self) -> None: ...


@pytest.mark.parametrize("settings", [PipelineSettings(streams=3), PipelineSettings(streams=3, batch=3, calls=1)])
def test_streams_in_one_pipeline_are_as_each_alone(bundle: Bundle, settings: PipelineSettings) -> None:
    sinks = [Kept() for _ in range(3)]
    with Pipeline.open(bundle, threads=1, settings=settings) as pipeline:
        pipeline.track([Job(Stream(100 * i), [sink]) for i, sink in enumerate(sinks)])
    for i, sink in enumerate(sinks):
        with Session.open(bundle, threads=1) as session:
            alone = [r for t in range(len(FRAMES)) for r in session.step(noise(100 * i + t), t / 10)]
        assert sink.results == alone


@pytest.mark.parametrize("in_flight", [1, 2])
def test_the_fake_tensorrt_gives_what_the_cpu_gives(
    bundle: Bundle, in_flight: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu()
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "10.13.3.9")
    with Session.open(bundle, threads=1) as session:
        expected = run(session, FRAMES)
    with Session.open(bundle, "tensorrt", settings=SessionSettings(in_flight=in_flight)) as session:
        results = run(session, FRAMES)
    for one, other in zip(results, expected, strict=True):
        assert [(o.id, o.label) for o in one.objects] == [(o.id, o.label) for o in other.objects]
        assert [o.score for o in one.objects] == pytest.approx([o.score for o in other.objects], abs=1e-4)


def test_a_state_that_no_graph_can_carry_is_refused(bundle: Bundle) -> None:
    state = bundle.manifest.states["queries"].model_copy(update={"output": "class_logits"})
    with pytest.raises(BundleError, match=r"states.queries: .*class_logits is float32"):
        method_of(bundle.manifest.model_copy(update={"states": {"queries": state}}))
    small = bundle.manifest.states["queries"].model_copy(update={"shape": (4, 8)})
    with pytest.raises(BundleError, match=r"states.queries: (is|expected) float32 \[4"):
        method_of(bundle.manifest.model_copy(update={"states": {"queries": small}}))
    nowhere = bundle.manifest.states["queries"].model_copy(update={"input": "images", "output": "mask_logits"})
    with pytest.raises(BundleError, match=r"states.queries: is float32 \[5, 8\], but .*frame.images is uint8"):
        method_of(bundle.manifest.model_copy(update={"states": {"queries": nowhere}}))


def tracked(session: Session, frames: list[Frame], first: int = 0) -> list[FrameResult]:
    return [result for t, frame in enumerate(frames, first) for result in session.step(frame, t / 10)]


def test_a_saved_stream_goes_on_in_another_session_as_if_nothing_had_happened(bundle: Bundle) -> None:
    with Session.open(bundle, threads=1) as session:
        whole = tracked(session, FRAMES)
        session.reset()
        tracked(session, FRAMES[:3])
        saved = pickle.loads(pickle.dumps(session.save()))
        tracked(session, FRAMES[::-1], first=3)
    with Session.open(bundle, threads=1) as other:
        tracked(other, FRAMES[4:])
        for _ in range(2):
            other.restore(saved)
            assert tracked(other, FRAMES[3:], first=3) == whole[3:]
            assert other.events == SessionEvents(frames=len(FRAMES))


def test_a_stream_that_was_saved_before_its_first_frame_is_a_new_one(bundle: Bundle) -> None:
    with Session.open(bundle, threads=1) as session:
        saved = session.save()
        whole = tracked(session, FRAMES)
        session.restore(saved)
        assert tracked(session, FRAMES) == whole


def test_a_saved_stream_of_another_bundle_or_other_settings_is_refused_and_nothing_is_lost(
    bundle: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    other = open_bundle(
        export_bundle(Export(checkpoint, tmp_path / "other", *SIZE[::-1], family=bundle.manifest.family)).folder
    )
    with Session.open(other, threads=1) as session:
        session.step(FRAMES[0])
        foreign = session.save()
    with Session.open(bundle, threads=1, association={"keep_score": 0.3}) as session:
        session.step(FRAMES[0])
        unlike = session.save()
    with Session.open(bundle, threads=1) as session:
        whole = tracked(session, FRAMES)
        session.reset()
        before = tracked(session, FRAMES[:3])
        with pytest.raises(UsageError, match=r"saved with a network of 96x64 \w+, this bundle has 64x96 \w+; restore"):
            session.restore(foreign)
        with pytest.raises(UsageError, match=r"saved with .*keep_score=0.3.*, this session has .*keep_score=0.0"):
            session.restore(unlike)
        broken = replace(session.save(), states={"queries": np.zeros((2, 8), np.float32)})
        with pytest.raises(UsageError, match=r"state 'queries' is float32 \[2, 8\]; expected finite float32 \[5, 8\]"):
            session.restore(broken)
        assert before + tracked(session, FRAMES[3:], first=3) == whole


def test_frames_in_flight_must_be_taken_before_a_stream_is_saved_or_cut(bundle: Bundle) -> None:
    with Session.open(bundle, threads=1, settings=SessionSettings(in_flight=2)) as session:
        session.step(FRAMES[0])
        for action in (session.save, session.cut):
            with pytest.raises(UsageError, match=r"results of 1 calls are not taken yet; call flush\(\) first"):
                action()
        assert len(session.flush()) == 1
        session.cut()
        assert session.save().events.cuts == 1


def test_after_a_cut_the_stream_begins_from_the_initial_state_and_ids_go_on(bundle: Bundle) -> None:
    if bundle.manifest.family == "fused":
        pytest.skip("its state is set when the frame is submitted, by the aspect of the frame")
    with Session.open(bundle, threads=1) as session:
        alone = tracked(session, FRAMES[3:])
        session.reset()
        before = tracked(session, FRAMES[:3])
        session.cut()
        after = tracked(session, FRAMES[3:], first=3)
        assert session.events == SessionEvents(frames=len(FRAMES), cuts=1)
    assert [[one.score for one in result.objects] for result in after] == [
        [one.score for one in result.objects] for result in alone
    ]
    used = {one.id for result in before for one in result.objects}
    assert used.isdisjoint(one.id for result in after for one in result.objects)


def test_a_stream_of_which_the_state_is_closed_says_so(bundle: Bundle) -> None:
    with Session.open(bundle, threads=1) as session:
        states = session.network.new_states()
        session.network.open()
        kept = states.tensor("queries")
        assert kept.shape == (5, 8)
        states.close()
        with pytest.raises(EngineError, match="this state belongs to a stream that was closed"):
            states.tensor("queries")


def test_a_state_that_gives_nothing_but_nan_begins_from_the_first_one(bundle: Bundle) -> None:
    """A frame or two may be to blame; after three in a row it is the state."""
    owner = "frame" if bundle.manifest.family == "fused" else "decoder"
    engines = open_engines(bundle)
    poisoned = Poisoned(engines[owner], "next_queries", at=2, more=2)
    engines[owner] = poisoned
    with Session(bundle.manifest, engines, states=initial_states(bundle)) as session:
        results = run(session, FRAMES)
        assert session.events == SessionEvents(frames=6, bad_frames=3, restarts=1)
    used = {one.id for result in results[:2] for one in result.objects}
    assert used.isdisjoint(one.id for one in results[5].objects)


def test_streams_that_an_engine_refuses_together_go_on_one_by_one(bundle: Bundle) -> None:
    if bundle.manifest.family == "fused":
        pytest.skip("a frame graph with state is called frame by frame")
    assert_together_as_alone(bundle, "decoder", most=1)


@pytest.mark.parametrize("missing", [False, True])
def test_streams_in_one_call_are_bit_for_bit_those_of_single_sessions(bundle: Bundle, missing: bool) -> None:
    """Also where streams have no frame now and then."""
    if bundle.manifest.family == "fused":
        pytest.skip("a frame graph with state is called frame by frame")
    assert_together_as_alone(bundle, "decoder", missing=missing)
