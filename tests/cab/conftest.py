"""The plug-in folder of these tests: an attention and a task written as an outsider would."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cab.compose import Composer

OUTSIDE = Path(__file__).resolve().parents[1] / "outside"


@pytest.fixture(scope="session")
def outside() -> Path:
    return OUTSIDE


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Composer]:
    monkeypatch.syspath_prepend(OUTSIDE)
    with Composer(OUTSIDE) as opened:
        yield opened


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
