"""What benchmarks/ recorded, as markdown: tables, and sentences about how it was measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.files import read_json

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
WITHOUT_BF16 = "without_bf16/speed"  # speed on a processor that does not multiply bf16
ANSWERS = 800  # that the judge reads under preset small
TEXTS = {"real": "real conversations in HH-RLHF's layout", "the demo's": "those of the demo"}

Record = Mapping[str, Any]


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read_record(name: str) -> dict[str, Any]:
    """Read what a benchmark recorded."""
    return read_json(BENCHMARKS / f"{name}.json", dict[str, Any])


def read_table(path: Path) -> str:
    """Read the table that a benchmark wrote."""
    return path.read_text(encoding="utf-8")


def write_machine(name: str) -> str:
    """Write where and when a benchmark was measured, with which text and versions."""
    record = read_record(name)
    machine, _, architecture = record["machine"].partition(", ")
    if architecture:
        machine += f" ({architecture})"
    date = f" on {record['date']}" if "date" in record else ""
    cores = f"{record['cores']} cores"
    sentences = [f"This was measured{date} on a machine with {machine} and {cores}."]
    if "text" in record:
        sentences.append(f"The texts are {TEXTS[record['text']]}.")
    if "versions" in record:
        packages = [f"{name} {number}" for name, number in record["versions"].items()]
        sentences.append(f"The versions are {', '.join(packages[:-1])} and {packages[-1]}.")
    return " ".join(sentences)


# ---- speed


def median_rate(measurements: Sequence[Record]) -> float:
    """Compute the median of the tokens per second of some measurements."""
    rates = [run["tokens"] / sum(run["seconds"]) for run in measurements]
    return statistics.median(rates)


def write_speed_setup(name: str) -> str:
    """Write how speed was measured: the machine, the work, and the rate of a matrix product."""
    record = read_record(name)
    first = {stage: ways["published"][0] for stage, ways in record["runs"].items()}
    peaks = []
    for kind, precision in {"float32": "fp32", "bfloat16": "bf16"}.items():
        values = [round(peak[kind]) for peak in record["matmul GFLOP/s"]]
        lowest, highest = min(values), max(values)
        span = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
        peaks.append(f"{span} in {precision}")
    drawn = ""
    if "of pairs" in record:
        drawn = f", drawn from a training on {record['of pairs']} pairs"
    return "\n".join(
        [
            f"- {write_machine(name)}",
            f"- SFT trained on {first['SFT']['pairs']} pairs and DPO on {first['DPO']['pairs']}, "
            f"with {record['pairs in a step']} in an optimizer step{drawn}.",
            f"- {len(first['generation']['texts'])} prompts were answered, and "
            f"{first['judging']['pairs']} answers were judged.",
            f"- There were {len(record['runs']['SFT']['ours'])} rounds.",
            "- A large matrix product was timed before the first round and after each round. Its "
            f"rate in GFLOP/s was {' and '.join(peaks)}.",
        ]
    )


def write_same_work() -> str:
    """Write how far the results of the ways of computing lay apart."""
    apart = read_record("speed")["same work"]
    clauses = []
    for precision in ("fp32", "bf16"):
        values = [value for name, value in apart.items() if f"in {precision}," in name]
        clauses.append(f"{max(values):.0e} in {precision}")
    texts = apart["generation: texts, all the same"]
    rewards = apart["judging: largest difference"]
    return (
        "The largest relative difference of a loss or a log-probability was "
        f"{' and '.join(clauses)}. All {texts} generated texts were identical, and rewards "
        f"differed by at most {rewards:.0e}."
    )


def write_preset_small() -> str:
    """Write how long the preset small takes, as far as it was measured or can be computed."""
    speed, real_model = read_record("speed"), read_record("real_model")
    minutes, minutes_in_fp32 = 0.0, 0.0
    for model, run in real_model["run"].items():
        stage = model.split("+")[-1]  # SFT+DPO was trained by DPO
        ways = speed["runs"][stage]
        slower = median_rate(ways["ours"]) / median_rate(ways["ours fp32"])
        minutes += run["minutes"]
        minutes_in_fp32 += run["minutes"] * slower
    judging = speed["runs"]["judging"]["ours"]
    tokens = ANSWERS * judging[0]["tokens"] / judging[0]["pairs"]
    rows = [
        [f"three trainings of SmolLM2-135M on {real_model['pairs']} pairs, bf16", "measured",
         f"{minutes:.0f}"],
        ["the same trainings in fp32", "computed", f"{minutes_in_fp32:.0f}"],
        [f"the judge on {ANSWERS} answers", "computed",
         f"{tokens / median_rate(judging) / 60:.0f}"],
    ]  # fmt: skip
    return write_table(["work", "measured or computed", "minutes"], rows)


# ---- a real model


def write_real_model_setup() -> str:
    """Write what the real model was trained on."""
    record = read_record("real_model")
    return (
        f"{write_machine('real_model')} The trainings had {record['pairs']} pairs, of which "
        f"{record['held out']} were held out for validation. The learning rates were chosen on the "
        f"first {record['trials'][0]['held out']} of the held-out pairs."
    )
