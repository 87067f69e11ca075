"""Writes the generated tables of README.md and docs/ between their marks, from committed files (``make support``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cab.compose import Composer
from cab.report import numbers
from cab.report.book import BASELINE, build_book
from cab.report.certificates import verdict
from cab.report.cost import Costs, variants
from cab.report.evidence import Evidence, read_evidence, sections
from cab.report.markdown import titled
from cab.report.patterns import PATTERNS, PatternText
from cab.support import LEGEND, markdown

ROOT = Path(__file__).parent.parent
LENGTH = 4096  # of the table of costs
PHASES = {"inference": "forward", "training": "forward+backward"}


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


def costs() -> str:
    """Time over fused exact attention of every mechanism at one length, per hardware of ``results/reference/zoo``."""
    lines: list[str] = []
    for folder in sorted((ROOT / "results" / "reference" / "zoo").glob("*")):
        evidence = read_evidence(folder)
        found = variants(sections(evidence.rows)[0].rows, BASELINE)
        by_phase = [next(c for c in found if (c.variant.level, c.variant.phase) == ("layer", p)) for p in PHASES]
        heads = [f"{pattern.short} {said}" for pattern in PATTERNS for said in PHASES.values()]
        lines += [
            f"Time of a layer at {LENGTH:,} over that of `{BASELINE}` in the same pattern, ± half of a 95 % interval "
            f"over processes, on `{folder.name}`; "
            f"[all lengths, memory and records]({folder.relative_to(ROOT)}/leaderboard.md).",
            "",
            f"| setting | {' | '.join(heads)} |",
            f"|---|{'---:|' * len(heads)}",
        ]
        names = {name for each in by_phase for pattern in PATTERNS for name in each.settings(pattern.name)}
        for name in sorted(names - {BASELINE}):
            cells = [_ratio(evidence, each, name, pattern) for pattern in PATTERNS for each in by_phase]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        lines += ["", "–: no such form; v: causal in the values only, its selection sees the future.", ""]
    return "\n".join(lines).strip()


def _ratio(evidence: Evidence, costs: Costs, name: str, pattern: PatternText) -> str:
    measured = costs.ratio(name, pattern.name, (LENGTH, LENGTH))
    if measured is None:
        return "–"
    mark = " v" if verdict(evidence.certificates, name, pattern.name).value_causal else ""
    return numbers.with_interval(measured.value, measured.interval.half_width) + mark


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
    Block("README.md", "the costs: `make support`", costs),
    Block("docs/CAB-EFFICIENCY.md", "the comparison: `make support`", cab2023),
)

if __name__ == "__main__":
    for block in BLOCKS:
        path = ROOT / block.file
        path.write_text(block.replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
