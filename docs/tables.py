"""Writes the generated tables of README.md and docs/ between their marks, from committed files (``make support``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cab.compose import Composer
from cab.report.book import build_book
from cab.report.evidence import read_evidence
from cab.report.markdown import titled
from cab.support import LEGEND, markdown

ROOT = Path(__file__).parent.parent


def support_matrix() -> str:
    """The matrix of the mechanisms' own settings, from the certificates that come with this version."""
    with Composer() as composer:
        settings = [s for s in composer.settings(["all"]) if s.name == s.card.name]
        return f"{markdown(settings)}\n\n{LEGEND}."


def cab2023() -> str:
    """CAB's published efficiency lengths beside ours, for each hardware that ``results/reference`` has."""
    lines: list[str] = []
    for folder in sorted((ROOT / "results" / "reference" / "cab2023").glob("*")):
        book = build_book(read_evidence(folder), "cab2023")
        lines += [f"Measured on `{book.hardware}`; records: `{folder.relative_to(ROOT)}/records`.", ""]
        for section in book.sections:
            for table in section.tables:
                if "-cab2023-" in table.anchor:
                    lines += titled(table, "###")
    return "\n".join(lines).strip()


class Block(NamedTuple):
    """A place between the two marks of ``name`` in a file, and what makes its text."""

    file: str
    name: str
    make: Callable[[], str]

    def replaced(self, text: str) -> str:
        """``text`` with what stands between the marks made anew."""
        begin, end = f"<!-- {self.name} -->", f"<!-- end of {self.name.partition(':')[0]} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{self.file} has no marks {begin!r} and {end!r}")
        return f"{before}{begin}\n\n{self.make()}\n\n{end}{after}"


BLOCKS = (
    Block("README.md", "the support matrix: `make support`", support_matrix),
    Block("docs/CAB-EFFICIENCY.md", "the comparison: `make support`", cab2023),
)

if __name__ == "__main__":
    for block in BLOCKS:
        path = ROOT / block.file
        path.write_text(block.replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
