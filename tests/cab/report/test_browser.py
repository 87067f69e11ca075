"""The page in real headless Chromium: from a file, without a network; sorted, filtered, opened, read by a machine."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cab.report.make import make_report

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")

PATTERNS = ["noncausal_self", "causal_self"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: install it (Debian: apt-get install chromium), or name it with CHROMIUM=PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page_file(folder: Any, fill_folder: Any) -> Path:
    fill_folder(folder, PATTERNS)
    make_report(folder.path)
    return folder.path / "index.html"


class Opened:
    """A page, what it asked for, and what it complained about."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(**options: Any) -> Opened:
        pages.append(Opened(browser, page_file, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()
        assert each.complaints == []


def test_it_opens_from_a_file_with_the_network_off(opened: Any, page_file: Path) -> None:
    shown = opened()
    assert shown.asked == [page_file.as_uri()]
    assert shown.page.locator("h1").is_visible()
    assert page_file.stat().st_size < 5e6


def names(page: Any, table: str, shown: bool = True) -> list[str]:
    rows = page.locator(f"#{table} tbody.entries tr" + (":visible" if shown else ""))
    return [text.strip() for text in rows.locator("th").all_inner_texts()]


def values(page: Any, table: str, column: int) -> list[float]:
    cells = page.locator(f"#{table} tbody.entries tr td:nth-of-type({column})").all()
    found = [cell.get_attribute("data-sort") for cell in cells]
    return [float(text) if text else math.nan for text in found]


def test_a_title_sorts_up_and_down_with_gaps_last(opened: Any) -> None:
    page = opened().page
    heads = page.locator("#main-NS thead th").all()
    column = next(i for i, head in enumerate(heads) if "Time at" in head.inner_text())
    for order, sign in (("ascending", 1), ("descending", -1)):
        heads[column].locator("button").click()
        assert heads[column].get_attribute("aria-sort") == order
        found = values(page, "main-NS", column)
        known = [sign * value for value in found if not math.isnan(value)]
        assert known == sorted(known)
        assert not math.isnan(found[0])
        assert all(math.isnan(value) for value in found[len(known) :])


def test_words_filter_every_table_of_settings(opened: Any) -> None:
    page = opened().page
    everyone = names(page, "main-NS")
    assert len(everyone) > 2
    wanted = everyone[1]
    page.get_by_label("Only settings whose name holds").fill(wanted)
    assert names(page, "main-NS") == [name for name in everyone if wanted in name]
    assert "settings shown" in page.locator("#filtered").inner_text()
    assert page.locator("#main-NS tbody.floors tr:visible").count() > 0
    page.get_by_label("Only settings whose name holds").fill("")
    assert names(page, "main-NS") == everyone


def test_a_cell_opens_its_records_by_mouse_and_by_keyboard(opened: Any) -> None:
    page = opened().page
    cell = page.locator("#main-NS tbody.entries tr td button[data-details]").last
    cell.click()
    dialog = page.locator("dialog#behind")
    assert dialog.is_visible()
    text = dialog.inner_text()
    assert "cab " in text  # the command that makes it again
    assert "records" in text or "run" in text
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    cell.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_and_nothing_sticks_out(opened: Any, width: int, scheme: str, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(width=width, scheme=scheme).page
    for part in page.locator("details").all():
        part.evaluate("part => part.open = true")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder = os.environ.get("CAB_SCREENSHOTS")
    page.screenshot(path=Path(folder or tmp_path) / f"page-{width}-{scheme}.png", full_page=folder is None)


def test_print_shows_what_is_folded_away(opened: Any) -> None:
    page = opened().page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("nav").is_visible()
