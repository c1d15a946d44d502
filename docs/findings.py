"""What the study's answers show, in a few sentences for README and docs/published.md.

All numbers are computed. Where a sentence would not be true of other numbers, its function refuses
to write it.
"""

from collections.abc import Sequence
from pathlib import Path

from docs.behaviour_tables import (
    compare_labels,
    find_confused,
    read_apologies,
    read_what_is_said,
)
from docs.study_tables import (
    Pair,
    Record,
    compare_without_running_on,
    decide_around_study,
    name_range,
    write_list,
)
from posttrain.behaviour import find_own_words
from posttrain.comparisons import format_difference
from posttrain.conclusions import list_words
from posttrain.other_thresholds import STEPS


def write_conclusion(published: Path, metrics: Record) -> str:
    """Answer in three sentences what training brought, and what a harmless label means.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    apologies = read_apologies(published)
    says = apologies["by_hand"].value_counts()
    harmless = int((apologies["label"] == "harmless").sum())
    confused = says["not_understood"]
    check(confused > len(apologies) / 2, "Few apologies say that they do not understand")
    return (
        f"{write_answer(published, metrics)} A harmless label does not mean that a request was "
        f"declined: the judge calls {harmless} of the {len(apologies)} answers to harmful prompts "
        f"that begin with an apology harmless, but in {confused} of them the model says that it "
        f"does not understand, and only {says['refuses']} decline the request, "
        f"{count_repeated(published)} of these in words that stand in the prompt."
    )


def write_findings(published: Path, metrics: Record) -> str:
    """List each finding with its numbers.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    findings = [
        write_helpfulness(published, metrics),
        write_mean_rewards(published, metrics),
        write_running_on_in_short(metrics),
        write_harmlessness(metrics),
        write_overall(metrics),
        write_apologies_in_short(published, metrics),
    ]
    return write_list(findings)


def write_answer(published: Path, metrics: Record) -> str:
    """Answer whether the trained models are more helpful and safer, in three sentences.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    baseline = metrics["models"][0]["model"]
    best, second, third = rank_by_cas(metrics)[:3]
    check(not is_significant(metrics, "CAS", (third, best)), f"{best} is above {third} in CAS")
    check(not list_significant(metrics, "HmR"), "A pair of models differs in HmR")
    check(not is_significant(metrics, "CAS", (second, best)), f"{best} is above {second} in CAS")
    counts = count_thresholds(published, metrics)
    higher = [model for model, count in counts.items() if count > 0.9 * STEPS]
    others = [model for model, count in counts.items() if count < 0.5 * STEPS]
    check(len(higher) == 2 and len(others) == 1, "The models depend otherwise on the threshold")
    other = others[0]
    rewards = find_comparison(metrics, "helpful_reward", (baseline, other))
    for model in (*higher, other):
        is_above = is_significant(metrics, "helpful_reward", (baseline, model))
        check(is_above, f"{model} is not above {baseline} in mean reward")
    return (
        "**Are the trained models more helpful, and are they safer?** By the judge's rewards, "
        f"{list_words(higher)} are significantly more helpful than {baseline}, in mean reward and, "
        f"at nearly every threshold that was tried, in HpR. {other} is so in mean reward "
        f"({format_difference(rewards)}) and in HpR at the study's own threshold, but in HpR at "
        f"{counts[other]} of {STEPS} thresholds only. In harmlessness (HmR) no difference between "
        f"two models is detected. {best} has the highest combined score (CAS), but it is not "
        f"significantly higher than that of {second} or {third}."
    )


def write_helpfulness(published: Path, metrics: Record) -> str:
    """Say which models are more helpful than Base, and on what that depends.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    baseline = metrics["models"][0]["model"]
    counts = count_thresholds(published, metrics)
    shares = [f"{count} for {model}" for model, count in counts.items()]
    without = compare_without_running_on(published)
    still, no_longer = [], []
    for model in counts:
        record = without["helpful_reward", (baseline, model)]
        text = f"{model} ({format_difference(record)}, {record['n']} prompts)"
        (still if record["decision"] == "significant" else no_longer).append(text)
    check(len(still) == 2 and len(no_longer) == 1, "Others are above where no answer ran on")
    return (
        f"**HpR rises.** {list_words(list(counts))} are significantly above {baseline} in HpR. Of "
        f"{STEPS} thresholds that were tried {name_range(metrics)}, this is true at "
        f"{list_words(shares)}. On the prompts where neither model invents the human's next "
        f"message, {list_words(still)} are still significantly above {baseline} "
        f"in mean reward, but {no_longer[0]} is not."
    )


def count_thresholds(published: Path, metrics: Record) -> dict[str, int]:
    """Count the thresholds at which each model that is above Base in HpR is so significantly.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    baseline = metrics["models"][0]["model"]
    decided = decide_around_study(published)["helpful"]
    counts = {}
    for record in list_gains(metrics, "HpR"):
        model = record["second"]
        counts[model] = int((decided[baseline, model] == 1).sum())
    return counts


def write_mean_rewards(published: Path, metrics: Record) -> str:
    """Say which models differ in mean reward on helpful prompts but not in HpR.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    decided = decide_around_study(published)["helpful"]
    clauses, shares = [], []
    for record in list_significant(metrics, "helpful_reward"):
        first, second = record["first"], record["second"]
        if not is_significant(metrics, "HpR", (first, second)):
            side = "above" if record["difference"] > 0 else "below"
            size = format_difference(record)
            clauses.append(f"{second} is significantly {side} {first} ({size})")
            share = (decided[first, second] != 0).mean()
            shares.append(f"{100 * share:.0f}%")
    check(len(clauses) > 1, "Fewer than two pairs differ in mean reward alone")
    return (
        "**Mean rewards show more than rates.** In mean reward on helpful prompts, "
        f"{list_words(clauses)}. At the study's threshold these differences are not significant "
        "in HpR, which only counts how many rewards are above it; they are at "
        f"{list_words(shares)} of the other thresholds that were tried."
    )


def write_running_on_in_short(metrics: Record) -> str:
    """Say how much of the gain in reward is associated with inventing fewer human turns."""
    baseline = metrics["models"][0]["model"]
    ran_on = {}
    for record in metrics["behaviour"]:
        if record["kind"] == "helpful":
            ran_on[record["model"]] = f"{record['human_turn']:.0f}%"
    parts = []
    for record in metrics["gain_by_not_running_on"]:
        if record["kind"] == "helpful":
            check(record["by_share_low"] > 0, "A part of a gain may be zero")
            ends = f"[{record['by_share_low']:.2f}, {record['by_share_high']:.2f}]"
            part = f"{record['by_share']:.2f} {ends} of {record['gain']:.2f}"
            parts.append(f"{part} for {record['model']}")
    at_base = ran_on.pop(baseline)
    others = list_words([f"{model} in {share}" for model, share in ran_on.items()])
    return (
        "**Part of the gain goes together with inventing fewer human messages.** "
        f"{baseline} often invents the human's next message, after its answer or in place of one: "
        f"in {at_base} of its answers to helpful prompts ({others}). The study scored the invented "
        "text as well. Of the gain over "
        f"{baseline} in mean reward on helpful prompts, the part associated with inventing such "
        f"messages less often is {list_words(parts)}. This is an association and need not be an "
        "effect."
    )


def write_harmlessness(metrics: Record) -> str:
    """Say that no pair of models differs in HmR, and how large a difference may be missed."""
    check(not list_significant(metrics, "HmR"), "A pair of models differs in HmR")
    ends = []
    for record in metrics["comparisons"]:
        if record["measure"] == "HmR":
            ends += [abs(record["low"]), abs(record["high"])]
    prompts = metrics["models"][0]["harmful_prompts"]
    return (
        "**In HmR no difference is detected.** This is weak evidence that there is none: "
        f"with {prompts} harmful prompts, the confidence intervals leave room for differences "
        f"between two models of up to {max(ends):.0f} points."
    )


def write_overall(metrics: Record) -> str:
    """Say which model has the highest CAS, and from which models it differs significantly."""
    baseline = metrics["models"][0]["model"]
    best, second = rank_by_cas(metrics)[:2]
    above = [record["second"] for record in list_gains(metrics, "CAS")]
    difference = find_comparison(metrics, "CAS", (second, best))
    check(best in above, f"{best} is not above {baseline} in CAS")
    check(not is_significant(metrics, "CAS", (second, best)), f"{best} is above {second} in CAS")
    return (
        f"**{best} has the highest CAS.** {list_words(above)} are significantly above {baseline} "
        f"in CAS, but {best} is not significantly above {second} "
        f"({format_difference(difference)})."
    )


def write_apologies_in_short(published: Path, metrics: Record) -> str:
    """Say what the answers say that the judge calls harmless, and in what the models differ.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    apologies = read_apologies(published)
    says = apologies["by_hand"].value_counts()
    harmless = int((apologies["label"] == "harmless").sum())
    above: dict[str, list[str]] = {}
    for by_pattern, by_hand in zip(find_confused(metrics), compare_labels(published), strict=True):
        if by_pattern["decision"] == by_hand["decision"] == "significant":
            text = f"{_name_lower(by_hand)}'s ({_describe_size(by_hand)})"
            above.setdefault(_name_higher(by_hand), []).append(text)
    check(bool(above), "No difference in not understanding is significant")
    answers = read_what_is_said(published)
    shares, clauses = [], []
    for model, lower in above.items():
        of_model = answers[answers["model"] == model]
        labelled = of_model.loc[of_model["label"] == "harmless", "says"]
        confused = int((labelled == "not_understood").sum())
        shares.append(f"{confused} of {model}'s {len(labelled)}")
        said = " answers to harmful prompts say so" if not clauses else ""
        clauses.append(f"more of {model}'s{said} than of {' and '.join(lower)}")
    check(not list_refusing(metrics), "A pair of models differs in refusing")
    return (
        f"**A harmless label is not a refusal.** Of the {len(apologies)} answers to harmful "
        f"prompts that begin with an apology, {says['not_understood']} say that they do not "
        f"understand, {says['refuses']} decline the request ({count_repeated(published)} of them "
        f"repeat a refusal that stands in the prompt), and {says['neither']} do neither, but the "
        f"judge calls {harmless} of them harmless. Among all harmless answers, at least "
        f"{list_words(shares)} say that they do not understand. Significantly "
        f"{', and '.join(clauses)}."
    )


def count_repeated(published: Path) -> int:
    """Count the refusals of harmful requests whose first sentence stands in the prompt already.

    Args:
        published: the folder with the study's results.
    """
    answers = read_what_is_said(published)
    repeated = 0
    for answer in answers[answers["says"] == "refuses"].itertuples():
        first_sentence = find_own_words(answer.response).partition(".")[0]
        repeated += first_sentence in answer.prompt.replace("’", "'")
    return repeated


def list_refusing(metrics: Record) -> Sequence[Record]:
    """List the pairs of models that differ significantly in refusing harmful requests."""
    records = []
    for record in metrics["behaviour_comparisons"]:
        is_asked_for = (record["kind"], record["measure"]) == ("harmful", "refuses")
        if is_asked_for and record["decision"] == "significant":
            records.append(record)
    return records


def _describe_size(record: Record) -> str:
    """Write by how much the rate of the higher model is above that of the lower one."""
    size = {"measure": "rate", **record}
    if record["difference"] < 0:
        ends = -record["high"], -record["low"]
        size |= {"difference": -record["difference"], "low": ends[0], "high": ends[1]}
    return format_difference(size)


def _name_higher(record: Record) -> str:
    """Name the model of a comparison that has the higher rate."""
    return record["second"] if record["difference"] > 0 else record["first"]


def _name_lower(record: Record) -> str:
    """Name the model of a comparison that has the lower rate."""
    return record["first"] if record["difference"] > 0 else record["second"]


# ---- looking up


def check(is_so: bool, otherwise: str) -> None:
    """Refuse to write a sentence whose words are not true of the numbers.

    Args:
        is_so: whether they are true.
        otherwise: what is the case if they are not.

    Raises:
        ValueError: they are not true.
    """
    if not is_so:
        raise ValueError(f"{otherwise}: word this finding anew.")


def find_comparison(metrics: Record, measure: str, pair: Pair) -> Record:
    """Find the comparison of two models, the earlier one and the later one, in a measure."""
    for record in metrics["comparisons"]:
        if (record["measure"], record["first"], record["second"]) == (measure, *pair):
            return record
    raise ValueError(f"{measure}: no comparison of {pair[0]} and {pair[1]}.")


def is_significant(metrics: Record, measure: str, pair: Pair) -> bool:
    """Tell whether two models, the earlier one and the later one, differ in a measure."""
    return find_comparison(metrics, measure, pair)["decision"] == "significant"


def rank_by_cas(metrics: Record) -> list[str]:
    """List the models from the highest CAS to the lowest."""
    ranked = sorted(metrics["models"], key=lambda record: record["CAS"], reverse=True)
    return [record["model"] for record in ranked]


def list_significant(metrics: Record, measure: str) -> Sequence[Record]:
    """List the comparisons of a measure that are significant."""
    records = []
    for record in metrics["comparisons"]:
        if record["measure"] == measure and record["decision"] == "significant":
            records.append(record)
    return records


def list_gains(metrics: Record, measure: str) -> Sequence[Record]:
    """List the comparisons with the first model in which the other model is significantly above."""
    baseline = metrics["models"][0]["model"]
    records = []
    for record in list_significant(metrics, measure):
        if record["first"] == baseline and record["difference"] > 0:
            records.append(record)
    return records
