"""``index.html``: one self-contained file, from the same data as the Markdown. No network, no date of its own."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cab.report.book import Book
from cab.report.figures import COLOURS, GRID, INK, MUTED, PAPER, Drawn
from cab.report.legend import how_to_read
from cab.report.study import ABOUT, Study
from cab.report.tables import Cell, Column, Details

TEMPLATES = Path(__file__).parent / "templates"

# Colours of the figures -> CSS variables of the page, which have a light and a dark value each.
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(COLOURS)
}


class _DetailStore:
    """What stands behind the cells, each different text once; a cell holds its number."""

    def __init__(self) -> None:
        self._numbers: dict[Details, int] = {}

    def number(self, cell: Cell) -> int | None:
        details = ((("reason", cell.note),) if cell.note else ()) + cell.details
        return self._numbers.setdefault(details, len(self._numbers)) if details else None

    def script(self) -> Markup:
        """The texts as JSON, deflated, in base 64: much of a page is commands that differ in a word.

        ``[texts, cells]``: a cell is a list of places in ``texts``, label and text in turn.
        """
        texts: dict[str, int] = {}
        cells = [[texts.setdefault(text, len(texts)) for pair in details for text in pair] for details in self._numbers]
        content = json.dumps([list(texts), cells], ensure_ascii=False, separators=(",", ":"))
        return Markup(base64.b64encode(zlib.compress(content.encode(), 9)).decode())


def to_html(book: Book, drawn: Sequence[Drawn], *, study: bool = False) -> str:
    """The page; ``study``: a page of a drop-in study stands beside it."""
    pictures = {picture.figure.name: picture for picture in drawn}
    return _rendered("page.html.j2", book=book, legend=how_to_read(book), pictures=pictures, study=study)


def study_html(study: Study, folder: Path, drawn: Sequence[Drawn]) -> str:
    """``dropin.html``, of the study in ``folder``."""
    names = [table.anchor for table in study.tables]
    return _rendered(
        "study.html.j2",
        study=study,
        about=ABOUT,
        protocol=folder.parent.name,
        hardware=folder.name,
        pictures=[picture for picture in drawn if picture.figure in study.figures],
        loop_number=lambda table: names.index(table.anchor),
    )


def _rendered(template: str, **content: Any) -> str:
    store = _DetailStore()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **content,
        style=Markup((TEMPLATES / "style.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        inline=_inline,
        code=_code,
        number=store.number,
        classes=_classes,
        sorts=_sorts,
        details=store.script,
    )


def _classes(cell: Cell, column: Column) -> Markup:
    """Of a cell of a table; most are plain values, and a page has tens of thousands of them."""
    found = [cell.kind] * (cell.kind != "value") + ["text"] * (not column.numeric)
    return Markup(f' class="{" ".join(found)}"') if found else Markup("")


def _code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _sorts(cell: Cell) -> Markup:
    """What a cell is sorted by, where it is not its text; nothing for a gap, which comes last."""
    value = "" if cell.sort is None else f"{cell.sort:.7g}" if isinstance(cell.sort, float | int) else cell.sort
    alone = not (cell.below_floor or cell.note)
    return Markup("") if alone and value == cell.text else Markup(f' data-sort="{escape(value)}"')


def _inline(picture: Drawn) -> Markup:
    """The SVG without its prolog, in the page's colours."""
    text = picture.svg.read_text()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>\s*", "", text, flags=re.DOTALL)
    label = escape(f"{picture.figure.title}; the numbers are in the tables")
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}">', text, count=1)
    # Half of a large figure would be names of groups that nothing refers to, and indentation.
    text = re.sub(r"\s+", " ", re.sub(r'<g id="[^"]*"', "<g", text))
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)
