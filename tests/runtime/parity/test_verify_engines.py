"""Every engine that this machine can run is judged; the others are told, and one that was asked for is an error."""

from __future__ import annotations

from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from recorded_engine import Change, Recorded, Values, reference_of_values
from rich.console import Console

from visrt.commands.verify_table import lines_of
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import BACKENDS, Backend
from visrt.runtime.errors import EngineError, ParityError, UsageError
from visrt.runtime.parity.check import ParityReport
from visrt.runtime.parity.verify import (
    Failed,
    Skipped,
    Verification,
    VerifySettings,
    verification_values,
    verify_engines,
)


class Opener:
    """Opens one recorded engine for both graphs, or refuses; knows the options it was opened with."""

    def __init__(self, change: Change = lambda _: None, refuses: str = "") -> None:
        self.engine = Recorded(change)
        self.refuses = refuses
        self.options: list[Any] = []
        self.closed = 0
        self.engine.close = self._close  # type: ignore[method-assign]

    def _close(self) -> None:
        self.closed += 1

    def __call__(self, bundle: Bundle, options: Any) -> Any:
        if self.refuses:
            raise EngineError(self.refuses)
        self.options.append(options)
        return {"frame": self.engine, "masks": self.engine}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_bundle(tmp_path / "red"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Opener]:
    """A machine that runs cpu and cuda, and has no TensorRT."""
    openers = {name: Opener() for name in BACKENDS}
    for name, opener in openers.items():
        absence = f"{name} is not installed" if name.startswith("tensorrt") else ""
        monkeypatch.setitem(BACKENDS, name, Backend(opener, partial(str, absence)))
    return openers


def verified(bundle: Bundle, *engines: str) -> Verification:
    return verify_engines(bundle, reference_of_values(), VerifySettings(engines))


def test_all_that_the_machine_has_is_judged_and_the_rest_is_told(bundle: Bundle, machine: dict[str, Opener]) -> None:
    verification = verified(bundle)
    assert verification.passed
    verification.require("bundle")
    outcomes = {one.engine: one.outcome for one in verification.engines}
    assert isinstance(outcomes["cpu"], ParityReport)
    assert isinstance(outcomes["cuda"], ParityReport)
    assert outcomes["tensorrt"] == Skipped("tensorrt is not installed")
    assert [one.provider for one in verification.engines] == ["recorded", "recorded", "", ""]


def test_engines_are_opened_for_the_largest_batch_and_closed(bundle: Bundle, machine: dict[str, Opener]) -> None:
    verify_engines(bundle, reference_of_values(), VerifySettings(("cuda",), batches=(1, 4, 2)))
    assert [options.batch for options in machine["cuda"].options] == [4]
    assert machine["cuda"].closed == 2
    assert not machine["cpu"].options


def test_an_absent_engine_that_was_asked_for_is_an_error_before_any_work(
    bundle: Bundle, machine: dict[str, Opener]
) -> None:
    with pytest.raises(EngineError, match="tensorrt is not installed; leave out --engine"):
        verified(bundle, "cpu", "tensorrt")
    assert not machine["cpu"].options


def test_a_machine_that_can_run_nothing_is_an_error(
    bundle: Bundle, machine: dict[str, Opener], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, opener in machine.items():
        monkeypatch.setitem(BACKENDS, name, Backend(opener, lambda: "nothing here"))
    with pytest.raises(EngineError, match="can run no engine: cpu: nothing here"):
        verified(bundle)


def not_a_number(outputs: Values) -> None:
    outputs["embeddings"][1, 2, 3] = np.nan


def test_one_engine_that_is_wrong_is_named_while_the_others_pass(bundle: Bundle, machine: dict[str, Opener]) -> None:
    machine["cuda"].engine.__init__(not_a_number)  # type: ignore[misc]
    verification = verified(bundle)
    assert [one.passed for one in verification.engines] == [True, False, True, True]
    with pytest.raises(ParityError, match=r"^bundle on cuda: .*frame\.embeddings at batch 1") as told:
        verification.require("bundle")
    assert "cpu" not in str(told.value)


def test_an_engine_that_cannot_be_opened_fails_and_the_others_go_on(bundle: Bundle, machine: dict[str, Opener]) -> None:
    machine["cpu"].refuses = "the graph does not load"
    verification = verified(bundle)
    assert verification.engines[0].outcome == Failed("the graph does not load")
    assert isinstance(verification.engines[1].outcome, ParityReport)
    with pytest.raises(ParityError, match="bundle on cpu: the graph does not load"):
        verification.require("bundle")


def test_what_to_install_is_shown_with_its_brackets(bundle: Bundle, machine: dict[str, Opener]) -> None:
    machine["cpu"].refuses = "pip install '.[cpu]'"
    shown = Console(file=StringIO(), width=200)
    for line in lines_of(verified(bundle)):
        shown.print(line)
    assert ".[cpu]" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_values_for_json_hold_no_number_that_json_cannot(bundle: Bundle, machine: dict[str, Opener]) -> None:
    machine["cuda"].engine.__init__(not_a_number)  # type: ignore[misc]
    values = verification_values(verified(bundle))
    assert [engine["state"] for engine in values["engines"]] == ["passed", "failed", "skipped", "skipped"]
    wrong = next(row for row in values["engines"][1]["batches"][0]["tensors"] if not row["passed"])
    assert (wrong["role"], wrong["max_abs"]) == ("embeddings", None)


@pytest.mark.parametrize(("settings", "told"), [({"engines": ("warp",)}, "warp"), ({"batches": (1, 0)}, "1 or more")])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        VerifySettings(**settings)
