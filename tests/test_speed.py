"""The benchmark of speed at toy size: it runs, and the work is the same whichever way it is done."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
import trl.trainer.utils
from conftest import ROOT, load

from benchmarks import demo_run, growth, real_model, speed
from demo import build
from posttrain import dpo, hh, training


@pytest.fixture(scope="module")
def toys(hub, tmp_path_factory):
    """A base and a judge of toy size, and the dataset."""
    folder = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.OPT, "vocab_size", build.OPT["vocab_size"])  # is set, and set back afterwards
        speed.build_models(folder, hub / "hh-rlhf", toy=True)
        yield folder, hub / "hh-rlhf"


@pytest.fixture(autouse=True)
def head(monkeypatch):
    """Set back what the baselines set: TRL's own choice of the positions that go through the vocabulary."""
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)


@pytest.mark.parametrize("stage", ["SFT", "DPO"])
def test_training_is_the_same_work(toys, stage):
    """The study's way and the notebook's: the same tokens, and the same loss on them before anything is learned."""
    ours, published = (speed.measure_training(stage, way, *toys) for way in ("ours fp32", "published"))
    for name in ("pairs", "tokens", "tokens with a loss"):
        assert ours[name] == published[name]
    assert ours["values"] == pytest.approx(published["values"], rel=speed.ROUNDING["fp32"])
    assert (len(ours["seconds"]) * speed.STEP, ours["pairs"]) == (speed.PAIRS[stage], speed.PAIRS[stage])


DIFFERENT = [  # stage, and what one of its measurements has otherwise
    ("SFT", {"pairs": 8}), ("SFT", {"tokens": 1}), ("DPO", {"tokens with a loss": 1}), ("DPO", {"trained weights": 1}),
    ("SFT", {"values": {"loss": 12.9}}), ("DPO", {"values": {"log p(chosen)": -300.0, "log p(rejected)": -298.0}}),
    ("generation", {"texts": ["one", "two", "other"]}), ("judging", {"rewards": [0.5, -1.0002]}),
    ("SFT", {"values": {"loss": math.nan}}), ("judging", {"rewards": [math.nan, -1.0]})]


@pytest.fixture
def runs():
    """What two rounds of the same work give, of every stage and way."""
    same = {"pairs": 16, "tokens": 4000, "tokens with a loss": 900, "trained weights": 5000}
    found = {"SFT": same | {"values": {"loss": 12.8}}, "generation": {"texts": ["one", "two", "three"]},
             "DPO": same | {"values": {"log p(chosen)": -300.0, "log p(rejected)": -299.0}},
             "judging": {"rewards": [0.5, -1.0]}}
    return {stage: {way: [found[stage], found[stage]] for way in ways} for stage, ways in speed.WAYS.items()}


@pytest.mark.parametrize("at", [("published", 0), ("published", 1), ("ours", 1)])
@pytest.mark.parametrize(("stage", "other"), DIFFERENT)
def test_other_work_is_refused(runs, stage, other, at):
    """A way, or a round, that did something else is not compared."""
    assert not speed.same_work(runs)[1]
    way, i = at
    runs[stage][way][i] = runs[stage][way][i] | other
    assert {what.partition(", ")[0] for what in speed.same_work(runs)[1]} == {stage}


@pytest.mark.parametrize("texts", [["one", "", "two"], ["one", "one", "one"]])
def test_texts_that_prove_nothing_are_refused(runs, texts):
    """Empty ones, and one text for every prompt, are alike whatever the models read."""
    runs["generation"] = {way: [{"texts": texts}] * 2 for way in runs["generation"]}
    assert speed.same_work(runs)[1] == ["generation, texts"]


def test_wrong_reading_changes_the_values(toys, runs, monkeypatch):
    """The proof can fail: where a rejected reply sees the chosen one too, its log-probability differs."""
    packed_pairs = dpo.packed_pairs
    right = speed.measure_training("DPO", "ours fp32", *toys)
    monkeypatch.setattr(dpo.PairTrainer, "_values_are_the_same", lambda trainer: True)
    monkeypatch.setattr(dpo, "packed_pairs", lambda ids, mask: (
        (found := packed_pairs(ids, mask))[0] | {"attention_mask": torch.ones_like(found[0]["attention_mask"]).tril()},
        found[1]))
    wrong = speed.measure_training("DPO", "ours fp32", *toys)
    runs["DPO"] = {way: [right] for way in runs["DPO"]}
    assert not speed.same_work(runs)[1]
    runs["DPO"]["ours fp32"] = [wrong]
    assert speed.same_work(runs)[1] == ["DPO, log p(rejected) in fp32"]


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_pairs_are_drawn_in_passes_of_like_length(at_once):
    """So many of those of a training, none twice, with hardly any padding, and of all lengths."""
    generator = random.Random(1)
    lengths = [generator.randint(20, 500) for _ in range(800)]
    drawn = speed.drawn_pairs(lengths, at_once, 32)
    assert len(set(drawn)) == 32
    passes = [[lengths[i] for i in drawn[k : k + at_once]] for k in range(0, 32, at_once)]
    assert sum(map(sum, passes)) > 0.9 * sum(at_once * max(one) for one in passes)
    assert max(map(max, passes)) > 2 * min(map(min, passes))


def test_answers_and_rewards_are_the_same(toys):
    """Many at a time or one: the same texts, and rewards within rounding."""
    texts = [speed.measure_generation(way, *toys)["texts"] for way in ("ours", "published")]
    assert texts[0] == texts[1]
    assert all(texts[0])
    assert len(set(texts[0])) > 1
    rewards = [speed.measure_judging(way, *toys)["rewards"] for way in ("ours", "published")]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)


@pytest.mark.parametrize(("folder", "left_out"), [("", ()), ("without_bf16", ("TRL", "ours fp32"))])
def test_committed_tables_follow_from_the_committed_timings(folder, left_out):
    """And these are of full-size models, each measured again, with the proofs that the work was the same."""
    record = load(ROOT / "benchmarks" / folder / "speed.json")
    assert not record["toy"]
    assert speed.as_table(record) == (ROOT / "benchmarks" / folder / "speed.md").read_text(encoding="utf-8")
    assert speed.same_work(record["runs"], record.get("ours computes in", "bf16")) == (record["same work"], [])
    assert {stage: tuple(ways) for stage, ways in record["runs"].items()} == {
        stage: tuple(way for way in ways if way not in left_out) for stage, ways in speed.WAYS.items()}
    assert min(len(runs) for ways in record["runs"].values() for runs in ways.values()) > 1


@pytest.mark.parametrize("benchmark", [demo_run, growth, real_model])
def test_committed_tables_follow_from_the_committed_records(benchmark):
    """The tables in the documents are those of the records, which are not of toys."""
    path = ROOT / "benchmarks" / benchmark.__name__.rpartition(".")[2]
    found = load(path.with_suffix(".json"))
    assert benchmark.as_table(found) == path.with_suffix(".md").read_text(encoding="utf-8")
    assert not found.get("toy")


def test_what_is_said_of_the_real_model_is_in_its_run():
    """The figures of the table are those of results/real-model/, which holds no text."""
    log, found = (load(ROOT / path) for path in ("results/real-model/training.json", "benchmarks/real_model.json"))
    for name, records in log.items():
        assert real_model.held_out(records).items() <= found["run"][name].items()
    assert {path.name for path in (ROOT / "results" / "real-model").iterdir()} == {"run.json", "training.json"}


def test_models_are_asked_about_the_test_pairs(hub, copied_run, monkeypatch):
    """With the run's own adapters: the demo's prefer the chosen reply in most pairs they were not trained on."""
    for name, value in {"PLACE": copied_run.folder, "BASE": hub / "opt", "RUN": "demo"}.items():
        monkeypatch.setattr(real_model, name, value)
    found = real_model.on_test_pairs(hub / "hh-rlhf")
    rows = sum(len(hh.read_split(hub / "hh-rlhf", subset, "test")) for subset in hh.SUBSETS["base"])
    held_out = {name: real_model.held_out(log) for name, log in load(copied_run.run / "training.json").items()}
    for name, one in found.items():
        assert 100 < one["pairs"] <= rows
        assert one["rewards/margins"] == pytest.approx(held_out[name]["rewards/margins"][1], rel=0.3)
        assert one["loss"] == pytest.approx(held_out[name]["loss"][1], abs=0.1)
        assert one["rewards/accuracies"] == pytest.approx(held_out[name]["rewards/accuracies"][1], abs=0.1)


def test_a_round_of_other_work_ends_the_benchmark(toys, tmp_path, monkeypatch):
    """Rounds are measured in turn; where they did not do the same no table is written, but what was measured stays."""
    record, calls = load(ROOT / "benchmarks" / "speed.json"), []

    def made(benchmark, stage, way, *places):
        calls.append((stage, way))
        return record["runs"][stage][way][0] | ({"texts": ["other"]} if len(calls) == 21 else {})

    monkeypatch.setattr(speed, "in_a_process", made)
    monkeypatch.setattr(speed, "build_models", lambda *places: None)
    monkeypatch.setattr(training, "precision", lambda wanted: "bf16")  # as where the record was made
    monkeypatch.setattr(sys, "argv", ["speed", "--repeats", "2", "--out", str(tmp_path)])
    with pytest.raises(RuntimeError, match="generation, texts"):
        speed.main()
    assert calls == [(stage, way) for stage, ways in speed.WAYS.items() for way in ways] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["speed-unfinished.json"]
    assert load(tmp_path / "speed-unfinished.json")["runs"]["generation"]["published"][1]["texts"] == ["other"]
    monkeypatch.setattr(sys, "argv", ["speed", "--repeats", "1", "--out", str(tmp_path), "--leave-out", "TRL"])
    speed.main()
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.md"}
    found = load(tmp_path / "speed.json")
    assert [len(runs) for ways in found["runs"].values() for runs in ways.values()] == [1] * 10
    assert len(found["matmul GFLOP/s"]) == 2


@pytest.mark.parametrize("benchmark", [speed, growth])
def test_missing_dataset_is_said_at_once(benchmark, tmp_path, monkeypatch, capsys):
    """Before anything is built or measured, by the option's name."""
    monkeypatch.setattr(sys, "argv", ["benchmark", "--dataset", str(tmp_path / "none"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"argument --dataset: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_growth_runs_at_toy_size(hub, tmp_path):
    """A hundredth of the work: all stages at all sizes, in processes of their own."""
    subprocess.run([sys.executable, "-m", "benchmarks.growth", "--toy", "--repeats", "1", "--out", tmp_path], cwd=ROOT,
                   check=True)
    runs = load(tmp_path / "growth.json")["runs"]
    assert [(one["stage"], one["times"]) for one in runs[:4]] == [
        (stage, times) for times in (1, 4) for stage in ("preparing pairs", "setting up trainers")]
    assert len(runs) == 12
    assert all(one["seconds"] > 0 for one in runs)


def test_committed_growth_is_of_several_rounds():
    """Each stage was measured again at each size, and four answers to each prompt were judged."""
    runs = load(ROOT / "benchmarks" / "growth.json")["runs"]
    of_a_size = Counter((one["stage"], one["times"]) for one in runs)
    assert min(of_a_size.values()) == max(of_a_size.values()) > 1
    for times in growth.TIMES:
        n = {one["stage"]: one["n"] for one in runs if one["times"] == times}
        assert n == {"preparing pairs": times * growth.PAIRS, "setting up trainers": times * growth.PAIRS,
                     "generation": times * growth.TEXTS, "judging": 4 * times * growth.TEXTS}


def test_growth_is_of_the_medians():
    """Of all rounds, per unit of work; the peak is the highest."""
    runs = [{"stage": "judging", "times": times, "n": 10 * times, "seconds": times * seconds, "peak GiB": seconds}
            for seconds in (1, 2, 9) for times in growth.TIMES]
    runs += [{**one, "seconds": one["seconds"] * one["times"] ** 0.5, "stage": "generation"} for one in runs]
    table = growth.as_table({"runs": runs}).splitlines()
    assert table[3] == "| judging | 40 | 8.0 (4.0, 8.0, 36.0) | 1.00 | 9.00 |"
    assert table[7] == "| generation | 160 | 128.0 (64.0, 128.0, 576.0) | 4.00 | 9.00 |"
