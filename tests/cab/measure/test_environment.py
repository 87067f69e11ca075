"""The machine's name and description."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cab.measure import environment
from cab.measure.environment import describe, hardware_id, write_manifest


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c"),
        ("AMD EPYC 7B13", "amd-epyc-7b13"),
        ("AMD Ryzen 9 5950X 16-Core Processor", "amd-ryzen-9-5950x"),
        ("Apple M2 Pro", "apple-m2-pro"),
        ("", "unknown"),
    ],
)
def test_cpu_names_become_slugs(name: str, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_model", lambda: name)
    monkeypatch.setattr(environment, "usable_cores", lambda: 4)
    assert hardware_id("cpu") == f"{slug}-4-cores"


def test_the_name_is_the_same_in_another_process() -> None:
    script = "from cab.measure.environment import hardware_id; print(hardware_id('cpu'))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hardware_id("cpu")
    assert re.fullmatch(r"[a-z0-9-]+", other)


def test_a_manifest_is_whole_json_with_what_a_reader_needs(tmp_path: Path) -> None:
    identity = write_manifest(tmp_path, "cpu", {"lengths": [256]})
    manifest = json.loads((tmp_path / "manifests" / f"{identity}.json").read_text())
    assert manifest["config"] == {"lengths": [256]}
    assert {"torch", "threads", "cpu", "load_average", "environment", "git", "command"} <= set(manifest)
    assert not list(tmp_path.glob("manifests/.*"))
    assert json.loads(json.dumps(describe("cpu")))["hardware"] == hardware_id("cpu")


@pytest.mark.parametrize("program", ["/home/somebody/venv/bin/cab", ".venv/bin/cab", "/somewhere/cab/__main__.py"])
def test_a_manifest_holds_no_path_of_the_machine(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "efficiency", "threads=2"])
    identity = write_manifest(tmp_path, "cpu", {})
    manifest = json.loads((tmp_path / "manifests" / f"{identity}.json").read_text())
    assert manifest["command"] == ["cab", "efficiency", "threads=2"]
