"""What tests of several files here share."""

from __future__ import annotations

import fake_pycuda
import pytest


@pytest.fixture(params=fake_pycuda.LAYERS)
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> fake_pycuda.Layer:
    """Each library that calls CUDA's driver in turn: `install_cuda` installs this one."""
    chosen: fake_pycuda.Layer = request.param
    monkeypatch.setattr(fake_pycuda, "DEFAULT", chosen)
    return chosen
