"""Records: one tidy row per measured value, appended to one JSONL file per process, never edited.

    <results>/<protocol>/<hardware>/records/<start>-<host>-<pid>.jsonl     the rows
                                    units/<run_key>.npz                    values per resampling unit, raw times
                                    manifests/<id>.json                    what produced the rows of one process
                                    certificates/<setting>.json            conformance, see attention_zoo.conformance

Each process writes its own file, so no lock and no server. A file begins with an empty line, and each append ends with
one: rows after the last empty line are of an append that was cut by a kill or a lost machine. They are reported and do
not count, so that a run is there with all of its rows or not at all. (Files without a first empty line are of before
this was so, and count as they are.)
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from cab.record import COLUMNS, RETRIED, SCHEMA_VERSION, Record, Status
from cab.record_lines import END, LineReader
from tasks.whole_file import whole_file

__all__ = ["COLUMNS", "RETRIED", "SCHEMA_VERSION", "Record", "RecordStore", "Status", "now"]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RecordStore:
    """The records of one folder ``<results>/<protocol>/<hardware>``."""

    _paths: ClassVar[dict[tuple[Path, int], Path]] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def records_folder(self) -> Path:
        return self.folder / "records"

    def append(self, *records: Record) -> None:
        """Appends rows to this process's file, all or none, and makes them durable before it returns.

        Raises:
            OSError: the disk is full, say; the file is as it was before.
        """
        path = self._own_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(json.dumps(asdict(record), allow_nan=False).encode() + b"\n" for record in records)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            content = memoryview((b"" if before else END) + lines + END)
            try:
                while content:
                    content = content[os.write(descriptor, content) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    def _own_path(self) -> Path:
        """The file of this process, whatever object of the folder asks; a forked child has one of its own."""
        owner = (self.folder.absolute(), os.getpid())
        if owner not in self._paths:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            self._paths[owner] = self.records_folder / f"{stamp}-{socket.gethostname()}-{os.getpid()}.jsonl"
        return self._paths[owner]

    def lines(self, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows, file by file in name order. What cannot be read goes to ``problems`` as ``file:line: why``."""
        reader = LineReader()
        for path in self.files():
            for _, row in reader.rows(path, problems):
                yield row

    def files(self) -> list[Path]:
        """The record files, in name order."""
        return sorted(path for path in self.records_folder.glob("*.jsonl") if path.is_file())

    def of_run(self, run_key: str) -> list[dict[str, Any]]:
        """The rows of one run, read from the files that name it only."""
        reader, needle = LineReader(), run_key.encode()
        named = (path for path in self.files() if needle in path.read_bytes())
        return [row for path in named for _, row in reader.rows(path) if row["run_key"] == run_key]

    def final(self, run_key: str) -> list[dict[str, Any]]:
        """The rows of one run that need no repeat; empty where it is to be run."""
        return [row for row in self.of_run(run_key) if row["status"] not in RETRIED]

    def of_runs(self, run_keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """The rows of some runs, all read in one pass; without those that have none."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.lines():
            if row["run_key"] in run_keys:
                found.setdefault(row["run_key"], []).append(row)
        return found

    def frame(self, problems: list[str] | None = None) -> pd.DataFrame:
        """All rows with the columns of :class:`Record`, exact duplicates once."""
        rows = list(self.lines(problems))
        return pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(ignore_index=True)

    def complete(self) -> set[str]:
        """The run keys that need no repeat: those with a row whose status is not retried."""
        return {row["run_key"] for row in self.lines() if row["status"] not in RETRIED}

    def write_units(self, run_key: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Values per resampling unit of one run, in a compressed side file; whole or not at all."""
        path = self.folder / "units" / f"{run_key}.npz"
        with whole_file(path) as partial:
            np.savez_compressed(partial, allow_pickle=False, **dict(arrays))
        return path

    def read_units(self, run_key: str) -> dict[str, np.ndarray]:
        """The side file of a run; empty where it has none."""
        path = self.folder / "units" / f"{run_key}.npz"
        if not path.exists():
            return {}
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
