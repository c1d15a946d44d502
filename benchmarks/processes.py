"""What several processes change: losses, bytes, and the seconds until all end after a failure.

    python -m benchmarks.processes

Trains small models with one, two and four processes on this machine's CPU, stops some of them,
and lets one process fail in several ways. Then the demo is run with one process and with two.
Writes benchmarks/processes.json and processes.md.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import BENCHMARKS, ROOT, describe_machine
from posttrain.files import read_json, write

SEVERAL = ROOT / "tests" / "several.py"
COMPARED = ("loss", "eval_loss", "eval_rewards/margins")  # the logged numbers
MISHAPS = {
    "raises an error": "raise",
    "runs out of memory": "memory",
    "is killed": "kill",
    "hangs, with a time-out of 15 seconds": "hang",
}
MEASURES = ("HmR", "HpR", "CAS")


def train(processes: int, folder: Path, *options: str, **variables: str) -> tuple[int, str, float]:
    """Train the small models.

    Args:
        processes: the number of processes.
        folder: the folder of their results.
        options: of tests/several.py.
        variables: of the environment.

    Returns:
        The exit status, what was printed, and the seconds since the mishap, 0 without one.
    """
    # Without a seed of hashes every process has one of its own.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SEVERAL), str(folder), *options],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"} | variables,
        capture_output=True,
        text=True,
    )
    end = time.time()
    output = done.stdout + done.stderr
    mishap = re.search(r"^MISHAP ([\d.]+)$", output, re.MULTILINE)
    return done.returncode, output, end - float(mishap[1]) if mishap else 0.0


def find_largest_difference(folder: Path, other: Path) -> float:
    """Compute the largest difference of a logged number between the trainings in two folders."""
    logs = [read_json(path / "results" / "demo" / "training.json") for path in (folder, other)]
    largest = 0.0
    for name in logs[0]:
        for row, same in zip(logs[0][name], logs[1][name], strict=True):
            for field in COMPARED:
                if field in row:
                    largest = max(largest, abs(row[field] - same[field]))
    return largest


def are_equal(folder: Path, other: Path) -> bool:
    """Tell whether the adapters in two folders are equal to the byte."""
    for name in ("sft", "sft_dpo"):
        file = f"results/demo/adapters/{name}/adapter_model.safetensors"
        if (folder / file).read_bytes() != (other / file).read_bytes():
            return False
    return True


def measure_trainings(folder: Path) -> dict[str, Any]:
    """Compare trainings by several processes with those by one."""
    trained = {}
    for name, number, options in (
        ("one", 1, ()),
        ("two", 2, ()),
        ("two again", 2, ()),
        ("four", 4, ()),
        ("four, small passes", 4, ("small=yes",)),
    ):
        trained[name] = folder / name
        status, output, _ = train(number, trained[name], *options)
        assert status == 0, output
    resumed = {}
    for before, after in ((2, 2), (2, 1), (1, 2)):
        name = f"{before} to {after}"
        resumed[name] = folder / name
        train(before, resumed[name], "stop=5")
        status, output, _ = train(after, resumed[name])
        assert status == 0, output
    one = trained["one"]
    return {
        "differences from one process": {
            name: find_largest_difference(one, trained[name])
            for name in ("two", "four", "four, small passes")
        },
        "two repeated are equal": are_equal(trained["two"], trained["two again"]),
        "two resumed are equal": are_equal(trained["two"], resumed["2 to 2"]),
        "differences after resuming": {
            name: find_largest_difference(one, resumed[name]) for name in ("2 to 1", "1 to 2")
        },
    }


def measure_failures(folder: Path) -> dict[str, float]:
    """Measure how many seconds after a mishap in the second process all have ended."""
    seconds = {}
    for what, mishap in MISHAPS.items():
        minutes = "0.25" if mishap == "hang" else "30"
        status, output, seconds[what] = train(
            2, folder / mishap, f"mishap={mishap},4,1", PROCESS_TIMEOUT=minutes
        )
        assert status != 0 and seconds[what] > 0, output
    return seconds


def measure_demo(folder: Path) -> dict[str, Any]:
    """Run the demo with one process and with two, and collect rates and equal answers."""
    rates, answers = {}, {}
    for number in (1, 2):
        place = folder / f"demo{number}" / "results"
        command = [sys.executable, "-m", "posttrain", "run", "PRESET=demo", f"RESULTS={place}"]
        subprocess.run([*command, f"PROCESSES={number}"], check=True, cwd=ROOT)
        run = place / "demo"
        rates[str(number)] = {
            row["model"]: {measure: row[measure] for measure in MEASURES}
            for row in read_json(run / "metrics.json")["models"]
        }
        answers[number] = [row["response"] for row in read_json(run / "responses.json")]
    equal = sum(first == second for first, second in zip(answers[1], answers[2], strict=True))
    return {"rates": rates, "equal": equal, "answers": len(answers[1])}


# ---- the tables


def as_tables(record: Mapping[str, Any]) -> str:
    """Write what was measured as markdown.

    Args:
        record: of processes.json.
    """
    return "\n\n".join([_tabulate_trainings(record), _tabulate_demo(record["demo"])]) + "\n"


def _tabulate_trainings(record: Mapping[str, Any]) -> str:
    """Write the comparisons of the small trainings and the failures as a table."""
    trainings = record["trainings"]
    rows = []
    for name, value in trainings["differences from one process"].items():
        number, _, how = name.partition(", ")
        how = f", in {how}" if how else ""
        rows.append((f"{number} processes{how}: largest difference from one", f"{value:.1e}"))
    for name, value in trainings["differences after resuming"].items():
        before, after = name.split(" to ")
        what = f"stopped with {before} and continued with {after}: largest difference from one"
        rows.append((what, f"{value:.1e}"))
    for key, what in (
        ("two repeated are equal", "two processes, repeated: adapters equal to the byte"),
        ("two resumed are equal", "two processes, stopped and continued: equal to the byte"),
    ):
        rows.append((what, "yes" if trainings[key] else "no"))
    for what, seconds in record["failures"].items():
        rows.append((f"one of two processes {what}: all end after", f"{seconds:.0f} s"))
    lines = [
        "**Trainings of a second, and failures.** The differences are those of a logged loss or "
        "margin, in nats.",
        "",
        "| what | measured |",
        "|---|---|",
    ]
    lines += [f"| {what} | {value} |" for what, value in rows]
    return "\n".join(lines)


def _tabulate_demo(demo: Mapping[str, Any]) -> str:
    """Write the rates of the demo by one process and by two as a table."""
    lines = [
        f"**The demo, with one process and with two.** {demo['equal']} of {demo['answers']} "
        "answers are equal. The rates are those of the stand-ins and say nothing about OPT-350M.",
        "",
        "| model | " + " | ".join(f"{m}, one | {m}, two" for m in MEASURES) + " |",
        "|---|" + "---|---|" * len(MEASURES),
    ]
    for model, of_one in demo["rates"]["1"].items():
        of_two = demo["rates"]["2"][model]
        cells = [f"{of_one[m]:.1f} | {of_two[m]:.1f}" for m in MEASURES]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure everything, and write it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            **describe_machine(),
            "trainings": measure_trainings(folder),
            "failures": measure_failures(folder),
            "demo": measure_demo(folder),
        }
    write(BENCHMARKS / "processes.json", record)
    write(BENCHMARKS / "processes.md", as_tables(record))
    print(as_tables(record))


if __name__ == "__main__":
    main()
