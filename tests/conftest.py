"""Lets every test import what is shared from this folder: fakes, golden."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fake_pycuda import Layer
    from golden import Golden

# Test processes side by side share the cores: each computes with its part of them. Read when torch is imported.
BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if BESIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // BESIDE)))

# Started in the background of a shell, a process ignores Ctrl-C; tests send it, to themselves and to their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines that test are busy: a slow example is not a wrong one.
settings.register_profile("visrt", deadline=None, max_examples=60)
settings.load_profile("visrt")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written to the user's cache folder, and nothing read from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden set at the path that is the test's parameter."""
    from golden import load_golden

    return load_golden(request.param)


@pytest.fixture(params=["pycuda", "cuda-bindings"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layer:
    """Each library that calls CUDA's driver in turn: `install_cuda` installs this one."""
    import fake_pycuda

    chosen: Layer = request.param
    monkeypatch.setattr(fake_pycuda, "DEFAULT", chosen)
    return chosen
