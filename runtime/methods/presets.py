"""Published methods by name: a family of association and the settings that make it. Any per-frame bundle runs with any.

A preset is complete: it takes nothing from the settings in a bundle. Thresholds that belong to a network rather than
to a method are given with it, as changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """family: a name in `visrt.runtime.methods.registry`. settings: what differs from its defaults. meaning: for
    people."""

    family: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)


IN_VIEW = {
    "keep_score": 0.4,
    "birth_score": 0.5,
    "show_score": 0.0,
    "without_candidates": "take_none",
    "assignment": "hungarian",
    "steady_frames": 1,
}
"""Only queries that are likely objects take part, and all of them are shown."""

PRESETS: dict[str, Preset] = {
    "minvis": Preset("minvis", "MinVIS: all queries by cosine to the frame before, Hungarian"),
    "ctvis": Preset("ctvis", "CTVIS as released: bi-softmax, greedy by age, similarity-guided memory; noise not shown"),
    "memory": Preset(
        "ctvis",
        "MinVIS with memory: cosine, Hungarian, a running average of embeddings",
        {**IN_VIEW, "similarity": "cosine", "similarity_floor": 0.5, "memory": "momentum", "lost_s": 3.0},
    ),
    "memory+guided": Preset(
        "ctvis",
        "MinVIS with memory, similarity-guided as in CTVIS",
        {**IN_VIEW, "similarity": "cosine", "similarity_floor": 0.5, "memory": "similarity_guided", "lost_s": 3.0},
    ),
    "overlap": Preset(
        "ctvis",
        "mask overlap with the last mask",
        {**IN_VIEW, "similarity": "mask_iou", "similarity_floor": 0.1, "memory": "previous", "lost_s": 1.0},
    ),
    "overlap+query": Preset(
        "ctvis",
        "mean of mask overlap and cosine to the last embedding",
        {**IN_VIEW, "similarity": "mask_iou_and_cosine", "similarity_floor": 0.3, "memory": "previous", "lost_s": 1.0},
    ),
    "minvis-heuristics": Preset(
        "minvis",
        "MinVIS's ablation: all queries by training's cost of class and mask to the frame before (table 4)",
        {"similarity": "matching_cost"},
    ),
    "minvis-heuristics+query": Preset(
        "minvis",
        "MinVIS's ablation: the cost of class and mask and the cosine with equal weights (table 4)",
        {"similarity": "matching_cost_and_cosine"},
    ),
}
