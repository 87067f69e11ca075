"""Writes the support matrix into README.md, between its two marks (``make support``)."""

from pathlib import Path

from cab.compose import Composer
from cab.support import LEGEND, markdown

BEGIN, END = "<!-- support matrix: `make support` -->", "<!-- end of the support matrix -->"


def matrix() -> str:
    """The matrix of the mechanisms' own settings, from the certificates that come with this version."""
    with Composer() as composer:
        settings = [s for s in composer.settings(["all"]) if s.name == s.card.name]
        return f"{BEGIN}\n\n{markdown(settings)}\n\n{LEGEND}.\n\n{END}"


def replaced(text: str) -> str:
    """``text`` with what stands between the marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + matrix() + after


if __name__ == "__main__":
    readme = Path(__file__).parent.parent / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8")), encoding="utf-8")
