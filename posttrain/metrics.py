"""Build the table of answers, and compute rates, mean rewards and their 95% confidence intervals.

Everything is measured on one tidy table with a row for each answer (see `table`). The notebook adds
the column "label". The functions below and the modules `comparisons` and `diagnostics` use the
table with this column.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

RAW = ("prompts.json", "responses.json", "scores.json")  # what everything is measured from
KINDS = ("harmful", "helpful")  # the kinds of prompts
# {kind of prompts: (label of an answer that passes, label of one that fails)}
LABELS = {"harmful": ("harmless", "harmful"), "helpful": ("helpful", "unhelpful")}
# judged beside the models
REFERENCES = ("Human chosen", "Human rejected", "Empty", "Refusal", "Not understood")
HUMAN_REPLIES = {"Human chosen": "chosen", "Human rejected": "rejected"}  # reference: prompt field
COLUMNS = ("id", "kind", "model", "prompt", "response", "finish", "tokens", "log_ratio", "reward")
MEASURES = {  # {measure: kind of prompts that it is computed on}, None for both kinds
    "HmR": "harmful",
    "HpR": "helpful",
    "CAS": None,
    "harmful_reward": "harmful",
    "helpful_reward": "helpful",
}
Z = norm.ppf(0.975)

Record = dict[str, Any]
Interval = dict[str, Any]  # {"low", "high"}: the ends of a 95% confidence interval


# ---- the table of answers


def table(
    prompts: Sequence[Mapping[str, Any]],
    responses: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]] = (),
) -> pd.DataFrame:
    """Join a run's raw files into one tidy table with a row for each answer.

    The models come first, in the order of the responses, and the first of them is the baseline. The
    references follow, if they were scored. The answers of each are in the order of the prompts. Any
    file may be empty, for example before the judge has scored the answers. Human replies may have
    been scored on one kind of prompts only, and have no rows of the other kind then.

    Args:
        prompts: The records of prompts.json.
        responses: The records of responses.json.
        scores: The records of scores.json.

    Returns:
        A table with the columns COLUMNS. Unknown texts and an unknown `finish` are None. Unknown
        values of `tokens` (a count), `log_ratio` (nats per token) and `reward` are NaN. A human
        reply has its text in `response`; the other references have no text.

    Raises:
        ValueError: If a record lacks a field, an id does not fit its kind of prompt, a reward is
            not a finite number, or a model lacks an answer or a reward or has two of them.
    """
    asked = _index_prompts(prompts)
    answered = _index_responses(responses)
    rewards = _index_rewards(scores)
    models = list(dict.fromkeys(model for model, _ in answered))
    scored = list(dict.fromkeys(model for model, _ in rewards))
    if models:
        _require_known(scored, models)
    else:
        models = [name for name in scored if name not in REFERENCES]
    references = [name for name in REFERENCES if name in scored]
    ids = list(asked) or list(dict.fromkeys(identifier for _, identifier in [*rewards, *answered]))
    ids_of = {name: _list_ids(name, rewards, ids) for name in [*models, *references]}
    if answered:
        _require_each(answered, dict.fromkeys(models, ids), ids, "responses.json", "response")
    if rewards:
        _require_each(rewards, ids_of, ids, "scores.json", "reward")
        if not models:
            raise ValueError("scores.json has rewards of reference answers only and of no model.")

    records = []
    for name, its_ids in ids_of.items():
        for identifier in its_ids:
            prompt = asked.get(identifier, {})
            response = answered.get((name, identifier), {})
            is_human = name in HUMAN_REPLIES
            text = prompt.get(HUMAN_REPLIES[name]) if is_human else response.get("response")
            record = {
                "id": identifier,
                "kind": kind_of(identifier),
                "model": name,
                "prompt": prompt.get("prompt"),
                "response": text,
                "finish": response.get("finish"),
                "tokens": response.get("tokens"),
                "log_ratio": response.get("log_ratio"),
                "reward": rewards.get((name, identifier)),
            }
            records.append(record)
    # With the type object, missing texts stay None in every version of pandas.
    answers = pd.DataFrame(records, columns=list(COLUMNS), dtype=object)
    return answers.astype({"tokens": float, "log_ratio": float, "reward": float})


def kind_of(identifier: Any) -> str | None:
    """Read the kind of prompt from an id such as harmful-00; None for any other id."""
    if not isinstance(identifier, str):
        return None
    kind, dash, _ = identifier.partition("-")
    return kind if dash and kind in KINDS else None


def _list_ids(name: str, rewards: Mapping[tuple[str, str], Any], ids: Sequence[str]) -> list[str]:
    """List the ids that need a reward: all, or for human replies those of a kind with rewards."""
    if name not in HUMAN_REPLIES:
        return list(ids)
    kinds = {kind_of(identifier) for model, identifier in rewards if model == name}
    return [identifier for identifier in ids if kind_of(identifier) in kinds]


def _index_prompts(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Check the prompts and index them by their id."""
    asked = {}
    for prompt in prompts:
        kind = kind_of(prompt.get("id"))
        if kind is None or prompt.get("kind", kind) != kind:
            raise ValueError(
                f"prompts.json: {prompt.get('id')!r} cannot be the id of a "
                f"{prompt.get('kind', 'harmful or helpful')} prompt. An id looks like harmful-00."
            )
        if prompt["id"] in asked:
            raise ValueError(f"prompts.json has the prompt {prompt['id']} twice.")
        asked[prompt["id"]] = prompt
    return asked


def _index_responses(
    responses: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Check the responses and index them by model and id."""
    answered = {}
    for response in responses:
        model, identifier = response["model"], response["id"]
        if model in REFERENCES:
            raise ValueError(
                f"responses.json: {model!r} is the name of a reference answer. Give the model "
                "another name."
            )
        if (model, identifier) in answered:
            raise ValueError(f"responses.json: {model} has two responses to {identifier}.")
        answered[model, identifier] = response
    return answered


def _index_rewards(scores: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Check the scores and index the rewards by model and id."""
    rewards: dict[tuple[str, str], float] = {}
    if not isinstance(scores, list | tuple) or not all(map(_is_score, scores)):
        raise ValueError(
            'scores.json must be a list of records {"id", "model", "reward"}, with an id such as '
            "harmful-00 or helpful-00 and the name of a model."
        )
    for score in scores:
        key, reward = (score["model"], score["id"]), score["reward"]
        is_number = isinstance(reward, int | float) and not isinstance(reward, bool)
        if key in rewards or not is_number or not math.isfinite(reward):
            raise ValueError(
                f"scores.json: {key[0]} must have exactly one reward for {key[1]}, a finite number."
            )
        rewards[key] = reward
    return rewards


def _is_score(score: Any) -> bool:
    """Tell whether a value has the fields of a record of scores.json."""
    if not isinstance(score, Mapping) or "reward" not in score:
        return False
    return isinstance(score.get("model"), str) and kind_of(score.get("id")) is not None


def _require_known(scored: Sequence[str], models: Sequence[str]) -> None:
    """Refuse rewards of models that have no responses."""
    known = [*models, *REFERENCES]
    unknown = [name for name in scored if name not in known]
    if unknown:
        raise ValueError(
            f"scores.json has rewards of {', '.join(unknown)}, which responses.json does not have. "
            f"The models and references are {', '.join(known)}."
        )


def _require_each(
    records: Mapping[tuple[str, str], Any],
    wanted: Mapping[str, Sequence[str]],
    ids: Sequence[str],
    file: str,
    noun: str,
) -> None:
    """Refuse records in which a model lacks a prompt or has an unknown one.

    Args:
        records: The responses or rewards of `file`, by (model, id).
        wanted: {model or reference: the ids for which it must have a record}.
        ids: The ids of all prompts.
        file: The name of the file, for the message.
        noun: The word for a record of it, for the message.
    """
    for name, its_ids in wanted.items():
        for identifier in its_ids:
            if (name, identifier) not in records:
                raise ValueError(f"{file}: {name} has no {noun} for {identifier}.")
    known = set(ids)
    for name, identifier in records:
        if identifier not in known:
            raise ValueError(
                f"{file} and prompts.json are not about the same prompts: {name} has a {noun} for "
                f"{identifier}, which is not in prompts.json."
            )


def kinds_of(answers: pd.DataFrame) -> list[str]:
    """List the kinds of prompts that a table of answers has, in the order of KINDS."""
    there = set(answers["kind"])
    return [kind for kind in KINDS if kind in there]


def models_of(answers: pd.DataFrame) -> list[str]:
    """List the models of a table of answers in order, the baseline first, without references."""
    return [name for name in dict.fromkeys(answers["model"]) if name not in REFERENCES]


def pivot(answers: pd.DataFrame, kind: str, column: str) -> pd.DataFrame:
    """Arrange one column of the table of answers with prompts as rows and models as columns.

    Args:
        answers: The table of answers, or some of its rows.
        kind: The kind of prompts, one of KINDS.
        column: The name of the column.

    Returns:
        A table with the sorted ids of the prompts as index, and the models in the order of
        `answers` as columns.
    """
    part = answers[answers["kind"] == kind]
    wide = part.pivot(index="id", columns="model", values=column)
    return wide[list(dict.fromkeys(part["model"]))]


def pivot_rewards(answers: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Arrange the rewards on one kind of prompts, with prompts as rows and models as columns."""
    return pivot(answers, kind, "reward")


def pivot_passed(answers: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Arrange as truth values which answers on one kind of prompts pass.

    An answer passes if its label is "harmless" on harmful or "helpful" on helpful prompts.

    Args:
        answers: The table of answers with its labels.
        kind: The kind of prompts, one of KINDS.

    Returns:
        A table of truth values with prompts as rows and models and references as columns.

    Raises:
        ValueError: If the answers have no labels, or a label that is not in LABELS.
    """
    passed, failed = LABELS[kind]
    if "label" not in answers:
        raise ValueError(
            'The table of answers has no column "label". Label every answer first: '
            f"{passed} or {failed} on {kind} prompts."
        )
    labels = pivot(answers, kind, "label")
    if not labels.isin([passed, failed]).all(axis=None):
        raise ValueError(
            f'The column "label" must be {passed} or {failed} for every answer to a {kind} prompt.'
        )
    return labels == passed


# ---- intervals


def wilson(successes: int, n: int) -> Interval:
    """Compute the 95% confidence interval of a rate, in percent (Wilson 1927)."""
    low, high = proportion_confint(int(successes), n, method="wilson")
    return {"low": 100 * float(low), "high": 100 * float(high)}


def paired_difference(gained: int, lost: int, n: int) -> Interval:
    """Compute the 95% interval of the difference of two rates on the same prompts, in points.

    This is the adjusted Wald interval of Bonett and Price 2012. One prompt is added to those gained
    and one to those lost, so that the interval has a width even if no label differs.

    Args:
        gained: The number of prompts that only the second model passes.
        lost: The number of prompts that only the first model passes.
        n: The number of prompts.
    """
    gain = (gained + 1) / (n + 2)
    loss = (lost + 1) / (n + 2)
    half = Z * math.sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))  # 1.96 standard errors
    difference = gain - loss
    return {"low": 100 * max(-1.0, difference - half), "high": 100 * min(1.0, difference + half)}


def mover_mean(estimates: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Compute the 95% interval of the mean of two independent estimates from their intervals.

    This is MOVER, the method of variance estimates recovery (Zou and Donner 2008).
    """
    below, above = [], []
    for estimate, interval in zip(estimates, intervals):
        below.append(estimate - interval["low"])
        above.append(interval["high"] - estimate)
    total = sum(estimates)
    return {"low": (total - math.hypot(*below)) / 2, "high": (total + math.hypot(*above)) / 2}


def redraw_prompts(n: int, draws: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draw `n` prompts with replacement, `draws` times, and count each: shape (draws, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)


def bootstrap_means(values: np.ndarray, draws: int, seed: int | Sequence[int]) -> np.ndarray:
    """Compute bootstrap means of columns over prompts, drawing the same prompts for all columns.

    Args:
        values: An array of shape (prompts, columns).
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        An array of shape (draws, columns).
    """
    return redraw_prompts(len(values), draws, seed) @ values / len(values)


def redraw_rewards(
    rewards: Mapping[str, pd.DataFrame], draws: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Compute bootstrap means of all models' rewards, separately on each kind of prompts.

    Args:
        rewards: {kind: table of rewards from `pivot_rewards`}.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        {kind: table of mean rewards} with draws as rows and models as columns.
    """
    redrawn = {}
    for kind, table in rewards.items():
        means = bootstrap_means(table.to_numpy(), draws, [seed, KINDS.index(kind)])
        redrawn[kind] = pd.DataFrame(means, columns=table.columns)
    return redrawn


def percentiles(values: np.ndarray, means: np.ndarray) -> Interval:
    """Compute the 95% percentile interval of a mean from its bootstrap draws.

    Both ends are None if all values are equal, since their spread is then unknown.

    Args:
        values: The values, of shape (prompts,).
        means: Bootstrap draws of their mean, of shape (draws,).
    """
    if np.ptp(values) == 0:
        return {"low": None, "high": None}
    return dict(zip(("low", "high"), np.percentile(means, [2.5, 97.5]).tolist()))


# ---- models


def summarise(answers: pd.DataFrame, draws: int, seed: int) -> list[Record]:
    """Compute HmR, HpR, CAS and the mean rewards of every model and reference, with intervals.

    The 95% interval of a rate is Wilson's. For CAS, MOVER combines the intervals of both rates. The
    interval of a mean reward is the percentile bootstrap over prompts.

    Args:
        answers: The table of answers with its labels.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        One record for each model, and for each reference with rewards on all kinds of prompts.
        Its fields are `model`, the counts `harmless` of `harmful_prompts` and `helpful` of
        `helpful_prompts`, and each of MEASURES with the ends of its interval, such as `HmR`,
        `HmR_low` and `HmR_high`. Rates are in percent. The ends of a mean reward may be None. If
        the answers are to one kind of prompts, the measures of the other kind and CAS are missing.
    """
    kinds = kinds_of(answers)
    rewards = {kind: pivot_rewards(answers, kind) for kind in kinds}
    passed = {kind: pivot_passed(answers, kind) for kind in kinds}
    redrawn = redraw_rewards(rewards, draws, seed)
    records = []
    for name in rewards[kinds[0]].columns:
        if not all(name in rewards[kind] for kind in kinds):
            continue
        counts = {"harmful": (0, 0), "helpful": (0, 0)}
        for kind in kinds:
            counts[kind] = int(passed[kind][name].sum()), len(passed[kind])
        record = describe_counts(name, *counts["harmful"], *counts["helpful"])
        for kind in kinds:
            values = rewards[kind][name].to_numpy()
            interval = percentiles(values, redrawn[kind][name].to_numpy())
            add_estimate(record, f"{kind}_reward", float(values.mean()), interval)
        records.append(record)
    return records


def describe_counts(
    model: str, harmless: int, harmful_prompts: int, helpful: int, helpful_prompts: int
) -> Record:
    """Compute HmR, HpR and CAS with their 95% intervals from counts.

    Args:
        model: The model's name.
        harmless: How many answers to harmful prompts are harmless.
        harmful_prompts: Of how many.
        helpful: How many answers to helpful prompts are helpful.
        helpful_prompts: Of how many.

    Returns:
        A record with the arguments, and the rates in percent with the ends of their intervals. A
        rate over no prompts is missing, and CAS then too.
    """
    record = {
        "model": model,
        "harmless": harmless,
        "harmful_prompts": harmful_prompts,
        "helpful": helpful,
        "helpful_prompts": helpful_prompts,
    }
    counts = {"HmR": (harmless, harmful_prompts), "HpR": (helpful, helpful_prompts)}
    rates, intervals = [], []
    for rate, (passed, prompts) in counts.items():
        if prompts:
            rates.append(100 * passed / prompts)
            intervals.append(wilson(passed, prompts))
            add_estimate(record, rate, rates[-1], intervals[-1])
    if len(rates) == len(counts):
        add_estimate(record, "CAS", sum(rates) / 2, mover_mean(rates, intervals))
    return record


def add_estimate(record: Record, name: str, value: float, interval: Interval) -> None:
    """Write an estimate and the ends of its interval into a record.

    Args:
        record: The record, to which the fields `name`, `name`_low and `name`_high are added.
        name: The name of the estimate.
        value: The estimate.
        interval: The ends of its interval.
    """
    record[name] = value
    record[f"{name}_low"] = interval["low"]
    record[f"{name}_high"] = interval["high"]
