"""Several evaluated runs side by side: they differ in one setting, such as the training's seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from posttrain.comparisons import format_signed
from posttrain.files import read_json
from posttrain.metrics import MEASURES
from posttrain.record import ABSENT, Record, list_differences
from posttrain.run import STAND_INS, Run

# Settings on which no result depends.
INDIFFERENT = {
    "training": ("preset", "checkpoint_share", "report_to", "max_new_tokens"),
    "evaluation": ("preset", "batch_size", "judge_tokens"),
}
# What else differs in a trainer's inputs where a setting does; the setting's own name aside.
ARGUMENTS = {
    "batch_size": ("pairs_in_a_step",),
    "dpo_epochs": ("num_train_epochs",),
    "dpo_learning_rate": ("learning_rate",),
    "dropout": ("share_prompts",),
    "lora_layers": ("target_modules", "tensors", "sha256_of_names"),
    "lora_r": ("r", "sha256_of_names"),
    "sft_epochs": ("num_train_epochs",),
    "sft_learning_rate": ("learning_rate",),
}
# Settings with which nearly all inputs of a trainer differ.
FAR_REACHING = ("base_model", "sft_method")
# Inputs that follow from the others: which pairs are drawn, and which model is gone on from.
DERIVED = ("base_model", "goes_on_from", "train_dataset", "eval_dataset")
# The settings that may give a source another content.
SETTINGS_OF_SOURCES = {
    "base_model": ("base_model",),
    "dataset": ("dataset", "subsets"),
    "test_dataset": ("dataset", "evaluation's dataset"),
    "reward_model": ("evaluation's reward_model",),
}
JUDGE = "evaluation's reward_model"
THRESHOLDS = ("evaluation's harmless_from", "evaluation's helpful_above")


@dataclass(frozen=True)
class Evaluated:
    """A run that was evaluated: its name, its record, and what metrics.json holds."""

    name: str
    record: Record
    metrics: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that its results depend on, those of the evaluation marked as such."""
        settings = {}
        for stage, values in self.record.settings.items():
            for name, value in values.items():
                if name not in INDIFFERENT.get(stage, ()):
                    settings[name if stage == "training" else f"evaluation's {name}"] = value
        return settings


class Comparison(Run):
    """The folder of a comparison; its figures say which runs it is of."""

    def __init__(
        self,
        runs: Sequence[Evaluated],
        results: str | Path,
        name: str | None = None,
        figures: str | Path | None = None,
        labelled: bool = True,
    ):
        """Open the folder of a comparison.

        Args:
            runs: of `load_runs`.
            results: the folder of all runs.
            name: the comparison's own; None takes the first run's with -compared behind it.
            figures: as for a run.
            labelled: as for a run.
        """
        super().__init__(results, name or f"{runs[0].name}-compared", figures, labelled)
        self.runs = runs

    @property
    def label(self) -> str:
        """Which runs are compared, for below every figure."""
        text = f"{self.name}: {', '.join(run.name for run in self.runs)}"
        is_demo = any(run.record.preset == "demo" for run in self.runs)
        return text + (STAND_INS if is_demo else "")


def load_runs(results: str | Path, names: Sequence[str]) -> list[Evaluated]:
    """Load evaluated runs that may be put side by side.

    Args:
        results: the folder of all runs.
        names: the runs', in the order in which they are shown.

    Returns:
        The runs.

    Raises:
        ValueError: there are fewer than two, one was not evaluated, they differ in more than one
            setting, or were asked other prompts.
        FileNotFoundError: a run is not there.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise ValueError('RUNS: name two or more runs, such as "quick-seed0 quick-seed1".')
    runs = []
    for name in names:
        run = Run(results, name, must_exist=True)
        if not run.path("metrics.json").exists():
            raise ValueError(f"RUNS: {run.folder} is not evaluated yet: run eval.ipynb with it.")
        metrics = read_json(run.path("metrics.json"), dict[str, Any])
        runs.append(Evaluated(name, run.record, metrics))
    _require_comparable(runs)
    return runs


def _require_comparable(runs: Sequence[Evaluated]) -> None:
    """Refuse runs whose differences could not be put down to one setting."""
    first = runs[0]
    varied = list(differing(runs).index)
    settings = varied
    if JUDGE in varied:  # thresholds belong to their judge
        settings = [name for name in varied if name not in THRESHOLDS]
    if len(settings) > 1:
        raise ValueError(
            f"RUNS: these runs differ in {len(settings)} settings, {', '.join(settings)}. No "
            "difference between their results could be put down to one of them."
        )
    for other in runs[1:]:
        if other.metrics["sha256"]["prompts.json"] != first.metrics["sha256"]["prompts.json"]:
            raise ValueError(f"RUNS: {other.name} was asked other prompts than {first.name}.")
        same_thresholds = other.metrics["thresholds"] == first.metrics["thresholds"]
        if not same_thresholds and not set(varied) & set(THRESHOLDS):
            raise ValueError(f"RUNS: {other.name} has other thresholds than {first.name}.")
        differences = _differing_sources(first.record, other.record, varied)
        differences += _differing_inputs(first.record, other.record, varied)
        if differences:
            raise ValueError(
                f"RUNS: {other.name} differs from {first.name} in more than "
                f"{', '.join(varied) or 'no setting'}: it was made with another "
                f"{', '.join(differences)}."
            )
    if not varied and not any(run.record.imported for run in runs):
        raise ValueError(
            "RUNS: these runs differ in no setting, so that they are one training, counted more "
            "than once."
        )


def _differing_sources(first: Record, other: Record, varied: Sequence[str]) -> list[str]:
    """List the sources whose content differs though the settings do not say so."""
    names = []
    for role, settings in SETTINGS_OF_SOURCES.items():
        ours, theirs = first.sources.get(role), other.sources.get(role)
        if ours is None or theirs is None or set(settings) & set(varied):
            continue
        if (ours["commit"], ours["sha256"]) != (theirs["commit"], theirs["sha256"]):
            names.append(role)
    return names


def _differing_inputs(first: Record, other: Record, varied: Sequence[str]) -> list[str]:
    """List what the trainers of two runs' models were given differently, by its last name.

    Left out is what follows from the settings that vary.
    """
    if set(varied) & set(FAR_REACHING):
        return []
    expected = [*varied, *DERIVED]
    for name in varied:
        expected += ARGUMENTS.get(name, ())
    names = []
    for model in other.models:
        place = model.adapter or model.base
        ours, theirs = first.artifacts.get(place), other.artifacts.get(place)
        if ours is not None and theirs is not None:
            for difference in list_differences(ours.inputs, theirs.inputs):
                name = difference.name.rsplit(".", 1)[-1]
                if name not in expected and name not in names:
                    names.append(name)
    return names


def differing(runs: Sequence[Evaluated]) -> pd.DataFrame:
    """Show the settings in which runs differ.

    Args:
        runs: of `load_runs`.

    Returns:
        A row for each such setting, a column for each run.
    """
    names: list[str] = []
    for run in runs:
        names += [name for name in run.settings if name not in names]
    rows = {}
    for name in names:
        values = [run.settings.get(name, ABSENT) for run in runs]
        if any(value != values[0] for value in values):
            rows[name] = values
    return pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in runs])


def common_models(runs: Sequence[Evaluated]) -> list[str]:
    """List the models that all runs have, in the first one's order."""
    common = [row["model"] for row in runs[0].metrics["models"]]
    for run in runs[1:]:
        names = [row["model"] for row in run.metrics["models"]]
        common = [name for name in common if name in names]
    return common


def rates_across(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Collect every model's measures over the runs.

    Args:
        runs: of `load_runs`.

    Returns:
        A record for each measure and model: measure, model, values (one for each run), mean, and
        sd, the standard deviation of a sample (n - 1).
    """
    tables = []
    for run in runs:
        tables.append({row["model"]: row for row in run.metrics["models"]})
    records = []
    for measure in MEASURES:
        for model in common_models(runs):
            values = [table[model][measure] for table in tables]
            record = {"measure": measure, "model": model, "values": values}
            record["mean"] = float(np.mean(values))
            record["sd"] = float(np.std(values, ddof=1))
            records.append(record)
    return records


def differences_across(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Collect the difference of every two models over the runs, with its t interval.

    The interval speaks of other trainings, with these prompts; every run's own interval speaks of
    other prompts, with its very models. Neither contains the other.

    Args:
        runs: of `load_runs`.

    Returns:
        A record for each measure and pair of models: measure, first, second, values (second minus
        first, one for each run), mean, and low and high, the ends of the 95% t interval over runs,
        None where all runs give the same; and prompts_low and prompts_high, the ends of each run's
        own interval over prompts.
    """
    tables = []
    for run in runs:
        rows = run.metrics["comparisons"]
        tables.append({(row["measure"], row["first"], row["second"]): row for row in rows})
    records = []
    for key in tables[0]:
        if not all(key in table for table in tables):
            continue
        rows = [table[key] for table in tables]
        values = np.array([row["difference"] for row in rows])
        record = dict(zip(("measure", "first", "second"), key))
        record |= {"values": values.tolist(), "mean": float(values.mean())}
        record |= t_interval(values)
        record["prompts_low"] = [row["low"] for row in rows]
        record["prompts_high"] = [row["high"] for row in rows]
        records.append(record)
    return records


def t_interval(values: np.ndarray) -> dict[str, float | None]:
    """Compute the 95% t interval of a mean.

    Args:
        values: (runs,), two or more.

    Returns:
        {"low", "high"}; None where the values do not vary, which says nothing of how they would.
    """
    if np.ptp(values) == 0:
        return {"low": None, "high": None}
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"low": float(values.mean() - half), "high": float(values.mean() + half)}


def conclude(records: Sequence[dict[str, Any]], runs: int) -> list[str]:
    """Say of every pair of models what the runs show of it in CAS.

    Args:
        records: of `differences_across`.
        runs: how many there are.

    Returns:
        A sentence for each pair.
    """
    sentences = []
    for record in records:
        if record["measure"] != "CAS":
            continue
        above = sum(value > 0 for value in record["values"])
        text = (
            f"{record['second']} − {record['first']} in CAS: {format_signed(record['mean'], 1)} "
            f"points on average, above zero in {above} of {runs} runs"
        )
        if record["low"] is None:
            text += "; all runs give the same difference."
        else:
            verb = "includes" if record["low"] <= 0 <= record["high"] else "excludes"
            ends = f"{format_signed(record['low'], 1)}, {format_signed(record['high'], 1)}"
            text += f"; the 95% interval over runs [{ends}] {verb} zero."
        sentences.append(text)
    return sentences
