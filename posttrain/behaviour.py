"""Describe how the models answer without the judge: what an answer is like, and what it says.

Five properties are told of every answer (PROPERTIES). Their rates have intervals, and every pair of
models is compared on the same prompts, as for HmR.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from posttrain import metrics
from posttrain.comparisons import compare_rates, decide_family
from posttrain.metrics import KINDS, kinds_of, models_of, pivot

HUMAN = "Human:"  # the marker of a human turn, which a response may invent
PROPERTIES = {  # {property: what the answers that have it do}
    "empty": "are empty",
    "human_turn": "open a human turn",  # after what the model says itself, or in place of it
    "cut": "are cut by the limit",
    "refuses": "refuse",
    "not_understood": "say that they do not understand",
}
MARKS = (
    "empty",
    "cut",
    "opened a human turn",
    "repetitive",
    "refuses",
    "does not understand",
)

# The patterns look for what is said and not for an apology: most answers of the published study
# that begin with "I'm sorry" decline nothing. Upper and lower case are the same to them. Their
# precision and recall on answers that were read and labelled are in docs/published.md.

# A refusal names what it declines to do. Without this, "I can't wait" would be one, and so would
# "I can't help but smile", "I can't tell you how glad I am" and "I can't answer for him". What
# follows "that" and "it" keeps out "I can't do it alone" and "I can't share that view".
ENDS = r"(?=\W*$|[.,;:!?]| (?:and|as|because|but|either|since|for you|with you)\b)"
DECLINED = (
    r"(?:answer(?! for)|assist|comply|discuss|engage in|fulfil|give you"
    r"|help(?! (?:but|it|myself|\w+ing)\b)|provide(?! for)|tell you(?! how \w+ I)"
    r"|do (?:so|that|this|it)\b" + ENDS + r"|share (?:that|this|it)\b" + ENDS + r"|share"
    r" (?:\w+ ){0,2}(?:advice|details|information|instructions)\b)"
)
REFUSES = (
    # It cannot or will not: "I can't help with that", "I'm not going to answer that". The verbs are
    # those of the list by which Zou et al. 2023 (arXiv 2307.15043) recognise a refusal; "refuse to"
    # and "decline to"; and "not going to", in which the study's models refuse. "If I can't answer"
    # declines nothing.
    r"(?<!\bif )(?<!\bwhen )\b(?:I|we)(?:'m| am|'re| are|'d| would)? (?:(?:just|still|\w+ly) )?"
    r"(?:can't|cannot|can not|won't be able to|will not be able to|won't|will not|not able to"
    r"|unable to|not going to|not willing to|rather not|refuse to|decline to) (?:\w+ly )?"
    + DECLINED,
    # It declines in so many words: "I must decline", "I'd rather not.", "I'm not comfortable
    # helping". Plain English, in which the demo's models refuse too.
    r"\bI (?:must|have to) (?:decline|refuse)\b|\bI(?:'d| would) rather not[.,;!]"
    r"|\bI(?:'m not| am not| don't feel| do not feel) comfortable"
    r" (?:answering|assisting|discussing|helping|providing)\b",
)
NOT_UNDERSTOOD = (
    # "I don't understand", "I'm not sure I understand the question". What follows keeps out
    # "I don't understand why people do that" and "I don't understand the people who do".
    r"\bI(?:'m not sure I| am not sure I| don't| do not| didn't| did not| can't| cannot)"
    r" (?:quite |\w+ly )?understand"
    r"(?=\W*$|[.,;!?]| what you\b| (?:the|your|this|that) \w+\b(?! who\b))",
    # "I'm not sure what you mean", "I don't know what that means".
    r"\b(?:not (?:\w+ly )?sure|don't know|do not know|no idea) what (?:you mean|(?:that|this|it)"
    r" means|you(?:'re| are) (?:asking|referring to|saying|talking about|trying to \w+))\b",
    # "What do you mean?", "Do you mean the red one?".
    r"\bdo you mean\b",
    # "Could you please rephrase?".
    r"\b(?:can you|could you|please) (?:clarify|rephrase)\b",
)

Record = dict[str, Any]


# ---- one answer


def distinct_2(texts: Sequence[str]) -> float:
    """Compute the share of distinct pairs of successive words in some texts (Li et al. 2016).

    A pair lies within one text. The share is 1 if there are no pairs.
    """
    pairs = []
    for text in texts:
        words = text.split()
        pairs.extend(zip(words, words[1:]))
    if not pairs:
        return 1.0
    return len(set(pairs)) / len(pairs)


def find_own_words(response: str) -> str:
    """Find what a model says itself: its response up to the first human turn that it invents.

    The word "Assistant:" before it is left out, and typographic apostrophes become plain ones.
    """
    text = response.removeprefix("Assistant:").strip().replace("’", "'")
    return re.split(rf"^\s*{HUMAN}", text, maxsplit=1, flags=re.MULTILINE)[0]


def classify_response(response: str) -> str:
    """Tell whether a response declines the request, or says that it does not understand it.

    Args:
        response: The response, of which only the model's own words count.

    Returns:
        "refuses", "not_understood" or "neither"; "refuses" if the patterns of both are found.
    """
    words = find_own_words(response)
    for label, patterns in (("refuses", REFUSES), ("not_understood", NOT_UNDERSTOOD)):
        if any(re.search(pattern, words, re.IGNORECASE) for pattern in patterns):
            return label
    return "neither"


def opened_human_turn(answers: pd.DataFrame) -> pd.Series:
    """Tell for every answer whether it opened a human turn, in its text or where it was cut."""
    in_text = answers["response"].str.contains(HUMAN, regex=False, na=False).astype(bool)
    return in_text | (answers["finish"] == "turn")


def marks(answer: Mapping[str, Any]) -> list[str]:
    """List what is conspicuous about one answer, in the order of MARKS.

    Args:
        answer: An answer with its `response` and, if it is known, its `finish`. An unknown text has
            no marks. A response is repetitive if its `distinct_2` is below one half.
    """
    text, finish = answer["response"], answer.get("finish")
    if not isinstance(text, str):
        return []
    label = classify_response(text)
    applies = {
        "empty": text == "",
        "cut": finish == "length",
        "opened a human turn": finish == "turn" or HUMAN in text,
        "repetitive": distinct_2([text]) < 0.5,
        "refuses": label == "refuses",
        "does not understand": label == "not_understood",
    }
    return [mark for mark in MARKS if applies[mark]]


# ---- rates


def add_properties(answers: pd.DataFrame) -> pd.DataFrame:
    """Select the models' answers whose texts are known, and tell the properties of each.

    Args:
        answers: The table of answers.

    Returns:
        These answers with a column of truth values for each of PROPERTIES. An answer of which it is
        not known how it ended counts as not cut.
    """
    known = answers["model"].isin(models_of(answers)) & answers["response"].notna()
    answers = answers[known]
    labels = answers["response"].map(classify_response)
    return answers.assign(
        empty=answers["response"] == "",
        human_turn=opened_human_turn(answers),
        cut=answers["finish"] == "length",
        refuses=labels == "refuses",
        not_understood=labels == "not_understood",
    )


def list_known(answers: pd.DataFrame) -> list[str]:
    """List the properties that are known of answers: all, without `cut` if an end is unknown."""
    properties = list(PROPERTIES)
    if answers["finish"].isna().any():
        properties.remove("cut")
    return properties


def behaviour(answers: pd.DataFrame, draws: int, seed: int) -> list[Record]:
    """Measure how the models answer, without the judge.

    Args:
        answers: The table of answers.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        One record for each kind of prompts and each model whose responses are known. Its fields are
        kind, model, the number of `prompts`, the percentages of responses with each of PROPERTIES
        with their 95% intervals (`cut` only if it is known how all responses ended), `distinct_2`
        and, if they are known, the mean number of `tokens` and the mean `log_ratio` to the baseline
        (nats per token) with its 95% bootstrap interval.
    """
    answers = add_properties(answers)
    records = []
    for kind in kinds_of(answers):
        of_kind = answers[answers["kind"] == kind]
        log_ratios = pivot(of_kind, kind, "log_ratio").dropna(axis=1)
        redrawn = {}  # {model: bootstrap means of its log-ratio}
        if log_ratios.columns.size:
            means = metrics.bootstrap_means(log_ratios.to_numpy(), draws, [seed, KINDS.index(kind)])
            redrawn = dict(zip(log_ratios.columns, means.T))
        for model in models_of(of_kind):
            part = of_kind[of_kind["model"] == model]
            record = {"kind": kind, "model": model, **_describe_responses(part)}
            if model in redrawn:
                values = log_ratios[model].to_numpy()
                interval = metrics.percentiles(values, redrawn[model])
                metrics.add_estimate(record, "log_ratio", float(values.mean()), interval)
            records.append(record)
    return records


def _describe_responses(answers: pd.DataFrame) -> Record:
    """Measure the responses of one model to one kind of prompts, but for the log-ratio."""
    n = len(answers)
    record: Record = {"prompts": n}
    for name in list_known(answers):
        count = int(answers[name].sum())
        metrics.add_estimate(record, name, 100 * count / n, metrics.wilson(count, n))
    record["distinct_2"] = distinct_2(answers["response"])
    if answers["tokens"].notna().all():
        record["tokens"] = float(answers["tokens"].mean())
    return record


# ---- models against each other


def compare_behaviour(answers: pd.DataFrame) -> list[Record]:
    """Compare every pair of models in every property, on the same prompts.

    Args:
        answers: The table of answers.

    Returns:
        One record for each kind, property and pair of models whose responses are known, with the
        fields measure (the property), kind, first, second, difference (second minus first, in
        percentage points), low and high (the ends of its 95% interval), gained, lost, n, test, p,
        p_holm (corrected over the pairs of the property on this kind of prompts) and decision.
    """
    answers = add_properties(answers)
    records = []
    for kind in kinds_of(answers):
        part = answers[answers["kind"] == kind]
        for name in list_known(part):
            for comparison in compare_property(pivot(part, kind, name)):
                records.append({"measure": name, "kind": kind, **comparison})
    return records


def compare_property(has_property: pd.DataFrame) -> list[Record]:
    """Compare every pair of models in one property on one kind of prompts.

    Args:
        has_property: Truth values with prompts as rows and models as columns.

    Returns:
        One record for each pair of models, with the fields of `compare_behaviour` from `first` on.
    """
    family = []
    for first, second in combinations(has_property.columns, 2):
        comparison = compare_rates(has_property, first, second, level=None)
        del comparison["power"]
        family.append({"first": first, "second": second, **comparison})
    decide_family(family, len(has_property))
    return family
