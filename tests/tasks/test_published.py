"""Fetching original data from a host of our own on this machine: whole or not at all, once, and never another file."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.lstf.task import ETTh1Forecasting
from tasks.published import ETT, LJSPEECH, MULTI_NEWS, Published
from tasks.sources import DataUnavailable, cache_folder


@dataclass
class Host:
    """Serves ``files``; those in ``stalling`` stop half-way until ``go_on`` is set."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    stalling: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def published(self, name: str, content: bytes, tells: str, *, archive: bool) -> Published:
        self.files[f"/{name}"] = content
        digest = hashlib.sha256(content).hexdigest()
        return Published(f"{self.url}/{name}", digest, "1 kB", "none", tells, archive)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked.append(self.path)
            content = host.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            if self.path in host.stalling:
                self.wfile.flush()
                host.half_sent.set()
                host.go_on.wait(60)
            self.wfile.write(content[half:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield host
    host.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


MEMBERS = {"readings/b.txt": b"b" * 300, "index.csv": b"b\n", "a.txt": b"a"}


def tarred(top: str = "set-1.0/") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:bz2") as archive:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(f"set-1.0/{name}", content)
    return file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [tarred(), zipped()], ids=["tar", "zip"])
def test_an_archive_is_fetched_once_beside_what_is_there(
    host: Host, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    published = host.published("set", content, "index.csv", archive=True)
    folder = cache_folder() / "original" / "set"
    folder.mkdir(parents=True)
    (folder / "alignment.zip").write_bytes(b"mine")
    published.into(folder)
    assert contents(folder) == MEMBERS | {"alignment.zip": b"mine"}
    assert f"fetching {published.url} (1 kB; none) into {folder}" in capsys.readouterr().err
    published.into(folder)
    assert host.asked == ["/set"]
    assert capsys.readouterr().err == ""


def test_a_file_is_put_where_the_task_reads_it(host: Host) -> None:
    published = host.published("x.csv", b"1,2\n", "small/x.csv", archive=False)
    folder = cache_folder() / "original" / "set"
    published.into(folder)
    assert contents(folder) == {"small/x.csv": b"1,2\n"}


def test_a_folder_of_the_user_s_is_never_written_to(host: Host, tmp_path: Path) -> None:
    host.published("x.csv", b"1,2\n", "x.csv", archive=False).into(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert host.asked == []


@pytest.mark.parametrize("fault", ["another file", "no such file", "no host", "another archive", "no archive"])
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(host: Host, fault: str) -> None:
    published = host.published("set", tarred(), "index.csv", archive=True)
    if fault == "another file":
        host.files["/set"] = tarred() + b"\0"
    elif fault == "no such file":
        host.files.clear()
    elif fault == "no host":
        published = replace(published, url="http://127.0.0.1:9/set")
    elif fault == "another archive":
        published = host.published("set", tarred(top="") + b"", "index.csv", archive=True)
    else:
        published = host.published("set", b"<html>too many requests</html>", "index.csv", archive=True)
    folder = cache_folder() / "original" / "set"
    with pytest.raises(DataUnavailable, match=r"cannot fetch http://127.*put index\.csv .*data_root=FOLDER") as error:
        published.into(folder)
    assert "\n" not in str(error.value)
    assert contents(folder) == {}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_cut_download_leaves_nothing_that_passes_for_data(host: Host, how: signal.Signals) -> None:
    published = host.published("set", tarred(), "index.csv", archive=True)
    host.stalling.add("/set")
    folder = cache_folder() / "original" / "set"
    code = f"from tasks.published import Published; from pathlib import Path; {published!r}.into(Path({str(folder)!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert host.half_sent.wait(60)
    time.sleep(0.1)
    child.send_signal(how)
    assert child.wait(30) != 0
    assert not (folder / "index.csv").exists()
    host.stalling.clear()
    host.go_on.set()
    published.into(folder)
    assert {name: content for name, content in contents(folder).items() if not name.startswith(".")} == MEMBERS


def test_a_task_fetches_its_published_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b"date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n2016-07-01 00:00:00,1,2,3,4,5,6,7\n"
    monkeypatch.setitem(ETT, "ETTh1", host.published("x", rows, ETT["ETTh1"].tells, archive=False))
    with pytest.raises(ValueError, match="1 rows, but the published file has 17,420"):
        ETTh1Forecasting(data="original").prepare()
    assert (cache_folder() / "original" / "ETDataset" / "ETT-small" / "ETTh1.csv").read_bytes() == rows


@pytest.mark.parametrize("published", [*ETT.values(), LJSPEECH, MULTI_NEWS], ids=lambda published: published.tells)
def test_every_address_is_of_one_version_over_a_safe_line(published: Published) -> None:
    assert published.url.startswith("https://")
    assert "/main/" not in published.url
    assert "/master/" not in published.url
    assert len(bytes.fromhex(published.sha256)) == 32
