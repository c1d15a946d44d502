"""The documents: their generated parts are up to date, and their links lead somewhere."""

import re

import pytest

from docs import benchmark_tables, build, study_tables
from posttrain.claims import Evidence, Statement
from tests.conftest import ROOT

DOCUMENTS = [*build.list_documents(), ROOT / "CONTRIBUTING.md"]


def with_parts(*names):
    """A document with empty parts of these names."""
    parts = [f"<!-- {name}{build.BEGIN}\n<!-- end of {name} -->" for name in names]
    return "\n\n".join(["before", *parts, "after"])


# ---- the parts


def test_parts_are_written_between_their_marks():
    """All that stands outside of the marks stays, and writing twice changes nothing."""
    parts = {"one": lambda: "1\n", "two": lambda: "| a |\n\n\\1 \\g<0>"}
    text = build.fill_in(with_parts("one", "two"), parts)
    assert text.startswith(f"before\n\n<!-- one{build.BEGIN}\n1\n<!-- end of one -->\n\n")
    assert text.endswith("\n| a |\n\n\\1 \\g<0>\n<!-- end of two -->\n\nafter")
    assert build.fill_in(text, parts) == text
    assert build.fill_in("no part", parts) == "no part"


def test_marks_that_do_not_fit_are_refused():
    """A part that nothing writes, and one without an end."""
    with pytest.raises(ValueError, match="Nothing writes the part “three”. Parts: one."):
        build.fill_in(with_parts("three"), {"one": str})
    with pytest.raises(ValueError, match="lacks its last line"):
        build.fill_in(with_parts("one").replace("end of one", "end"), {"one": str})


@pytest.fixture(scope="module")
def parts():
    """The parts as the committed results give them."""
    return build.list_parts()


@pytest.mark.parametrize("path", build.list_documents(), ids=lambda path: path.name)
def test_documents_are_up_to_date(path, parts):
    """What is generated is what the committed results and benchmarks give."""
    text = path.read_text(encoding="utf-8")
    assert build.fill_in(text, parts) == text, "run python -m docs.build"


def test_every_part_stands_in_a_document(parts):
    """No part is written for nothing."""
    text = "".join(path.read_text(encoding="utf-8") for path in build.list_documents())
    for name in parts:
        assert f"<!-- {name}{build.BEGIN}" in text


# ---- tables


def test_evidence_as_a_row():
    """The printed numbers, the difference with its interval, and what they say of the claim."""
    evidence = Evidence(Statement("HmR", "B", "A"), -4.04, -9.0, 1.0, False, (44, 48))
    assert study_tables.write_evidence_row(evidence) == [
        "HmR", "B − A", "44 and 48", "−4.0 [−9.0, +1.0]", "opposite", "no",
    ]  # fmt: skip
    ratio = Evidence(Statement("helpful_spread", "A", "B"), 2.0, 1.25, 2.5, True)
    assert study_tables.write_evidence_row(ratio) == [
        "standard deviation, helpful prompts", "A ÷ B", "", "2.00 [1.25, 2.50]", "as claimed",
        "**yes**",
    ]  # fmt: skip
    equal = Evidence(Statement("harmful_reward", "A", "B"), 0.0, None, None, False, (-1.5, -1.5))
    assert study_tables.write_evidence_row(equal) == [
        "mean reward, harmful prompts", "A − B", "−1.5 and −1.5", "+0.00 on every prompt", "none",
        "no",
    ]  # fmt: skip


def test_running_on_and_gains():
    """The tables of the published record, from the records of metrics.json."""
    record = {"kind": "harmful", "model": "A", "human_turn": True, "prompts": 26,
              "reward": -3.432, "reward_low": -4.01, "reward_high": -2.86,
              "rate": 46.15, "rate_low": 28.76, "rate_high": 64.55}  # fmt: skip
    table = study_tables.write_running_on({"running_on": [record]})
    assert table.splitlines()[2] == (
        "| harmful | A | yes | 26 | −3.43 [−4.01, −2.86] | 46.1 [28.8, 64.5] |"
    )
    record = {"kind": "helpful", "model": "A", "gain": 1.5, "gain_low": 1.0, "gain_high": 2.0,
              "by_share": 0.5, "by_share_low": -0.1, "by_share_high": 1.1}  # fmt: skip
    table = study_tables.write_gains({"gain_by_not_running_on": [record]})
    assert table.splitlines()[2] == (
        "| helpful | A | 1.50 [1.00, 2.00] | 0.50 [−0.10, 1.10] |"
    )
    record = {"kind": "helpful", "model": "A", "human_turn": 52.4, "refusal": 4.0, "empty": 0.0}
    table = study_tables.write_behaviour({"behaviour": [record]})
    assert table.splitlines()[2] == "| helpful | A | 52 | 4 | 0 |"


def test_rates_of_speed():
    """The median over the measurements, and how many times the study's rate ours is."""
    measurements = [{"tokens": 90, "seconds": [1.0, 2.0]}, {"tokens": 90, "seconds": [1.0]}]
    assert benchmark_tables.median_rate(measurements) == 60
    rates = {"published": 20.0, "ours": 50.0}
    assert benchmark_tables.describe_rate(rates, "published") == "20"
    assert benchmark_tables.describe_rate(rates, "ours") == "50 (2.5 times)"
    assert benchmark_tables.describe_rate(rates, "TRL") == ""


# ---- the documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Every relative link and picture of a document is there, and so is the heading it names."""
    text = path.read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", text):
        if "://" in target:
            continue
        linked = path.parent / target if target else path
        assert linked.exists(), target
        if heading and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]
            assert heading[1:] in anchors, heading


def test_study_is_cited():
    """CITATION.cff names the study and its author."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for words in ("cff-version: 1.2.0", "2509.09055", "Pant"):
        assert words in text
