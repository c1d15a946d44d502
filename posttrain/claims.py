"""Claims about models, such as those of a paper, held against the comparisons of a run.

A claim is data: its words, and the statements that these words make. A statement says that one
model lies above another in one measure. What a claim is worth is read off the comparisons of the
same models, which `comparisons.compare` and `diagnostics.spreads` compute from their answers.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from posttrain.files import read_json

Record = Mapping[str, Any]
Measure = Literal[
    "HmR", "HpR", "CAS", "harmful_reward", "helpful_reward",
    "harmful_spread", "helpful_spread", "harmful_median", "helpful_median",
]  # fmt: skip
Verdict = Literal["supported", "contradicted", "inconclusive"]
Printed = Mapping[str, Mapping[str, float]]


class Statement(NamedTuple):
    """The statement that model `higher` lies above model `lower` in `measure`."""

    measure: str
    higher: str
    lower: str

    @property
    def is_ratio(self) -> bool:
        """Whether models are compared by a ratio, that of their rewards' standard deviations."""
        return self.measure.endswith("_spread")


class Ordering(BaseModel):
    """Statements in short: in each measure each of `higher` lies above each of `lower`."""

    model_config = ConfigDict(extra="forbid")

    measures: list[Measure] = Field(min_length=1)
    higher: list[str] = Field(min_length=1)
    lower: list[str] = Field(min_length=1)


class Claim(BaseModel):
    """A claim in its own words, and what it says about models.

    `section`: where it is made. `orderings`: how it is read. `exhaustive`: whether it says in so
    many words that it holds for all of these statements, so that one exception contradicts it.
    """

    model_config = ConfigDict(extra="forbid")

    section: str
    quotation: str
    orderings: list[Ordering] = Field(min_length=1)
    exhaustive: bool = False

    def list_statements(self) -> list[Statement]:
        """List the statements that the claim makes, in the order in which they are written."""
        statements = []
        for ordering in self.orderings:
            for measure in ordering.measures:
                for higher in ordering.higher:
                    for lower in ordering.lower:
                        statements.append(Statement(measure, higher, lower))
        return statements


class Evidence(NamedTuple):
    """What the answers say about a statement.

    `difference` is that of the higher model minus the lower one, in points (rates) or rewards
    (mean, median); of a spread it is the ratio of the two standard deviations. `low` and `high`
    are the ends of its 95% interval, None where it has none. `printed` holds the numbers that the
    claim's source prints for the higher and the lower model, None where it prints none.
    """

    statement: Statement
    difference: float
    low: float | None
    high: float | None
    significant: bool
    printed: tuple[float, float] | None = None

    @property
    def direction(self) -> int:
        """1 where the difference is as stated, -1 where it is the opposite, 0 where it is none."""
        if self.statement.is_ratio:
            return _sign(self.difference - 1)
        return _sign(self.difference)


class Assessment(NamedTuple):
    """A claim with its verdict and with the evidence on each of its statements."""

    claim: Claim
    verdict: Verdict
    evidence: list[Evidence]


# ---- reading


def read_claims(path: Path) -> list[Claim]:
    """Read a list of claims from a JSON file such as results/published/claims.json.

    Raises:
        ValueError: the file is damaged, or a claim is not of the form of `Claim`.
    """
    return read_json(path, list[Claim])


def read_printed(path: Path) -> dict[str, dict[str, float]]:
    """Read the numbers that the study prints, from results/published/paper.json.

    Returns:
        {measure: {model: number}}, rates in percent.
    """
    paper = read_json(path, dict[str, Any])
    printed: dict[str, dict[str, float]] = {}
    for model, rates in paper["table_1_percent"].items():
        for measure, rate in rates.items():
            printed.setdefault(measure, {})[model] = rate
    for model, rewards in paper["figure_3_mean_reward"].items():
        for kind, reward in rewards.items():
            printed.setdefault(f"{kind}_reward", {})[model] = reward
    return printed


# ---- judging


def assess_claims(
    claims: Sequence[Claim],
    comparisons: Sequence[Record],
    spreads: Sequence[Record] = (),
    printed: Printed | None = None,
) -> list[Assessment]:
    """Hold claims against the comparisons of the models that they speak of.

    Args:
        claims: the claims.
        comparisons: records of `comparisons.compare`, from which rates and mean rewards are known.
        spreads: records of `diagnostics.spreads`, from which spreads and medians are known.
        printed: {measure: {model: number}} as the claims' source prints them, shown beside.

    Returns:
        An assessment for each claim, in the order of the claims.

    Raises:
        ValueError: a claim speaks of models or measures that the records do not hold.
    """
    evidence_by_statement = collect_evidence(comparisons, spreads)
    assessments = []
    for claim in claims:
        evidence = []
        for statement in claim.list_statements():
            if statement not in evidence_by_statement:
                raise ValueError(
                    f"The claim “{claim.quotation}” states that {statement.higher} is above "
                    f"{statement.lower} in {statement.measure}, but the comparisons hold no such "
                    "pair. Correct the claim, or evaluate these models."
                )
            part = evidence_by_statement[statement]
            evidence.append(part._replace(printed=_look_up(printed or {}, statement)))
        assessments.append(Assessment(claim, judge_evidence(evidence, claim.exhaustive), evidence))
    return assessments


def judge_evidence(evidence: Sequence[Evidence], exhaustive: bool) -> Verdict:
    """Tell whether the evidence on all statements of a claim supports or contradicts the claim.

    Args:
        evidence: the evidence on each statement.
        exhaustive: whether the claim says that it holds without exception.

    Returns:
        "supported" where every difference is significant and as stated; "contradicted" where one
        is significant and the opposite, or, if the claim is exhaustive, where one is the opposite
        at all; else "inconclusive".
    """
    opposite = [part for part in evidence if part.direction < 0]
    if exhaustive and opposite:
        return "contradicted"
    if any(part.significant for part in opposite):
        return "contradicted"
    if all(part.significant and part.direction > 0 for part in evidence):
        return "supported"
    return "inconclusive"


def collect_evidence(
    comparisons: Sequence[Record], spreads: Sequence[Record] = ()
) -> dict[Statement, Evidence]:
    """Gather what is known of every statement about two models, each pair both ways round.

    Args:
        comparisons: records of `comparisons.compare`; significant is what they decided, after
            Holm's correction.
        spreads: records of `diagnostics.spreads`; significant is where the 95% interval excludes
            equality, without a correction.

    Returns:
        {statement: evidence}.
    """
    parts = []
    for record in comparisons:
        statement = Statement(record["measure"], record["second"], record["first"])
        numbers = record["difference"], record["low"], record["high"]
        parts.append(Evidence(statement, *numbers, record["decision"] == "significant"))
    for record in spreads:
        for suffix, field, equality in (("spread", "ratio", 1), ("median", "median_difference", 0)):
            measure = f"{record['kind']}_{suffix}"
            statement = Statement(measure, record["second"], record["first"])
            low, high = record[f"{field}_low"], record[f"{field}_high"]
            significant = low > equality or high < equality
            parts.append(Evidence(statement, record[field], low, high, significant))
    evidence = {}
    for part in parts:
        evidence[part.statement] = part
        reverse = turn_round(part)
        evidence[reverse.statement] = reverse
    return evidence


def turn_round(evidence: Evidence) -> Evidence:
    """Give the same evidence for the statement with the two models exchanged."""
    measure, higher, lower = evidence.statement
    flip = _invert if evidence.statement.is_ratio else _negate
    return evidence._replace(
        statement=Statement(measure, lower, higher),
        difference=flip(evidence.difference),
        low=None if evidence.high is None else flip(evidence.high),
        high=None if evidence.low is None else flip(evidence.low),
        printed=None if evidence.printed is None else evidence.printed[::-1],
    )


def _look_up(printed: Printed, statement: Statement) -> tuple[float, float] | None:
    """Find the printed numbers of both models of a statement, None where one is missing."""
    by_model = printed.get(statement.measure, {})
    if statement.higher in by_model and statement.lower in by_model:
        return by_model[statement.higher], by_model[statement.lower]
    return None


def _negate(value: float) -> float:
    return -value


def _invert(value: float) -> float:
    return 1 / value if value else math.inf


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
