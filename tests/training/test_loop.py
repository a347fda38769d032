"""Claims about the training loop: it learns, resumes where it was, and refuses what does not fit; several processes and
batches a step train as one process with one batch does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_networks import FRAME
from tiny_sets import HEIGHT, WIDTH, coco_values, write_coco, write_png
from torch import Tensor

from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.runtime.errors import DataError, NumericalError, SettingsError
from visrt.runtime.settings import settings_from_file
from visrt.training.batches import Batch, batches_a_step
from visrt.training.data.clips import ClipSettings, CropSettings, ShortSideView
from visrt.training.data.sources import SourceSettings
from visrt.training.loop import Run, train
from visrt.training.losses.mask2former import LossSettings
from visrt.training.losses.targets import MatchSettings
from visrt.training.optim import optimizer_for, scheduler_for
from visrt.training.progress import ProgressLines
from visrt.training.settings import DataSettings, OptimSettings, StopSettings, TrainSettings


def tiny_settings(folder: Path, **optim: Any) -> TrainSettings:
    write_coco(folder, coco_values(pictures=6))
    network = replace(FRAME, decoder_layers=1, reid_dim=16)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20)
    data = DataSettings(
        (SourceSettings("coco", str(folder), held_out=0.4),), clips, workers=0, validation_clips=1, validation_frames=2
    )
    return TrainSettings(
        network,
        data,
        OptimSettings(**{"steps": 4, "batch": 1, "ema_decay": 0.5, **optim}),
        LossSettings(points=64, identity_weight=1.0, match=MatchSettings(points=64)),
        save_every=2,
        validate_every=4,
    )


def shipped(run: Run) -> Mask2Former:
    network = run.shipped()
    assert isinstance(network, Mask2Former)
    return network


def saved(settings: TrainSettings, folder: Path) -> None:
    """A run that was stopped before its first step, but after its first state."""
    run = Run(settings, folder)
    run.resume()
    run.save()


def losses_of(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_run_leaves_a_checkpoint_metrics_and_a_plot(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    weights = train(settings, tmp_path / "run").weights
    assert load_checkpoint(weights, MASK2FORMER).network().settings == settings.network
    assert len(losses_of(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "plot.png").stat().st_size > 1000
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"quality_recall", "quality_precision", "quality_linked"} <= last.keys()


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    train(settings, tmp_path / "whole")
    run = Run(settings, tmp_path / "cut")
    run.resume()
    for batch, _ in zip(run.batches(), range(3), strict=False):
        run.advance(batch)
        if run.step == 2:
            run.save()
    train(settings, tmp_path / "cut")
    # Sums over threads differ in their last digits; other random points or a lost momentum differ by percents.
    assert losses_of(tmp_path / "cut") == pytest.approx(losses_of(tmp_path / "whole"), rel=2e-3)


def test_a_folder_with_a_run_of_other_settings_is_refused_but_more_steps_are_welcome(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    saved(settings, tmp_path / "run")
    with pytest.raises(SettingsError, match="other settings"):
        Run(replace(settings, seed=1), tmp_path / "run")
    Run(replace(settings, optim=replace(settings.optim, steps=9)), tmp_path / "run")


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    saved(settings, tmp_path / "run")
    kept = tmp_path / "run" / "settings.json"
    values = json.loads(kept.read_text())
    del values["loss"]["contrast"]
    kept.write_text(json.dumps(values))
    Run(settings, tmp_path / "run")
    with pytest.raises(SettingsError, match="other settings"):
        Run(replace(settings, loss=replace(settings.loss, contrast="released")), tmp_path / "run")


def test_a_diverged_loss_stops_the_run_and_says_where_the_last_state_is(tmp_path: Path) -> None:
    run = Run(tiny_settings(tmp_path / "data"), tmp_path / "run")
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalError, match="resume"):
        run.advance(next(iter(run.batches())))


def test_a_class_count_that_is_not_the_data_s_is_refused(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    with pytest.raises(SettingsError, match=r"network\.classes is 8, the data has 3: car, dog, chair"):
        Run(replace(settings, network=replace(settings.network, classes=8)), tmp_path / "run")


def contrasting(folder: Path, contrast: Any = "released") -> TrainSettings:
    """CTVIS's losses over clips of 3 frames."""
    settings = tiny_settings(folder, steps=2)
    clips = replace(settings.data.clips, frames=3)
    loss = replace(settings.loss, identity_weight=0.0, contrast=contrast)
    return replace(settings, data=replace(settings.data, clips=clips), loss=loss)


@pytest.mark.parametrize("contrast", ["released", "paper"])
def test_ctvis_training_moves_the_embedding_head_and_is_repeated_from_its_file(tmp_path: Path, contrast: str) -> None:
    settings = contrasting(tmp_path / "data", contrast)
    torch.manual_seed(0)
    run = Run(settings, tmp_path / "run")
    run.resume()
    head = shipped(run).sem_seg_head.predictor.reid_embed
    assert head is not None
    before = [parameter.clone() for parameter in head.parameters()]
    metrics = run.advance(next(iter(run.batches())))
    assert metrics["loss_reid"] > 0
    moved = [bool((a != b).any()) for a, b in zip(before, head.parameters(), strict=True)]
    assert any(moved)
    assert settings_from_file(TrainSettings, tmp_path / "run" / "settings.json") == settings


def test_without_losses_over_frames_the_embedding_head_stays_as_it_was(tmp_path: Path) -> None:
    """MinVIS learns from single frames, and weight decay must not eat what has no gradient."""
    run = Run(contrasting(tmp_path / "data", "off"), tmp_path / "run")
    head = shipped(run).sem_seg_head.predictor.reid_embed
    assert head is not None
    before = [parameter.clone() for parameter in head.parameters()]
    run.advance(next(iter(run.batches())))
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))


def test_losses_over_frames_need_frames_and_a_head(tmp_path: Path) -> None:
    settings = contrasting(tmp_path / "data")
    single = replace(settings.data, clips=replace(settings.data.clips, frames=1))
    with pytest.raises(SettingsError, match=r"data\.clips\.frames is 1, but loss\.contrast"):
        Run(replace(settings, data=single), tmp_path / "run")
    supervised = replace(settings.loss, contrast="off", identity_weight=1.0)
    with pytest.raises(SettingsError, match=r"loss\.identity_weight compares"):
        Run(replace(settings, data=single, loss=supervised), tmp_path / "run")
    with pytest.raises(SettingsError, match=r"network\.reid_dim is 0"):
        Run(replace(settings, network=replace(settings.network, reid_dim=0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_imagenet_weights_for_another_backbone_are_refused(tmp_path: Path) -> None:
    settings = replace(tiny_settings(tmp_path / "data"), network=NetworkSettings(classes=3), init="imagenet")
    with pytest.raises(SettingsError, match="EfficientNet-Lite0 only"):
        Run(settings, tmp_path / "run")


def test_norms_and_embeddings_do_not_decay_and_the_backbone_is_slower(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    network = shipped(Run(settings, tmp_path / "run"))
    groups = {(g["lr"], g["weight_decay"]): g["params"] for g in optimizer_for(network, settings.optim).param_groups}
    assert {rate for rate, _ in groups} == {1e-4, 1e-5}
    plain = {id(p) for p in groups[1e-4, 0.0]}
    predictor = network.sem_seg_head.predictor
    assert {id(predictor.query_feat.weight), id(predictor.decoder_norm.weight)} <= plain
    assert id(predictor.class_embed.weight) not in plain


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("steps", {0: 0.5, 1: 1.0, 5: 1.0, 6: 0.1, 9: 0.1}),
        ("trapezoid", {0: 0.5, 1: 1.0, 5: 1.0, 8: 0.5, 9: 0.25}),
    ],
)
def test_schedules(schedule: Any, expected: dict[int, float]) -> None:
    settings = OptimSettings(steps=10, lr=1.0, warmup_steps=2, schedule=schedule, decay_at=(0.6,), cooldown=0.4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_for(optimizer, settings)
    rates = {}
    for step in range(10):
        rates[step] = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    assert {step: rates[step] for step in expected} == pytest.approx(expected)


def test_a_run_takes_clips_of_different_sizes(tmp_path: Path) -> None:
    """Photos of 96 x 160 seen as 40 x 67 and 60 x 100, in batches of two and for validation."""
    settings = tiny_settings(tmp_path / "data", batch=2)
    view = ShortSideView(
        "short_side", (40, 60), rotation_deg=15.0, pseudo_crop=CropSettings(1.0, (96,), (60, 90), True)
    )
    clips = replace(settings.data.clips, view=view, min_area_px=0, min_visible=0.0)
    train(replace(settings, data=replace(settings.data, clips=clips, validation_clips=4)), tmp_path / "run")
    assert len(losses_of(tmp_path / "run")) == 4
    assert '"quality_linked"' in (tmp_path / "run" / "metrics.jsonl").read_text()


ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 300


def launched(program: Sequence[str], launcher: Sequence[str]) -> str:
    """The output of two processes of `program`; both are killed where they do not end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ports = [part.format(port=port) for part in launcher]
    command = [sys.executable, "-m", *ports, *program]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}")


def first_losses(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The loss points are drawn by each process: losses agree to 5 %, weights to twice the rate times the steps."""
    settings = tiny_settings(tmp_path / "data", steps=2, batch=4, ema_decay=0.0)
    one = train(settings, tmp_path / "one")
    file, folder = tmp_path / "two.json", tmp_path / "two"
    file.write_text(json.dumps(asdict(settings)))
    output = launched(["-m", "visrt", "train", str(file), "--out", str(folder)], TORCHRUN)
    assert "4 clips of 2 frames a step = 2 processes x 2" in output
    assert output.count("visrt: weights:") == 1
    alone, shared = first_losses(tmp_path / "one"), first_losses(tmp_path / "two")
    assert shared["loss"] == pytest.approx(alone["loss"], rel=0.05)
    both = load_file(one.weights), load_file(tmp_path / "two" / "model.safetensors")
    assert all((both[0][key] - both[1][key]).abs().max() <= 4 * settings.optim.lr for key in both[0])


class Sums:
    """Losses without chance, for the loop: the mean brightness over the frames and over the target masks."""

    qualities = ("recall",)

    def counts(self, batch: Batch) -> list[float]:
        return [batch.mask_count]

    def losses(self, trained: torch.nn.Module, batch: Batch, counts: list[float]) -> dict[str, Tensor]:
        layers, features, embeddings = trained(batch.images)
        seen = torch.tensor([float(len(target.labels)) for target in batch.targets])
        per_frame = features.flatten(1).mean(1) + sum(layer.class_logits.flatten(1).mean(1) for layer in layers)
        return {"sum": (per_frame * seen).sum() / counts[0], "mean": embeddings.square().mean()}


def gradients(settings: TrainSettings, folder: Path) -> dict[str, Tensor]:
    run = Run(settings, folder)
    run.learner = Sums()  # type: ignore[assignment]
    run.network.train()
    run._gradients(next(iter(run.batches())))
    return {name: p.grad.clone() for name, p in run.trained.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("clips_at_once", [1, 2, 3])
def test_clips_that_are_not_held_at_once_give_the_gradient_of_all(tmp_path: Path, clips_at_once: int) -> None:
    settings = tiny_settings(tmp_path / "data", steps=1, batch=5)
    whole = gradients(settings, tmp_path / "whole")
    split = replace(settings, optim=replace(settings.optim, clips_at_once=clips_at_once))
    parts = gradients(split, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert whole
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data", batch=6)
    assert batches_a_step(replace(settings, optim=replace(settings.optim, clips_at_once=2)), 2) == 2
    with pytest.raises(
        SettingsError, match=r"optim\.batch is 6 .* 4 processes cannot share .* start 1, 2, 3, 6 processes"
    ):
        batches_a_step(settings, 4)


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_is_one_line_that_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    run = Run(tiny_settings(tmp_path / "data"), tmp_path / "run")

    def full(*_: object) -> dict[str, Tensor]:
        raise fault

    monkeypatch.setattr(run.learner, "losses", full)
    with pytest.raises(SettingsError, match=r"step 0: out of memory .*clips_at_once .*mixed_precision"):
        run.advance(next(iter(run.batches())))


def test_a_start_that_fails_leaves_nothing_that_blocks_the_next(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    with pytest.raises(SettingsError, match=r"optim\.stop needs held-out clips, but the held_out part .* has no scene"):
        train(without_held_out(replace(settings, optim=replace(settings.optim, stop=StopSettings()))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = Run(replace(settings, seed=5), tmp_path / "run")
    run.resume()
    assert train(settings, tmp_path / "run").step == 4


def without_held_out(settings: TrainSettings) -> TrainSettings:
    return replace(settings, data=replace(settings.data, sources=(replace(settings.data.sources[0], held_out=0.0),)))


def test_a_run_without_held_out_pictures_trains_and_says_once_that_it_measures_no_quality(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = train(without_held_out(tiny_settings(tmp_path / "data")), tmp_path / "run", lines.append)
    assert (outcome.step, outcome.quality, outcome.plot.is_file()) == (4, {}, True)
    [said] = [line for line in lines if "no quality" in line]
    assert "as no photo or video is held out (held_out of its sources)" in said
    assert not any("held-out clips" in line for line in lines)
    # The same command resumes, and has nothing left to do.
    assert train(without_held_out(tiny_settings(tmp_path / "data")), tmp_path / "run").step == 4


def test_pictures_that_would_end_the_run_later_are_named_before_it(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    (tmp_path / "data" / "images" / "1.png").write_text("no picture")
    write_png(tmp_path / "data" / "images" / "4.png", np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"2 pictures cannot be used: .*1\.png: not a readable image.*4\.png: 96 x 162"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kill_between_two_states_leaves_the_one_before(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    run = Run(settings, tmp_path / "run")
    run.resume()
    run.save()
    (tmp_path / "run" / "state").rename(tmp_path / "run" / "state.old")
    (tmp_path / "run" / "state.part").mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "lo')
    assert train(settings, tmp_path / "run").step == 4


def test_a_run_stops_when_the_quality_does_not_improve_and_ships_the_best(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data", steps=9, stop=StopSettings(validations=2))
    lines: list[str] = []
    outcome = train(replace(settings, validate_every=1), tmp_path / "run", lines.append)
    assert outcome.step == 1
    assert any("step 3: stopped" in line for line in lines)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_lines_of_progress_come_now_and_then() -> None:
    lines: list[str] = []
    seconds = iter([0.0, 2.0, 2.0, 3.0, 33.0, 33.0])
    report = ProgressLines(100, 0, lines.append, lambda: next(seconds))
    for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0)):
        report(step, loss)
    assert lines == [
        "step 1 of 100: loss 9.00, 2.00 s a step, 3 min left",
        "step 3 of 100: loss 7.00, 15.50 s a step, 25 min left",
    ]
