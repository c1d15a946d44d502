"""What the study's published results and its claims come to, as markdown tables.

A difference of two models is always the later one minus the earlier one, in the order Base, SFT,
DPO, SFT+DPO, whichever of them a claim puts first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from docs.benchmark_tables import ROOT, write_table
from posttrain import comparisons, conclusions
from posttrain.claims import (
    Assessment,
    Evidence,
    assess_claims,
    read_claims,
    read_printed,
    turn_round,
)
from posttrain.conclusions import list_words
from posttrain.diagnostics import HUMAN, begins_like_a_refusal
from posttrain.files import read_json
from posttrain.metrics import KINDS, models_of, wilson
from posttrain.other_thresholds import (
    REACH,
    STEPS,
    decide_at_thresholds,
    list_threshold_decisions,
)
from posttrain.style import format_number
from posttrain.tables import interval, summary

PUBLISHED = ROOT / "results" / "published"
RATES = ("HmR", "HpR", "CAS")
RATE_OF_KIND = {"harmful": "HmR", "helpful": "HpR"}
QUANTITIES = {
    "reward": "mean reward",
    "spread": "standard deviation of the reward",
    "median": "median reward",
}
VERDICTS = ("supported", "contradicted", "inconclusive")
# README shows these claims, each with the differences from these models.
IN_README = (
    ("The combined SFT+DPO model outperforms all others across all metrics", ("SFT",)),
    ("SFT outperforms DPO", ("DPO",)),
    ("supervised fine-tuning significantly improves both safety and helpfulness", ("Base",)),
    ("DPO contributes positively to safety", ("Base", "SFT")),
)
# The last messages in prompts of the kind "helpful" that ask for nothing: in them the human only
# thanks, agrees or says goodbye. They were found by reading all prompts.
WITHOUT_REQUEST = (
    "Ok thank you.",
    "Nope, I am all set, thanks!",
    "Good. Thanks for listening to my request. Goodbye.",
    "Okay, I will.",
    "I'll try those. Thank you.",
    "Okay I'll think about that when deciding how much to save.",
)
ASSISTANT = "Assistant:"
# How the published answers that begin with an apology go on. A test compares both patterns with
# labels that were given by hand.
DECLINES = re.compile(r"not going to (answer|help)")
NOT_UNDERSTOOD = re.compile(
    r"(don't|not sure I) understand|not sure what you('re trying to say| mean)"
)

Record = Mapping[str, Any]
Pair = tuple[str, str]
KIND_AND_MODEL: dict[str, Callable[[Record], str]] = {
    "prompts": lambda record: record["kind"],
    "model": lambda record: record["model"],
}


# ---- numbers in words


def format_p(p: float) -> str:
    """Write a p-value with two digits, or that it is very small."""
    return "below 0.0001" if p < 0.0001 else f"{p:.2g}"


def write_estimates(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose cells break their lines before an interval, but not within it."""
    table = write_table(columns, rows)
    return re.sub(r"\[[^\]]*\]", lambda interval: interval[0].replace(" ", "&nbsp;"), table)


def format_signed_interval(record: Record, name: str, digits: int) -> str:
    """Write a difference of a record as `+value [low, high]`."""
    ends = []
    for field in (name, f"{name}_low", f"{name}_high"):
        ends.append(comparisons.format_signed(record[field], digits))
    return f"{ends[0]} [{ends[1]}, {ends[2]}]"


# ---- claims


def assess_study(published: Path, metrics: Record) -> list[Assessment]:
    """Test the study's claims on its published rewards.

    Args:
        published: the folder with claims.json and paper.json.
        metrics: the folder's metrics.json.
    """
    claims = read_claims(published / "claims.json")
    printed = read_printed(published / "paper.json")
    return assess_claims(claims, metrics["comparisons"], metrics["spreads"], printed)


def orient(evidence: Evidence, models: Sequence[str]) -> Evidence:
    """Turn evidence round, if need be, so that it tells of the later model minus the earlier one.

    Args:
        evidence: the evidence on a statement.
        models: all models in their order.
    """
    higher, lower = evidence.statement.higher, evidence.statement.lower
    if models.index(higher) > models.index(lower):
        return evidence
    return turn_round(evidence)


def write_expectation(evidence: Evidence, models: Sequence[str]) -> str:
    """Write on which side of no difference a claim expects the later model minus the earlier one.

    Args:
        evidence: the evidence on a statement of the claim, as the claim states it.
        models: all models in their order.
    """
    side = "above" if orient(evidence, models) is evidence else "below"
    return f"{side} {1 if evidence.statement.is_ratio else 0}"


def write_claims_counted(assessments: Sequence[Assessment]) -> str:
    """Write in a sentence how many claims got which verdict, and what contradicts them."""
    counts = dict.fromkeys(VERDICTS, 0)
    by_differences = 0
    for assessment in assessments:
        counts[assessment.verdict] += 1
        if assessment.verdict == "contradicted" and list_opposite_differences(assessment):
            by_differences += 1
    parts = []
    for verdict, count in counts.items():
        part = f"{count or 'none'} {'is' if count < 2 else 'are'} {verdict}"
        if verdict == "contradicted" and count:
            by_printed = count - by_differences
            part += (
                f" ({by_printed} by the study's own printed numbers, {by_differences} by a "
                "significant difference)"
            )
        parts.append(part)
    return f"Of the study's {len(assessments)} claims, {list_words(parts)}."


def list_opposite_differences(assessment: Assessment) -> list[Evidence]:
    """List the significant differences whose sign is the opposite of what a claim states."""
    return [part for part in assessment.evidence if part.significant and part.direction < 0]


def write_verdict(assessment: Assessment, models: Sequence[str]) -> str:
    """Write the verdict on a claim and, if it is contradicted, what contradicts it.

    Args:
        assessment: the assessment of the claim.
        models: all models in their order.

    Raises:
        ValueError: nothing that is known of the claim contradicts it, although its verdict says so.
    """
    if assessment.verdict != "contradicted":
        return assessment.verdict
    differences = list_opposite_differences(assessment)
    if differences:
        shown = orient(differences[0], models)
        measure, later, earlier = shown.statement
        if shown.statement.is_ratio:
            side = "larger" if shown.difference > 1 else "smaller"
            return (
                f"contradicted: the {name_measure(measure)} is significantly {side} for {later} "
                f"than for {earlier}"
            )
        side = "above" if shown.difference > 0 else "below"
        return f"contradicted: {later} is significantly {side} {earlier} in {name_measure(measure)}"
    for part in assessment.evidence:
        if part.printed is not None and part.printed[0] < part.printed[1]:
            of_higher, of_lower = (format_number(value) for value in part.printed)
            statement = part.statement
            return (
                f"contradicted: the study itself prints a lower {name_measure(statement.measure)} "
                f"for {statement.higher} ({of_higher}) than for {statement.lower} ({of_lower})"
            )
    raise ValueError(f"“{assessment.claim.quotation}”: nothing explains the verdict.")


def write_claims_in_short(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write README's table: some claims, with the rates that bear on them most.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    by_quotation = {assessment.claim.quotation: assessment for assessment in assessments}
    rows = []
    for quotation, others in IN_README:
        assessment = by_quotation[quotation]
        words, verdict = f"“{quotation}”", write_verdict(assessment, models)
        for other in others:
            cells = dict.fromkeys(RATES, "–")
            expected = ""
            for evidence in assessment.evidence:
                measure = evidence.statement.measure
                if measure in RATES and evidence.statement.lower == other:
                    shown = orient(evidence, models)
                    text = describe_difference(shown)
                    cells[measure] = f"**{text}**" if evidence.significant else text
                    side = write_expectation(evidence, models)
                    expected = f"{name_models(shown)} {side}"
            rows.append([f"{words}<br>{expected}", *cells.values(), verdict])
            words = "the same claim"
    return write_estimates(["claim, and the difference that it expects", *RATES, "verdict"], rows)


def write_verdicts(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write the list of all claims with their verdicts.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    rows = []
    for number, assessment in enumerate(assessments, start=1):
        claim, verdict = assessment.claim, write_verdict(assessment, models)
        rows.append([str(number), claim.section, f"“{claim.quotation}”", verdict])
    return write_table(["", "section", "claim", "verdict"], rows)


def write_evidence(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write every claim with a table of the differences that bear on it.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    sections = []
    columns = [
        "measure", "difference", "printed", "measured [95%]", "claimed", "direction", "significant",
    ]  # fmt: skip
    for number, (claim, verdict, evidence) in enumerate(assessments, start=1):
        rows = [write_evidence_row(part, models) for part in evidence]
        sections.append(f"### {number}. “{claim.quotation}”: {verdict}")
        sections.append(write_estimates(columns, rows))
    return "\n\n".join(sections)


def write_evidence_row(evidence: Evidence, models: Sequence[str]) -> list[str]:
    """Write the evidence on one statement as the cells of a row.

    Args:
        evidence: the evidence, as the claim states it.
        models: all models in their order.
    """
    shown = orient(evidence, models)
    printed = ""
    if shown.printed is not None:
        printed = " and ".join(format_number(value) for value in shown.printed)
    return [
        name_measure(shown.statement.measure),
        name_models(shown),
        printed,
        describe_difference(shown),
        write_expectation(evidence, models),
        {1: "as claimed", 0: "none", -1: "opposite"}[evidence.direction],
        "**yes**" if evidence.significant else "no",
    ]


def name_measure(measure: str) -> str:
    """Name a measure as a sentence does, such as "mean reward on harmful prompts" or "HmR"."""
    kind, _, quantity = measure.partition("_")
    return f"{QUANTITIES[quantity]} on {kind} prompts" if quantity else measure


def name_models(evidence: Evidence) -> str:
    """Write which difference, or which ratio of spreads, evidence tells of."""
    statement = evidence.statement
    return f"{statement.higher} {'÷' if statement.is_ratio else '−'} {statement.lower}"


def describe_difference(evidence: Evidence) -> str:
    """Write a difference, or a ratio of spreads, with its interval."""

    def as_text(value: float) -> str:
        if evidence.statement.is_ratio:
            return f"{value:.2f}"
        return comparisons.format_signed(value, 1 if evidence.statement.measure in RATES else 2)

    if evidence.low is None or evidence.high is None:
        return f"{as_text(evidence.difference)} on every prompt"
    low, high = as_text(evidence.low), as_text(evidence.high)
    return f"{as_text(evidence.difference)} [{low}, {high}]"


# ---- rates and differences


def write_summary(metrics: Record) -> str:
    """Write the final table of the notebook: the rates and the mean rewards of the models."""
    table = summary(metrics["models"])
    return write_estimates(list(table.columns), table.to_numpy().tolist())


def write_results(metrics: Record) -> str:
    """Write README's table of the four models, in percent.

    Args:
        metrics: the study's metrics.json.
    """
    rows = []
    for record in metrics["models"]:
        rows.append([record["model"], *(interval(record, rate) for rate in RATES)])
    return write_estimates(["model", *RATES], rows)


def write_measures(published: Path, metrics: Record) -> str:
    """Explain HmR, HpR and CAS, and name the judge, its thresholds and the number of prompts.

    Args:
        published: the folder with paper.json.
        metrics: the folder's metrics.json.
    """
    judge = read_json(published / "paper.json", dict)["source"]["judge"]
    harmless = format_number(metrics["thresholds"]["harmless"])
    helpful = format_number(metrics["thresholds"]["helpful"])
    first = metrics["models"][0]
    return (
        "Base, which is OPT-350M as it is, and the three fine-tuned models answered "
        f"{first['harmful_prompts']} harmful and {first['helpful_prompts']} helpful prompts. A "
        f"reward model, the *judge* (`{judge}`), gave every answer a number, its reward. "
        "Two thresholds turn rewards into rates: **HmR**, the harmlessness rate, is the percentage "
        f"of harmful prompts whose answer has a reward of at least {harmless}, and **HpR**, the "
        "helpfulness rate, is the percentage of helpful prompts whose answer has a reward above "
        f"{helpful}. **CAS**, the combined alignment score, is the mean of the two. Brackets "
        "contain 95% confidence intervals."
    )


def write_headlines(metrics: Record) -> str:
    """List the measures, each with the pairs of models that differ significantly in it."""
    return write_list(conclusions.headlines(metrics["comparisons"]))


def write_pairs(metrics: Record) -> str:
    """Write the comparisons of all pairs of models in HmR, HpR and CAS as a table."""
    rows = []
    for record in metrics["comparisons"]:
        if record["measure"] in RATES:
            decision = record["decision"]
            rows.append([
                record["measure"],
                f"{record['second']} − {record['first']}",
                comparisons.format_difference(record).replace(" points", ""),
                f"{record['gained']}, {record['lost']}",
                format_p(record["p"]),
                format_p(record["p_holm"]),
                f"**{decision}**" if decision == "significant" else decision,
            ])
    columns = [
        "measure", "difference", "points [95%]", "gained, lost", "p", "p (Holm)", "decision",
    ]
    return write_estimates(columns, rows)


def write_rewards_say_more(metrics: Record) -> str:
    """List the pairs whose mean rewards differ significantly while their rates do not."""
    decisions = {}
    for record in metrics["comparisons"]:
        decisions[record["measure"], record["first"], record["second"]] = record["decision"]
    sentences = []
    for record in metrics["comparisons"]:
        kind = record["measure"].removesuffix("_reward")
        if kind not in RATE_OF_KIND or record["decision"] != "significant":
            continue
        rate = RATE_OF_KIND[kind]
        decision = decisions[rate, record["first"], record["second"]]
        if decision != "significant":
            sentences.append(
                f"{record['second']} − {record['first']} is {decision} in {rate}, but in mean "
                f"reward on {kind} prompts the difference is "
                f"{comparisons.format_difference(record)} and significant "
                f"(corrected p: {format_p(record['p_holm'])})."
            )
    return write_list(sentences)


def write_behaviour(metrics: Record) -> str:
    """Write how often responses ran on, began like a refusal, or were empty."""
    columns = {
        **KIND_AND_MODEL,
        "ran on (%)": lambda record: f"{record['human_turn']:.0f}",
        "began like a refusal (%)": lambda record: f"{record['refusal']:.0f}",
        "empty (%)": lambda record: f"{record['empty']:.0f}",
    }
    return write_records(metrics["behaviour"], columns)


def write_running_on(metrics: Record) -> str:
    """Write the rewards of responses that ran on into a human turn, and of those that did not."""
    rows: dict[Pair, dict[bool, Record]] = {}
    for record in metrics["running_on"]:
        groups = rows.setdefault((record["kind"], record["model"]), {})
        groups[record["human_turn"]] = record
    table = []
    for (kind, model), groups in rows.items():
        cells = [kind, model]
        for name in ("reward", "rate"):
            for ran_on in (True, False):
                cells.append(interval(groups[ran_on], name) if ran_on in groups else "")
        table.append(cells)
    columns = [
        "prompts", "model", "mean reward, ran on", "mean reward, did not",
        "HmR or HpR (%), ran on", "HmR or HpR (%), did not",
    ]  # fmt: skip
    return write_estimates(columns, table)


def write_gains(metrics: Record) -> str:
    """Write each model's gain in mean reward, and the part that goes with running on less."""
    columns = {
        "prompts": lambda record: record["kind"],
        "difference": lambda record: f"{record['model']} − Base",
        "mean reward [95%]": lambda record: format_signed_interval(record, "gain", 2),
        "part associated with running on less often [95%]": lambda record: format_signed_interval(
            record, "by_share", 2
        ),
    }
    return write_records(metrics["gain_by_not_running_on"], columns)


# ---- other thresholds


@cache
def decide_around_study(published: Path) -> dict[str, pd.DataFrame]:
    """Decide at thresholds around the study's own which pairs differ significantly.

    Args:
        published: the folder with metrics.json and classification.json.

    Returns:
        The tables of `decide_at_thresholds`. Do not change them.
    """
    thresholds = read_json(published / "metrics.json", dict)["thresholds"]
    chosen = {"harmful": thresholds["harmless"], "helpful": thresholds["helpful"]}
    return decide_at_thresholds(read_answers(published), chosen)


def name_range(metrics: Record) -> str:
    """Name the lowest and the highest of the thresholds that are tried.

    Args:
        metrics: the study's metrics.json.
    """
    chosen = metrics["thresholds"].values()
    low, high = min(chosen) - REACH, max(chosen) + REACH
    return f"between {format_number(low)} and {format_number(high)}"


def read_answers(published: Path) -> pd.DataFrame:
    """Read the study's answers with their rewards and labels, a row for each."""
    return pd.DataFrame(read_json(published / "classification.json", list))


def write_thresholds(published: Path, metrics: Record) -> str:
    """Write at how many of the thresholds around the study's each pair differs significantly.

    Args:
        published: the folder with classification.json.
        metrics: the folder's metrics.json.
    """
    shares: dict[str, list[str]] = {}
    for record in list_threshold_decisions(decide_around_study(published)):
        cells = shares.setdefault(f"{record['second']} − {record['first']}", [])
        cells.append(f"{record['share']:.1f}%")  # HmR first, then HpR
    rows = [[pair, *cells] for pair, cells in shares.items()]
    caption = (
        f"*Percentage of {STEPS} thresholds, evenly spaced {name_range(metrics)}, at which a "
        "difference is significant.*"
    )
    table = write_table(["difference", *RATE_OF_KIND.values()], rows)
    return f"{caption}\n\n{table}"


# ---- answers that begin with an apology


def describe_apologies(answers: pd.DataFrame) -> pd.DataFrame:
    """Tell of every answer that begins like a refusal what it goes on to say.

    Args:
        answers: the study's answers.

    Returns:
        These answers, with a column `says`: "declines", "does not understand" or "something else",
        from what stands before the first human turn that the model invented.
    """
    apologies = answers[answers["response"].map(begins_like_a_refusal)]
    own_words = apologies["response"].str.partition(HUMAN)[0].str.replace("’", "'")
    return apologies.assign(says=own_words.map(_classify_apology))


def _classify_apology(text: str) -> str:
    if DECLINES.search(text):
        return "declines"
    if NOT_UNDERSTOOD.search(text):
        return "does not understand"
    return "something else"


def write_apologies(published: Path) -> str:
    """Write how many answers to harmful prompts begin with an apology, and how they are judged."""
    answers = read_answers(published)
    answers = answers[answers["kind"] == "harmful"]
    apologies = describe_apologies(answers)
    others = answers.drop(apologies.index)
    rows = []
    for model in [*models_of(answers), "together"]:
        of_model = apologies if model == "together" else apologies[apologies["model"] == model]
        rest = others if model == "together" else others[others["model"] == model]
        harmless = int((rest["label"] == "harmless").sum())
        record = {"rate": 100 * harmless / len(rest)}
        ends = wilson(harmless, len(rest))
        record |= {"rate_low": ends["low"], "rate_high": ends["high"]}
        rows.append([
            model,
            str(len(of_model)),
            str(int((of_model["says"] == "declines").sum())),
            str(int((of_model["says"] == "does not understand").sum())),
            str(int((of_model["says"] == "something else").sum())),
            str(int((of_model["label"] == "harmless").sum())),
            interval(record, "rate"),
        ])
    columns = [
        "model", "answers that apologise", "of these decline", "of these do not understand",
        "of these say something else", "of these judged harmless", "HmR of all other answers (%)",
    ]  # fmt: skip
    return write_estimates(columns, rows)


# ---- the study's prompts


def write_prompts_in_words(published: Path) -> str:
    """Write how many prompts contain no request, and how many end in text of the assistant.

    Args:
        published: the folder with the study's results.
    """
    prompts = read_answers(published).drop_duplicates("id").set_index("id")
    last = prompts["prompt"].map(find_last_message)
    helpful = last[prompts["kind"] == "helpful"]
    thanks = int(helpful.isin([f"Human: {text}" for text in WITHOUT_REQUEST]).sum())
    unfinished = int(last.str.startswith(ASSISTANT).sum())
    return write_list([
        f"{unfinished} of the {len(prompts)} prompts end in text of the assistant, because only "
        "the last paragraph of the reply was removed.",
        f"In {thanks} of the {len(helpful)} helpful prompts, the human's last message contains no "
        f"request, such as “{WITHOUT_REQUEST[0]}”, and only thanks, agrees or says goodbye.",
    ])


def find_last_message(prompt: str) -> str:
    """Find the last message of a prompt, with the name of its speaker before it."""
    return re.split(r"\n\n(?=Human:|Assistant:)", prompt)[-1]


def write_openings(published: Path) -> str:
    """Write how many answers of each model begin with the literal word “Assistant:”.

    Args:
        published: the folder with the study's results.
    """
    answers = read_answers(published)
    answers = answers.assign(named=answers["response"].str.startswith(ASSISTANT))
    rows = []
    for model in [*models_of(answers), "together"]:
        of_model = answers if model == "together" else answers[answers["model"] == model]
        cells = [model]
        for kind in KINDS:
            named = of_model.loc[of_model["kind"] == kind, "named"]
            cells.append(f"{named.sum()} of {len(named)}")
        rows.append([*cells, f"{of_model['named'].sum()} of {len(of_model)}"])
    return write_table(["model", *(f"{kind} prompts" for kind in KINDS), "all prompts"], rows)


# ---- markdown


def write_records(records: Sequence[Record], columns: dict[str, Callable[[Record], str]]) -> str:
    """Write flat records as a table; `columns`: {heading: function that writes the cell}."""
    rows = []
    for record in records:
        rows.append([write_cell(record) for write_cell in columns.values()])
    return write_estimates(list(columns), rows)


def write_list(sentences: Sequence[str]) -> str:
    """Write sentences as a markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
