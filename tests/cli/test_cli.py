"""The command line itself: light until a verb runs, one line and an exit code for every fault."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from visrt import cli
from visrt.cli import VERBS, Verb, app
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.errors import BundleError, OutputError, SourceError, UsageError

HEAVY = {"cv2", "numpy", "scipy", "PIL", "av", "torch", "onnx", "onnxruntime", "pydantic", "pycocotools", "matplotlib"}

runner = CliRunner()


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules in memory after `visrt *arguments` ended well."""
    program = (
        "import sys\nfrom visrt.cli import main\n"
        f"sys.argv = {['visrt', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('modules:', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & HEAVY


def test_the_help_of_a_verb_loads_nothing_heavy() -> None:
    """Newer releases of typer look at pydantic themselves when a verb has options."""
    assert not imported_by("track", "--help") & (HEAVY - {"pydantic"})


@pytest.mark.parametrize("verb", ["track", "eval", "verify", "bench"])
def test_the_help_of_engine_names_every_backend(verb: str) -> None:
    shown = runner.invoke(app, [verb, "--help"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    assert ", ".join(BACKENDS) in shown.output


def test_help_names_every_verb_and_its_line() -> None:
    shown = runner.invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name, verb in VERBS.items():
        assert name in shown.output
        assert verb.help in shown.output


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_is_where_the_table_says(name: str) -> None:
    verb = VERBS[name]
    assert find_spec(verb.module), f"{verb.module} does not exist"
    assert callable(getattr(import_module(verb.module), verb.function))


def test_an_unknown_verb_is_wrong_use() -> None:
    assert runner.invoke(app, ["trak"]).exit_code == 2


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "fail", fail, raising=False)
    monkeypatch.setitem(VERBS, "fail", Verb("visrt.cli", "fail", "Fails."))


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (SourceError, 4), (OutputError, 4), (BundleError, 5)])
def test_a_fault_is_one_line_on_stderr_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int
) -> None:
    raising(monkeypatch, error("what was given;\n what to do"))
    ended = runner.invoke(app, ["fail"])
    assert ended.exit_code == code
    assert ended.stderr == "visrt: what was given; what to do\n"
    assert ended.stdout == ""


def test_ctrl_c_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert runner.invoke(app, ["fail"]).exit_code == 130


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("a bug"))
    assert isinstance(runner.invoke(app, ["fail"]).exception, ZeroDivisionError)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(cli, "import_module", missing)
    ended = runner.invoke(app, ["train"])
    assert ended.exit_code == 1
    assert ".[train]" in ended.stderr


def test_a_module_that_visrt_lacks_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "fail", Verb("visrt.commands.not_there", "fail", "Fails."))
    assert isinstance(runner.invoke(app, ["fail"]).exception, ModuleNotFoundError)
