"""Say before a training which differences the evaluation's prompts will be able to detect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from posttrain.comparisons import FEWEST_PROMPTS
from posttrain.data import MEASURED, count_prompts, read_rules, require_prompts
from posttrain.generation import room_for_prompt
from posttrain.power import ALPHA, detectable_rate, level_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from posttrain.evaluation_settings import Evaluation

# Shares of prompts whose label differs between two models. They are not known before the
# evaluation; between the study's models they are 22% to 48% (tests/test_planning.py).
DIFFERING = (0.3, 0.4, 0.5)


def count_usable(
    settings: Evaluation, dataset: Path, base: Path, tokenizer: Tokenizer, strict: bool
) -> dict[str, int]:
    """Count the prompts of each kind from which the evaluation will draw.

    Args:
        settings: the settings of eval.ipynb.
        dataset: the dataset's folder.
        base: the folder of the base, which has positions for a limited number of tokens.
        tokenizer: the tokenizer of the base.
        strict: whether to refuse a number of prompts that is larger than the dataset.

    Returns:
        {kind: number of usable prompts}.

    Raises:
        ValueError: if there are too few prompts.
    """
    room = room_for_prompt(base, settings.max_new_tokens)
    counts = count_prompts(dataset, settings.protocol, tokenizer, room, read_rules(settings))
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
    level = level_of(count_pairs(models))
    rows = {}
    for n in numbers:
        rows[n] = {}
        for share in DIFFERING:
            # With so few prompts every decision is inconclusive.
            is_enough = n >= FEWEST_PROMPTS
            rows[n][share] = detectable_rate(share, n, level) if is_enough else None
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float)


def count_pairs(models: int) -> int:
    """Count the pairs of some models."""
    return models * (models - 1) // 2


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
    pairs = count_pairs(models)
    has_keywords = settings.harmful_prompts == "keywords"
    ending = (
        "The share is known only after the evaluation. Smaller differences are detected less often."
    )
    if has_keywords and settings.protocol == "default":
        ending += (
            '\nHARMFUL_PROMPTS = "all" also takes the harmful prompts of the dataset that have no '
            "keyword."
        )
    return "\n".join(
        [
            f"With these settings eval.ipynb asks {asked['harmful']:,} harmful and "
            f"{asked['helpful']:,} helpful prompts. The table shows",
            "the smallest true difference in HmR or HpR between two models, in points, that is",
            f"detected in 80% of cases by a test at the level {ALPHA} / {pairs}, where the "
            "correction for the",
            f"{pairs} pairs of {models} models begins. It depends on the share of prompts on which "
            "the labels of",
            "the two models differ:",
            "",
            *_draw_table(asked, counts, has_keywords, models),
            "",
            ending,
        ]
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
    for kind in MEASURED:
        purposes.setdefault(asked[kind], []).append(f"{kind} as planned")
    for kind in MEASURED:
        if counts[kind] > asked[kind]:
            which = "all with a keyword" if kind == "harmful" and has_keywords else "all there are"
            purposes.setdefault(counts[kind], []).append(f"{kind}: {which}")
    return {n: f"{n:,} prompts ({', '.join(texts)})" for n, texts in purposes.items()}
