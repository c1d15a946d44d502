"""Check claims about models, such as those of a paper, against the comparisons of a run.

A claim is data: a quotation, and the statements that it makes. A statement says that one model lies
above another in one measure. A claim is assessed in two ways: as printed, that is, whether the
numbers of these answers are as it states, and as an inference about other prompts, which follows
from the comparisons that `comparisons.compare` and `spreads.compare_spreads` compute.
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
AsPrinted = Literal["true", "true in part", "false"]
AsInference = Literal["supported", "not supported", "contradicted"]
Printed = Mapping[str, Mapping[str, float]]


class Statement(NamedTuple):
    """A statement: model `higher` lies above model `lower` in `measure`."""

    measure: str
    higher: str
    lower: str

    @property
    def is_ratio(self) -> bool:
        """Whether the models are compared by the ratio of their rewards' standard deviations."""
        return self.measure.endswith("_spread")


class Ordering(BaseModel):
    """Several statements: in each measure, each of `higher` lies above each of `lower`."""

    model_config = ConfigDict(extra="forbid")

    measures: list[Measure] = Field(min_length=1)
    higher: list[str] = Field(min_length=1)
    lower: list[str] = Field(min_length=1)


class Claim(BaseModel):
    """A claim in the words of its source, and the statements that it makes about models.

    Attributes:
        section: the section of the source that makes the claim.
        quotation: the words of the claim.
        orderings: the statements that these words are read as.
        exhaustive: whether the words say explicitly that every one of the statements is true, so
            that a single exception makes it false as printed.
    """

    model_config = ConfigDict(extra="forbid")

    section: str
    quotation: str
    orderings: list[Ordering] = Field(min_length=1)
    exhaustive: bool = False

    def list_statements(self) -> list[Statement]:
        """List the statements that the claim makes, in the order of `orderings`."""
        statements = []
        for ordering in self.orderings:
            for measure in ordering.measures:
                for higher in ordering.higher:
                    for lower in ordering.lower:
                        statements.append(Statement(measure, higher, lower))
        return statements


class Evidence(NamedTuple):
    """The evidence that the answers give about a statement.

    Attributes:
        statement: the statement.
        difference: the difference of `higher` minus `lower`, in points for a rate and in units of
            reward for a mean or median; for a spread, the ratio of the standard deviations.
        low: the lower end of its 95% interval, None where there is no interval.
        high: the upper end.
        significant: whether the difference is statistically significant.
        printed: the numbers that the claim's source prints for the higher and the lower model,
            None where it prints none.
    """

    statement: Statement
    difference: float
    low: float | None
    high: float | None
    significant: bool
    printed: tuple[float, float] | None = None

    @property
    def direction(self) -> int:
        """1 if the difference is as stated, -1 if it is the opposite, 0 if there is none."""
        if self.statement.is_ratio:
            return _sign(self.difference - 1)
        return _sign(self.difference)

    @property
    def is_as_printed(self) -> bool:
        """Whether the printed numbers are as stated; where none are printed, the computed ones."""
        if self.printed is None:
            return self.direction > 0
        higher, lower = self.printed
        return higher > lower


class Assessment(NamedTuple):
    """A claim, what is said of it, and the evidence on each of its statements.

    Attributes:
        claim: the claim.
        as_printed: whether the numbers are as it states.
        as_inference: whether the comparisons support it.
        evidence: the evidence on each of its statements.
    """

    claim: Claim
    as_printed: AsPrinted
    as_inference: AsInference
    evidence: list[Evidence]


# ---- reading


def read_claims(path: Path) -> list[Claim]:
    """Read a list of claims from a JSON file such as results/published/claims.json.

    Raises:
        ValueError: if the file is damaged, or a claim does not have the fields of `Claim`.
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
    """Assess claims by the comparisons of the models that they are about.

    Args:
        claims: the claims.
        comparisons: records of `comparisons.compare`, which contain rates and mean rewards.
        spreads: records of `spreads.compare_spreads`, which contain spreads and medians.
        printed: {measure: {model: number}} as the claims' source prints them, which decide whether
            a claim is true as printed.

    Returns:
        An assessment for each claim, in the order of the claims.

    Raises:
        ValueError: if a claim is about models or measures that the records do not contain.
    """
    evidence_by_statement = collect_evidence(comparisons, spreads)
    assessments = []
    for claim in claims:
        evidence = []
        for statement in claim.list_statements():
            if statement not in evidence_by_statement:
                raise ValueError(
                    f"The claim “{claim.quotation}” states that {statement.higher} is above "
                    f"{statement.lower} in {statement.measure}, but the comparisons have no such "
                    "pair. Correct the claim, or evaluate these models."
                )
            part = evidence_by_statement[statement]
            evidence.append(part._replace(printed=_look_up(printed or {}, statement)))
        as_printed = check_printed(evidence, claim.exhaustive)
        assessments.append(Assessment(claim, as_printed, judge_evidence(evidence), evidence))
    return assessments


def check_printed(evidence: Sequence[Evidence], exhaustive: bool) -> AsPrinted:
    """Tell whether the numbers are as a claim states, whatever chance may have to do with them.

    Args:
        evidence: the evidence on each of the claim's statements.
        exhaustive: whether the claim says explicitly that it has no exception.

    Returns:
        "true" if the numbers are as stated in all statements, "true in part" if they are in some
        and the claim is not exhaustive, otherwise "false".
    """
    count = 0
    for part in evidence:
        if part.is_as_printed:
            count += 1
    if count == len(evidence):
        return "true"
    return "true in part" if count and not exhaustive else "false"


def judge_evidence(evidence: Sequence[Evidence]) -> AsInference:
    """Decide whether a claim follows from the comparisons of the models that it is about.

    Args:
        evidence: the evidence on each of the claim's statements.

    Returns:
        "supported" if every difference is significant and as stated; "contradicted" if one is
        significant and opposite to what is stated; otherwise "not supported".
    """
    if any(part.significant and part.direction < 0 for part in evidence):
        return "contradicted"
    if all(part.significant and part.direction > 0 for part in evidence):
        return "supported"
    return "not supported"


def collect_evidence(
    comparisons: Sequence[Record], spreads: Sequence[Record] = ()
) -> dict[Statement, Evidence]:
    """Collect the evidence on every statement about two models, for both orders of each pair.

    A difference is significant if the record's decision is, which is made after Holm's correction.

    Args:
        comparisons: records of `comparisons.compare`.
        spreads: records of `spreads.compare_spreads`.

    Returns:
        {statement: evidence}.
    """
    parts = []
    for record in comparisons:
        statement = Statement(record["measure"], record["second"], record["first"])
        numbers = record["difference"], record["low"], record["high"]
        parts.append(Evidence(statement, *numbers, record["decision"] == "significant"))
    for record in spreads:
        for suffix, field in (("spread", "ratio"), ("median", "median_difference")):
            measure = f"{record['kind']}_{suffix}"
            statement = Statement(measure, record["second"], record["first"])
            numbers = record[field], record[f"{field}_low"], record[f"{field}_high"]
            significant = record[f"{field}_decision"] == "significant"
            parts.append(Evidence(statement, *numbers, significant))
    evidence = {}
    for part in parts:
        evidence[part.statement] = part
        reverse = turn_round(part)
        evidence[reverse.statement] = reverse
    return evidence


def turn_round(evidence: Evidence) -> Evidence:
    """Restate evidence for the statement with the two models exchanged."""
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
    """Look up the printed numbers of a statement's two models; None where one is missing."""
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
