"""Changing any sign of these files, the oracles untouched, makes a certificate fail (slow: ``-m slow``).

Other mechanisms are held by their seeded faults (``test_seed.py``); their signs can be tried with ``mutate.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutate.py")
FILES = [
    "efficient",
    "identity",
    "linear",
    "optimised",
    "performer",
    "primitives",
    "reformer",
    "sdpa",
    "smyrf",
    "softmax",
    "super",
    "uniform",
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES)
def test_every_changed_sign_is_noticed(file: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--json", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert any(outcome["caught"] for outcome in outcomes)
    holes = [outcome["mutant"] for outcome in outcomes if not outcome["caught"] and not outcome["equivalent"]]
    assert not holes, "\n".join(f"{hole['file']}.py:{hole['line']}: {hole['change']}" for hole in holes)
