"""A graph that resizes frames itself does it as Pillow does, to the last bit, and the session lets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from networks import HEIGHT, LIGHT, WIDTH, saved

from visrt.export.bundle import Export, export_bundle
from visrt.export.source_resize import SourceResize
from visrt.runtime.errors import UsageError
from visrt.runtime.image import letterbox, network_input, pillow_bilinear
from visrt.runtime.session import Session, SessionSettings

SIDES = st.integers(1, 200)


@hypothesis_settings(max_examples=150)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 100))
def test_every_byte_is_the_one_pillow_gives(height: int, width: int, seed: int) -> None:
    fit = letterbox((height, width), (64, 96))
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.empty((64, 96, 3), np.uint8)
    network_input(frame, fit, pillow_bilinear, out=expected)

    levels = SourceResize(fit)(torch.from_numpy(frame).permute(2, 0, 1)[None].float())

    assert (levels[0].permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("level", [0, 255])
def test_the_ends_of_the_scale_stay_where_they_are(level: int) -> None:
    fit = letterbox((1080, 1920), (256, 448))
    levels = SourceResize(fit)(torch.full((1, 3, 1080, 1920), float(level)))
    assert (levels[:, :, : fit.valid[0], : fit.valid[1]] == level).all()


def test_a_source_too_large_for_exact_sums_is_refused() -> None:
    with pytest.raises(UsageError, match="at most by 16"):
        SourceResize(letterbox((64 * 40, 96), (64, 96)))


def test_a_bundle_for_one_size_gives_what_one_for_any_size_gives(tmp_path: Path) -> None:
    checkpoint = saved(LIGHT, tmp_path / "model.safetensors")
    wide = (90, 200)
    for name, source in (("any", None), ("one", wide)):
        export_bundle(Export(checkpoint, tmp_path / name, HEIGHT, WIDTH, name="same", source=source))
    frame = np.random.default_rng(1).integers(0, 256, (*wide, 3), dtype=np.uint8)

    with Session.open(tmp_path / "any") as usual, Session.open(tmp_path / "one") as inside:
        for session in (usual, inside):
            assert session.manifest.input.image_size == ((HEIGHT, WIDTH) if session is usual else wide)
        [one], [other] = usual.network.run_frames([frame]), inside.network.run_frames([frame])
        assert np.allclose(one.queries.class_logits, other.queries.class_logits, atol=1e-4)
        features, other_features = (outputs.device["mask_features"].numpy() for outputs in (one, other))
        assert np.allclose(features, other_features, atol=1e-4)
        assert one.fit == other.fit
        with pytest.raises(UsageError, match=r"a frame of 90x180 was given to a bundle that takes 90x200"):
            inside.step(frame[:, :180])

    with pytest.raises(UsageError, match="resizes inside its graph"):
        Session.open(tmp_path / "one", settings=SessionSettings(resize="cv2_area"))
