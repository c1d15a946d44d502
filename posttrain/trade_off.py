"""How far the models of several runs are from Base, and what they gain there.

A preference model may gain reward by moving away from its base, and a setting of its training, such
as DPO's beta, says how far. The distance is the mean log-ratio of its answers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from posttrain.compare import Evaluated, common_models, differing
from posttrain.comparisons import has_measure
from posttrain.metrics import (
    KINDS,
    MEASURES,
    add_estimate,
    bootstrap_means,
    kinds_of,
    models_of,
    percentiles,
    pivot,
)
from posttrain.record import ABSENT

SHOWN = [name for name in MEASURES if name != "CAS"]


def varied_in_training(runs: Sequence[Evaluated]) -> str | None:
    """Name the setting of the training in which runs differ.

    Args:
        runs: the runs, from `compare.load_runs`.

    Returns:
        The setting's name, such as "seed" or "beta"; None if the runs differ in the evaluation, or
        in no setting that is known.
    """
    names = list(differing(runs).index)
    if len(names) == 1 and names[0] in runs[0].record.settings.get("training", {}):
        return names[0]
    return None


def measure_trade_off(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Collect for every model in every run its mean log-ratio to Base and its measures.

    The 95% intervals are over prompts, for the trained models: Wilson's for a rate, and the
    percentile bootstrap over prompts of both kinds for the log-ratio, as for a mean reward.

    Args:
        runs: the runs, from `compare.load_runs`.

    Returns:
        A record for each run and model that all runs have: run, setting (in which the runs differ),
        value (of this run), model, log_ratio (nats per token, over all answers), and each of SHOWN,
        all with the ends of their intervals, such as log_ratio_low and log_ratio_high. There are
        none if the runs do not differ in a setting of the training, or if a log-ratio is unknown,
        as it is for answers that were imported without it.
    """
    setting = varied_in_training(runs)
    known = all(run.answers["log_ratio"].notna().all() for run in runs)
    if setting is None or not known:
        return []
    models = common_models(runs)
    records = []
    for run in runs:
        rows = {row["model"]: row for row in run.metrics["models"]}
        redrawn = _redraw_log_ratios(run)
        for model in models:
            log_ratios = run.answers.loc[run.answers["model"] == model, "log_ratio"].to_numpy()
            value = run.settings.get(setting, ABSENT)  # an older run may lack it
            record = {"run": run.name, "setting": setting, "value": value}
            record["model"] = model
            interval = percentiles(log_ratios, redrawn[model].to_numpy())
            add_estimate(record, "log_ratio", float(log_ratios.mean()), interval)
            for name in [name for name in SHOWN if has_measure(rows[model], name)]:
                ends = {"low": rows[model][f"{name}_low"], "high": rows[model][f"{name}_high"]}
                add_estimate(record, name, rows[model][name], ends)
            records.append(record)
    return records


def _redraw_log_ratios(run: Evaluated) -> pd.DataFrame:
    """Compute bootstrap means of all models' log-ratios, drawing prompts within each kind."""
    draws, seed = run.metrics["bootstrap"]["draws"], run.metrics["bootstrap"]["seed"]
    models = models_of(run.answers)
    totals = np.zeros((draws, len(models)))
    prompts = 0
    for kind in kinds_of(run.answers):
        values = pivot(run.answers, kind, "log_ratio")[models].to_numpy()
        totals += len(values) * bootstrap_means(values, draws, [seed, KINDS.index(kind)])
        prompts += len(values)
    return pd.DataFrame(totals / prompts, columns=models)
