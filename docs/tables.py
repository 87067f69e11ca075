"""Writes the generated tables of README.md and docs/ between their marks, from committed files (``make support``)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from attention_zoo import names
from attention_zoo.eligibility import Standing, standing
from cab.compose import Composer
from cab.report import numbers
from cab.report.book import BASELINE, build_book
from cab.report.certificates import verdict
from cab.report.cost import Costs, variants
from cab.report.evidence import Evidence, read_evidence, sections
from cab.report.markdown import titled
from cab.report.patterns import PATTERNS, PatternText
from cab.report.quality import FLOOR, Column, Quality
from cab.report.study import build_study
from cab.report.tables import BLANK, Table
from cab.support import LEGEND, markdown

ROOT = Path(__file__).parent.parent
LENGTH = 4096  # of the table of costs
TASKS = {  # by the folder of their card
    "digits": ("digits",),
    "lm": ("lm",),
    "lstf": ("lstf_weather", "lstf_etth1", "lstf_etth2", "lstf_ettm1", "lstf_ecl"),
    "mlm": ("mlm",),
    "pcc": ("pcc",),
    "recall": ("recall",),
    "retrieval": ("retrieval",),
    "sr": ("sr",),
    "summarization": ("summarization",),
    "tts": ("tts_fastspeech2", "tts_transformer"),
}
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


def task_figures(*tasks: str) -> str:
    """Exact attention at size ``tiny`` beside the floors, in every metric, per hardware of ``reference/tasks``."""
    lines: list[str] = []
    for folder in sorted((ROOT / "results" / "reference" / "tasks").glob("*")):
        evidence = read_evidence(folder)
        section = sections(evidence.rows)[0]
        quality = Quality(evidence, section.rows, "softmax")
        lines += [f"Exact attention (`softmax`) at `tiny` on `{folder.name}`, 95 % intervals over test examples.", ""]
        for pattern in PATTERNS:
            for column in quality.columns(pattern.name):
                if column.task in tasks and quality.score(pattern.name, column, "softmax") is not None:
                    lines += _task_table(evidence, quality, pattern, column)
    return "\n".join(lines).strip()


def _task_table(evidence: Evidence, quality: Quality, pattern: PatternText, column: Column) -> list[str]:
    columns = quality.every_metric(column)
    floors = [
        name for name in quality.floors(pattern.name) if any(quality.score(pattern.name, c, name) for c in columns)
    ]
    softmax = quality.score(pattern.name, column, "softmax")
    assert softmax is not None
    runs = [run.row["run_key"] for run in softmax.runs]
    took = [float(r["value"]) for r in evidence.rows if r["run_key"] in runs and r["metric"] == "train_time_s"]
    training = f"training took {numbers.seconds(sum(took) / len(took))}" if took else "without training"
    heads = [f"{each.metric} {each.arrow} ({each.unit})" for each in columns]
    lines = [
        f"`{column.task}` in {pattern.short}: {softmax.over}; {training}.",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for setting in ("softmax", *floors):
        scores = [quality.score(pattern.name, each, setting) for each in columns]
        cells = [numbers.with_interval(s.value, s.half_width) if s is not None else "" for s in scores]
        name = setting.removeprefix(FLOOR)
        said = "**softmax**" if name == setting else f"floor `{name}`" + ", to beat" * (name == column.floor)
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return [*lines, ""]


def drop_in() -> str:
    """What is left of trained models without training again: by task, mechanism and budget, per hardware."""
    lines: list[str] = []
    for folder in sorted((ROOT / "results" / "reference" / "smyrf_dropin").glob("*")):
        study = build_study(read_evidence(folder))
        assert study is not None
        lines += [
            f"Before any fine-tuning, on `{folder.name}`; ± half of a 95 % interval over test examples; "
            f"[fidelity, memory, time and fine-tuning]({_from_docs(folder)}/dropin.md), "
            f"[records]({_from_docs(folder)}/records).",
            "",
        ]
        for table in study.tables:
            lines += _by_budget(table)
    return "\n".join(lines).strip()


def _from_docs(folder: Path) -> str:
    return f"../{folder.relative_to(ROOT)}"


def _by_budget(table: Table) -> list[str]:
    """Rows by mechanism, columns by budget; the first two columns of a study's table are budget and value."""
    cells: dict[str, dict[str, str]] = {}
    budgets: dict[str, float] = {}
    for row in table.rows:
        budget, value = row.cells[:2]
        if isinstance(budget.sort, float):
            budgets[budget.text] = budget.sort
        cells.setdefault(row.head.text.partition("[")[0], {})[budget.text] = value.text
    heads = sorted(budgets, key=lambda text: -budgets[text])
    metric = table.columns[1]
    return [
        f"{table.caption}. {metric.title}, {metric.subtitle}:",
        "",
        f"| mechanism | no budget | {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) + 1)}",
        *(
            f"| `{name}` | {' | '.join(found.get(text, '') for text in (BLANK.text, *heads))} |"
            for name, found in cells.items()
        ),
        "",
    ]


def pools() -> str:
    """What draws of 200 articles make of the figures of two attentions."""
    with (ROOT / "results" / "reference" / "retrieval-pools.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| | metric | the task's own pool | mean | standard deviation | 95 % of draws |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        drawn = [f"{float(row[key]):.3f}" for key in ("own_pool", "mean", "standard_deviation")]
        between = f"{float(row['low_95']):.3f} to {float(row['high_95']):.3f}"
        lines.append(f"| `{row['attention']}` | {row['metric']} | {' | '.join(drawn)} | {between} |")
    return "\n".join([*lines, "", f"{int(rows[0]['draws']):,} draws of {rows[0]['articles']} articles of 256 tokens."])


def coverage() -> str:
    """How many intervals of simulated values hold the truth, by quantity and number of units."""
    with (ROOT / "results" / "reference" / "statistics" / "interval-coverage.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    units = sorted({int(row["units"]) for row in rows})
    shares = {(row["quantity"], row["distribution"], int(row["units"])): float(row["holds"]) for row in rows}
    lines = [f"| | values | {' | '.join(f'{n} units' for n in units)} |", f"|---|---|{'---:|' * len(units)}"]
    for quantity, distribution in sorted({key[:2] for key in shares}):
        found = [shares.get((quantity, distribution, n)) for n in units]
        cells = ["" if share is None else f"{share:.1%}" for share in found]
        lines.append(f"| {quantity} | {distribution} | {' | '.join(cells)} |")
    repeats = sorted({int(row["repeats"]) for row in rows})
    return "\n".join([*lines, "", f"Of {repeats[0]:,} intervals (a mean gain) to {repeats[-1]:,} (all others)."])


def eligible() -> str:
    """In which patterns a mechanism can stand in for trained softmax attention, and with which options."""
    lines = ["| mechanism | patterns | options that it needs |", "|---|---|---|"]
    for name, found in _standings().items():
        if found.eligible:
            needed = ", ".join(f"`{option}={value!r}`" for option, value in found.needed.items())
            lines.append(f"| `{name}` | {' '.join(pattern.short for pattern in found.patterns)} | {needed} |")
    return "\n".join(lines)


def ineligible() -> str:
    """Why the others cannot."""
    reasons = [f"| `{name}` | {found.reason} |" for name, found in _standings().items() if found.reason]
    return "\n".join(["| mechanism | why not |", "|---|---|", *reasons])


def _standings() -> dict[str, Standing]:
    return {name: standing(name) for name in names()}


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
    Block("docs/DROPIN.md", "what can stand in: `make support`", eligible),
    Block("docs/DROPIN.md", "what cannot stand in: `make support`", ineligible),
    Block("docs/DROPIN.md", "what is left: `make benchmark-dropin`", drop_in),
    Block("tasks/retrieval/README.md", "the pools: `python docs/retrieval_pools.py`", pools),
    Block("docs/SCORES.md", "the coverage: `make benchmark-statistics`", coverage),
    *(
        Block(f"tasks/{folder}/README.md", "the figures: `make benchmark-tasks`", partial(task_figures, *tasks))
        for folder, tasks in TASKS.items()
    ),
)

if __name__ == "__main__":
    for block in BLOCKS:
        path = ROOT / block.file
        path.write_text(block.replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
