"""Packs: the same bytes each time, refused without proof, never over other results, never out of their folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cab.cli import main
from cab.errors import UserError
from cab.records import Record, RecordStore, Status
from cab.report.compare import Pair
from cab.report.make import make_report
from cab.report.trust import CONTENT, trust
from cab.stats.intervals import Interval
from cab.submission import pack, unpack, verify

NS = "noncausal_self"
SETTINGS = ("sdpa", "linear", "performer", "smyrf", "local", "abc", "lara", "eva", "cosformer", "reformer", "super")


def board(path: Path, shift: float = 0.0) -> Path:
    """Eleven certified settings with a task's values and their manifest."""
    store, rng = RecordStore(path), np.random.default_rng(0)
    for name in ("certificates", "cards", "manifests"):
        (path / name).mkdir(parents=True)
    part = {"support": "published", "reason": "", "oracle": True, "passed": True, "mark": "certified", "results": []}
    metric = {"name": "accuracy", "unit": "1", "higher_is_better": True, "description": "", "aggregate": "mean"}
    card = {"name": "recall", "title": "Recall", "patterns": [NS], "metrics": [metric], "unit": "problem", "floors": {}}
    (path / "cards" / "task-recall.json").write_text(json.dumps(card))
    (path / "manifests" / "m1.json").write_text(json.dumps({"id": "m1", "command": "cab leaderboard"}))
    for number, setting in enumerate(SETTINGS):
        certificate = {
            "format": 1,
            "attention": setting,
            "card": {"supports": {NS: "published"}},
            "patterns": {NS: part},
        }
        (path / "certificates" / f"{setting}.json").write_text(json.dumps(certificate))
        values = 0.5 + 0.02 * number + rng.normal(0, 0.01, 40) + shift
        key = f"run{number}"
        store.write_units(key, {"units": np.array([f"u{i}" for i in range(40)]), "values/accuracy": values})
        store.append(
            Record(
                run_key=key,
                protocol="quick",
                metric="accuracy",
                status=Status.OK,
                value=float(values.mean()),
                unit="1",
                higher_is_better=True,
                attention=setting,
                setting=setting,
                pattern=NS,
                task="recall",
                size="tiny",
                task_setting="recall",
                split="test",
                seed=1,
                slots="one",
                phase="evaluate",
                level="model",
                manifest="m1",
                hardware="made-up",
                device="cpu",
                dtype="float32",
                threads=2,
                started_at="2026-01-01T00:00:00+00:00",
            )
        )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return board(tmp_path / "theirs" / "quick" / "made-up")


def test_a_pack_comes_back_as_it_was_and_says_whose_it_is(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, "Ada L.", tmp_path / "a.zip").read_bytes()
    make_report(folder)  # what a report writes is no part of a pack
    assert pack(folder, "Ada L.", tmp_path / "b.zip").read_bytes() == first
    found = unpack(tmp_path / "a.zip", tmp_path / "results")
    assert found == tmp_path / "results" / "quick" / "made-up-by-ada-l"
    for part in ("records", "units", "manifests", "certificates", "cards"):
        theirs = {path.name: path.read_bytes() for path in (folder / part).iterdir()}
        assert {path.name: path.read_bytes() for path in (found / part).iterdir()} == theirs
    assert trust(found).level == "submitted"
    made = make_report(found)
    for page in made.paths[:2]:
        assert "Submitted by Ada L.; not run again by us." in page.read_text()
    assert unpack(tmp_path / "a.zip", tmp_path / "results") == found  # again is no mistake


def test_records_without_proof_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "certificates" / "linear.json").unlink()
    with pytest.raises(UserError, match="linear has values in noncausal_self without a certificate"):
        pack(folder, "Ada", tmp_path / "a.zip")
    (folder / "manifests" / "m1.json").unlink()
    with pytest.raises(UserError, match=r"no manifests/m1\.json"):
        pack(folder, "Ada", tmp_path / "a.zip")
    path = next((folder / "records").iterdir())
    path.write_text(path.read_text() + '{"torn')
    with pytest.raises(UserError, match=r"jsonl:\d+: no empty line after it"):
        pack(folder, "Ada", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def altered(path: Path, change: Any) -> Path:
    """The archive with its members changed by a function of {name: content}."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def described(members: dict[str, bytes], **changes: Any) -> None:
    members[CONTENT] = json.dumps(json.loads(members[CONTENT]) | changes).encode()


def outside(members: dict[str, bytes]) -> None:
    content = json.loads(members[CONTENT])
    members["../../evil.json"] = b"{}"
    described(members, files=content["files"] | {"../../evil.json": "0" * 64})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.update({"plan.json": b"[]"}), "its members are not those of"),
        (lambda members: members.update({"manifests/m1.json": b"{}"}), "damaged: its SHA-256 is another"),
        (lambda members: members.pop("manifests/m1.json"), "its members are not those of"),
        (outside, "does not belong into a pack"),
        (lambda members: described(members, format=99), "is not of format 1"),
        (lambda members: described(members, protocol="../.."), "protocol="),
        (lambda members: members.pop(CONTENT), "not a pack"),
    ],
)
def test_a_pack_that_was_changed_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    path = altered(pack(folder, "Ada", tmp_path / "a.zip"), change)
    with pytest.raises(UserError, match=message) as error:
        unpack(path, tmp_path / "results")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_what_is_no_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("hello")
    for path in (tmp_path / "a.zip", tmp_path / "none.zip"):
        with pytest.raises(UserError, match="not a pack of `cab submit`"):
            unpack(path, tmp_path / "results")


def test_another_pack_of_the_same_name_does_not_overwrite(folder: Path, tmp_path: Path) -> None:
    unpack(pack(folder, "Ada", tmp_path / "a.zip"), tmp_path / "results")
    other = board(tmp_path / "other" / "quick" / "made-up", shift=0.1)
    with pytest.raises(UserError, match="is there, with other content"):
        unpack(pack(other, "Ada", tmp_path / "b.zip"), tmp_path / "results")


@pytest.mark.parametrize(("shift", "level"), [(0.0, "verified"), (0.2, "submitted")])
def test_verified_is_what_a_run_of_ours_bears_out(folder: Path, tmp_path: Path, shift: float, level: str) -> None:
    found = unpack(pack(folder, "Ada", tmp_path / "a.zip"), tmp_path / "results")
    ours = board(tmp_path / "ours" / "quick" / "made-up", shift)
    verdict = verify(found, ours, "sdpa")
    assert verdict.level == level
    assert "of 11 values differ from those of quick/made-up" in verdict.text
    assert verdict.text in (make_report(found, figures=False).paths[0]).read_text()
    with pytest.raises(UserError, match="is no submission"):
        verify(ours, found, "sdpa")
    shutil.copytree(found, tmp_path / "copy")
    with pytest.raises(UserError, match="was submitted, too"):
        verify(tmp_path / "copy", found, "sdpa")


def test_the_verb(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_tmp: Path) -> None:
    assert main(["submit", f"folder={folder}", "name=Ada"]) == 0
    assert (in_tmp / "quick-made-up.zip").is_file()
    assert main(["submit", "unpack=quick-made-up.zip", "results=results"]) == 0
    found = in_tmp / "results" / "quick" / "made-up-by-ada"
    assert main(["submit", f"verify={found}", f"against={folder}"]) == 0
    assert "and verified: 0 of 11 values differ" in capsys.readouterr().out
    for wrong in ([], [f"folder={folder}"], [f"folder={folder}", "unpack=x.zip"], ["folder=nowhere", "name=Ada"],
                  [f"verify={found}"], [f"folder={folder}", "name='a/b'"]):  # fmt: skip
        assert main(["submit", *wrong]) == 2
        assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_value_without_its_test_examples_is_refused(folder: Path, tmp_path: Path) -> None:
    units = next((folder / "units").glob("*.npz"))
    units.unlink()
    with pytest.raises(UserError, match=f"no units/{units.name}: without values per test example"):
        pack(folder, "Ada", tmp_path / "a.zip")


def test_a_pack_that_was_signed_again_is_held_to_what_packing_asks(folder: Path, tmp_path: Path) -> None:
    def torn_and_signed(members: dict[str, bytes]) -> None:
        name = next(member for member in members if member.startswith("records/"))
        members[name] += b'{"torn'
        content = json.loads(members[CONTENT])
        described(members, files=content["files"] | {name: hashlib.sha256(members[name]).hexdigest()})

    path = altered(pack(folder, "Ada", tmp_path / "a.zip"), torn_and_signed)
    with pytest.raises(UserError, match="no empty line after it"):
        unpack(path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_value_that_has_no_interval_there_or_is_far_off_is_not_verified(folder: Path, tmp_path: Path) -> None:
    found = unpack(pack(folder, "Ada", tmp_path / "a.zip"), tmp_path / "results")
    for path in (found / "units").glob("*.npz"):
        path.unlink()
    verdict = verify(found, board(tmp_path / "ours" / "quick" / "made-up"), "sdpa")
    assert verdict.level == "submitted"
    assert "have no counterpart or no interval" in verdict.text

    def pair(first: float, second: float) -> Pair:
        return Pair(*(Interval(value, value - 1.0, value + 1.0, 0.95, "student_t", 5) for value in (first, second)))

    assert [pair(0.0, value).changed for value in (1.9, 2.1, 7.0)] == [False, True, True]
    assert [pair(0.0, value).far for value in (1.9, 2.1, 7.0)] == [False, False, True]
