"""Imports run downwards only, and no floor names a mechanism or a task of the one below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"attention_zoo": ("cab", "tasks"), "tasks": ("cab",), "cab": ()}
INFRASTRUCTURE = {
    "attention_zoo": {
        *("contract", "errors", "registry", "primitives", "conformance"),
        *("eligibility", "convert", "fidelity", "integrations"),
    },
    "tasks": {"contract", "layers", "sources", "whole_file"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def sources(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_from_a_floor_above_it(floor: str) -> None:
    assert sources(floor)
    for path in sources(floor):
        above = {name for name in imported(path) if name.split(".")[0] in FORBIDDEN[floor]}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


@pytest.mark.parametrize(("floor", "below"), [("cab", "attention_zoo"), ("cab", "tasks"), ("tasks", "attention_zoo")])
def test_mechanisms_and_tasks_are_reached_by_config_only(floor: str, below: str) -> None:
    for path in sources(floor):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == below and len(parts) > 1 and parts[1][0].islower():
                allowed = INFRASTRUCTURE[below] | {"names", "card", "build", "build_core"}
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_references_share_no_code_with_their_mechanisms() -> None:
    for path in sources("attention_zoo/reference"):
        ours = {name for name in imported(path) if name.startswith("attention_zoo")}
        strangers = {
            name for name in ours if not name.startswith(("attention_zoo.contract", "attention_zoo.reference"))
        }
        assert not strangers, f"{path.name} imports {sorted(strangers)}"
