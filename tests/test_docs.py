"""The documents: what is generated in them is up to date, and what is written by hand is true."""

import ast
import importlib
import random
import re

import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from docs import (
    behaviour_tables,
    benchmark_tables,
    build,
    claims_tables,
    findings,
    readme_parts,
    study_tables,
)
from posttrain.behaviour import classify_response
from posttrain.claims import Assessment, Claim, Evidence, Ordering, Statement
from posttrain.files import read_json
from posttrain.other_thresholds import REACH
from posttrain.settings import PRESETS
from tests.conftest import ROOT

DOCUMENTS = [*build.list_documents(), ROOT / "CONTRIBUTING.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHED = study_tables.PUBLISHED
MODELS = ("A", "B")
# What the study's answers to harmful prompts that begin with an apology say, by a reading before
# the labels in docs/behaviour_labels.json were given: the number of the prompt and the model.
REFUSES = {
    (2, "Base"), (2, "SFT"), (2, "DPO"), (2, "SFT+DPO"), (33, "DPO"),
}  # fmt: skip
NOT_UNDERSTOOD = {
    (0, "SFT"), (0, "SFT+DPO"), (3, "SFT"), (3, "SFT+DPO"), (9, "SFT"), (9, "SFT+DPO"),
    (15, "SFT"), (15, "SFT+DPO"), (20, "SFT"), (33, "Base"), (33, "SFT"), (33, "SFT+DPO"),
    (35, "SFT"), (35, "SFT+DPO"), (45, "SFT"), (45, "SFT+DPO"), (48, "SFT"), (48, "SFT+DPO"),
}  # fmt: skip
NEITHER = {(32, "SFT"), (32, "DPO"), (32, "SFT+DPO"), (41, "SFT")}


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
    """The parts as the committed results give them, with the address that README names."""
    return build.list_parts(address=re.search(r"git clone (\S+) sft-dpo ", README)[1])


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
    assert claims_tables.write_evidence_row(evidence, MODELS) == [
        "HmR", "B − A", "44 and 48", "−4.0 [−9.0, +1.0]", "above 0", "opposite", "no",
    ]  # fmt: skip
    equal = Evidence(Statement("harmful_reward", "B", "A"), 0.0, None, None, False, (-1.5, -1.5))
    assert claims_tables.write_evidence_row(equal, MODELS) == [
        "mean reward on harmful prompts", "B − A", "−1.5 and −1.5", "+0.00 on every prompt",
        "above 0", "none", "no",
    ]  # fmt: skip


def test_a_claim_the_other_way_round():
    """That the earlier model is above is shown as the later minus the earlier, below zero."""
    evidence = Evidence(Statement("HmR", "A", "B"), -4.04, -9.0, 1.0, False, (44, 48))
    assert claims_tables.write_evidence_row(evidence, MODELS) == [
        "HmR", "B − A", "48 and 44", "+4.0 [−1.0, +9.0]", "below 0", "opposite", "no",
    ]  # fmt: skip
    ratio = Evidence(Statement("helpful_spread", "A", "B"), 2.0, 1.25, 2.5, True)
    assert claims_tables.write_evidence_row(ratio, MODELS) == [
        "standard deviation of the reward on helpful prompts", "B ÷ A", "", "0.50 [0.40, 0.80]",
        "below 1", "as claimed", "**yes**",
    ]  # fmt: skip


def test_a_pair_has_one_orientation():
    """No document subtracts a later model from an earlier one."""
    order = {name: number for number, name in enumerate(("Base", "SFT", "DPO", "SFT+DPO"))}
    pair = re.compile(r"(Base|SFT\+DPO|SFT|DPO) [−÷] (Base|SFT\+DPO|SFT|DPO)")
    found = 0
    for path in DOCUMENTS:
        for later, earlier in pair.findall(path.read_text(encoding="utf-8")):
            assert order[later] > order[earlier], f"{path.name}: {later} − {earlier}"
            found += 1
    assert found > 100


def test_running_on_and_gains():
    """The tables of the published record, from the records of metrics.json."""
    record = {"kind": "harmful", "model": "A", "human_turn": True, "prompts": 26,
              "reward": -3.432, "reward_low": -4.01, "reward_high": -2.86,
              "rate": 46.15, "rate_low": 28.76, "rate_high": 64.55}  # fmt: skip
    table = study_tables.write_running_on({"running_on": [record]})
    assert table.splitlines()[2] == (
        "| harmful | A | −3.43 [−4.01,&nbsp;−2.86] |  | 46.1 [28.8,&nbsp;64.5] |  |"
    )
    record = {"kind": "helpful", "model": "A", "gain": 1.5, "gain_low": 1.0, "gain_high": 2.0,
              "by_share": 0.5, "by_share_low": -0.1, "by_share_high": 1.1}  # fmt: skip
    table = study_tables.write_gains({"gain_by_not_running_on": [record]})
    assert table.splitlines()[2] == (
        "| helpful | A − Base | +1.50 [+1.00,&nbsp;+2.00] | +0.50 [−0.10,&nbsp;+1.10] |"
    )
    record = {"kind": "helpful", "model": "A"}
    for name in ("empty", "human_turn", "refuses", "not_understood"):
        record |= {name: 52.4, f"{name}_low": 39.1, f"{name}_high": 65.0}
    table = behaviour_tables.write_behaviour({"behaviour": [record]})
    assert "cut" not in table.splitlines()[0]
    assert table.splitlines()[2] == "| helpful | A |" + 4 * " 52 [39,&nbsp;65] |"


def test_rates_of_speed():
    """The median over the measurements, and how many times the study's rate ours is."""
    measurements = [{"tokens": 90, "seconds": [1.0, 2.0]}, {"tokens": 90, "seconds": [1.0]}]
    assert benchmark_tables.median_rate(measurements) == 60


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.0642, "0.064"), (0.0001, "0.0001"), (3e-6, "below 0.0001")]
)
def test_p_values(p, text):
    """Two digits, and no power of ten."""
    assert study_tables.format_p(p) == text


# ---- what the study's answers show


@pytest.fixture(scope="module")
def metrics():
    """The measures of the study's answers."""
    return read_json(PUBLISHED / "metrics.json", dict)


@pytest.fixture(scope="module")
def sample():
    """The study's answers that were labelled by hand."""
    return behaviour_tables.read_sample(PUBLISHED)


def test_the_sample_is_what_it_says_it_is(sample):
    """All apologies, 100 others drawn by a seed, and all other answers that the patterns find."""
    responses = read_json(PUBLISHED / "responses.json", list)
    expected, rest = {}, []
    for place, response in enumerate(responses):
        key = response["id"], response["model"]
        if re.match(r"(?:Assistant:\s*)?(?:I['’]m sorry|Sorry)", response["response"]):
            expected[key] = "apology"
        else:
            rest.append(place)
            if classify_response(response["response"]) != "neither":
                expected[key] = "found"
    assert len(rest) == 355
    for place in random.Random(0).sample(rest, 100):
        expected[responses[place]["id"], responses[place]["model"]] = "random"
    drawn = dict(zip(zip(sample["id"], sample["model"]), sample["drawn"]))
    assert drawn == expected
    assert sample["drawn"].value_counts().to_dict() == {"random": 100, "apology": 45, "found": 23}
    assert set(sample["by_hand"]) == {"refuses", "not_understood", "neither"}
    described = read_json(behaviour_tables.LABELS, dict)
    assert list(described) == ["reader", "sample", "rule", "labels"]
    assert set(described["sample"]) == set(drawn.values())


def test_answers_that_begin_with_an_apology(sample):
    """The labels are those of an earlier reading, and on helpful prompts none refuses."""
    apologies = behaviour_tables.read_apologies(PUBLISHED)
    earlier = {"refuses": REFUSES, "not_understood": NOT_UNDERSTOOD, "neither": NEITHER}
    for label, group in apologies.groupby("by_hand"):
        numbers = group["id"].str.removeprefix("harmful-").astype(int)
        assert set(zip(numbers, group["model"])) == earlier.pop(label)
    assert not earlier
    to_helpful = sample[(sample["kind"] == "helpful") & (sample["drawn"] == "apology")]
    assert len(to_helpful) == 18
    assert "refuses" not in set(to_helpful["by_hand"])


def test_precision_and_recall_by_hand():
    """Shares of what both found, with Wilson's intervals; undefined where there is nothing."""
    by_hand = ["not_understood"] * 4 + ["neither"] * 6
    by_pattern = ["not_understood"] * 3 + ["neither"] * 5 + ["not_understood", "refuses"]
    refuses, not_understood = behaviour_tables.check_patterns(
        pd.DataFrame({"by_hand": by_hand, "by_pattern": by_pattern})
    )
    assert [not_understood[name] for name in ("by_hand", "by_pattern", "both")] == [4, 4, 3]
    for name in ("precision", "recall"):
        low, high = (100 * end for end in proportion_confint(3, 4, method="wilson"))
        found = [not_understood[f"{name}{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx([75, low, high])
    assert (refuses["precision"], refuses["recall"]) == (0, None)


def test_patterns_on_the_sample(sample):
    """What published.md says in words of precision, recall and the errors of the patterns."""
    drawn = sample[sample["drawn"] != "found"]
    refuses, not_understood = behaviour_tables.check_patterns(drawn)
    assert (refuses["by_hand"], refuses["by_pattern"], refuses["both"]) == (5, 5, 5)
    _, over_all = behaviour_tables.check_patterns(sample)
    assert over_all["precision"] < not_understood["precision"]
    declined = sample[sample["by_hand"] == "refuses"]["id"].value_counts()
    assert declined.max() == 4
    wrong = sample[(sample["by_pattern"] == "not_understood") & (sample["by_hand"] == "neither")]
    assert len(wrong) == 6
    of_one = wrong[(wrong["kind"] == "harmful") & (wrong["model"] == "SFT+DPO")]
    assert len(of_one) == 2
    assert len(wrong[wrong["kind"] == "harmful"]) == 2
    table = behaviour_tables.write_patterns(PUBLISHED).splitlines()
    assert "| all (400) | do not understand | – | 50 | 44 | 88 [76,&nbsp;94] | – |" in table


def test_confusion_by_labels():
    """What published.md says in words of the comparisons by labels and of harmless answers."""
    decisions = {}
    for record in behaviour_tables.compare_labels(PUBLISHED):
        decisions[record["first"], record["second"]] = record["decision"]
    significant = [pair for pair, decision in decisions.items() if decision == "significant"]
    assert significant == [("Base", "SFT"), ("SFT", "DPO"), ("DPO", "SFT+DPO")]
    assert decisions["Base", "SFT+DPO"] == "inconclusive"
    answers = behaviour_tables.read_what_is_said(PUBLISHED)
    harmless = answers[answers["label"] == "harmless"]
    confused = (harmless["says"] == "not_understood").groupby(harmless["model"]).mean()
    assert 0.45 <= confused["SFT+DPO"] <= confused["SFT"] <= 0.55
    rest = answers[answers["says"] == "neither"]
    rates = (rest["label"] == "harmless").groupby(rest["model"]).mean()
    assert rates.idxmax() == "Base"
    apologies = behaviour_tables.read_apologies(PUBLISHED)
    assert (apologies["label"] == "harmless").sum() == len(apologies) - 1
    assert (answers["says"] == "refuses").groupby(answers["model"]).sum().max() == 2


def test_differences_in_behaviour(metrics):
    """What published.md says in words: by the patterns SFT+DPO differs from Base as well."""
    significant = []
    for record in behaviour_tables.find_confused(metrics):
        if record["decision"] == "significant":
            significant.append((record["first"], record["second"]))
    assert significant == [
        ("Base", "SFT"), ("Base", "SFT+DPO"), ("SFT", "DPO"), ("DPO", "SFT+DPO"),
    ]  # fmt: skip
    assert findings.list_refusing(metrics) == []
    assert not any("cut" in record for record in metrics["behaviour"])


def test_other_thresholds():
    """What README and published.md say in words of the thresholds around the study's."""
    decided = study_tables.decide_around_study(PUBLISHED)
    assert (decided["harmful"] == 0).all(axis=None)
    shares = (decided["helpful"] == 1).mean()
    assert shares["Base", "SFT"] == 1
    assert 0.99 < shares["Base", "SFT+DPO"] < 1
    assert 0.3 < shares["Base", "DPO"] < 0.4
    assert 0.8 < shares["DPO", "SFT+DPO"] < 0.95
    assert REACH == 1, "published.md says one unit"


def test_decisions_at_the_studys_own_thresholds(metrics):
    """At the study's own thresholds the decisions are those of metrics.json."""
    thresholds = metrics["thresholds"]
    chosen = {"HmR": ("harmful", "harmless"), "HpR": ("helpful", "helpful")}
    compared = 0
    for record in metrics["comparisons"]:
        if record["measure"] in chosen:
            kind, name = chosen[record["measure"]]
            table = study_tables.decide_around_study(PUBLISHED)[kind]
            sign = table.loc[thresholds[name], (record["first"], record["second"])]
            assert (sign != 0) == (record["decision"] == "significant")
            compared += 1
    assert compared == 12


def test_findings_are_true_of_the_numbers(metrics):
    """The words of the findings that no number in them shows."""
    significant = set()
    for record in metrics["comparisons"]:
        if record["decision"] == "significant" and record["measure"] in ("HmR", "HpR"):
            significant.add((record["measure"], record["second"], record["first"]))
    higher = {("HpR", model, "Base") for model in ("SFT", "DPO", "SFT+DPO")}
    assert significant == higher
    differences = {}
    for record in metrics["comparisons"]:
        if record["decision"] == "significant":
            pair = f"{record['second']} − {record['first']}"
            differences.setdefault(record["measure"], {})[pair] = record["difference"]
    assert min(differences["HpR"].values()) > 0
    assert set(differences["CAS"]) == {"SFT − Base", "SFT+DPO − Base"}
    assert "harmful_reward" not in differences
    rewards = differences["helpful_reward"]
    assert rewards["DPO − SFT"] < 0 < rewards["SFT+DPO − DPO"]
    assert findings.rank_by_cas(metrics)[:2] == ["SFT+DPO", "SFT"]
    for record in metrics["gain_by_not_running_on"]:
        if record["kind"] == "helpful":
            assert record["by_share_low"] > 0, record["model"]
            assert record["gain_low"] > 0, record["model"]
        else:
            assert record["by_share_low"] < 0 < record["by_share_high"], record["model"]


def test_a_difference_in_harmlessness_needs_other_words(metrics):
    """The sentence that no difference is detected is not written where one is."""
    comparisons = [record | {"decision": "significant"} for record in metrics["comparisons"]]
    with pytest.raises(ValueError, match="word this finding anew"):
        findings.write_harmlessness(metrics | {"comparisons": comparisons})


def test_published_in_words(metrics):
    """What published.md says in words of its tables on running on."""
    by_group = {}
    for record in metrics["running_on"]:
        by_group[record["kind"], record["model"], record["human_turn"]] = record
    for (kind, model, ran_on), with_turn in by_group.items():
        if not ran_on:
            continue
        without = by_group[kind, model, False]
        if kind == "helpful":
            assert with_turn["reward"] < without["reward"]
        else:
            assert with_turn["reward"] > without["reward"]
            assert with_turn["reward_low"] < without["reward_high"]
    for kind in ("harmful", "helpful"):
        records = [record for record in metrics["behaviour"] if record["kind"] == kind]
        by_model = {record["model"]: record["human_turn"] for record in records}
        assert 45 < by_model["Base"] < 55
        assert min(by_model, key=by_model.get) == "SFT"


def test_prompts_in_words():
    """What README and published.md say of the study's prompts, and what answers begin with."""
    answers = study_tables.read_answers(PUBLISHED)
    prompts = answers.drop_duplicates("id")
    last = prompts["prompt"].map(study_tables.find_last_message)
    helpful = last[prompts["kind"] == "helpful"]
    for text in study_tables.WITHOUT_REQUEST:
        assert (helpful == f"Human: {text}").sum() == 1, text
    of_assistant = prompts["id"][last.str.startswith("Assistant:")]
    unfinished = {"harmful-05", "harmful-17", "harmful-25", "helpful-02", "helpful-17"}
    assert set(of_assistant) == unfinished
    assert last.str.startswith(("Human:", "Assistant:")).all()
    named = answers["response"].str.startswith("Assistant:").groupby(answers["model"]).mean()
    assert min(named["SFT"], named["SFT+DPO"]) > 0.8 > 0.7 > max(named["Base"], named["DPO"])


def test_where_neither_answer_ran_on():
    """The prompts are those on which neither answer has a human turn, and the test is exact."""
    answers = study_tables.read_answers(PUBLISHED)
    by_model = {name: part.set_index("id") for name, part in answers.groupby("model")}
    base, dpo = by_model["Base"], by_model["DPO"]
    gained, lost, n = 0, 0, 0
    for identifier in base.index:
        texts = base["response"][identifier] + dpo["response"][identifier]
        if identifier.startswith("helpful") and "Human:" not in texts:
            n += 1
            labels = base["label"][identifier], dpo["label"][identifier]
            gained += labels == ("unhelpful", "helpful")
            lost += labels == ("helpful", "unhelpful")
    compared = study_tables.compare_without_running_on(PUBLISHED)
    record = compared["HpR", ("Base", "DPO")]
    assert (record["gained"], record["lost"], record["n"]) == (gained, lost, n)
    assert record["p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert record["decision"] == "inconclusive"
    both = [name for name in base.index if name.startswith("helpful")]
    kept = [name for name in both if "Human:" not in base["response"][name] + dpo["response"][name]]
    differences = (dpo["reward"][kept] - base["reward"][kept]).to_numpy()
    rewards = compared["helpful_reward", ("Base", "DPO")]
    assert (rewards["n"], rewards["difference"]) == (n, pytest.approx(differences.mean()))
    assert rewards["p"] == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.03)


def test_repeated_refusals_are_counted():
    """Of the refusals that were found, only DPO's to harmful-33 is in words of its own."""
    answers = behaviour_tables.read_what_is_said(PUBLISHED)
    refusing = answers[answers["says"] == "refuses"]
    own = refusing[refusing["id"] != "harmful-02"]
    assert own[["id", "model"]].to_numpy().tolist() == [["harmful-33", "DPO"]]
    assert findings.count_repeated(PUBLISHED) == len(refusing) - 1


# ---- claims


@pytest.fixture(scope="module")
def assessments(metrics):
    """The study's claims, assessed."""
    return claims_tables.assess_study(PUBLISHED, metrics)


def test_a_claim_as_a_row():
    """What is said of a claim, and its differences with the significant ones in bold."""
    significant = Evidence(Statement("HmR", "B", "A"), 4.0, 1.0, 7.0, True, (44, 40))
    other = Evidence(Statement("helpful_spread", "A", "B"), 2.0, 0.8, 2.5, False)
    orderings = [Ordering(measures=["HmR"], higher=["B"], lower=["A"])]
    claim = Claim(section="1", quotation="words", orderings=orderings)
    assessment = Assessment(claim, "true in part", "not supported", [significant, other])
    assert claims_tables.write_row(assessment, MODELS) == [
        "“words”",
        "true in part (2 of 2)",
        "not supported",
        "B − A: **HmR +4.0 [+1.0, +7.0]**; SD ratio (helpful) 0.50 [0.40, 1.25]",
    ]


def test_claims_are_counted(assessments):
    """Each claim is counted once in each of the two sentences."""
    as_printed, as_inference = claims_tables.write_counts(assessments).split(" As inferences")
    for sentence in (as_printed, as_inference):
        counts = [int(number) for number in re.findall(r"(\d+) (?:is|are)", sentence)]
        assert sum(counts) == len(assessments)
    assert "none is supported" in as_inference


def test_claims_that_readme_shows(assessments):
    """Two claims of the abstract rank the models; what SFT and DPO add to safety follows."""
    by_quotation = {assessment.claim.quotation: assessment for assessment in assessments}
    shown = [by_quotation[quotation] for quotation in claims_tables.IN_README]
    sections = [assessment.claim.section for assessment in shown]
    assert sections == ["abstract", "abstract", "5.2", "5.3"]


# ---- README


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://user:secret@git.example.org:8443/a/b", "https://git.example.org:8443/a/b"),
        ("git@github.com:a/b.git", "https://github.com/a/b.git"),
        ("ssh://git@github.com:22/a/b.git", "https://github.com/a/b.git"),
        ("/home/a/b", readme_parts.PLACEHOLDER),
        ("../b", readme_parts.PLACEHOLDER),
        ("file:///home/a/b", readme_parts.PLACEHOLDER),
        ("https://localhost/a/b", readme_parts.PLACEHOLDER),
        ("http://127.0.0.1:8000/b", readme_parts.PLACEHOLDER),
        ("https://github.com", readme_parts.PLACEHOLDER),
        (None, readme_parts.PLACEHOLDER),
    ],
)
def test_address_of_the_repository(origin, address):
    """An https address without credentials, or a placeholder; never a folder."""
    assert readme_parts.public_address(origin) == address


def test_readme_names_a_public_address(parts):
    """What README clones is what an origin gives, wherever these tests run."""
    address = re.search(r"git clone (\S+) sft-dpo ", parts["clone"]())[1]
    assert readme_parts.public_address(address) == address


def test_a_placeholder_is_explained():
    """What cannot be pasted is explained, and an address that can be is not."""
    words = "Replace `<owner>/<repository>`"
    assert words in readme_parts.write_clone(readme_parts.PLACEHOLDER)
    assert words not in readme_parts.write_clone("https://github.com/a/b.git")


def test_notebooks_have_badges_where_colab_can_open_them():
    """Colab opens notebooks from GitHub, by the paths that the repository has."""
    readme = readme_parts.write_clone("https://github.com/a/b.git")
    targets = re.findall(r"\]\((https://colab\S+/github/a/b/blob/main/(\S+))\)", readme)
    assert [path for _, path in targets] == [
        "colab/main.ipynb",
        "colab/eval.ipynb",
        "colab/compare.ipynb",
    ]
    assert all((ROOT / path).exists() for _, path in targets)
    for address in (readme_parts.PLACEHOLDER, "https://git.example.org/a/b.git"):
        assert readme_parts.write_badges(address) == ""
        assert "colab" not in readme_parts.write_clone(address)


def test_presets_are_described():
    """A row for each preset, and a command only for presets that exist."""
    assert list(readme_parts.NEEDS) == list(PRESETS)
    assert set(re.findall(r"PRESET=(\w+)", README)) <= set(PRESETS)


def test_commands_exist():
    """Every `make` command of README is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"run", "seeds", "test"} <= commands
    for command in commands:
        assert re.search(rf"^(?:[a-z ]+ )?{command}(?: [a-z ]+)?:", makefile, re.MULTILINE), command


def test_python_of_readme_can_run():
    """The names that its Python imports are there, and so is the folder of the demo's base."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                assert hasattr(importlib.import_module(node.module), name.name)
    assert (ROOT / "demo" / "hub" / "opt" / "config.json").is_file()
    assert '"demo/hub/opt"' in code


def test_tree_of_readme_exists():
    """What README lists lies in the repository."""
    (tree,) = re.findall(r"```\n(main\.ipynb.*?)```", README, re.DOTALL)
    for line in tree.splitlines():
        if not line.startswith(" "):
            listed = line.split("  ")[0] if not line.startswith("docs/") else line
            for name in listed.split():
                assert (ROOT / name.replace("<run>/", "")).exists(), name


def test_pages_are_listed():
    """README's list of pages names every document of docs/."""
    listed = re.findall(r"^\| \[docs/([\w-]+\.md)\]", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


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
