"""The composed InsPro arrays again, from exported graphs in ONNX Runtime: with stored inputs, and the whole loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import Golden, assert_same_finals, class_names, comparing, fit_officially, golden_sets
from golden_networks import bundle_of, inspro, inspro_run, key_every

from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.runtime.methods.inspro import first_step, frame_step
from visrt.runtime.methods.inspro_pairs import Pairs
from visrt.runtime.methods.method import FrameOutputs
from visrt.runtime.network import ClipGraphs
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


def from_stored_pairs(golden: Golden, session: Session) -> Iterator[tuple[str, FrameOutputs, Any]]:
    """Each frame by its heads, from the pairs of the set: its prefix, what the frame graph and what the heads made."""
    height, width = golden.valid_size
    step = first_step(session.network.states)
    for t, frame in golden.parts("frame", "query_in", "proposals_in").items():
        [outputs] = session.network.run_frames([golden.frames[t]])
        proposals = (golden[frame + "proposals_in"] / (width, height, width, height)).astype(np.float32)
        own = step.pairs
        pairs = Pairs(own.first_queries, own.first_proposals, golden[frame + "query_in"], proposals, own.bank, own.fill)
        step = type(step)(pairs, step.until_key, step.key_score)
        graphs = ClipGraphs(session.network, [outputs], session.network.new_states())
        answer = frame_step(outputs.tensors, graphs.run, step, session.method.settings)
        step = answer.step
        yield frame, outputs, answer


@SETS
def test_golden_inspro_onnx_heads_from_stored_pairs(golden: Golden, opened: Opened) -> None:
    height, width = golden.valid_size
    session, frames = opened(golden), golden.parts("frame")
    if len(golden.parts("frame", "query_in", "proposals_in")) < len(golden.frames):
        pytest.skip(f"{golden.path.stem} does not store the pairs of every frame")
    with comparing(golden) as compare:
        for t, (frame, outputs, answer) in zip(frames, from_stored_pairs(golden, session), strict=True):
            given = answer.outputs
            stages = golden.parts(frame + "stage")
            last = stages[max(stages)]
            compare(last, {name: given[name] for name in ("class_logits", "boxes", "object_features")})
            masks = session.network.run_masks(given["mask_embeddings"], outputs.device)
            compare(
                frame, {"mask_feats_stride8": outputs.device["mask_features"].numpy(), "mask_logits_stride4": masks}
            )
            compare(frame, {"proposals_out_clipped": given["next_proposals"] * (width, height, width, height)})
            assert ("next_queries" in given) == (t % key_every(golden) == 0)
            if "next_queries" in given:
                compare(frame, {"query_out": given["next_queries"]})


@SETS
def test_golden_inspro_onnx_video_result(golden: Golden, opened: Opened) -> None:
    """From raw frames to the final masks, all states our own."""
    result = official_result(opened(golden), lambda: golden.frames, top_k=len(golden.finals.scores))
    run = inspro_run(golden)
    assert_same_finals(result, golden.finals, run.chance_bound, run.mask_share)
