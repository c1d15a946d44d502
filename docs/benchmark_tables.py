"""What benchmarks/ recorded, as markdown: tables and the lines that say where it was measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.files import read_json

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
WITHOUT_BF16 = "without_bf16/speed"  # speed on a processor that does not multiply bf16
WAYS = {
    "published": "the study's batches",
    "TRL": "TRL's defaults",
    "ours": "here",
    "ours fp32": "here, in fp32",
}
ANSWERS = 800  # that the judge reads under preset small

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
    """Write where and when a benchmark was measured, and on whose text if it says so."""
    record = read_record(name)
    parts = [f"{record['machine']}, {record['cores']} cores"]
    if "versions" in record:
        parts.append(", ".join(f"{name} {number}" for name, number in record["versions"].items()))
    if "date" in record:
        parts.append(record["date"])
    if "text" in record:
        parts.append(f"{record['text']} text")
    return f"Measured on: {'; '.join(parts)}."


# ---- speed


def median_rate(measurements: Sequence[Record]) -> float:
    """Compute the median of the tokens per second of some measurements."""
    rates = [run["tokens"] / sum(run["seconds"]) for run in measurements]
    return statistics.median(rates)


def write_speed_in_short() -> str:
    """Write README's table: tokens per second of each stage and way, and on what."""
    record = read_record("speed")
    rows = []
    for stage, ways in record["runs"].items():
        rates = {way: median_rate(measurements) for way, measurements in ways.items()}
        if "ours fp32" not in rates:  # the evaluation is in fp32 on a CPU
            rates["ours fp32"] = rates.pop("ours")
        cells = [stage]
        for way in WAYS:
            cells.append(describe_rate(rates, way))
        rows.append(cells)
    rounds = len(record["runs"]["SFT"]["ours"])
    ratios = []
    for stage, ways in read_record(WITHOUT_BF16)["runs"].items():
        ratio = median_rate(ways["ours"]) / median_rate(ways["published"])
        ratios.append(f"{stage} {ratio:.1f}")
    return "\n".join([
        write_table(["tokens per second", *WAYS.values()], rows),
        "",
        f"{write_machine('speed')} Medians of {rounds}.",
        "On a processor that does not multiply bf16, times the study's batches: "
        f"{', '.join(ratios)}.",
    ])


def describe_rate(rates: Mapping[str, float], way: str) -> str:
    """Write a rate in tokens per second, ours with how many times the published way's it is."""
    if way not in rates:
        return ""
    if not way.startswith("ours"):
        return f"{rates[way]:.0f}"
    return f"{rates[way]:.0f} ({rates[way] / rates['published']:.1f} times)"


def write_speed_setup(name: str) -> str:
    """Write what a measurement of speed was made of: the machine, its peak and the work."""
    record = read_record(name)
    first = {stage: ways["published"][0] for stage, ways in record["runs"].items()}
    peaks = []
    for kind, precision in {"float32": "fp32", "bfloat16": "bf16"}.items():
        values = [f"{peak[kind]:.0f}" for peak in record["matmul GFLOP/s"]]
        peaks.append(f"{', '.join(values)} in {precision}")
    drawn = ""
    if "of pairs" in record:
        drawn = f", drawn from a training of {record['of pairs']}"
    return "\n".join([
        f"- {write_machine(name)}",
        f"- A large matrix product reached, in GFLOP/s, {' and '.join(peaks)}.",
        f"- Training: {first['SFT']['pairs']} pairs in SFT and {first['DPO']['pairs']} in DPO, "
        f"{record['pairs in a step']} in a step{drawn}.",
        f"- Evaluation: {len(first['generation']['texts'])} prompts to answer, and "
        f"{first['judging']['pairs']} answers to judge.",
        f"- Rounds: {len(record['runs']['SFT']['ours'])}.",
    ])


def write_same_work() -> str:
    """Write how far the results of the ways of computing lay apart."""
    rows = []
    for name, value in read_record("speed")["same work"].items():
        rows.append([name, f"{value:.0e}" if isinstance(value, float) else str(value)])
    return write_table(["compared", "value"], rows)


def write_preset_small() -> str:
    """Write how long the preset small takes, in so far as it was measured or can be computed."""
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
        ["the same in fp32, by the ratios above", "computed", f"{minutes_in_fp32:.0f}"],
        [f"the judge on {ANSWERS} answers, at the rate above", "computed",
         f"{tokens / median_rate(judging) / 60:.0f}"],
    ]  # fmt: skip
    return write_table(["step", "", "minutes"], rows)


# ---- a real model


def write_real_model_in_short() -> str:
    """Write README's tables: the trainings of a real model, and the pairs of the test splits."""
    tables = read_table(BENCHMARKS / "real_model.md").split("\n\n")
    return "\n\n".join(tables[:2])


def write_real_model_setup() -> str:
    """Write what the real model was trained on."""
    record = read_record("real_model")
    return (
        f"{write_machine('real_model')} The trainings had {record['pairs']} pairs, of which "
        f"{record['held out']} were held out for validation. Learning rates were chosen on the "
        f"first {record['trials'][0]['held out']} of these."
    )
