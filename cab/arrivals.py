"""What comes into a folder of records while somebody waits for it, whoever writes it; each byte is read once."""

from __future__ import annotations

from pathlib import Path

from cab.record_lines import END, LineReader
from cab.records import RecordStore


class Arrivals:
    """The runs whose rows came into a folder since they were last asked for."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._read: dict[Path, int] = {}
        self._lines = LineReader()

    def new(self) -> dict[str, str]:
        """The status of each new run by its key, in the order of the files; lines that cannot be read are left out."""
        found: dict[str, str] = {}
        for path in self._store.files():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                content = file.read()
            whole = content.rfind(END + END) + 2 * len(END)  # up to the last append that is complete
            if whole < 2 * len(END):
                continue
            self._read[path] = self._read.get(path, 0) + whole
            for line in filter(None, content[:whole].splitlines()):
                try:
                    row = self._lines.row(line)
                except ValueError:  # a report names it
                    continue
                found[row["run_key"]] = row["status"]
        return found
