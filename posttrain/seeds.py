"""Runs that differ in the seed of their training alone: what they share, and how far their results spread."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from posttrain import MODELS
from posttrain.files import read_json, sha256_of
from posttrain.ledger import ADAPTERS, FULL_SFT, Ledger
from posttrain.stats import MEASURES

Record = dict[str, Any]
TRAINED = {*ADAPTERS.values(), FULL_SFT, "responses.json"}  # what an artifact is made of that depends on the training


def group(folder: Path, names: Sequence[str], metrics: Record) -> dict[str, Record]:
    """Return {name: its metrics} of evaluated runs that differ from the one in `folder` in main's SEED alone.

    In the order of `names`, of runs beside it; `metrics`: its own, which come first where it is not among them. Runs
    that are not evaluated yet are left out. Raises ValueError, naming it, where a run differs in more, or was trained
    with a seed that another one has too.
    """
    ours, found = read_json(folder / "run.json", Ledger), {}
    seeds = {ours.settings["training"]["seed"]}
    for name in dict.fromkeys(names if folder.name in names else [folder.name, *names]):
        other = folder.with_name(name)
        if name == folder.name:
            found[name] = metrics
            continue
        if not (other / "metrics.json").exists():
            print(f"SEED_RUNS: {other} is not evaluated yet, or not there.")
            continue
        theirs, found[name] = read_json(other / "run.json", Ledger), read_json(other / "metrics.json")
        mine, its = _beside_the_seed(ours, metrics["thresholds"]), _beside_the_seed(theirs, found[name]["thresholds"])
        for what in mine:
            if mine[what] != its.get(what):
                raise ValueError(f"SEED_RUNS: {other} differs from {folder} in more than the training's seed: {what} "
                                 f"is {its.get(what)!r} there, {mine[what]!r} here.")
        seed = theirs.settings["training"]["seed"]
        if seed in seeds:
            raise ValueError(f"SEED_RUNS: {other} was trained with seed {seed}, as another of these runs.")
        seeds.add(seed)
    return found


def _beside_the_seed(ledger: Ledger, thresholds: Record) -> Record:
    """Return what runs that differ in the training's seed alone have in common."""
    training = {name: value for name, value in ledger.settings["training"].items() if name not in ("seed", "preset")}
    scored = {name: value for name, value in ledger.artifacts["scores.json"].made_from.items() if name not in TRAINED}
    return training | {"prompts.json": ledger.artifacts["prompts.json"].sha256} | scored | {
        f"threshold {name}": value for name, value in thresholds.items()}


def independent_of_training(folders: Sequence[Path], artifact: str, made_from: Record, names: Sequence[str]) -> list:
    """Return the records of `names` in another run's artifact, [] where none of the runs has it made from the same.

    Base's responses and rewards, and the references', do not depend on what was trained: of what the artifact was made
    from only the adapters may differ, and the responses of the models that were trained.
    """
    for folder in folders:
        if not (folder / artifact).exists() or not (folder / "run.json").exists():
            continue
        made = read_json(folder / "run.json", Ledger).artifacts.get(artifact)
        if made is None or made.sha256 != sha256_of(folder / artifact):
            continue
        wanted = {name: value for name, value in made_from.items() if name not in TRAINED}
        if {name: value for name, value in made.made_from.items() if name not in TRAINED} == wanted:
            return [record for record in read_json(folder / artifact, list[dict]) if record["model"] in names]
    return []


def across(metrics: Sequence[Record]) -> list[Record]:
    """Return one record a measure and model: its `values`, a seed each, their mean and standard deviation.

    `metrics`: the runs' metrics.json. The deviation is that of a sample (n - 1); None with a single seed.
    """
    rows = [{row["model"]: row for row in one["models"]} for one in metrics]
    found = []
    for measure in MEASURES:
        for model in [name for name in MODELS if all(name in row for row in rows)]:
            values = [row[model][measure] for row in rows]
            found.append({"measure": measure, "model": model, "values": values, "mean": float(np.mean(values)),
                          "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None})
    return found


def differences(metrics: Sequence[Record]) -> list[Record]:
    """Return one record a measure and pair of models: the difference over the seeds, with its 95% t interval.

    Fields: measure, first, second, mean, low, high over seeds (None with one seed or equal ones); and, of the first
    run, difference, prompts_low, prompts_high: the interval over prompts, which says nothing about other seeds.
    """
    rows = [{(row["measure"], row["first"], row["second"]): row for row in one["comparisons"]} for one in metrics]
    found = []
    for measure in MEASURES:
        for pair in combinations(MODELS, 2):
            if not all((measure, *pair) in row for row in rows):
                continue
            values = np.array([row[measure, *pair]["difference"] for row in rows])
            low, high = None, None
            if len(values) > 1 and np.ptp(values):
                half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
                low, high = float(values.mean() - half), float(values.mean() + half)
            first = rows[0][measure, *pair]
            found.append({"measure": measure, "first": pair[0], "second": pair[1], "values": values.tolist(),
                          "mean": float(values.mean()), "low": low, "high": high, "difference": first["difference"],
                          "prompts_low": first["low"], "prompts_high": first["high"]})
    return found
