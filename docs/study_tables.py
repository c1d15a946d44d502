"""The tables of the study's published results and of its claims, as markdown."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.benchmark_tables import ROOT, write_table
from posttrain import comparisons
from posttrain.claims import Assessment, Evidence, assess_claims, read_claims, read_printed
from posttrain.tables import interval

PUBLISHED = ROOT / "results" / "published"
RATES = ("HmR", "HpR", "CAS")
MEANING = {"reward": "mean reward", "spread": "standard deviation", "median": "median reward"}
# README shows these claims, with what bears on them in rates and against these models.
IN_README = (
    ("The combined SFT+DPO model outperforms all others across all metrics", ("SFT",)),
    ("SFT outperforms DPO", ("DPO",)),
    ("supervised fine-tuning significantly improves both safety and helpfulness", ("Base",)),
    ("DPO contributes positively to safety", ("Base", "SFT")),
)

Record = Mapping[str, Any]
KIND_AND_MODEL: dict[str, Callable[[Record], str]] = {
    "prompts": lambda record: record["kind"],
    "model": lambda record: record["model"],
}


# ---- claims


def assess_study(published: Path, metrics: Record) -> list[Assessment]:
    """Hold the study's claims against its published rewards.

    Args:
        published: the folder with claims.json and paper.json.
        metrics: the folder's metrics.json.
    """
    claims = read_claims(published / "claims.json")
    printed = read_printed(published / "paper.json")
    return assess_claims(claims, metrics["comparisons"], metrics["spreads"], printed)


def write_claims_in_short(assessments: Sequence[Assessment]) -> str:
    """Write README's table: some claims, with the rates that bear on them most."""
    by_quotation = {assessment.claim.quotation: assessment for assessment in assessments}
    rows = []
    for quotation, others in IN_README:
        assessment = by_quotation[quotation]
        shown = []
        for evidence in assessment.evidence:
            measure, higher, lower = evidence.statement
            if measure in RATES and lower in others:
                text = f"{measure} {higher} − {lower} {describe_difference(evidence)}"
                shown.append(f"**{text}**" if evidence.significant else text)
        rows.append([f"“{quotation}”", "; ".join(shown), assessment.verdict])
    heading = "its rewards say, in points [95% interval]; bold: significant"
    return write_table(["the study says", heading, "verdict"], rows)


def write_verdicts(assessments: Sequence[Assessment]) -> str:
    """Write the list of all claims with their verdicts."""
    rows = []
    for number, (claim, verdict, _) in enumerate(assessments, start=1):
        rows.append([str(number), claim.section, f"“{claim.quotation}”", verdict])
    return write_table(["", "section", "claim", "verdict"], rows)


def write_evidence(assessments: Sequence[Assessment]) -> str:
    """Write every claim with a table of the differences that bear on it."""
    sections = []
    for number, (claim, verdict, evidence) in enumerate(assessments, start=1):
        rows = [write_evidence_row(part) for part in evidence]
        columns = ["measure", "models", "printed", "difference [95%]", "direction", "significant"]
        sections.append(f"### {number}. “{claim.quotation}”: {verdict}")
        sections.append(write_table(columns, rows))
    return "\n\n".join(sections)


def write_evidence_row(evidence: Evidence) -> list[str]:
    """Write the evidence on one statement as the cells of a row."""
    statement = evidence.statement
    printed = ""
    if evidence.printed is not None:
        printed = " and ".join(f"{value:g}" for value in evidence.printed).replace("-", "−")
    kind, _, quantity = statement.measure.partition("_")
    measure = kind
    if quantity:
        measure = f"{MEANING[quantity]}, {kind} prompts"
    sign = "÷" if statement.is_ratio else "−"
    return [
        measure,
        f"{statement.higher} {sign} {statement.lower}",
        printed,
        describe_difference(evidence),
        {1: "as claimed", 0: "none", -1: "opposite"}[evidence.direction],
        "**yes**" if evidence.significant else "no",
    ]


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


# ---- the published record


def copy_summary(published: Path) -> str:
    """Copy the final table out of summary.md."""
    lines = (published / "summary.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def write_headlines(metrics: Record) -> str:
    """List the measures, each with the pairs of models that differ significantly in it."""
    return write_list(comparisons.headlines(metrics["comparisons"]))


def write_pairs(metrics: Record) -> str:
    """List the pairs of models in HmR, HpR and CAS, each with a sentence on its difference."""
    return write_list(comparisons.verdicts(metrics["comparisons"]))


def write_behaviour(metrics: Record) -> str:
    """Write how often responses ran on, began like a refusal, or were empty."""
    columns = {
        **KIND_AND_MODEL,
        "ran on (%)": lambda record: f"{record['human_turn']:.0f}",
        "refusal (%)": lambda record: f"{record['refusal']:.0f}",
        "empty (%)": lambda record: f"{record['empty']:.0f}",
    }
    return write_records(metrics["behaviour"], columns)


def write_running_on(metrics: Record) -> str:
    """Write the rewards of responses that ran on into a human turn, and of those that did not."""
    columns = {
        **KIND_AND_MODEL,
        "ran on": lambda record: "yes" if record["human_turn"] else "no",
        "responses": lambda record: str(record["prompts"]),
        "mean reward": lambda record: interval(record, "reward"),
        "HmR or HpR (%)": lambda record: interval(record, "rate"),
    }
    return write_records(metrics["running_on"], columns)


def write_gains(metrics: Record) -> str:
    """Write each model's gain in mean reward, and the part that goes with running on less."""
    columns = {
        **KIND_AND_MODEL,
        "gain over Base": lambda record: interval(record, "gain"),
        "by running on less": lambda record: interval(record, "by_share"),
    }
    return write_records(metrics["gain_by_not_running_on"], columns)


def write_records(records: Sequence[Record], columns: dict[str, Callable[[Record], str]]) -> str:
    """Write flat records as a table; `columns`: {heading: function that writes the cell}."""
    rows = []
    for record in records:
        rows.append([write_cell(record) for write_cell in columns.values()])
    return write_table(list(columns), rows)


def write_list(sentences: Sequence[str]) -> str:
    """Write sentences as a markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
