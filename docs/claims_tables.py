"""What the study's claims come to, as markdown tables.

A difference of two models is always the later one minus the earlier one, in the order Base, SFT,
DPO, SFT+DPO, whichever of them a claim puts first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.study_tables import RATES, write_estimates
from posttrain.claims import (
    Assessment,
    Evidence,
    assess_claims,
    read_claims,
    read_printed,
    turn_round,
)
from posttrain.comparisons import format_signed
from posttrain.conclusions import list_words
from posttrain.style import format_number

QUANTITIES = {
    "reward": "mean reward",
    "spread": "standard deviation of the reward",
    "median": "median reward",
}
SHORT = {"reward": "mean", "spread": "SD", "median": "median"}
IN_README = (  # the claims that README shows
    "The combined SFT+DPO model outperforms all others across all metrics",
    "SFT outperforms DPO",
    "supervised fine-tuning significantly improves both safety and helpfulness",
    "DPO contributes positively to safety",
)
COLUMNS = ("claim", "as printed", "as inference", "differences [95%]")

Record = Mapping[str, Any]


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


def write_counts(assessments: Sequence[Assessment]) -> str:
    """Write in two sentences how many claims are true as printed and how many are supported."""
    printed = Counter(assessment.as_printed for assessment in assessments)
    inferred = Counter(assessment.as_inference for assessment in assessments)
    as_printed = [_count(printed[value], value) for value in ("true", "true in part", "false")]
    as_inference = []
    for value in ("supported", "contradicted", "not supported"):
        as_inference.append(_count(inferred[value], value))
    return (
        f"As printed, {list_words(as_printed)} of the study's {len(assessments)} claims. As "
        f"inferences about other prompts, {list_words(as_inference)}."
    )


def _count(number: int, value: str) -> str:
    """Write how many claims have a value."""
    return f"{number or 'none'} {'is' if number < 2 else 'are'} {value}"


def write_claims_in_short(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write README's table of some claims.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    by_quotation = {assessment.claim.quotation: assessment for assessment in assessments}
    rows = [write_row(by_quotation[quotation], models) for quotation in IN_README]
    return write_estimates(COLUMNS, rows)


def write_claims(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write the table of all claims.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    rows = []
    for number, assessment in enumerate(assessments, start=1):
        section = assessment.claim.section
        rows.append([str(number), section, *write_row(assessment, models)])
    return write_estimates(["", "section", *COLUMNS], rows)


def write_row(assessment: Assessment, models: Sequence[str]) -> list[str]:
    """Write a claim, what is said of it, and its differences as the cells of a row.

    Args:
        assessment: of the claim.
        models: all models in their order.
    """
    as_printed = assessment.as_printed
    if as_printed == "true in part":
        count = sum(part.is_as_printed for part in assessment.evidence)
        as_printed += f" ({count} of {len(assessment.evidence)})"
    return [
        f"“{assessment.claim.quotation}”",
        as_printed,
        assessment.as_inference,
        write_differences(assessment.evidence, models),
    ]


def write_differences(evidence: Sequence[Evidence], models: Sequence[str]) -> str:
    """Write the differences that a claim is about, a line for each pair, significant ones bold.

    Args:
        evidence: on each of the claim's statements.
        models: all models in their order.
    """
    by_pair: dict[str, list[str]] = {}
    for part in evidence:
        shown = orient(part, models)
        text = f"{name_measure_in_short(shown.statement.measure)} {describe_difference(shown)}"
        if part.significant:
            text = f"**{text}**"
        pair = f"{shown.statement.higher} − {shown.statement.lower}"
        by_pair.setdefault(pair, []).append(text)
    lines = []
    for pair, texts in by_pair.items():
        lines.append(f"{pair}: {'; '.join(texts)}")
    return "<br>".join(lines)


def name_measure_in_short(measure: str) -> str:
    """Name a measure as a table does, such as "HmR", "mean (helpful)" or "SD ratio (harmful)"."""
    kind, _, quantity = measure.partition("_")
    if not quantity:
        return measure
    return f"{SHORT[quantity]}{' ratio' if quantity == 'spread' else ''} ({kind})"


def write_evidence(assessments: Sequence[Assessment], models: Sequence[str]) -> str:
    """Write for every claim a folded table of the differences that bear on it.

    Args:
        assessments: of all claims.
        models: all models in their order.
    """
    sections = []
    columns = [
        "measure", "difference", "printed", "computed [95%]", "claimed", "direction", "significant",
    ]  # fmt: skip
    for number, assessment in enumerate(assessments, start=1):
        rows = [write_evidence_row(part, models) for part in assessment.evidence]
        heading = f"{number}. “{assessment.claim.quotation}”"
        table = write_estimates(columns, rows)
        sections.append(f"<details>\n<summary>{heading}</summary>\n\n{table}\n\n</details>")
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
        return format_signed(value, 1 if evidence.statement.measure in RATES else 2)

    if evidence.low is None or evidence.high is None:
        return f"{as_text(evidence.difference)} on every prompt"
    low, high = as_text(evidence.low), as_text(evidence.high)
    return f"{as_text(evidence.difference)} [{low}, {high}]"
