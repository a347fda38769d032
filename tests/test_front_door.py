"""What `import visrt` offers, and what it does not load."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

import visrt

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "onnxruntime", "tensorrt", "cv2", "numpy", "scipy", "PIL", "pydantic", "av")


def modules_after(code: str) -> set[str]:
    """The top-level modules a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_visrt_loads_no_heavy_library() -> None:
    assert not modules_after("import visrt; dir(visrt)") & set(HEAVY)


def test_a_session_needs_no_torch_and_loads_no_engine_before_it_opens_one() -> None:
    assert not modules_after("from visrt import Session") & {"torch", "onnxruntime", "tensorrt", "onnx"}


@pytest.mark.parametrize("name", visrt.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(visrt, name) is not None


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Sesion'; it has .*Session"):
        visrt.Sesion  # noqa: B018


def test_the_wheel_holds_every_package_except_the_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    tops = [top for package, top in given["package_dir"].items() if package != "visrt.bundles.default"]
    folders = {path.parent for top in tops for path in Path(top).rglob("*.py")}
    packages = {
        f"visrt.{'.'.join(folder.parts)}" for folder in folders if not {"experiments", "recipes"} & {*folder.parts}
    }
    own = {"visrt", "visrt.commands", "visrt.commands.tracking"}
    assert set(given["packages"]) == packages | own | {"visrt.bundles.default"}
    assert "visrt.benchmarks.video_level" in packages
    assert (ROOT / "benchmarks" / "experiments" / "stress.py").is_file()
