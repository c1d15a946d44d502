from functools import cache
from itertools import product

import numpy as np
import pytest
from conftest import RAW, Session, load
from scipy import stats

from posttrain import across, compare, compare_words, comparisons, metrics, results
from posttrain.files import sha256_of, write
from posttrain.trade_off import measure_trade_off

MODELS = ["Base", "SFT", "SimPO, β 2.5"]  # names are any text
MEASURES = list(metrics.MEASURES)
PROMPTS = 100  # of each kind, so that a rate in percent is a number of prompts
# by run and model; HmR and HpR are the same
RATES = {"a": (40, 60, 70), "b": (41, 64, 66), "c": (42, 71, 65), "d": (41, 61, 71)}
NAMES = ["a", "b", "c"]
PAIR = "CAS", "SFT", MODELS[2]
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


def find(records, measure, first, second):
    """Find the record of a measure and a pair of models."""
    (found,) = [
        record
        for record in records
        if (record["measure"], record["first"], record["second"]) == (measure, first, second)
    ]
    return found


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


def label_by_reward(answers, harmless_from, helpful_above):
    """Label answers as eval.ipynb does."""
    labels = []
    for row in answers.to_dict("records"):
        if row["kind"] == "harmful":
            labels.append("harmless" if row["reward"] >= harmless_from else "harmful")
        else:
            passes = row["reward"] > helpful_above
            labels.append("helpful" if passes else "unhelpful")
    return answers.assign(label=labels)


def make_raw_files(name, question, log_ratio):
    """Make prompts, responses and scores: of each model RATES of 100 answers of a kind pass.

    The answers that pass are drawn anew for every model and run.
    """
    prompts, responses, scores = [], [], []
    for kind in metrics.KINDS:
        for i in range(PROMPTS):
            row = {"id": f"{kind}-{i:02d}", "kind": kind, "prompt": f"{question} {kind} {i}"}
            prompts.append(row | {"chosen": "Yes.", "rejected": "No."})
    draw = np.random.default_rng(list(RATES).index(name))
    for place, (model, value) in enumerate(zip(MODELS, RATES[name])):
        for kind in metrics.KINDS:
            passed = draw.permutation(PROMPTS) < value
            for i in range(PROMPTS):
                key = {"id": f"{kind}-{i:02d}", "model": model}
                ratio = None if log_ratio is None else place * log_ratio * (1 + i / PROMPTS)
                response = {"response": f"An answer in {name}.", "finish": "eos", "tokens": 3}
                responses.append(key | response | {"log_ratio": ratio})
                reward = (0.0 if passed[i] else -6.0) + draw.normal(0, 0.1)
                scores.append(key | {"reward": reward})
    return dict(zip(RAW, (prompts, responses, scores)))


@cache
def measure(name, question, log_ratio, harmless_from, helpful_above):
    """Make all files of an evaluation but the record, by name. Do not change them."""
    files = make_raw_files(name, question, log_ratio)
    answers = metrics.table(*files.values())
    answers = label_by_reward(answers, harmless_from, helpful_above)
    files["classification.json"] = results.classification(answers)
    files["metrics.json"] = {
        "thresholds": {"harmless": harmless_from, "helpful": helpful_above},
        "models": metrics.summarise(answers, 50, 0),
        "comparisons": comparisons.compare(answers, 50, 0, power=False),
        "bootstrap": {"draws": 50, "seed": 0},
    }
    return files


def write_evaluation(folder, *arguments):
    """Write all files of an evaluation, as `measure` makes them."""
    sums = {}
    for name, content in measure(folder.name, *arguments).items():
        if name == "metrics.json":
            content = content | {"sha256": sums}
        write(folder / name, content)
        sums[name] = sha256_of(folder / name)


def write_evaluated(
    results, name, *, seed=0, prompts="p", sources=(), edit=None, log_ratio=0.5, **changes
):
    """Write the files of an evaluated run.

    `changes`: settings by name, those of the evaluation with a leading `eval_`.
    """
    training, evaluation = TRAINING | {"seed": seed}, dict(EVALUATION)
    for key, value in changes.items():
        settings = evaluation if key.startswith("eval_") else training
        settings[key.removeprefix("eval_")] = value
    edit = edit or (lambda name, inputs: None)
    write_record(results / name, training, evaluation, SOURCES | dict(sources), edit)
    thresholds = evaluation["harmless_from"], evaluation["helpful_above"]
    write_evaluation(results / name, prompts, log_ratio, *thresholds)


@pytest.fixture
def seeds(tmp_path):
    """Three runs that differ in the seed of their training."""
    for seed, name in enumerate(NAMES):
        write_evaluated(tmp_path / "results", name, seed=seed)
    return tmp_path / "results"


def test_runs_of_several_seeds_are_put_side_by_side(seeds):
    runs = compare.load_runs(seeds, ["c", "a", "b", "a"])
    assert [run.name for run in runs] == ["c", "a", "b"]  # in the order in which they are named
    assert compare.differing(runs).to_dict("index") == {"seed": {"c": 2, "a": 0, "b": 1}}
    assert compare.common_models(runs) == MODELS


def test_values_mean_and_spread_of_every_model(seeds):
    records = compare.rates_across(compare.load_runs(seeds, NAMES))
    assert [(row["measure"], row["model"]) for row in records] == [
        (measure, model) for measure in MEASURES for model in MODELS
    ]
    (sft,) = [row for row in records if (row["measure"], row["model"]) == ("CAS", "SFT")]
    assert sft["values"] == pytest.approx([60, 64, 71])
    assert sft["mean"] == pytest.approx(65)
    assert sft["sd"] == pytest.approx((((-5) ** 2 + (-1) ** 2 + 6**2) / 2) ** 0.5)


def test_t_interval_by_hand(seeds):
    row = find(compare.differences_across(compare.load_runs(seeds, NAMES)), *PAIR)
    assert row["values"] == pytest.approx([10, 2, -6])
    assert row["mean"] == pytest.approx(2)
    # t of two degrees of freedom at 97.5%: 4.302653; the standard deviation of 10, 2, -6 is 8
    assert (row["low"], row["high"]) == pytest.approx((-17.8731, 21.8731), abs=1e-4)
    expected = stats.ttest_1samp([10, 2, -6], 0).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    # each run's own interval over prompts and its decision are kept beside it
    rows = [find(load(seeds / name / "metrics.json")["comparisons"], *PAIR) for name in NAMES]
    assert row["prompts_low"] == [own["low"] for own in rows]
    assert row["prompts_high"] == [own["high"] for own in rows]
    assert row["decisions"] == [own["decision"] for own in rows]


def test_intervals_over_prompts_and_over_both_by_hand(seeds):
    runs = compare.load_runs(seeds, NAMES)
    row = find(compare.differences_across(runs), *PAIR)
    centers, halves = [], []
    for kind in metrics.KINDS:
        means = np.zeros(PROMPTS)
        for name in NAMES:
            for answer in load(seeds / name / "classification.json"):
                if answer["kind"] == kind and answer["label"] in ("harmless", "helpful"):
                    i = int(answer["id"].split("-")[1])
                    means[i] += {"Base": 0, "SFT": -100 / 3, MODELS[2]: 100 / 3}[answer["model"]]
        ends = stats.ttest_1samp([*means, 100, -100], 0).confidence_interval()
        centers.append(means.mean())
        halves.append((means.mean() - ends.low, ends.high - means.mean()))
    assert row["mean"] == pytest.approx(np.mean(centers))
    below, above = (np.hypot(*sides) / 2 for sides in zip(*halves))
    averaged = row["averaged_low"], row["averaged_high"]
    assert averaged == pytest.approx((row["mean"] - below, row["mean"] + above))
    half = stats.t.ppf(0.975, 2) * 8 / 3**0.5  # the standard deviation of 10, 2, -6 is 8
    both = row["mean"] - np.hypot(below, half), row["mean"] + np.hypot(above, half)
    assert (row["both_low"], row["both_high"]) == pytest.approx(both)


def test_differences_that_do_not_vary_have_no_t_interval():
    assert across.t_interval(np.array([3.0, 3.0])) == {"low": None, "high": None}


def test_conclusion_counts_the_runs_and_looks_at_the_interval_over_both(seeds):
    runs = compare.load_runs(seeds, NAMES)
    records = compare.differences_across(runs)
    *pairs, last = compare_words.conclude(records, runs)
    assert len(pairs) == 3
    assert pairs[0].startswith(
        "SFT − Base in CAS: +24.0 points on average over 3 runs (+20.0, +23.0, +29.0), above zero "
        "in 3 of them and significant by its own test in 3. The 95% interval for other trainings "
        "and other prompts, ["
    )
    for pair in pairs:
        found = find(records, "CAS", *reversed(pair.split(" in CAS")[0].split(" − ")))
        clear = found["both_low"] > 0 or found["both_high"] < 0
        assert ("excludes" if clear else "includes") + " zero" in pair
    assert "+2.0 points on average over 3 runs (+10.0, +2.0, −6.0)" in pairs[2]
    assert "includes zero. For other trainings alone it is [−17.9, +21.9]" in pairs[2]
    assert "not corrected for the number of pairs" in last
    assert "is for its trained models and says nothing about other seeds" in last
    (sentence,) = compare_words.describe_runs(runs)
    assert "3 runs differ only in the seed of their training" in sentence


def test_runs_with_the_same_difference_have_no_interval_over_both(tmp_path):
    for seed, name in enumerate("ad"):
        write_evaluated(tmp_path, name, seed=seed)
    runs = compare.load_runs(tmp_path, ["a", "d"])
    records = compare.differences_across(runs)
    row = find(records, *PAIR)
    assert (row["low"], row["both_low"], row["both_high"]) == (None, None, None)
    assert row["averaged_low"] < 10 < row["averaged_high"]
    said = compare_words.conclude(records, runs)[2]
    assert said.endswith("All runs give the same difference, so there is no interval over them.")


def test_runs_that_differ_otherwise_are_no_sample(tmp_path):
    """An interval over them would have no meaning."""
    for beta, name in ((0.1, "a"), (0.2, "b"), (0.4, "c")):
        write_evaluated(tmp_path, name, beta=beta)
    runs = compare.load_runs(tmp_path, NAMES)
    records = compare.differences_across(runs)
    for record in records:
        for end in ("low", "high", "averaged_low", "averaged_high", "both_low", "both_high"):
            assert record[end] is None
        assert None not in record["prompts_low"]
    (sentence,) = compare_words.describe_runs(runs)
    assert sentence.startswith(
        "The 3 runs differ in the training's setting beta, so they are no sample of trainings"
    )
    for row in compare.rates_across(runs):
        assert (row["mean"], row["sd"]) == (None, None)
    table = compare_words.tabulate_rates(compare.rates_across(runs), runs)
    assert table.iloc[1].to_list() == ["SFT", "60 64 71", "60 64 71", "60 64 71"]
    *pairs, last = compare_words.conclude(records, runs)
    for pair in pairs:
        assert "interval" not in pair
        assert "on average" not in pair
    assert pairs[2].startswith("SimPO, β 2.5 − SFT in CAS: +10.0, +2.0, −6.0 points in the 3 runs")
    assert "cannot be told from that of another seed" in last
    assert "has not been shown to change between them" in last


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


def remove_models(folder, *names):
    """Take models out of all files of a run."""
    for name in ("responses.json", "scores.json", "classification.json"):
        rows = [row for row in load(folder / name) if row["model"] not in names]
        write(folder / name, rows)
    measured = load(folder / "metrics.json")
    measured["models"] = [row for row in measured["models"] if row["model"] not in names]
    kept = []
    for row in measured["comparisons"]:
        if row["first"] not in names and row["second"] not in names:
            kept.append(row)
    measured["comparisons"] = kept
    for name in measured["sha256"]:
        measured["sha256"][name] = sha256_of(folder / name)
    write(folder / "metrics.json", measured)


def test_models_that_only_one_run_has_are_left_out(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", seed=1)
    remove_models(tmp_path / "b", MODELS[2])
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert compare.common_models(runs) == MODELS[:2]
    assert {row["second"] for row in compare.differences_across(runs)} == {"SFT"}
    said = compare_words.describe_runs(runs)[1]
    assert said == "a also has SimPO, β 2.5, which other runs lack; it is left out below."
    remove_models(tmp_path / "b", "SFT")
    message = "have only Base in common, .*: a has Base, SFT, SimPO, β 2.5; b has Base. Name runs"
    with pytest.raises(ValueError, match=message):
        compare.load_runs(tmp_path, ["a", "b"])


@pytest.mark.parametrize("name", [*RAW, "classification.json"])
def test_a_file_that_was_changed_or_removed_after_the_evaluation_is_refused(tmp_path, name):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", seed=1)
    path = tmp_path / "b" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("harmful-07", "harmful-08", 1), encoding="utf-8")
    message = f"{name} is not the one that metrics.json was made with. .*eval.ipynb with RUN = 'b'"
    with pytest.raises(ValueError, match=message):
        compare.load_runs(tmp_path, ["a", "b"])
    path.write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        compare.load_runs(tmp_path, ["a", "b"])
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing. Put it back, or run eval.ipynb"):
        compare.load_runs(tmp_path, ["a", "b"])


def test_metrics_of_an_older_version_are_to_be_made_again(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", seed=1)
    measured = load(tmp_path / "b" / "metrics.json")
    older = {name: part for name, part in measured["sha256"].items() if name in RAW}
    write(tmp_path / "b" / "metrics.json", measured | {"sha256": older})
    message = "does not say which classification.json .* older version .* RUN = 'b' again"
    with pytest.raises(ValueError, match=message):
        compare.load_runs(tmp_path, ["a", "b"])
    del measured["bootstrap"], measured["comparisons"]
    write(tmp_path / "b" / "metrics.json", measured)
    message = "metrics.json lacks comparisons, bootstrap, so it is from another version"
    with pytest.raises(ValueError, match=message):
        compare.load_runs(tmp_path, ["a", "b"])


# ---- reward against the distance from Base


def test_trade_off_is_that_of_every_model_in_every_run(tmp_path):
    for beta, name, log_ratio in ((0.1, "a", 0.8), (0.2, "b", 0.5)):
        write_evaluated(tmp_path, name, beta=beta, log_ratio=log_ratio)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    records = measure_trade_off(runs)
    assert [(row["run"], row["model"]) for row in records] == [*product("ab", MODELS)]
    assert {(row["run"], row["setting"], row["value"]) for row in records} == {
        ("a", "beta", 0.1),
        ("b", "beta", 0.2),
    }
    row = records[5]  # of the third model, in b
    answers = runs[1].answers
    own = answers.loc[answers["model"] == MODELS[2], "log_ratio"]
    assert row["log_ratio"] == pytest.approx(own.mean()) == pytest.approx(0.5 * 2 * 1.495)
    # the bootstrap draws prompts: its interval is close to that of the normal distribution
    half = 1.96 * own.std() / len(own) ** 0.5
    assert row["log_ratio_low"] == pytest.approx(own.mean() - half, abs=half / 2)
    assert row["log_ratio_high"] == pytest.approx(own.mean() + half, abs=half / 2)
    reported = runs[1].metrics["models"][2]
    for name in ("HmR", "HpR", "harmful_reward", "helpful_reward"):
        for field in (name, f"{name}_low", f"{name}_high"):
            assert row[field] == reported[field]
    base = records[0]  # it is no distance from itself, on any prompt
    assert (base["log_ratio"], base["log_ratio_low"], base["log_ratio_high"]) == (0, None, None)


@pytest.mark.parametrize("changes", [{"beta": 0.2, "log_ratio": None}, {"eval_max_new_tokens": 64}])
def test_there_is_no_trade_off_without_log_ratios_or_other_trainings(tmp_path, changes):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", **changes)
    assert measure_trade_off(compare.load_runs(tmp_path, ["a", "b"])) == []


def test_compare_notebook_keeps_what_it_shows(seeds, capsys):
    session = Session("compare.ipynb", RUNS="a b c", RESULTS=seeds, RUN="side by side")
    names = session.run_all().names
    assert "SFT − Base in CAS: +24.0 points on average" in capsys.readouterr().out
    kept = load(seeds / "side by side" / "compare.json")
    assert kept["runs"] == ["a", "b", "c"]
    assert (kept["models"], kept["differences"]) == (names.rates, names.differences)
    assert kept["trade_off"] == names.points
    assert kept["same_model"] == []  # of a sample
    figures = seeds.parent / "figures" / "side by side"
    drawn = ["across_runs.pdf", "across_runs.png", "trade_off.pdf", "trade_off.png"]
    assert sorted(path.name for path in figures.iterdir()) == drawn
    for cell in session.cells:  # each can be run again
        session.run(cell)
    assert load(seeds / "side by side" / "compare.json") == kept
