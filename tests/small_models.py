"""Build tiny bases and judges of many architectures, with random weights, in a second each.

Every builder writes a folder in the layout of the hub, with a tokenizer that fits. The odd ones
have a fault or a peculiarity that checkpoints on the hub have as well.
"""

import json
import shutil

import torch
from conftest import HUB, load
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

POSITIONS = 512
VOCABULARY = 1571  # of the demo's tokenizer
# A spread of weights at which greedy answers depend on the prompt and no two tokens tie
SPREAD = 0.3
IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
COMMON = {"vocab_size": VOCABULARY, **IDS}
# The names that most architectures share
USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": SPREAD,
}
GROUPED = {**USUAL, "num_key_value_heads": 1}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
EXPERTS = {"num_experts_per_tok": 1, "router_aux_loss_coef": 0.01}
QWEN_EXPERTS = {
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    **EXPERTS,
}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "max_position_embeddings": POSITIONS,
    "init_std": SPREAD,
}

FALCON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "alibi": True,
    "initializer_range": SPREAD,
}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": SPREAD}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}

# {name: (model type, values of its config)}. Dropout rates that are not named are the defaults of
# the architecture: 0.1 in OPT and GPT-2. GPT-Neo and Phi have those of some checkpoints.
BASES = {
    "opt": ("opt", OPT),
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "gpt2": ("gpt2", {**GPT2, "initializer_range": SPREAD}),
    "gpt-neox": ("gpt_neox", USUAL),
    "gpt-neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": POSITIONS,
            "initializer_range": SPREAD,
            "embed_dropout": 0.1,
            "resid_dropout": 0.1,
            "attention_dropout": 0.1,
        },
    ),
    "phi": ("phi", {**USUAL, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}),
    "gemma3": ("gemma3_text", {**GROUPED, "head_dim": 16, "sliding_window": 16}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 16}),
    "falcon": ("falcon", FALCON),
    "falcon-dropout": ("falcon", {**FALCON, **DROPOUT}),
    "bloom": ("bloom", BLOOM),
    "bloom-dropout": ("bloom", {**BLOOM, **DROPOUT}),
    "mixtral": (
        "mixtral",
        {**GROUPED, "num_local_experts": 4, "output_router_logits": False, **EXPERTS},
    ),
    "mixtral-router": (
        "mixtral",
        {**GROUPED, "num_local_experts": 4, "output_router_logits": True, **EXPERTS},
    ),
    "qwen2-moe": ("qwen2_moe", {**GROUPED, **QWEN_EXPERTS, "output_router_logits": False}),
    "qwen2-moe-router": ("qwen2_moe", {**GROUPED, **QWEN_EXPERTS, "output_router_logits": True}),
    "rwkv": (
        "rwkv",
        {
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "context_length": POSITIONS,
        },
    ),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "ctrl": (  # its linear layers have numbers in the place of names
        "ctrl",
        {**GPT2, "dff": 64, "initializer_range": SPREAD},
    ),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": POSITIONS}),
    "gptj": (
        "gptj",
        {**GPT2, "rotary_dim": 8, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    ),
}


def demo_tokenizer():
    """Load the demo's tokenizer, a byte-level BPE with BOS and EOS in one token."""
    return AutoTokenizer.from_pretrained(HUB / "opt")


def bare_tokenizer(backend, **special):
    """Make a tokenizer that AutoTokenizer loads as it was saved, whatever its class would add."""
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def build(name, **changes):
    """Build a base in memory, the same one every time."""
    kind, values = BASES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **values, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if kind == "opt":
        with torch.no_grad():  # EOS becomes likelier, so that some answers end before the limit
            ends = model.get_input_embeddings().weight[IDS["eos_token_id"]]
            model.model.decoder.final_layer_norm.bias.copy_(0.8 * ends)
    return model


def save_base(folder, name="opt", tokenizer=None, **changes):
    """Save a base and a tokenizer into a folder.

    Args:
        folder: the folder.
        name: a key of BASES.
        tokenizer: None takes the demo's.
        changes: values of the config that replace those of BASES.

    Returns:
        The folder.
    """
    build(name, **changes).save_pretrained(folder)
    (tokenizer or demo_tokenizer()).save_pretrained(folder)
    return folder


def list_ends(folder):
    """List the token ids that end a text according to a base's generation_config.json."""
    ends = load(folder / "generation_config.json").get("eos_token_id")
    return ends if isinstance(ends, list) else [ends]


# ---- odd bases


def change_tensors(folder, change):
    """Replace the tensors of a folder by those that a function makes of them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})
    return folder


def change_json(path, **values):
    """Set values in a JSON file; None removes a value."""
    content = load(path)
    content |= values
    for name, value in values.items():
        if value is None:
            del content[name]
    path.write_text(json.dumps(content))


def save_prefixed(folder, prefix):
    """Save a base whose tensors have a prefix, as torch's DataParallel and peft write it."""
    save_base(folder)
    return change_tensors(
        folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}
    )


def save_without_a_layer(folder):
    """Save a base that lacks the tensors of its second layer."""
    save_base(folder)

    def leave_out(tensors):
        return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}

    return change_tensors(folder, leave_out)


def save_with_nan(folder):
    """Save a base with a NaN in one weight."""
    save_base(folder)

    def spoil(tensors):
        tensors["model.decoder.layers.1.fc1.weight"][0, 0] = float("nan")
        return tensors

    return change_tensors(folder, spoil)


def save_in_shards(folder):
    """Save a base in several files with an index."""
    build("opt").save_pretrained(folder, max_shard_size="50KB")
    demo_tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def save_without_a_shard(folder):
    """Save a base in several files, one of which is missing."""
    save_in_shards(folder)
    sorted(folder.glob("model-0*.safetensors"))[-1].unlink()
    return folder


def save_beside_an_adapter(folder):
    """Save a base with the config of an adapter over another base beside its weights."""
    save_base(folder)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "someone/another-base",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def save_beside_adapter_weights(folder):
    """Save a base with an adapter, its config and its weights, beside the base's own weights."""
    save_beside_an_adapter(folder)
    tensors = {}
    torch.manual_seed(1)
    for layer in range(2):
        place = f"base_model.model.model.decoder.layers.{layer}.self_attn.q_proj"
        tensors[f"{place}.lora_A.weight"] = torch.randn(4, 32)
        tensors[f"{place}.lora_B.weight"] = torch.randn(32, 4)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def save_without_eos(folder):
    """Save a base whose tokenizer has no EOS token."""
    tokenizer = demo_tokenizer()
    tokenizer.eos_token = None
    return save_base(folder, tokenizer=tokenizer)


def save_with_eos_beyond(folder):
    """Save a base whose tokenizer has an EOS token that the embeddings lack."""
    tokenizer = demo_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert tokenizer.eos_token_id == VOCABULARY
    return save_base(folder, tokenizer=tokenizer)


def save_appending_eos(folder):
    """Save a base whose tokenizer appends EOS to every text."""
    backend = demo_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", pair="</s> $A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return save_base(folder, tokenizer=bare_tokenizer(backend))


def save_without_vocabulary(folder):
    """Save a base with the tokenizer's config alone."""
    save_base(folder)
    (folder / "tokenizer.json").unlink()
    return folder


def save_without_tokenizer(folder):
    """Save a base without any file of a tokenizer."""
    build("opt").save_pretrained(folder)
    return folder


def save_dropping_line_feeds(folder):
    """Save a base whose tokenizer turns every line feed into a space."""
    backend = demo_tokenizer().backend_tokenizer
    backend.normalizer = normalizers.Replace("\n", " ")
    return save_base(folder, tokenizer=bare_tokenizer(backend))


def save_adding_a_space(folder):
    """Save a base whose tokenizer adds a space before every text, as SentencePiece does."""
    backend = demo_tokenizer().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return save_base(folder, tokenizer=bare_tokenizer(backend))


def save_padding_with_eos(folder):
    """Save a base without a padding token, as many on the hub."""
    return save_base(
        folder, tokenizer=bare_tokenizer(demo_tokenizer().backend_tokenizer, pad_token=None)
    )


def save_of_characters(folder):
    """Save a base whose tokenizer knows single characters and has a token for all others."""
    characters = [chr(code) for code in range(32, 127)]
    tokens = ["<unk>", "<pad>", "</s>", "\n", *characters]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return save_base(folder, tokenizer=bare_tokenizer(backend, unk_token="<unk>"))


def save_with_generation(folder, **values):
    """Save a base with values in its generation_config.json."""
    save_base(folder)
    change_json(folder / "generation_config.json", **values)
    return folder


def save_without_number_of_layers(folder):
    """Save a base whose config lacks the number of its layers, of which the default is 12."""
    save_base(folder)
    change_json(folder / "config.json", num_hidden_layers=None)
    return folder


def save_without_architecture(folder):
    """Save a base whose config lacks its model type."""
    save_base(folder)
    change_json(folder / "config.json", model_type=None, architectures=None)
    return folder


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


def save_multimodal(folder, kind):
    """Save a model for images and text, whose config contains that of a language model."""
    text = {**GROUPED, **COMMON}
    if kind == "gemma3":
        text |= {"head_dim": 16, "sliding_window": 16, "model_type": "gemma3_text"}
        vision = {**VISION, "model_type": "siglip_vision_model"}
        others = {"mm_tokens_per_image": 4}
    else:
        text |= {"model_type": "llama"}
        vision = {**VISION, "model_type": "clip_vision_model"}
        others = {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **others, **IDS)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def save_as(folder, dtype):
    """Save a base with weights of another type."""
    build("opt").to(dtype).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def save_encoder(folder):
    """Save an encoder, which fills in gaps and cannot go on with a text."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **{**COMMON, **USUAL}, architectures=["BertForMaskedLM"])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def save_reward_model_as_base(folder):
    """Save the demo's judge where a base is expected."""
    return shutil.copytree(HUB / "reward-model", folder)


# The options of a generation_config.json that change what greedy decoding writes
GENERATION = {
    "repetition penalty": {"repetition_penalty": 5.0},
    "beams": {"num_beams": 3},
    "no repeated ngrams": {"no_repeat_ngram_size": 1},
    "minimum length": {"min_length": 500},
    "minimum of new tokens": {"min_new_tokens": 6},
    "time limit": {"max_time": 1e-9},
    "forced end": {"forced_eos_token_id": 2},
    "forced beginning": {"forced_bos_token_id": 5},
    "suppressed tokens": {"suppress_tokens": list(range(4, 1500))},
    "bad words": {"bad_words_ids": [[i] for i in range(4, 1500)]},
    "result in a dictionary": {"return_dict_in_generate": True},
    "two answers": {"num_return_sequences": 2, "num_beams": 2},
    "sampling": {"do_sample": True, "temperature": 2.0, "top_k": 5},
    "no cache": {"use_cache": False},
    "guidance": {"guidance_scale": 3.0},
}
COMMON_TOKEN = 1097  # "atten", which the base named opt often writes
# {name: a function of the folder}. The weights of all of them are those of `save_base(folder)`
SAME_AS_OPT = {
    "module prefix": lambda folder: save_prefixed(folder, "module."),
    "adapter prefix": lambda folder: save_prefixed(folder, "base_model.model."),
    "shards": save_in_shards,
    "beside an adapter's config": save_beside_an_adapter,
    "beside an adapter": save_beside_adapter_weights,
    **{
        f"generation: {name}": lambda folder, values=values: save_with_generation(folder, **values)
        for name, values in GENERATION.items()
    },
}
FAULTY = {
    "a layer left out": save_without_a_layer,
    "nan": save_with_nan,
    "a shard missing": save_without_a_shard,
    "no vocabulary": save_without_vocabulary,
    "no tokenizer": save_without_tokenizer,
    "no number of layers": save_without_number_of_layers,
    "no model type": save_without_architecture,
    "end beyond the embeddings": save_with_eos_beyond,
    "no end": save_without_eos,
    "encoder": save_encoder,
    "judge as a base": save_reward_model_as_base,
}
UNUSUAL = {
    "two ends": lambda folder: save_with_generation(folder, eos_token_id=[2, COMMON_TOKEN]),
    "appends its end": save_appending_eos,
    "no line feeds": save_dropping_line_feeds,
    "adds a space": save_adding_a_space,
    "pads with its end": save_padding_with_eos,
    "characters": save_of_characters,
    "gemma3 with images": lambda folder: save_multimodal(folder, "gemma3"),
    "llava": lambda folder: save_multimodal(folder, "llava"),
    "tied head": lambda folder: save_base(folder, "llama", tie_word_embeddings=True),
    "untied head": lambda folder: save_base(folder, "llama", tie_word_embeddings=False),
    "untied opt": lambda folder: save_base(folder, "opt", tie_word_embeddings=False),
    "embeddings beyond the vocabulary": lambda folder: save_base(folder, "opt", vocab_size=1600),
    "fp16": lambda folder: save_as(folder, torch.float16),
    "bf16": lambda folder: save_as(folder, torch.bfloat16),
}


# ---- judges


def roberta_tokenizer():
    """Make a tokenizer of RoBERTa's kind from the demo's: <s> question </s></s> answer </s>."""
    backend = demo_tokenizer().backend_tokenizer
    ids = {name: backend.token_to_id(name) for name in ("<s>", "</s>")}
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    return bare_tokenizer(backend, bos_token="<s>", cls_token="<s>", sep_token="</s>")


def unpadded_tokenizer():
    """Make the demo's tokenizer without its padding token."""
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


def save_judge(folder, kind, values, tokenizer):
    """Save a judge with random weights, so that different texts have clearly different rewards."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"num_labels": 1, **values})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_roberta(folder, positions=514):
    """Save a judge of RoBERTa's kind, which counts positions from its padding id on."""
    values = {**COMMON, **USUAL, "max_position_embeddings": positions, "type_vocab_size": 1}
    return save_judge(folder, "roberta", values, roberta_tokenizer())


def save_gpt2_judge(folder, tokenizer, padding):
    """Save a judge of GPT-2's kind, with or without a padding token in tokenizer and config."""
    values = {**COMMON, **GPT2, "initializer_range": SPREAD, "pad_token_id": padding}
    return save_judge(folder, "gpt2", values, tokenizer)


def save_llama_judge(folder):
    """Save a judge of Llama's kind without a padding token."""
    values = {**COMMON, **GROUPED, "pad_token_id": None}
    return save_judge(folder, "llama", values, unpadded_tokenizer())


# As Qwen writes conversations: marks around every turn, and no BOS
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
# As Llama and Gemma do: BOS first, and only turns that alternate
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n\n{{ message['content'] | trim }}<|im_end|>{% endfor %}"
)
REFUSING = "{{ raise_exception('Only user and tool roles are supported') }}"
WITHOUT_ANSWERS = (
    "{% for message in messages if message['role'] == 'user' %}<|im_start|>{{ message['content'] }}"
    "<|im_end|>{% endfor %}"
)


def chat_tokenizer(template):
    """Make the demo's tokenizer with a chat template, marks of turns, and marks of thoughts."""
    tokenizer = demo_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])  # not special, as in Qwen3
    tokenizer.chat_template = template
    return tokenizer


def save_chat_judge(folder, kind="qwen3", template=MARKED, padding="<pad>", **values):
    """Save a judge that reads conversations, with or without a padding token."""
    tokenizer = chat_tokenizer(template)
    tokenizer.pad_token = padding
    values = {**COMMON, **GROUPED, "head_dim": 16, "vocab_size": len(tokenizer), **values}
    values["pad_token_id"] = None if padding is None else IDS["pad_token_id"]
    return save_judge(folder, kind, values, tokenizer)


def save_chat_judge_without_head(folder):
    """Save a judge that reads conversations without the weights of its head."""
    save_chat_judge(folder)

    def behead(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "score.weight"}

    return change_tensors(folder, behead)


def copy_judge(folder):
    """Copy the demo's judge."""
    return shutil.copytree(HUB / "reward-model", folder)


def save_two_labels(folder):
    """Save a classifier with two labels."""
    config = load(HUB / "reward-model" / "config.json")
    kind = config.pop("model_type")
    del config["id2label"], config["label2id"]
    tokenizer = AutoTokenizer.from_pretrained(HUB / "reward-model")
    return save_judge(folder, kind, {**config, "num_labels": 2}, tokenizer)


def save_without_num_labels(folder):
    """Save a judge with one label whose config does not say so."""
    copy_judge(folder)
    change_json(folder / "config.json", id2label=None, label2id=None)
    return folder


def save_headless(folder, replacement=None):
    """Save a judge without its head, or with tensors of another name in its place."""
    copy_judge(folder)

    def behead(tensors):
        head = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
        assert head
        kept = {name: tensor for name, tensor in tensors.items() if name not in head}
        if replacement is not None:
            for name, tensor in head.items():
                kept[name.replace("classifier.", replacement)] = tensor
        return kept

    return change_tensors(folder, behead)


def save_judge_with_nan(folder):
    """Save a judge with a NaN in its head."""
    copy_judge(folder)

    def spoil(tensors):
        tensors["classifier.weight"][0, 0] = float("nan")
        return tensors

    return change_tensors(folder, spoil)


JUDGES = {
    "deberta": copy_judge,
    "roberta": save_roberta,
    "roberta of few positions": lambda folder: save_roberta(folder, positions=34),
    "gpt2 without padding": lambda folder: save_gpt2_judge(folder, unpadded_tokenizer(), None),
    "gpt2 padded by its tokenizer": lambda folder: save_gpt2_judge(folder, demo_tokenizer(), None),
    "gpt2 with padding": lambda folder: save_gpt2_judge(folder, demo_tokenizer(), 1),
    "llama without padding": save_llama_judge,
    "qwen3 with a template": save_chat_judge,
    "llama with a template": lambda folder: save_chat_judge(folder, "llama", ALTERNATING, None),
}
FAULTY_JUDGES = {
    "two labels": save_two_labels,
    "no num_labels": save_without_num_labels,
    "no head": save_headless,
    "value head": lambda folder: save_headless(folder, "v_head."),
    "nan": save_judge_with_nan,
    "no tokenizer": lambda folder: _without_tokenizer(copy_judge(folder)),
    "base as a judge": save_base,
    "template refuses": lambda folder: save_chat_judge(folder, template=REFUSING),
    "template without answers": lambda folder: save_chat_judge(folder, template=WITHOUT_ANSWERS),
    "template and two labels": lambda folder: save_chat_judge(folder, num_labels=2),
    "template and no head": save_chat_judge_without_head,
}


def _without_tokenizer(folder):
    """Remove the files of a judge's tokenizer."""
    for name in ("spm.model", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder
