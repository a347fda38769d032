"""What INT8 may change in the networks of a family, and on what its effect is judged.

Calibration knows no family: it quantises layers of the graphs that the tracking method names here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FRAME_ALONE", "Int8Plan"]


@dataclass(frozen=True)
class Int8Plan:
    """graphs: whose layers may compute in INT8; a bundle need not hold all of them.

    range_frames, judged_frames: length of the streams on which the ranges of tensors are read, and of those on which
    the changed network is judged. ranked_frames: of the latter, the first ones, on which single layers are ranked.
    compared: roles of the outputs whose error counts in the ranking; masks and classes always do.
    """

    graphs: tuple[str, ...]
    range_frames: int = 1
    judged_frames: int = 2
    ranked_frames: int = 1
    compared: tuple[str, ...] = ("mask_features",)

    @property
    def follows_state(self) -> bool:
        """Whether its streams are long enough to show what rounding does to state that goes from frame to frame."""
        return self.range_frames > 1


FRAME_ALONE = Int8Plan(("frame",))
"""The frame graph, whose outputs for a frame hang on no other frame. The masks graph has no constant weight."""
