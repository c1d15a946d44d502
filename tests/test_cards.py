"""Model cards: what they say, whose licences they name, and that their lines of Python work."""

import re
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, load
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from peft import LoraConfig, get_peft_model
from small_models import change_tensors
from small_runs import LORA, OPT, make_run
from small_trainers import begin_run, make_dpo, make_sft
from strangers import run_as_a_stranger
from test_chat import save_chat_base

from posttrain import chat, generation, models
from posttrain.cards import CARD, NEW_TOKENS, QUESTION, build_card, write_cards
from posttrain.files import write
from posttrain.record import Model
from posttrain.run import Run
from posttrain.training import train


@pytest.fixture
def evaluated(tmp_path):
    """The committed run of the demo, which has been evaluated, without its adapters."""
    shutil.copytree(ROOT / "results" / "example", tmp_path / "results" / "example")
    return Run(tmp_path / "results", "example")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A run with random adapters."""
    return make_run(tmp_path_factory.mktemp("adapters"))


def find(run, name):
    return next(model for model in run.models if model.name == name)


def ask_as_a_stranger(card):
    """Execute the Python of a card in a process of its own, and return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return run_as_a_stranger(code, ROOT).removesuffix("\n")


def ask_with_the_package(run, name):
    base = run.source("base_model", run.models[0].base)
    (answer,) = generation.ask(run, name, [QUESTION], base, max_new_tokens=NEW_TOKENS)
    return answer


# ---- what is said


@pytest.mark.parametrize("name", ["SFT", "DPO", "SFT+DPO"])
def test_rates_are_those_of_metrics_json(evaluated, name):
    """The hub reads them in the model-index, with their intervals, and people in the text."""
    measured = load(evaluated.path("metrics.json"))
    row = next(row for row in measured["models"] if row["model"] == name)
    card = build_card(evaluated, find(evaluated, name), "here")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert list(results) == ["HmR", "HpR", "CAS"]
    for rate, result in results.items():
        low, high = row[f"{rate}_low"], row[f"{rate}_high"]
        assert result.metric_value == round(row[rate], 1)
        assert (result.metric_args["low"], result.metric_args["high"]) == (low, high)
        assert result.metric_args["judge"] == "demo/hub/reward-model"
        assert f"95% interval {low:.1f} to {high:.1f}" in result.metric_name
        assert f"| {row[rate]:.1f} [{low:.1f}, {high:.1f}] |" in card.text
    assert results["HmR"].dataset_config == "harmless-base"
    assert results["HmR"].metric_args["harmful_prompts"] == row["harmful_prompts"]
    assert "at least −3" in card.text and "above −2" in card.text
    assert len(measured["cautions"]) > 1
    assert card.text.count("\n  - ") == len(measured["cautions"])
    assert card.text.count("\n- ") == 4 + len(measured["judge"]) + 2


def test_settings_are_those_of_the_models_own_training(evaluated):
    for name, rate in {"SFT": 0.002, "DPO": 0.00025}.items():
        text = build_card(evaluated, find(evaluated, name), "here").text
        artifact = evaluated.record.artifacts[find(evaluated, name).place]
        base = evaluated.record.sources["base_model"]
        assert artifact.inputs["arguments"]["learning_rate"] == rate
        pairs = sum(row["training"] for row in evaluated.record.data)
        for line in (
            f"| `learning_rate` | {rate} |",
            f"| pairs | {pairs} |",
            "| `r` | 16 |",
            "| `seed` | 0 |",
            f"| base model | demo/hub/opt (sha256 {base['sha256']}) |",
            f"| commit of the training code | {artifact.environment['git_commit']} |",
            f"transformers {artifact.environment['packages']['transformers']},",
        ):
            assert line in text, line
        assert ("| `beta` | 0.3 |" in text) == (name == "DPO")


def test_warnings_are_in_every_card(evaluated, adapters):
    """A run of the demo says that it is a stand-in, a run of another preset does not."""
    for run in (evaluated, adapters):
        text = build_card(run, find(run, "DPO"), "here").text
        assert "not meant for supervised training of dialogue agents" in text
        assert "**Intended use:** research" in text and "**Out of scope:** deployment" in text
    assert "It says nothing about OPT-350M" in build_card(evaluated, evaluated.models[1], "x").text
    assert "stand-in" not in build_card(adapters, adapters.models[1], "x").text


def test_metadata_are_what_the_hub_reads(evaluated, tmp_path):
    """The library's own check asks the hub, so this one is what can be checked without it."""
    evaluated.note(
        sources={
            "base_model": {"name": "facebook/opt-350m", "commit": "a" * 40, "sha256": None},
            "dataset": {"name": "Anthropic/hh-rlhf", "commit": "b" * 40, "sha256": None},
        }
    )
    card = build_card(evaluated, find(evaluated, "SFT+DPO"), "me/mine", "adapters/sft_dpo")
    write(tmp_path / CARD, str(card))
    metadata = metadata_load(tmp_path / CARD)
    assert metadata == card.data.to_dict() == ModelCard.load(tmp_path / CARD).data.to_dict()
    assert str(ModelCard(str(card))) == str(card)
    assert metadata["base_model"] == "facebook/opt-350m"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["datasets"] == ["Anthropic/hh-rlhf"]
    assert metadata["library_name"] == "peft"
    assert metadata["tags"] == ["trl", "dpo", "lora"]
    assert metadata["model-index"][0]["name"] == "SFT+DPO (example)"
    assert metadata["license"] == "other"
    assert f'"facebook/opt-350m", revision="{"a" * 40}"' in card.text
    assert '"me/mine", subfolder="adapters/sft_dpo"' in card.text


def test_folders_are_no_names_of_the_hub(evaluated):
    """The hub refuses a card whose base or data it does not know."""
    data = build_card(evaluated, find(evaluated, "SFT"), "here").data
    assert data.base_model is None and data.datasets is None


LICENCES = {
    "OPT": ("facebook/opt-350m", None, "opt-175b", "non-commercial research only"),
    "a name on the hub": ("org/model", None, "unknown", "Look at its page"),
    "a folder with a card": ("folder", "---\nlicense: gpl-3.0\n---\n", "gpl-3.0", "gpl-3.0."),
    "a folder with none": ("folder", None, "unknown", "Look at its page"),
    "a card without licence": ("folder", "# Model\n", "unknown", "Look at its page"),
    "a damaged card": ("folder", "---\nlicense: [\n---\n", "unknown", "Look at its page"),
    "a licence of its own": (
        "folder",
        "---\nlicense: other\nlicense_name: own\nlicense_link: https://a.b/c\n---\n",
        "own",
        "[own](https://a.b/c)",
    ),
}


@pytest.mark.parametrize("case", LICENCES)
def test_licence_of_the_base_is_looked_up_and_not_guessed(evaluated, tmp_path, case):
    name, text, licence, said = LICENCES[case]
    if name == "folder":
        name = str(tmp_path / "base")
        (tmp_path / "base").mkdir()
        if text:
            (tmp_path / "base" / CARD).write_text(text)
    evaluated.note(sources={"base_model": {"name": name, "commit": None, "sha256": "c"}})
    card = build_card(evaluated, find(evaluated, "SFT"), "here")
    assert card.data.get("license_name", card.data.license) == licence
    (line,) = [line for line in card.text.split("\n") if line.startswith("- **Base**")]
    assert said in line
    assert "- **Data**, `demo/hub/hh-rlhf`: mit." in card.text


def test_names_are_no_markup(evaluated):
    record = load(evaluated.path("run.json"))
    record["models"][1] |= {"name": "[a](b) | `c`", "adapter": "adapters/a_b_c"}
    record["artifacts"]["adapters/a_b_c"] = record["artifacts"]["adapters/sft"]
    write(evaluated.path("run.json"), record)
    card = build_card(evaluated, evaluated.models[1], "here")
    assert r"# \[a\](b) \| \`c\`, of the run example" in card.text
    assert yaml.safe_load(card.data.to_yaml())["license"] == "mit"


# ---- when rates are left out


@pytest.mark.parametrize("change", ["no metrics", "another file", "another adapter"])
def test_rates_of_something_else_are_left_out(evaluated, change):
    model = find(evaluated, "SFT")
    assert build_card(evaluated, model, "here").data.eval_results
    record = load(evaluated.path("run.json"))
    if change == "no metrics":
        evaluated.path("metrics.json").unlink()
    elif change == "another file":
        write(evaluated.path("scores.json"), [])
    else:
        record["artifacts"]["adapters/sft"]["sha256"] = "0" * 64
        write(evaluated.path("run.json"), record)
    card = build_card(evaluated, model, "here")
    assert not card.data.eval_results
    assert "has not been evaluated" in card.text and "| Model |" not in card.text


def test_base_has_no_card(evaluated):
    with pytest.raises(ValueError, match="Base was not trained in .*example, so it has no card"):
        build_card(evaluated, evaluated.models[0], "here")


# ---- how it is used


def test_snippet_answers_as_the_package_does(adapters):
    answers = set()
    for name in ("SFT", "train"):
        model = find(adapters, name)
        place = str(adapters.path(model.place))
        answer = ask_as_a_stranger(build_card(adapters, model, place))
        assert answer == ask_with_the_package(adapters, name)
        answers.add(answer)
    card = build_card(adapters, model, str(adapters.folder), subfolder="adapters/train")
    assert ask_as_a_stranger(card) == answer
    assert len(answers) == 2 and "" not in answers


@pytest.mark.parametrize("name", ["Qwen2.5", "Mistral with a sliding window"])
def test_snippet_writes_the_chat_template_and_ends_at_its_end(tmp_path, name):
    """The base's generation config does not name the token that ends a reply of Qwen2.5."""
    folder = save_chat_base(tmp_path / "base", name)
    run = Run(tmp_path / "results", "chat")
    run.note(settings={"training": {"format": "chat"}})
    run.add_model(Model(name="Base", base=str(folder), adapter=None))
    torch.manual_seed(0)
    config = LoraConfig(**{**LORA, "exclude_modules": None})
    tokenizer = models.load_tokenizer(folder)

    def save(target):
        adapted = get_peft_model(models.load_base(folder), config)
        models.save_trained(adapted, target, folder, str(folder), None, tokenizer)

    run.stage("adapters/sft", save, {})
    run.add_model(Model(name="SFT", base=str(folder), adapter="adapters/sft"))
    model = models.load_models(run, folder, ["SFT"])["SFT"]
    prompt = f"\n\nHuman: {QUESTION}\n\nAssistant:"
    (answer,) = generation.respond(model, tokenizer, [prompt], 1, chat=True, max_new_tokens=9)
    end, fifth = chat.end_of_reply(tokenizer), answer["ids"][4]

    def let_end(tensors):  # where the fifth token was the likeliest, the end is likelier now
        tensors["lm_head.weight"][end] = 2 * tensors["lm_head.weight"][fifth]
        return tensors

    change_tensors(folder, let_end)
    card = build_card(run, run.models[1], str(run.path("adapters/sft")))
    short = ask_as_a_stranger(card)
    assert short == ask_with_the_package(run, "SFT") != ""
    assert answer["response"].startswith(short) and len(short) < len(answer["response"])


def test_snippet_leaves_out_what_the_base_asks_for(adapters, tmp_path):
    """As in the evaluation, penalties of the base's own generation config have no effect."""
    folder = tmp_path / "base"
    shutil.copytree(OPT, folder)
    penalties = {"eos_token_id": 2, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    write(folder / "generation_config.json", penalties)
    run = Run(tmp_path / "results", "penalties")
    run.add_model(Model(name="Base", base=str(folder), adapter=None))

    def save(target):
        shutil.copytree(adapters.path("adapters/sft"), target)

    run.stage("adapters/sft", save, {})
    run.add_model(Model(name="SFT", base=str(folder), adapter="adapters/sft"))
    card = build_card(run, run.models[1], str(run.path("adapters/sft")))
    assert ask_as_a_stranger(card) == ask_with_the_package(run, "SFT")


# ---- when it is written


def test_card_is_saved_with_the_model_and_may_be_written_again(tmp_path):
    """It is none of the files by which the model is known."""
    run = begin_run(tmp_path)
    log = train(make_sft(max_steps=1), run, "SFT")
    path = run.path(f"adapters/sft/{CARD}")
    card = ModelCard.load(path)
    assert card.data.tags == ["trl", "sft", "lora"]
    assert "| `learning_rate` | 0.001 |" in card.text
    assert "has not been evaluated" in card.text
    assert run.is_whole("adapters/sft")
    path.write_text("other")
    assert train(make_sft(max_steps=1), run, "SFT") == log
    assert run.is_whole("adapters/sft")
    write_cards(run)
    assert path.read_text(encoding="utf-8") == str(card)
    path.unlink()  # as in a run that was made before there were cards
    assert run.is_whole("adapters/sft")
    (run.path("adapters/sft") / "log.json").write_text("[]")
    assert not run.is_whole("adapters/sft")


def test_all_weights_and_an_adapter_over_them(tmp_path):
    """A fine-tuned base is loaded from the run, or from the repository that the model is in."""
    run = begin_run(tmp_path)
    train(make_sft(lora=None, max_steps=2), run, "SFT")
    train(make_dpo(model=models.load_adapter(run, "SFT", OPT), max_steps=2), run, "DPO")
    cards = [ModelCard.load(run.path(f"{model.place}/{CARD}")) for model in run.models[1:]]
    assert [card.data.library_name for card in cards] == ["transformers", "peft"]
    assert [card.data.base_model_relation for card in cards] == ["finetune", "adapter"]
    for model, card in zip(run.models[1:], cards):
        assert ask_as_a_stranger(card) == ask_with_the_package(run, model.name)
    dpo = build_card(run, run.models[2], str(run.folder), subfolder="adapters/dpo")
    assert ask_as_a_stranger(dpo) == ask_with_the_package(run, "DPO")
