"""Optimiser, schedule and weight average."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from visrt.models.checkpoints.eomt_keys import ENCODER
from visrt.runtime.errors import SettingsError
from visrt.training.settings import LayerRates, OptimSettings

__all__ = ["optimizer_for", "scheduler_for"]

UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
PYRAMID = "backbone.fpn_"
"""InsPro keeps the convolutions of its pyramid with the backbone, as detectron2 does; they start untrained."""

BLOCK = re.compile(r"layers\.(\d+)\.")
POWER = 0.9
"""Of the polynomial schedule."""

Factor = Callable[[int], float]
"""What a learning rate is multiplied by after so many steps."""


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike. late: they wait while the others warm up, as a plain vision transformer does."""

    lr: float
    weight_decay: float
    late: bool = False


def optimizer_for(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW; norms, embeddings and position-bias tables without weight decay, the backbone at its own rate. With
    `layers`, everything with weight decay, the blocks of a plain vision transformer each at its own rate.

    Raises SettingsError for `layers` with another network or schedule.
    """
    grouped = _grouped(model, settings) if settings.layers is None else _by_depth(model, settings, settings.layers)
    groups: dict[Group, list[nn.Parameter]] = {}
    for group, parameter in grouped:
        groups.setdefault(group, []).append(parameter)
    # The whole rate last, where the loop reads it.
    return torch.optim.AdamW(
        [
            {"params": groups[group], "lr": group.lr, "weight_decay": group.weight_decay, "late": group.late}
            for group in sorted(groups, key=lambda group: not group.late)
        ]
    )


def _grouped(model: nn.Module, settings: OptimSettings) -> Iterator[tuple[Group, nn.Parameter]]:
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            path = f"{module_name}.{name}".removeprefix("network.")
            pretrained = path.startswith("backbone.") and not path.startswith(PYRAMID)
            rate = settings.lr * (settings.backbone_factor if pretrained else 1.0)
            plain = isinstance(module, UNDECAYED) or "relative_position_bias_table" in name or name == "level_embed"
            yield Group(rate, 0.0 if plain else settings.weight_decay), parameter


def _by_depth(model: nn.Module, settings: OptimSettings, layers: LayerRates) -> Iterator[tuple[Group, nn.Parameter]]:
    named = [(path.removeprefix("network."), parameter) for path, parameter in model.named_parameters()]
    blocks = 1 + max((int(found[1]) for path, _ in named if (found := BLOCK.match(path))), default=-1)
    if not blocks or settings.schedule != "polynomial":
        fault = f"optim.schedule is {settings.schedule!r}" if blocks else "the network is no plain vision transformer"
        raise SettingsError(
            f"optim.layers is set, but {fault}; leave it out, or train EoMT or VidEoMT with schedule 'polynomial'"
        )
    for path, parameter in named:
        if parameter.requires_grad:
            rate = settings.lr * _share(path, blocks, layers)
            yield Group(rate, settings.weight_decay, late=path.startswith(ENCODER)), parameter


def _share(path: str, blocks: int, layers: LayerRates) -> float:
    """The share of the learning rate for the weight at `path`; the last norm and the heads have all of it."""
    found = BLOCK.match(path)
    if not found and not path.startswith(ENCODER[0]):
        return 1.0
    block = int(found[1]) if found else 0
    if found and block >= blocks - layers.whole_blocks:
        return 1.0
    share: float = layers.decay ** (blocks - 1 - block)
    return share


def scheduler_for(optimizer: torch.optim.Optimizer, settings: OptimSettings) -> LambdaLR:
    schedule = SCHEDULES[settings.schedule](settings)
    late = _late(settings, settings.layers) if settings.layers else schedule
    return LambdaLR(optimizer, [late if group.get("late") else schedule for group in optimizer.param_groups])


def _steps(settings: OptimSettings) -> Factor:
    drops = [fraction * settings.steps for fraction in settings.decay_at]
    return lambda step: _warmup(step, settings) * 0.1 ** sum(step >= drop for drop in drops)


def _trapezoid(settings: OptimSettings) -> Factor:
    cooldown_steps = max(settings.cooldown * settings.steps, 1.0)
    return lambda step: _warmup(step, settings) * min(1.0, max(settings.steps - step, 0) / cooldown_steps)


def _warmup(step: int, settings: OptimSettings) -> float:
    return min(1.0, (step + 1) / max(settings.warmup_steps, 1))


def _polynomial(settings: OptimSettings) -> Factor:
    return _warmed(0, settings.warmup_steps, settings.steps)


def _late(settings: OptimSettings, layers: LayerRates) -> Factor:
    return _warmed(settings.warmup_steps, layers.warmup_steps, settings.steps)


def _warmed(start: int, warmup: int, steps: int) -> Factor:
    """As EoMT and VidEoMT were released: zero until step `start`, to 1 over `warmup` steps, back to zero at `steps`."""
    peak = start + warmup

    def factor(step: int) -> float:
        if step < peak:
            return max(step - start, 0) / warmup if warmup else 0.0
        left: float = max(0.0, 1 - (step - peak) / max(steps - peak, 1)) ** POWER
        return left

    return factor


SCHEDULES: dict[str, Callable[[OptimSettings], Factor]] = {
    "steps": _steps,
    "trapezoid": _trapezoid,
    "polynomial": _polynomial,
}
