"""The composed InsPro arrays again, from exported graphs in ONNX Runtime: with stored inputs, and the whole loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from golden import Golden, assert_same_finals, class_names, comparing, fit_officially, golden_sets
from golden_networks import bundle_of, inspro, inspro_run, key_every

from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.runtime.methods.inspro import FrameAnswer, first_step, frame_step
from visrt.runtime.methods.method import FrameOutputs
from visrt.runtime.session import Session

SETS = pytest.mark.parametrize("golden", golden_sets("inspro", "video"), indirect=True)

Opened = Callable[[Golden], Session]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A session on the bundle that was exported from the weights of a set, each exported and opened once."""
    sessions: dict[Path, Session] = {}

    def open_once(golden: Golden) -> Session:
        if golden.path not in sessions:
            sessions[golden.path] = Session.open(exported(golden, tmp_path_factory.mktemp(golden.path.stem)), threads=1)
        return sessions[golden.path]

    yield open_once
    for session in sessions.values():
        session.close()


def exported(golden: Golden, folder: Path) -> Path:
    network = inspro(golden)
    checkpoint = folder / "model.safetensors"
    save_checkpoint(network, checkpoint, class_names(network.settings.classes))
    family = "inspro_lite" if golden.config["lite_K"] else "inspro"
    association = {"key_every_frames": key_every(golden)}
    export = Export(checkpoint, folder / "bundle", *golden.input_size, family=family, association=association)
    return bundle_of(export)


@pytest.fixture(autouse=True)
def official_size(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_officially(monkeypatch, golden)


def from_stored_pairs(golden: Golden, session: Session) -> Iterator[tuple[str, FrameOutputs, FrameAnswer]]:
    """Each frame by its heads, from the pairs of the set: its prefix, the frame and what the host knows after it."""
    height, width = golden.valid_size
    network = session.network
    states, step = network.new_states(), first_step(network.states)
    for t, prefix in golden.parts("frame", "query_in", "proposals_in").items():
        [frame] = network.run_frames([golden.frames[t]])
        proposals = (golden[prefix + "proposals_in"] / (width, height, width, height)).astype(np.float32)
        states.renew({"next_queries": golden[prefix + "query_in"], "next_proposals": proposals})
        answer = network.alone(frame_step(frame, step, session.method.settings), states)
        step = answer.step
        yield prefix, frame, answer


@SETS
def test_golden_inspro_onnx_heads_from_stored_pairs(golden: Golden, opened: Opened) -> None:
    height, width = golden.valid_size
    session, frames = opened(golden), golden.parts("frame")
    if len(golden.parts("frame", "query_in", "proposals_in")) < len(golden.frames):
        pytest.skip(f"{golden.path.stem} does not store the pairs of every frame")
    with comparing(golden) as compare:
        for t, (prefix, frame, answer) in zip(frames, from_stored_pairs(golden, session), strict=True):
            stays = {role: tensor.numpy() for role, tensor in frame.device.items()}
            stages = golden.parts(prefix + "stage")
            last = stages[max(stages)]
            compare(last, {name: answer.outputs[name] for name in ("class_logits", "boxes")})
            compare(last, {"object_features": stays["object_features"]})
            masks = session.network.run_masks(stays["mask_embeddings"], frame.device)
            compare(prefix, {"mask_feats_stride8": stays["mask_features"], "mask_logits_stride4": masks})
            compare(prefix, {"proposals_out_clipped": stays["next_proposals"] * (width, height, width, height)})
            if t % key_every(golden) == 0:
                compare(prefix, {"query_out": stays["next_queries"]})
            else:
                assert np.array_equal(stays["next_queries"], golden[prefix + "query_in"])


@SETS
def test_golden_inspro_onnx_video_result(golden: Golden, opened: Opened) -> None:
    """From raw frames to the final masks, all states our own."""
    result = official_result(opened(golden), lambda: golden.frames, top_k=len(golden.finals.scores))
    run = inspro_run(golden)
    assert_same_finals(result, golden.finals, run.chance_bound, run.mask_share)
