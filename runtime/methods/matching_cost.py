"""MinVIS's "heuristics" (table 4): a frame's queries are compared with the last frame's by the cost of its training.

There the cost matches queries with the ground truth (section 3.3). Here what the last frame's queries said stands in
for the ground truth: for each its most likely class, "no object" among them, and its mask of logits above zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats, softmax

__all__ = ["Predictions", "matching_cost"]

CLASS_COST, MASK_COST, DICE_COST = 2, 5, 5
"""Weights as in training (MinVIS, section 4)."""


@dataclass(frozen=True)
class Predictions:
    """Class logits [Q, K + 1] and mask logits [Q, h, w] of a frame's queries."""

    class_logits: Floats
    mask_logits: Floats

    def take(self, order: NDArray[np.intp]) -> Predictions:
        return Predictions(self.class_logits[order], self.mask_logits[order])


def matching_cost(last: Predictions, now: Predictions) -> Floats:
    """Cost [T, Q] of each of the T queries of the `last` frame with each of the Q of this one.

    2 * (-p of the class) + 5 * mean cross-entropy + 5 * dice loss, the masks compared at every cell, where training
    samples points.
    """
    logits = now.mask_logits.reshape(len(now.mask_logits), -1)
    masks = (last.mask_logits > 0).reshape(len(last.mask_logits), -1).astype(np.float32)
    powers = np.exp(-np.abs(logits))
    outside = np.maximum(logits, 0) + np.log1p(powers)
    probabilities = np.where(logits >= 0, 1, powers) / (1 + powers)
    entropy = (outside.sum(axis=1) - masks @ logits.T) / logits.shape[1]
    areas = masks.sum(axis=1)[:, None] + probabilities.sum(axis=1)
    dice = 1 - (2 * masks @ probabilities.T + 1) / (areas + 1)
    labels = last.class_logits.argmax(axis=1)
    cost: Floats = MASK_COST * entropy + DICE_COST * dice - CLASS_COST * softmax(now.class_logits)[:, labels].T
    return cost
