"""Claims about VidEoMT's online stage: frames as in the runtime, a gradient through the state, levels as released."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from vit_runs import NETWORK, videomt_run

from visrt.models.videomt import VideoMt
from visrt.training.losses.targets import FrameTargets
from visrt.training.losses.videomt import online_losses
from visrt.training.vit.videomt_learner import TrainedVideoMt, VideoMtLearner

FRAMES = 5


def trained() -> TrainedVideoMt:
    torch.manual_seed(0)
    return TrainedVideoMt(VideoMt(NETWORK)).eval()


def images(clips: int = 1) -> Tensor:
    return torch.randn(clips * FRAMES, 3, 32, 64, generator=torch.Generator().manual_seed(1))


def test_the_last_prediction_of_each_frame_is_that_of_the_running_network() -> None:
    network, frames = trained(), images(2)
    with torch.no_grad():
        predictions = network(frames, FRAMES)
        for b, clip in enumerate(frames.split(FRAMES)):
            for levels, outputs in zip(predictions, network.network(clip), strict=True):
                for ours, theirs in zip(levels[-1], outputs.frame, strict=True):
                    torch.testing.assert_close(ours[b : b + 1], theirs)


def test_the_prediction_before_the_last_block_is_left_out_and_the_heads_read_the_others_without_the_norm() -> None:
    network = trained()
    with torch.no_grad():
        levels = network(images(), FRAMES)[0]
        assert len(levels) == NETWORK.query_blocks
        queries = network.network.query.weight[None]
        torch.testing.assert_close(levels[0].embeddings, queries)
        torch.testing.assert_close(levels[0].class_logits, network.network.class_predictor(queries))


def last_frame_gradient(network: TrainedVideoMt) -> Tensor:
    """The size [T] of the gradient of the last frame's loss with respect to each frame of a clip."""
    frames = images().requires_grad_()
    target = FrameTargets(torch.tensor([1]), torch.ones(1, 32, 64), torch.tensor([0]))
    settings = videomt_run(Path("nowhere")).loss
    last = network(frames, FRAMES)[-1]
    sum(online_losses([last], [target], settings, "own", 1.0).values(), torch.zeros(())).backward()
    assert frames.grad is not None
    sizes: Tensor = torch.linalg.vector_norm(frames.grad.flatten(1), dim=1)
    return sizes


def test_the_loss_of_the_last_frame_reaches_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (last_frame_gradient(trained()) > 0).all()

    following = VideoMt.next_queries
    monkeypatch.setattr(VideoMt, "next_queries", lambda self, queries: following(self, queries).detach())
    assert (last_frame_gradient(trained()) > 0).tolist() == [False] * (FRAMES - 1) + [True]


@pytest.mark.parametrize(("first_updater", "is_zero"), [("nothing", True), ("random", False)])
def test_a_new_updater_begins_as_chosen(first_updater: str, is_zero: bool) -> None:
    settings = videomt_run(Path("nowhere"), first_updater=first_updater)
    updater = VideoMtLearner(settings).start().network.query_updater
    assert (torch.count_nonzero(updater.weight) == 0) == is_zero
