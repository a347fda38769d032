"""`visrt track` with a real, tiny bundle that sees red things: files, exit codes, and what survives a violent end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from PIL import Image as PillowImage
from typer.testing import CliRunner, Result
from written_clips import red_square, write_clip

from visrt.cli import app
from visrt.commands.track_run import worst
from visrt.runtime.masks import decode
from visrt.runtime.sinks.journal import read_journal
from visrt.runtime.sources.video import read_video

FILES = {"overlay.mp4", "results.jsonl", "results.json", "summary.json"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "red")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "street.mp4", 20)


def track(bundle: Path, out: Path, *arguments: str | Path) -> Result:
    common = ["--bundle", str(bundle), "--out", str(out), "--threads", "1"]
    return CliRunner().invoke(app, ["track", *map(str, arguments), *common])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_clip_becomes_overlay_journal_tracks_and_summary(bundle: Path, clip: Path, tmp_path: Path) -> None:
    ended = track(bundle, tmp_path / "out", clip)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr == "", "a bar where there is no terminal"
    assert names(tmp_path / "out") == FILES
    lines = list(read_journal(tmp_path / "out" / "results.jsonl"))
    assert [line["frame"] for line in lines] == list(range(20))
    assert {shown["id"] for line in lines for shown in line["objects"]} == {0}
    [found] = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["segmentations"]) == 20
    told = summary(tmp_path / "out")
    assert (told["end"], told["objects"], told["frames"]["captured"]) == ("complete", 1, 20)
    assert "FPS, everything included" in ended.stdout


def test_any_bundle_is_followed_by_any_method_and_the_summary_says_which(
    bundle: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "changes.json").write_text('{"steady_frames": 5}')
    options = ("--preset", "ctvis", "--association", tmp_path / "changes.json", "--no-overlay")
    ended = track(bundle, tmp_path / "out", clip, *options)
    assert ended.exit_code == 0, ended.stderr
    shown = [len(line["objects"]) for line in read_journal(tmp_path / "out" / "results.jsonl")]
    assert shown == [0] * 4 + [1] * 16
    made_by = summary(tmp_path / "out")["made_by"]
    assert (made_by["preset"], made_by["association_settings"]["steady_frames"]) == ("ctvis", 5)
    unknown = track(bundle, tmp_path / "other", clip, "--preset", "ctviz")
    assert unknown.exit_code == 2
    assert "preset 'ctviz' is unknown; choose one of minvis, ctvis" in unknown.stderr


def test_the_mask_lies_on_the_object_in_journal_and_overlay(bundle: Path, clip: Path, tmp_path: Path) -> None:
    track(bundle, tmp_path, clip)
    overlay = [frame.image for frame in read_video(tmp_path / "overlay.mp4")]
    source = [frame.image for frame in read_video(clip)]
    for line in read_journal(tmp_path / "results.jsonl"):
        red = red_square(line["frame"])[..., 1] == 0
        mask = decode(line["objects"][0]["rle"])
        assert (mask & red).sum() / (mask | red).sum() > 0.6
        changed = np.abs(overlay[line["frame"]].astype(int) - source[line["frame"]]).max(axis=2) > 40
        assert changed[mask].mean() > 0.5
        assert changed[30:].mean() < 0.02


def test_a_folder_of_images_and_a_single_image_are_sources(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for index in range(4):
        PillowImage.fromarray(red_square(index)).save(tmp_path / "frames" / f"{index}.png")
    assert track(bundle, tmp_path / "folder", tmp_path / "frames", "--image-fps", "2").exit_code == 0
    assert [line["time_s"] for line in read_journal(tmp_path / "folder" / "results.jsonl")] == [0, 0.5, 1, 1.5]
    assert track(bundle, tmp_path / "single", tmp_path / "frames" / "2.png").exit_code == 0
    assert summary(tmp_path / "single")["frames"]["processed"] == 1


def test_a_portrait_and_a_landscape_clip_are_each_seen_at_their_size_of_the_bundle(tmp_path: Path) -> None:
    sizes = write_bundle(tmp_path / "sizes", other_sizes=[(96, 64)])
    lying, standing = (partial(red_square, size=size) for size in ((96, 144), (144, 96)))
    clips = [
        write_clip(tmp_path / "landscape.mp4", 6, lying),
        write_clip(tmp_path / "portrait.mp4", 6, standing),
        write_clip(tmp_path / "upright.mp4", 6, lying, rotation=90),
    ]
    for streams in ("1", "3"):
        out = tmp_path / streams
        ended = track(sizes, out, *clips, "--streams", streams)
        assert ended.exit_code == 0, ended.stderr
        for name, size, seen in (
            ("landscape", [96, 144], [64, 96]),
            ("portrait", [144, 96], [96, 64]),
            ("upright", [144, 96], [96, 64]),
        ):
            assert summary(out / name)["made_by"]["input"] == seen
            assert "other_inputs" not in summary(out / name)["made_by"]
            lines = list(read_journal(out / name / "results.jsonl"))
            assert [line["size"] for line in lines] == [size] * 6
            assert all(decode(line["objects"][0]["rle"]).shape == tuple(size) for line in lines)
            [shown, *_] = read_video(out / name / "overlay.mp4")
            assert [*shown.image.shape[:2]] == size


def test_the_summary_lists_the_sizes_that_a_source_was_seen_at(tmp_path: Path) -> None:
    sizes = write_bundle(tmp_path / "sizes", other_sizes=[(96, 64)])
    (tmp_path / "turned").mkdir()
    for index in range(6):
        picture = red_square(index) if index in (0, 1, 5) else np.rot90(red_square(index))
        PillowImage.fromarray(picture).save(tmp_path / "turned" / f"{index}.png")
    ended = track(sizes, tmp_path / "out", tmp_path / "turned", "--no-overlay")
    assert ended.exit_code == 0, ended.stderr
    found = summary(tmp_path / "out")
    assert (found["made_by"]["input"], found["made_by"]["other_inputs"]) == ([64, 96], [[96, 64]])
    assert found["events"]["restarts"] == 2
    lines = read_journal(tmp_path / "out" / "results.jsonl")
    assert [[one["id"] for one in line["objects"]] for line in lines] == [[0], [0], [1], [1], [1], [2]]


def test_one_bad_source_does_not_stop_the_others_and_the_gravest_code_is_given(
    bundle: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    whole = write_clip(tmp_path / "cut.mp4", 60, movflags="+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    out = tmp_path / "out"
    ended = track(bundle, out, tmp_path / "missing.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4", clip)
    assert ended.exit_code == 4
    assert names(out) == {"cut", "street", "failures.txt"}
    assert [summary(out / name)["end"] for name in ("cut", "street")] == ["partial", "complete"]
    faults = ended.stderr.splitlines()
    assert len(faults) == 3
    assert all(part in ended.stderr for part in ("missing.mp4", "text.mp4", "cut.mp4: ", "short: decoded"))
    assert track(bundle, tmp_path / "partial", tmp_path / "cut.mp4").exit_code == 3
    assert track(bundle, tmp_path / "usage", tmp_path / "missing.mp4").exit_code == 2


def test_sources_together_give_what_they_give_one_by_one(bundle: Path, clip: Path, tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", 5)
    (tmp_path / "text.mp4").write_text("no video")
    sources = (clip, tmp_path / "text.mp4", short)

    together = track(bundle, tmp_path / "together", *sources, "--streams", "3")
    in_turn = track(bundle, tmp_path / "in_turn", *sources)

    assert together.exit_code == in_turn.exit_code == 4
    assert "it is text" in together.stderr
    assert together.stdout.count("FPS, everything included") == 2
    for name, frames in (("street", 20), ("short", 5)):
        folder = tmp_path / "together" / name
        assert names(folder) == FILES
        for file in ("results.jsonl", "results.json"):
            assert (folder / file).read_bytes() == (tmp_path / "in_turn" / name / file).read_bytes()
        assert summary(folder)["frames"]["processed"] == frames
        assert summary(folder)["made_by"]["streams"] == 3


def test_sources_of_one_name_get_folders_of_their_own(bundle: Path, clip: Path, tmp_path: Path) -> None:
    assert track(bundle, tmp_path, clip, clip, "--no-overlay", "--limit", "2").exit_code == 0
    assert names(tmp_path) == {"street", "street-2"}


def test_the_limit_and_no_overlay_are_obeyed(bundle: Path, clip: Path, tmp_path: Path) -> None:
    assert track(bundle, tmp_path, clip, "--limit", "3", "--no-overlay").exit_code == 0
    assert names(tmp_path) == FILES - {"overlay.mp4"}
    assert len(list(read_journal(tmp_path / "results.jsonl"))) == 3


def test_earlier_results_stay_unless_overwriting_was_asked_for(bundle: Path, clip: Path, tmp_path: Path) -> None:
    assert track(bundle, tmp_path, clip).exit_code == 0
    before = (tmp_path / "summary.json").read_bytes()
    refused = track(bundle, tmp_path, clip)
    assert refused.exit_code == 4
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "summary.json").read_bytes() == before
    assert track(bundle, tmp_path, clip, "--overwrite", "--no-overlay").exit_code == 0
    assert names(tmp_path) == FILES - {"overlay.mp4"}, "the overlay of an earlier run lies beside newer results"


def test_the_input_is_not_overwritten(bundle: Path, clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "overlay.mp4"
    source.write_bytes(clip.read_bytes())
    refused = track(bundle, tmp_path, source, "--overwrite")
    assert refused.exit_code == 4
    assert "would overwrite the input" in refused.stderr
    assert source.read_bytes() == clip.read_bytes()


def test_a_broken_bundle_leaves_earlier_results_alone(bundle: Path, clip: Path, tmp_path: Path) -> None:
    assert track(bundle, tmp_path, clip).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ended = track(tmp_path / "nothing", tmp_path, clip, "--overwrite")
    assert ended.exit_code == 5
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unknown_engine_is_wrong_use(bundle: Path, clip: Path, tmp_path: Path) -> None:
    ended = track(bundle, tmp_path, clip, "--engine", "abacus")
    assert ended.exit_code == 2
    assert "abacus" in ended.stderr


def test_a_video_in_which_nothing_happens_gives_valid_empty_results(bundle: Path, tmp_path: Path) -> None:
    grey = write_clip(tmp_path / "grey.mp4", 5, picture=lambda index: np.full((48, 64, 3), 90, np.uint8))
    assert track(bundle, tmp_path / "out", grey).exit_code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert len(list(read_video(tmp_path / "out" / "overlay.mp4"))) == 5


def test_a_video_of_which_nothing_decodes_gives_valid_empty_results_and_is_told(bundle: Path, tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "a.mp4", 20, movflags="+faststart").read_bytes())
    data = whole.index(b"mdat") + 4
    whole[data:] = bytes(len(whole) - data)
    (tmp_path / "a.mp4").write_bytes(whole)
    ended = track(bundle, tmp_path / "out", tmp_path / "a.mp4")
    assert ended.exit_code == 4
    assert "no frame could be decoded" in ended.stderr
    assert names(tmp_path / "out") == FILES - {"overlay.mp4"}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert summary(tmp_path / "out")["end"] == "failed"


def test_the_gravest_code_wins() -> None:
    assert [worst(0, 3), worst(3, 2), worst(2, 4), worst(4, 5), worst(5, 130), worst(143, 0)] == [3, 2, 4, 5, 130, 143]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that a run is under way when a signal comes."""
    return write_clip(tmp_path_factory.mktemp("clips") / "long.mp4", 6000)


class Running:
    """`visrt track` in a process of its own."""

    def __init__(self, bundle: Path, source: Path, out: Path, file_limit: int | None = None) -> None:
        self.out = out
        program = "from visrt.cli import main; main()"
        arguments = ["track", str(source), "--bundle", str(bundle), "--out", str(out), "--threads", "1"]

        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )

    def wait_for_lines(self, count: int) -> None:
        journal = self.out / "results.jsonl"
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the run did not get under way"
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def running(bundle: Path, long_clip: Path, tmp_path: Path) -> Iterator[Running]:
    run = Running(bundle, long_clip, tmp_path / "out")
    run.wait_for_lines(60)
    yield run
    if run.process.poll() is None:
        run.process.kill()
    run.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_frame_and_writes_everything(running: Running, number: int, code: int) -> None:
    running.process.send_signal(number)
    assert running.end()[0] == code
    lines = list(read_journal(running.out / "results.jsonl"))
    assert 60 <= len(lines) < 6000
    [found] = json.loads((running.out / "results.json").read_text())
    assert len(found["segmentations"]) == len(lines)
    assert len(list(read_video(running.out / "overlay.mp4"))) == len(lines)
    assert summary(running.out)["end"] == "interrupted"


def test_a_second_signal_ends_at_once(running: Running) -> None:
    running.process.send_signal(signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGCONT)
    assert running.end()[0] in (130, 143)
    assert not (running.out / "summary.json").exists()
    assert len(list(read_journal(running.out / "results.jsonl"))) >= 60


def test_a_killed_run_leaves_journal_and_overlay(running: Running) -> None:
    running.wait_for_lines(200)
    running.process.kill()
    running.end()
    lines = list(read_journal(running.out / "results.jsonl"))
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 200
    assert len(list(read_video(running.out / "overlay.mp4"))) > 100
    assert not (running.out / "results.json").exists(), "half a run passes for a whole one"


def test_a_full_disk_keeps_what_was_written(bundle: Path, long_clip: Path, tmp_path: Path) -> None:
    run = Running(bundle, long_clip, tmp_path / "out", file_limit=50_000)
    code, errors = run.end()
    assert code == 4
    [told] = errors.splitlines()
    assert "no space left" in told
    data = (run.out / "results.jsonl").read_bytes()
    assert 10_000 < len(data) <= 50_000
    assert data.endswith(b"\n")
    assert all(json.loads(line) for line in data.splitlines())
    assert os.path.getsize(run.out / "overlay.mp4") <= 50_000
