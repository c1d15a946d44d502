"""Is a demo run sound: whole words, no unlearning, every trained model above the baseline?

Used by `benchmarks.seeds`, `benchmarks.overtrained` and the tests.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.files import read_json
from posttrain.transcripts import MEASURED, read_split

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
MOST_UNKNOWN = 0.01  # share of a model's answers that may contain an unknown word
LARGEST_FALL = 0.5  # of log p(chosen) on held-out pairs, as a share of its start

Record = Mapping[str, Any]


def list_words(texts: Iterable[str]) -> set[str]:
    """List the words of some texts, without regard to capital letters."""
    words = set()
    for text in texts:
        words.update(word.casefold() for word in WORD.findall(text))
    return words


def read_vocabulary(dataset: Path) -> set[str]:
    """List all words of the demo's data, in both splits of both subsets."""
    texts = []
    for subset in MEASURED.values():
        for split in ("train", "test"):
            for row in read_split(dataset, subset, split):
                texts += row.values()
    return list_words(texts)


def measure(run: Path, vocabulary: set[str]) -> list[dict[str, Any]]:
    """Measure how sound the trained models of an evaluated run are.

    Args:
        run: the run's folder.
        vocabulary: of `read_vocabulary`.

    Returns:
        One record for each trained model: `model`; `answers` and `unknown`, the number of its
        answers and of those that contain a word from outside of the vocabulary; `chosen`, the mean
        log p(chosen) on held-out pairs before and after training, None without preferences;
        `accuracy` and `margin` on them; `CAS` and that of the `baseline`.
    """
    baseline, *models = read_json(run / "metrics.json", dict[str, Any])["models"]
    logs = read_json(run / "training.json", dict[str, Any])
    responses = read_json(run / "responses.json", list[dict[str, Any]])
    records = []
    for model in models:
        name = model["model"]
        answers = [row["response"] for row in responses if row["model"] == name]
        unknown = [answer for answer in answers if list_words([answer]) - vocabulary]
        validated = [record for record in logs[name] if "eval_loss" in record]
        first, last = validated[0], validated[-1]
        chosen = None
        if "eval_logps/chosen" in last:
            chosen = [first["eval_logps/chosen"], last["eval_logps/chosen"]]
        record = {
            "model": name,
            "answers": len(answers),
            "unknown": len(unknown),
            "chosen": chosen,
            "accuracy": last.get("eval_rewards/accuracies"),
            "margin": last.get("eval_rewards/margins"),
            "CAS": model["CAS"],
            "baseline": baseline["CAS"],
        }
        records.append(record)
    return records


def list_faults(records: Sequence[Record]) -> list[str]:
    """List in sentences what is not sound.

    Args:
        records: of `measure`.
    """
    faults = []
    for record in records:
        name = record["model"]
        if record["unknown"] > MOST_UNKNOWN * record["answers"]:
            faults.append(
                f"{record['unknown']} of {record['answers']} answers of {name} contain a word that "
                "the demo's data does not contain."
            )
        fall = fall_of_chosen(record)
        if fall is not None and fall >= LARGEST_FALL:
            faults.append(f"Log p(chosen) of {name} has fallen by {fall:.0%} of its start.")
        if record["CAS"] <= record["baseline"]:
            faults.append(f"The CAS of {name} is not above that of the baseline.")
    return faults


def fall_of_chosen(record: Record) -> float | None:
    """Compute by which share of its start log p(chosen) has fallen; None without preferences."""
    if record["chosen"] is None:
        return None
    start, end = record["chosen"]
    return (start - end) / abs(start)
