"""EoMT in the training loop: images, or the frames of clips one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.eomt_start import start_vit
from visrt.models.checkpoints.start import take_known_classes
from visrt.models.decoder import LayerPrediction
from visrt.models.eomt import Eomt
from visrt.models.mask2former import FrameOutputs
from visrt.training.batches import Batch, validation_clips
from visrt.training.learner import Trained
from visrt.training.losses.mask2former import frame_losses
from visrt.training.quality import clip_quality
from visrt.training.vit.eomt_settings import EomtTrainSettings, check_eomt_settings

__all__ = ["EomtLearner", "TrainedEomt", "fading_masks"]

FADES = (1 / 6, 2 / 3)
"""Where the masks of the first and of the last block begin to fade, as shares of the steps."""
FADE_TIME = 1 / 6
FADE_POWER = 0.9


def fading_masks(step: int, steps: int, blocks: int) -> tuple[float, ...]:
    """Probability of each of the last `blocks` that a query keeps its mask in it, after `step` of `steps`.

    Masks fade one block after the other, evenly over the middle two thirds of the training: the published steps of
    ViT-S, -B and -L at 640 pixels.
    """
    first, last = FADES
    starts = [first + (last - first) * i / max(blocks - 1, 1) for i in range(blocks)]
    progress = [(step / steps - start) / FADE_TIME for start in starts]
    return tuple((1 - min(max(done, 0.0), 1.0)) ** FADE_POWER for done in progress)


class TrainedEomt(Trained):
    """The predictions before each block with queries and after the last."""

    network: Eomt

    def __init__(self, network: Eomt, settings: EomtTrainSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, images: Tensor) -> list[FrameOutputs]:
        grid = self.network.grid(*images.shape[2:])
        return self.network.masked_layers(self.network.encoder(images, grid), grid, self.probabilities())

    def probabilities(self) -> tuple[float, ...]:
        """Of each block with queries, that a query keeps its mask in this step."""
        blocks = self.settings.network.query_blocks
        if self.settings.masked_attention == "off":
            return (0.0,) * blocks
        return fading_masks(self.step, self.settings.optim.steps, blocks)


class EomtLearner:
    """One run of EoMT."""

    qualities: tuple[str, ...] = ("recall", "precision", "linked")

    def __init__(self, settings: EomtTrainSettings) -> None:
        check_eomt_settings(settings)
        self.settings = settings

    def start(self) -> TrainedEomt:
        settings = self.settings
        trained = TrainedEomt(Eomt(settings.network), settings)
        start = start_vit(trained.network, settings.init, settings.init_takes)
        trained.start_report = start.lines() if start else ()
        if settings.init_takes == "network":
            trained.start_report += take_known_classes(trained.network, settings.init, settings.data.clips.classes)
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """Target masks."""
        return [batch.mask_count]

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        """The sum over all predictions, each matched by itself."""
        [mask_count] = counts
        totals: dict[str, Tensor] = {}
        for outputs in trained(batch.images):
            layer = LayerPrediction(outputs.class_logits, outputs.mask_embeddings, outputs.embeddings)
            losses, _ = frame_losses([layer], outputs.mask_features, batch.targets, self.settings.loss, mask_count)
            totals = {name: totals[name] + loss if name in totals else loss for name, loss in losses.items()}
        return totals

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, Eomt)
        return clip_quality(network, validation_clips(self.settings), device)
