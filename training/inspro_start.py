"""The start of an InsPro run: from nothing, from a trained backbone, or from all that fits of a checkpoint."""

from __future__ import annotations

import math

import torch

from visrt.models.checkpoints.start import Start, start_from_init
from visrt.models.inspro import InsPro
from visrt.training.inspro_settings import InsProTrainSettings

__all__ = ["first_network"]

LITE = ("lite_head.", "lite_controller.")


def first_network(settings: InsProTrainSettings) -> tuple[InsPro, Start | None]:
    """A fresh network with what fits of the weights that `settings.init` names, and what that was.

    Raises SettingsError or CheckpointError where they do not fit, in phase "lite" if more than the lite head is new.
    """
    network = InsPro(settings.network)
    if settings.first_boxes == "grid":
        _spread_boxes(network)
    start = start_from_init(network, settings.init, settings.init_takes)
    if start and settings.phase == "lite":
        trained = [key for key in start.new if key.startswith(LITE)]
        start.require(("",), "in phase 'lite' all but the lite head stays as it is", but=trained)
        if settings.first_lite == "last" and any(key.startswith(LITE[0]) for key in trained):
            _take_last_stages(network)
    return network, start


@torch.no_grad()
def _spread_boxes(network: InsPro) -> None:
    """Proposals twice as large as the cells of a grid of about square cells in a picture of 16:9, one in each."""
    count = network.settings.queries
    rows = max(1, round(math.sqrt(count * 9 / 16)))
    columns = math.ceil(count / rows)
    places = torch.arange(count)
    centres = torch.stack(((places % columns + 0.5) / columns, (places // columns + 0.5) / rows), dim=-1)
    sizes = torch.tensor([2 / columns, 2 / rows]).expand(count, 2)
    network.init_proposal_boxes.weight.copy_(torch.cat((centres, sizes), dim=-1))


def _take_last_stages(network: InsPro) -> None:
    """The lite head as a copy of as many last stages."""
    last = list(network.head.head_series)[-network.settings.lite_stages :]
    for lite, stage in zip(network.lite_head.head_series, last, strict=True):
        lite.load_state_dict(stage.state_dict())
    if hasattr(network, "lite_controller"):
        network.lite_controller.load_state_dict(network.controller.state_dict())
