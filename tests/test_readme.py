"""What the README tells is true: its Python runs, its commands and options exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from data_sets import ROOT

from visrt.cli import VERBS, load

README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = [
    line.partition(" #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("visrt ")
]


def test_the_two_commands_are_on_the_first_screen_and_in_the_makefile() -> None:
    first_screen = "\n".join(README.splitlines()[:30])
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in first_screen
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_python_of_the_readme_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_exist_with_their_options(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    assert verb in VERBS
    found = load(verb)
    if hasattr(found, "commands"):
        found = found.commands[arguments[0]]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    assert options <= known


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert targets
    missing = [target for target in targets if not (ROOT / target.partition("#")[0]).exists()]
    assert not missing
