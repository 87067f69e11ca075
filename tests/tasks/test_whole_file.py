"""A file written by a process that is killed, interrupted or fails is the old one or the new one, never half of one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.whole_file import whole_file, write_whole


def test_what_is_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "made" / "a.txt", b"old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def _interrupted(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        assert partial.suffix == path.suffix
        raise KeyboardInterrupt


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # its block ends last


def test_a_killed_writer_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.whole_file import write_whole\n"
        "for i in range(10**6):\n"
        "    write_whole(Path(sys.argv[1]), bytes([i % 256]) * 2**20)\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(20):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    content = (tmp_path / "a").read_bytes()
    assert len(content) == 2**20
    assert len(set(content)) == 1


def test_others_may_read_what_they_may_read_elsewhere(tmp_path: Path) -> None:
    plain, whole = tmp_path / "plain", write_whole(tmp_path / "whole", b"")
    plain.touch()
    assert whole.stat().st_mode == plain.stat().st_mode
