"""Train and evaluate the demo with five training seeds: how far its results spread.

    python -m benchmarks.seeds

Does what `make seeds PRESET=demo SEEDS="0 1 2 3 4"` does, about ten minutes on two cores, and
writes benchmarks/seeds.json (what compare.ipynb keeps of the runs) and seeds.md.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain import formats, tables
from posttrain.files import read_json, write

ROOT = Path(__file__).resolve().parent.parent
SEEDS = "0 1 2 3 4"


def as_table(record: Mapping[str, Any]) -> str:
    """Write two markdown tables, of the models and of their differences.

    Args:
        record: of seeds.json.
    """
    of_models = formats.as_markdown(
        tables.rates_across_runs(record["models"]),
        f"Seeds {SEEDS}: mean and standard deviation over them (%).",
    )
    of_differences = formats.as_markdown(
        tables.differences_across_runs(record["differences"]),
        "Mean difference over the seeds, in points, with its 95% t interval.",
    )
    return f"{of_models}\n{of_differences}"


def main() -> None:
    """Run the seeds in a folder of their own, and write how far the results spread."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "posttrain", "seeds"]
        parameters = ["PRESET=demo", f"SEEDS={SEEDS}", f"RESULTS={results}"]
        subprocess.run([*command, *parameters], check=True, cwd=ROOT)
        record = read_json(results / "demo-seeds" / "compare.json")
    write(ROOT / "benchmarks" / "seeds.json", record)
    write(ROOT / "benchmarks" / "seeds.md", as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
