"""Records: one tidy row per measured value, appended to one JSONL file per process, never edited.

    <results>/<protocol>/<hardware>/records/<start>-<host>-<pid>.jsonl     the rows
                                    units/<run_key>.npz                    values per resampling unit, raw times
                                    manifests/<id>.json                    what produced the rows of one process
                                    certificates/<setting>.json            conformance, see attention_zoo.conformance

Each process writes its own file, so no lock and no server; a line is one ``write`` of whole bytes, so a killed
process leaves at most one torn line, at the end, which the reader reports and skips.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from cab.record import COLUMNS, RETRIED, SCHEMA_VERSION, Record, Status
from cab.record_lines import LineReader
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
        """Appends rows to this process's file and makes them durable before it returns."""
        path = self._own_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())
            os.fsync(descriptor)
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
        for path in sorted(self.records_folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                try:
                    row = reader.row(line)
                except ValueError as error:
                    if problems is not None:
                        problems.append(f"{path}:{number}: {error}")
                    continue
                yield row

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
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
