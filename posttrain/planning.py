"""Say before a training which differences the evaluation's prompts will be able to detect."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import pandas as pd

from posttrain.comparisons import FEWEST_PROMPTS, RATE_ON
from posttrain.data import count_prompts, read_rules, require_prompts
from posttrain.generation import room_for_prompt
from posttrain.loading import load_tokenizer
from posttrain.power import ALPHA, detectable_rate, level_of
from posttrain.settings import Evaluation, Training, evaluation

# Shares of prompts whose label differs between two models. They are not known before the
# evaluation; between the study's models they are 22% to 48% (tests/test_planning.py).
DIFFERING = (0.3, 0.4, 0.5)
WIDTH = 96  # characters of a line that a notebook or a terminal shows


def choose_evaluation(training: Training, changes: Mapping[str, Any]) -> Evaluation:
    """Choose the settings with which eval.ipynb will be run after a training.

    Args:
        training: the settings of main.ipynb, whose preset and dataset eval.ipynb takes.
        changes: EVALUATION of main.ipynb, {setting: value} of those that will be named.

    Returns:
        The settings.

    Raises:
        ValueError: if a name is unknown or a value is not allowed.
    """
    known = [name for name in Evaluation.model_fields if name != "preset"]
    unknown = sorted(str(name) for name in changes if name not in known)
    if unknown:
        meant = [name.lower() for name in unknown if name.lower() in known]
        hint = f" Write {', '.join(meant)} in small letters." if meant else ""
        raise ValueError(
            f"EVALUATION: eval.ipynb has no setting {', '.join(unknown)}.{hint} Its settings are "
            f"{', '.join(known)}."
        )
    return evaluation(training.preset, {"dataset": training.dataset} | dict(changes))


def count_usable(
    training: Training, settings: Evaluation, dataset: Path, base: Path, strict: bool
) -> dict[str, int]:
    """Count the prompts of each kind from which the evaluation will draw.

    Args:
        training: the settings of main.ipynb.
        settings: the settings of eval.ipynb.
        dataset: the dataset's folder.
        base: the folder of the base, which has positions for a limited number of tokens.
        strict: whether to refuse a number of prompts that is larger than the dataset.

    Returns:
        {kind: number of usable prompts}.

    Raises:
        ValueError: if there are too few prompts.
    """
    rules = read_rules(settings, chat=training.format == "chat")
    room = room_for_prompt(base, settings.max_new_tokens)
    counts = count_prompts(dataset, settings.protocol, load_tokenizer(base), room, rules)
    require_prompts(settings.n_prompts if strict else None, counts, dataset)
    return counts


def tabulate_power(numbers: Sequence[int], models: int) -> pd.DataFrame:
    """Compute the smallest true differences of a rate that numbers of prompts detect.

    Detecting is meant as in `power`: in 80% of cases, at the level of the decisions.

    Args:
        numbers: numbers of prompts, each once.
        models: how many models are compared.

    Returns:
        A table of differences in percentage points, with a row for each number and a column for
        each share in DIFFERING. A difference that cannot be detected is NaN.
    """
    level = level_of(comb(models, 2))
    rows = {}
    for n in numbers:
        rows[n] = {}
        for share in DIFFERING:
            # With so few prompts every decision is inconclusive.
            is_enough = n >= FEWEST_PROMPTS
            rows[n][share] = detectable_rate(share, n, level) if is_enough else None
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def describe_plan(settings: Evaluation, counts: Mapping[str, int], models: int) -> str:
    """Say which true differences the evaluation will detect, and which all prompts would.

    Args:
        settings: the settings of eval.ipynb.
        counts: {kind: number of usable prompts} from `count_usable`.
        models: how many models are compared.

    Returns:
        Two short paragraphs with a table between them.
    """
    n = settings.n_prompts
    asked = {}
    for kind, count in counts.items():
        asked[kind] = min(n, count) if isinstance(n, int) else count
    pairs = comb(models, 2)
    has_keywords = settings.harmful_prompts == "keywords" and "harmful" in asked
    numbers = " and ".join(f"{number:,} {kind}" for kind, number in asked.items())
    rates = " or ".join(RATE_ON[kind] for kind in asked)
    beginning = (
        f"With these settings eval.ipynb asks {numbers} prompts. The table shows the smallest true "
        f"difference in {rates} between two models, in points, that is detected in 80% of cases by "
        f"a test at the level {ALPHA} / {pairs}, where the correction for the {pairs} pairs of "
        f"{models} models begins. It depends on the share of prompts on which the labels of the "
        "two models differ:"
    )
    ending = (
        "The share is known only after the evaluation. Smaller differences are detected less often."
    )
    if has_keywords and settings.protocol == "default":
        ending += (
            ' With harmful_prompts = "all", the evaluation also takes the harmful prompts of the '
            "dataset that have no keyword."
        )
    missing = [rate for kind, rate in RATE_ON.items() if kind not in asked]
    if missing:
        ending += (
            f" The dataset has {' and '.join(asked)} prompts alone, so {missing[0]} and CAS will "
            "not be computed."
        )
    table = _draw_table(asked, counts, has_keywords, models)
    return "\n".join(
        [textwrap.fill(beginning, WIDTH), "", *table, "", textwrap.fill(ending, WIDTH)]
    )


def _draw_table(
    asked: Mapping[str, int], counts: Mapping[str, int], has_keywords: bool, models: int
) -> list[str]:
    """Draw the table of detectable differences with letters, as a terminal shows it."""
    uses = _describe_uses(asked, counts, has_keywords)
    width = max(len(text) for text in uses.values())
    heads = [f"{100 * share:.0f}%" for share in DIFFERING]
    lines = [" " * width + "".join(f"{head:>6}" for head in heads)]
    for n, differences in tabulate_power(sorted(uses), models).iterrows():
        cells = ["none" if pd.isna(points) else f"{points:.0f}" for points in differences]
        lines.append(f"{uses[n]:{width}}" + "".join(f"{cell:>6}" for cell in cells))
    return lines


def _describe_uses(
    asked: Mapping[str, int], counts: Mapping[str, int], has_keywords: bool
) -> dict[int, str]:
    """Describe each number of prompts: of which kind it is asked, or could be."""
    purposes: dict[int, list[str]] = {}
    for kind in asked:
        purposes.setdefault(asked[kind], []).append(f"{kind} as planned")
    for kind in asked:
        if counts[kind] > asked[kind]:
            which = "all with a keyword" if kind == "harmful" and has_keywords else "all there are"
            purposes.setdefault(counts[kind], []).append(f"{kind}: {which}")
    return {n: f"{n:,} prompts ({', '.join(texts)})" for n, texts in purposes.items()}
