"""Claims about VidEoMT's losses: an object keeps the query of its first frame, at every level its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import POINTS
from torch import Tensor
from vit_runs import objects_in

from visrt.models.mask2former import FrameOutputs
from visrt.training.losses.genvis_targets import ClipTargets, video_targets
from visrt.training.losses.targets import FrameTargets
from visrt.training.losses.videomt import first_appearance, online_losses, released_labels

LEFT, MIDDLE, RIGHT = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
CLASSES = 3
EVENLY = replace(POINTS, points=2048, importance=0.0)
"""Points that lie anywhere, and many: so losses hardly depend on them."""


def frame(labels: list[int], ids: list[int], rows: list[list[float]]) -> FrameTargets:
    masks = objects_in(rows) if rows else torch.zeros(0, 4, 4)
    return FrameTargets(torch.tensor(labels), masks, torch.tensor(ids, dtype=torch.int64))


def outputs(queries: list[list[float]], labels: list[int]) -> FrameOutputs:
    """What queries say that are sure of masks with these columns and of a class each; 3 is "no object"."""
    logits = 12 * torch.nn.functional.one_hot(torch.tensor(labels), CLASSES + 1).float()
    columns = torch.eye(4)[:, None, :].expand(4, 4, 4)
    embeddings = 20 * torch.tensor(queries) - 10
    return FrameOutputs(logits[None], embeddings[None], embeddings[None], columns[None].clone())


CLIP = [
    frame([0], [0], [LEFT]),
    frame([2], [1], [RIGHT]),  # the first is away
    frame([0, 2, 0], [0, 1, 2], [RIGHT, MIDDLE, LEFT]),  # they have moved, and a third one is there
]
SEEN = [
    outputs([RIGHT, LEFT, MIDDLE, MIDDLE], [0, 0, 0, 0]),  # the first appears: query 1
    outputs([MIDDLE, RIGHT, RIGHT, LEFT], [2, 2, 2, 2]),  # the second: query 1 is taken, so query 2
    outputs([MIDDLE, LEFT, RIGHT, LEFT], [2, 0, 0, 0]),  # the third: query 1 is taken, so query 3
]
"""All queries of a clip with three objects, of which the first two are exchanged in the last frame."""


def clip_targets() -> ClipTargets:
    return video_targets(CLIP, len(CLIP))[0]


def test_an_object_has_the_query_of_its_first_frame_and_used_queries_are_closed() -> None:
    clip = clip_targets()

    assert first_appearance(SEEN, 0, clip, clip.labels, POINTS.match).tolist() == [1, 2, 3]


def losses(frames: list[FrameOutputs]) -> dict[str, float]:
    torch.manual_seed(0)
    found = online_losses([[one] for one in frames], CLIP, EVENLY, "own", 9.0)
    return {name: float(loss) for name, loss in found.items()}


def test_an_absent_object_is_taught_by_an_empty_mask_and_keeps_its_class() -> None:
    """Outputs that say just that lose least: neither "no object" nor a mask is right where the first object is away."""
    nothing = [0.0] * 4
    right = [
        outputs([nothing, LEFT, nothing, nothing], [3, 0, 2, 0]),
        outputs([nothing, nothing, RIGHT, nothing], [3, 0, 2, 0]),
        outputs([nothing, RIGHT, MIDDLE, LEFT], [3, 0, 2, 0]),
    ]
    least = losses(right)
    assert least["class"] < 0.01

    gone = [right[0], outputs([nothing, nothing, RIGHT, nothing], [3, 3, 2, 0]), right[2]]
    assert losses(gone)["class"] > 1
    held = [right[0], outputs([nothing, LEFT, RIGHT, nothing], [3, 0, 2, 0]), right[2]]
    assert losses(held)["dice"] > least["dice"] + 0.1


def test_each_level_is_matched_by_itself() -> None:
    """The same clip with its queries in another order is the same loss again."""
    order = [2, 3, 0, 1]
    permuted = [
        FrameOutputs(one.class_logits[:, order], one.embeddings, one.mask_embeddings[:, order], one.mask_features)
        for one in SEEN
    ]
    levels = [[one, other] for one, other in zip(SEEN, permuted, strict=True)]
    alone = losses(SEEN)

    both = online_losses(levels, CLIP, EVENLY, "own", 9.0)

    assert {name: float(loss) for name, loss in both.items()} == pytest.approx(
        {name: 2 * loss for name, loss in alone.items()}, rel=0.05
    )


def test_the_released_mistake_with_absent_objects_is_there_when_it_is_chosen() -> None:
    """What is not in the last frame is taught as the last class, and looked up as "no object" by the matching."""
    masks = objects_in([LEFT, RIGHT])[:, None].repeat(1, 2, 1, 1)
    masks[1, 1] = 0
    clip = ClipTargets(torch.tensor([0, 1]), masks, torch.ones(2, dtype=torch.bool))

    def both(classes: int) -> list[list[int]]:
        return [labels.tolist() for labels in released_labels(clip, classes)]

    assert both(40) == [[0, 39], [0, 40]]
    assert both(124) == [[0, 54], [0, 54]]

    gone: list[FrameTargets] = [CLIP[2], CLIP[0], CLIP[0]]
    say: list[Tensor] = []
    for absent_labels in ("own", "released"):
        torch.manual_seed(0)
        say.append(online_losses([[one] for one in SEEN], gone, POINTS, absent_labels, 9.0)["class"])
    assert float(say[0]) != pytest.approx(float(say[1]))


def test_a_clip_without_objects_teaches_no_object() -> None:
    empty = [replace(one, labels=one.labels[:0], masks=one.masks[:0], ids=one.ids[:0]) for one in CLIP]

    found = online_losses([[one] for one in SEEN], empty, POINTS, "own", 1.0)

    assert float(found["class"]) > 0
    assert float(found["mask"]) == float(found["dice"]) == 0
