"""`visrt bench` says what it measured, leaves nothing out, and what it draws is a page that any browser shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from genvis_bundles import exported_genvis
from inspro_bundles import exported_inspro
from typer.testing import CliRunner, Result
from written_clips import write_clip

from visrt.benchmarks.speed.bench import BenchSettings
from visrt.benchmarks.speed.bench import bench as run_bench
from visrt.benchmarks.speed.candidates import BundleCandidate, Opening, Run
from visrt.benchmarks.speed.interleaved import figures_of, interleave
from visrt.benchmarks.speed.lengths import slope
from visrt.benchmarks.speed.sweeps import KEY_EVERY, check_sweep
from visrt.cli import app
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.errors import UsageError

KINDS = {"run", "subject", "streams", "live", "length", "roofline", "host"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that sees red, a clip with a red square, and what one run of bench left of them."""
    folder = tmp_path_factory.mktemp("bench")
    write_bundle(folder / "red")
    write_clip(folder / "street.mp4", 24)
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> Result:
    parts = "--streams 1,3 --live-fps 200 --length 20 --objects 1,4 --queries 100 --heights 90 --roofline 2"
    out = f"--json {folder / 'bench.jsonl'} --html {folder / 'bench.html'}"
    return bench(folder, f"--frames 8 --rounds 2 --threads 1 --peer ort {parts} {out}")


def bench(folder: Path, options: str) -> Result:
    given = f"bench --bundle {folder / 'red'} --clip {folder / 'street.mp4'} {options}"
    return CliRunner().invoke(app, given.split())


@pytest.fixture(scope="module")
def lines(folder: Path, ended: Result) -> list[dict[str, Any]]:
    assert ended.exit_code == 0, ended.output
    return [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]


def of_kind(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def test_every_part_that_was_asked_for_is_in_the_lines_with_machine_settings_and_method(
    lines: list[dict[str, Any]],
) -> None:
    assert {line["kind"] for line in lines} == KINDS
    [run] = of_kind(lines, "run")
    assert run["machine"]["cpu"]
    assert run["machine"]["onnxruntime"]
    assert run["settings"]["threads"] == 1
    assert any("warm-up" in line for line in run["method"])


@pytest.mark.parametrize(("picture", "size"), [((72, 96), "64x96"), ((96, 72), "96x64")])
def test_of_several_sizes_the_one_that_is_best_for_the_clip_is_measured(
    tmp_path: Path, picture: tuple[int, int], size: str
) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "upright", other_sizes=[(96, 64)]))
    write_clip(tmp_path / "clip.mp4", 3, picture=lambda _: np.zeros((*picture, 3), np.uint8))

    report = run_bench([bundle], BenchSettings(tmp_path / "clip.mp4", frames=2, rounds=1, threads=1))

    assert [measured.manifest.input.text for measured in report.bundles] == [size]


def test_the_stages_of_a_frame_are_all_of_its_time(lines: list[dict[str, Any]]) -> None:
    subject, peer = of_kind(lines, "subject")
    assert subject["name"] == "fake on cpu"
    assert list(subject["stages"])[:3] == ["decode", "preprocess", "frame_engine"]
    assert {"association", "mask_engine", "masks", "output"} <= set(subject["stages"])
    assert set(peer["stages"]) == {"decode", "preprocess", "frame_engine", "post"}
    for one in (subject, peer):
        assert sum(stage["mean_ms"] for stage in one["stages"].values()) == pytest.approx(one["frame"]["mean_ms"], 0.01)
        mean_fps = 1e3 / one["frame"]["mean_ms"]
        assert 0.7 * one["fps"]["least"] <= mean_fps <= 1.5 * one["fps"]["most"]
        assert one["frame"]["samples"] == 16
        assert one["engines_fps"]["median"] > one["fps"]["median"]
    assert subject["objects"] == 1, "the red square in every frame"


def test_streams_lose_no_frame_of_a_file_and_live_ones_count_what_they_drop(lines: list[dict[str, Any]]) -> None:
    assert [line["streams"] for line in of_kind(lines, "streams")] == [1, 3]
    for line in of_kind(lines, "streams"):
        assert line["lost"] == 0
        assert line["latency"]["samples"] == 2 * 8 * line["streams"]
    for line in of_kind(lines, "live"):
        assert line["processed"] + line["dropped"] == 8 * line["streams"]
        assert line["latency"]["samples"] == line["processed"]
        assert line["latency"]["p50_ms"] > 0


def test_length_host_work_and_roofline_say_what_they_are_of(lines: list[dict[str, Any]]) -> None:
    [length] = of_kind(lines, "length")
    assert length["points"][-1]["frames"] == 20
    assert all(point["rss_mb"] > 10 for point in length["points"])
    assert all(point["state_norm"] is None for point in length["points"]), "a network without state"
    assert [(line["varied"], line["objects"], line["size"]) for line in of_kind(lines, "host")] == [
        ("objects", 1, [720, 1280]),
        ("objects", 4, [720, 1280]),
        ("queries", 10, [720, 1280]),
        ("height", 10, [90, 160]),
    ]
    one, four = (line["ms"]["masks"] for line in of_kind(lines, "host")[:2])
    assert 0 < one < four
    frame, masks = of_kind(lines, "roofline")
    # tests/bundles.py: a 4x4 convolution of 3 channels to 8 on 64x96, and products of 8 and of 2.
    assert frame["macs"] == 16 * 24 * 8 * 3 * 16 + 8 + 2
    assert masks["macs"] == 10 * 16 * 24 * 8
    assert 0 < frame["fraction"] < 1


def test_the_tables_show_method_and_figures(ended: Result) -> None:
    for words in ("FPS of everything", "frame engine", "mask resize and RLE", "How it was measured", "Roofline"):
        assert words in ended.stdout
    assert ended.stderr == "", "progress where there is no terminal"


class Page(HTMLParser):
    """Tags, ids, what is loaded from elsewhere, and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id" and value:
                self.ids[value] += 1
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.loaded.append(value)


def test_the_page_needs_nothing_else_and_its_plots_share_no_id(folder: Path, ended: Result) -> None:
    html = (folder / "bench.html").read_text()
    page = Page(html)
    assert page.tags["svg"] == 1 + 2 + 2 + 3
    assert page.tags["table"] == 8
    assert page.loaded == []
    assert page.tags["script"] == 0
    assert max(page.ids.values()) == 1
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used <= set(page.ids)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_and_complains_about_nothing(folder: Path, ended: Result, width: int) -> None:
    image = folder / f"{width}.png"
    ran = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2400", f"--screenshot={image}"),
            (folder / "bench.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    from PIL import Image

    shown = np.asarray(Image.open(image).convert("RGB"))
    assert shown.shape[1] == width
    assert (shown.std(axis=(1, 2)) > 1).mean() > 0.3, "most of it is not empty"
    assert (shown[:, -4:] == 255).all(), "nothing runs over the right edge"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--streams 1,x", "--streams is '1,x'"),
        ("--objects 0", "--objects is '0'"),
        ("--peer fast", "peer 'fast' is unknown"),
        ("--peer eager", "--checkpoint"),
        ("--checkpoint weights.pt", "--peer eager"),
        ("--engine gpu", "engine 'gpu' is unknown"),
        ("--json nowhere/bench.jsonl", "no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(folder: Path, options: str, words: str) -> None:
    refused = bench(folder, f"--frames 2 --rounds 1 {options}")
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stdout == ""


@pytest.fixture(scope="module")
def genvis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for clips of 1 and 3 frames."""
    return exported_genvis(tmp_path_factory).folder


@pytest.fixture(scope="module")
def inspro_lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_inspro(tmp_path_factory, "inspro_lite").folder


def sweep(bundle: Path, folder: Path, options: str) -> Result:
    """Two rounds of six frames; the lines are in sweep.jsonl, the page in sweep.html."""
    out = f"--json {folder / 'sweep.jsonl'} --html {folder / 'sweep.html'}"
    given = f"bench --bundle {bundle} --clip {folder / 'street.mp4'} --frames 6 --rounds 2 --threads 1 {out} {options}"
    return CliRunner().invoke(app, given.split())


def lines_of(folder: Path, ended: Result) -> list[dict[str, Any]]:
    assert ended.exit_code == 0, ended.output
    return [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]


def test_length_follows_the_norm_of_what_a_network_carries(folder: Path, genvis: Path) -> None:
    [length] = of_kind(lines_of(folder, sweep(genvis, folder, "--length 12")), "length")

    norms = [point["state_norm"] for point in length["points"]]
    assert len(norms) == 12
    assert norms[0] == 0, "no clip is full yet"
    assert norms[-1] > 0
    assert "largest norm of a vector in the state" in (folder / "sweep.html").read_text()


def test_clip_lengths_are_candidates_of_one_run_whose_network_sees_such_clips(folder: Path, genvis: Path) -> None:
    ended = sweep(genvis, folder, "--clip-lengths 1,3 --in-flight 1 --in-flight 2")
    lines = lines_of(folder, ended)
    single, clips, *_ = of_kind(lines, "subject")
    assert [line["name"].partition(", ")[2] for line in of_kind(lines, "subject")] == [
        "clips of 1",
        "clips of 3",
        "2 in flight, clips of 1",
        "2 in flight, clips of 3",
    ]
    assert single["stages"]["clip_engine"]["p50_ms"] > 0
    assert clips["stages"]["clip_engine"]["p50_ms"] == 0, "the network sees a clip in every third frame"
    points = of_kind(lines, "sweep")
    assert [point["value"] for point in points] == [1, 3, 1, 3]
    assert [point["subject"].endswith("in flight") for point in points] == [False, False, True, True]
    for first, other in (points[:2], points[2:]):
        assert (first["faster"], first["published"]) == (1, None)
        assert other["faster"] == pytest.approx(other["fps"]["median"] / first["fps"]["median"], 1e-3)
        assert "figure 3" in other["paper"]
        assert "A100" in other["paper"]
    assert "frames a clip" in ended.stdout
    assert "paper AP" not in ended.stdout, "columns of figures that are not known"


def test_distances_of_key_frames_stand_next_to_the_figures_of_the_paper(folder: Path, inspro_lite: Path) -> None:
    ended = sweep(inspro_lite, folder, "--key-every 1,2,5")
    lines = lines_of(folder, ended)
    lite = ["head_lite_engine" in line["stages"] for line in of_kind(lines, "subject")]
    assert lite == [False, True, True]
    one, two, five = of_kind(lines, "sweep")
    assert one["published"] == {"ap": 40.2, "fps": 26.3}
    assert (two["published"], two["published_faster"]) == (None, None)
    assert five["published"] == {"ap": 39.4, "fps": 41.8}
    assert five["published_faster"] == pytest.approx(41.8 / 26.3, 1e-4)
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert any(row[1:2] == ["5"] and {"39.4", "41.8", "1.59"} <= set(row) for row in rows)
    assert "RTX 2080 Ti" in " ".join(ended.stdout.split())


def test_the_page_shows_a_sweep_and_how_much_faster_the_paper_is(folder: Path, inspro_lite: Path, genvis: Path) -> None:
    assert sweep(inspro_lite, folder, "--key-every 1,5").exit_code == 0
    html = (folder / "sweep.html").read_text()
    assert Page(html).tags["svg"] == 1 + 2
    assert "<h2>Sweeps</h2>" in html
    assert "<td>39.4</td>" in html
    assert sweep(genvis, folder, "--clip-lengths 3,1").exit_code == 0
    assert Page((folder / "sweep.html").read_text()).tags["svg"] == 1 + 1


def test_a_bundle_that_does_not_take_a_value_is_refused_with_what_to_export(
    folder: Path, genvis: Path, inspro_lite: Path
) -> None:
    for bundle, options, words in (
        (folder / "red", "--clip-lengths 1,3", "of family 'minvis', which has no setting clip_frames"),
        (inspro_lite, "--clip-lengths 1,3", "give one that was exported with --family genvis --clip-lengths 1,3"),
        (genvis, "--key-every 1,5", "give one that was exported with --family inspro_lite"),
        (genvis, "--clip-lengths 1,5,7", "was not exported for --clip-lengths 5,7; leave these out, or export it with"),
        (genvis, "--clip-lengths 0", "--clip-lengths is '0'"),
    ):
        refused = sweep(bundle, folder, options)
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())
        assert refused.stdout == ""


def test_a_bundle_without_a_lite_head_takes_a_key_frame_in_every_frame_alone(inspro_lite: Path) -> None:
    manifest = open_bundle(inspro_lite).manifest
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "head_lite"}
    whole = Bundle(inspro_lite, manifest.model_copy(update={"family": "inspro", "graphs": graphs, "association": {}}))
    check_sweep(KEY_EVERY, (1,), whole)
    with pytest.raises(UsageError, match="not exported for --key-every 5,10; leave these out, or export it with"):
        check_sweep(KEY_EVERY, (1, 5, 10), whole)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_frame_of_a_round_is_told_however_many_are_in_flight(folder: Path, in_flight: int) -> None:
    subject = BundleCandidate(open_bundle(folder / "red"), "cpu", folder / "street.mp4", 6, 1, in_flight)
    subject.open()
    one = subject.run()
    subject.close()
    assert (len(one.frames), one.objects) == (6, 6)
    assert sum(frame["masks"] > 0 for frame in one.frames if "masks" in frame) >= 5
    assert 0 < sum(sum(frame.values()) for frame in one.frames) <= one.wall_s
    assert ("2 in flight" in subject.name) is (in_flight == 2)


@dataclass
class Scripted:
    """Takes what it is told to; notes when it was asked."""

    name: str
    asked: list[str]
    seconds: list[float] = field(default_factory=lambda: [9.0, 0.2, 0.1, 0.4])

    def open(self) -> Opening:
        return Opening(1.0, 0.5)

    def run(self) -> Run:
        self.asked.append(self.name)
        seconds = self.seconds[self.asked.count(self.name) - 1]
        return Run([{"decode": 0.1 * seconds, "frame_engine": 0.4 * seconds}] * 2, seconds, 2 * seconds, 6)

    def close(self) -> None:
        self.asked.append(f"{self.name} closed")


def test_subjects_take_turns_there_and_back_and_the_warm_up_does_not_count() -> None:
    asked: list[str] = []
    a, b = interleave([Scripted("a", asked), Scripted("b", asked)], rounds=3)
    assert asked == ["a", "b", "a", "b", "b", "a", "a", "b", "b closed", "a closed"]
    assert (a.fps.median, a.fps.least, a.fps.most) == pytest.approx((10, 5, 20))
    assert a.engines_fps.median == pytest.approx(2 / (2 * 0.4 * 0.2))
    assert a.cpu_ms.median == pytest.approx(200)
    assert a.objects == 3
    assert b.frame.samples == 6


def test_a_stage_that_took_no_time_is_not_told() -> None:
    found = figures_of("a", Opening(0, 0), [Run([{"decode": 0.1, "copy_in": 0.0}], 0.1, 0.1, 0)])
    assert list(found.stages) == ["decode"]


def test_the_slope_is_that_of_the_settled_part() -> None:
    frames = list(range(100, 1100, 100))
    assert slope(frames, [500.0, 900.0, *(1000 + frame / 1000 for frame in frames[2:])]) == pytest.approx(10)
    assert slope([100], [1.0]) == 0
