"""How large the page of a run is, and how fast it opens, filters and searches in headless Chromium.

    python -m benchmarks.report

Two pages: that of the published record (100 prompts), and one of 2,000 prompts, on which its texts and rewards stand
again and again. Writes benchmarks/report.json (machine, versions, raw timings) and benchmarks/report.md.
"""

import os
import platform
import shutil
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from posttrain.files import read_json, write
from posttrain.page import write_page

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
REPEATS = 9
NAMES = ("chromium", "chromium-browser", "google-chrome")  # as the systems call it
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
           "--disable-sync", "--no-first-run"]  # no network, no screen, and it may run as root
# The time from an action to the frame that shows what it did; the action itself is put in the middle.
TIMED = """async () => {{
  const control = (name) => document.querySelector(`[name=${{name}}]`);
  const set = (name, value) => {{
    control(name).value = value;
    control(name).dispatchEvent(new Event("input", {{bubbles: true}}));
  }};
  const begin = performance.now();
  {action};
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))));
  return performance.now() - begin;
}}"""
ACTIONS = {"filter by kind": 'set("kind", "harmful")', "filter by mark": 'set("mark", "opened a human turn")',
           "order by gain": 'set("order", "gain")', "search a word": 'set("text", "please")',
           "search, nothing found": 'set("text", "qqqq")', "show all": 'document.querySelector("[type=reset]").click()',
           "next prompt": 'document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "n", bubbles: true}))'}


def chromium() -> str | None:
    """Return the program of the Chromium that is here, None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def enlarged(folder: Path, times: int) -> Path:
    """Write a run of `times` as many prompts as the published one has, and return its page."""
    for name in ("prompts", "responses", "scores"):
        records = read_json(PUBLISHED / f"{name}.json")
        write(folder / f"{name}.json", [record | {"id": f"{record['id']}-{i:02d}"}
                                        for i in range(times) for record in records])
    write(folder / "metrics.json", read_json(PUBLISHED / "metrics.json") | {"sha256": {}})
    return write_page(folder)


def measure(browser: Browser, page_path: Path) -> dict[str, list[float]]:
    """Return {what: milliseconds} of one page, each action on a page freshly loaded."""
    found = {name: [] for name in ("first interactive", "loaded and drawn", *ACTIONS)}
    for _ in range(REPEATS):
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(page_path.as_uri())
        found["loaded and drawn"].append(page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"))
        found["first interactive"].append(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))
        for name, action in ACTIONS.items():
            found[name].append(page.evaluate(TIMED.format(action=action)))
        page.close()
    return found


def main() -> None:
    """Measure both pages and write the figures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        pages = {"100 prompts": write_page(PUBLISHED), "2,000 prompts": enlarged(Path(folder), 20)}
        times = {name: measure(browser, path) for name, path in pages.items()}
        sizes = {name: path.stat().st_size for name, path in pages.items()}
        version = browser.version
        browser.close()
    write(ROOT / "benchmarks" / "report.json", {
        "date": datetime.now(UTC).date().isoformat(), "chromium": version, "cores": os.cpu_count(),
        "machine": platform.machine(), "bytes": sizes, "milliseconds": times})
    lines = ["| median of nine, in ms (slowest) | " + " | ".join(pages) + " |", "|---|---|---|"]
    lines += [f"| {what} | " + " | ".join(f"{statistics.median(one[what]):.0f} ({max(one[what]):.0f})"
                                          for one in times.values()) + " |" for what in times["100 prompts"]]
    lines.append("| size of the page, MB | " + " | ".join(f"{size / 1e6:.1f}" for size in sizes.values()) + " |")
    write(ROOT / "benchmarks" / "report.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
