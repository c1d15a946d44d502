"""Train and evaluate the demo with five training seeds: how far its results spread.

    python -m benchmarks.seeds

Does what `make seeds PRESET=demo SEEDS="0 1 2 3 4"` does, about ten minutes on two cores, and
writes benchmarks/seeds.json and seeds.md.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from posttrain.comparisons import format_signed
from posttrain.files import read_json, write
from posttrain.metrics import MEASURES
from posttrain.tables import as_markdown

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ("0", "1", "2", "3", "4")
RATES = ("HmR", "HpR", "CAS")

Record = Mapping[str, Any]


def spread_of_models(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """Compute the mean and the sample's standard deviation over seeds of each model's measures.

    Args:
        metrics: metrics.json of each seed's run.
    """
    spreads = []
    for measure in MEASURES:
        for i, model in enumerate(metrics[0]["models"]):
            values = [run["models"][i][measure] for run in metrics]
            spread = {
                "measure": measure,
                "model": model["model"],
                "values": values,
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)),
            }
            spreads.append(spread)
    return spreads


def spread_of_differences(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """Compute the mean over seeds of each difference between two models, with its t interval.

    Args:
        metrics: metrics.json of each seed's run.

    Returns:
        A record for each comparison. The interval (95%) is None where all differences are equal;
        `prompts_low` and `prompts_high` are the ends of the first run's interval over prompts.
    """
    spreads = []
    for i, first in enumerate(metrics[0]["comparisons"]):
        values = np.array([run["comparisons"][i]["difference"] for run in metrics])
        low, high = None, None
        if np.ptp(values):
            error = values.std(ddof=1) / np.sqrt(len(values))
            half = t.ppf(0.975, len(values) - 1) * error
            low, high = float(values.mean() - half), float(values.mean() + half)
        spread = {
            "measure": first["measure"],
            "first": first["first"],
            "second": first["second"],
            "values": values.tolist(),
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "difference": first["difference"],
            "prompts_low": first["low"],
            "prompts_high": first["high"],
        }
        spreads.append(spread)
    return spreads


def as_tables(record: Mapping[str, Any]) -> str:
    """Write two markdown tables, of the models and of their differences.

    Args:
        record: of seeds.json.
    """
    models: dict[str, dict[str, str]] = {}
    for spread in record["models"]:
        if spread["measure"] in RATES:
            values = " ".join(f"{value:.0f}" for value in spread["values"])
            row = models.setdefault(spread["model"], {"model": spread["model"]})
            row[f"{spread['measure']} (%)"] = f"{values}: {spread['mean']:.1f} ± {spread['sd']:.1f}"
    pairs: dict[str, dict[str, str]] = {}
    for spread in record["differences"]:
        if spread["measure"] in RATES:
            pair = f"{spread['second']} − {spread['first']}"
            ends = "no interval"
            if spread["low"] is not None:
                ends = ", ".join(format_signed(spread[end], 1) for end in ("low", "high"))
            row = pairs.setdefault(pair, {"pair": pair})
            row[f"{spread['measure']} (points)"] = f"{format_signed(spread['mean'], 1)} [{ends}]"
    first = f"Seeds {' '.join(SEEDS)}: mean and standard deviation over them (%)."
    second = "Mean difference over the seeds, in points, with its 95% t interval."
    tables = [
        as_markdown(pd.DataFrame(models.values()), first),
        as_markdown(pd.DataFrame(pairs.values()), second),
    ]
    return "\n".join(tables)


def main() -> None:
    """Run the seeds in a folder of their own, and write how far the results spread."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", "posttrain", "seeds"]
        parameters = ["PRESET=demo", f"SEEDS={' '.join(SEEDS)}", f"RESULTS={results}"]
        subprocess.run([*command, *parameters], check=True, cwd=ROOT)
        runs = [f"demo-seed{seed}" for seed in SEEDS]
        metrics = [read_json(results / run / "metrics.json") for run in runs]
    record = {
        "runs": runs,
        "models": spread_of_models(metrics),
        "differences": spread_of_differences(metrics),
    }
    write(ROOT / "benchmarks" / "seeds.json", record)
    write(ROOT / "benchmarks" / "seeds.md", as_tables(record))
    print(as_tables(record))


if __name__ == "__main__":
    main()
