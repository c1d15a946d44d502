"""Loading and saving: dropout off, adapters as they were trained, no pickle and no foreign code, the judge's tokens."""

import json
import os
import pickle
import random
import shutil
from collections import Counter

import pytest
import sentencepiece
import torch
from conftest import ADAPTERS, DATA, MODELS, load
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from posttrain import models
from posttrain.models import PROBES, logits_of, switched_to
from posttrain.runs import Run

LIMIT = {"atol": 1e-4}


@pytest.fixture
def run(demo_run, copied_run):
    """A copy of the demo run that a test may change."""
    run = Run(copied_run.folder / "results", "demo")
    yield run
    run.release()


# ---- the base

def test_base_is_loaded_in_fp32_without_dropout(hub):
    """The demo's config and weights have OPT-350M's dropout and fp16; `load_base` gives neither."""
    plain = AutoModelForCausalLM.from_pretrained(hub / "opt")
    assert plain.config.dropout == 0.1
    assert plain.dtype == torch.float16
    base = models.load_base(hub / "opt")
    assert (base.config.dropout, base.config.attention_dropout, base.config.layerdrop) == (0, 0, 0)
    assert {weight.dtype for weight in base.parameters()} == {torch.float32}
    assert models.load_base(hub / "opt", dropout=0.1).config.dropout == 0.1


def test_training_mode_is_as_deterministic_as_evaluation(hub, tokenizer):
    """In training mode the base gives the logits of evaluation mode: no dropout is left anywhere."""
    base = models.load_base(hub / "opt")
    ids = tokenizer(PROBES[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(base.train()(ids).logits, base.eval()(ids).logits)


def test_model_that_cannot_be_loaded_is_named(tmp_path):
    """The libraries' errors do not say which folder it was."""
    (tmp_path / "config.json").write_text("{}")
    for load_one in (models.load_base, models.load_config, models.load_judge):
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded .*Is it there, and whole"):
            load_one(tmp_path)


# ---- adapters

def test_adapter_is_the_trained_model_from_disk(demo_run, hub, tokenizer):
    """Loaded over a fresh base, each adapter gives other logits than the base and than the others."""
    found = {"Base": logits_of(models.load_base(hub / "opt"), tokenizer, PROBES)}
    for name, adapter in zip(MODELS[1:], ADAPTERS):
        adapted = PeftModel.from_pretrained(models.load_base(hub / "opt"), demo_run.run / adapter)
        found[name] = logits_of(adapted, tokenizer, PROBES)
    for i, first in enumerate(MODELS):
        for second in MODELS[i + 1 :]:
            assert (found[first] - found[second]).abs().max() > 1e-2, (first, second)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_peft_alone_loads_an_adapter(demo_run, hub, adapter, recwarn, monkeypatch):
    """From the repository's root by peft's own means, without a warning; moved, with its base given."""
    config = PeftConfig.from_pretrained(demo_run.run / adapter)
    assert (config.base_model_name_or_path, config.revision) == ("demo/hub/opt", None)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    model = AutoPeftModelForCausalLM.from_pretrained(demo_run.run / adapter)
    assert isinstance(model, PeftModel)
    assert [str(one.message) for one in recwarn if "peft" in one.filename] == []


def test_adapter_folder_holds_the_whole_adapter_and_no_more(demo_run):
    """Config, weights and log; the weights are safetensors."""
    for adapter in ADAPTERS:
        names = {path.name for path in (demo_run.run / adapter).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "log.json"}


def test_models_of_a_run_are_the_base_and_its_adapters(run, hub, tokenizer):
    """One base with switched adapters gives each model's own logits, Base after SFT too."""
    loaded = models.load_models(run, hub / "opt")
    assert list(loaded) == MODELS
    assert len({id(model) for model in loaded.values()}) == 1
    for name in ("Base", "SFT", "Base", "SFT+DPO", "DPO"):
        base = models.load_base(hub / "opt")
        if name != "Base":
            base = PeftModel.from_pretrained(base, run.folder / ADAPTERS[MODELS.index(name) - 1])
        expected = logits_of(base, tokenizer, PROBES)
        with switched_to(loaded[name], name):
            assert torch.allclose(logits_of(loaded[name], tokenizer, PROBES), expected, **LIMIT)


def test_save_refuses_an_adapter_over_a_merged_base(run, hub, tokenizer, tmp_path):
    """An adapter over a base with another adapter merged in is not the model that loading it gives."""
    merged = models.load_sft(run, hub / "opt", 0.0, torch.float32, "lora").merge_and_unload()
    trained = PeftModel.from_pretrained(merged, run.folder / "adapters" / "dpo")
    with pytest.raises(RuntimeError, match="dpo: loaded from disk, the model's logits differ by"):
        models.save_trained(trained, tmp_path / "dpo.tmp", hub / "opt", "x", None, tokenizer)
    models.save_trained(PeftModel.from_pretrained(models.load_base(hub / "opt"), run.folder / "adapters" / "dpo"),
                        tmp_path / "sound", hub / "opt", "facebook/opt-350m", "a" * 40, tokenizer)
    config = load(tmp_path / "sound" / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("facebook/opt-350m", "a" * 40)


@pytest.mark.parametrize(("first", "second"), [("sft", "dpo"), ("dpo", "sft_dpo")])
def test_adapters_that_changed_places_are_noticed(run, hub, first, second):
    """Each adapter must be the model that run.json says it is."""
    adapters = run.folder / "adapters"
    for old, new in ((first, "x"), (second, first), ("x", second)):
        (adapters / old).rename(adapters / new)
    with pytest.raises(ValueError, match="adapters/.* is not the one that run.json says: put it back, or remove it"):
        models.load_models(run, hub / "opt")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:500])])
def test_adapter_that_is_not_whole_is_named(run, hub, damage):
    """Missing or cut short."""
    damage(run.folder / "adapters" / "dpo" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapters/dpo is missing, was changed or"):
        models.load_models(run, hub / "opt")


# ---- nothing runs

class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(path, ran):
    """Write a pickle that would make the folder `ran`, as torch writes them."""
    torch.save({"weight": torch.zeros(1), "payload": Payload(ran)}, path)


def test_payload_works(tmp_path):
    """The pickles of these tests would do what they threaten with."""
    write_pickle(tmp_path / "a.bin", tmp_path / "ran")
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "weights.pt", "x.pkl"])
def test_pickle_in_an_adapter_is_not_loaded(run, hub, tmp_path, name, sealed):
    """In place of the safetensors it is refused, though the ledger vouches for it."""
    folder = run.folder / "adapters" / "dpo"
    (folder / "adapter_model.safetensors").unlink()
    write_pickle(folder / name, tmp_path / "ran")
    if sealed:
        run.seal("adapters/dpo", {})
    with pytest.raises(ValueError, match="pickles, which can run code, are not loaded" if sealed else "was changed or"):
        models.load_models(run, hub / "opt")
    shutil.copytree(folder, run.folder / "adapters" / "sft", dirs_exist_ok=True)
    (run.folder / "adapters" / "sft" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickles, which can run code"):
        models.load_sft(run, hub / "opt", 0.0, torch.float32, "lora")
    assert not (tmp_path / "ran").exists()


def test_pickle_beside_the_weights_is_not_read(run, hub, tmp_path):
    """An adapter from elsewhere whose safetensors are whole is loaded from them alone."""
    write_pickle(run.folder / "adapters" / "dpo" / "adapter_model.bin", tmp_path / "ran")
    run.seal("adapters/dpo", {})
    models.load_models(run, hub / "opt")
    assert not (tmp_path / "ran").exists()


def test_pickle_in_a_full_model_is_refused(tmp_path, hub):
    """The SFT model of full fine-tuning is safetensors or nothing; a base's pickle is read without running code."""
    shutil.copytree(hub / "opt", tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").unlink()
    write_pickle(tmp_path / "opt" / "pytorch_model.bin", tmp_path / "ran")
    for safetensors in (True, None):
        with pytest.raises(ValueError, match="opt cannot be loaded"):
            models.load_base(tmp_path / "opt", safetensors=safetensors)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_does_not_run(hub, tmp_path):
    """A base whose config names code of its own is loaded without it, or refused where it cannot be."""
    shutil.copytree(hub / "opt", tmp_path / "opt")
    (tmp_path / "opt" / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = load(tmp_path / "opt" / "config.json")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "opt" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    models.load_base(tmp_path / "opt")
    (tmp_path / "opt" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(ValueError, match="opt cannot be loaded"):
        models.load_base(tmp_path / "opt")
    assert not (tmp_path / "ran").exists()


# ---- the judge

# One of each kind that transformers' own conversion reads as unknown, then all sorts of writing
SPECIAL = {"ellipsis": "…", "no-break space": "\u00a0", "zero-width space": "\u200b", "ligature": "ﬁ",
           "full width": "Ａ", "unit": "㎏", "trade mark": "™", "ideographic space": "\u3000",
           "byte order mark": "\ufeff", "line separator": "\u2028"}
PIECES = [*SPECIAL.values(), "a", "weeds", "Hello", " ", "  ", "\n", "\n\n", "\t", ".", "?!", "é", "e\u0301", "ñ", "“",
          "’", "你好", "世界", "日本語", "カタカナ", "ｶﾞ", "한국어", "各", "㈱", "🧀", "👩‍👩‍👧‍👦", "🇩🇪", "שלום", "مرحبا",
          "Привет", "ß", "İ", "½", "①", "x" * 30, "don't", "co-op"]


@pytest.fixture(scope="module")
def judge_tokenizer(hub):
    """The tokenizer of the demo's judge as the evaluation loads it."""
    return models.load_judge(hub / "reward-model")[1]


@pytest.fixture(scope="module")
def library(hub):
    """The sentencepiece library with the same model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(hub / "reward-model" / "spm.model"))


def unlike(tokenizer, library, texts):
    """Return the texts whose tokens differ from the library's."""
    return [text for text in texts if tokenizer(text, add_special_tokens=False)["input_ids"] != library.encode(text)]


@pytest.mark.parametrize("name", SPECIAL)
def test_character_is_read_as_the_library_reads_it(judge_tokenizer, library, hub, name):
    """transformers alone reads it as unknown, or otherwise; here it is what the judge was trained on."""
    texts = [f"a{SPECIAL[name]}b", SPECIAL[name], f"{SPECIAL[name]} weeds", f"weeds{SPECIAL[name]}"]
    assert unlike(judge_tokenizer, library, texts) == []
    assert unlike(AutoTokenizer.from_pretrained(hub / "reward-model"), library, texts) != []


def test_thousands_of_texts_are_read_as_the_library_reads_them(judge_tokenizer, library):
    """Emoji, CJK, Arabic, accents, compatibility forms and white space, mixed at random."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 25))) for _ in range(5000)]
    assert unlike(judge_tokenizer, library, texts) == []


def test_real_text_is_read_as_the_library_reads_it(judge_tokenizer, library):
    """Every prompt and response that the study published."""
    folder = DATA / "published"
    if not folder.exists():
        pytest.skip("needs ../shared/data/published")
    texts = [row["response"] for row in load(folder / "responses.json")]
    texts += [row["prompt"] for row in load(folder / "prompts.json")]
    assert len(texts) == 500
    assert unlike(judge_tokenizer, library, texts) == []


def test_normaliser_of_tokenizer_json_is_taken(hub, tmp_path, judge_tokenizer, library):
    """A judge that comes with tokenizer.json and without spm.model is read by the normaliser in it."""
    shutil.copytree(hub / "reward-model", tmp_path / "judge")
    judge_tokenizer.save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "spm.model").unlink()
    saved = models.load_judge(tmp_path / "judge")[1]
    assert unlike(saved, library, [f"a{character}b" for character in SPECIAL.values()]) == []


def test_other_tokenizers_keep_their_normaliser(hub, tmp_path):
    """A judge that is no DeBERTa reads as transformers loads it."""
    tokenizer = AutoTokenizer.from_pretrained(hub / "opt")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    models._read_as_sentencepiece(tokenizer, tmp_path)
    before = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).normalizer
    assert str(tokenizer.backend_tokenizer.normalizer) == str(before)


def spoiled_judge(hub, folder, labels=1, bias=0.0):
    """Write a copy of the demo's judge with another head; return its folder."""
    shutil.copytree(hub / "reward-model", folder)
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, ignore_mismatched_sizes=True)
    torch.nn.init.constant_(judge.classifier.bias, bias)
    judge.save_pretrained(folder)
    return folder


def test_judge_with_more_than_one_label(hub, tmp_path):
    """A classifier is no reward model."""
    judge = spoiled_judge(hub, tmp_path / "judge", labels=3)
    for check in (models.load_judge, models.require_reward_model):
        with pytest.raises(ValueError, match="REWARD_MODEL: .*judge has 3 labels; a reward model has one"):
            check(judge)


# ---- texts and batches

ODD = st.sampled_from(["\n\nHuman:", "</s>", "<pad>", "[SEP]", "[CLS]", "<s>", "<unk>", "\x00", "é", "🧀", "a", "word ",
                       "</", "s>"])


@examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.lists(ODD, max_size=14).map("".join)))
def test_text_for_a_model_holds_no_control_token(tokenizer, text):
    """`plain` leaves nothing that a tokenizer takes for control, and texts without such tokens as they are."""
    clean = models.plain(text + "</s>", tokenizer)
    assert not set(tokenizer(clean, add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert models.plain(text, tokenizer) == text


def test_batches_come_back_in_order():
    """Whatever the order of the indices in the batches."""
    assert models.in_batches(lambda batch: [2.5 * i for i in batch], [[3, 1], [0, 2], [4]], "x") == [0, 2.5, 5, 7.5, 10]


def out_of_memory():
    """Raise what torch raises on a GPU whose memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1.00 GiB in all.")


def test_batch_that_runs_out_of_memory_is_done_in_halves(capsys):
    """Every index once, in the end in their order; one text too many is an error."""
    sizes = []

    def small_card(batch):
        sizes.append(len(batch))
        return [i * 2 for i in batch] if len(batch) <= 2 else out_of_memory()

    assert models.in_batches(small_card, [[3, 1, 0, 2, 4]], "x") == [0, 2, 4, 6, 8]
    assert sizes == [5, 2, 3, 1, 2]
    assert "Out of memory with 5 texts at once" in capsys.readouterr().out
    with pytest.raises(torch.OutOfMemoryError):
        models.in_batches(lambda batch: out_of_memory(), [[0]], "x")
    assert Counter(sizes)[5] == 1
