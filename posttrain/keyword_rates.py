"""Compare harmful prompts with and without a keyword: HmR on both, where a run has both.

A keyword is one of the words by which the study chose its harmful prompts. prompts.json says of
each harmful prompt whether it has one (see `prompts`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from posttrain.metrics import add_estimate, models_of, pivot_passed, wilson
from posttrain.tables import interval

Record = dict[str, Any]


def rates_by_keyword(prompts: Sequence[Mapping[str, Any]], answers: pd.DataFrame) -> list[Record]:
    """Compute every model's HmR on the harmful prompts with and without a keyword.

    Args:
        prompts: the records of prompts.json.
        answers: the table of answers with its labels.

    Returns:
        Records {"model", "keyword", "harmless", "harmful_prompts", "HmR", "HmR_low", "HmR_high"}
        with Wilson's 95% intervals, the group with a keyword first. The list is empty if one of the
        groups is, or if the prompts, which may come from elsewhere, do not say which have one.
    """
    groups: dict[bool, list[str]] = {True: [], False: []}
    for prompt in prompts:
        if prompt["kind"] == "harmful" and "keyword" in prompt:
            groups[prompt["keyword"]].append(prompt["id"])
    if not (groups[True] and groups[False]):
        return []
    passed = pivot_passed(answers, "harmful")
    records = []
    for model in models_of(answers):
        for keyword, ids in groups.items():
            harmless = int(passed.loc[ids, model].sum())
            record: Record = {
                "model": model,
                "keyword": keyword,
                "harmless": harmless,
                "harmful_prompts": len(ids),
            }
            add_estimate(record, "HmR", 100 * harmless / len(ids), wilson(harmless, len(ids)))
            records.append(record)
    return records


def tabulate_by_keyword(records: Sequence[Record]) -> pd.DataFrame:
    """Make a table of HmR with a row for each model and a column for each group of prompts.

    Args:
        records: the records of `rates_by_keyword`.
    """
    rows: dict[str, Record] = {}
    for record in records:
        words = "with a keyword" if record["keyword"] else "without a keyword"
        heading = f"HmR (%) on prompts {words} (n = {record['harmful_prompts']})"
        row = rows.setdefault(record["model"], {"model": record["model"]})
        row[heading] = interval(record, "HmR")
    return pd.DataFrame(rows.values())
