"""What benchmarks.scale computed, as tables in markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

UNITS = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0))
FROM = 1.5  # of a unit, below which the next smaller one is taken
TOO_LARGE = "does not fit"


def round_number(value: float) -> str:
    """Write a number with two significant digits."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def write_span(values: Sequence[float]) -> str:
    """Write the lowest and the highest of some numbers with two significant digits."""
    lowest, highest = round_number(min(values)), round_number(max(values))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def write_duration(seconds: Sequence[float | None]) -> str:
    """Write the shortest and the longest of some times, in a unit that suits the longest."""
    known = [value for value in seconds if value is not None]
    if not known:
        return TOO_LARGE
    name, length = UNITS[0]
    for other, other_length in UNITS[1:]:
        if max(known) >= FROM * other_length:
            name, length = other, other_length
    return f"{write_span([value / length for value in known])} {name}"


def _write_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as markdown."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def _write_times(row: Record) -> list[str]:
    """Write the times of a row: on the CPU, if they are known, and on every device."""
    cells = ["–"]
    if "seconds on the CPU" in row:
        cells = [write_duration([row["seconds on the CPU"]])]
    return cells + [write_duration(seconds) for seconds in row["seconds"].values()]


def write_training(record: Record) -> str:
    """Write the times of the trainings."""
    devices = list(record["training"][0]["seconds"])
    cores = f"{record['speed']['cores']} cores"
    rows = []
    for row in record["training"]:
        petaflop = round_number(row["petaflop"])
        rows.append([f"`{row['preset']}`", row["base"], petaflop, *_write_times(row)])
    return _write_rows(["preset", "base", "arithmetic (PFLOP)", cores, *devices], rows)


def write_memory(record: Record) -> str:
    """Write the memory of the trainings in GB, and the largest pass that fits each size of GPU."""
    parts = {
        "weights": "weights",
        "trained": "adapters, gradients, moments",
        "activations": "activations, one pair",
        "logits": "logits, one pair",
    }
    sizes = [f"pass in {size}" for size in record["memory"][0]["pass"]]
    headings = ["preset", "base", *parts.values(), "all, one pair", "all, whole step", *sizes]
    rows = []
    for row in record["memory"]:
        cells = [f"`{row['preset']}`", row["base"]]
        cells += [round_number(row["bytes"][part] / 1e9) for part in parts]
        cells += [round_number(row[name] / 1e9) for name in ("one pair", "whole step")]
        for pairs in row["pass"].values():
            cells.append(TOO_LARGE if pairs is None else f"{pairs} pair{'s' if pairs > 1 else ''}")
        rows.append(cells)
    return _write_rows(headings, rows)


def write_evaluation(record: Record) -> str:
    """Write the times of the evaluations."""
    devices = list(record["evaluation"][0]["seconds"])
    cores = f"{record['speed']['cores']} cores"
    rows = []
    for row in record["evaluation"]:
        cells = [f"{row['prompts']:,}", f"`{row['preset']}`", row["base"], *_write_times(row)]
        rows.append(cells)
    return _write_rows(["prompts", "as in", "base", cores, *devices], rows)


def write_processes(record: Record) -> str:
    """Write how much faster a step gets with several GPUs."""
    numbers = list(record["processes"][0]["speed-up"])
    headings = ["training", "base", "GPU", "step on one GPU (ms)", "pairs that fill a GPU",
                "gradients (MB)", "exchange (ms)"]  # fmt: skip
    headings += [f"{number} GPUs" for number in numbers]
    headings.append("pays up to")
    rows = []
    for row in record["processes"]:
        cells = [f"{row['stage']} of `{row['preset']}`", row["base"], row["device"]]
        cells.append(write_span([1000 * seconds for seconds in row["seconds"]]))
        cells.append(write_span(row["filled by"]))
        cells.append(round_number(row["gradient bytes"] / 1e6))
        cells.append(write_span([1000 * seconds for seconds in row["exchange"]]))
        for number in numbers:
            values = row["speed-up"].get(number)
            cells.append(f"× {write_span(values)}" if values else "–")
        cells.append(write_gpus(row["pays to"]))
        rows.append(cells)
    return _write_rows(headings, rows)


def write_gpus(numbers: Sequence[int]) -> str:
    """Write the fewest and the most of some numbers of GPUs."""
    most = max(numbers)
    return f"{write_span(numbers)} GPU{'s' if most > 1 else ''}"


TABLES: dict[str, Callable[[Record], str]] = {
    "scale": write_training,
    "scale_memory": write_memory,
    "scale_evaluation": write_evaluation,
    "scale_processes": write_processes,
}
