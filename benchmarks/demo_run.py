"""Where the time of `make run PRESET=demo` goes, after installing: the stand-ins, and each section of the notebooks.

    python -m benchmarks.demo_run

Writes benchmarks/demo_run.json and demo_run.md.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.speed import ROOT, processor
from posttrain.files import write


def seconds_of_sections(notebook: Path) -> Counter:
    """Return the seconds of an executed notebook's cells under the headings of its sections, in their order."""
    heading, found = "before the first section", Counter()
    for cell in nbformat.read(notebook, 4).cells:
        if named := re.search(r"^## (.*)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None:
            heading = named[1]
        found[heading] += cell.metadata.get("papermill", {}).get("duration") or 0
    return found


def as_table(found: dict[str, Any]) -> str:
    """Return the seconds as a markdown table; sections of less than a second stand together."""
    lines = ["| what | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in found["seconds"].items() if value >= 1]
    lines.append(f"| all else | {sum(value for value in found['seconds'].values() if value < 1):.0f} |")
    return "\n".join([*lines, f"| together | {sum(found['seconds'].values()):.0f} |"]) + "\n"


def main() -> None:
    """Build the stand-ins anew, execute both notebooks, and write how long each part took."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "demo" / "build.py", "--out", Path(folder) / "hub"], check=True)
        seconds = {"the stand-ins (once)": time.perf_counter() - begin}
        subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True)  # where the notebooks look for them
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "posttrain", "PRESET=demo", f"RESULTS={folder}/results"], check=True,
                       cwd=ROOT)
        run = time.perf_counter() - begin
        for name in ("main", "eval"):
            sections = seconds_of_sections(Path(folder) / "results" / "demo" / f"{name}.ipynb")
            seconds |= {f"{name}.ipynb, {section}": value for section, value in sections.items()}
    seconds["starting, reading and writing notebooks"] = run - sum(list(seconds.values())[1:])
    found = {"date": datetime.now(UTC).date().isoformat(), "machine": processor(), "cores": os.cpu_count(),
             "seconds": seconds}
    write(ROOT / "benchmarks" / "demo_run.json", found)
    write(ROOT / "benchmarks" / "demo_run.md", as_table(found))
    print(as_table(found))


if __name__ == "__main__":
    main()
