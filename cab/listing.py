"""``cab list``: every attention setting and every task, from their cards; what is proved, from the certificates."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from attention_zoo.contract import Pattern
from cab.compose import Composer
from cab.errors import unknown
from cab.schema import Listing
from cab.support import LEGEND, markdown, proved, sign
from cab.task_settings import task_card

FORMATS = ("text", "markdown")


def print_listing(composer: Composer, config: Listing) -> None:
    """Two tables on stdout, as wide as they need to be where stdout is no terminal; Markdown is the first one only."""
    if config.format not in FORMATS:
        raise unknown("format", config.format, FORMATS)
    results = Path(config.results).expanduser()
    if config.format == "markdown":
        print(markdown(composer.settings(config.attentions), results))
        return
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    if config.attentions:
        console.print(_attentions(composer, config.attentions, results))
        console.print(LEGEND)
    if config.tasks:
        console.print(_tasks(composer, config.tasks))


def _attentions(composer: Composer, wanted: list[str], results: Path) -> Table:
    table = Table("attention", *(pattern.short for pattern in Pattern), "result", "family", "paper", box=None)
    for setting in composer.settings(wanted):
        card, proof = setting.card, proved(setting, results)
        signs = [sign(setting, pattern, proof) for pattern in Pattern]
        paper = f"{card.authors} ({card.year}), {card.title}, {card.paper}"
        table.add_row(setting.name, *signs, "exact" if card.exact else "approximate", card.family, paper)
    return table


def _tasks(composer: Composer, wanted: list[str]) -> Table:
    table = Table("task", "patterns", "lengths (target/source)", "metrics", "data", box=None)
    for name in composer.select("task", wanted):
        card = task_card(name, str(composer.node("task", name)["_target_"]))
        patterns = " ".join(pattern.short for pattern in card.patterns)
        lengths = ", ".join(
            f"{size} {target}" + (f"/{source}" if source is not None else "")
            for size, (target, source) in card.lengths.items()
        )
        metrics = ", ".join(f"{m.name} ({'higher' if m.higher_is_better else 'lower'})" for m in card.metrics)
        table.add_row(name, patterns, lengths, metrics, card.source)
    return table
