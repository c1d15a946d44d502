"""Bad input gets a message that names the file or setting and says what to do; nothing half-written stays."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, dialogue, execute, load, row, write_dataset, write_rows
from papermill.exceptions import PapermillExecutionError
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

DATA_SETTINGS = {"subsets": "base", "max_pairs": None, "validation_pairs": 10, "max_length": 512, "seed": 0}


# ---- settings

def test_unknown_preset(main):
    """The message names the setting, what was given and what there is."""
    with pytest.raises(ValueError, match="PRESET = 'huge' is unknown. Choose .*auto, demo, quick"):
        main.choose_preset("huge")


def test_path_is_a_setting_too(main):
    """A folder given as a Path is kept as text, as the records need it."""
    table = {"setting": ["dataset", "seed"], "demo": ["demo/hub", 0]}
    assert main.resolve(table, "demo", {"dataset": Path("a/b"), "seed": None}) == {"dataset": "a/b", "seed": 0}


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_preset_without_an_accelerator(main, preset):
    """The message names the preset and the two ways out."""
    with pytest.raises(RuntimeError, match=f"PRESET = '{preset}' needs .*accelerator.*Runtime.*PRESET = \"demo\""):
        main.choose_preset(preset)


def test_auto_takes_the_demo_without_an_accelerator(main):
    """`auto` takes what can run."""
    assert main.choose_preset("auto") == "demo"


def test_other_settings_are_refused(main, tmp_path):
    """What was made with other settings is refused: which setting, both values, how to start afresh."""
    main.refuse_other(tmp_path, {"seed": 0, "beta": 0.1}, {"seed": 0, "beta": 0.1})
    with pytest.raises(ValueError, match=r"made with beta = 0\.1,.* 0\.2\..*RUN.*FRESH = True, which moves"):
        main.refuse_other(tmp_path, {"seed": 0, "beta": 0.1}, {"seed": 0, "beta": 0.2})
    with pytest.raises(ValueError, match="made with seed = None, now it is 5"):
        main.refuse_other(tmp_path, {}, {"seed": 5})
    for made, now in ((50, None), (None, 50)):  # None is a setting like any other
        with pytest.raises(ValueError, match=f"made with n_prompts = {made}, now it is {now}"):
            main.refuse_other(tmp_path, {"n_prompts": made}, {"n_prompts": now})
    main.refuse_other(tmp_path, {"judge": "sha256 12"}, {})  # it is not there, and not needed


# ---- the dataset

@pytest.mark.parametrize("name", ["nowhere", "no/such/folder", "data/nowhere"])
def test_missing_dataset(main, tmp_path, monkeypatch, name):
    """A folder that is not there, absolute or relative, be it one that could also be a name on the hub."""
    monkeypatch.chdir(tmp_path)
    for dataset in (name, str(tmp_path / name)):
        with pytest.raises(ValueError, match=rf"DATASET = '{dataset}' cannot be had .*(name a folder|It is no folder)"):
            main.fetch("DATASET", dataset, kind="dataset")


def test_missing_subset(main, tmp_path):
    """A dataset without one of the subsets."""
    write_rows(tmp_path, "harmless-base", "test", [row()])
    with pytest.raises(ValueError, match=r"DATASET: .* has no helpful-base/test\.jsonl\.gz"):
        main.load_split(str(tmp_path), "helpful-base", "test")


def test_missing_split(main, tmp_path):
    """A dataset without one of the splits."""
    write_rows(tmp_path, "harmless-base", "train", [row()])
    with pytest.raises(ValueError, match=r"DATASET: .* has no harmless-base/test\.jsonl\.gz"):
        main.load_split(str(tmp_path), "harmless-base", "test")


def test_dataset_without_pairs(main, tmp_path):
    """A dataset of single texts: the message says which columns it has."""
    write_rows(tmp_path, "harmless-base", "train", [{"transcript": dialogue("Hi", "Hello."), "rating": 3}])
    with pytest.raises(ValueError, match=r"harmless-base/train has the columns \['rating', 'transcript'\].*chosen"):
        main.load_split(str(tmp_path), "harmless-base", "train")


def test_no_usable_pair(main, tmp_path, tokenizer):
    """Where cleaning leaves nothing to train on, the message says what became of the rows."""
    dataset = write_dataset(tmp_path, [row(rejected=""), row(chosen="Go away.")])
    with pytest.raises(ValueError, match="DATASET = .* no usable pair.*'empty reply': 1.*'identical replies': 1"):
        main.prepare_data(DATA_SETTINGS | {"dataset": dataset}, tokenizer)


def test_one_usable_pair_is_not_enough(main, tmp_path, tokenizer):
    """One pair is needed for validation, one for training."""
    one = {"harmless-base": [row()], "helpful-base": [row(rejected="")]}
    with pytest.raises(ValueError, match="no usable pair for training"):
        main.prepare_data(DATA_SETTINGS | {"dataset": write_dataset(tmp_path, one)}, tokenizer)


def test_fewer_prompts_than_asked_for(evaluation, tmp_path, tokenizer):
    """The message names the setting, the split and how many there are."""
    dataset = write_dataset(tmp_path, [row()], [row("Who could kill a weed?"), row("Who could bake bread?")])
    with pytest.raises(ValueError, match="N_PROMPTS = 2, but .*harmless-base .* has only 1 usable harmful"):
        evaluation.draw_prompts(dataset, "harmful", 2, tokenizer, 500, 0)
    assert len(evaluation.draw_prompts(dataset, "helpful", 2, tokenizer, 500, 0)) == 2


def test_fewer_prompts_than_asked_for_under_paper(evaluation, hub, tmp_path):
    """The study's protocol asks for no more than there is either."""
    dataset = write_dataset(tmp_path, [row()], [row("Could you kill a weed?")])
    settings = {"protocol": "paper", "dataset": dataset, "n_prompts": 2, "max_new_tokens": 50}
    with pytest.raises(ValueError, match="N_PROMPTS = 2, but .*harmless-base"):
        evaluation.make_prompts(hub / "opt", settings)


# ---- the run and the models

def test_evaluation_without_a_run(evaluation, tmp_path):
    """The message names the folder, the notebook to run first and the runs that are there."""
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"demo holds neither run\.json nor scores\.json.*main\.ipynb.*'other'"):
        evaluation.read_run(tmp_path / "demo")


def test_damaged_file(main, tmp_path):
    """A JSON file that is not whole is named."""
    (tmp_path / "scores.json").write_text('[{"id": "harmful-00"')
    with pytest.raises(ValueError, match=r"scores\.json is damaged.*FRESH = True"):
        main.read_json(tmp_path / "scores.json")


def test_adapter_over_another_base(main, evaluation, hub, tmp_path):
    """An adapter is only loaded over the base it was trained on, and the message names both."""
    shutil.copytree(hub / "opt", tmp_path / "other")
    settings = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_layers": "all"}
    model = get_peft_model(main.load_base(str(tmp_path / "other")), main.new_adapter(settings))
    model.save_pretrained(tmp_path / "adapters" / "sft")
    for base in (str(tmp_path / "other"), str(hub / "opt")):
        models = [{"name": "SFT", "base": base, "adapter": "adapters/sft"}]
        record = {"settings": {"base_model": base}, "models": models}
        if base == str(tmp_path / "other"):
            assert "SFT" in evaluation.load_all(record, tmp_path, base)["SFT"].peft_config
    with pytest.raises(ValueError, match=r"adapters/sft cannot be loaded.* over .*/other, and run.json names .*/opt\."):
        evaluation.load_all(record, tmp_path, base)


def spoiled_judge(hub, folder, labels=1, bias=0.0):
    """Write a copy of the demo's judge with another head; return its name."""
    shutil.copytree(hub / "reward-model", folder)
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, ignore_mismatched_sizes=True)
    torch.nn.init.constant_(judge.classifier.bias, bias)
    judge.save_pretrained(folder)
    return str(folder)


def test_judge_with_more_than_one_label(evaluation, hub, tmp_path):
    """A classifier is no reward model."""
    with pytest.raises(ValueError, match="REWARD_MODEL: .*judge has 3 labels; a reward model has one"):
        judge = spoiled_judge(hub, tmp_path / "judge", labels=3)
        evaluation.identify_sources({"reward_model": judge}, [])


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".."])
def test_run_that_is_a_path(main, name):
    """A run is the name of one folder: nothing is written outside RESULTS."""
    with pytest.raises(ValueError, match="RUN = .* must be the plain name"):
        main.name_run(name, "demo")
    assert main.name_run(None, "demo") == "demo"
    assert main.name_run(7, "demo") == "7"


def test_training_into_published_rewards_is_refused(hub, tmp_path):
    """Rewards from elsewhere are not mixed with models of our own."""
    run = tmp_path / "results" / "theirs"
    run.mkdir(parents=True)
    (run / "scores.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PapermillExecutionError, match="holds rewards that came from elsewhere"):
        execute("main.ipynb", tmp_path / "main.ipynb", PRESET="demo", RUN="theirs", RESULTS=run.parent)
    assert [path.name for path in run.iterdir()] == ["scores.json"]


def test_missing_model(main, tmp_path):
    """The message names the setting, its value and the way to the demo's models."""
    with pytest.raises(ValueError, match="BASE_MODEL = '.*/optt' cannot be had .* It is no folder"):
        main.fetch("BASE_MODEL", str(tmp_path / "optt"))
    with pytest.raises(ValueError, match="BASE_MODEL = 'demo/hub/optt' cannot be had .*python demo/build.py` makes it"):
        main.fetch("BASE_MODEL", "demo/hub/optt")


def test_folder_without_a_model(main, hub, tmp_path):
    """Neither a folder of something else nor a model without its weights is taken, and what is there is listed."""
    with pytest.raises(ValueError, match=f"BASE_MODEL: {tmp_path} holds no model"):
        main.identify_model("BASE_MODEL", str(tmp_path))
    shutil.copy(hub / "opt" / "config.json", tmp_path)
    with pytest.raises(ValueError, match=rf"BASE_MODEL: {tmp_path} holds no weights, .* but \['config\.json'\]"):
        main.identify_model("BASE_MODEL", str(tmp_path))


@pytest.mark.parametrize("value", [0, -5, 1.5, "50", 2**32])
def test_number_that_cannot_be(main, value):
    """A number is a whole one and not too small; None takes the preset's or all."""
    with pytest.raises(ValueError, match=f"N_PROMPTS = {value!r}: it must be a whole number of at least 1"):
        main.require_number("N_PROMPTS", value, 1)
    main.require_number("N_PROMPTS", 1, 1)
    main.require_number("N_PROMPTS", None, 1)


@pytest.mark.parametrize("scores", [
    {}, [3], ["id, model, reward"], [{}], [{"id": "harmful-00", "model": "Base"}], [["harmful-00", "Base", 1.0]],
    *([{"id": "harmful-00", "model": "Base", "reward": 1.0} | odd] for odd in (
        {"id": "other-00"}, {"id": 5}, {"id": None}, {"id": ["a"]}, {"model": ["Base"]}, {"model": None}))])
def test_scores_that_are_no_records(evaluation, scores):
    """The message tells what scores.json must hold."""
    with pytest.raises(ValueError, match="scores.json must be a list of records"):
        evaluation.reward_table(scores)


def test_scores_without_base(evaluation):
    """Without Base there is nothing to compare with."""
    scores = [{"id": f"{kind}-00", "model": "SFT", "reward": 1.0} for kind in ("harmful", "helpful")]
    with pytest.raises(ValueError, match="no rewards of the model Base"):
        evaluation.reward_table(scores)


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf])
def test_reward_that_is_no_number(evaluation, hub, tmp_path, bias):
    """A judge that gives NaN or infinity is named, and so are the model and the prompt it gave it to."""
    judge, settings = spoiled_judge(hub, tmp_path / "judge", bias=bias), {"judge_length": 64, "judge_tokens": 500}
    prompts = [{"id": "harmful-00", "prompt": dialogue("Hi") + "\n\nAssistant:", "chosen": "A", "rejected": "B"}]
    responses = [{"id": "harmful-00", "model": "Base", "response": "Hello."}]
    with pytest.raises(ValueError, match=f"judge gives Base's answer to harmful-00 the reward {bias}"):
        evaluation.make_scores(prompts, responses, judge, settings, tmp_path / "unfinished")
    assert not (tmp_path / "unfinished").exists()  # a judge that was mended starts anew


# ---- nothing half-written

def test_file_is_written_whole_or_not_at_all(main, tmp_path):
    """What JSON cannot hold leaves the file as it was, and no other beside it."""
    path = tmp_path / "scores.json"
    main.write_json(path, [{"reward": 1.5, "text": "Käse 🧀"}])
    before = path.read_bytes()
    for bad in (math.nan, math.inf, object()):
        with pytest.raises((ValueError, TypeError)):
            main.write_json(path, [{"reward": 2.0}, {"reward": bad}])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_json_is_readable_text(main, tmp_path):
    """UTF-8, indented, non-ASCII letters as they are."""
    main.write_json(tmp_path / "deep" / "a.json", [{"text": "Käse 🧀"}])
    text = (tmp_path / "deep" / "a.json").read_text(encoding="utf-8")
    assert "Käse 🧀" in text
    assert len(text.splitlines()) == 5
    assert main.read_json(tmp_path / "deep" / "a.json") == json.loads(text)


def test_file_whose_making_fails_is_not_there(evaluation, tmp_path):
    """A raw file is there only once it is whole, and what is there is not made again."""
    def fail(unfinished):
        raise RuntimeError("interrupted")

    path = tmp_path / "prompts.json"
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluation.made_once(path, fail, {"seed": 0}, {}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["eval.json"]
    assert evaluation.made_once(path, lambda unfinished: [1], {"seed": 0}, {}, {}) == [1]
    assert evaluation.made_once(path, fail, {"seed": 0}, {}, {}) == [1]


def test_main_stops_before_it_writes(hub, tmp_path):
    """A run on a dataset that is not there ends in the message and leaves no folder."""
    with pytest.raises(PapermillExecutionError, match="DATASET = .*nowhere.* cannot be had"):
        execute("main.ipynb", tmp_path / "main.ipynb", PRESET="demo", DATASET=tmp_path / "nowhere",
                RESULTS=tmp_path / "results", FIGURES=tmp_path / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["main.ipynb"]


def test_eval_stops_before_it_writes_scores(hub, demo_run, tmp_path):
    """With a judge that gives NaN, prompts and responses stay, and nothing that needs a reward is there."""
    run = demo_run.run.with_name("spoiled")
    shutil.copytree(demo_run.run, run, ignore=lambda folder, names: [
        name for name in names if (demo_run.run / name).is_file() and name not in ("run.json", "training.json")])
    with pytest.raises(PapermillExecutionError, match=r"Base's answer to harmful-00 the reward nan"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", RUN="spoiled", RESULTS=run.parent, N_PROMPTS=2,
                FIGURES=tmp_path / "figures", MAX_NEW_TOKENS=4, REWARD_MODEL=spoiled_judge(
                    hub, tmp_path / "judge", bias=math.nan))
    assert {path.name for path in run.glob("[!.]*") if path.is_file()} == {
        "run.json", "training.json", "eval.json", "prompts.json", "responses.json"}
    assert len(load(run / "responses.json")) == 4 * 4
    assert not (tmp_path / "figures").exists()


def test_mistake_in_a_setting_can_be_mended(hub, demo_run, tmp_path):
    """A run that stopped because of a setting goes on in the same folder once the setting is right."""
    run = demo_run.run.with_name("mended")
    shutil.copytree(demo_run.run, run, ignore=lambda folder, names: [
        name for name in names if (demo_run.run / name).is_file() and name not in ("run.json", "training.json")])
    places = {"RUN": "mended", "RESULTS": run.parent, "FIGURES": tmp_path / "figures", "MAX_NEW_TOKENS": 4}
    with pytest.raises(PapermillExecutionError, match="N_PROMPTS = 5000, but the test split"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", N_PROMPTS=5000, **places)
    with pytest.raises(PapermillExecutionError, match="REWARD_MODEL = 'demo/hub/reward-modl' cannot be had"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", N_PROMPTS=2, REWARD_MODEL="demo/hub/reward-modl", **places)
    execute("eval.ipynb", tmp_path / "eval.ipynb", N_PROMPTS=2, HARMLESS_FROM=-2.5, **places)
    assert load(run / "metrics.json")["thresholds"] == {"harmless": -2.5, "helpful": -2}
    execute("eval.ipynb", tmp_path / "eval.ipynb", N_PROMPTS=2, **places)
    assert load(run / "metrics.json")["thresholds"] == {"harmless": -3, "helpful": -2}


def test_another_judge_has_its_own_folder(hub, demo_run, tmp_path):
    """A copy of a run without scores.json is judged anew; the first judge is then refused there."""
    run = demo_run.run.with_name("judged")
    shutil.copytree(demo_run.run, run, ignore=shutil.ignore_patterns("scores.json"))
    places = {"RUN": "judged", "RESULTS": run.parent, "FIGURES": tmp_path / "figures"}
    judge = spoiled_judge(hub, tmp_path / "judge", bias=-2.0)
    execute("eval.ipynb", tmp_path / "eval.ipynb", REWARD_MODEL=judge, HARMLESS_FROM=-9.0, **places)
    assert (run / "responses.json").read_bytes() == (demo_run.run / "responses.json").read_bytes()
    pairs = zip(load(run / "scores.json"), load(demo_run.run / "scores.json"), strict=True)
    assert len({round(mine["reward"] - theirs["reward"], 4) for mine, theirs in pairs}) == 1
    with pytest.raises(PapermillExecutionError, match="scores.json was made with reward_model = 'sha256 .*', now it"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", **places)


@pytest.mark.parametrize("name", ["main.ipynb", "eval.ipynb"])
def test_unknown_parameter_is_refused(name, tmp_path):
    """The tests' own runner refuses a parameter that a notebook lacks: papermill would set it to no effect."""
    with pytest.raises(ValueError, match="has no parameter MAX_PAIR"):
        execute(ROOT / name, tmp_path / name, MAX_PAIR=3)
    assert list(tmp_path.iterdir()) == []
