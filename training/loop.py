"""The training loop: clips in, a checkpoint, a metrics file and a plot out. Interrupted runs resume where they were.

A run folder holds settings.json (a run can be repeated from it), metrics.jsonl, plot.png, state/ (accelerate's
checkpoint, to resume) and model.safetensors (the weights to export).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.runtime.errors import NumericalError, SettingsError
from visrt.runtime.json_file import read_json_object
from visrt.training.batches import Batch, clip_loader, training_clips
from visrt.training.frame_learner import FrameLearner
from visrt.training.genvis_learner import video_learner
from visrt.training.inspro_learner import InsProLearner
from visrt.training.inspro_settings import InsProTrainSettings, check_inspro_settings
from visrt.training.learner import Learner, Trained
from visrt.training.optim import optimizer_for, scheduler_for
from visrt.training.plot import plot_run
from visrt.training.run_settings import RunSettings, run_settings_from_file
from visrt.training.settings import check_settings

__all__ = ["learner_of", "train"]


def train(
    settings: RunSettings,
    folder: Path,
    progress: Progress | None = None,
    on_remark: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run `settings` in `folder`, from its last saved state if there is one; the path of model.safetensors.

    Raises SettingsError if the folder holds a run of other settings, NumericalError if the loss diverges.
    """
    run = Run(settings, folder)
    run.resume()
    for remark in run.remarks():
        on_remark(remark)
    with progress or _progress() as bar:
        task = bar.add_task("train", total=settings.optim.steps, completed=run.step, loss="")
        for batch in run.batches():
            metrics = run.advance(batch)
            bar.update(task, completed=run.step, loss=f"loss {metrics['loss']:.2f}")
            if run.step % settings.save_every == 0:
                run.save()
            if run.step % settings.validate_every == 0:
                run.validate()
    run.save()
    run.validate()
    return run.weights_path


def learner_of(settings: RunSettings) -> Learner:
    """The learner of `settings`. Raises SettingsError if they contradict each other."""
    if isinstance(settings, InsProTrainSettings):
        check_inspro_settings(settings)
        return InsProLearner(settings)
    check_settings(settings)
    if settings.genvis is not None:
        return video_learner(settings, settings.genvis)
    return FrameLearner(settings)


class Run:
    """A run under way: network, optimiser, average, step."""

    def __init__(self, settings: RunSettings, folder: Path) -> None:
        self.learner = learner_of(settings)
        set_seed(settings.seed)
        self.settings = settings
        self.folder = folder
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        _keep_settings(settings, folder / "settings.json")
        self.accelerator = Accelerator(mixed_precision=settings.optim.mixed_precision)
        self.clips = training_clips(settings, self.accelerator.num_processes)
        network = self.learner.start()
        optimizer = optimizer_for(network, settings.optim)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        # Not prepared by accelerate, which would step it once a process.
        self.scheduler = scheduler_for(optimizer, settings.optim)
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.optim.ema_decay))
        self.accelerator.register_for_checkpointing(self.scheduler, self.average)
        self.metrics_path = folder / "metrics.jsonl"
        self.weights_path = folder / "model.safetensors"

    def resume(self) -> None:
        progress = self.folder / "state" / "progress.json"
        if progress.exists():
            self.accelerator.load_state(str(self.folder / "state"))
            self.step = int(read_json_object(progress, "the step of the saved state")["step"])
            _drop_metrics_after(self.metrics_path, self.step)

    def remarks(self) -> list[str]:
        """The categories and objects that were left out of the data."""
        return self.clips.pool.remarks if self.accelerator.is_main_process else []

    def batches(self) -> Iterator[Batch]:
        """The batches that are left; batch i is the same whether or not the run was interrupted before it."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        loader: DataLoader[Any] = clip_loader(self.clips, self.settings, self.step, process, processes)
        for batch in loader:
            yield batch.to(self.accelerator.device)

    def advance(self, batch: Batch) -> dict[str, float]:
        """One optimiser step."""
        started = time.perf_counter()
        self.network.train()
        with self.accelerator.autocast():
            losses = self.learner.losses(self.network, batch, self._mean)
        total = sum(losses.values(), start=batch.images.new_zeros(()))
        if not torch.isfinite(total):
            raise NumericalError(
                f"step {self.step}: the loss is {total.item()}; the last saved state is in {self.folder / 'state'}; "
                "lower optim.lr and resume"
            )
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        metrics = {"loss": total.item(), **{f"loss_{k}": v.item() for k, v in losses.items()}}
        seconds = time.perf_counter() - started
        rate = float(self.scheduler.get_last_lr()[-1])
        self._log({**metrics, "grad_norm": float(norm or 0.0), "lr": rate, "step_s": seconds})
        return metrics

    def validate(self) -> None:
        """Quality on the held-out clips, if any are held out, appended to the metrics file."""
        if not self.accelerator.is_main_process or not self.settings.data.validation_clips:
            return
        quality = self.learner.quality(self.shipped(), self.accelerator.device)
        self._log({f"quality_{name}": value for name, value in quality.items()})
        plot_run(self.metrics_path, self.folder / "plot.png")

    def save(self) -> None:
        """Write the state to resume from, then the weights to export."""
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(self.folder / "state"))
        if self.accelerator.is_main_process:
            (self.folder / "state" / "progress.json").write_text(json.dumps({"step": self.step}))
            save_checkpoint(self.shipped(), self.weights_path, self.clips.classes, {"step": str(self.step)})

    def shipped(self) -> nn.Module:
        """The network as it would ship now: the running average if one is kept."""
        averaged = self.settings.optim.ema_decay > 0
        trained = self.average.module if averaged else self.accelerator.unwrap_model(self.network)
        assert isinstance(trained, Trained)
        return trained.network

    def _average(self) -> None:
        if self.settings.optim.ema_decay:
            self.average.update_parameters(self.accelerator.unwrap_model(self.network))

    def _mean(self, count: float) -> float:
        """The mean of `count` over processes, at least 1."""
        tensor = torch.tensor(float(count), device=self.accelerator.device)
        return max(float(self.accelerator.reduce(tensor, reduction="mean")), 1.0)

    def _log(self, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps({"step": self.step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")


def _keep_settings(settings: RunSettings, path: Path) -> None:
    """Write the settings once; a folder that holds a run of other settings is refused (steps may be extended)."""
    if path.exists() and _without_steps(run_settings_from_file(path)) != _without_steps(settings):
        raise SettingsError(f"{path.parent} holds a run of other settings; choose another --out or repeat its settings")
    path.write_text(json.dumps(asdict(settings), indent=1) + "\n")


def _without_steps(settings: RunSettings) -> RunSettings:
    return replace(settings, optim=replace(settings.optim, steps=0, cooldown=0.0))


def _drop_metrics_after(path: Path, step: int) -> None:
    """Forget lines written after the last saved state: those steps are run again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
