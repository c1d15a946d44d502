"""Merging: a plain model that is the adapter over its base, or a sentence and no file at all."""

import pytest
import torch
from conftest import ROOT, load
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import save_base
from small_runs import LORA, OPT, copy_run, make_run
from small_trainers import begin_run, make_dpo, make_sft
from test_cards import ask_as_a_stranger, ask_with_the_package
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import merging, models
from posttrain.__main__ import main
from posttrain.merging import merge
from posttrain.models import PROBES, logits_of, switched_to
from posttrain.record import Model
from posttrain.run import Run
from posttrain.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("merging"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, which a test may change."""
    return copy_run(trained, tmp_path)


def logits_in_the_run(run, name, base=OPT):
    tokenizer = models.load_tokenizer(base)
    model = models.load_models(run, base, [name])[name]
    with switched_to(model, name):
        return logits_of(model, tokenizer, PROBES)


def logits_of_folder(folder):
    """Compute the logits with transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return logits_of(model, AutoTokenizer.from_pretrained(folder), PROBES)


def test_merged_model_is_the_adapter_over_its_base(trained, tmp_path, monkeypatch, capsys):
    """The command says how far its logits are from the adapter's, and its card asks it."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "new" / "merged"
    results = trained.folder.parent
    main(["merge", f"RESULTS={results}", "RUN=demo", "MODEL=DPO", f"OUT={out}"])
    assert f"The model is in {out}" in capsys.readouterr().out
    expected = logits_in_the_run(trained, "DPO")
    base = logits_of_folder(OPT)
    torch.testing.assert_close(logits_of_folder(out), expected, atol=1e-4, rtol=0)
    assert (base - expected).abs().max() > 0.1
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= names
    assert not any("adapter" in name for name in names)
    weights = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert load(out / "config.json")["vocab_size"] == load(OPT / "config.json")["vocab_size"]
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model_relation == "finetune"
    assert "peft" not in card.text.split("```")[1]
    assert ask_as_a_stranger(card) == ask_with_the_package(trained, "DPO")
    models.require_base(out, 128)  # it can be a BASE_MODEL again
    assert not (tmp_path / "new" / "merged.tmp").exists()


def test_base_that_has_moved_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="BASE_MODEL = .*nowhere.* cannot be loaded"):
        merge(run, "SFT", str(tmp_path / "out"), str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()
    difference = merge(run, "SFT", str(tmp_path / "out"), str(OPT))
    assert 0 <= difference < 1e-4


def test_embeddings_beyond_the_tokenizer_stay(tmp_path):
    """The vocabulary of the base is larger than its tokenizer's, and its head is its own."""
    base = save_base(tmp_path / "base", "llama", vocab_size=1600, tie_word_embeddings=False)
    run = Run(tmp_path / "results", "llama")
    run.add_model(Model(name="Base", base=str(base), adapter=None))
    torch.manual_seed(0)
    config = {**LORA, "exclude_modules": None, "target_modules": ["q_proj", "embed_tokens"]}
    adapted = get_peft_model(models.load_base(base), LoraConfig(**config))
    tokenizer = models.load_tokenizer(base)

    def save(target):
        models.save_trained(adapted, target, base, str(base), None, tokenizer)

    run.stage("adapters/sft", save, {})
    run.add_model(Model(name="SFT", base=str(base), adapter="adapters/sft"))
    merge(run, "SFT", str(tmp_path / "out"))
    logits = logits_of_folder(tmp_path / "out")
    assert logits.shape[-1] == 1600 > len(tokenizer)
    torch.testing.assert_close(logits, logits_in_the_run(run, "SFT", base), atol=1e-4, rtol=0)


def test_adapter_over_a_fine_tuned_base(tmp_path):
    """It is merged into that base, which is itself a plain model already."""
    run = begin_run(tmp_path)
    train(make_sft(lora=None, max_steps=2), run, "SFT")
    train(make_dpo(model=models.load_adapter(run, "SFT", OPT), max_steps=2), run, "DPO")
    with pytest.raises(ValueError, match="MODEL: all weights of SFT were trained, so .*models/sft"):
        merge(run, "SFT", str(tmp_path / "out"))
    merge(run, "DPO", str(tmp_path / "out"))
    expected = logits_in_the_run(run, "DPO")
    torch.testing.assert_close(logits_of_folder(tmp_path / "out"), expected, atol=1e-4, rtol=0)


# ---- what is refused


def test_what_cannot_be_merged_is_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, out, message in (
        ("GPT", "out", r"has no model 'GPT'. Its models are \['Base', 'SFT', 'DPO', 'train'\]"),
        ("Base", "out", "Base has no adapter .* with an adapter are: SFT, DPO, train"),
        ("SFT", "full", "OUT: .*full exists already and is not empty. Choose another"),
        ("SFT", "file", "OUT: .*file exists already and is not empty. Choose another"),
        ("SFT", "file/out", "OUT: .*file/out cannot be written .*Choose a folder that you may"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(run, name, str(tmp_path / out))
    weights = run.path("adapters/sft/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="adapters/sft is missing, was changed"):
        merge(run, "SFT", str(tmp_path / "out"), "nowhere")  # the base is not even looked for
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"full", "file", "results"}
    assert (tmp_path / "full" / "a").read_text() == (tmp_path / "file").read_text() == "mine"


def test_folder_that_cannot_be_written_is_refused(run, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    try:
        (locked / "probe").touch()
    except PermissionError:
        with pytest.raises(ValueError, match="OUT: .* cannot be written .*Permission denied"):
            merge(run, "SFT", str(locked / "out"))
        assert list(locked.iterdir()) == []
    else:
        pytest.skip("root may write everywhere")


def test_embedding_that_is_the_head_too_is_refused(run, tmp_path):
    torch.manual_seed(3)
    config = LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]})
    adapted = get_peft_model(models.load_base(OPT), config)
    tokenizer = models.load_tokenizer(OPT)

    def save(target):
        models.save_trained(adapted, target, OPT, "demo/hub/opt", None, tokenizer)

    run.stage("adapters/tied", save, {})
    run.add_model(Model(name="Tied", base="demo/hub/opt", adapter="adapters/tied"))
    with pytest.raises(ValueError, match="Tied cannot be merged. .*tied to the output layer"):
        merge(run, "Tied", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_model_with_other_logits_is_not_saved(run, tmp_path, monkeypatch):
    """The logits of the files are compared, and nothing is left if they differ."""
    spoilt = models.load_base

    def load_another(folder, **options):
        model = spoilt(folder, **options)
        with torch.no_grad():
            model.get_output_embeddings().weight[5] += 0.1
        return model

    monkeypatch.setattr(merging, "load_base", load_another)
    with pytest.raises(RuntimeError, match="OUT: the logits of .* differ by .*was not saved"):
        merge(run, "SFT", str(tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN=demo", "MODEL=SFT"], "RUN, MODEL, OUT: name a run, one of its models and a new"),
        (["RUN=demo", "OUT=x"], "RUN, MODEL, OUT: name a run"),
        (["MODEL=SFT", "OUT=x"], "RUN, MODEL, OUT: name a run"),
        (["RUN=nothing", "MODEL=SFT", "OUT=x"], "nothing has no run.json. Run main.ipynb"),
    ],
)
def test_command_says_what_it_needs(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(["merge", f"RESULTS={trained.folder.parent}", *arguments])
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_imported_results_have_nothing_to_merge(tmp_path):
    run = Run(ROOT / "results", "published")
    with pytest.raises(ValueError, match="SFT has no adapter .* with an adapter are: none"):
        merge(run, "SFT", str(tmp_path / "out"))
