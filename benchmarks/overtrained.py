"""Train the demo too far on purpose: what the curves and the answers look like then.

    python -m benchmarks.overtrained

Trains DPO and SFT+DPO with eight times the learning rate, a small β and two epochs, which takes
about two minutes on two cores. Writes benchmarks/overtrained.json, overtrained.md and
docs/overtrained.png.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import BENCHMARKS, DEMO, ROOT, describe_machine
from benchmarks.soundness import fall_of_chosen, measure, read_vocabulary
from posttrain import conclusions, training_figures
from posttrain.files import read_json, write, written_whole

CHANGES = {"dpo_learning_rate": 2e-3, "beta": 0.05, "dpo_epochs": 2}
SHOWN = 6  # prompts whose answers are kept, half of them harmful


def as_table(record: Mapping[str, Any]) -> str:
    """Write as markdown what the run's log says, its numbers, and some of its answers.

    Args:
        record: of overtrained.json.
    """
    lines = [f"> {paragraph}\n>" for paragraph in record["conclusions"]]
    lines += [
        "",
        "| model | accuracy | margin | log p(chosen) | answers with a word that the data lacks "
        "| CAS (%) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["models"]:
        cells = [row["model"], "", "", ""]
        if row["chosen"] is not None:
            start, end = row["chosen"]
            fall = f"{start:.1f} → {end:.1f} ({-100 * fall_of_chosen(row):+.0f}%)"
            cells[1:] = [f"{row['accuracy']:.2f}", f"{row['margin']:.2f}", fall.replace("-", "−")]
        cells += [f"{row['unknown']} of {row['answers']}", f"{row['CAS']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    first = list(record["answers"][0]["answers"])
    lines += ["", f"| prompt | {' | '.join(first)} |", f"| --- {'| --- ' * len(first)}|"]
    for row in record["answers"]:
        texts = [row["prompt"], *row["answers"].values()]
        lines.append(f"| {' | '.join(_as_cell(text) for text in texts)} |")
    return "\n".join(lines) + "\n"


def _as_cell(text: str) -> str:
    """Write a text into one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") or "(empty)"


def choose_answers(run: Path) -> list[dict[str, Any]]:
    """Take the first prompts of each kind with the answers of all models."""
    prompts = read_json(run / "prompts.json", list[dict[str, Any]])
    responses = read_json(run / "responses.json", list[dict[str, Any]])
    chosen = []
    for kind in ("harmful", "helpful"):
        for prompt in [row for row in prompts if row["kind"] == kind][: SHOWN // 2]:
            answers = {}
            for row in responses:
                if row["id"] == prompt["id"]:
                    answers[row["model"]] = row["response"]
            question = prompt["prompt"].rpartition("Human:")[2].removesuffix("\n\nAssistant:")
            chosen.append({"prompt": question.strip(), "answers": answers})
    return chosen


def main() -> None:
    """Train, evaluate, and write what became of the models."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "posttrain", "run", "PRESET=demo"]
        parameters = [f"SETTINGS={json.dumps(CHANGES)}", f"RESULTS={results}"]
        subprocess.run([*command, *parameters], check=True, cwd=ROOT)
        run = results / "demo"
        log = read_json(run / "training.json", dict[str, Any])
        record = {
            "settings": CHANGES,
            "conclusions": conclusions.read_training(log),
            "models": measure(run, read_vocabulary(DEMO)),
            "answers": choose_answers(run),
            **describe_machine(),
        }
    figure = training_figures.log_probabilities(log, ["Base", *log])
    with written_whole(ROOT / "docs" / "overtrained.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    write(BENCHMARKS / "overtrained.json", record)
    write(BENCHMARKS / "overtrained.md", as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
