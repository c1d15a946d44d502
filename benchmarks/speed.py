"""How fast training, generation and judging are, against what a user would run otherwise.

    python -m benchmarks.speed [--dataset FOLDER] [--repeats 3] [--leave-out WAY ...]

Up to four ways, on whatever device is there. `published` is what a reader of the study would do:
eight pairs in a step, two at a time, in random order, with activation checkpointing, in fp32; one
prompt, one answer at a time. `TRL` is its defaults at the same step. `ours` is what main.ipynb's
own cells make and the package does, and `ours fp32` the same in fp32. All train the same adapters
on the same tokens: those of some passes of a training of 800 pairs, as it makes them, since so few
pairs by themselves would hardly be of like length. The models have the full size and random
weights; the text is that of a folder in HH-RLHF's layout, or the demo's. Each measurement is a
process of its own, the ways take turns, and all is repeated.

Writes benchmarks/speed.json (machine, versions, raw timings, proofs that the work is the same) and
speed.md. Until the last round is done, and where the work differs (RuntimeError), what was measured
is in speed-unfinished.json.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BENCHMARKS,
    DEMO,
    describe_machine,
    existing_folder,
    in_a_process,
    print_result,
)
from benchmarks.stages import OF_PAIRS, STEP, build_models, measure, measure_matmul
from posttrain import device
from posttrain.files import write

WAYS = {
    "SFT": ("published", "TRL", "ours", "ours fp32"),
    "DPO": ("published", "TRL", "ours", "ours fp32"),
    "generation": ("published", "ours"),
    "judging": ("published", "ours"),
}
# How far a loss and log p may differ from the published way's: in the same precision, in another
ROUNDING = {"fp32": 1e-6, "bf16": 3e-4}
REWARDS_WITHIN = 1e-4  # how far rewards may differ
NAMES = {  # of the ways, in the table
    "published": "the study's batches",
    "TRL": "TRL's defaults",
    "ours": "this repository",
    "ours fp32": "this repository, fp32",
}
# Floating-point operations of a token: two for each weight of the 24 layers (both models have as
# many) in a pass, and a pass is a forward, a backward to the activations (the weights are frozen),
# or the reference's forward.
PASSES = {"SFT": 2, "DPO": 3, "judging": 1}
FLOP_OF_A_PASS = 2 * 24 * 12 * 1024**2

Measurement = Mapping[str, Any]
Runs = Mapping[str, Mapping[str, Sequence[Measurement]]]  # by stage and way, one for each round


# ---- the same work


def same_work(runs: Runs, ours: str = "bf16") -> tuple[dict[str, Any], list[str]]:
    """Compare what the ways and rounds did.

    Asked for are as many pairs, tokens, tokens with a loss and trained weights; the loss of SFT and
    log p of both replies in DPO within `ROUNDING` (a rejected reply that saw the chosen one would
    change log p by some 6e-4); the same texts, not all alike and none empty; rewards within
    `REWARDS_WITHIN`. What is no number differs.

    Args:
        runs: what was measured.
        ours: what the notebook's way computes in on the device.

    Returns:
        How far values lie apart, by what they are, and in what the work differs.
    """
    apart: dict[str, Any] = {}
    different = []
    for stage in ("SFT", "DPO"):
        for name in ("pairs", "tokens", "tokens with a loss", "trained weights"):
            if len({measured[name] for measured in _of_all_ways(runs[stage])}) > 1:
                different.append(f"{stage}, {name}")
        for label, precision, distance in _compare_values(runs[stage], ours):
            apart[f"{stage}: {label}, largest relative difference"] = distance
            if not distance < ROUNDING[precision]:
                different.append(f"{stage}, {label}")
    texts = [measured["texts"] for measured in _of_all_ways(runs["generation"])]
    apart["generation: texts, all the same"] = len(texts[0])
    proves_nothing = not all(texts[0]) or len(set(texts[0])) == 1
    if proves_nothing or any(other != texts[0] for other in texts):
        different.append("generation, texts")
    rewards = [measured["rewards"] for measured in _of_all_ways(runs["judging"])]
    distance = _largest_difference(rewards)
    apart["judging: largest difference"] = distance
    if not distance < REWARDS_WITHIN:
        different.append("judging, rewards")
    return apart, different


def _of_all_ways(ways: Mapping[str, Sequence[Measurement]]) -> list[Measurement]:
    """List the measurements of a stage, of all ways and rounds."""
    return [measured for measurements in ways.values() for measured in measurements]


def _compare_values(
    ways: Mapping[str, Sequence[Measurement]], ours: str
) -> list[tuple[str, str, float]]:
    """Compare the loss, or log p, with that of the published way's first round.

    Args:
        ways: the measurements of SFT or DPO.
        ours: what the notebook's way computes in.

    Returns:
        Of each value and precision its label, the precision, and the largest relative difference.
    """
    precisions = {"published": "fp32", "TRL": "bf16", "ours": ours, "ours fp32": "fp32"}
    compared = []
    for name, expected in ways["published"][0]["values"].items():
        distances: dict[str, list[float]] = {}
        for way, measurements in ways.items():
            of_precision = distances.setdefault(precisions[way], [])
            for measured in measurements:
                of_precision.append(abs(measured["values"][name] / expected - 1))
        for precision, values in distances.items():
            compared.append((f"{name} in {precision}", precision, largest_of(values)))
    return compared


def _largest_difference(rewards: Sequence[Sequence[float]]) -> float:
    """Give the largest difference between two rewards of the same answer."""
    differences = []
    for first, second in combinations(rewards, 2):
        differences += [abs(a - b) for a, b in zip(first, second, strict=True)]
    return largest_of(differences)


def largest_of(values: Iterable[float]) -> float:
    """Give the largest of some values, infinity where one of them is no number."""
    return max(value if math.isfinite(value) else math.inf for value in values)


# ---- the table


def as_table(record: Mapping[str, Any]) -> str:
    """Write the measurements as a markdown table.

    The share of the peak rate is relative to the best matrix product, in bf16 for the ways that
    multiply in it (`share_of_peak`). It counts the operations of all layers as if each text were
    read by itself.

    Args:
        record: of speed.json.
    """
    has_trl = "TRL" in record["runs"]["SFT"]  # it may have been left out
    headings = ["stage", "way", "tokens per second", "× the study's batches"]
    if has_trl:
        headings.append("× TRL's defaults")
    headings += ["share of peak rate", "memory (GiB)"]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for stage, ways in record["runs"].items():
        rates = {way: list_rates(measurements) for way, measurements in ways.items()}
        medians = {way: statistics.median(values) for way, values in rates.items()}
        for way, measurements in ways.items():
            share = "–"
            if stage in PASSES and not record["toy"]:
                share = f"{100 * share_of_peak(record, stage, way):.0f}%"
            slowest, fastest = min(rates[way]), max(rates[way])
            digits = 0 if fastest >= 100 else 1
            span = f"{slowest:.{digits}f} to {fastest:.{digits}f}"
            cells = [
                stage,
                NAMES[way],
                f"{medians[way]:.{digits}f} ({span})",
                f"{medians[way] / medians['published']:.1f}",
            ]
            if has_trl:
                cells.append(f"{medians[way] / medians['TRL']:.1f}" if "TRL" in medians else "–")
            cells += [share, f"{max(measured['peak GiB'] for measured in measurements):.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def list_rates(measurements: Sequence[Measurement]) -> list[float]:
    """Compute the tokens per second of each measurement."""
    return [measured["tokens"] / sum(measured["seconds"]) for measured in measurements]


def share_of_peak(record: Mapping[str, Any], stage: str, way: str) -> float:
    """Compute which share of the rate of the best matrix product a stage reached, in the median.

    Args:
        record: of speed.json, with models of full size.
        stage: one of `PASSES`.
        way: as in `WAYS`.
    """
    peaks = {}
    for kind in ("float32", "bfloat16"):
        peaks[kind] = max(product[kind] for product in record["matmul GFLOP/s"])
    computes_in_bf16 = stage in ("SFT", "DPO") and way in ("TRL", "ours")
    peak = max(peaks.values()) if computes_in_bf16 else peaks["float32"]
    rate = statistics.median(list_rates(record["runs"][stage][way]))
    return PASSES[stage] * FLOP_OF_A_PASS * rate / peak / 1e9


# ---- measuring


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", type=existing_folder, help="real text in HH-RLHF's layout; else the demo's"
    )
    parser.add_argument(
        "--toy", action="store_true", help="tiny models: does it run? name another --out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="WAY",
        choices=("TRL", "ours fp32"),
        help="not measured: TRL, very slow where bf16 is emulated; ours fp32, where ours is that",
    )
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # stage, way, models, dataset
    return parser.parse_args()


def measure_all(options: argparse.Namespace, record: dict[str, Any], unfinished: Path) -> None:
    """Measure all stages in all ways, in turn, round after round.

    Args:
        options: of the command line.
        record: is filled with what is measured.
        unfinished: where it is written after every measurement.

    Raises:
        RuntimeError: the ways did not do the same work.
    """
    dataset = options.dataset or DEMO
    with tempfile.TemporaryDirectory() as folder:
        build_models(Path(folder), dataset, options.toy)
        for _ in range(options.repeats):
            for stage, ways in record["runs"].items():
                for way, measurements in ways.items():
                    measured = in_a_process("speed", stage, way, folder, str(dataset))
                    measurements.append(measured)
                    seconds = [round(second, 1) for second in measured["seconds"]]
                    print(stage, way, seconds, flush=True)
                    write(unfinished, record)
            record["matmul GFLOP/s"].append(measure_matmul())
            record["same work"], different = same_work(record["runs"], record["ours computes in"])
            if different:
                raise RuntimeError(
                    f"The work is not the same: {'; '.join(different)}. What was measured is in "
                    f"{unfinished}."
                )


def main() -> None:
    """Measure, and write what was measured."""
    options = read_options()
    if options.one:
        stage, way, folder, dataset = options.one
        print_result(measure(stage, way, Path(folder), Path(dataset)))
        return
    runs: dict[str, dict[str, list]] = {}
    for stage, ways in WAYS.items():
        runs[stage] = {way: [] for way in ways if way not in options.leave_out}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **describe_machine(),
        "toy": options.toy,
        "text": "real" if options.dataset else "the demo's",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "pairs in a step": STEP,
        "of pairs": OF_PAIRS,
        "ours computes in": device.choose_precision("auto"),
        "matmul GFLOP/s": [measure_matmul()],
        "runs": runs,
    }
    unfinished = options.out / "speed-unfinished.json"
    measure_all(options, record, unfinished)
    write(options.out / "speed.json", record)
    write(options.out / "speed.md", as_table(record))
    unfinished.unlink()
    print(as_table(record))


if __name__ == "__main__":
    main()
