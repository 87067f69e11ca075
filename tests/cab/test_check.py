"""Certificates on file: kept, remade when stale or torn, and what the gate makes of them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from attention_zoo.conformance import Certificate, Mark, PatternCertificate, Result, Status
from attention_zoo.contract import Pattern, Support
from cab import certificates as module
from cab.certificates import certificate, certificate_key, certificate_path, gate, stored
from cab.check import check
from cab.errors import UserError
from cab.schema import Check
from cab.settings import Setting

IDENTITY = Setting("identity", "attention_zoo.identity.IdentityAttention")
LINEAR = Setting("linear", "attention_zoo.linear.LinearAttention", {"feature_map": "elu"})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the mechanisms that were tested in earnest."""
    made: list[str] = []
    real = module.certify

    def counting(kind: type, **arguments: object) -> Certificate:
        made.append(kind.__name__)
        return real(kind, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "certify", counting)
    return made


def test_a_certificate_is_made_once_and_read_from_then_on(tmp_path: Path, counted: list[str]) -> None:
    first = certificate(IDENTITY, tmp_path)
    assert first.passed, str(first)
    assert certificate(IDENTITY, tmp_path) == first
    assert counted == ["IdentityAttention"]
    content = json.loads((tmp_path / "certificates" / "identity.json").read_text())
    assert content["setting"] == "identity"
    assert content["patterns"]["causal_self"]["mark"] == "certified"


@pytest.mark.parametrize("damage", [b"", b'{"format": 1', b"[]", b'{"format": 1, "patterns": {}}', b"\xff\xfe"])
def test_a_torn_file_is_remade(tmp_path: Path, counted: list[str], damage: bytes) -> None:
    certificate(IDENTITY, tmp_path)
    certificate_path(IDENTITY, tmp_path).write_bytes(damage)
    assert certificate(IDENTITY, tmp_path).passed
    assert len(counted) == 2
    assert os.listdir(tmp_path / "certificates") == ["identity.json"]


def test_other_code_makes_a_certificate_stale(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate(IDENTITY, tmp_path)
    seen: list[list[str]] = []
    monkeypatch.setattr(module, "source_hash", lambda modules: seen.append(list(modules)) or "changed")
    assert stored(IDENTITY, tmp_path) is None
    assert seen == [["attention_zoo.identity", "attention_zoo.reference.identity", "attention_zoo.conformance"]]


def test_options_enter_the_key_and_the_file_name() -> None:
    other = Setting("linear[feature_map=relu]", LINEAR.target, {"feature_map": "relu"})
    assert certificate_key(other) != certificate_key(LINEAR)
    assert certificate_path(other, Path("r")) == Path("r/certificates/linear_feature_map=relu_.json")
    assert certificate_path(Setting("../x/y", LINEAR.target), Path("r")).parent == Path("r/certificates")


def _part(support: Support | None, *failed: str, oracle: bool = True) -> PatternCertificate:
    lines = tuple(Result(test, "", "op", "", Status.FAIL) for test in failed)
    return PatternCertificate(Pattern.CAUSAL_SELF, support, oracle, lines, "" if support else "no such form")


def _certificate(part: PatternCertificate) -> Certificate:
    return Certificate("own", "own.Own", {}, {}, "2", {Pattern.CAUSAL_SELF: part})


@pytest.mark.parametrize(
    ("part", "mark", "cost", "quality"),
    [
        (_part(Support.PUBLISHED), Mark.CERTIFIED, (True, ""), (True, "")),
        (_part(Support.EXTENSION, oracle=False), Mark.NO_ORACLE, (True, ""), (True, "")),
        (_part(None), Mark.UNSUPPORTED, (False, "no such form"), (False, "no such form")),
        (
            _part(Support.PUBLISHED, "T3", "T9", "T3"),
            Mark.FAILED,
            (False, "failed T3, T9 of its certificate"),
            (False, "failed T3, T9 of its certificate"),
        ),
        (
            _part(Support.VALUE_CAUSAL),
            Mark.VALUE_CAUSAL,
            (True, ""),
            (False, "sees the future: causal in the values only"),
        ),
    ],
)
def test_the_gate(part: PatternCertificate, mark: Mark, cost: tuple[bool, str], quality: tuple[bool, str]) -> None:
    made = _certificate(part)
    assert part.mark is mark
    assert gate(made, "causal_self") == cost
    assert gate(made, Pattern.CAUSAL_SELF, quality=True) == quality


def test_no_certificate_no_row() -> None:
    made = _certificate(_part(Support.PUBLISHED))
    assert gate(made, Pattern.NONCAUSAL_CROSS) == (False, "its certificate does not cover noncausal_cross")


def test_the_verb_prints_each_line_and_says_whether_all_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Check(results=str(tmp_path), patterns=["causal_self", "causal_cross"])
    assert check(config, [IDENTITY]) is True
    out = capsys.readouterr().out
    for test in [f"T{n}" for n in range(1, 15)]:
        assert f"  {test:<4}" in out
    assert "card: other positions do not influence an output" in out
    assert "identity has no causal_cross: " in out
    assert "noncausal_self" not in out.split("certificates")[0].split("1/1")[1]


def test_the_verb_fails_on_a_failed_pattern_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module.certify

    def spoilt(kind: type, **arguments: object) -> Certificate:
        made = real(kind, **arguments)  # type: ignore[arg-type]
        part = made.patterns[Pattern.CAUSAL_SELF]
        wrong = Result("T3", "perturbation leak", "op", "one case", Status.FAIL, "differs by 1")
        bad = dataclasses.replace(part, results=(*part.results, wrong))
        return dataclasses.replace(made, patterns={**made.patterns, Pattern.CAUSAL_SELF: bad})

    monkeypatch.setattr(module, "certify", spoilt)
    assert check(Check(results=str(tmp_path)), [IDENTITY]) is False
    assert "failed: identity in causal_self" in capsys.readouterr().out
    assert check(Check(results=str(tmp_path), patterns=["noncausal_self"]), [IDENTITY]) is True


def test_dry_run_tests_nothing(tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(Check(results=str(tmp_path), dry_run=True), [IDENTITY, LINEAR]) is True
    assert counted == []
    assert capsys.readouterr().out.count("would be tested") == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patterns": ["causal_slef"]}, "did you mean 'causal_self'"),
        ({"dtype": "bfloat16"}, "always covers"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_wrong_values_are_one_line(tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        check(Check(results=str(tmp_path), **change), [IDENTITY])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
