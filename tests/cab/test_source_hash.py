"""The code part of a run key: comments change nothing, an edit makes stale exactly what imports it."""

import importlib
import sys
from pathlib import Path

import pytest

from cab import source_hash


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "hashed_pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "shared.py").write_text("def f(x):\n    return x + 1\n")
    (folder / "user.py").write_text("from hashed_pkg.shared import f\n\ny = f(1)\n")
    (folder / "relative.py").write_text("from .shared import f\n")
    (folder / "stranger.py").write_text("z = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("hashed_pkg")]:
        del sys.modules[name]


def hashes() -> dict[str, str]:
    importlib.invalidate_caches()
    source_hash._location.cache_clear()
    return {name: source_hash.source_hash([f"hashed_pkg.{name}"]) for name in ("user", "relative", "stranger")}


def test_comments_docstrings_and_formatting_change_nothing(package: Path) -> None:
    before = hashes()
    (package / "shared.py").write_text(
        '"""Says what."""\n\n\ndef f(x):\n    """And how."""\n    # why\n    return (x + 1)\n'
    )
    assert hashes() == before


def test_an_edit_of_shared_code_makes_stale_what_imports_it_and_nothing_else(package: Path) -> None:
    before = hashes()
    (package / "shared.py").write_text("def f(x):\n    return x - 1\n")
    after = hashes()
    assert {name for name in after if after[name] != before[name]} == {"user", "relative"}


def test_a_mechanism_depends_on_itself_and_the_contract_but_not_on_the_registry_or_its_siblings() -> None:
    found = set(source_hash.dependencies(["attention_zoo.linear"]))
    assert {"attention_zoo.linear", "attention_zoo.contract", "attention_zoo.primitives"} <= found
    assert not found & {"attention_zoo.registry", "attention_zoo.performer", "attention_zoo.softmax"}
