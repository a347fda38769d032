"""Claims about several processes and batches a step: they train as one process with one batch does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import tiny_settings
from torch import Tensor

from visrt.runtime.errors import SettingsError
from visrt.training.batches import Batch, batches_a_step
from visrt.training.loop import Run, train
from visrt.training.progress import ProgressLines
from visrt.training.settings import StopSettings, TrainSettings

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 120


def launched(settings: TrainSettings, folder: Path, *launcher: str) -> str:
    """The output of two processes that train `settings`; both are killed where they do not end."""
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(asdict(settings)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ports = [part.format(port=port) for part in launcher]
    command = [sys.executable, "-m", *ports, "-m", "visrt", "train", str(file), "--out", str(folder)]
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
    output = launched(settings, tmp_path / "two", *TORCHRUN)
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
def test_out_of_memory_is_one_line_that_says_what_to_change(tmp_path: Path, fault: Exception) -> None:
    run = Run(tiny_settings(tmp_path / "data"), tmp_path / "run")

    def full(*_: object) -> dict[str, Tensor]:
        raise fault

    run.learner.losses = full  # type: ignore[method-assign]
    with pytest.raises(SettingsError, match=r"step 0: out of memory .*clips_at_once .*mixed_precision"):
        run.advance(next(iter(run.batches())))


def test_a_start_that_fails_leaves_nothing_that_blocks_the_next(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "data")
    data = replace(settings.data, sources=(replace(settings.data.sources[0], held_out=0.0),))
    with pytest.raises(SettingsError, match="held_out"):
        train(replace(settings, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = Run(replace(settings, seed=5), tmp_path / "run")
    run.resume()
    assert train(settings, tmp_path / "run").step == 4


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
