"""The code part of a run key: comments change nothing, an edit makes stale exactly what imports it."""

import importlib
import json
import shutil
import subprocess
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


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each mechanism of a copy of the zoo."""
    script = (
        "import json, pathlib, attention_zoo; from attention_zoo.registry import names; "
        "from cab.source_hash import source_hash; assert pathlib.Path(attention_zoo.__file__).parent.parent == "
        f"pathlib.Path({str(folder)!r}); print(json.dumps({{n: source_hash(['attention_zoo.' + n]) for n in names()}}))"
    )
    # -c searches the working folder first.
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _loaded() -> dict[str, set[str]]:
    """The modules of the zoo that Python loads for each mechanism."""
    script = (
        "import importlib, json, sys, attention_zoo as zoo; from attention_zoo.registry import names; found = {}\n"
        "for name in names():\n"
        "    for old in [m for m in sys.modules if m.startswith('attention_zoo.')]:\n"
        "        del sys.modules[old]; vars(zoo).pop(old.split('.')[1], None)\n"
        "    importlib.import_module('attention_zoo.' + name)\n"
        "    found[name] = [m.split('.')[1] for m in sys.modules if m.startswith('attention_zoo.')]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def test_an_edit_of_the_zoo_makes_stale_exactly_what_python_loads_it_for(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "attention_zoo"
    shutil.copytree(source, tmp_path / "attention_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    before = _hashes(tmp_path)
    users: dict[str, set[str]] = {}
    for name, text in {
        "performer": "\nEDITED = 1\n",
        "primitives": "\nEDITED = 1\n",
        "smyrf": "\n# a comment\n",
    }.items():
        path = tmp_path / "attention_zoo" / f"{name}.py"
        content = path.read_text()
        path.write_text(content + text)
        after = _hashes(tmp_path)
        users[name] = {mechanism for mechanism in before if before[mechanism] != after[mechanism]}
        path.write_text(content)
    loaded = _loaded()
    for name in ("performer", "primitives"):
        assert users[name] == {mechanism for mechanism, modules in loaded.items() if name in modules}
    assert users["performer"] == {"performer"}
    assert 1 < len(users["primitives"]) < len(before)
    assert users["smyrf"] == set()
