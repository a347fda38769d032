"""Agreement of changed graphs with the bundle's own, on held-out frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from visrt.runtime.arrays import Array, Feed, Tensor
from visrt.runtime.bundles.bundle import Bundle, initial_states
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.engines.ort import CpuEngine
from visrt.runtime.methods.int8 import Int8Plan
from visrt.runtime.methods.outputs import Outputs
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.agreement import OBJECT_SCORE, Agreement, FrameAnswer, agreement, answers_of
from visrt.runtime.parity.frames import Frames
from visrt.runtime.parity.verify import closing

__all__ = [
    "AgreementEvaluator",
    "Degradation",
    "ModelOutputs",
    "Stream",
    "agreement_of_clips",
    "model_outputs",
    "stream_of",
]

Answers = list[FrameAnswer]

Stream = Callable[[Mapping[str, Engine], Frames], Iterator[Outputs]]
"""All outputs of engines, by graph, for each of successive frames of a stream."""


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs on clips of successive frames. compared: for each clip by role, those of its first frames whose error
    counts in the ranking, [frames, ...]."""

    clips: tuple[Answers, ...]
    compared: tuple[Mapping[str, Array], ...]


@dataclass(frozen=True)
class Degradation:
    """The effect of a change on the outputs; 0 is none.

    masks: 1 - mean IoU of the objects' masks. classes: share of queries with another best class. features: error of
    the outputs that are compared, root of the sum of squares, relative to the output; the mean of several.
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
    """Runs changed graphs in place of the bundle's own, and compares the outputs with `expected` on `clips`.

    graphs, engines: of the bundle by name, unchanged.
    """

    graphs: Mapping[str, GraphSpec]
    engines: Mapping[str, Engine]
    stream: Stream
    plan: Int8Plan
    clips: tuple[Frames, ...]
    expected: ModelOutputs

    def agreement(self, models: Mapping[str, onnx.ModelProto]) -> Agreement:
        """The agreement of `models`, by graph, over all frames."""
        return agreement_of_clips(self.expected.clips, self._outputs(models).clips)

    def degradation(self, models: Mapping[str, onnx.ModelProto]) -> Degradation:
        """The effect of `models`, by graph, on the frames on which layers are ranked."""
        given = self._outputs(models)
        whole = agreement(_all(self.expected.clips), _all(given.clips))
        errors = [_relative_error(role, self.expected, given) for role in self.plan.compared]
        return Degradation(1 - whole.iou_mean, 1 - whole.top_class, sum(errors) / len(errors))

    def _outputs(self, models: Mapping[str, onnx.ModelProto]) -> ModelOutputs:
        changed: dict[str, Engine] = {
            name: CpuEngine(self.graphs[name], model.SerializeToString()) for name, model in models.items()
        }
        with closing(changed):
            return model_outputs({**self.engines, **changed}, self.stream, self.plan, self.clips)

    def of_first_frames(self, count: int) -> AgreementEvaluator:
        """A cheaper evaluator: on the first frames of each of the first `count` clips, those that `plan` ranks on.

        The frame graph sees each frame once for all changes of later graphs.
        """
        frames = self.plan.ranked_frames
        clips = tuple(clip.take(range(min(frames, len(clip)))) for clip in self.clips[:count])
        answers = tuple(answers[:frames] for answers in self.expected.clips[:count])
        expected = ModelOutputs(answers, self.expected.compared[:count])
        engines = {**self.engines, "frame": _Remembered(self.engines["frame"])}
        return replace(self, engines=engines, clips=clips, expected=expected)


class _Remembered(HostEngine):
    """The engine of the frame graph, which is called once for each frame; what it gave is kept."""

    def __init__(self, engine: Engine) -> None:
        self.provider = engine.provider
        self._engine = engine
        self._made: dict[tuple[bytes, bytes], dict[str, Tensor]] = {}

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        images, valid_sizes = (_host(feeds[role]).tobytes() for role in ("images", "valid_sizes"))
        if (images, valid_sizes) not in self._made:
            self._made[images, valid_sizes] = self._engine(feeds)
        return self._made[images, valid_sizes]

    def close(self) -> None:
        self._engine.close()


def stream_of(bundle: Bundle) -> Stream:
    """The function that gives all outputs for a stream, by the bundle's tracking method."""
    method, initial = method_of(bundle.manifest), initial_states(bundle)

    def run(engines: Mapping[str, Engine], frames: Frames) -> Iterator[Outputs]:
        return method.stream_outputs(engines, bundle.manifest, initial, frames.images, frames.valid_sizes)

    return run


def model_outputs(
    engines: Mapping[str, Engine], stream: Stream, plan: Int8Plan, clips: Sequence[Frames]
) -> ModelOutputs:
    """Outputs of `engines` on `clips`, each a stream of its own, frame by frame."""
    answers: list[Answers] = []
    compared: list[Mapping[str, Array]] = []
    for clip in clips:
        of_clip: Answers = []
        ranked: list[Outputs] = []
        for outputs in stream(engines, clip):
            of_clip += answers_of(outputs)
            if len(ranked) < plan.ranked_frames:
                ranked.append({role: outputs[role].astype(np.float32) for role in plan.compared})
        answers.append(of_clip)
        compared.append({role: np.concatenate([one[role] for one in ranked]) for role in ranked[0]})
    return ModelOutputs(tuple(answers), tuple(compared))


def agreement_of_clips(expected: Sequence[Answers], given: Sequence[Answers]) -> Agreement:
    """The agreement over all frames of all clips; objects continue within a clip, never from one into the next."""
    whole = agreement(_all(expected), _all(given))
    return replace(whole, assignment=_assignment(expected, given))


def _host(tensor: Feed) -> Array:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _relative_error(role: str, expected: ModelOutputs, given: ModelOutputs) -> float:
    """Of `given` in one role; infinite where it is NaN or infinite."""
    one, other = (np.concatenate([clip[role] for clip in outputs.compared]) for outputs in (expected, given))
    error = float(np.linalg.norm(other - one) / max(float(np.linalg.norm(one)), 1e-12))
    return error if np.isfinite(error) else float("inf")


def _assignment(expected: Sequence[Answers], given: Sequence[Answers]) -> float:
    """Mean over the clips with more than one frame that begin with an object; over all of them if none does."""
    pairs = [(one, other) for one, other in zip(expected, given, strict=True) if len(one) > 1]
    seen = [pair for pair in pairs if (pair[0][0].queries.scores() >= OBJECT_SCORE).any()]
    shares = [agreement(one, other).assignment for one, other in seen or pairs]
    return float(np.mean(shares)) if shares else float("nan")


def _all(clips: Sequence[Answers]) -> Answers:
    return [answer for clip in clips for answer in clip]
