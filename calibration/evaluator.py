"""Agreement of a changed frame graph with the bundle's own, on held-out frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.methods.outputs import FullOutputs
from visrt.runtime.parity.agreement import OBJECT_SCORE, Agreement, FrameAnswer, agreement, answers_of
from visrt.runtime.parity.frames import Frames

__all__ = ["AgreementEvaluator", "Degradation", "ModelOutputs", "agreement_of_clips", "model_outputs"]

Answers = list[FrameAnswer]


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs on clips of successive frames. mask_features: of the first frame of each clip, [clips, D, h, w]."""

    clips: tuple[Answers, ...]
    mask_features: NDArray[np.float32]


@dataclass(frozen=True)
class Degradation:
    """The effect of a change on the outputs; 0 is none.

    masks: 1 - mean IoU of the objects' masks. classes: share of queries with another best class. features: error of
    the mask features, root of the sum of squares, relative to the features.
    """

    masks: float
    classes: float
    features: float

    @property
    def total(self) -> float:
        """One number to rank by: the mean of the three, so that the two coarse ones do not hide the smooth one."""
        return (self.masks + self.classes + self.features) / 3


@dataclass(frozen=True)
class AgreementEvaluator:
    """Runs changed frame graphs with the bundle's other graphs, and compares the outputs with `expected` on `clips`.

    ask: gives all outputs of the bundle's engines; a family of clips sees each frame as a clip of its own.
    """

    graph: GraphSpec
    others: Mapping[str, Engine]
    ask: FullOutputs
    clips: tuple[Frames, ...]
    expected: ModelOutputs

    def agreement(self, model: onnx.ModelProto) -> Agreement:
        """The agreement of `model` over all frames."""
        return agreement_of_clips(self.expected.clips, self._outputs(model).clips)

    def degradation(self, model: onnx.ModelProto) -> Degradation:
        """The effect of `model` on the first frame of each clip."""
        expected, given = self.expected, self._outputs(model)
        whole = agreement(_all(expected.clips), _all(given.clips))
        error = np.linalg.norm(given.mask_features - expected.mask_features)
        features = float(error / max(float(np.linalg.norm(expected.mask_features)), 1e-12))
        return Degradation(1 - whole.iou_mean, 1 - whole.top_class, features if np.isfinite(features) else float("inf"))

    def _outputs(self, model: onnx.ModelProto) -> ModelOutputs:
        return model_outputs(self.graph, model.SerializeToString(), self.others, self.ask, self.clips)

    def of_first_frames(self, count: int) -> AgreementEvaluator:
        """A cheaper evaluator: on the first frame of each of the first `count` clips."""
        clips = tuple(clip.take([0]) for clip in self.clips[:count])
        expected = tuple(answers[:1] for answers in self.expected.clips[:count])
        return replace(self, clips=clips, expected=ModelOutputs(expected, self.expected.mask_features[:count]))


def model_outputs(
    graph: GraphSpec, model: bytes, others: Mapping[str, Engine], ask: FullOutputs, clips: Sequence[Frames]
) -> ModelOutputs:
    """Outputs of the frame graph `model` and the `others` on `clips`, frame by frame, on the CPU."""
    frame = CpuEngine(graph, model)
    engines = {**others, "frame": frame}
    outputs: list[Answers] = []
    features: list[Array] = []
    try:
        for clip in clips:
            answers: Answers = []
            for t in range(len(clip)):
                tensors = ask.run(engines, clip.images[t : t + 1], clip.valid_sizes[t : t + 1])
                answers += answers_of(tensors)
                if t == 0:
                    features.append(tensors["mask_features"][0].astype(np.float32))
            outputs.append(answers)
    finally:
        frame.close()
    return ModelOutputs(tuple(outputs), np.stack(features))


def agreement_of_clips(expected: Sequence[Answers], given: Sequence[Answers]) -> Agreement:
    """The agreement over all frames of all clips; objects continue within a clip, never from one into the next."""
    whole = agreement(_all(expected), _all(given))
    return replace(whole, assignment=_assignment(expected, given))


def _assignment(expected: Sequence[Answers], given: Sequence[Answers]) -> float:
    """Mean over the clips with more than one frame that begin with an object; over all of them if none does."""
    pairs = [(one, other) for one, other in zip(expected, given, strict=True) if len(one) > 1]
    seen = [pair for pair in pairs if (pair[0][0].queries.scores() >= OBJECT_SCORE).any()]
    shares = [agreement(one, other).assignment for one, other in seen or pairs]
    return float(np.mean(shares)) if shares else float("nan")


def _all(clips: Sequence[Answers]) -> Answers:
    return [answer for clip in clips for answer in clip]
