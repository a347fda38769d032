"""Optimiser, schedule and weight average."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from visrt.training.settings import OptimSettings

__all__ = ["optimizer_for", "scheduler_for"]

UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
PYRAMID = "backbone.fpn_"
"""InsPro keeps the convolutions of its pyramid with the backbone, as detectron2 does; they start untrained."""


def optimizer_for(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW; norms, embeddings and position-bias tables without weight decay, the backbone at its own rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            path = f"{module_name}.{name}".removeprefix("network.")
            pretrained = path.startswith("backbone.") and not path.startswith(PYRAMID)
            rate = settings.lr * (settings.backbone_factor if pretrained else 1.0)
            plain = isinstance(module, UNDECAYED) or "relative_position_bias_table" in name or name == "level_embed"
            groups.setdefault((rate, 0.0 if plain else settings.weight_decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
    )


def scheduler_for(optimizer: torch.optim.Optimizer, settings: OptimSettings) -> LambdaLR:
    return LambdaLR(optimizer, SCHEDULES[settings.schedule](settings))


def _steps(settings: OptimSettings) -> Callable[[int], float]:
    drops = [fraction * settings.steps for fraction in settings.decay_at]
    return lambda step: _warmup(step, settings) * 0.1 ** sum(step >= drop for drop in drops)


def _trapezoid(settings: OptimSettings) -> Callable[[int], float]:
    cooldown_steps = max(settings.cooldown * settings.steps, 1.0)
    return lambda step: _warmup(step, settings) * min(1.0, max(settings.steps - step, 0) / cooldown_steps)


def _warmup(step: int, settings: OptimSettings) -> float:
    return min(1.0, (step + 1) / max(settings.warmup_steps, 1))


SCHEDULES = {"steps": _steps, "trapezoid": _trapezoid}
