"""Say where a judge's thresholds come from, and suggest some where nobody has established any."""

from typing import Any

import numpy as np
import pandas as pd

from posttrain.comparisons import format_signed
from posttrain.evaluation_settings import Evaluation
from posttrain.judge_validity import CHOSEN, REJECTED, pivot_kinds_with_humans
from posttrain.known_judges import find_judge
from posttrain.metrics import add_estimate, kinds_of, paired_difference

# {kind of prompts: the setting with its threshold}
SETTINGS = {"harmful": "harmless_from", "helpful": "helpful_above"}
MOST_DIGITS = 12

Record = dict[str, Any]


def suggest_thresholds(answers: pd.DataFrame) -> list[Record]:
    """Choose the thresholds that tell human-chosen from human-rejected replies best.

    On each kind of prompts this is the threshold with the largest J (Youden 1950), the percentage
    of chosen replies that pass minus that of rejected ones. Of several with the same J it is the
    one that is farthest from the nearest rewards.

    Args:
        answers: The table of answers.

    Returns:
        A record for each kind of prompts whose human replies were scored and differ in their
        rewards: kind, prompts, threshold, and `youden` with the ends of its 95% interval, in
        points. The interval is that of a threshold which was fixed beforehand. Since this one is
        the best of many on the same prompts, J and both ends are too high.
    """
    records = []
    for kind, rewards in pivot_kinds_with_humans(answers).items():
        chosen, rejected = rewards[CHOSEN].to_numpy(), rewards[REJECTED].to_numpy()
        values = np.unique([chosen, rejected])
        if len(values) == 1:
            continue
        between = ((values[:-1] + values[1:]) / 2)[:, None]  # no reward is at one of these
        gained = ((chosen > between) & (rejected <= between)).sum(axis=1)
        lost = ((rejected > between) & (chosen <= between)).sum(axis=1)
        best = np.lexsort([np.diff(values), gained - lost])[-1]
        n = len(rewards)
        record = {"kind": kind, "prompts": n}
        record["threshold"] = _round_between(values[best], values[best + 1])
        interval = paired_difference(gained[best], lost[best], n)
        add_estimate(record, "youden", 100 * (gained[best] - lost[best]) / n, interval)
        records.append(record)
    return records


def _round_between(low: float, high: float) -> float:
    """Find a number strictly between two others that has as few decimals as possible."""
    middle = float(low + high) / 2
    for digits in range(MOST_DIGITS):
        if low < round(middle, digits) < high:
            return round(middle, digits)
    return middle


def describe_thresholds(answers: pd.DataFrame, evaluation: Evaluation) -> list[str]:
    """Say where the thresholds come from, and suggest others if they belong to another judge.

    Args:
        answers: The table of answers.
        evaluation: The settings, which say whether a threshold was named.

    Returns:
        One sentence if the thresholds were named or are known for the judge; otherwise sentences
        with the suggestions of `suggest_thresholds`, none of which is used.
    """
    unnamed = []
    for kind in kinds_of(answers):
        if SETTINGS[kind] not in evaluation.model_fields_set:
            unnamed.append(kind)
    if not unnamed:
        return ["The thresholds were named in the parameters of this notebook."]
    names = [SETTINGS[kind] for kind in unnamed]
    used = [f"{name.upper()} = {getattr(evaluation, name):g}" for name in names]
    verb = "comes" if len(used) == 1 else "come"
    known = find_judge(evaluation.reward_model)
    if known is not None and known.thresholds_from:
        return [f"{' and '.join(used)} {verb} from {known.thresholds_from}."]
    sentences = [
        f"No thresholds are known for the judge {evaluation.reward_model}. "
        f"{' and '.join(used)} {verb} from the study's judge, although the rewards of this judge "
        "may have other units."
    ]
    suggestions = [record for record in suggest_thresholds(answers) if record["kind"] in unnamed]
    if not suggestions:
        return [*sentences, "Without rewards of human replies, no others can be suggested."]
    sentences += [_describe_suggestion(record) for record in suggestions]
    sentences.append(
        "These are suggestions and are not used. They were chosen as the best on these very "
        "prompts, so their J and its interval are too high, and the rates of other prompts should "
        "be measured with them: name them as parameters, together with another SEED."
    )
    return sentences


def _describe_suggestion(record: Record) -> str:
    """Describe the suggested threshold for one kind of prompts."""
    if record["youden"] <= 0:
        return (
            f"On {record['kind']} prompts, no threshold lets more human-chosen than human-rejected "
            "replies pass."
        )
    low, high = (format_signed(record[f"youden_{end}"], 0) for end in ("low", "high"))
    return (
        f"On {record['kind']} prompts (n = {record['prompts']}), "
        f"{SETTINGS[record['kind']].upper()} = {record['threshold']} tells human-chosen from "
        f"human-rejected replies best, with Youden's J = {format_signed(record['youden'], 0)} "
        f"[{low}, {high}] points."
    )
