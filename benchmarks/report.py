"""How large the page of a run is, and how fast it opens, filters and searches in Chromium.

    python -m benchmarks.report

Two pages in headless Chromium: that of the published record (100 prompts), and one of 2,000
prompts, on which its texts and rewards stand again and again. Writes benchmarks/report.json
(machine, versions, raw timings) and benchmarks/report.md.
"""

import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from posttrain.files import read_json, write
from posttrain.page import write_page

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
REPEATS = 9
NAMES = ("chromium", "chromium-browser", "google-chrome")  # as the systems call it
OPTIONS = [  # no network, no screen, and it may run as root
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DRAWN = """new Promise((done) => {
  requestAnimationFrame(() => setTimeout(() => done(performance.now())));
})"""
READY = "performance.getEntriesByName('ready')[0].startTime"
# The time from an action to the frame that shows what it did; the action is put in the middle.
TIMED = """async () => {{
  const control = (name) => document.querySelector(`[name=${{name}}]`);
  const set = (name, value) => {{
    control(name).value = value;
    control(name).dispatchEvent(new Event("input", {{bubbles: true}}));
  }};
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const begin = performance.now();
  {action};
  await frame();
  await frame();
  await new Promise((done) => setTimeout(done));
  return performance.now() - begin;
}}"""
ACTIONS = {
    "filter by kind": 'set("kind", "harmful")',
    "filter by mark": 'set("mark", "opened a human turn")',
    "order by gain": 'set("order", "gain")',
    "search a word": 'set("text", "please")',
    "search, nothing found": 'set("text", "qqqq")',
    "show all": 'document.querySelector("[type=reset]").click()',
    "next prompt": (
        'document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "n", bubbles: true}))'
    ),
}


def chromium() -> str | None:
    """Find the program of the Chromium that is here; None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def write_large_page(folder: Path, times: int) -> Path:
    """Write the page of a run with many times the prompts of the published one.

    Args:
        folder: where the run is written.
        times: how many times as many.
    """
    for name in ("prompts.json", "responses.json", "scores.json"):
        records = []
        for i in range(times):
            for record in read_json(PUBLISHED / name):
                records.append(record | {"id": f"{record['id']}-{i:02d}"})
        write(folder / name, records)
    write(folder / "metrics.json", read_json(PUBLISHED / "metrics.json") | {"sha256": {}})
    return write_page(folder)


def measure(browser: Browser, path: Path) -> dict[str, list[float]]:
    """Measure one page, loaded afresh for each round of actions.

    Args:
        browser: of playwright.
        path: the page's.

    Returns:
        {what: milliseconds in each round}.
    """
    times = {name: [] for name in ("first interactive", "loaded and drawn", *ACTIONS)}
    for _ in range(REPEATS):
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri())
        times["loaded and drawn"].append(page.evaluate(DRAWN))
        times["first interactive"].append(page.evaluate(READY))
        for name, action in ACTIONS.items():
            times[name].append(page.evaluate(TIMED.format(action=action)))
        page.close()
    return times


def as_table(record: Mapping[str, Any]) -> str:
    """Write the measurements as a markdown table.

    Args:
        record: of report.json.
    """
    pages = record["milliseconds"]
    lines = [f"| median of nine, in ms (slowest) | {' | '.join(pages)} |", "|---|---|---|"]
    for name in ("first interactive", "loaded and drawn", *ACTIONS):
        cells = []
        for times in pages.values():
            cells.append(f"{statistics.median(times[name]):.0f} ({max(times[name]):.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sizes = [f"{size / 1e6:.1f}" for size in record["bytes"].values()]
    lines.append(f"| size of the page, MB | {' | '.join(sizes)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both pages, and write what was measured."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        pages = {
            "100 prompts": write_page(PUBLISHED),
            "2,000 prompts": write_large_page(Path(folder), 20),
        }
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "chromium": browser.version,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "bytes": {name: path.stat().st_size for name, path in pages.items()},
            "milliseconds": {name: measure(browser, path) for name, path in pages.items()},
        }
        browser.close()
    write(ROOT / "benchmarks" / "report.json", record)
    write(ROOT / "benchmarks" / "report.md", as_table(record))


if __name__ == "__main__":
    main()
