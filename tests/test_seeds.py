"""Runs that differ in the seed of their training: what they share, how far they spread."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import MODELS, RAW, ROOT, load
from scipy import stats as scipy_stats

from posttrain import checks, seeds
from posttrain.files import sha256_of
from posttrain.ledger import ADAPTERS, Artifact, Ledger


def metrics_of(*cas):
    """Return what a seed's metrics.json holds of CAS, one value a model."""
    pairs = [(MODELS[i], MODELS[j]) for i in range(4) for j in range(i + 1, 4)]
    return {"models": [{"model": name, **dict.fromkeys(("HmR", "HpR", "harmful_reward", "helpful_reward"), 1.0),
                        "CAS": value} for name, value in zip(MODELS, cas)],
            "comparisons": [{"measure": "CAS", "first": a, "second": b, "low": -1.0, "high": 9.0,
                             "difference": cas[MODELS.index(b)] - cas[MODELS.index(a)]} for a, b in pairs]}


GROUP = [metrics_of(40, 60, 50, 70), metrics_of(40, 64, 50, 66), metrics_of(40, 71, 50, 65)]


def test_spread_by_hand():
    """Every seed's value, the mean, the sample's standard deviation; unknown of a single seed."""
    found = {row["model"]: row for row in seeds.across(GROUP) if row["measure"] == "CAS"}
    assert found["SFT"]["values"] == [60, 64, 71]
    assert (found["SFT"]["mean"], found["SFT"]["sd"]) == pytest.approx((65, np.std([60, 64, 71], ddof=1)))
    assert found["Base"]["sd"] == 0
    assert seeds.across(GROUP[:1])[0]["sd"] is None


def test_t_interval_is_scipys():
    """Over seeds alone; equal differences and single seeds have none; the prompts' interval is the first run's."""
    found = {(row["first"], row["second"]): row for row in seeds.differences(GROUP)}
    row = found["SFT", "SFT+DPO"]
    assert row["values"] == [10, 2, -6]
    expected = scipy_stats.ttest_1samp([10, 2, -6], 0).confidence_interval()
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((2, *expected))
    assert (row["difference"], row["prompts_low"], row["prompts_high"]) == (10, -1, 9)
    assert (found["Base", "DPO"]["low"], found["Base", "DPO"]["high"]) == (None, None)
    assert seeds.differences(GROUP[:1])[0]["low"] is None


# ---- runs beside each other

LIMITS = {"harmless": -3, "helpful": -2}


def evaluated(folder, seed, **changes):
    """Write an evaluated run's ledger and metrics; `changes`: of settings, or of what scores were made from."""
    folder.mkdir(parents=True)
    made = {"base_model": "b", "n_prompts": 50, "adapters/sft": f"sft{seed}", "responses.json": f"r{seed}"} | changes
    scores = [{"id": "harmful-00", "model": name, "reward": seed} for name in (*MODELS, "Refusal")]
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "metrics.json").write_text(json.dumps({"thresholds": LIMITS} | metrics_of(1, 2, 3, 4)))
    entry, training = {"seconds": 1.0, "environment": {}}, {"seed": seed, "beta": changes.get("beta", 0.1)}
    ledger = Ledger(run=folder.name, settings={"training": training}, artifacts={
        "prompts.json": Artifact(made_from={}, sha256=changes.get("prompts", "p"), **entry),
        "scores.json": Artifact(made_from=made, sha256=sha256_of(folder / "scores.json"), **entry)})
    (folder / "run.json").write_text(ledger.model_dump_json())


def test_siblings_differ_in_their_seed_alone(tmp_path, capsys):
    """In the order of their names, its own metrics among them; what is not evaluated yet is named and left out."""
    for seed in (0, 1):
        evaluated(tmp_path / f"demo-seed{seed}", seed)
    own = {"thresholds": LIMITS}
    for names, order in ((["demo-seed2", "demo-seed1", "demo-seed0"], ["demo-seed1", "demo-seed0"]),
                         (["demo-seed1"], ["demo-seed0", "demo-seed1"])):
        found = seeds.group(tmp_path / "demo-seed0", names, own)
        assert list(found) == order
        assert found["demo-seed0"] is own
    assert capsys.readouterr().out == f"SEED_RUNS: {tmp_path / 'demo-seed2'} is not evaluated yet, or not there.\n"


@pytest.mark.parametrize(("changes", "what"), [
    ({"beta": 0.2}, "beta"), ({"n_prompts": 20}, "n_prompts"), ({"prompts": "q"}, "prompts.json"),
    ({"base_model": "c"}, "base_model"), ({}, "trained with seed 0")])
def test_run_that_differs_in_more_is_refused(tmp_path, changes, what):
    """Named: the other run and what differs; the same seed twice tells nothing either."""
    evaluated(tmp_path / "a", 0)
    evaluated(tmp_path / "b", 1 if changes else 0, **changes)
    with pytest.raises(ValueError, match=f"SEED_RUNS: .*b .*{what}"):
        seeds.group(tmp_path / "a", ["b"], {"thresholds": LIMITS})


def test_other_thresholds_are_refused(tmp_path):
    """Rates under other thresholds are no other seed's."""
    for seed in (0, 1):
        evaluated(tmp_path / str(seed), seed)
    with pytest.raises(ValueError, match="threshold harmless is -3 there, -4 here"):
        seeds.group(tmp_path / "0", ["1"], {"thresholds": {"harmless": -4, "helpful": -2}})


def test_what_does_not_depend_on_the_training_is_taken_over(tmp_path):
    """Records of Base and the references, of a run whose artifact differs in the adapters alone and is whole."""
    evaluated(tmp_path / "a", 5)
    made = {"base_model": "b", "n_prompts": 50, "adapters/sft": "other", "responses.json": "other"}

    def taken(**changes):
        folders = [tmp_path / "none", tmp_path / "a"]
        return seeds.independent_of_training(folders, "scores.json", made | changes, ["Base"])

    assert taken() == [{"id": "harmful-00", "model": "Base", "reward": 5}]
    assert taken(base_model="c") == taken(max_new_tokens=3) == []
    (tmp_path / "a" / "scores.json").write_text("[]")
    assert taken() == []


# ---- make seeds, make rejudge

def command(*arguments):
    """Return the finished process of `python -m posttrain` with arguments."""
    return subprocess.run([sys.executable, "-m", "posttrain", *arguments], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ)


@pytest.fixture(scope="module")
def group(hub, tmp_path_factory):
    """Two small demo runs that differ in their seed."""
    results = tmp_path_factory.mktemp("group") / "results"
    done = command("seeds", "SEEDS=3 4", "PRESET=demo", f"RESULTS={results}", "MAX_PAIRS=60", "N_PROMPTS=12",
                   "MAX_NEW_TOKENS=8", 'SETTINGS={"validation_pairs": 10, "draws": 200}')
    assert done.returncode == 0, done.stderr[-3000:]
    return results


def test_seeds_change_the_training_alone(group):
    """Same prompts, Base's responses and the references' rewards taken over; other adapters, another order."""
    first, second = (group / f"demo-seed{seed}" for seed in (3, 4))
    assert (first / "prompts.json").read_bytes() == (second / "prompts.json").read_bytes()
    for name in ("responses.json", "scores.json"):
        base = [[row for row in load(folder / name) if row["model"] not in ADAPTERS] for folder in (first, second)]
        assert base[0] == base[1]
    ledgers = [load(folder / "run.json") for folder in (first, second)]
    assert [ledger["settings"]["training"]["seed"] for ledger in ledgers] == [3, 4]
    assert [ledger["settings"]["evaluation"]["seed"] for ledger in ledgers] == [0, 0]
    for adapter in ADAPTERS.values():
        assert len({ledger["artifacts"][adapter]["sha256"] for ledger in ledgers}) == 2


def test_last_run_shows_all_seeds(group):
    """Its metrics.json holds the group; the numbers are those of the runs; the figure is there."""
    spread = load(group / "demo-seed4" / "metrics.json")["seeds"]
    assert spread["runs"] == ["demo-seed3", "demo-seed4"]
    runs = [{row["model"]: row for row in load(group / name / "metrics.json")["models"]} for name in spread["runs"]]
    for record in spread["models"]:
        assert record["values"] == [run[record["model"]][record["measure"]] for run in runs]
    assert len(spread["differences"]) == 30
    assert (group.parent / "figures" / "demo-seed4" / "seeds.png").exists()


def test_seeds_that_are_none():
    """Too few, no numbers, or SEED besides: said before anything is done."""
    for arguments, said in ((("SEEDS=1",), "two or more seeds"), (("SEEDS=a b",), "two or more seeds"),
                            (("SEEDS=1 1",), "two or more seeds are needed, each once"),
                            (("SEEDS=1 2", "SEED=3"), "SEED is the training's here")):
        done = command("seeds", *arguments)
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_published_responses_are_judged_again(hub, tmp_path):
    """Cut at the human turn, as a run of its own, measured whole; the published files stay as they are."""
    published = ROOT / "results" / "published"
    before = {name: sha256_of(published / name) for name in RAW}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "published").symlink_to(published)
    done = command("rejudge", f"RESULTS={tmp_path / 'results'}", f"REWARD_MODEL={hub / 'reward-model'}")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "results" / "published-cut"
    responses = load(run / "responses.json")
    assert len(responses) == 400
    assert not any(checks.HUMAN in row["response"] for row in responses)
    rewards = load(run / "scores.json")
    assert {row["model"] for row in rewards} == {*MODELS, "Empty", "Refusal"}
    assert load(run / "metrics.json")["running_on"] == []
    assert "responses from elsewhere, judged by" in load(run / "metrics.json")["run"]
    assert {name: sha256_of(published / name) for name in RAW} == before
    again = command("rejudge", f"RESULTS={tmp_path / 'results'}", "REWARD_MODEL=another/judge")
    assert "published-cut holds rewards or a run of its own. Choose another RUN" in again.stderr
    nowhere = command("rejudge", f"RESULTS={tmp_path / 'results'}", "FROM=nowhere")
    assert "nowhere has no prompts and no responses.json" in nowhere.stderr
    assert load(run / "scores.json") == rewards
