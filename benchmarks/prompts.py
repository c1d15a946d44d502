"""How the evaluation's time and memory grow with the number of prompts.

    python -m benchmarks.prompts

Builds a larger demo (its test splits hold more than 300 harmful prompts), trains on a few pairs,
since training does not matter here, and runs eval.ipynb with 50 and with 300 prompts of each kind.
Writes benchmarks/prompts.md; takes about 8 minutes on two cores.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common import BENCHMARKS, ROOT, Notebook, in_a_process, print_result
from posttrain.device import process_peak
from posttrain.files import write
from posttrain.run import Run

NUMBERS = (50, 300)  # prompts of each kind
PAIRS = 7000  # of each subset of the larger demo


def parameters(folder: Path) -> dict[str, str]:
    """Give the parameters that both notebooks share.

    Args:
        folder: with the larger demo in folder/hub.
    """
    return {
        "PRESET": "demo",
        "DATASET": str(folder / "hub" / "hh-rlhf"),
        "BASE_MODEL": str(folder / "hub" / "opt"),
        "RESULTS": str(folder / "results"),
    }


def train(folder: Path) -> None:
    """Train the run `trained` on a few pairs."""
    Notebook("main.ipynb", **parameters(folder), MAX_PAIRS=200, RUN="trained").run_all()


def evaluate(folder: Path, n: int) -> dict[str, float]:
    """Evaluate a copy of the run `trained` with n prompts of each kind.

    Returns:
        The seconds of generation and of judging, and the process's peak of memory in GiB.
    """
    shutil.copytree(folder / "results" / "trained", folder / "results" / str(n))
    judge = str(folder / "hub" / "reward-model")
    given = {**parameters(folder), "REWARD_MODEL": judge, "N_PROMPTS": n, "RUN": str(n)}
    Notebook("eval.ipynb", **given).run_all()
    seconds = {"responses.json": 0.0, "scores.json": 0.0}
    for name, artifact in Run(folder / "results", str(n)).record.artifacts.items():
        file = name.split("/")[0]  # responses and scores are made part by part
        if file in seconds:
            seconds[file] += artifact.seconds
    return {
        "generation": seconds["responses.json"],
        "judging": seconds["scores.json"],
        "peak GiB": process_peak(),
    }


def as_table(measured: Mapping[int, Mapping[str, float]]) -> str:
    """Write the measurements as a markdown table.

    Args:
        measured: {prompts of each kind: what `evaluate` measured}.
    """
    lines = [
        "| prompts of each kind | generation (s) | judging (s) | peak memory (GiB) |",
        "|---|---|---|---|",
    ]
    for n, values in measured.items():
        numbers = [f"{values[name]:.1f}" for name in ("generation", "judging", "peak GiB")]
        lines.append(f"| {n} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build, train, evaluate with both numbers of prompts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # folder, prompts of each kind
    options = parser.parse_args()
    if options.one:
        folder, n = options.one
        print_result(evaluate(Path(folder), int(n)))
        return
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, ROOT / "demo" / "build.py"]
        more = ["--pairs", str(PAIRS), "--out", Path(folder) / "hub"]
        subprocess.run([*script, *more], check=True)
        train(Path(folder))
        for n in NUMBERS:
            measured[n] = in_a_process("prompts", folder, str(n))
    write(BENCHMARKS / "prompts.md", as_table(measured))
    print(as_table(measured))


if __name__ == "__main__":
    main()
