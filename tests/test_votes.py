"""A person's votes: which files are refused, who wins, and how often the judge agrees."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, load
from five_models import MODELS, make_prompts, make_responses, make_scores
from statsmodels.stats.inter_rater import cohens_kappa

from posttrain import preferences, votes
from posttrain.__main__ import main
from posttrain.files import sha256_of, write
from posttrain.metrics import wilson

SAME = "harmful-01"  # the prompt to which Base and SFT give the same answer


@pytest.fixture
def run(tmp_path):
    """The raw files of a run of five models; a test may change them."""
    folder = tmp_path / "five"
    prompts = make_prompts()
    responses = make_responses(prompts)
    for row in responses:
        if row["response"] == "":
            row["response"] = f"Nothing of {row['model']}."
        if row["id"] == SAME and row["model"] in MODELS[:2]:
            row["response"] = "The same."
    write(folder / "prompts.json", prompts)
    write(folder / "responses.json", responses)
    write(folder / "scores.json", make_scores(prompts))
    return folder


def make_file(folder, given, **changes):
    """Write a file of votes on a run, beside its folder, and return its path."""
    sha256 = {name: sha256_of(folder / name) for name in votes.RAW[:2]}
    data = {"run": folder.name, "sha256": sha256, "votes": given} | changes
    path = folder.parent / "given.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def vote(place=0, first="Base", second="SFT", winner="first", kind="helpful"):
    """Make a vote."""
    return {"id": f"{kind}-{place:02d}", "first": first, "second": second, "winner": winner}


# ---- files that are refused

REFUSED = {
    "unknown prompt": ([vote(99)], "vote 1 names the prompt 'helpful-99', which the run does not"),
    "unknown model": ([vote(), vote(1, second="GPT")], "vote 2 names the model 'GPT', which the"),
    "reference": ([vote(first="Human chosen")], "vote 1 names the model 'Human chosen'"),
    "itself": ([vote(second="Base")], "vote 1 compares Base with itself"),
    "winner": ([vote(winner="Base")], "vote 1 cannot be read .winner: Input should be 'first'"),
    "no winner": ([vote(), {"id": "helpful-01", "first": "Base", "second": "SFT"}],
                  "vote 2 has no winner"),
    "winner null": ([vote(winner=None)], "vote 1 has no winner"),
    "no models": ([{"id": "helpful-01", "winner": "tie"}], r"vote 1 cannot be read \(first: Field"),
    "no vote": (["first"], "vote 1 cannot be read"),
    "number": ([vote() | {"id": 4}], r"vote 1 cannot be read \(id: "),
    "twice": ([vote(), vote(1), vote()], "vote 3 is the second one on Base and SFT at helpful-00"),
    "twice, turned": ([vote(), vote(first="SFT", second="Base", winner="tie")], "vote 2 is the"),
    "equal": ([vote(1, kind="harmful")], "vote 1 prefers one of two equal answers, of Base and"),
    "none": ([], "has no vote. Save the votes again"),
    "not a list": ({"helpful-00": "first"}, r"is not a file of votes \(votes: Input should be a "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_votes_that_cannot_be_counted_are_refused_and_nothing_is_written(run, name):
    given, message = REFUSED[name]
    path = make_file(run, given)
    with pytest.raises(ValueError, match=message) as error:
        votes.write_votes(path, run)
    assert str(error.value).startswith(str(path))
    assert not (run / "votes.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a file of votes .the whole file"),
        (b"null", "is not a file of votes"),
        (b'"text"', "is not a file of votes"),
        (b'{"votes": []}', "is not a file of votes .run: Field required"),
        (b'{"run": "five", "sha256": 1, "votes": [1]}', "is not a file of votes .sha256"),
    ],
    ids=range(10),
)
def test_file_that_is_none_of_votes_is_refused(run, content, message):
    path = run.parent / "given.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"given.json {message}"):
        votes.write_votes(path, run)
    assert not (run / "votes.json").exists()


def test_votes_on_another_run_are_refused_by_name(run):
    path = make_file(run, [vote()], run="other")
    with pytest.raises(ValueError, match="votes on the run 'other', not on 'five'. Name that run"):
        votes.write_votes(path, run)


@pytest.mark.parametrize("name", ["prompts.json", "responses.json"])
def test_votes_on_other_texts_are_refused_by_the_name_of_the_file(run, name):
    path = make_file(run, [vote()])
    text = (run / name).read_text(encoding="utf-8")
    (run / name).write_text(text.replace("question", "Question"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"votes on another {name} than .*its sha256 is [0-9a-f]"):
        votes.write_votes(path, run)
    path = make_file(run, [vote()], sha256={})
    with pytest.raises(ValueError, match="its sha256 is not given there"):
        votes.write_votes(path, run)
    assert not (run / "votes.json").exists()


def test_file_of_votes_is_not_overwritten_by_the_result(run):
    path = make_file(run, [vote()]).rename(run / "votes.json")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="votes.json is where the result is written"):
        votes.write_votes(path, run)
    assert path.read_bytes() == before


def test_file_or_run_that_is_not_there_is_named(run):
    with pytest.raises(FileNotFoundError, match="VOTES: there is no file .*nowhere.json"):
        votes.write_votes(run.parent / "nowhere.json", run)
    path = make_file(run, [vote()])
    with pytest.raises(FileNotFoundError, match="RUN: .*prompts.json is not there"):
        votes.write_votes(path, run.parent / "two")


def test_a_result_stays_if_later_votes_are_refused(run):
    votes.write_votes(make_file(run, [vote()]), run)
    before = (run / "votes.json").read_bytes()
    with pytest.raises(ValueError, match="vote 1"):
        votes.write_votes(make_file(run, [vote(99)]), run)
    assert (run / "votes.json").read_bytes() == before


# ---- who wins


def test_wins_are_counted_from_whichever_side_an_answer_stood_on(run):
    """Of the second model in the run's order; a tie is half a win; each kind by itself."""
    given = [
        vote(0, "Base", "SFT", "second"),  # SFT wins
        vote(1, "SFT", "Base", "first"),  # SFT wins
        vote(2, "SFT", "Base", "second"),  # Base wins
        vote(3, "Base", "SFT", "tie"),
        vote(4, "DPO", "Base", "first"),  # DPO wins
        vote(1, "Base", "SFT", "tie", kind="harmful"),  # equal answers
    ]
    result = votes.write_votes(make_file(run, given), run)
    assert result == load(run / "votes.json")
    assert [result[name] for name in ("votes", "ties", "same")] == [6, 2, 1]
    rows = {(row["kind"], row["first"], row["second"]): row for row in result["win_rates"]}
    assert set(rows) == {
        ("harmful", "Base", "SFT"),
        ("helpful", "Base", "SFT"),
        ("helpful", "Base", "DPO"),
    }
    row = rows["helpful", "Base", "SFT"]
    assert (row["won"], row["lost"], row["tied"], row["n"]) == (2, 1, 1, 4)
    assert row["win_rate"] == 62.5
    # Bonett and Price 2012, written anew: one prompt is added to those won and to those lost.
    gain, loss = 3 / 6, 2 / 6
    half = 1.959964 * ((gain + loss - (gain - loss) ** 2) / 6) ** 0.5
    assert row["win_rate_low"] == pytest.approx(50 + 50 * (gain - loss - half), abs=1e-4)
    assert row["win_rate_high"] == pytest.approx(50 + 50 * (gain - loss + half), abs=1e-4)
    assert rows["helpful", "Base", "DPO"]["win_rate"] == 100
    assert rows["helpful", "Base", "DPO"]["win_rate_low"] < 50
    assert result["first_chosen"] == 50  # two of the four votes without a tie


def vote_by_rewards(folder, noise, seed=0):
    """Vote on all pairs of answers by their rewards and random noise; near ones are ties."""
    draw = np.random.default_rng(seed)
    rewards = {(row["id"], row["model"]): row["reward"] for row in load(folder / "scores.json")}
    given = []
    for prompt in make_prompts():
        for pair in combinations(MODELS, 2):
            first, second = draw.permutation(pair).tolist()
            lead = rewards[prompt["id"], first] - rewards[prompt["id"], second]
            lead += noise * draw.normal()
            winner = "tie" if abs(lead) < 0.3 else "first" if lead > 0 else "second"
            if prompt["id"] == SAME and set(pair) == set(MODELS[:2]):
                winner = "tie"
            record = {"id": prompt["id"], "first": first, "second": second, "winner": winner}
            given.append(record)
    return given


def test_agreement_and_kappa_are_those_of_a_recount(run):
    """By plain counting, and by statsmodels, on each kind and on both; equal answers left out."""
    given = vote_by_rewards(run, noise=1.5)
    result = votes.write_votes(make_file(run, given), run)
    assert [row["kind"] for row in result["judge"]] == ["harmful", "helpful", "both"]
    rewards = {(row["id"], row["model"]): row["reward"] for row in load(run / "scores.json")}
    for row in result["judge"]:
        table = np.zeros((3, 3))
        agreed = decided = 0
        for one in given:
            is_same = one["id"] == SAME and {one["first"], one["second"]} == {"Base", "SFT"}
            if is_same or row["kind"] not in ("both", one["id"].split("-")[0]):
                continue
            first, second = rewards[one["id"], one["first"]], rewards[one["id"], one["second"]]
            judged = "first" if first > second else "second"
            decided += one["winner"] != "tie"
            agreed += one["winner"] == judged
            names = ["first", "second", "tie"]
            turned = {"first": "second", "second": "first", "tie": "tie"}
            table[names.index(one["winner"]), names.index(judged)] += 1
            table[names.index(turned[one["winner"]]), names.index(turned[judged])] += 1
        assert row["votes"] == table.sum() / 2
        assert row["decided"] == decided
        assert row["agreement"] == pytest.approx(100 * agreed / decided)
        assert row["kappa"] == pytest.approx(cohens_kappa(table).kappa)
        assert row["kappa_low"] < row["kappa"] < row["kappa_high"]
        assert row["agreement_low"] < row["agreement"] < row["agreement_high"]


def test_a_person_who_votes_as_the_judge_agrees_with_it_always(run):
    """There is still an interval of the agreement, in which each prompt counts once."""
    given = [one for one in vote_by_rewards(run, noise=0) if one["winner"] != "tie"]
    row = votes.write_votes(make_file(run, given), run)["judge"][-1]
    assert (row["agreement"], row["agreement_high"]) == (100, 100)
    assert row["agreement_low"] == pytest.approx(wilson(row["prompts"], row["prompts"])["low"])
    assert row["kappa"] == 1
    assert row["kappa_low"] is None


def test_votes_turned_round_give_the_same_result(run):
    """Which answer stood first changes nothing but how often the first was chosen."""
    turned = {"first": "second", "second": "first", "tie": "tie"}
    given = vote_by_rewards(run, noise=1)
    other = []
    for one in given:
        record = {"id": one["id"], "first": one["second"], "second": one["first"]}
        other.append(record | {"winner": turned[one["winner"]]})
    results = [votes.write_votes(make_file(run, part), run) for part in (given, other)]
    for name in ("win_rates", "judge", "votes", "ties", "same"):
        assert results[0][name] == results[1][name], name
    assert results[0]["first_chosen"] == pytest.approx(100 - results[1]["first_chosen"])


def test_votes_on_a_run_without_all_rewards_give_win_rates_alone(run):
    rows = load(run / "scores.json")
    write(run / "scores.json", [row for row in rows if row["model"] != MODELS[-1]])
    result = votes.write_votes(make_file(run, [vote()]), run)
    assert result["judge"] == []
    assert len(result["win_rates"]) == 1
    assert "its agreement is not known" in "\n".join(votes.describe_votes(result))


def test_ties_alone_have_no_agreement(run):
    result = votes.write_votes(make_file(run, [vote(winner="tie"), vote(1, winner="tie")]), run)
    (row,) = result["judge"]
    assert "agreement" not in row
    assert "first_chosen" not in result
    assert "all votes are ties" in "\n".join(votes.describe_votes(result))


def test_votes_on_equal_answers_alone_say_nothing_of_the_judge(run):
    """It has scored all answers, so it is not said that it has not."""
    result = votes.write_votes(make_file(run, [vote(1, winner="tie", kind="harmful")]), run)
    assert result["judge"] == []
    lines = "\n".join(votes.describe_votes(result))
    assert "All votes are ties of equal answers." in lines
    assert "has not scored" not in lines
    assert "agreement and kappa" not in lines


# ---- the statistics by themselves


@pytest.mark.parametrize("seed", range(5))
def test_kappa_of_many_tables_is_that_of_statsmodels(seed):
    tables = np.random.default_rng(seed).integers(0, 20, size=(8, 3, 3))
    expected = [cohens_kappa(table).kappa for table in tables]
    assert preferences.kappas_of(tables) == pytest.approx(np.array(expected))


def test_kappa_is_unknown_where_both_always_say_the_same():
    only_ties = np.diag([0, 7, 0])
    assert np.isnan(preferences.kappas_of(np.array([only_ties]))).all()


def test_interval_of_one_vote_a_prompt_is_nearly_that_of_wilson():
    successes = np.repeat([1, 0], [70, 30])
    interval = preferences.clustered_wilson(successes, np.ones(100, dtype=int))
    assert interval["low"] == pytest.approx(wilson(70, 100)["low"], abs=0.1)
    assert interval["high"] == pytest.approx(wilson(70, 100)["high"], abs=0.1)


def test_votes_that_repeat_each_other_count_as_one():
    """Six equal votes on each prompt tell no more than one."""
    successes = np.repeat([1, 0], [35, 15])
    once = preferences.clustered_wilson(successes, np.ones(50, dtype=int))
    often = preferences.clustered_wilson(6 * successes, np.full(50, 6))
    assert often == pytest.approx(once)


def test_interval_of_dependent_votes_covers_the_truth():
    """In a simulation of fifty prompts of three votes that share their prompt's difficulty.

    Wilson's interval of the number of votes, which takes them as independent, does not.
    """
    draw = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(2000):
        difficulty = draw.beta(1.3, 0.7, size=50)  # its mean is 0.65
        successes = draw.binomial(3, difficulty)
        interval = preferences.clustered_wilson(successes, np.full(50, 3))
        covered += interval["low"] <= 65 <= interval["high"]
        interval = wilson(successes.sum(), 150)
        naive += interval["low"] <= 65 <= interval["high"]
    assert 0.935 <= covered / 2000 <= 0.975
    assert naive / 2000 < 0.9


def test_bootstrap_interval_of_kappa_covers_the_truth():
    """In a simulation of sixty prompts of two votes, with the kappa of the whole population."""
    draw = np.random.default_rng(2)
    table = np.array([[0.32, 0.0, 0.1], [0.08, 0.0, 0.08], [0.1, 0.0, 0.32]])  # person by judge
    truth = cohens_kappa(10_000 * table).kappa
    names = np.array(preferences.WINNERS)
    covered = 0
    for _ in range(100):
        cells = np.repeat(draw.choice(9, size=60, p=table.ravel()), 2)  # both votes are the same
        part = pd.DataFrame({"id": np.repeat(range(60), 2)})
        part["winner"], part["judged"] = names[cells // 3], names[cells % 3]
        part["kind"], part["is_same"] = "helpful", False
        (row,) = preferences.compare_with_judge(part)
        covered += row["kappa_low"] <= truth <= row["kappa_high"]
    assert covered / 100 > 0.87


# ---- the command


def test_command_counts_votes_and_says_what_they_show(run, capsys):
    path = make_file(run, vote_by_rewards(run, noise=1))
    main(["votes", "RUN=five", f"RESULTS={run.parent}", f"VOTES={path}"])
    printed = capsys.readouterr().out
    result = load(run / "votes.json")
    row = next(row for row in result["win_rates"] if row["kind"] == "helpful")
    assert f"helpful prompts: SFT over Base {row['win_rate']:.0f}% [" in printed
    both = result["judge"][-1]
    assert f"prefers the same answer in {both['agreement']:.0f}% [" in printed
    assert f"kappa is {both['kappa']:.2f} [" in printed
    assert "not independent" in printed
    assert f"All numbers are in {run / 'votes.json'}." in printed


@pytest.mark.parametrize("given", [[], ["RUN=five"], ["VOTES=a.json"]])
def test_command_asks_for_the_run_and_the_file(given):
    with pytest.raises(SystemExit, match="RUN, VOTES: name the run and the file"):
        main(["votes", *given])


def test_refusal_is_a_sentence_without_a_traceback(run):
    path = make_file(run, [vote(99)])
    given = ["votes", "RUN=five", f"RESULTS={run.parent}", f"VOTES={path}"]
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"{path}: vote 1 names the prompt")
    assert Path(path).exists()
