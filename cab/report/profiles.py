"""The performance profile of times: in what share of patterns and lengths a setting is the fastest, or nearly so."""

from __future__ import annotations

from cab.report.cells import CellMaker
from cab.report.certificates import card, verdict
from cab.report.cost import Costs
from cab.report.patterns import PATTERNS
from cab.report.tables import Cell, Column, Row, Table
from cab.stats.profiles import profile, ratios_to_best

FACTORS = (1.0, 1.25, 1.5, 2.0, 4.0)


def profile_table(make: CellMaker, costs: Costs, anchor: str) -> Table | None:
    """Shares of all cells (pattern, length) of one variant; None where there is one cell or one setting."""
    cells = [(pattern, length) for pattern in PATTERNS for length in costs.lengths(pattern.name)]
    known = make.evidence.certificates
    settings = sorted({name for pattern in PATTERNS for name in costs.settings(pattern.name)})
    settings = [name for name in settings if card(known, name).get("family") != "floor"]
    if len(cells) < 2 or len(settings) < 2:
        return None
    times = {}
    for name in settings:
        found = []
        for pattern, length in cells:
            admitted = verdict(known, name, pattern.name).admitted
            ratio = costs.ratio(name, pattern.name, length) if admitted else None
            found.append(1.0 if ratio is None and name == costs.baseline else ratio.value if ratio else None)
        times[name] = found
    ratios = ratios_to_best(times)
    if not ratios[settings[0]]:
        return None
    rows = []
    for name, values in sorted(ratios.items(), key=lambda pair: [-profile(pair[1], tau) for tau in FACTORS]):
        shares = [profile(values, tau) for tau in FACTORS]
        rows.append(Row(Cell(name, name), tuple(Cell(f"{share:.0%}", share) for share in shares)))
    heads = [Column("Fastest", "share of cells ↑")]
    heads += [Column(f"within × {tau:g}", "of the fastest ↑") for tau in FACTORS[1:]]
    remark = (
        f"Of {len(cells)} cells (pattern and length), {costs.variant.title}. A pattern that a setting has no form or "
        "no certificate for counts as never. The fastest is that of these settings: shares change with who is here."
    )
    caption = f"How often is a setting nearly the fastest? {costs.variant.title}"
    return Table(anchor, caption, "Setting", tuple(heads), tuple(rows), (), (remark,))
