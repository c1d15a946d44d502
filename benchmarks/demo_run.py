"""Where the time of `make run PRESET=demo` goes, after installing: each section of the notebooks.

    python -m benchmarks.demo_run

Writes benchmarks/demo_run.json and demo_run.md.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.common import BENCHMARKS, ROOT, describe_machine
from posttrain.files import write


def measure_sections(path: Path) -> Counter:
    """Sum the seconds of an executed notebook's cells under the headings of its sections."""
    heading = "before the first section"
    seconds: Counter = Counter()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            named = re.search(r"^## (.*)$", cell.source, re.MULTILINE)
            heading = named[1] if named else heading
        times = cell.metadata.get("execution", {})
        if times:
            start = datetime.fromisoformat(times["iopub.status.busy"])
            end = datetime.fromisoformat(times["iopub.status.idle"])
            seconds[heading] += (end - start).total_seconds()
    return seconds


def as_table(record: Mapping[str, Any]) -> str:
    """Write the seconds as a markdown table, with one row for all sections below a second.

    Args:
        record: of demo_run.json.
    """
    seconds = record["seconds"]
    lines = ["| part of the run | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in seconds.items() if value >= 1]
    short = sum(value for value in seconds.values() if value < 1)
    lines.append(f"| all sections of less than a second | {short:.0f} |")
    lines.append(f"| total | {sum(seconds.values()):.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Execute both notebooks, and write how long each section took."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "posttrain", "run", "PRESET=demo", f"RESULTS={results}"]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT)
        total = time.perf_counter() - start
        for notebook in ("main.ipynb", "eval.ipynb"):
            for section, value in measure_sections(results / "demo" / notebook).items():
                seconds[f"{notebook}, {section}"] = value
    seconds["starting, reading and writing notebooks"] = total - sum(seconds.values())
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **describe_machine(),
        "seconds": seconds,
    }
    write(BENCHMARKS / "demo_run.json", record)
    write(BENCHMARKS / "demo_run.md", as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
