"""Measure how the evaluation's time and memory grow with the number of prompts; write benchmarks/prompts.md.

Builds a larger demo (its test splits hold more than 300 harmful prompts), trains on a few pairs, since training does
not matter here, and runs eval.ipynb with 50 and with 300 prompts of each kind.
Takes about 8 minutes on two cores: .venv/bin/python benchmarks/prompts.py
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

REPOSITORY = Path(__file__).resolve().parent.parent
NUMBERS = (50, 300)  # prompts of each kind


def execute(name, out, parameters):
    """Execute a notebook with parameters and return all that it printed."""
    papermill.execute_notebook(REPOSITORY / name, out, parameters, cwd=REPOSITORY, progress_bar=False)
    outputs = (output for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", []))
    return "".join(output.get("text", "") for output in outputs)


def measure(folder, n, shared):
    """Evaluate the run `trained` with `n` prompts a kind; return (seconds of generation, of judging, peak GiB)."""
    shutil.copytree(folder / "results/trained", folder / f"results/{n}")
    judge = {"REWARD_MODEL": str(folder / "hub/reward-model"), "N_PROMPTS": n, "RUN": str(n)}
    printed = execute("eval.ipynb", folder / f"{n}.ipynb", shared | judge)
    made = json.loads((folder / f"results/{n}/run.json").read_text(encoding="utf-8"))["artifacts"]
    memory = max(float(found) for found in re.findall(r"peak memory ([\d.]+) GiB", printed))
    return made["responses.json"]["seconds"], made["scores.json"]["seconds"], memory


def main():
    """Build, train, evaluate with both numbers of prompts, write and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build = [sys.executable, REPOSITORY / "demo/build.py", "--pairs", "7000", "--out", folder / "hub"]
        subprocess.run(build, check=True)
        shared = {"PRESET": "demo", "DATASET": str(folder / "hub/hh-rlhf"), "RESULTS": str(folder / "results"),
                  "FIGURES": str(folder / "figures")}
        base = {"BASE_MODEL": str(folder / "hub/opt"), "MAX_PAIRS": 200, "RUN": "trained"}
        execute("main.ipynb", folder / "main.ipynb", shared | base)
        rows = {n: measure(folder, n, shared) for n in NUMBERS}
    lines = ["| prompts of each kind | generation (s) | judging (s) | peak memory (GiB) |", "|---|---|---|---|"]
    lines += [f"| {n} | {rows[n][0]:.1f} | {rows[n][1]:.1f} | {rows[n][2]:.1f} |" for n in NUMBERS]
    table = "\n".join(lines) + "\n"
    (REPOSITORY / "benchmarks/prompts.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
