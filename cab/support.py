"""The support matrix: which setting is proved in which pattern, by a certificate of the code as it is now.

Certificates stand beside the records of a protocol (``cab check``, ``cab leaderboard``); what they said on the machine
of a release is shipped as ``results/reference/support.csv`` (``make support``). A certificate of other code, other
options, another torch or another Python counts for nothing.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path

from attention_zoo.conformance import Certificate, Mark, Status
from attention_zoo.contract import Pattern, Support
from cab.certificates import certificate_key, stored
from cab.settings import Setting

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SIGNS = {Support.PUBLISHED: "P", Support.EXTENSION: "E", Support.VALUE_CAUSAL: "V"}
LEGEND = (
    "P published, E extension, V value-causal (the selection sees the future), - no faithful form; "
    "? claimed, but without a certificate of this code here (cab check makes one), ! its certificate fails"
)


@dataclass(frozen=True)
class Proof:
    """What a certificate says of a setting in a pattern, with the counts of its lines; ``key`` is the certificate's."""

    setting: str
    pattern: str
    mark: str
    support: str
    passed: int
    failed: int
    not_applicable: int
    reason: str
    key: str
    torch: str
    python: str


def proofs(setting: str, made: Certificate) -> list[Proof]:
    """A certificate in short, a row per pattern."""
    found = []
    for pattern, part in made.patterns.items():
        count = {status: sum(result.status is status for result in part.results) for status in Status}
        found.append(
            Proof(
                setting=setting,
                pattern=str(pattern),
                mark=str(part.mark),
                support=str(part.support or ""),
                passed=count[Status.PASS],
                failed=count[Status.FAIL],
                not_applicable=count[Status.NOT_APPLICABLE],
                reason=part.reason,
                key=made.key,
                torch=made.torch,
                python=PYTHON,
            )
        )
    return found


def write_matrix(path: Path, rows: Iterable[Proof]) -> None:
    """The rows as CSV, sorted by setting, patterns in their order."""
    order = {str(pattern): number for number, pattern in enumerate(Pattern)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Proof)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: (row.setting, order[row.pattern])))


def read_matrix(text: str) -> list[Proof]:
    """The inverse of :func:`write_matrix`."""
    return [
        Proof(
            setting=row["setting"],
            pattern=row["pattern"],
            mark=row["mark"],
            support=row["support"],
            passed=int(row["passed"]),
            failed=int(row["failed"]),
            not_applicable=int(row["not_applicable"]),
            reason=row["reason"],
            key=row["key"],
            torch=row["torch"],
            python=row["python"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


@cache
def shipped() -> tuple[Proof, ...]:
    """The matrix that comes with this version of CAB; empty where there is none."""
    file = resources.files("cab.reference") / "support.csv"
    return tuple(read_matrix(file.read_text(encoding="utf-8"))) if file.is_file() else ()


def proved(setting: Setting, results: Path | None = None) -> dict[Pattern, Proof]:
    """Current proofs of a setting by pattern: from a certificate under ``results``, else those shipped."""
    files = () if results is None else results.glob("*/*/certificates/*.json")
    for folder in sorted({path.parent.parent for path in files}):
        made = stored(setting, folder)
        if made is not None:
            return {Pattern(row.pattern): row for row in proofs(setting.name, made)}
    key = certificate_key(setting)
    return {Pattern(row.pattern): row for row in shipped() if row.setting == setting.name and row.key == key}


def sign(setting: Setting, pattern: Pattern, proof: Mapping[Pattern, Proof]) -> str:
    """One cell of the matrix (see ``LEGEND``)."""
    if pattern not in setting.card.supports:
        return "-"
    claimed = SIGNS[setting.card.supports[pattern]]
    if pattern not in proof:
        return f"{claimed}?"
    return f"{claimed}!" if proof[pattern].mark == Mark.FAILED else claimed


def markdown(settings: Sequence[Setting], results: Path | None = None) -> str:
    """The matrix as a Markdown table, a row per setting (see :func:`proved` for ``results``)."""
    lines = [
        "| attention | " + " | ".join(pattern.short for pattern in Pattern) + " | paper |",
        "|---|" + ":-:|" * len(Pattern) + "---|",
    ]
    for setting in settings:
        card, proof = setting.card, proved(setting, results)
        cells = " | ".join(sign(setting, pattern, proof) for pattern in Pattern)
        lines.append(f"| `{setting.name}` | {cells} | {card.authors} ({card.year}), {card.paper} |")
    return "\n".join(lines)
