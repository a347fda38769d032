"""The composed InsPro arrays again, from exported graphs in ONNX Runtime: with stored inputs, and the whole loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import assert_same_finals, fit_officially, golden_sets, load_golden
from numpy.typing import NDArray

from visrt.benchmarks.video_level.rules import official_result
from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints import load_checkpoint, save_checkpoint
from visrt.models.inspro_checkpoints import INSPRO
from visrt.runtime.inspro import first_step, frame_step
from visrt.runtime.inspro_pairs import Pairs
from visrt.runtime.network import FrameOutputs
from visrt.runtime.session import Session

CLASSES = tuple("abcdefg")

SETS = [*golden_sets("inspro_lite_composed_*"), *golden_sets("inspro_composed_*")]


@dataclass(frozen=True)
class Golden:
    """One set, and a session on the bundle that was exported from its weights."""

    arrays: dict[str, NDArray[Any]]
    session: Session
    key_every: int
    sides: NDArray[np.float32]

    @property
    def frames(self) -> list[NDArray[np.uint8]]:
        return list(self.arrays["in/frames_rgb_uint8"])

    def last_stage(self, frame: int) -> str:
        names = [name for name in self.arrays if name.startswith(f"frame{frame}/stage")]
        return max(name.rpartition("/")[0] for name in names) + "/"

    def assert_close(self, name: str, given: NDArray[Any]) -> None:
        """Within 1e-4 times the larger of 1 and the largest stored value."""
        stored = self.arrays[name]
        worst = np.abs(given.reshape(stored.shape) - stored).max()
        assert worst <= 1e-4 * max(1.0, float(np.abs(stored).max())), f"{name}: {worst}"


_DONE: dict[Path, Path] = {}


def exported(path: Path, arrays: dict[str, NDArray[Any]], folder: Path) -> Path:
    """The bundle of a set, exported when it is first asked for."""
    if path not in _DONE:
        weights = {name[3:]: torch.from_numpy(a) for name, a in arrays.items() if name.startswith("sd/")}
        torch.save({"model": weights}, folder / "composed.pth")
        told = json.loads(str(arrays["config_json"]))
        untold = {"heads": told["sparsercnn"]["NHEADS"], "bank_frames": told["bank_T"]}
        network = load_checkpoint(folder / "composed.pth", INSPRO, settings=untold).network()
        save_checkpoint(network, folder / "model.safetensors", CLASSES)
        height, width = arrays["frame0/image_normalized_padded"].shape[2:]
        family = "inspro_lite" if told["lite_K"] else "inspro"
        association = {"key_every_frames": told["lite_K"] or 1}
        out = folder / "bundle"
        export_bundle(Export(folder / "model.safetensors", out, height, width, family=family, association=association))
        _DONE[path] = out
    return _DONE[path]


@pytest.fixture(scope="module", params=SETS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    arrays = load_golden(request.param)
    height, width = arrays["in/resized_uint8_chw"].shape[2:]
    sides = np.array([width, height, width, height], dtype=np.float32)
    with Session.open(exported(request.param, arrays, tmp_path_factory.mktemp("golden")), threads=1) as session:
        yield Golden(arrays, session, json.loads(str(arrays["config_json"]))["lite_K"] or 1, sides)


@pytest.fixture(autouse=True)
def official_size(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_officially(monkeypatch, {"image_size": np.array(golden.arrays["in/resized_uint8_chw"].shape[2:])})


def stored_pairs(golden: Golden, frame: int, pairs: Pairs) -> Pairs:
    """`pairs` with what the set says the frame started from; the bank is the loop's own."""
    queries = golden.arrays[f"frame{frame}/query_in"]
    proposals = (golden.arrays[f"frame{frame}/proposals_in"] / golden.sides).astype(np.float32)
    return Pairs(pairs.first_queries, pairs.first_proposals, queries, proposals, pairs.bank, pairs.fill)


def looks(golden: Golden) -> Iterator[tuple[int, FrameOutputs, Any]]:
    """Each frame by its heads, from the pairs of the set: its number, what the frame graph said, and the answer."""
    session = golden.session
    step, needs = first_step(session.network.states), session.method.needs()
    for t, image in enumerate(golden.frames):
        [outputs] = session.network.run_frames([image])
        step = type(step)(stored_pairs(golden, t, step.pairs), step.until_key, step.key_score)
        run = runner_on(outputs, session.network, needs)
        answer = frame_step(outputs.tensors, run, step, session.method.settings)
        step = answer.step
        yield t, outputs, answer


def test_golden_inspro_onnx_heads_from_stored_pairs(golden: Golden) -> None:
    for t, outputs, answer in looks(golden):
        last, given = golden.last_stage(t), answer.outputs
        golden.assert_close(f"frame{t}/mask_feats_stride8", outputs.mask_features.numpy())
        golden.assert_close(last + "class_logits", given["class_logits"])
        golden.assert_close(last + "boxes", given["boxes"])
        golden.assert_close(last + "object_features", given["object_features"])
        golden.assert_close(f"frame{t}/proposals_out_clipped", given["next_proposals"] * golden.sides)
        masks = golden.session.network.run_masks(given["mask_embeddings"], outputs)
        golden.assert_close(f"frame{t}/mask_logits_stride4", masks)
        assert ("next_queries" in given) == (t % golden.key_every == 0)
        if "next_queries" in given:
            golden.assert_close(f"frame{t}/query_out", given["next_queries"])


def test_golden_inspro_onnx_video_result(golden: Golden) -> None:
    """From raw frames to the final masks, all states our own."""
    finals = {
        "final_scores": golden.arrays["out_assumed/scores_mean_over_frames"],
        "final_labels": golden.arrays["out_assumed/labels"],
        "final_masks_packed": golden.arrays["out_assumed/masks_packed"],
        "final_masks_shape": golden.arrays["out_assumed/masks_shape"],
    }
    result = official_result(golden.session, lambda: golden.frames, top_k=len(finals["final_labels"]))
    assert_same_finals(result, finals)
