"""Claims as data, and their verdicts from the comparisons of models."""

import json

import pytest

from posttrain.claims import (
    Claim,
    Evidence,
    Statement,
    assess_claims,
    check_printed,
    collect_evidence,
    judge_evidence,
    read_claims,
    read_printed,
    turn_round,
)
from posttrain.files import read_json
from tests.conftest import ROOT

PUBLISHED = ROOT / "results" / "published"
HIGHER = Statement("HmR", "B", "A")


def comparison(measure, difference, low, high, decision):
    """Make a record of comparisons.compare for B minus A."""
    return {
        "measure": measure, "first": "A", "second": "B",
        "difference": difference, "low": low, "high": high, "decision": decision,
    }  # fmt: skip


COMPARISONS = [
    comparison("HmR", 10.0, 2.0, 18.0, "significant"),
    comparison("HpR", -4.0, -12.0, 4.0, "inconclusive"),
    comparison("CAS", 3.0, -3.0, 9.0, "suggestive"),
    comparison("helpful_reward", -0.5, -0.9, -0.1, "significant"),
    comparison("harmful_reward", 0.25, None, None, "inconclusive"),
]
SPREADS = [{
    "kind": "harmful", "first": "A", "second": "B",
    "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.8, "ratio_decision": "significant",
    "median_difference": 0.1, "median_difference_low": -0.2, "median_difference_high": 0.3,
    "median_difference_decision": "inconclusive",
}]  # fmt: skip


def claim_that(higher, lower, *measures, exhaustive=False):
    """A claim that one model is above another one in some measures."""
    ordering = {"measures": measures, "higher": [higher], "lower": [lower]}
    return Claim(section="1", quotation="words", orderings=[ordering], exhaustive=exhaustive)


@pytest.mark.parametrize(
    ("claim", "as_printed", "as_inference"),
    [
        (claim_that("B", "A", "HmR"), "true", "supported"),
        (claim_that("A", "B", "HmR"), "false", "contradicted"),
        (claim_that("B", "A", "CAS"), "true", "not supported"),  # suggestive is not significant
        (claim_that("B", "A", "HmR", "CAS"), "true", "not supported"),
        (claim_that("B", "A", "HmR", "HpR"), "true in part", "not supported"),
        (claim_that("B", "A", "HmR", "HpR", exhaustive=True), "false", "not supported"),
        (claim_that("B", "A", "HmR", "CAS", exhaustive=True), "true", "not supported"),
        (claim_that("B", "A", "HmR", "helpful_reward"), "true in part", "contradicted"),
        (claim_that("A", "B", "helpful_reward"), "true", "supported"),
        (claim_that("B", "A", "harmful_reward"), "true", "not supported"),  # without an interval
        (claim_that("A", "B", "harmful_spread"), "true", "supported"),  # B's is half of A's
        (claim_that("B", "A", "harmful_spread"), "false", "contradicted"),
        (claim_that("B", "A", "harmful_median"), "true", "not supported"),
    ],
)
def test_claims_as_printed_and_as_inference(claim, as_printed, as_inference):
    """What the numbers are and what they allow to infer are two answers to one claim."""
    (assessment,) = assess_claims([claim], COMPARISONS, SPREADS)
    assert assessment.as_printed == as_printed
    assert assessment.as_inference == as_inference
    assert [part.statement for part in assessment.evidence] == claim.list_statements()


@pytest.mark.parametrize("exhaustive", [False, True])
def test_no_difference_is_not_as_stated(exhaustive):
    """A difference of exactly zero has no direction: it supports and contradicts nothing."""
    evidence = [Evidence(HIGHER, 0.0, -5.0, 5.0, False)]
    assert evidence[0].direction == 0
    assert check_printed(evidence, exhaustive) == "false"
    assert judge_evidence(evidence) == "not supported"


def test_printed_numbers_decide_what_is_true_as_printed():
    """The numbers of the source come before those computed from the answers."""
    claim = claim_that("B", "A", "HmR")
    (assessment,) = assess_claims([claim], COMPARISONS, printed={"HmR": {"A": 50, "B": 40}})
    assert assessment.as_printed == "false"
    assert assessment.as_inference == "supported"


def test_each_pair_both_ways_round():
    """If the models are exchanged, differences change their sign and ratios are inverted."""
    evidence = collect_evidence(COMPARISONS, SPREADS)
    assert len(evidence) == 2 * (len(COMPARISONS) + 2)
    assert evidence[HIGHER][1:5] == (10.0, 2.0, 18.0, True)
    assert evidence[Statement("HmR", "A", "B")][1:5] == (-10.0, -18.0, -2.0, True)
    ratio = evidence[Statement("harmful_spread", "A", "B")]
    assert ratio[1:5] == pytest.approx((2.0, 1.25, 2.5, True))
    assert ratio.direction == 1
    median = evidence[Statement("harmful_median", "A", "B")]
    assert median[1:5] == pytest.approx((-0.1, -0.3, 0.2, False))
    without_interval = evidence[Statement("harmful_reward", "A", "B")]
    assert (without_interval.low, without_interval.high) == (None, None)


def test_turned_round_twice():
    """Evidence with its models exchanged twice is what it was, the printed numbers included."""
    evidence = Evidence(HIGHER, 10.0, 2.0, 18.0, True, (50, 40))
    assert turn_round(evidence).printed == (40, 50)
    assert turn_round(turn_round(evidence)) == evidence


def test_a_spread_of_zero_can_be_turned_round():
    """Equal redrawn rewards give a ratio of zero, whose inverse is infinite."""
    spread = SPREADS[0] | {"ratio_low": 0.0}
    ratio = collect_evidence([], [spread])[Statement("harmful_spread", "A", "B")]
    assert (ratio.low, ratio.high) == (1.25, float("inf"))


def test_orderings_are_statements_in_short():
    """Every measure, higher model and lower model together give a statement."""
    claim = Claim.model_validate({
        "section": "1", "quotation": "words", "orderings": [
            {"measures": ["HmR", "HpR"], "higher": ["B"], "lower": ["A", "C"]},
            {"measures": ["CAS"], "higher": ["A", "C"], "lower": ["B"]},
        ],
    })  # fmt: skip
    assert claim.list_statements() == [
        ("HmR", "B", "A"), ("HmR", "B", "C"), ("HpR", "B", "A"), ("HpR", "B", "C"),
        ("CAS", "A", "B"), ("CAS", "C", "B"),
    ]  # fmt: skip


def test_printed_numbers_stand_beside():
    """The evidence has the printed numbers of both models, if both are printed."""
    printed = {"HmR": {"A": 40, "B": 50}, "CAS": {"A": 30}}
    claim = claim_that("B", "A", "HmR", "CAS", "HpR")
    (assessment,) = assess_claims([claim], COMPARISONS, printed=printed)
    assert [part.printed for part in assessment.evidence] == [(50, 40), None, None]


def test_unknown_models_are_refused():
    """A claim about a model that was not compared is an error that names it."""
    with pytest.raises(ValueError, match="“words” states that C is above A in HmR"):
        assess_claims([claim_that("C", "A", "HmR")], COMPARISONS)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"orderings": []}, "orderings"),
        ({"orderings": [{"measures": ["speed"], "higher": ["B"], "lower": ["A"]}]}, "measures"),
        ({"orderings": [{"measures": ["HmR"], "higher": [], "lower": ["A"]}]}, "higher"),
        ({"claim": "words"}, "claim"),
    ],
)
def test_a_claim_of_another_form_is_refused(tmp_path, change, place):
    """A file of claims is checked when it is read, and the error names the place."""
    claim = claim_that("B", "A", "HmR").model_dump() | change
    path = tmp_path / "claims.json"
    path.write_text(json.dumps([claim]), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"claims\.json is damaged \(0.*{place}"):
        read_claims(path)


# ---- the study's claims


@pytest.fixture(scope="module")
def assessments():
    """The study's claims, assessed on its published rewards."""
    metrics = read_json(PUBLISHED / "metrics.json", dict)
    printed = read_printed(PUBLISHED / "paper.json")
    claims = read_claims(PUBLISHED / "claims.json")
    return assess_claims(claims, metrics["comparisons"], metrics["spreads"], printed)


def test_what_is_said_of_the_study(assessments):
    """Of sixteen claims three are false as printed, and one is contradicted as an inference."""
    assert len(assessments) == 16
    by_printed, by_inference = {}, {}
    for number, assessment in enumerate(assessments, start=1):
        by_printed.setdefault(assessment.as_printed, []).append(number)
        by_inference.setdefault(assessment.as_inference, []).append(number)
    assert by_printed["true"] == [1, 3, 5, 6, 7, 9, 15]
    assert by_printed["false"] == [2, 11, 16]
    assert by_inference["contradicted"] == [8]  # SFT's rewards vary more than Base's
    assert "supported" not in by_inference
    exhaustive = [part.claim.quotation for part in assessments if part.claim.exhaustive]
    assert [words for words in exhaustive if "all" not in words] == [
        "the base model performs the worst on both axes"
    ]


def test_printed_numbers_agree_with_the_rewards(assessments):
    """Differences of the printed numbers equal the computed ones up to rounding."""
    compared = 0
    for assessment in assessments:
        for part in assessment.evidence:
            if part.printed is not None:
                higher, lower = part.printed
                rounding = 0.011 if part.statement.measure.endswith("reward") else 1e-9
                assert higher - lower == pytest.approx(part.difference, abs=rounding)
                compared += 1
    assert compared == 67


def test_what_the_study_can_show():
    """Tests of the rates, and the CAS of SFT+DPO, agree with independent computations."""
    p_values = {}
    for record in read_json(PUBLISHED / "metrics.json", dict)["comparisons"]:
        p_values[record["measure"], record["first"], record["second"]] = record["p"]
        if (record["measure"], record["first"], record["second"]) == ("CAS", "SFT", "SFT+DPO"):
            numbers = (record["difference"], record["low"], record["high"])
            assert numbers == pytest.approx((3, -7, 13), abs=1)
    assert p_values["HmR", "SFT", "DPO"] == pytest.approx(0.21, abs=0.005)
    assert p_values["HpR", "Base", "SFT"] == pytest.approx(0.0002, abs=5e-5)
    assert p_values["HpR", "Base", "DPO"] == pytest.approx(0.002, abs=5e-4)
    assert p_values["HpR", "Base", "SFT+DPO"] < 0.0001
