"""The peers do what the published code does, so that a comparison with them is one with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from genvis_bundles import exported_genvis
from networks import PUBLISHED_KIND, Exported, exported
from numpy.typing import NDArray
from written_clips import write_clip

from visrt.benchmarks.speed.baselines import BASELINES, Baseline, baseline_of
from visrt.benchmarks.speed.candidates import BundleCandidate
from visrt.benchmarks.video_level.rules import official_result
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.mask2former import Mask2Former
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.errors import UsageError
from visrt.runtime.masks import decode
from visrt.runtime.session import Session
from visrt.runtime.sources.video import read_video

FRAMES = 5


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "street.mp4", FRAMES)


def subject(peer: str, network: Exported, clip: Path) -> Baseline:
    return baseline_of(peer, open_bundle(network.folder), network.checkpoint, clip, FRAMES, threads=1)


@pytest.mark.parametrize("peer", ["eager", "ort"])
def test_a_peer_gives_the_official_result_of_the_video(network: Exported, clip: Path, peer: str) -> None:
    """Compared with the runtime's own official result, which golden arrays of the released code pin down."""
    with Session.open(network.folder) as session:
        official = official_result(session, lambda: (frame.image for frame in read_video(clip)))
    peered = subject(peer, network, clip)
    peered.open()

    answer = peered.answer(peered.seen())

    expected = sorted((track.score, track.label) for track in official.tracks)
    assert np.allclose(sorted(answer.scores.tolist()), [score for score, _ in expected], atol=1e-4)
    parts = zip(answer.scores, answer.labels, answer.masks, strict=True)
    found = {key(float(score), int(label)): masks for score, label, masks in parts}
    for track in official.tracks:
        masks = found[key(track.score, track.label)].numpy()
        for mask, rle in zip(masks, track.masks, strict=True):
            same = mask == (decode(rle) if rle is not None else np.zeros_like(mask))
            assert same.mean() > 0.999


def key(score: float, label: int) -> tuple[float, int]:
    return round(score, 3), label


def test_a_round_tells_the_post_processing_of_the_whole_video_as_shares_of_its_frames(
    network: Exported, clip: Path
) -> None:
    before = torch.get_num_threads()
    peer = subject("eager", network, clip)
    peer.open()
    one = peer.run()
    assert len(one.frames) == FRAMES
    assert all(set(frame) == {"decode", "preprocess", "frame_engine", "post"} for frame in one.frames)
    assert len({frame["post"] for frame in one.frames}) == 1
    assert sum(sum(frame.values()) for frame in one.frames) == pytest.approx(one.wall_s, rel=0.3)
    assert torch.get_num_threads() == before


def test_the_networks_of_all_peers_say_the_same(network: Exported) -> None:
    bundle = open_bundle(network.folder)
    shape = (1, *bundle.manifest.input.image_size, 3)
    images: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    sizes = np.array([[bundle.manifest.input.height, 80]], np.int32)
    answers = [BASELINES[peer](bundle, network.checkpoint, 1)(images, sizes) for peer in ("eager", "ort")]
    for part in ("class_logits", "embeddings", "masks"):
        one, other = (getattr(answer, part) for answer in answers)
        assert torch.allclose(one, other, atol=1e-3), part


def test_a_checkpoint_of_other_classes_and_a_family_of_clips_are_refused(
    network: Exported, clip: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = open_bundle(network.folder)
    fewer = tmp_path / "fewer.safetensors"
    save_checkpoint(Mask2Former(replace(PUBLISHED_KIND, classes=2)).eval(), fewer, ("person", "vehicle"))
    with pytest.raises(UsageError, match="has 2 classes"):
        baseline_of("eager", bundle, fewer, clip, 2, 1).open()
    clips = open_bundle(exported_genvis(tmp_path_factory).folder)
    with pytest.raises(UsageError, match="one frame at a time"):
        baseline_of("ort", clips, None, clip, 2, 1)


def test_a_bundle_subject_writes_what_it_measured(network: Exported, clip: Path) -> None:
    measured = BundleCandidate(open_bundle(network.folder), "cpu", clip, FRAMES, threads=1)
    opening = measured.open()
    one = measured.run()
    measured.close()
    assert opening.open_s > 0
    assert len(one.frames) == FRAMES
    assert sum(sum(frame.values()) for frame in one.frames) == pytest.approx(one.wall_s, rel=0.3)
