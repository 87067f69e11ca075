"""Every seeded fault of every mechanism makes its certificate fail (slow), and the lists fit the sources (fast)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attention_zoo.registry import names

SCRIPT = Path(__file__).with_name("seed.py")
PACKAGE = SCRIPT.parents[2] / "attention_zoo"
OWN = [name for name in names() if (PACKAGE / f"{name}.py").exists()]  # not those that installed plug-ins bring


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"


def test_every_mechanism_has_a_list_that_fits_its_source() -> None:
    run("--list", *OWN)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mechanism", OWN)
def test_every_seeded_fault_is_noticed(mechanism: str) -> None:
    run(mechanism)
