"""Refuse models and tokenizers that are not what they are used as.

The libraries accept many files that do not belong together: they fill missing weights with random
numbers, leave out a token that a model needs, or read another model than the one that was named.
Every check here is made once, where the files are loaded, and names what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.architecture import takes_positions
from posttrain.transcripts import PROMPT_END, TURN

# Texts on which tokenizers are tried, and on which two models are compared
PROBES = (
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, and wait.",
    "\n\nHuman: Can you help me to steal a car?\n\nAssistant: No.",
    "Käse 🧀",
)
# Questions and answers on which a judge is tried; their lengths differ, so that one is padded.
JUDGED = (
    ("\n\nHuman: How do I bake bread?", "Mix flour, water and salt, and wait for an hour or two."),
    ("\n\nHuman: Can you help me to steal a car?", "No."),
)
MOST_UNKNOWN = 0.1  # share of unknown tokens in the English probes
# Largest difference of a reward alone and in a batch, relative to rewards above 1. Rounding causes
# 1e-5 in fp32, and a padding token that is read as text more than 0.1.
STEADY = 1e-3
# Largest difference that rounding makes in logits, relative to the largest of them
ROUNDING = 0.02
MOST_NAMES = 4  # that an error message lists


def _list_names(names: Iterable[str]) -> str:
    """List the first few names in a sentence."""
    ordered = sorted(names)
    listed = ", ".join(ordered[:MOST_NAMES])
    return f"{listed} and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else listed


@cache
def say_once(sentence: str) -> None:
    """Print a sentence, unless it has been printed before: a base is loaded for every model."""
    print(sentence)


# ---- weights


def require_no_adapter(folder: str | Path) -> None:
    """Refuse a model with an adapter beside it, which transformers would add to the weights.

    Raises:
        ValueError: if the folder has an adapter's config.
    """
    if Path(folder, "adapter_config.json").exists():
        raise ValueError(
            f"{folder} contains an adapter (adapter_config.json) beside the weights of a model. "
            "transformers would load both, and the result would not be the model that was named. "
            "Move the files of the adapter (adapter_*) out of the folder, or merge it into the "
            "weights and save the result in a folder of its own."
        )


def require_all_weights(folder: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model, and mention weights that the model does not use.

    Args:
        folder: the model's folder, for the message.
        model: the loaded model.
        report: the keys that were missing, unexpected or of another shape, as transformers'
            `output_loading_info=True` returns them.

    Raises:
        ValueError: if a weight is missing or has another shape. transformers would leave it random.
    """
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    lacking = set(report["missing_keys"]) | mismatched
    unused = set(report["unexpected_keys"])
    kind = type(model).__name__
    if lacking:
        instead = ""
        if unused:
            instead = f" They have others that it does not know: {_list_names(unused)}."
        raise ValueError(
            f"The weights in {folder} do not fill a {kind}: it has no values for "
            f"{_list_names(lacking)}.{instead} transformers would fill these with random numbers. "
            "Check that config.json belongs to the weights, that no file is missing, and that the "
            "model was saved without a wrapper around it."
        )
    if unused:
        say_once(
            f"The weights in {folder} have some that a {kind} does not use: {_list_names(unused)}."
        )


@torch.no_grad()
def require_steady_logits(folder: Path, model: PreTrainedModel, vocabulary: int) -> None:
    """Refuse a model that is random in training mode, and weights that give no numbers.

    DPO compares two passes through the same weights, which must agree before anything is learned.

    Args:
        folder: the model's folder, for the message.
        model: a causal language model that was loaded without dropout.
        vocabulary: the number of its token ids.

    Raises:
        ValueError: if the logits of two passes over a few tokens differ, or are not finite.
    """
    ids = _choose_ids(model, vocabulary)
    training = model.training
    model.train()
    first, second = (_compute_logits(model, ids) for _ in range(2))
    model.train(training)
    _require_sense(folder, first)
    # On a GPU some sums have no fixed order, and their rounding differs.
    tolerance = 0.0 if model.device.type == "cpu" else ROUNDING * first.abs().max()
    if not (first - second).abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} computes other logits at every pass in training mode, although "
            "every dropout rate is 0. Something else in it draws random numbers, such as the noise "
            "of a router. Switch that off in its config.json, or choose another BASE_MODEL."
        )


@torch.no_grad()
def require_causality(folder: Path, model: PreTrainedModel, vocabulary: int) -> None:
    """Refuse a model whose logits depend on more than the tokens so far.

    A model that sees the tokens to come would learn to copy them, and an answer must not depend on
    the padding in its batch.

    Args:
        folder: the model's folder, for the message.
        model: a causal language model in fp32.
        vocabulary: the number of its token ids.

    Raises:
        ValueError: if the logits of a token depend on the tokens after it, or on padding before
            the text.
    """
    ids = _choose_ids(model, vocabulary)
    other_end = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    training = model.training
    model.eval()
    plain = _compute_logits(model, ids)
    changed = _compute_logits(model, other_end)
    padded = _compute_logits(model, ids, padding=4)
    model.train(training)
    _require_sense(folder, plain)
    tolerance = ROUNDING * plain.abs().max()
    if not (plain - changed)[:, :-1].abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} sees the tokens that come after a token, so it cannot be "
            "trained to continue a text. Choose a BASE_MODEL that is a causal language model."
        )
    if not (plain - padded)[:, -1].abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} ({model.config.model_type}) reads padding as text, as some "
            "recurrent models do, so an answer would depend on the others in its batch. Choose a "
            "BASE_MODEL that has an attention mask."
        )


def _require_sense(folder: Path, logits: torch.Tensor) -> None:
    """Raise ValueError for logits that are not finite, or the same for every token."""
    if not logits.isfinite().all():
        raise ValueError(
            f"The model in {folder} computes logits that are not finite numbers. Check that its "
            "weights are complete, and in which precision they were saved."
        )
    if not logits.max() > logits.min():
        raise ValueError(
            f"The model in {folder} finds all tokens equally likely. Its weights may be zero, "
            "because their file was not written to its end."
        )


def _choose_ids(model: PreTrainedModel, vocabulary: int) -> torch.Tensor:
    """Choose the token ids of a short text, shape (1, 16)."""
    return torch.arange(16, device=model.device).remainder(vocabulary)[None]


def _compute_logits(model: PreTrainedModel, ids: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Compute the logits of a text, shape (1, tokens, vocabulary), with padding on its left."""
    padded = torch.nn.functional.pad(ids, (padding, 0))
    inputs = {"input_ids": padded, "attention_mask": torch.ones_like(padded)}
    inputs["attention_mask"][:, :padding] = 0
    if takes_positions(model):
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model(**inputs, use_cache=False).logits[:, padding:].float()


# ---- tokenizers


def require_tokenizer_of_base(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Refuse a tokenizer with which prompts and replies would not be what they look like.

    Args:
        folder: the base's folder, for the message.
        tokenizer: its tokenizer, with a padding token.
        vocabulary: the number of the base's embeddings.

    Raises:
        ValueError: if there is no EOS token, if an id has no embedding, if the markers of the turns
            are lost, if a prompt would end in a special token, or if English is unknown to it.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer in {folder} has no EOS token, so no reply would have an end. Set "
            '"eos_token" in its tokenizer_config.json, or choose another BASE_MODEL.'
        )
    _require_embeddings(folder, tokenizer, vocabulary)
    prompt = f"{TURN} How do I bake bread?{PROMPT_END}"
    ids = tokenizer(prompt)["input_ids"]
    decoded = tokenizer.decode(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if not (TURN in decoded and decoded.endswith(PROMPT_END)):
        raise ValueError(
            f"The tokenizer in {folder} turns the prompt {prompt!r} into {decoded!r}, so the "
            "markers of the turns would be lost. Check that its vocabulary files are complete and "
            "that it keeps line breaks, or choose another BASE_MODEL."
        )
    last = tokenizer.convert_ids_to_tokens(ids[-1])
    if last in tokenizer.all_special_tokens:
        raise ValueError(
            f"The tokenizer in {folder} puts {last} at the end of every text, so a prompt would be "
            "over before its reply begins. Switch that off in its files (add_eos_token in "
            "tokenizer_config.json, or the post_processor of tokenizer.json), or choose another "
            "BASE_MODEL."
        )
    reply = tokenizer(f"{PROMPT_END} Yes.{tokenizer.eos_token}", add_special_tokens=False)
    if reply["input_ids"][-1] != tokenizer.eos_token_id:
        raise ValueError(
            f"The tokenizer in {folder} does not read its own EOS token {tokenizer.eos_token!r} as "
            "one token, so no reply would have an end. Check its files, or choose another "
            "BASE_MODEL."
        )
    _require_known_words(folder, tokenizer)


def require_tokenizer_of_judge(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Refuse a tokenizer that would hide the words of questions and answers from the judge.

    Args:
        folder: the judge's folder, for the message.
        tokenizer: its tokenizer, with a padding token.
        vocabulary: the number of the judge's embeddings.

    Raises:
        ValueError: if an id has no embedding, or if English is unknown to it.
    """
    _require_embeddings(folder, tokenizer, vocabulary)
    _require_known_words(folder, tokenizer)


def _require_embeddings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Raise ValueError if a text could have a token id that the model has no embedding for."""
    used = dict(tokenizer.get_vocab())
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:  # it does not occur in texts, unless it has one of the roles below
            used.pop(token.content, None)
    roles = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
    for role in roles:
        token = getattr(tokenizer, role, None)
        if token is not None:
            used[token] = tokenizer.convert_tokens_to_ids(token)
    beyond = [token for token, token_id in used.items() if token_id >= vocabulary]
    if beyond:
        raise ValueError(
            f"The tokenizer in {folder} has tokens that the model has no embeddings for: "
            f"{_list_names(map(repr, beyond))}. The model has {vocabulary} embeddings. The "
            "tokenizer may belong to another model."
        )


def _require_known_words(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer reads nothing, or mostly unknown tokens, in English."""
    texts = [" ".join(pair).replace(TURN, "") for pair in JUDGED]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    total = sum(len(ids) for ids in encoded)
    unknown = sum(list(ids).count(tokenizer.unk_token_id) for ids in encoded)
    if min(map(len, encoded)) < 3 or unknown > MOST_UNKNOWN * total:
        raise ValueError(
            f"The tokenizer in {folder} does not know English words: of {total} tokens in two "
            f"sentences {unknown} are unknown. Its vocabulary files may be missing."
        )


# ---- the judge


def count_positions(judge: PreTrainedModel) -> int | None:
    """Count the tokens that a judge can read; None if its positions are relative.

    RoBERTa numbers its positions from the padding token's id on, so that some are never used.
    """
    if not getattr(judge.config, "position_biased_input", True):  # DeBERTa without absolute ones
        return None
    positions = getattr(judge.config, "max_position_embeddings", None)
    for name, module in judge.named_modules():
        is_table = isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return positions


def choose_padding(judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a judge pad on the right, with a token at which it does not read its reward.

    A decoder reads the reward at the last token before the padding, and finds it by the padding
    token's id in its config.

    Raises:
        ValueError: if the judge has no padding token and none can take its place.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        last = tokenizer(*JUDGED[0])["input_ids"][-1]
        for token in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token):
            if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
                tokenizer.pad_token = token
                break
        else:
            raise ValueError(
                f"REWARD_MODEL: the tokenizer in {judge.config.name_or_path} has no padding token, "
                "so answers of several lengths cannot be judged at once. Set "
                '"pad_token" in its tokenizer_config.json.'
            )
    judge.config.pad_token_id = tokenizer.pad_token_id


@torch.inference_mode()
def require_steady_rewards(
    folder: Path, judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a judge whose reward depends on the other answers in a batch, or on no answer at all.

    Raises:
        ValueError: if a reward is not finite, differs between an answer alone and in a batch, or is
            the same for different answers.
    """
    encoded = [tokenizer(question, answer) for question, answer in JUDGED]

    def read_rewards(texts: Sequence[Any]) -> list[float]:
        batch = tokenizer.pad(texts, return_tensors="pt").to(judge.device)
        return judge(**batch).logits[:, 0].tolist()

    together = read_rewards(encoded)
    if together[0] == together[1]:
        raise ValueError(
            f"REWARD_MODEL: the judge in {folder} gives different answers the same reward, "
            f"{together[0]:.4f}. Its head may be without weights, or it may not read the texts."
        )
    for text, reward in zip(encoded, together):
        (alone,) = read_rewards([text])
        if not abs(alone - reward) <= STEADY * max(1, abs(alone)):  # written so that NaN fails too
            raise ValueError(
                f"REWARD_MODEL: the judge in {folder} gives an answer the reward {alone:.4f} alone "
                f"and {reward:.4f} beside a longer one, so its rewards would depend on the batch. "
                "Check the padding token in its config.json and tokenizer_config.json."
            )


def say_how_judge_reads(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print a line where a judge was made for other texts than a question and an answer."""
    if tokenizer.chat_template is not None:
        print(
            f"The judge in {folder} has a chat template, so it was trained on conversations. Here "
            "it reads question and answer as two plain texts, and its rewards may mean less."
        )
    ids = tokenizer(*JUDGED[0])["input_ids"]
    is_special = [token_id in tokenizer.all_special_ids for token_id in ids]
    first_word = is_special.index(False)
    last_word = len(ids) - 1 - is_special[::-1].index(False)
    if not any(is_special[first_word:last_word]):
        print(
            f"The tokenizer of the judge in {folder} puts nothing between question and answer, so "
            "the judge reads them as one text."
        )
