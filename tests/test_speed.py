"""The benchmarks run at toy size, their proofs can fail, and their tables match their records."""

import copy
import math
import random
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
import torch
import trl.trainer.utils
from conftest import ROOT, load

from benchmarks import (
    activations,
    coverage,
    demo_run,
    growth,
    real_model,
    seeds,
    seeds_and_prompts,
    speed,
    stages,
)
from posttrain import data, device, pair_trainer
from posttrain.run import Run

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def toys(hub, tmp_path_factory):
    """A base and a judge of toy size, and the dataset."""
    folder = tmp_path_factory.mktemp("toys")
    stages.build_models(folder, hub / "hh-rlhf", toy=True)
    return folder, hub / "hh-rlhf"


@pytest.fixture(autouse=True)
def head(monkeypatch):
    """Undo settings of the baselines: the positions and the words of TRL's logits."""
    for name in ("_use_triton", "_CHUNKED_LOGPROB_CHUNK_SIZE"):
        monkeypatch.setattr(trl.trainer.utils, name, getattr(trl.trainer.utils, name))


# ---- the same work


@pytest.fixture
def runs():
    """Two rounds of the same work, for every stage and every way."""
    same = {"pairs": 16, "tokens": 4000, "tokens with a loss": 900, "trained weights": 5000}
    measured = {
        "SFT": {**same, "values": {"loss": 12.8}},
        "DPO": {**same, "values": {"log p(chosen)": -300.0, "log p(rejected)": -299.0}},
        "generation": {"texts": ["one", "two", "three"]},
        "judging": {"rewards": [0.5, -1.0]},
    }
    rounds = {}
    for stage, ways in speed.WAYS.items():
        rounds[stage] = {way: [measured[stage], measured[stage]] for way in ways}
    return rounds


DIFFERENT = [  # a stage, and what one of its measurements has otherwise
    ("SFT", {"pairs": 8}),
    ("SFT", {"tokens": 1}),
    ("DPO", {"tokens with a loss": 1}),
    ("DPO", {"trained weights": 1}),
    ("SFT", {"values": {"loss": 12.9}}),
    ("SFT", {"values": {"loss": math.nan}}),
    ("DPO", {"values": {"log p(chosen)": -300.0, "log p(rejected)": -298.0}}),
    ("generation", {"texts": ["one", "two", "other"]}),
    ("judging", {"rewards": [0.5, -1.0002]}),
    ("judging", {"rewards": [math.nan, -1.0]}),
]


@pytest.mark.parametrize("place", [("published", 0), ("published", 1), ("ours", 1)])
@pytest.mark.parametrize(("stage", "other"), DIFFERENT)
def test_other_work_is_refused(runs, stage, other, place):
    """A way or a round that did other work is not compared."""
    assert not speed.same_work(runs)[1]
    way, i = place
    runs[stage][way][i] = runs[stage][way][i] | other
    different = speed.same_work(runs)[1]
    assert different
    assert all(sentence.startswith(f"{stage}, ") for sentence in different)


@pytest.mark.parametrize("texts", [["one", "", "two"], ["one", "one", "one"]])
def test_texts_that_prove_nothing_are_refused(runs, texts):
    """Empty texts, or one text for every prompt, would be equal for any model."""
    for way in runs["generation"]:
        runs["generation"][way] = [{"texts": texts}] * 2
    assert speed.same_work(runs)[1] == ["generation, texts"]


@pytest.mark.parametrize("together", [1, 2, 8])
def test_pairs_are_drawn_in_passes_of_like_length(together):
    """They are distinct pairs of a training, of all lengths, with little padding."""
    generator = random.Random(1)
    lengths = [generator.randint(20, 500) for _ in range(800)]
    drawn = stages.draw_pairs(lengths, together, 32)
    assert len(set(drawn)) == 32
    longest = []
    for start in range(0, 32, together):
        longest.append(max(lengths[i] for i in drawn[start : start + together]))
    assert sum(lengths[i] for i in drawn) > 0.9 * together * sum(longest)
    assert max(longest) > 2 * min(longest)


def test_answers_and_rewards_are_the_same(toys):
    """In batches or singly, the texts are the same and the rewards agree within rounding."""
    texts = stages.measure_generation("ours", *toys)["texts"]
    assert texts == stages.measure_generation("published", *toys)["texts"]
    assert all(texts)
    assert len(set(texts)) > 1
    rewards = stages.measure_judging("ours", *toys)["rewards"]
    assert rewards == pytest.approx(
        stages.measure_judging("published", *toys)["rewards"], abs=speed.REWARDS_WITHIN
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["SFT", "DPO"])
def test_training_is_the_same_work(toys, stage):
    """Every way has the same tokens and the same loss before anything is learned."""
    measured = {way: stages.measure(stage, way, *toys) for way in speed.WAYS[stage]}
    published = measured["published"]
    for way, measurement in measured.items():
        for name in ("pairs", "tokens", "tokens with a loss", "trained weights"):
            assert measurement[name] == published[name], way
        assert len(measurement["seconds"]) == stages.PAIRS[stage] / stages.STEP
        assert measurement["peak GiB"] > 0
    assert published["pairs"] == stages.PAIRS[stage]
    tolerance = speed.ROUNDING["fp32"]
    assert measured["ours fp32"]["values"] == pytest.approx(published["values"], rel=tolerance)


@pytest.mark.slow
def test_wrong_reading_changes_the_values(toys, runs, monkeypatch):
    """The proof can fail: a rejected reply that sees the chosen one has another log p."""
    pack_pairs = pair_trainer.pack_pairs

    def pack_wrongly(input_ids, attention_mask):
        packed, places = pack_pairs(input_ids, attention_mask)
        packed["attention_mask"] = torch.ones_like(packed["attention_mask"]).tril()
        return packed, places

    right = stages.measure_training("DPO", "ours fp32", *toys)
    trainer_class = pair_trainer.PairTrainer
    monkeypatch.setattr(trainer_class, "_values_are_the_same", lambda trainer: True)
    monkeypatch.setattr(pair_trainer, "pack_pairs", pack_wrongly)
    wrong = stages.measure_training("DPO", "ours fp32", *toys)
    runs["DPO"] = {way: [right] for way in runs["DPO"]}
    assert not speed.same_work(runs)[1]
    runs["DPO"]["ours fp32"] = [wrong]
    assert speed.same_work(runs)[1] == ["DPO, log p(rejected) in fp32"]


def test_a_round_of_other_work_ends_the_benchmark(tmp_path, monkeypatch):
    """The measurements are kept, but no table is made."""
    recorded = load(BENCHMARKS / "speed.json")["runs"]
    calls = []

    def measure_in_a_process(benchmark, stage, way, *places):
        calls.append((stage, way))
        other = {"texts": ["other"]} if len(calls) == 21 else {}
        return recorded[stage][way][0] | other

    monkeypatch.setattr(speed, "in_a_process", measure_in_a_process)
    monkeypatch.setattr(speed, "build_models", lambda *places: None)
    monkeypatch.setattr(speed, "measure_matmul", lambda: {"float32": 100.0, "bfloat16": 200.0})
    monkeypatch.setattr(device, "choose_precision", lambda wanted: "bf16")  # as it was recorded
    arguments = ["speed", "--out", str(tmp_path), "--repeats"]
    monkeypatch.setattr(sys, "argv", [*arguments, "2"])
    with pytest.raises(RuntimeError, match="generation, texts"):
        speed.main()
    assert calls == [(stage, way) for stage, ways in speed.WAYS.items() for way in ways] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["speed-unfinished.json"]
    unfinished = load(tmp_path / "speed-unfinished.json")["runs"]
    assert unfinished["generation"]["published"][1]["texts"] == ["other"]

    monkeypatch.setattr(sys, "argv", [*arguments, "1", "--leave-out", "TRL"])
    speed.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]
    record = load(tmp_path / "speed.json")
    ways = [way for ways in record["runs"].values() for way in ways]
    assert (len(ways), "TRL" in ways) == (10, False)
    assert len(record["matmul GFLOP/s"]) == 2


@pytest.mark.parametrize("benchmark", [speed, growth])
def test_missing_dataset_is_said_at_once(benchmark, tmp_path, monkeypatch, capsys):
    """The message names the option, before anything is built or measured."""
    missing = tmp_path / "none"
    arguments = ["benchmark", "--dataset", str(missing), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"argument --dataset: there is no folder {missing}" in capsys.readouterr().err


# ---- growth


@pytest.mark.slow
def test_growth_runs_at_toy_size(tmp_path):
    """All stages run at a hundredth of all sizes, in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--toy", "--repeats", "1"]
    subprocess.run([*command, "--out", tmp_path], cwd=ROOT, check=True)
    runs = load(tmp_path / "growth.json")["runs"]
    expected = []
    for of_process in (
        ("preparing pairs", "setting up trainers"),
        ("preparing the pairs again",),
        ("generation", "judging"),
    ):
        for times in growth.TIMES:
            expected += [(stage, times) for stage in of_process]
    assert [(run["stage"], run["times"]) for run in runs] == expected
    assert all(run["seconds"] > 0 for run in runs)


def test_growth_is_of_the_medians():
    """It uses the medians over all rounds per unit of work, and the highest peak."""
    runs = []
    for seconds in (1, 2, 9):
        for times in growth.TIMES:
            run = {"stage": "judging", "times": times, "n": 10 * times, "peak GiB": seconds}
            runs.append({**run, "seconds": times * seconds})
            runs.append({**run, "stage": "generation", "seconds": times**1.5 * seconds})
    table = growth.as_table({"runs": runs}).splitlines()
    assert table[3] == "| judging | 40 | 8.0 (4.0, 8.0, 36.0) | 1.00 | 9.00 |"
    assert table[7] == "| generation | 160 | 128.0 (64.0, 128.0, 576.0) | 4.00 | 9.00 |"


def test_growth_is_measured_on_conversations_of_their_own(tmp_path, hub):
    """There are as many pairs as asked for, all different, in the four subsets."""
    growth.write_dataset(tmp_path, 8000, hub / "hh-rlhf")
    texts = []
    for subset in data.SUBSETS["all"]:
        for row in data.read_split(tmp_path, subset, "train"):
            texts.append(row["chosen"])
            assert row["rejected"].startswith(row["chosen"].partition(".")[0])
            assert row["chosen"].startswith(f"{data.TURN} {subset}, train, ")
    assert len(set(texts)) == len(texts) == 8000


# ---- the demo's sections


def test_sections_are_timed(tmp_path):
    """The seconds of the cells are listed under the heading before them."""
    notebook = nbformat.v4.new_notebook()
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    notebook.cells = [code(), markdown("# Title"), code(), markdown("## 1. Data\n\nText"), code()]
    notebook.cells += [markdown("More."), code()]
    for cell, end in zip([notebook.cells[i] for i in (0, 2, 4, 6)], (1, 2, 4, 8)):
        times = {"busy": "2026-01-02T03:04:00.500000Z", "idle": f"2026-01-02T03:04:0{end}.500000Z"}
        cell.metadata["execution"] = {f"iopub.status.{name}": t for name, t in times.items()}
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    seconds = demo_run.measure_sections(tmp_path / "executed.ipynb")
    assert seconds == {"before the first section": 3, "1. Data": 12}


# ---- memory of activations


def test_activations_do_not_depend_on_the_size_and_follow_the_record(monkeypatch):
    """A narrower OPT has nearly the bytes of the wide one, and the order of the ways is theirs."""
    recorded = load(BENCHMARKS / "activations.json")["bytes"]
    narrow = copy.deepcopy(activations.MODELS["OPT-350M"])
    narrow.update({"hidden_size": 256, "num_attention_heads": 4, "ffn_dim": 1024})
    narrow.update({"word_embed_proj_dim": 256})
    for way in activations.WAYS:
        measured = activations.measure(narrow, way)
        with monkeypatch.context() as changed:
            changed.setattr(activations, "TOKENS", (96, 480))
            changed.setattr(activations, "LAYERS", (1, 3))
            assert activations.measure(narrow, way) == pytest.approx(measured, rel=0.01)
        # the adapter's own products are a larger share of a narrow model's
        assert recorded["OPT-350M"][way] < measured < 1.2 * recorded["OPT-350M"][way]
    for bytes_by_way in recorded.values():
        assert bytes_by_way["bf16"] < bytes_by_way["bf16, peft converts"] < bytes_by_way["fp32"]
        assert bytes_by_way["fp32"] < device.BYTES_OF_A_UNIT


# ---- coverage


def test_coverage_is_simulated_in_the_recorded_settings():
    """The settings are the same, and the shares lie between none and all."""
    record = load(BENCHMARKS / "coverage.json")
    assert coverage.list_failures(record) == []
    shares = coverage.simulate(data_sets=4, families=1)
    for name, settings in record.items():
        assert [setting for setting, _ in shares[name]] == [setting for setting, _ in settings]
        assert all(0 <= share <= 1 for _, share in shares[name])


def test_coverage_over_seeds_and_prompts_is_simulated_in_the_recorded_settings():
    record = load(BENCHMARKS / "seeds_and_prompts.json")
    assert seeds_and_prompts.list_failures(record) == []
    shares = seeds_and_prompts.simulate(data_sets=6)
    assert list(shares) == list(record)
    for methods in shares.values():
        assert list(methods) == list(seeds_and_prompts.METHODS)


# ---- what is committed


@pytest.mark.parametrize(
    ("name", "as_table"),
    [
        ("speed", speed.as_table),
        ("without_bf16/speed", speed.as_table),
        ("growth", growth.as_table),
        ("demo_run", demo_run.as_table),
        ("real_model", real_model.as_table),
        ("activations", activations.as_table),
        ("coverage", coverage.as_table),
        ("seeds", seeds.as_table),
        ("seeds_and_prompts", seeds_and_prompts.as_table),
    ],
)
def test_committed_tables_follow_from_the_committed_records(name, as_table):
    """The tables in the documents match the records, which are not of toy size."""
    record = load(BENCHMARKS / f"{name}.json")
    assert as_table(record) == (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
    assert not record.get("toy")


def test_committed_table_of_the_page_follows_from_its_record():
    """The same is true of the page's benchmark, which needs playwright."""
    pytest.importorskip("playwright")
    from benchmarks import report

    table = report.as_table(load(BENCHMARKS / "report.json"))
    assert table == (BENCHMARKS / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "left_out"), [(".", ()), ("without_bf16", ("TRL", "ours fp32"))]
)
def test_committed_timings_are_of_the_same_work(folder, left_out):
    """They cover all ways, each measured several times and with the proofs."""
    record = load(BENCHMARKS / folder / "speed.json")
    runs, ours = record["runs"], record.get("ours computes in", "bf16")
    assert speed.same_work(runs, ours) == (record["same work"], [])
    for stage, ways in speed.WAYS.items():
        assert list(runs[stage]) == [way for way in ways if way not in left_out]
        assert all(len(measurements) > 1 for measurements in runs[stage].values())


def test_committed_growth_is_of_several_rounds():
    """Each stage was measured several times at each size, with four answers per prompt."""
    runs = load(BENCHMARKS / "growth.json")["runs"]
    rounds = Counter((run["stage"], run["times"]) for run in runs)
    assert min(rounds.values()) == max(rounds.values()) > 1
    for times in growth.TIMES:
        assert {run["stage"]: run["n"] for run in runs if run["times"] == times} == {
            "preparing pairs": times * growth.PAIRS,
            "setting up trainers": times * growth.PAIRS,
            "preparing the pairs again": times * growth.PAIRS,
            "generation": times * growth.TEXTS,
            "judging": 4 * times * growth.TEXTS,
        }


# ---- the real model


def test_committed_values_of_the_real_model_are_in_its_run():
    """The table's values are those of results/real-model/, which has no texts."""
    folder = ROOT / "results" / "real-model"
    recorded = load(BENCHMARKS / "real_model.json")["run"]
    for model, log in load(folder / "training.json").items():
        assert real_model.read_validation(log).items() <= recorded[model].items()
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "training.json"]


@pytest.mark.slow
def test_models_are_asked_about_the_test_pairs(hub, copied_run):
    """The run's own adapters give values close to those on the held-out pairs."""
    run = Run(copied_run.folder / "results", "demo")
    tests = real_model.measure_test_pairs(run, hub / "opt", hub / "hh-rlhf")
    n_rows = 0
    for subset in data.SUBSETS["base"]:
        n_rows += len(data.read_split(hub / "hh-rlhf", subset, "test"))
    logs = load(copied_run.run / "training.json")
    assert list(tests) == ["DPO", "SFT+DPO"]
    for model, measures in tests.items():
        held_out = real_model.read_validation(logs[model])
        assert 100 < measures["pairs"] <= n_rows
        for name, tolerance in {"loss": 0.1, "rewards/accuracies": 0.1}.items():
            assert measures[name] == pytest.approx(held_out[name][1], abs=tolerance)
        margin = held_out["rewards/margins"][1]
        assert measures["rewards/margins"] == pytest.approx(margin, rel=0.3)


@pytest.mark.slow
def test_learning_rates_are_tried(hub, monkeypatch):
    """A few steps are made at each rate, with the held-out pairs before and after."""
    monkeypatch.setattr(real_model, "BASE", hub / "opt")
    monkeypatch.setattr(real_model, "TRIED", 32)
    trial = real_model.try_rate("DPO", 1e-3, hub / "hh-rlhf")
    assert (trial["steps"], trial["pairs"]) == (2, 32)
    before, after = trial["loss"]
    assert before == pytest.approx(math.log(2), abs=1e-3)
    assert after < before
