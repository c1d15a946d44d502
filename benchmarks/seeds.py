"""Train and evaluate the demo with five training seeds, and write how far its results spread.

    python -m benchmarks.seeds

Writes benchmarks/seeds.md and seeds.json, about ten minutes on two cores: `make seeds PRESET=demo SEEDS="0 1 2 3 4"`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from posttrain import tables

HERE = Path(__file__).resolve().parent
SEEDS = "0 1 2 3 4"


def report(spread):
    """Return two markdown tables: a row a model, and a row a pair of models."""
    parts = [tables.as_markdown(table, caption) for table, caption in (
        (tables.across_seeds(spread["models"]), f"Seeds {SEEDS}: mean and standard deviation over them (%)."),
        (tables.differences_across_seeds(spread["differences"]),
         "Mean difference over the seeds, in points, with its 95% t interval."))]
    return "\n".join(parts)


def main():
    """Run the seeds in a folder of their own and write what the last run's metrics.json says of all."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "posttrain", "seeds", "PRESET=demo", f"SEEDS={SEEDS}",
                        f"RESULTS={folder}/results"], check=True, cwd=HERE.parent)
        metrics = json.loads((Path(folder) / "results/demo-seed4/metrics.json").read_text(encoding="utf-8"))
    (HERE / "seeds.json").write_text(json.dumps(metrics["seeds"], indent=1) + "\n", encoding="utf-8")
    (HERE / "seeds.md").write_text(report(metrics["seeds"]), encoding="utf-8")
    print(report(metrics["seeds"]))


if __name__ == "__main__":
    main()
