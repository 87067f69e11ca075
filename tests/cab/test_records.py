"""Records: appended whole, read back, torn lines reported, duplicates counted once."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cab.records import COLUMNS, Record, RecordStore, Status


def record(key: str = "k1", value: float | None = 1.0, status: Status = Status.OK, **more) -> Record:
    return Record(run_key=key, protocol="adhoc", metric="m", value=value, status=status, **more)


def test_rows_come_back_with_all_columns(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record(), record("k2", None, Status.UNSUPPORTED, reason="no form"))
    frame = store.frame()
    assert tuple(frame.columns) == COLUMNS
    assert list(frame.run_key) == ["k1", "k2"]
    assert frame.reason[1] == "no form"


def test_a_value_goes_with_ok_and_a_reason_with_everything_else() -> None:
    with pytest.raises(ValueError, match="a value with status ok"):
        record(value=None)
    with pytest.raises(ValueError, match="needs a reason"):
        record(value=None, status=Status.TIMEOUT)


def test_a_line_with_lists_for_values_is_reported(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.records_folder.mkdir()
    line = {"run_key": "a", "metric": ["x"], "status": "ok", "value": 1.0}
    (store.records_folder / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"metric": "x"}) + "\n")
    problems: list[str] = []
    assert [row["metric"] for row in store.lines(problems)] == ["x"]
    assert problems == [f"{store.records_folder / 'a.jsonl'}:1: metric: more than one value"]


def test_a_torn_line_is_reported_with_file_and_line_and_hides_no_other(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record("a"))
    store.append(record("b"))
    path = next(store.records_folder.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    other = RecordStore(tmp_path)
    (store.records_folder / "z.jsonl").write_text(json.dumps(asdict(record("c"))) + "\n[1]\n")
    problems: list[str] = []
    assert list(other.frame(problems).run_key) == ["a", "c"]
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:4", f"{store.records_folder / 'z.jsonl'}:2"]


def test_the_same_row_twice_counts_once(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record(), record())
    assert len(store.frame()) == 1


def test_errors_are_tried_again_and_other_failures_are_results(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(
        record("ok"),
        record("error", None, Status.ERROR, reason="r"),
        record("oom", None, Status.OUT_OF_MEMORY, reason="r"),
    )
    assert store.complete() == {"ok", "oom"}


def test_a_killed_writer_loses_nothing_that_it_had_appended(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cab.records import *\n"
        f"store = RecordStore(Path({str(tmp_path)!r}))\n"
        "for i in range(10**6):\n"
        "    store.append(Record(run_key=str(i), protocol='p', metric='m', value=1.0, status=Status.OK))\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    told += [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    keys = {row["run_key"] for row in RecordStore(tmp_path).lines()}
    assert {str(i) for i in told} <= keys


def test_side_files_come_back_and_leave_no_partial_file(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.write_units("k", {"values/m": np.arange(3.0), "units": np.array(["a", "b", "c"])})
    back = store.read_units("k")
    assert back["values/m"].tolist() == [0, 1, 2]
    assert back["units"].tolist() == ["a", "b", "c"]
    assert store.read_units("none") == {}
    assert [path.name for path in (tmp_path / "units").iterdir()] == ["k.npz"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"value": "0.5"}, "value='0.5' is not a number"),
        ({"value": True}, "value=True is not a number"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number"),
        ({"setting": 3}, "setting=3 is not a text"),
        ({"compiled": 0}, "compiled=0 is not true or false"),
        ({"status": "fine"}, "status='fine' is none of"),
        ({"value": None}, "status ok without a value"),
        ({"run_key": None}, "no run_key"),
        ({"metric": ["m"]}, "metric: more than one value"),
        ({"status": ["ok"]}, "status: more than one value"),
        ({"schema_version": -1}, "schema_version=-1 is none"),
        ({"run_key": ""}, "an empty run_key"),
        ({"pattern": "causal"}, "pattern='causal' is none of"),
        ({"phase": "evaluated"}, "phase='evaluated' is none of"),
        ({"split": "tset"}, "split='tset' is none of"),
        ({"metric": "ratio", "value": -1.0}, "ratio=-1.0 is not positive"),
        ({"metric": "perplexity", "value": 0.0}, "perplexity=0.0 is not positive"),
        ({"length_q": 0}, "length_q=0 is no length"),
        ({"schema_version": 999}, "schema_version=999 is of a newer cab"),
    ],
)
def test_a_line_whose_columns_hold_something_else_is_reported(tmp_path: Path, change: dict, why: str) -> None:
    store = RecordStore(tmp_path)
    store.records_folder.mkdir()
    right = asdict(record())
    lines = [json.dumps(right | {"run_key": key} | more) for key, more in (("a", {}), ("b", change), ("c", {}))]
    path = store.records_folder / "a.jsonl"
    path.write_text("\n".join(lines) + "\n")
    problems: list[str] = []
    assert [row["run_key"] for row in store.lines(problems)] == ["a", "c"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:2: {why}")


def test_not_a_number_is_no_value(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.records_folder.mkdir()
    (store.records_folder / "a.jsonl").write_text(json.dumps(asdict(record(value=float("nan")))) + "\n")
    problems: list[str] = []
    assert not list(store.lines(problems))
    assert len(problems) == 1
