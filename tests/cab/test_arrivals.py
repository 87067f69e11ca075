"""Arrivals: each run told once, when all of its rows are there."""

from pathlib import Path

from cab.arrivals import Arrivals
from cab.records import Record, RecordStore, Status


def append(store: RecordStore, key: str) -> None:
    store.append(*(Record(run_key=key, protocol="p", metric=str(i), value=1.0, status=Status.OK) for i in range(2)))


def test_a_run_is_told_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    arrivals = Arrivals(store)
    assert arrivals.new() == {}
    append(store, "a")
    assert arrivals.new() == {"a": "ok"}
    (path,) = store.files()
    append(store, "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert arrivals.new() == {}
    path.write_bytes(whole)
    assert arrivals.new() == {"b": "ok"}
    assert arrivals.new() == {}


def test_a_line_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    append(store, "a")
    (path,) = store.files()
    path.write_bytes(b"\n{torn\n" + path.read_bytes())
    assert Arrivals(store).new() == {"a": "ok"}
