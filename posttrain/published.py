"""The published study's rates, to be shown beside those of a run."""

from pathlib import Path
from typing import Any

from posttrain.files import read_json
from posttrain.metrics import describe_counts

COUNTS = Path(__file__).with_name("published.json")


def study_rates() -> list[dict[str, Any]]:
    """Compute the study's HmR, HpR and CAS, in percent, with their 95% intervals.

    Returns:
        One record for each model, of `metrics.describe_counts`.
    """
    counts = read_json(COUNTS, dict[str, Any])
    n = counts["prompts"]
    records = []
    for row in counts["passed"]:
        records.append(describe_counts(row["model"], row["harmless"], n, row["helpful"], n))
    return records
