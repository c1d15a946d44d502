"""Train and evaluate the demo with five training seeds: how far its results spread.

    python -m benchmarks.seeds

Does what `make seeds PRESET=demo SEEDS="0 1 2 3 4"` does, about six minutes on two cores, and
writes benchmarks/seeds.json (what compare.ipynb keeps of the runs, and how sound each of them is)
and seeds.md. It fails where a run is not sound.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import BENCHMARKS, DEMO, ROOT, describe_machine
from benchmarks.soundness import fall_of_chosen, list_faults, measure, read_vocabulary
from posttrain import formats, tables
from posttrain.files import read_json, write

SEEDS = "0 1 2 3 4"


def as_table(record: Mapping[str, Any]) -> str:
    """Write three markdown tables: of the models, of their differences, and of their soundness.

    Args:
        record: of seeds.json.
    """
    of_models = formats.as_markdown(
        tables.rates_across_runs(record["models"]),
        f"The rates in percent with seeds {SEEDS}, then their mean and standard deviation.",
    )
    differences = tables.differences_across_runs(record["differences"])
    of_differences = formats.as_markdown(
        differences.map(lambda cell: cell.replace("\n", "<br>")),
        "The mean difference over the seeds, in points, with three 95% intervals: for other "
        "trainings and other prompts (both), for other trainings, and for other prompts.",
    )
    return f"{of_models}\n{of_differences}\n{_write_soundness(record['soundness'])}"


def _write_soundness(soundness: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """Write for each model what its worst seed shows."""
    lines = [
        "The table shows whether the trained models still write well; each cell gives the worst "
        "value of the five seeds.",
        "",
        "| model | answers with a word that the data lacks | change of log p(chosen), in percent "
        "of its start | CAS above Base (points) |",
        "| --- | --- | --- | --- |",
    ]
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for records in soundness.values():
        for record in records:
            by_model.setdefault(record["model"], []).append(record)
    for name, records in by_model.items():
        unknown = max(100 * record["unknown"] / record["answers"] for record in records)
        falls = [fall_of_chosen(record) for record in records]
        fall = "" if None in falls else f"{-100 * max(falls):+.0f}%".replace("-", "−")
        gain = min(record["CAS"] - record["baseline"] for record in records)
        lines.append(f"| {name} | {unknown:.0f}% | {fall} | {gain:+.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the seeds in a folder of their own, and write how far the results spread."""
    vocabulary = read_vocabulary(DEMO)
    soundness, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "posttrain", "seeds"]
        parameters = ["PRESET=demo", f"SEEDS={SEEDS}", f"RESULTS={results}"]
        subprocess.run([*command, *parameters], check=True, cwd=ROOT)
        record = read_json(results / "demo-seeds" / "compare.json", dict[str, Any])
        for seed in SEEDS.split():
            soundness[seed] = measure(results / f"demo-seed{seed}", vocabulary)
            faults += [f"Seed {seed}: {fault}" for fault in list_faults(soundness[seed])]
    date = datetime.now(UTC).date().isoformat()
    record |= {"soundness": soundness, "date": date, **describe_machine()}
    write(BENCHMARKS / "seeds.json", record)
    write(BENCHMARKS / "seeds.md", as_table(record))
    print(as_table(record), *faults, sep="\n")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
