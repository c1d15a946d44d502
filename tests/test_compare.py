
import numpy as np
import pandas as pd
import pytest
from conftest import Session, load
from scipy import stats

from posttrain import compare
from posttrain.files import write

MODELS = ["Base", "SFT", "SimPO, β 2.5"]  # names are any text
MEASURES = ["HmR", "HpR", "CAS", "harmful_reward", "helpful_reward"]
CAS = {"a": (40, 60, 70), "b": (41, 64, 66), "c": (42, 71, 65)}  # by run and model
TRAINING = {
    "preset": "small",
    "base_model": "tiny/base",
    "dataset": "tiny/data",
    "subsets": "base",
    "dropout": 0.0,
    "sft_method": "lora",
    "sft_loss": "reply",
    "sft_learning_rate": 1e-3,
    "beta": 0.1,
    "batch_size": 16,
    "lora_r": 8,
    "lora_layers": "all-linear",
    "checkpoint_share": 0.1,
    "report_to": "none",
    "max_new_tokens": 48,
    "seed": 0,
}
EVALUATION = {
    "preset": "small",
    "dataset": "tiny/data",
    "reward_model": "tiny/judge",
    "harmless_from": -3.0,
    "helpful_above": -2.0,
    "max_new_tokens": 128,
    "batch_size": 32,
    "judge_tokens": 512,
    "seed": 0,
}
SOURCES = {"base_model": "b1", "dataset": "d1", "test_dataset": "t1", "reward_model": "r1"}


def trainer_inputs(training, name):
    """Make the inputs of a trainer as `train` records them, from the settings."""
    return {
        "trainer": "trl.SFTTrainer" if name == "SFT" else "trl.CPOTrainer",
        "arguments": {
            "seed": training["seed"],
            "beta": training["beta"],
            "learning_rate": training["sft_learning_rate"],
            "pairs_in_a_step": training["batch_size"],
            "label_smoothing": 0.0,
        },
        "constructor": {"share_prompts": not training["dropout"]},
        "model_config": {"dropout": training["dropout"], "layers": 2},
        "adapter_config": {"r": training["lora_r"], "target_modules": training["lora_layers"]},
        "trained_weights": {
            "tensors": 8 if training["lora_layers"] == "all-linear" else 4,
            "sha256_of_names": f"{training['lora_r']} {training['lora_layers']}",
        },
        "base_model": "b1",
        "goes_on_from": None if name == "SFT" else f"sft{training}",
        "train_dataset": f"drawn by {training['seed']}, a loss on the {training['sft_loss']}",
        "eval_dataset": f"drawn by {training['seed']}, a loss on the {training['sft_loss']}",
        "notebook": {},
    }


def write_record(folder, training, evaluation, sources, edit):
    artifacts = {}
    models = [{"name": "Base", "base": "tiny/base", "adapter": None, "parent": None}]
    for name, adapter in (("SFT", "adapters/sft"), ("SimPO, β 2.5", "adapters/simpo_2_5")):
        if training["sft_method"] == "full" and name == "SFT":
            adapter = "models/sft"
        inputs = trainer_inputs(training, name)
        edit(name, inputs)
        artifacts[adapter] = {
            "inputs": inputs,
            "sha256": f"{folder.name} {name}",
            "seconds": 1.0,
            "environment": {},
        }
        is_adapter = adapter.startswith("adapters")
        base, adapter = ("tiny/base", adapter) if is_adapter else (adapter, None)
        models.append({"name": name, "base": base, "adapter": adapter, "parent": None})
    table = {}
    for role, identity in sources.items():
        table[role] = {"name": f"tiny/{role}", "commit": None, "sha256": identity}
    record = {
        "run": folder.name,
        "preset": "small",
        "settings": {"training": training, "evaluation": evaluation},
        "models": models,
        "sources": table,
        "artifacts": artifacts,
    }
    write(folder / "run.json", record)


def write_metrics(folder, evaluation, values, prompts):
    rows = [dict.fromkeys(MEASURES, value) | {"model": m} for m, value in zip(MODELS, values)]
    comparisons = []
    for measure in MEASURES:
        for i, first in enumerate(MODELS):
            for j in range(i + 1, len(MODELS)):
                difference = values[j] - values[i]
                comparison = {"measure": measure, "first": first, "second": MODELS[j]}
                comparison |= {"difference": difference}
                comparison |= {"low": difference - 12.0, "high": difference + 12.0}
                comparisons.append(comparison)
    thresholds = {
        "harmless": evaluation["harmless_from"],
        "helpful": evaluation["helpful_above"],
    }
    metrics = {"thresholds": thresholds, "models": rows, "comparisons": comparisons}
    write(folder / "metrics.json", metrics | {"sha256": {"prompts.json": prompts}})


def write_evaluated(results, name, *, seed=0, prompts="p", sources=(), edit=None, **changes):
    """Write the record and the metrics of an evaluated run.

    `changes`: settings by name, those of the evaluation with a leading `eval_`.
    """
    training, evaluation = TRAINING | {"seed": seed}, dict(EVALUATION)
    for key, value in changes.items():
        settings = evaluation if key.startswith("eval_") else training
        settings[key.removeprefix("eval_")] = value
    edit = edit or (lambda name, inputs: None)
    write_record(results / name, training, evaluation, SOURCES | dict(sources), edit)
    write_metrics(results / name, evaluation, CAS[name], prompts)


@pytest.fixture
def seeds(tmp_path):
    """Three runs that differ in the seed of their training."""
    for seed, name in enumerate(CAS):
        write_evaluated(tmp_path / "results", name, seed=seed)
    return tmp_path / "results"


def test_runs_of_several_seeds_are_put_side_by_side(seeds):
    runs = compare.load_runs(seeds, ["c", "a", "b", "a"])
    assert [run.name for run in runs] == ["c", "a", "b"]  # in the order in which they are named
    assert compare.differing(runs).to_dict("index") == {"seed": {"c": 2, "a": 0, "b": 1}}
    assert compare.common_models(runs) == MODELS


def test_values_mean_and_spread_of_every_model(seeds):
    records = compare.rates_across(compare.load_runs(seeds, CAS))
    assert [(row["measure"], row["model"]) for row in records] == [
        (measure, model) for measure in MEASURES for model in MODELS
    ]
    (sft,) = [row for row in records if (row["measure"], row["model"]) == ("CAS", "SFT")]
    assert sft["values"] == [60, 64, 71]
    assert sft["mean"] == pytest.approx(65)
    assert sft["sd"] == pytest.approx((((-5) ** 2 + (-1) ** 2 + 6**2) / 2) ** 0.5)


def test_t_interval_by_hand(seeds):
    records = compare.differences_across(compare.load_runs(seeds, CAS))
    (row,) = [
        row
        for row in records
        if (row["measure"], row["first"], row["second"]) == ("CAS", "SFT", MODELS[2])
    ]
    assert row["values"] == [10, 2, -6]
    assert row["mean"] == pytest.approx(2)
    # t of two degrees of freedom at 97.5%: 4.302653; the standard deviation of 10, 2, -6 is 8
    assert (row["low"], row["high"]) == pytest.approx((-17.8731, 21.8731), abs=1e-4)
    expected = stats.ttest_1samp([10, 2, -6], 0).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    # each run's own interval over prompts is kept beside it
    assert (row["prompts_low"], row["prompts_high"]) == ([-2, -10, -18], [22, 14, 6])


def test_differences_that_do_not_vary_have_no_t_interval():
    assert compare.t_interval(np.array([3.0, 3.0])) == {"low": None, "high": None}


def test_conclusion_counts_the_runs_and_looks_at_the_interval(seeds):
    runs = compare.load_runs(seeds, CAS)
    records = compare.differences_across(runs)
    sentences = compare.conclude(records, runs)
    assert len(sentences) == 3
    assert sentences[0].startswith("SFT − Base in CAS: +24.0 points on average, above zero in 3 of")
    assert sentences[0].endswith("excludes zero.")
    assert sentences[2].startswith("SimPO, β 2.5 − SFT in CAS: +2.0 points on average, above zero")
    assert sentences[2].endswith("[−17.9, +21.9] includes zero.")


def test_runs_that_differ_otherwise_are_no_sample(seeds, monkeypatch):
    """An interval over them would have no meaning."""
    runs = compare.load_runs(seeds, CAS)
    records = compare.differences_across(runs)
    by_beta = pd.DataFrame({"a": [0.1], "b": [0.2]}, index=["beta"])
    monkeypatch.setattr(compare, "differing", lambda runs: by_beta)
    for sentence in compare.conclude(records, runs):
        assert "interval" not in sentence
        assert sentence.endswith(" of 3 runs.")


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.2},
        {"sft_learning_rate": 5e-4},
        {"batch_size": 8},
        {"lora_r": 4},
        {"lora_layers": ["q_proj", "v_proj"]},
        {"dropout": 0.1},
        {"sft_method": "full"},
        {"sft_loss": "transcript"},
        {"subsets": "all", "sources": {"dataset": "d2"}},
        {"eval_reward_model": "tiny/other", "sources": {"reward_model": "r2"}},
        {"eval_max_new_tokens": 64},
        {"eval_harmless_from": -2.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_may_differ_in_any_setting_and_what_follows_from_it(tmp_path, changes):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", **changes)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    varied = next(iter(changes)).replace("eval_", "evaluation's ")
    assert list(compare.differing(runs).index) == [varied]


def test_settings_on_which_no_result_depends_may_differ_besides(tmp_path):
    write_evaluated(tmp_path, "a")
    indifferent = {"checkpoint_share": 0.5, "report_to": "wandb", "max_new_tokens": 9}
    indifferent |= {"eval_batch_size": 1, "eval_judge_tokens": 4096}
    indifferent |= {"eval_second_judge": "tiny/second"}
    write_evaluated(tmp_path, "b", seed=1, **indifferent)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert list(compare.differing(runs).index) == ["seed"]


def edit_trainer(name, inputs):
    if name == "SFT":
        inputs["arguments"]["label_smoothing"] = 0.1


def edit_loss(name, inputs):
    if name != "SFT":
        inputs["notebook"]["SimPOTrainer"] = "def compute_loss(self): ..."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.2}, r"differ in 2 settings, beta, seed|differ in 2 settings, seed, beta"),
        ({"eval_max_new_tokens": 64}, r"differ in 2 settings, seed, evaluation's max_new_tokens"),
        ({"edit": edit_trainer}, r"b and a differ in seed, but .* inputs: label_smoothing\."),
        ({"edit": edit_loss}, r"b and a differ in seed, but .* inputs: SimPOTrainer\."),
        ({"prompts": "q"}, r"b and a were asked different prompts"),
        ({"sources": {"base_model": "b2"}}, r"differ in seed, but .* inputs: base_model\."),
        ({"sources": {"dataset": "d2", "reward_model": "r2"}}, r"inputs: dataset, reward_model\."),
    ],
    ids=["setting", "evaluation", "trainer", "loss", "prompts", "base", "sources"],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(tmp_path, changes, message):
    write_evaluated(tmp_path, "a", seed=0)
    write_evaluated(tmp_path, "b", seed=1, **changes)
    with pytest.raises(ValueError, match=f"RUNS: .*{message}"):
        compare.load_runs(tmp_path, ["a", "b"])


def test_edited_trainer_of_a_whole_model_is_refused_too(tmp_path):
    write_evaluated(tmp_path, "a", sft_method="full")
    write_evaluated(tmp_path, "b", sft_method="full", seed=1, edit=edit_trainer)
    with pytest.raises(ValueError, match="different inputs: label_smoothing"):
        compare.load_runs(tmp_path, ["a", "b"])


def test_other_thresholds_of_results_without_settings_are_refused(tmp_path):
    for name, limit in (("a", -3.0), ("b", -4.0)):
        write_evaluated(tmp_path, name, eval_harmless_from=limit)
        record = load(tmp_path / name / "run.json")
        write(tmp_path / name / "run.json", record | {"settings": {}})
    with pytest.raises(ValueError, match="RUNS: b and a were labelled with different thresholds"):
        compare.load_runs(tmp_path, ["a", "b"])


def test_too_few_runs_and_runs_that_are_not_there(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b")
    (tmp_path / "b" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="RUNS: name two or more runs"):
        compare.load_runs(tmp_path, ["a", "a"])
    with pytest.raises(ValueError, match="b has not been evaluated. Run eval.ipynb with"):
        compare.load_runs(tmp_path, ["a", "b"])
    with pytest.raises(FileNotFoundError, match="c has no run.json.*RESULTS are: a, b"):
        compare.load_runs(tmp_path, ["a", "c"])


def test_models_that_only_one_run_has_are_left_out(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", seed=1)
    metrics = load(tmp_path / "b" / "metrics.json")
    metrics["models"].pop()
    kept = [row for row in metrics["comparisons"] if row["second"] != MODELS[2]]
    write(tmp_path / "b" / "metrics.json", metrics | {"comparisons": kept})
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert compare.common_models(runs) == MODELS[:2]
    assert {row["second"] for row in compare.differences_across(runs)} == {"SFT"}


def test_compare_notebook_keeps_what_it_shows(seeds, capsys):
    session = Session("compare.ipynb", RUNS="a b c", RESULTS=seeds, RUN="side by side")
    names = session.run_all().names
    assert "SFT − Base in CAS: +24.0 points on average" in capsys.readouterr().out
    kept = load(seeds / "side by side" / "compare.json")
    assert kept["runs"] == ["a", "b", "c"]
    assert (kept["models"], kept["differences"]) == (names.rates, names.differences)
    figures = seeds.parent / "figures" / "side by side"
    assert {path.name for path in figures.iterdir()} == {"across_runs.png", "across_runs.pdf"}
    for cell in session.cells:  # each can be run again
        session.run(cell)
    assert load(seeds / "side by side" / "compare.json") == kept
