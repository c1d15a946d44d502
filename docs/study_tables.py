"""What the study's published results come to, as markdown tables.

A difference of two models is always the later one minus the earlier one, in the order Base, SFT,
DPO, SFT+DPO.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from docs.benchmark_tables import ROOT, write_table
from posttrain import comparisons, conclusions
from posttrain.behaviour import HUMAN
from posttrain.files import read_json
from posttrain.metrics import (
    KINDS,
    bootstrap_means,
    models_of,
    pivot,
    pivot_passed,
    pivot_rewards,
)
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
            rows.append(
                [
                    record["measure"],
                    f"{record['second']} − {record['first']}",
                    comparisons.format_difference(record).replace(" points", ""),
                    f"{record['gained']}, {record['lost']}",
                    format_p(record["p"]),
                    format_p(record["p_holm"]),
                    f"**{decision}**" if decision == "significant" else decision,
                ]
            )
    columns = [
        "measure",
        "difference",
        "points [95%]",
        "gained, lost",
        "p",
        "p (Holm)",
        "decision",
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


@cache
def compare_without_running_on(published: Path) -> dict[tuple[str, Pair], Record]:
    """Compare each pair of models on the prompts where neither answer ran on.

    Args:
        published: the folder with classification.json and metrics.json.

    Returns:
        {(measure, (first, second)): fields of `comparisons.compare_rates` or `compare_rewards`,
        with p_holm, corrected over the pairs of the measure, and decision}.
    """
    bootstrap = read_json(published / "metrics.json", dict)["bootstrap"]
    answers = read_answers(published)
    answers["ran_on"] = answers["response"].str.contains(HUMAN, regex=False)
    compared: dict[tuple[str, Pair], Record] = {}
    for kind, rate in RATE_OF_KIND.items():
        ran_on = pivot(answers, kind, "ran_on").astype(bool)
        passed = pivot_passed(answers, kind)
        rewards = pivot_rewards(answers, kind)
        families: dict[str, dict[Pair, Record]] = {rate: {}, f"{kind}_reward": {}}
        for pair in combinations(models_of(answers), 2):
            kept = ~ran_on[pair[0]] & ~ran_on[pair[1]]
            families[rate][pair] = comparisons.compare_rates(passed[kept], *pair, level=None)
            both = rewards.loc[kept, list(pair)]
            means = bootstrap_means(both.to_numpy(), bootstrap["draws"], bootstrap["seed"])
            redrawn = pd.DataFrame(means, columns=list(pair))
            families[f"{kind}_reward"][pair] = comparisons.compare_rewards(
                both, redrawn, *pair, bootstrap["seed"], level=None
            )
        for measure, family in families.items():
            adjusted = comparisons.holm([comparison["p"] for comparison in family.values()])
            for (pair, comparison), p_holm in zip(family.items(), adjusted):
                record = {"measure": measure, **comparison, "p_holm": p_holm}
                record["decision"] = comparisons.decide(record, comparison["n"])
                compared[measure, pair] = record
    return compared


def write_without_running_on(published: Path) -> str:
    """Write the differences between models on the prompts where neither answer ran on."""
    rows = []
    for (measure, (first, second)), record in compare_without_running_on(published).items():
        rows.append(
            [
                measure.replace("_reward", " prompts: mean reward"),
                f"{second} − {first}",
                str(record["n"]),
                comparisons.format_difference(record).replace(" points", ""),
                format_p(record["p"]),
                format_p(record["p_holm"]),
                record["decision"],
            ]
        )
    columns = ["measure", "difference", "prompts", "size [95%]", "p", "p (Holm)", "decision"]
    return write_estimates(columns, rows)


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
    return write_list(
        [
            f"{unfinished} of the {len(prompts)} prompts end in text of the assistant, because at "
            "most the last paragraph of the reply was removed.",
            f"In {thanks} of the {len(helpful)} helpful prompts, the human's last message contains "
            f"no request, such as “{WITHOUT_REQUEST[0]}”, and only thanks, agrees or says goodbye.",
        ]
    )


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
