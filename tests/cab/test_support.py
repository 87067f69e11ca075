"""The support matrix says what current certificates say, and nothing more."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_zoo.contract import Pattern
from cab import support
from cab.certificates import certificate, certificate_key
from cab.cli import main
from cab.compose import Composer
from cab.settings import Setting
from cab.support import proofs, proved, read_matrix, shipped, sign, write_matrix

IDENTITY = Setting("identity", "attention_zoo.identity.IdentityAttention")
ROOT = Path(__file__).parents[2]


def docs_tables() -> Any:
    """The script that writes the generated tables of the documents."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _nothing_shipped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "shipped" not in request.keywords:
        monkeypatch.setattr(support, "shipped", tuple)


def test_a_claim_is_a_question_until_a_certificate_proves_it(tmp_path: Path) -> None:
    signs = [sign(IDENTITY, pattern, proved(IDENTITY, tmp_path)) for pattern in Pattern]
    assert signs == ["P?", "P?", "-", "-"]
    certificate(IDENTITY, tmp_path / "adhoc" / "somewhere")
    assert [sign(IDENTITY, pattern, proved(IDENTITY, tmp_path)) for pattern in Pattern] == ["P", "P", "-", "-"]


def test_a_failed_certificate_proves_nothing(tmp_path: Path) -> None:
    rows = proofs("identity", certificate(IDENTITY, tmp_path))
    failed = {Pattern(row.pattern): dataclasses.replace(row, mark="failed") for row in rows}
    assert [sign(IDENTITY, pattern, failed) for pattern in Pattern] == ["P!", "P!", "-", "-"]


def test_a_shipped_proof_of_other_code_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificate(IDENTITY, tmp_path)
    rows = proofs("identity", made)
    monkeypatch.setattr(support, "shipped", lambda: tuple(rows))
    assert set(proved(IDENTITY)) == set(Pattern)
    monkeypatch.setattr(support, "shipped", lambda: tuple(dataclasses.replace(row, key="other") for row in rows))
    assert proved(IDENTITY) == {}


def test_the_matrix_survives_its_file(tmp_path: Path) -> None:
    rows = proofs("identity", certificate(IDENTITY, tmp_path))
    write_matrix(tmp_path / "deeper" / "matrix.csv", reversed(rows))
    assert read_matrix((tmp_path / "deeper" / "matrix.csv").read_text()) == rows


def test_check_writes_the_matrix_and_list_shows_it(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attentions=[identity]", "tasks=[]"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:5] == ["P?", "P?", "-", "-"]
    assert main(["check", "attentions=[identity]", "matrix=made/matrix.csv"]) == 0
    assert {row.pattern for row in read_matrix(Path("made/matrix.csv").read_text())} == {str(p) for p in Pattern}
    capsys.readouterr()
    assert main(["list", "attentions=[identity]", "format=markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| `identity` | P | P | - | - |")


def test_an_unknown_format_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "format=markdwon"]) == 2
    assert "did you mean 'markdown'" in capsys.readouterr().err


@pytest.mark.shipped
def test_the_readme_shows_the_shipped_matrix() -> None:
    """``make support`` was run after the last change of the zoo, and README.md holds what it wrote."""
    rows = shipped()
    if {(row.torch, row.python) for row in rows} != {(torch.__version__, support.PYTHON)}:
        pytest.skip("the shipped certificates are of another torch or Python")
    tables = docs_tables()
    (block,) = (block for block in tables.BLOCKS if block.make is tables.support_matrix)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert block.replaced(readme) == readme
    assert "?" not in block.make().replace(support.LEGEND, "")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("the costs", ["| `linear` | "]),
        ("the comparison", ["| ABC, time | 1,877 | 1,877 |"]),
        ("what can stand in", ["| `smyrf` | NS CS NC CC |  |"]),
        ("what cannot stand in", ["| `abc` | it has no core"]),
        ("what is left", ["| `smyrf` |  | "]),
        ("the pools", ["| `uniform` | recall_at_1 | "]),
        ("the figures", ["| **softmax** | ", ", to beat | "]),
    ],
)
def test_tables_in_documents_show_the_committed_records(name: str, shown: list[str]) -> None:
    blocks = [block for block in docs_tables().BLOCKS if block.name.startswith(name)]
    assert blocks
    for block in blocks:
        text = (ROOT / block.file).read_text(encoding="utf-8")
        assert block.replaced(text) == text
        assert all(part in text for part in shown)


@pytest.mark.shipped
def test_every_shipped_proof_is_of_the_present_code() -> None:
    rows = [r for r in shipped() if (r.torch, r.python) == (torch.__version__, support.PYTHON)]
    if not rows:
        pytest.skip("the shipped certificates are of another torch or Python")
    with Composer() as composer:
        settings = {setting.name: setting for setting in composer.settings(["all"])}
    stale = {row.setting for row in rows if row.key != certificate_key(settings[row.setting])}
    assert not stale, "run `make support`"
    assert not [row for row in rows if row.mark == "failed"]
