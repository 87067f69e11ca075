"""PG-19 in its published layout: books of Project Gutenberg from before 1919, one text file each, split by book.

    <folder>/train/<book id>.txt   28,602 books        <folder>/validation/<book id>.txt   50
    <folder>/test/<book id>.txt    100

The files are in the public bucket ``gs://deepmind-gutenberg`` (github.com/google-deepmind/pg19). Here a book is a
document. Source: J. Rae et al., "Compressive Transformers for Long-Range Sequence Modelling", ICLR 2020,
arXiv:1911.05507, section 4.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tasks.contract import Split
from tasks.sources import DataUnavailable
from tasks.text import Document


@dataclass(frozen=True)
class PG19:
    """The books under ``folder``; nothing is read before it is asked for."""

    NAME: ClassVar[str] = "pg19"  # of its folder in the cache
    folder: Path
    source: ClassVar[str] = "PG-19, 28,602 / 50 / 100 books of Project Gutenberg published before 1919"
    licence: ClassVar[str] = "public domain in the United States; the collection is Apache-2.0"
    separator: ClassVar[bytes] = b"\n\n"

    def books(self, split: Split) -> list[Path]:
        """The files of a split, by book id.

        Raises:
            DataUnavailable: there are none.
            ValueError: one book is in two splits.
        """
        found = sorted((self.folder / split).glob("*.txt"), key=lambda path: path.stem)
        if not found:
            raise DataUnavailable(
                f"PG-19: no {split}/*.txt in {self.folder}; put the folders train, validation and test of the bucket"
                " gs://deepmind-gutenberg there (another folder: task.data_root=FOLDER)"
            )
        names = {path.name for path in found}
        for other in {"train", "validation", "test"} - {split}:
            twice = sorted(path.name for path in (self.folder / other).glob("*.txt") if path.name in names)
            if twice:
                raise ValueError(f"{self.folder}: book {twice[0]} is in {split} and in {other}")
        return found

    def documents(self, split: Split) -> Iterator[Document]:
        for path in self.books(split):
            content = path.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 at byte {error.start}: corrupt, or not of PG-19") from error
            if not text.strip():
                raise ValueError(f"{path} is empty: fetch it again, or take it out")
            yield Document(path.stem, content)

    def fingerprint(self, split: Split) -> str:
        """Changes when a file does; by name, size and time, since to read 11 GB each time would take minutes."""
        digest = hashlib.sha256()
        for path in self.books(split):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()
