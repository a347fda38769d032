"""The training loop: clips in, a checkpoint, a metrics file and a plot out. Interrupted runs resume where they were.

A step's clips are divided among processes (torchrun, accelerate launch), and each process may go through its own in
several batches; the gradient is that of all clips in one batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.layers import checkpoint_activations
from visrt.runtime.errors import NumericalError, SettingsError, VisrtError
from visrt.training.batches import Batch, batches_a_step, clip_loader, training_clips
from visrt.training.frame_learner import FrameLearner
from visrt.training.genvis_learner import video_learner
from visrt.training.inspro_learner import InsProLearner
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.learner import Learner, Trained
from visrt.training.optim import optimizer_for, scheduler_for
from visrt.training.plot import plot_run
from visrt.training.preflight import (
    activation_bytes,
    check_disk,
    check_pictures,
    check_validation,
    data_lines,
    first_batch,
    largest_frame,
    size_bytes,
    trained_bytes,
)
from visrt.training.progress import progress
from visrt.training.run_folder import RunFolder
from visrt.training.run_settings import RunSettings
from visrt.training.settings import TrainSettings, check_settings
from visrt.training.vit.eomt_learner import EomtLearner
from visrt.training.vit.eomt_settings import EomtTrainSettings
from visrt.training.vit.videomt_learner import VideoMtLearner
from visrt.training.vit.videomt_settings import VideoMtTrainSettings

__all__ = ["Outcome", "Run", "learner_of", "train"]

T = TypeVar("T")

PATIENCE = timedelta(hours=3)
"""How long processes wait for one another: the main one reads annotations, validates and saves alone."""

LEAST_SCALE = 2.0**-10
"""Below it fp16 does not overflow by chance: the run has diverged."""


@dataclass(frozen=True)
class Outcome:
    """A run that ended. step: of its weights, at which the quality on held-out clips was `quality`, by name."""

    weights: Path
    plot: Path
    step: int
    quality: dict[str, float]


def train(settings: RunSettings, folder: Path, on_line: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run `settings` in `folder`, from its last saved state if there is one.

    Everything is checked before the first step; `on_line` gets lines that describe the run, its progress and its end,
    in the main process alone. Raises VisrtError: NumericalError if the loss diverges.
    """
    run = Run(settings, folder)
    say = on_line if run.is_main else lambda _: None
    run.resume()
    for line in run.description():
        say(line)
    with progress(settings.optim.steps, run.step, say if run.is_main else lambda _: None) as report:
        for batches in run.batches():
            metrics = run.advance(batches)
            report(run.step, metrics["loss"])
            if run.step % settings.save_every == 0:
                run.save()
            if run.step % settings.validate_every == 0:
                _validate(run, say)
                if run.is_stale():
                    say(f"step {run.step}: stopped, as {_stop_name(settings)} has not improved for a while")
                    break
    if run.step % settings.validate_every or not run.qualities():
        _validate(run, say)
    run.save()
    outcome = run.outcome()
    for line in _ending(outcome, run):
        say(line)
    return outcome


def _validate(run: Run, say: Callable[[str], None]) -> None:
    quality = run.validate()
    if quality:
        say(f"step {run.step}: {_listed(quality)} on held-out clips")


def _stop_name(settings: RunSettings) -> str:
    return settings.optim.stop.quality if settings.optim.stop else ""


def _listed(quality: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in quality.items())


def _ending(outcome: Outcome, run: Run) -> list[str]:
    lines = []
    if outcome.quality:
        lines.append(f"weights of step {outcome.step}: {_listed(outcome.quality)} on held-out clips")
        name = _stop_name(run.settings) or run.learner.qualities[0]
        step, best = max(run.qualities().items(), key=lambda pair: pair[1][name])
        if step != outcome.step:
            lines.append(f"best {name} was {best[name]:.3f}, at step {step}")
    return [*lines, f"weights: {outcome.weights}; plot of losses and quality: {outcome.plot}"]


def learner_of(settings: RunSettings) -> Learner:
    """The learner of `settings`. Raises SettingsError if they contradict each other."""
    if not isinstance(settings, TrainSettings):
        return LEARNERS[type(settings)](settings)
    check_settings(settings)
    if settings.genvis is not None:
        return video_learner(settings, settings.genvis)
    return FrameLearner(settings)


LEARNERS: dict[type, Callable[[Any], Learner]] = {
    InsProTrainSettings: InsProLearner,
    EomtTrainSettings: EomtLearner,
    VideoMtTrainSettings: VideoMtLearner,
}
"""By the settings of a family, what refuses contradictions among them and then trains it."""


class Run:
    """A run under way: network, optimiser, average, step."""

    def __init__(self, settings: RunSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = RunFolder(folder)
        self.step = 0
        self.accelerator = _accelerator(settings)
        self.is_main = bool(self.accelerator.is_main_process)
        self.validates = False
        self.learner, self.clips, self.trained = _first_on_main(self.accelerator, self._checked)
        optimizer = optimizer_for(self.trained, settings.optim)
        self.network, self.optimizer = self.accelerator.prepare(self.trained, optimizer)
        # Not prepared by accelerate, which would step it once a process.
        self.scheduler = scheduler_for(optimizer, settings.optim)
        self.average = self._fresh_average() if settings.optim.ema_decay else None
        self.accelerator.register_for_checkpointing(self.scheduler, *([self.average] if self.average else []))

    def _checked(self) -> tuple[Learner, Any, Trained]:
        """All that the run needs; refused here is refused before anything is written."""
        settings = self.settings
        learner = learner_of(settings)
        self.folder.check(settings)
        batches_a_step(settings, self.accelerator.num_processes)
        clips = training_clips(settings)
        set_seed(settings.seed)
        trained = learner.start()
        if settings.optim.checkpoint_activations:
            checkpoint_activations(trained.network)
        if self.is_main:
            check_disk(trained, settings, self.folder.path)
            check_pictures(settings)
            self.validates = check_validation(settings, learner)
        return learner, clips, trained

    def _fresh_average(self) -> AveragedModel:
        decay = self.settings.optim.ema_decay
        return AveragedModel(self.trained.network, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def description(self) -> list[str]:
        """What the run will do, in lines; from the main process, which measures memory for it."""
        if not self.is_main:
            return []
        optim, processes = self.settings.optim, self.accelerator.num_processes
        own = optim.batch // processes
        at_once = min(optim.clips_at_once or own, own)
        trained, network = trained_bytes(self.trained), size_bytes(self.trained.parameters())
        lines = [
            f"network: {type(self.trained.network).__name__}, {network / 4e6:.1f} million parameters, "
            f"{trained / 4e6:.1f} in training",
            *self.trained.start_report,
            *data_lines(self.clips, self.settings),
            f"steps: {optim.steps}" + (f", of which {self.step} are done" if self.step else ""),
            f"batch: {optim.batch} clips of {self.settings.data.clips.frames} frames a step = {processes} "
            f"process{'es' if processes > 1 else ''} x {own}, {at_once} at once, on {self.accelerator.device}",
            self._memory_line(network, trained, at_once),
            f"writes to {self.folder.path}: a state every {self.settings.save_every} steps, {self._measured()}",
        ]
        if optim.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            lines.append("mixed_precision is fp16, which a CPU does not train in: this run computes in float32")
        return lines

    def _measured(self) -> str:
        data = self.settings.data
        if self.validates:
            return f"quality on {data.validation_clips} held-out clips every {self.settings.validate_every}"
        why = (
            "no photo or video is held out (held_out of its sources)" if data.validation_clips else "none was asked for"
        )
        return f"no quality, as {why}"

    def _memory_line(self, network: int, trained: int, at_once: int) -> str:
        batch = first_batch(self.clips, self.settings).to(self.accelerator.device)
        with _memory_explained(self):
            kept = activation_bytes(self.learner, self.trained, batch)
        height, width = largest_frame(self.settings.data.clips)
        pixels = batch.images.shape[2] * batch.images.shape[3]
        activations = kept * max(height * width / pixels, 1.0) * at_once
        fixed = network * (2 if self.average else 1) + 3 * trained
        return (
            f"memory: about {(fixed + activations) / 2**30:.1f} GiB a process: {fixed / 2**30:.1f} for weights, "
            f"gradients and optimiser, {activations / 2**30:.1f} for activations (kept by a forward pass of one clip, "
            f"scaled to {at_once} of {height} x {width} pixels; peaks within layers and the framework come on top)"
        )

    def resume(self) -> None:
        """Write the settings; load the last whole state if there is one."""
        saved, self.step = self.folder.saved_in(), self.folder.saved_step()
        self.accelerator.wait_for_everyone()
        if saved is not None:
            self.accelerator.load_state(str(saved))
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.folder.begin(self.settings)

    def batches(self) -> Iterator[list[Batch]]:
        """For each step that is left, the batches of this process; they are the same however often a run was
        interrupted."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        loader: DataLoader[Any] = clip_loader(self.clips, self.settings, self.step, process, processes)
        batches, count = iter(loader), batches_a_step(self.settings, processes)
        while step := list(islice(batches, count)):
            yield step

    def advance(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step over `batches`."""
        started = time.perf_counter()
        self.network.train()
        self.trained.step = self.step
        with _memory_explained(self):
            losses = self._gradients(batches)
        metrics = {"loss": sum(losses.values()), **{f"loss_{name}": value for name, value in losses.items()}}
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            raise self._diverged(f"the loss is {metrics['loss']}")
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm or math.inf)
        self._update(float(norm))
        self.step += 1
        seconds = time.perf_counter() - started
        rate = float(self.scheduler.get_last_lr()[-1])
        self._log({**metrics, "grad_norm": float(norm), "lr": rate, "step_s": seconds})
        return metrics

    def _gradients(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add up the gradients of `batches`, each by its share of the clips; the mean losses over all processes."""
        total = self.settings.optim.batch
        own = sum(len(batch.sizes) for batch in batches)
        counts = self._counts_of_step(batches)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            clips = len(batch.sizes)
            here = batch.to(self.accelerator.device)
            # Processes exchange gradients once, after the last.
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.network):
                losses = self.learner.losses(self.network, here, [count * clips / total for count in counts])
                self.accelerator.backward(sum(losses.values(), start=here.images.new_zeros(())) * (clips / own))
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach().float() * (clips / own)
        means = self.accelerator.reduce(torch.stack([*sums.values()]), reduction="mean")
        return dict(zip(sums, means.tolist(), strict=True))

    def _counts_of_step(self, batches: Sequence[Batch]) -> list[float]:
        """The learner's counts over all batches and processes, each at least 1."""
        counts = [sum(numbers) for numbers in zip(*map(self.learner.counts, batches), strict=True)]
        if not counts:
            return []
        tensor = torch.tensor(counts, dtype=torch.float32, device=self.accelerator.device)
        return [max(float(count), 1.0) for count in self.accelerator.reduce(tensor, reduction="sum")]

    def _update(self, norm: float) -> None:
        """Move the weights. An fp16 gradient that overflowed moves nothing; the schedule counts its step all the same,
        as detectron2's does.
        """
        scaler = self.accelerator.scaler
        if scaler is None and not torch.isfinite(torch.tensor(norm)):
            raise self._diverged(f"the gradient's norm is {norm}")
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            raise self._diverged("fp16 gradients overflow at every scale")
        self.optimizer.step()
        # torch warns of a schedule before its first step, which an overflow is not.
        vars(self.scheduler.optimizer)["_opt_called"] = True
        self.scheduler.step()
        if self.average is not None and not self.accelerator.optimizer_step_was_skipped:
            self.average.update_parameters(self.trained.network)
        self.optimizer.zero_grad(set_to_none=True)

    def _diverged(self, fault: str) -> NumericalError:
        return NumericalError(
            f"step {self.step}: {fault}; the last saved state is in {self.folder.state}; lower optim.lr and resume"
        )

    def validate(self) -> dict[str, float]:
        """Quality on the held-out clips by name, also in the metrics file; in the main process, others wait."""
        quality: dict[str, float] = {}
        if self.is_main and self.validates:
            quality = self.learner.quality(self.shipped(), self.accelerator.device)
            self._log({f"quality_{name}": value for name, value in quality.items()})
        if self.is_main:
            plot_run(self.folder.metrics, self.folder.plot)
        self.accelerator.wait_for_everyone()
        if self.settings.optim.stop is not None and self._at_main(lambda: self._best_step() == self.step):
            # The state first, so that the best weights are never ahead of it.
            self.save()
            if self.is_main:
                self._save_weights(self.folder.best)
        return quality

    def qualities(self) -> dict[int, dict[str, float]]:
        """By step, what was measured on held-out clips."""
        prefix = "quality_"
        measured: dict[int, dict[str, float]] = {}
        for row in self.folder.rows():
            found = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
            if found:
                measured[row["step"]] = found
        return measured

    def _best_step(self) -> int:
        """The first step of the best quality."""
        name, measured = _stop_name(self.settings), self.qualities()
        return max(measured, key=lambda step: (measured[step][name], -step))

    def is_stale(self) -> bool:
        """Early stop: whether the quality has not improved for as many validations as the settings allow."""
        stop = self.settings.optim.stop
        if stop is None:
            return False
        return self._at_main(lambda: sum(step > self._best_step() for step in self.qualities()) >= stop.validations)

    def _at_main(self, is_so: Callable[[], bool]) -> bool:
        """The main process's answer, in every process."""
        answer = [is_so() if self.is_main else False]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        return answer[0]

    def save(self) -> None:
        """Write the state to resume from, then the weights to export."""
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(self.folder.part))
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.folder.take_part(self.step)
            self._save_weights(self.folder.weights)
        self.accelerator.wait_for_everyone()

    def _save_weights(self, path: Path) -> None:
        save_checkpoint(self.shipped(), path, self.clips.classes, {"step": str(self.step)})

    def outcome(self) -> Outcome:
        """The end of the run; under early stop the best weights are the ones to export."""
        if self.is_main and self.folder.best.exists() and self.settings.optim.stop is not None:
            os.replace(self.folder.best, self.folder.weights)
        self.accelerator.wait_for_everyone()
        with safe_open(self.folder.weights, framework="pt") as file:
            step = int(file.metadata()["step"])
        return Outcome(self.folder.weights, self.folder.plot, step, self.qualities().get(step, {}))

    def shipped(self) -> nn.Module:
        """The network as it would ship now: the running average if one is kept."""
        module = self.trained.network if self.average is None else self.average.module
        assert isinstance(module, nn.Module)
        return module

    def _log(self, values: dict[str, float]) -> None:
        if self.is_main:
            self.folder.log(self.step, values)


def _accelerator(settings: RunSettings) -> Accelerator:
    """Of all processes that were started together. Raises SettingsError if this one does not see the others."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        # An earlier run of this process may have had another precision, which accelerate keeps.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.optim.mixed_precision,
        cpu=started > 1 and not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes != started:
        raise SettingsError(
            f"WORLD_SIZE is {started}, but this process sees {accelerator.num_processes}; start all with torchrun or "
            "accelerate launch"
        )
    return accelerator


def _first_on_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """`make()` in the main process, then in the others, which find what it has cached; where it fails, it alone says
    why."""
    if accelerator.num_processes == 1:
        return make()
    fault: list[int | None] = [None]
    made = None
    if accelerator.is_main_process:
        try:
            made = make()
        except Exception as error:
            fault = [error.exit_code if isinstance(error, VisrtError) else 1]
            broadcast_object_list(fault)
            raise
    broadcast_object_list(fault)
    if fault[0] is not None:
        raise SystemExit(fault[0])
    return make() if made is None else made


@contextmanager
def _memory_explained(run: Run) -> Iterator[None]:
    """Out of memory in the `with` block is one line that says what to change. Raises SettingsError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        at_once = run.settings.optim.clips_at_once or run.settings.optim.batch // run.accelerator.num_processes
        height, width = largest_frame(run.settings.data.clips)
        raise SettingsError(
            f"step {run.step}: out of memory on {run.accelerator.device} with {at_once} "
            f"clips at once of {run.settings.data.clips.frames} frames of up to {height} x {width}; lower "
            "optim.clips_at_once (the gradient stays the same), switch on optim.checkpoint_activations, or set "
            "optim.mixed_precision to 'fp16' or 'bf16'"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory")
    )
