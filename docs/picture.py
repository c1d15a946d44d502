"""Take docs/report.png, README's picture of the published record's page, in headless Chromium.

    python -m docs.picture

It shows a harmless prompt on which the models differ.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.report import OPTIONS, chromium

ROOT = Path(__file__).resolve().parent.parent
SHOWN = "#differ=yes&order=gain&kind=helpful&prompt=helpful-46"

if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        page = browser.new_page(viewport={"width": 1440, "height": 720})
        page.goto((ROOT / "results" / "published" / "report.html").as_uri() + SHOWN)
        page.evaluate("document.getElementById('browser').scrollIntoView()")
        page.wait_for_timeout(500)  # until the list is drawn
        page.screenshot(path=ROOT / "docs" / "report.png")
        browser.close()
