"""Pictures of a page in headless Chromium, as docs/ shows them: ``python docs/screenshots.py INDEX.HTML`` (``make
screenshots``): wide and light, narrow and dark, from the top."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
VIEWS = {"leaderboard.png": (1440, 1500, "light"), "leaderboard-narrow.png": (390, 1500, "dark")}


def main(page: Path, chromium: str) -> None:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scheme) in VIEWS.items():
            context = browser.new_context(
                offline=True, color_scheme=scheme, viewport={"width": width, "height": height}
            )
            opened = context.new_page()
            opened.goto(page.resolve().as_uri())
            opened.screenshot(path=DOCS / name)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
