"""gpu-check says what it found part by part, loses nothing, and never calls a machine without a GPU checked."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from data_sets import ROOT
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import install_tensorrt

from visrt.benchmarks.gpu_check import networks
from visrt.benchmarks.gpu_check import parts as parts_module
from visrt.benchmarks.gpu_check.__main__ import check, main
from visrt.benchmarks.gpu_check.measure import measured
from visrt.benchmarks.gpu_check.networks import NETWORKS, RandomBundle, RandomNetwork, random_bundles
from visrt.benchmarks.gpu_check.parts import ON_GPU, CheckSettings, Part, Subject, given_subjects, parts_of
from visrt.benchmarks.gpu_check.record import RECORD, Done, Record
from visrt.benchmarks.gpu_check.report import exit_code, page, part_line
from visrt.benchmarks.gpu_check.runner import in_process
from visrt.benchmarks.speed.percentiles import by_stage, percentiles
from visrt.export.families import FAMILIES
from visrt.models.videomt import VideoMt, VideoMtSettings
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.engines.trt.cuda import LAYERS
from visrt.runtime.errors import BundleError, DataError, EngineError, ParityError, UsageError, VisrtError
from visrt.runtime.parity import verify
from visrt.runtime.session import Session

INT8 = ROOT / "bundles" / "default-int8"
CLIP = ROOT / "clips" / "demo.mp4"
QUICK = CheckSettings(batches=(1, 2), streams=(1, 3), frames=3, rounds=1)
MACHINE = {"gpu": "NVIDIA Fake 3000", "cpu": "any", "onnxruntime": "1.0"}
NO_GPU = "no NVIDIA driver here"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "gpu_absence", lambda: NO_GPU)
    for engine in ON_GPU:
        monkeypatch.setitem(BACKENDS, engine, replace(BACKENDS[engine], absence=lambda: NO_GPU))


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A bundle with random weights, made from a small VidEoMT: an encoder, a decoder with state, masks."""
    sizes: dict[str, Any] = {"queries": 12, "dim": 64, "blocks": 2, "heads": 1, "feedforward_dim": 96}
    settings = VideoMtSettings(classes=40, table_side=3, query_blocks=1, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", RandomNetwork("videomt", lambda: VideoMt(settings), 64, 96))
        [one] = random_bundles("tiny,tiny@64x96", "fp16")
        subject = Subject(one.bundle, tmp_path_factory.mktemp("bundles") / one.bundle, "64x96", one)
        assert measured(Part("export", subject))["bytes"] > 1000
        yield subject


@pytest.fixture
def tensorrt(random: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A fake GPU with TensorRT 10.13. Nothing is exported on it: torch looks for TensorRT when it traces."""
    gpu = Gpu()
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "10.13.3.9")
    monkeypatch.setattr("visrt.benchmarks.gpu_check.measure.trtexec_tool", lambda: None)
    monkeypatch.setitem(BACKENDS, "tensorrt", replace(BACKENDS["tensorrt"], absence=lambda: ""))
    return gpu


def here(part: Part, key: str) -> Done:
    """A part done in this process, where the fakes are."""
    try:
        return Done(part.id, key, "done", figures=json.loads(json.dumps(measured(part))))
    except VisrtError as error:
        return Done(part.id, key, "failed", str(error))


def checked(record: Record, parts: Sequence[Part], run: Any = here) -> list[str]:
    said: list[str] = []
    check(parts, record, run, said.append)
    return said


def some_part(folder: Path, **changed: Any) -> Part:
    return replace(Part("verify", Subject("small", folder, "64x96"), "tensorrt", 1), **changed)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_measured_once_and_the_verdict_is_no_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--bundle", str(INT8), "--clip", str(CLIP), "--out", str(tmp_path / "out"), "--rounds", "1"]
    given += ["--frames", "2", "--batch", "2", "--streams", "2", "--only", "*/verify/*", "*/streams/*"]
    assert main(given) == 3
    printed = capsys.readouterr().out
    assert printed.count(NO_GPU) == len(ON_GPU) + len(LAYERS)
    assert "NOT a GPU check" in printed
    written = json.loads((tmp_path / "out" / RECORD).read_text())
    ended = {part["id"].split("/", 2)[2]: part for part in written["parts"]}
    assert ended.keys() == {"verify/batch2", "streams/batch2/2"}
    assert all(part["state"] == "done" for part in ended.values()), ended
    assert ended["streams/batch2/2"]["figures"]["stages"]["frame_engine"] > 0
    assert ended["streams/batch2/2"]["figures"]["fps"]["median"] > 0
    assert "2 of 4 parts are still to do" in written["verdict"]
    assert written["machine"]["cpu"]
    assert (tmp_path / "out" / "gpu_check.md").read_text() in printed

    def never(*_: object, **__: object) -> Done:
        raise AssertionError("a part that is done was done again")

    monkeypatch.setattr("visrt.benchmarks.gpu_check.__main__.in_process", never)
    assert main(given) == 3
    assert capsys.readouterr().out.count("(before)") == 2


def test_every_part_runs_on_tensorrt_and_the_table_has_its_figures(
    tensorrt: Gpu, random: Subject, tmp_path: Path
) -> None:
    _, *parts = parts_of([random], ["tensorrt"], QUICK, CLIP)
    record = Record(tmp_path / "out", MACHINE)
    checked(record, parts)
    assert not [done.reason for part in parts if (done := record.of(part)) and done.state != "done"]
    assert exit_code(parts, record) == 0
    assert tensorrt.counts["builds"] == len([*(tmp_path / "cache").glob("*.engine")]), "each is built once"
    report = page(parts, record)
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith(f"| {random.name} | tensorrt")]
    first, second, call, wide_call, *stages = rows
    assert [first[2], first[5], second[2], second[5]] == ["1", "yes", "2", "yes"]
    assert all(float(first[at]) > 0 for at in (3, 6, 7, 8, 9))
    assert (second[8], float(second[9]) > 0) == ("–", True), "one stream shares no calls"
    assert first[10] != "–", "seconds to the first frame"
    moved = [done.figures["call"]["mb"] for part in parts if (done := record.of(part)) and part.kind == "engines"]
    assert moved[1] > moved[0] > 64 * 96 * 3 / 1e6, "the image at least, and of two frames more"
    assert all(float(row[at]) > 0 for row in (call, wide_call) for at in (3, 4))
    assert [row[5] for row in (call, wide_call)] == ["–", "–"], "there is no trtexec here"
    assert len(stages) == 5
    assert "decoder engine" in report


def test_an_engine_that_cannot_be_built_costs_its_own_parts_alone(
    tensorrt: Gpu, random: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise EngineError("cuda is on fire")

    monkeypatch.setitem(BACKENDS, "cuda", replace(BACKENDS["cuda"], open=refuse, absence=lambda: ""))
    settings = CheckSettings((1,), (1,), frames=3, rounds=1)
    _, *parts = parts_of([random], ["cuda", "tensorrt"], settings, CLIP)
    record = Record(tmp_path / "out", MACHINE)
    checked(record, parts)
    states = [(part.engine, part.kind, done.state) for part in parts if (done := record.of(part))]
    assert states == [
        ("cuda", "build", "failed"),
        *(("cuda", kind, "left out") for kind in ("verify", "engines", "streams")),
        *(("tensorrt", kind, "done") for kind in ("build", "verify", "engines", "streams")),
    ]
    assert exit_code(parts, record) == 5
    assert "cuda/build/batch1: failed, cuda is on fire" in page(parts, record)


def test_a_wrong_engine_is_a_fault_and_its_errors_are_kept(
    tensorrt: Gpu, random: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: object, what: str) -> None:
        raise ParityError(f"{what} sees other masks; do not deploy it")

    monkeypatch.setattr(verify.Verification, "require", wrong)
    assert "sees other masks" in measured(some_part(random.folder, subject=random))["fault"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process was ended by SIGSEGV: it printed"),
        ("import time; time.sleep(60)", "took longer than 0.3 s and was stopped; allow more with --limit-s"),
        ("raise RuntimeError('a bug')", "its process ended with 1: RuntimeError: a bug; see "),
        ("import sys; open(sys.argv[2], 'w').write('{\"refused\": \"no memory\"}')", "no memory"),
        ('import sys; open(sys.argv[2], \'w\').write(\'{"figures": {"fault": "wrong"}}\')', "wrong"),
    ],
)
def test_a_part_that_crashes_hangs_or_refuses_is_reported_with_its_reason(
    tmp_path: Path, script: str, reason: str
) -> None:
    limit_s = 0.3 if "sleep" in script else 60.0
    done = in_process(some_part(tmp_path), "key", tmp_path, limit_s, (sys.executable, "-c", script))
    assert (done.state, done.id) == ("failed", "small/tensorrt/verify/batch1")
    assert reason in done.reason


def test_what_failed_is_tried_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small")
    parts = [some_part(bundle), some_part(bundle, batch=2)]
    states = {1: "done", 2: "failed"}
    ran: list[str] = []

    def run(part: Part, key: str) -> Done:
        ran.append(part.id)
        return Done(part.id, key, states[part.batch])  # type: ignore[arg-type]

    checked(Record(tmp_path / "out", MACHINE), parts, run)
    checked(Record(tmp_path / "out", MACHINE), parts, run)
    assert ran == [parts[0].id, parts[1].id, parts[1].id]
    checked(Record(tmp_path / "out", {**MACHINE, "onnxruntime": "2.0"}), parts[:1], run)
    assert len(ran) == 4, "another version is another measurement"
    (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text() + " ")
    checked(Record(tmp_path / "out", MACHINE), parts[:1], run)
    assert len(ran) == 5, "another bundle is another measurement"


def test_a_bundle_with_random_weights_shows_ten_objects_and_is_made_again_only_if_it_is_gone(
    random: Subject, tmp_path: Path
) -> None:
    parts, record = parts_of([random], ["cpu"], CheckSettings((1,), (1,)), CLIP), Record(tmp_path, MACHINE)
    assert [part.kind for part in parts] == ["export", "build", "verify", "engines", "streams"]
    with Session.open(random.opened()) as session:
        [result] = session.step(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    assert len(result.objects) == 10

    ran: list[str] = []

    def run(part: Part, key: str) -> Done:
        ran.append(part.kind)
        return Done(part.id, key, "done", figures={"seconds": 1.0, "bytes": 1})

    gone = replace(random, folder=tmp_path / "gone")
    assert "left out, its bundle is not there" in checked(record, [replace(parts[1], subject=gone)], run)[-1]
    checked(record, parts[:1], run)
    checked(record, parts[:1], run)
    assert ran == ["export"]
    checked(record, [replace(parts[0], subject=gone)], run)
    assert ran == ["export", "export"]


def test_every_family_can_be_made() -> None:
    assert {network.family for network in NETWORKS.values()} == FAMILIES.keys()
    assert [one.name for one in random_bundles("all", "fp16")] == list(NETWORKS)
    assert random_bundles("minvis-r50@480x864, videomt-s", "fp32") == [
        RandomBundle("minvis-r50", (480, 864), "fp32"),
        RandomBundle("videomt-s", (448, 800), "fp32"),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("resnet", "'resnet': resnet is not known; known are all, minvis-r50"),
        ("inspro-swinl", "'inspro-swinl': inspro has no such backbone; known are all, minvis-r50"),
        ("minvis-r50@480x850", "'minvis-r50@480x850': expected height x width in pixels, both divisible by 32, as in"),
        ("minvis-r50@big", "as in minvis-r50@384x640; known are minvis-r50"),
        ("", "it is not known"),
    ],
)
def test_an_unknown_network_or_size_gives_one_line_with_what_is_known(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as raised:
        random_bundles(text, "fp16")
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_random_bundles_without_the_packages_of_export_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "NEEDED", ("torch", "package_of_nobody"))
    with pytest.raises(UsageError, match=r"needs package_of_nobody; pip install '.\[train\]'.* or give bundles"):
        random_bundles("minvis-r50", "fp16")
    assert importlib.util.find_spec("torch")


@pytest.mark.usefixtures("no_gpu")
def test_parts_can_be_listed_and_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--bundle", str(INT8), "--clip", str(CLIP), "--out", str(tmp_path), "--parts"]
    assert main([*given, "--only", "*/verify/*"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"visrt-default-int8/cpu/verify/batch{batch}: to do" for batch in (1, 8)
    ]
    with pytest.raises(UsageError, match=r"--only nonsense: no part is called so; --parts lists them"):
        main([*given, "--only", "nonsense"])


@pytest.mark.usefixtures("no_gpu")
def test_bad_input_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        main(["--bundle", str(tmp_path / "nothing"), "--clip", str(CLIP), "--out", str(tmp_path)])
    with pytest.raises(UsageError, match="no such file; expected a video"):
        main(["--clip", str(tmp_path / "nothing.mp4"), "--out", str(tmp_path)])
    with pytest.raises(UsageError, match="two bundles are called visrt-default-int8"):
        main(["--bundle", str(INT8), str(INT8), "--clip", str(CLIP), "--out", str(tmp_path)])
    (tmp_path / RECORD).write_text('{"parts": [{"id": 3}]}')
    with pytest.raises(DataError, match=f"{RECORD}: not a record .*; expected what gpu-check recorded; move it away"):
        Record(tmp_path, MACHINE)


def test_each_size_of_a_bundle_is_checked(tmp_path: Path) -> None:
    subjects = list(given_subjects([write_bundle(tmp_path / "red", other_sizes=[(96, 64)])]))
    assert [one.name for one in subjects] == ["fake 64x96", "fake 96x64"]
    assert [one.opened().manifest.input.height for one in subjects] == [64, 96]
    assert open_bundle(subjects[0].folder).manifest.other_sizes


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([("cpu", "done")], 3),
        ([("cuda", "done")], 0),
        ([("cuda", "left out")], 3),
        ([("cuda", "done"), ("tensorrt", "failed")], 5),
    ],
)
def test_only_an_engine_on_a_gpu_makes_a_check(tmp_path: Path, states: list[tuple[str, Any]], code: int) -> None:
    bundle, record = write_bundle(tmp_path / "small"), Record(tmp_path / "out", MACHINE)
    parts = [some_part(bundle, engine=engine) for engine, _ in states]
    for part, (_, state) in zip(parts, states, strict=True):
        record.keep(Done(part.id, part.key(MACHINE), state))
    assert exit_code(parts, record) == code


def test_a_part_goes_to_its_process_and_back() -> None:
    random = RandomBundle("minvis-r50", (480, 864), "fp16")
    part = some_part(Path("out"), subject=Subject("small", Path("out"), "64x96", random), clip="demo.mp4")
    assert Part.from_json(part.to_json()) == part
    assert part_line(part, Done(part.id, "", "left out", "no bundle")) == f"{part.id}: left out, no bundle"


def test_percentiles_of_a_hundred_durations() -> None:
    found = percentiles([i / 1e3 for i in range(101)])
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.samples) == (50, 95, 99, 101)
    assert found.fps == pytest.approx(20)
    assert percentiles([]).fps == 0


def test_a_stage_that_a_frame_lacks_took_it_no_time() -> None:
    stages = by_stage([{"decode": 0.002}, {"decode": 0.004, "masks": 0.001}])
    assert stages["decode"].mean_ms == pytest.approx(3)
    assert stages["masks"].mean_ms == pytest.approx(0.5)
