"""What is loaded is what was named, and is fit for what it is used as; otherwise it is refused."""

import json
import shutil

import pytest
import small_models
import torch
from conftest import HUB, dialogue
from safetensors.torch import load_file, save_file
from small_models import FAULTY_JUDGES, GENERATION, JUDGES, change_tensors, save_base
from tokenizers import AddedToken, Regex, normalizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from posttrain import architecture, generation, judge_checks, judging, loading, models
from posttrain.data import PROMPT_END

OPT = HUB / "opt"
JUDGE = HUB / "reward-model"


def refuse(function, *arguments):
    """Call a function that must refuse its input, and return the message."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        function(*arguments)
    message = str(refusal.value)
    assert message.endswith(".")
    return message


# ---- weights


def copy_opt(folder, change=None):
    """Copy the demo's base, and change its tensors."""
    shutil.copytree(OPT, folder)
    return change_tensors(folder, change) if change else folder


@pytest.mark.parametrize("prefix", ["module.", "base_model.model."])
def test_weights_under_a_wrapper_are_not_drawn_at_random(tmp_path, prefix):
    folder = copy_opt(
        tmp_path / "base", lambda tensors: {prefix + key: tensors[key] for key in tensors}
    )
    message = refuse(models.load_base, folder)
    assert str(folder) in message
    assert "they have others" in message.lower()
    assert prefix in message


def test_missing_layer_is_named(tmp_path):
    message = refuse(models.load_base, small_models.save_without_a_layer(tmp_path / "base"))
    assert "no values for" in message
    assert "layers.1" in message


def test_weights_of_another_size_are_named(tmp_path):
    folder = copy_opt(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 256}))
    assert "fc1" in refuse(models.load_base, folder)


def test_layout_of_the_hub_without_a_prefix_is_loaded(tmp_path):
    """OPT-350M's published weights lack the prefix `model.`, and its head is tied."""

    def without_prefix(tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    folder = copy_opt(tmp_path / "base", without_prefix)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = models.load_base(OPT)(ids).logits
        assert torch.equal(models.load_base(folder)(ids).logits, expected)


def test_weights_that_are_not_used_are_mentioned(tmp_path, capsys):
    folder = copy_opt(tmp_path / "base", lambda tensors: tensors | {"extra.weight": torch.ones(2)})
    models.load_base(folder)
    assert "does not use: extra.weight" in capsys.readouterr().out


def test_layers_beyond_the_config_are_not_left_out(tmp_path):
    folder = copy_opt(tmp_path / "base")
    small_models.change_json(folder / "config.json", num_hidden_layers=1)
    message = refuse(models.load_base, folder)
    assert "layers that config.json does not have" in message
    assert "layers.1" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_in_eight_bits_are_not_read_as_numbers(tmp_path, dtype):
    """Their scale is missing, so that the numbers would be other ones."""

    def quantize(tensors):
        name = next(name for name in tensors if name.endswith("fc1.weight"))
        return tensors | {name: (100 * tensors[name].float()).to(dtype)}

    message = refuse(models.load_base, copy_opt(tmp_path / "base", quantize))
    assert "fc1.weight" in message
    assert "is quantized" in message


def test_whole_numbers_in_a_pickle_are_not_read_as_weights(tmp_path):
    folder = copy_opt(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    models.load_base(folder)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    tensors[name] = (100 * tensors[name].float()).to(torch.int8)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "as int8" in refuse(models.load_base, folder)


def test_weights_that_nobody_loads_are_no_matter(tmp_path):
    folder = copy_opt(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    quantized = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(quantized, folder / "model.int8.safetensors")
    models.load_base(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors"])
def test_quantized_model_is_refused_as_such(tmp_path, method):
    folder = copy_opt(tmp_path / "base")
    small_models.change_json(
        folder / "config.json", quantization_config={"quant_method": method, "load_in_8bit": True}
    )
    for function in (models.load_base, models.load_tokenizer):
        message = refuse(function, folder)
        assert "quantized" in message
        assert method in message


def test_weights_elsewhere_are_not_loaded(tmp_path):
    folder = copy_opt(tmp_path / "base")
    (folder / "sub").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "sub" / "x.safetensors")
    small_models.change_json(folder / "config.json", transformers_weights="sub/x.safetensors")
    assert "sub/x.safetensors" in refuse(models.load_base, folder)


def test_shards_elsewhere_are_not_loaded(tmp_path):
    """A run would not notice that they have changed."""
    folder = small_models.save_in_shards(tmp_path / "base")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    (folder / "sub").mkdir()
    shard = sorted(set(places.values()))[0]
    (folder / shard).rename(folder / "sub" / shard)
    moved = {name: f"sub/{place}" if place == shard else place for name, place in places.items()}
    small_models.change_json(index, weight_map=moved)
    assert f"sub/{shard}" in refuse(models.load_base, folder)


def test_code_of_a_model_is_mentioned_and_not_executed(tmp_path, capsys):
    folder = copy_opt(tmp_path / "base")
    (folder / "own.py").write_text("raise SystemExit")
    auto_map = {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}
    small_models.change_json(folder / "config.json", auto_map=auto_map)
    models.load_base(folder)
    assert "code of its own, which is not executed" in capsys.readouterr().out


def test_config_that_asks_for_tuples_is_no_matter(tmp_path):
    folder = copy_opt(tmp_path / "base")
    small_models.change_json(folder / "config.json", return_dict=False)
    assert models.load_base(folder)(torch.arange(5)[None]).logits.shape[1] == 5


@pytest.mark.parametrize("model_type", ["gemma", "granite"])
def test_weights_of_another_architecture_are_not_read(tmp_path, model_type):
    """Their tensors have the same names and shapes, but the computation is another one."""
    folder = save_base(tmp_path / "base", "llama")
    small_models.change_json(folder / "config.json", model_type=model_type)
    message = refuse(models.load_base, folder)
    assert "LlamaForCausalLM" in message
    assert model_type in message


def test_two_sets_of_weights_are_refused(tmp_path):
    folder = small_models.save_in_shards(tmp_path / "base")
    shutil.copy(OPT / "model.safetensors", folder)
    assert "two sets of weights" in refuse(models.load_base, folder)


@pytest.mark.parametrize("content", ["", '{"eos_token_id": [2,', "[]"])
def test_damaged_generation_config_is_refused(tmp_path, content):
    """transformers would go on without the ends that it names."""
    folder = copy_opt(tmp_path / "base")
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json" in refuse(models.load_base, folder)


@pytest.mark.parametrize("name", ["no head", "value head"])
def test_judge_without_its_head_is_refused(tmp_path, name):
    message = refuse(models.load_judge, FAULTY_JUDGES[name](tmp_path / "judge"))
    assert "classifier" in message


@pytest.mark.parametrize("save", ["save_beside_an_adapter", "save_beside_adapter_weights"])
def test_adapter_beside_full_weights_is_refused(tmp_path, save):
    folder = getattr(small_models, save)(tmp_path / "base")
    assert "adapter_config.json" in refuse(models.load_base, folder)


def test_adapter_beside_a_judge_is_refused(tmp_path):
    folder = shutil.copytree(JUDGE, tmp_path / "judge")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "r": 4}')
    assert "adapter_config.json" in refuse(models.load_judge, folder)


# ---- tokenizers of bases


def save_with(folder, **changes):
    """Save the demo's base with a tokenizer that some changes were made to."""
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    shutil.copytree(OPT, folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (small_models.save_without_eos, "has no EOS token"),
        (small_models.save_with_eos_beyond, "no embeddings for: '<end>'"),
        (small_models.save_appending_eos, "puts </s> at the end of every text"),
        (small_models.save_without_vocabulary, "markers of the turns would be lost"),
        (small_models.save_dropping_line_feeds, "markers of the turns would be lost"),
    ],
)
def test_tokenizer_that_is_not_fit_for_prompts_is_refused(tmp_path, save, reason):
    folder = save(tmp_path / "base")
    assert reason in refuse(models.load_tokenizer, folder)
    assert reason in refuse(models.require_base, folder, 128)


def test_padding_beyond_the_embeddings_is_refused(tmp_path):
    """A padding token that was added to a tokenizer and not to the model is a common fault."""
    folder = save_with(tmp_path / "base", pad_token="[NEW PAD]")
    assert "'[NEW PAD]'" in refuse(models.load_tokenizer, folder)


@pytest.mark.parametrize(
    ("role", "token"), [("pad_token", " the"), ("eos_token", "."), ("unk_token", "!")]
)
def test_special_token_must_not_be_text(tmp_path, role, token):
    """It would be cut out of every answer, or end every reply in its middle."""
    folder = save_with(tmp_path / "base", **{role: token})
    message = refuse(models.load_tokenizer, folder)
    assert repr(token) in message
    assert role in message


def test_special_token_without_a_role_must_not_be_text(tmp_path):
    """It would be cut out of every answer all the same."""
    shutil.copytree(OPT, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.add_tokens(["sorry"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    assert "'sorry' as a special token" in refuse(models.load_tokenizer, tmp_path / "base")


@pytest.mark.parametrize("token", ["|ENDOFTEXT|", "__end__", "｟eos｠", "\x03", "<|im_end|>"])
def test_special_tokens_of_every_look_are_accepted(tmp_path, token):
    shutil.copytree(OPT, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    models.load_tokenizer(tmp_path / "base")


@pytest.mark.parametrize(
    "change", [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("$", "")]
)
def test_normalizer_that_changes_plain_text_is_refused(tmp_path, change):
    backend = AutoTokenizer.from_pretrained(OPT).backend_tokenizer
    backend.normalizer = change
    copy_opt(tmp_path / "base")
    small_models.bare_tokenizer(backend).save_pretrained(tmp_path / "base")
    assert "into" in refuse(models.load_tokenizer, tmp_path / "base")


@pytest.mark.parametrize("sign", [".", ";", "*", "1"])
def test_tokens_that_swallow_blanks_are_refused(tmp_path, sign):
    """The models would learn other texts than those of the pairs."""
    folder = copy_opt(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.add_tokens([AddedToken(sign, lstrip=True, rstrip=True, normalized=False)])
    tokenizer.save_pretrained(folder)
    assert "into" in refuse(models.load_tokenizer, folder)


def test_letters_that_a_tokenizer_changes_are_mentioned(tmp_path, capsys):
    backend = AutoTokenizer.from_pretrained(OPT).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    copy_opt(tmp_path / "base")
    small_models.bare_tokenizer(backend).save_pretrained(tmp_path / "base")
    models.load_tokenizer(tmp_path / "base")
    assert "Käse" in capsys.readouterr().out


def test_special_token_of_no_use_may_lie_beyond_the_embeddings(tmp_path):
    """Gemma's tokenizer has a token for images that its models for text have no embedding for."""
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    shutil.copytree(OPT, tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert len(models.load_tokenizer(tmp_path / "base")) == 1572


def test_good_tokenizers_are_not_refused(tmp_path):
    assert models.load_tokenizer(OPT).pad_token == "<pad>"
    models.require_base(OPT, 1024)
    folder = small_models.save_padding_with_eos(tmp_path / "base")
    assert models.load_tokenizer(folder).pad_token == "</s>"


# ---- the size of a base


@pytest.mark.parametrize(
    ("name", "positions"),
    [("opt", 512), ("gpt2", 512), ("bloom", None), ("mpt", 512), ("falcon", 2048), ("llama", 512)],
)
def test_size_is_read_whatever_its_names_are(tmp_path, name, positions):
    config = models.load_config(save_base(tmp_path / "base", name))
    size = architecture.read_size(config)
    assert (size.positions, size.layers, size.width) == (positions, 2, 32)
    assert size.vocabulary == small_models.VOCABULARY


def test_positions_that_depend_on_the_batch_are_not_used():
    """Beyond the original length, longrope turns all texts of a batch by the longest of them."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    config = Phi3Config(max_position_embeddings=512, hidden_size=32, num_attention_heads=2)
    assert architecture.read_size(config).positions == 512
    config.rope_parameters = rope
    assert architecture.read_size(config).positions == 64
    config.rope_parameters = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
    assert architecture.read_size(config).positions == 64


def test_max_length_beyond_the_positions_is_refused(tmp_path):
    folder = save_base(tmp_path / "base", "gpt2")
    models.require_base(folder, 512)
    assert "{'max_length': 512}" in refuse(models.require_base, folder, 513)
    models.require_base(save_base(tmp_path / "unlimited", "bloom"), 10_000)


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_base_for_images_is_refused(tmp_path, kind):
    folder = small_models.save_multimodal(tmp_path / "base", kind)
    message = refuse(models.require_base, folder, 128)
    assert "reads more than text" in message or "not a causal language model" in message


def test_base_that_numbers_its_positions_in_its_own_way_is_refused(tmp_path):
    """RoBERTa counts from its padding token's id on, and generation counts from zero."""
    config = AutoConfig.for_model(
        "roberta",
        **{**small_models.COMMON, **small_models.USUAL, "is_decoder": True},
        architectures=["RobertaForCausalLM"],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    small_models.demo_tokenizer().save_pretrained(tmp_path)
    assert "counts its positions" in refuse(models.load_base, tmp_path)


def test_encoder_is_no_base(tmp_path):
    """As a language model, BERT sees the tokens that it should write."""
    folder = small_models.save_encoder(tmp_path / "base")
    assert "come after a token" in refuse(models.load_base, folder)
    shutil.copytree(JUDGE, tmp_path / "judge")
    assert "not a causal language model" in refuse(models.require_base, tmp_path / "judge", 128)


def test_nan_in_the_weights_is_refused(tmp_path):
    folder = small_models.save_with_nan(tmp_path / "base")
    assert "not finite, in model.decoder.layers.1.fc1.weight" in refuse(models.load_base, folder)


def test_nan_that_only_one_word_meets_is_refused_in_a_judge(tmp_path):
    def spoil(tensors):
        (name,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
        tensors[name][600] = float("nan")
        return tensors

    folder = change_tensors(shutil.copytree(JUDGE, tmp_path / "judge"), spoil)
    assert "word_embeddings" in refuse(models.load_judge, folder)


def test_weights_that_are_zero_are_refused(tmp_path):
    """A file of the right size that was never written contains zeros."""

    def empty(tensors):
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    folder = copy_opt(tmp_path / "base", empty)
    assert "equally likely" in refuse(models.load_base, folder)
    folder = change_tensors(shutil.copytree(JUDGE, tmp_path / "judge"), empty)
    assert "same reward" in refuse(models.load_judge, folder)


# ---- dropout


@pytest.mark.parametrize(
    "name", ["opt", "gpt2", "gpt-neo", "phi", "falcon-dropout", "bloom-dropout", "gptj"]
)
def test_no_base_keeps_a_dropout(tmp_path, name):
    folder = save_base(tmp_path / "base", name)
    stored = architecture.read_dropout(models.load_config(folder))
    assert any(stored.values())
    base = models.load_base(folder)
    assert not any(architecture.read_dropout(base.config).values())
    rates = [module.p for module in base.modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(rates)


def test_dropout_that_is_asked_for_replaces_the_rates_that_are_not_zero():
    config = OPTConfig(dropout=0.1, attention_dropout=0.0, layerdrop=0.2)
    architecture.set_dropout(config, 0.3)
    assert (config.dropout, config.attention_dropout, config.layerdrop) == (0.3, 0.0, 0.2)
    config = GPT2Config(resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.0)
    architecture.set_dropout(config, 0.3)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.0)
    config = OPTConfig(dropout=0.0)
    architecture.set_dropout(config, 0.3)
    assert config.dropout == 0.3
    assert "no dropout" in refuse(architecture.set_dropout, LlamaConfig(), 0.1)


def test_noise_that_is_no_dropout_is_refused(tmp_path):
    """Mixtral's router may add noise to its input in training mode."""
    folder = save_base(tmp_path / "base", "mixtral", router_jitter_noise=0.5)
    assert "draws random numbers" in refuse(models.load_base, folder)
    models.load_base(save_base(tmp_path / "quiet", "mixtral"))


# ---- decoding


def answer(folder, **decoding):
    """Let a base answer two prompts greedily."""
    prompts = [dialogue(text) + PROMPT_END for text in ("How do I bake bread?", "Hi")]
    options = {"do_sample": False, "max_new_tokens": 10, **decoding}
    tokenizer = models.load_tokenizer(folder)
    return generation.respond(models.load_base(folder), tokenizer, prompts, 2, **options)


@pytest.mark.parametrize("name", GENERATION)
def test_decoding_is_not_inherited_from_the_base(tmp_path, capsys, name):
    """Each of these options would change the answers, or the type of what is returned."""
    plain = answer(save_base(tmp_path / "plain"))
    folder = small_models.save_with_generation(tmp_path / "base", **GENERATION[name])
    assert answer(folder) == plain
    said = capsys.readouterr().out
    for option in GENERATION[name]:
        if option in ("eos_token_id", "use_cache"):
            continue
        assert said.count(f"{option} = ") == 1


def test_what_is_left_out_is_said_once(tmp_path, capsys):
    folder = small_models.save_with_generation(tmp_path / "base", repetition_penalty=1.1)
    models.load_base(folder)
    models.load_base(folder)
    assert capsys.readouterr().out.count("repetition_penalty = 1.1") == 1


def test_every_end_ends_an_answer(tmp_path, capsys):
    """Chat models name two ends; the tokenizer's EOS alone would let an answer run to its limit."""
    folder = save_with(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unk>"]})
    tokenizer.save_pretrained(folder)
    other_end = tokenizer.convert_tokens_to_ids("<unk>")
    model, tokenizer = models.load_base(folder), models.load_tokenizer(folder)
    model.generation_config.eos_token_id = [2, other_end, 20]
    ends = generation.list_ends(model, tokenizer)
    assert ends == [2, other_end]
    assert "names 20 as an end of texts" in capsys.readouterr().out
    model.generation_config.eos_token_id = [2, -1, "</s>"]
    assert generation.list_ends(model, tokenizer) == [2]
    said = capsys.readouterr().out
    assert "names -1 as an end" in said
    assert "names '</s>' as an end" in said
    ids = tokenizer(" No.", add_special_tokens=False)["input_ids"]
    completion = generation.read_completion([*ids, other_end, 1, 1], tokenizer, None, ends)
    assert completion == {
        "response": "No.",
        "finish": "eos",
        "tokens": len(ids) + 1,
        "ids": [*ids, other_end],
    }


def test_an_end_that_is_not_special_is_no_part_of_the_answer(tmp_path):
    """Some chat models add their end of a turn as an ordinary added token."""
    folder = save_with(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = models.load_base(OPT)
    model.generation_config.eos_token_id = [2, end]
    ends = generation.list_ends(model, tokenizer)
    assert ends == [2, end]
    ids = tokenizer(" No.", add_special_tokens=False)["input_ids"]
    completion = generation.read_completion([*ids, end, 1], tokenizer, None, ends)
    assert (completion["response"], completion["finish"]) == ("No.", "eos")


def test_padding_is_removed_from_the_end_alone():
    tokenizer = models.load_tokenizer(OPT)
    ids = tokenizer(" No.", add_special_tokens=False)["input_ids"]
    padding = tokenizer.pad_token_id
    completion = generation.read_completion([*ids, padding, padding], tokenizer, None, [2])
    assert completion["tokens"] == len(ids)


# ---- judges


def test_judge_with_too_few_positions_is_refused(tmp_path):
    folder = small_models.save_roberta(tmp_path / "judge", positions=22)
    assert "positions for only 20 tokens" in refuse(models.load_judge, folder)


@pytest.mark.parametrize("name", [name for name in JUDGES if "few positions" not in name])
def test_reward_does_not_depend_on_the_batch(tmp_path, name):
    judge, tokenizer = models.load_judge(JUDGES[name](tmp_path / "judge"))
    assert tokenizer.padding_side == "right"
    texts = [tokenizer("\n\nHuman: Hi", "Hello. " * n) for n in (1, 5, 20)]
    with torch.no_grad():
        together = judge(**tokenizer.pad(texts, return_tensors="pt")).logits[:, 0]
        for text, reward in zip(texts, together):
            alone = judge(**tokenizer.pad([text], return_tensors="pt")).logits[0, 0]
            assert alone.item() == pytest.approx(reward.item(), abs=1e-4)


def test_padding_on_the_left_is_not_inherited(tmp_path):
    """With absolute positions, padding on the left would move the text."""
    folder = JUDGES["gpt2 with padding"](tmp_path / "judge")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    assert models.load_judge(folder)[1].padding_side == "right"


def test_judge_that_ends_texts_is_not_padded_with_that_end(tmp_path):
    """It reads its reward at the last token that is no padding, which must be the end itself."""
    tokenizer = small_models.unpadded_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer = small_models.bare_tokenizer(
        backend, bos_token=None, pad_token=None, unk_token="<unk>"
    )
    folder = small_models.save_gpt2_judge(tmp_path / "judge", tokenizer, None)
    judge, loaded = models.load_judge(folder)
    assert loaded.pad_token == "<unk>"
    assert judge.config.pad_token_id == loaded.pad_token_id


def test_judge_is_not_padded_with_the_end_that_it_reads_at(tmp_path):
    """Its config names the padding that it was trained with."""
    backend = small_models.demo_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer = small_models.bare_tokenizer(backend, pad_token="</s>")
    judge, loaded = models.load_judge(
        small_models.save_gpt2_judge(tmp_path / "judge", tokenizer, 1)
    )
    assert loaded.pad_token == "<pad>"
    assert judge.config.pad_token_id == 1


def test_tokenizer_is_not_random(tmp_path):
    """BPE dropout, which some tokenizers were saved with, skips merges at random."""
    for folder in (OPT, JUDGE):
        copied = shutil.copytree(folder, tmp_path / folder.name)
        tokenizer = small_models.demo_tokenizer()
        tokenizer.backend_tokenizer.model.dropout = 0.5
        if folder == OPT:
            tokenizer.save_pretrained(copied)
            loaded = models.load_tokenizer(copied)
        else:
            copied = small_models.save_gpt2_judge(tmp_path / "gpt2", tokenizer, 1)
            loaded = models.load_judge(copied)[1]
        text = "How do I bake bread at home?"
        assert len({tuple(loaded(text)["input_ids"]) for _ in range(20)}) == 1


def test_special_tokens_without_a_role_are_plain_text_too(tmp_path):
    shutil.copytree(OPT, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(OPT)
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    control = tokenizer.convert_tokens_to_ids("<|im_start|>")
    text = models.plain("Say <|im_start|> now.", tokenizer)
    assert control not in tokenizer(text)["input_ids"]


def test_lower_casing_of_deberta_is_kept(tmp_path):
    folder = shutil.copytree(JUDGE, tmp_path / "judge")
    small_models.change_json(folder / "tokenizer_config.json", do_lower_case=True)
    tokenizer = models.load_judge(folder)[1]
    assert tokenizer("How DO I")["input_ids"] == tokenizer("how do i")["input_ids"]


def test_positions_of_a_judge(tmp_path):
    assert judge_checks.count_positions(models.load_judge(JUDGE)[0]) is None  # relative ones
    roberta = JUDGES["roberta"](tmp_path / "roberta")
    assert judge_checks.count_positions(models.load_judge(roberta)[0]) == 512
    judging.try_judge(roberta, 512)
    assert "{'judge_length': 512}" in refuse(judging.try_judge, roberta, 600)


@pytest.mark.parametrize("name", FAULTY_JUDGES)
def test_faulty_judge_is_refused(tmp_path, name):
    refuse(judging.try_judge, FAULTY_JUDGES[name](tmp_path / "judge"), 512)


def test_function_of_a_reward_is_mentioned(tmp_path, capsys):
    folder = shutil.copytree(JUDGE, tmp_path / "judge")
    activation = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    small_models.change_json(folder / "config.json", sentence_transformers=activation)
    judging.try_judge(folder, 512)
    assert "which is not applied" in capsys.readouterr().out


def test_padding_of_a_judge_must_not_be_text(tmp_path):
    """A judge padded with "!" would read its reward before the last exclamation mark."""
    tokenizer = small_models.unpadded_tokenizer()
    tokenizer.pad_token = "!"
    folder = small_models.save_gpt2_judge(tmp_path / "judge", tokenizer, tokenizer.pad_token_id)
    assert "'!' as a special token (pad_token)" in refuse(models.load_judge, folder)
    tokenizer = small_models.demo_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["Human"]})
    folder = small_models.save_gpt2_judge(tmp_path / "other", tokenizer, 1)
    assert "'Human' as a special token (an additional one)" in refuse(models.load_judge, folder)


def test_only_deberta_is_read_as_sentencepiece(tmp_path):
    """Another judge's normalizer is the one that transformers makes of its files."""
    folder = JUDGES["roberta"](tmp_path / "judge")
    backend = models.load_judge(folder)[1].backend_tokenizer
    assert backend.normalizer is None
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    expected = AutoTokenizer.from_pretrained(folder)("How ARE you")["input_ids"]
    assert models.load_judge(folder)[1]("How ARE you")["input_ids"] == expected


def test_judge_that_reads_one_text_is_mentioned(tmp_path, capsys):
    judging.try_judge(JUDGE, 512)
    assert capsys.readouterr().out == ""
    backend = small_models.demo_tokenizer().backend_tokenizer
    backend.post_processor = processors.ByteLevel()
    tokenizer = small_models.bare_tokenizer(backend)
    judging.try_judge(small_models.save_gpt2_judge(tmp_path / "judge", tokenizer, 1), 512)
    assert "nothing between question and answer" in capsys.readouterr().out


def test_tokenizer_without_its_vocabulary_is_noticed_in_a_judge(tmp_path):
    """transformers makes one of seven special tokens, and all rewards would be alike."""
    folder = shutil.copytree(JUDGE, tmp_path / "judge")
    (folder / "spm.model").unlink()
    assert "does not know English words" in refuse(models.load_judge, folder)


# ---- the precision of the process


def test_lower_precision_of_products_is_undone_and_said(capsys):
    """A startup file of IPython may have set it, and no record would say so."""
    torch.set_float32_matmul_precision("medium")
    try:
        models.load_base(OPT)
        assert torch.get_float32_matmul_precision() == "highest"
        assert "float32_matmul_precision" in capsys.readouterr().out
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast_of_the_whole_process_is_refused():
    torch.set_autocast_enabled("cpu", True)
    try:
        assert "autocast" in refuse(models.load_base, OPT)
    finally:
        torch.set_autocast_enabled("cpu", False)


def test_other_default_type_is_refused():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert "default type" in refuse(models.load_base, OPT)
        assert "default type" in refuse(models.load_judge, JUDGE)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- files that are no models


@pytest.mark.parametrize("content", ["{", "null", '{"version": "1.0"}'])
def test_damaged_tokenizer_is_named(tmp_path, content):
    """The tokenizers library raises a bare Exception that names no file."""
    folder = copy_opt(tmp_path / "base")
    (folder / "tokenizer.json").write_text(content)
    assert str(folder) in refuse(loading.load_tokenizer, folder)
