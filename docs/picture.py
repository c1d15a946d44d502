"""Take docs/report.png, the picture of the published record's page, in headless Chromium.

    python -m docs.picture

It shows a helpful prompt on which the models differ, since harmful ones are covered.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.report import OPTIONS, chromium

ROOT = Path(__file__).resolve().parent.parent
SHOWN = "#differ=yes&order=gain&kind=helpful&prompt=helpful-46"


def take_picture(page: Path, picture: Path) -> None:
    """Take the picture of a run's page, from the list of prompts on.

    Args:
        page: of a run that has the prompt of SHOWN.
        picture: where the PNG is written.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        view = browser.new_page(viewport={"width": 1440, "height": 900})
        view.goto(page.resolve().as_uri() + SHOWN)
        view.evaluate("document.getElementById('browser').scrollIntoView()")
        view.wait_for_timeout(500)  # until the list is drawn
        view.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    take_picture(ROOT / "results" / "published" / "report.html", ROOT / "docs" / "report.png")
