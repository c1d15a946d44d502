"""Loading and saving: no dropout, adapters as they were trained, no pickles and no foreign code."""

import json
import os
import pickle
import random
import shutil

import pytest
import sentencepiece
import torch
from conftest import DATA, ROOT, load
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from small_runs import JUDGE, LORA, NAMES, OPT, copy_run, make_run, seal
from tokenizers import Tokenizer, normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    OPTConfig,
)

from posttrain import loading, models
from posttrain.models import PROBES, logits_of, switched_to
from posttrain.record import Model

LIMIT = {"atol": 1e-4}
ADAPTERS = ["adapters/sft", "adapters/dpo", "adapters/train"]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(OPT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with three adapters. Do not change it."""
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run that a test may change."""
    return copy_run(trained, tmp_path)


# ---- the base


def test_base_is_loaded_in_fp32_without_dropout():
    """The demo's files have OPT-350M's dropout and fp16; `load_base` removes both."""
    as_stored = AutoModelForCausalLM.from_pretrained(OPT)
    assert as_stored.config.dropout == 0.1
    assert as_stored.dtype == torch.float16
    base = models.load_base(OPT)
    config = base.config
    assert (config.dropout, config.attention_dropout, config.layerdrop) == (0, 0, 0)
    assert {weight.dtype for weight in base.parameters()} == {torch.float32}
    assert models.load_base(OPT, dropout=0.1).config.dropout == 0.1
    assert models.load_base(OPT, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_training_mode_is_as_deterministic_as_evaluation(tokenizer):
    """In training mode the base gives the logits of evaluation mode, so no dropout is left."""
    base = models.load_base(OPT)
    ids = tokenizer(PROBES[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(base.train()(ids).logits, base.eval()(ids).logits)


def test_model_that_cannot_be_loaded_is_named(tmp_path):
    """The libraries' errors do not name the folder."""
    (tmp_path / "config.json").write_text("{}")
    for load_model in (models.load_base, models.load_config, models.load_judge):
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded .*files are complete"):
            load_model(tmp_path)


def test_tokenizer_without_padding_pads_with_its_end(tmp_path):
    tokenizer = models.load_tokenizer(OPT)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(OPT / "config.json", tmp_path)
    assert models.load_tokenizer(tmp_path).pad_token == tokenizer.eos_token


# ---- the models of a run


def test_adapters_switched_give_what_each_gives_alone(trained, tokenizer):
    """One base with switched adapters gives each model's logits, and Base's after the others."""
    loaded = models.load_models(trained, OPT)
    assert list(loaded) == NAMES
    assert len({id(model) for model in loaded.values()}) == 1
    logits = {}
    for name in [*NAMES, "Base", "DPO", "SFT"]:
        alone = models.load_base(OPT)
        if name != "Base":
            adapter = ADAPTERS[NAMES.index(name) - 1]
            alone = PeftModel.from_pretrained(alone, trained.folder / adapter)
        logits[name] = logits_of(alone, tokenizer, PROBES)
        with switched_to(loaded[name], name):
            assert torch.allclose(logits_of(loaded[name], tokenizer, PROBES), logits[name], **LIMIT)
    for i, first in enumerate(NAMES):
        for second in NAMES[i + 1 :]:
            assert (logits[first] - logits[second]).abs().max() > 1e-2, (first, second)


def test_merging_leaves_the_base_as_it_was(trained, tokenizer):
    """After any adapter, and after a failure, every weight of the base is its own to the bit."""
    loaded = models.load_models(trained, OPT)
    bare = dict(models.load_base(OPT).named_parameters())
    bare_logits = logits_of(models.load_base(OPT), tokenizer, PROBES)
    model = loaded["SFT"]
    with pytest.raises(ZeroDivisionError), switched_to(model, "DPO"):
        raise ZeroDivisionError
    for name in NAMES:
        with switched_to(model, name):
            distances = logits_of(model, tokenizer, PROBES) - bare_logits
        assert (distances.abs().max() > 1e-2) == (name != "Base")
    kept = 0
    for key, weight in model.named_parameters():
        own = key.removeprefix("base_model.model.").replace(".base_layer", "")
        if own in bare:
            assert torch.equal(weight, bare[own]), key
            kept += 1
    assert kept == len(bare)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, tokenizer, PROBES), bare_logits)


def test_adapter_of_a_tied_embedding_is_not_merged(run, tokenizer):
    """Its weights are the head's too, which would change with it."""
    torch.manual_seed(3)
    config = LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]})
    adapted = get_peft_model(models.load_base(OPT), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    expected = logits_of(adapted, tokenizer, PROBES)

    def save(target):
        models.save_trained(adapted, target, OPT, "demo/hub/opt", None, tokenizer)

    run.stage("adapters/tied", save, {})
    run.add_model(Model(name="Tied", base="demo/hub/opt", adapter="adapters/tied", parent=None))
    loaded = models.load_models(run, OPT)
    with switched_to(loaded["Tied"], "Tied"):
        logits = logits_of(loaded["Tied"], tokenizer, PROBES)
    assert torch.allclose(logits, expected, **LIMIT)


def test_some_models_alone(trained):
    """They keep the order asked for; for an unknown model the message lists those of the run."""
    loaded = models.load_models(trained, OPT, ["DPO"])
    assert list(loaded) == ["DPO"]
    assert list(loaded["DPO"].peft_config) == ["adapter_dpo"]
    assert not isinstance(models.load_models(trained, OPT, ["Base"])["Base"], PeftModel)
    for load_model in (
        lambda: models.load_models(trained, OPT, ["SFT+DPO"]),
        lambda: models.load_adapter(trained, "SFT+DPO", OPT),
    ):
        with pytest.raises(ValueError, match=r"no model 'SFT\+DPO'. Its models are \['Base', "):
            load_model()


def test_adapter_can_be_trained_on(trained, tokenizer):
    """It has the type asked for, its weights are trainable, and its base is frozen."""
    model = models.load_adapter(trained, "SFT", OPT)
    alone = models.load_models(trained, OPT, ["SFT"])["SFT"]
    expected = logits_of(alone, tokenizer, PROBES)
    assert torch.allclose(logits_of(model, tokenizer, PROBES), expected, **LIMIT)
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert model.peft_config["default"].base_model_name_or_path == str(OPT)
    noisy = models.load_adapter(trained, "SFT", OPT, dropout=0.1, dtype=torch.bfloat16)
    assert noisy.get_base_model().dtype == torch.bfloat16
    assert noisy.config.dropout == 0.1


def fine_tune_fully(run, tokenizer):
    """Add a fully fine-tuned model FT and an adapter over it to a run."""
    fine_tuned = models.load_base(OPT)
    with torch.no_grad():
        for weight in fine_tuned.parameters():
            weight.mul_(1.1)

    def save(target):
        models.save_trained(fine_tuned, target, OPT, "demo/hub/opt", None, tokenizer)

    folder = run.stage("models/ft", save, {})
    torch.manual_seed(9)
    adapted = get_peft_model(models.load_base(folder), LoraConfig(**LORA))

    def save_adapter(target):
        models.save_trained(adapted, target, folder, "models/ft", None, tokenizer)

    run.stage("adapters/ft_dpo", save_adapter, {})
    run.add_model(Model(name="FT", base="models/ft", adapter=None, parent=None))
    run.add_model(Model(name="FT+DPO", base="models/ft", adapter="adapters/ft_dpo", parent="FT"))
    return fine_tuned, adapted


def test_models_over_a_fully_fine_tuned_one(run, tokenizer):
    """They are loaded beside models over the base, and both can be trained further."""
    fine_tuned, adapted = fine_tune_fully(run, tokenizer)
    expected = {"FT": fine_tuned, "FT+DPO": adapted}
    loaded = models.load_models(run, OPT)
    assert list(loaded) == [*NAMES, "FT", "FT+DPO"]
    assert loaded["FT"] is loaded["FT+DPO"]
    assert loaded["FT"] is not loaded["Base"]
    for name, model in expected.items():
        logits = logits_of(model, tokenizer, PROBES)
        with switched_to(loaded[name], name):
            assert torch.allclose(logits_of(loaded[name], tokenizer, PROBES), logits, **LIMIT)
        further = models.load_adapter(run, name, OPT)
        assert torch.allclose(logits_of(further, tokenizer, PROBES), logits, **LIMIT)
    weights = run.folder / "models" / "ft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="models/ft is missing, was changed, or"):
        models.load_adapter(run, "FT", OPT)


@pytest.mark.parametrize(("first", "second"), [("sft", "dpo"), ("dpo", "train")])
def test_adapters_that_changed_places_are_noticed(run, first, second):
    """Each adapter must be the one that run.json describes."""
    adapters = run.folder / "adapters"
    for old, new in ((first, "x"), (second, first), ("x", second)):
        (adapters / old).rename(adapters / new)
    with pytest.raises(ValueError, match=r"adapters/.* is not the one that run.json describes"):
        models.load_models(run, OPT)


@pytest.mark.parametrize("is_missing", [True, False])
def test_adapter_that_is_not_complete_is_named(run, is_missing):
    """Its file may be missing or truncated."""
    weights = run.folder / "adapters" / "dpo" / "adapter_model.safetensors"
    if is_missing:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:500])
    for load_model in (
        lambda: models.load_models(run, OPT),
        lambda: models.load_adapter(run, "DPO", OPT),
    ):
        with pytest.raises(ValueError, match="adapters/dpo is missing, was changed, or"):
            load_model()


# ---- saving


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_peft_alone_loads_an_adapter(trained, adapter, recwarn):
    """PEFT loads it from the repository's root without a warning."""
    config = PeftConfig.from_pretrained(trained.folder / adapter)
    assert (config.base_model_name_or_path, config.revision) == ("demo/hub/opt", None)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert os.getcwd() == str(ROOT)
    model = AutoPeftModelForCausalLM.from_pretrained(trained.folder / adapter)
    assert isinstance(model, PeftModel)
    assert [str(warning.message) for warning in recwarn if "peft" in warning.filename] == []


def test_adapter_folder_holds_the_adapter_and_no_more(trained):
    """It has config and weights, and the weights are safetensors."""
    for adapter in ADAPTERS:
        names = {path.name for path in (trained.folder / adapter).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_adapter_is_saved_the_same_again(trained, tmp_path, tokenizer):
    """The files are equal byte by byte, whatever the order of peft's sets."""
    model = models.load_adapter(trained, "SFT", OPT)
    models.save_trained(model, tmp_path / "sft", OPT, "demo/hub/opt", None, tokenizer)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        before = (trained.folder / "adapters" / "sft" / name).read_bytes()
        after = (tmp_path / "sft" / name).read_bytes()
        if name.endswith(".json"):  # loading for training sets no field but this one
            before, after = json.loads(before), json.loads(after)
            before.pop("init_lora_weights")
            after.pop("init_lora_weights")
        assert before == after, name


def test_reload_check_notices_a_wrong_base(trained, tokenizer, tmp_path):
    """An adapter over a merged base gives other logits when it is loaded."""
    merged = models.load_adapter(trained, "SFT", OPT).merge_and_unload()
    over_merged = PeftModel.from_pretrained(merged, trained.folder / "adapters" / "dpo")
    with pytest.raises(RuntimeError, match="dpo: loaded from disk, the model's logits differ by"):
        models.save_trained(over_merged, tmp_path / "dpo.tmp", OPT, "x", None, tokenizer)


def test_reload_check_notices_logits_that_are_no_numbers(tokenizer, tmp_path):
    model = models.load_base(OPT)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        models.save_trained(model, tmp_path / "x", OPT, "x", None, tokenizer)


def test_adapter_names_its_base_and_commit(trained, tokenizer, tmp_path):
    model = models.load_adapter(trained, "DPO", OPT)
    commit = "a" * 40
    models.save_trained(model, tmp_path / "x", OPT, "facebook/opt-350m", commit, tokenizer)
    config = load(tmp_path / "x" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "facebook/opt-350m"
    assert config["revision"] == commit


# ---- nothing runs


class Payload:
    """An object that makes a folder when its pickle is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(path, folder):
    """Write a pickle that would make a folder when it is loaded, as torch writes them."""
    torch.save({"weight": torch.zeros(1), "payload": Payload(folder)}, path)


def test_payload_works(tmp_path):
    """The pickles of these tests do what they are meant to do."""
    write_pickle(tmp_path / "a.bin", tmp_path / "ran")
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "weights.pt", "x.pkl"]
)
def test_pickle_in_an_adapter_is_not_loaded(run, tmp_path, name, is_sealed):
    """It is refused in place of safetensors, even if run.json lists it."""
    folder = run.folder / "adapters" / "dpo"
    (folder / "adapter_model.safetensors").unlink()
    write_pickle(folder / name, tmp_path / "ran")
    message = "was changed, or"
    if is_sealed:
        seal(run, "adapters/dpo")
        message = "Weights stored as pickles are not loaded"
    with pytest.raises(ValueError, match=message):
        models.load_models(run, OPT)
    with pytest.raises(ValueError, match=message):
        models.load_adapter(run, "DPO", OPT)
    assert not (tmp_path / "ran").exists()


def test_pickle_beside_the_weights_is_not_read(run, tmp_path):
    """An adapter with complete safetensors is loaded from them only."""
    write_pickle(run.folder / "adapters" / "dpo" / "adapter_model.bin", tmp_path / "ran")
    seal(run, "adapters/dpo")
    models.load_models(run, OPT)
    assert not (tmp_path / "ran").exists()


def test_pickle_in_a_fully_fine_tuned_model_is_refused(run, tmp_path, tokenizer):
    """A run's own model must be safetensors, even if run.json lists a pickle."""
    fine_tune_fully(run, tokenizer)
    folder = run.folder / "models" / "ft"
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", tmp_path / "ran")
    seal(run, "models/ft")
    for load_model in (
        lambda: models.load_models(run, OPT),
        lambda: models.load_adapter(run, "FT", OPT),
    ):
        with pytest.raises(ValueError, match="models/ft cannot be loaded"):
            load_model()
    assert not (tmp_path / "ran").exists()


def test_pickle_of_a_base_is_read_without_running_code(tmp_path):
    shutil.copytree(OPT, tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").unlink()
    write_pickle(tmp_path / "opt" / "pytorch_model.bin", tmp_path / "ran")
    for safetensors in (True, None):
        with pytest.raises(ValueError, match="opt cannot be loaded"):
            models.load_base(tmp_path / "opt", safetensors=safetensors)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_does_not_run(tmp_path):
    """A base whose config names code is loaded without it or refused."""
    folder = tmp_path / "opt"
    shutil.copytree(OPT, folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = load(folder / "config.json")
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    models.load_base(folder)
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="opt cannot be loaded"):
        models.load_base(folder)
    assert not (tmp_path / "ran").exists()


# ---- the judge

# A text of each kind that transformers' own conversion reads as unknown
SPECIAL = {
    "ellipsis": "…",
    "no-break space": "\u00a0",
    "zero-width space": "\u200b",
    "ligature": "ﬁ",
    "full width": "Ａ",
    "unit": "㎏",
    "trade mark": "™",
    "ideographic space": "\u3000",
    "byte order mark": "\ufeff",
    "line separator": "\u2028",
}
PIECES = [
    *SPECIAL.values(),
    *("a", "weeds", "Hello", " ", "  ", "\n", "\n\n", "\t", ".", "?!", "don't", "co-op", "x" * 30),
    *("é", "e\u0301", "ñ", "“", "’", "ß", "İ", "½", "①", "你好", "世界", "日本語", "カタカナ"),
    *("ｶﾞ", "한국어", "각", "㈱", "🧀", "👩‍👩‍👧‍👦", "🇩🇪", "שלום", "مرحبا", "Привет"),
]


@pytest.fixture(scope="module")
def judge_tokenizer():
    """The tokenizer of the demo's judge as the evaluation loads it."""
    return models.load_judge(JUDGE)[1]


@pytest.fixture(scope="module")
def library():
    """The sentencepiece library with the model of the judge."""
    return sentencepiece.SentencePieceProcessor(model_file=str(JUDGE / "spm.model"))


def list_unlike(tokenizer, library, texts):
    """List the texts whose tokens differ from the library's."""
    unlike = []
    for text in texts:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != library.encode(text):
            unlike.append(text)
    return unlike


@pytest.mark.parametrize("name", SPECIAL)
def test_character_is_read_as_the_library_reads_it(judge_tokenizer, library, name):
    """transformers alone reads it differently from what the judge was trained on."""
    character = SPECIAL[name]
    texts = [f"a{character}b", character, f"{character} weeds", f"weeds{character}"]
    assert list_unlike(judge_tokenizer, library, texts) == []
    assert list_unlike(AutoTokenizer.from_pretrained(JUDGE), library, texts) != []


def test_thousands_of_texts_are_read_as_the_library_reads_them(judge_tokenizer, library):
    """Emoji, CJK, Arabic, accents, compatibility forms and white space are mixed at random."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 25))) for _ in range(5000)]
    assert list_unlike(judge_tokenizer, library, texts) == []


def test_published_texts_are_read_as_the_library_reads_them(judge_tokenizer, library):
    """These are all prompts and responses that the study published."""
    folder = DATA / "published"
    if not folder.exists():
        pytest.skip("needs ../shared/data/published")
    texts = [record["response"] for record in load(folder / "responses.json")]
    texts += [record["prompt"] for record in load(folder / "prompts.json")]
    assert len(texts) == 500
    assert list_unlike(judge_tokenizer, library, texts) == []


def test_normaliser_of_tokenizer_json_is_taken(tmp_path, judge_tokenizer, library):
    """It is used for a judge with tokenizer.json and without spm.model."""
    shutil.copytree(JUDGE, tmp_path / "judge")
    judge_tokenizer.save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "spm.model").unlink()
    saved = models.load_judge(tmp_path / "judge")[1]
    texts = [f"a{character}b" for character in SPECIAL.values()]
    assert list_unlike(saved, library, texts) == []


def test_other_tokenizers_keep_their_normaliser(tmp_path):
    """A judge that is not a DeBERTa reads as transformers loads it."""
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    loading._read_as_sentencepiece(tokenizer, tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert str(tokenizer.backend_tokenizer.normalizer) == str(saved.normalizer)


def test_judge_is_loaded_in_fp32_and_cuts_from_the_left():
    """A small difference in reward can change a label, so half precision is not used."""
    judge, tokenizer = models.load_judge(JUDGE)
    assert {weight.dtype for weight in judge.parameters()} == {torch.float32}
    assert not judge.training
    assert tokenizer.truncation_side == "left"


def test_judge_with_more_than_one_label(tmp_path):
    """A classifier is not a reward model."""
    config = OPTConfig(num_labels=3, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1)
    config.save_pretrained(tmp_path / "judge")
    for check in (models.load_judge, models.require_reward_model):
        with pytest.raises(ValueError, match="REWARD_MODEL: .*judge has 3 labels .*but a reward"):
            check(tmp_path / "judge")


def test_judge_with_code_beside_it(tmp_path):
    """Neither the judge's own code nor a pickle's is executed."""
    folder = tmp_path / "judge"
    shutil.copytree(JUDGE, folder)
    config = load(folder / "config.json")
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert isinstance(models.load_judge(folder)[0], type(load_demo_judge()))
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(ValueError, match="judge cannot be loaded"):
        models.load_judge(folder)
    assert not (tmp_path / "ran").exists()


def load_demo_judge():
    """Load the demo's judge as transformers does."""
    return AutoModelForSequenceClassification.from_pretrained(JUDGE)


# ---- texts

ODD = st.sampled_from(
    ["\n\nHuman:", "</s>", "<pad>", "[SEP]", "[CLS]", "<s>", "<unk>", "\x00", "é", "🧀", "word "]
    + ["a", "</", "s>"]
)


@pytest.fixture(scope="module")
def tokenizers(tokenizer, judge_tokenizer):
    """The tokenizers of base and judge, whose special tokens are spelled differently."""
    return [tokenizer, judge_tokenizer]


@examples(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(ODD, max_size=14).map("".join)))
def test_text_for_a_model_holds_no_control_token(tokenizers, text):
    """`plain` removes every special token and leaves other texts unchanged."""
    for tokenizer in tokenizers:
        clean = models.plain(text + tokenizer.eos_token, tokenizer)
        tokens = tokenizer.tokenize(clean)
        control = set(tokenizer.all_special_tokens)
        assert not control & set(tokens)
        if not any(token in text for token in control):
            assert models.plain(text, tokenizer) == text
