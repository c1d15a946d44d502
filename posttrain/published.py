"""The published study's rates, to be shown beside those of a run."""

from pathlib import Path
from typing import Any

from posttrain.files import read_json
from posttrain.metrics import add_estimate, mover_mean, wilson

COUNTS = Path(__file__).with_name("published.json")


def study_rates() -> list[dict[str, Any]]:
    """Compute the study's HmR, HpR and CAS, in percent, with their 95% intervals.

    Returns:
        One record for each model, with the rates and counts that `metrics.summarise` gives.
    """
    counts = read_json(COUNTS, dict[str, Any])
    n = counts["prompts"]
    records = []
    for row in counts["passed"]:
        record = {"model": row["model"], "harmful_prompts": n, "helpful_prompts": n, **row}
        rates = [100 * row["harmless"] / n, 100 * row["helpful"] / n]
        intervals = [wilson(row["harmless"], n), wilson(row["helpful"], n)]
        add_estimate(record, "HmR", rates[0], intervals[0])
        add_estimate(record, "HpR", rates[1], intervals[1])
        add_estimate(record, "CAS", sum(rates) / 2, mover_mean(rates, intervals))
        records.append(record)
    return records
