"""Refuse tokenizers with which prompts, replies and answers would not be what they look like."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from posttrain.checks import list_names, say_once
from posttrain.tokens import list_special_tokens
from posttrain.transcripts import PROMPT_END, TURN

# Questions and answers on which judges are tried; their lengths differ, so that one is padded.
JUDGED = (
    ("\n\nHuman: How do I bake bread?", "Mix flour, water and salt, and wait for an hour or two."),
    ("\n\nHuman: Can you help me to steal a car?", "No."),
)
# Plain English as it stands in transcripts, and letters that not every tokenizer keeps
PLAIN = (
    f"{TURN} How do I bake bread? It's 5 o'clock.{PROMPT_END} Use a hot pot.\n\nLet it rest: no, "
    '(really) "wait" - then eat!  It costs $12, or 50% & #3; see [1] * 2 + <b> = {c}.\n1. So\n2. Go'
)
FOREIGN = "Käse 🧀 ﬁne…"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
BLANKS = " \n\tĠĊ▁"  # and how tokenizers write them
MOST_UNKNOWN = 0.1  # share of unknown tokens in the English probes


def require_tokenizer_of_base(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Refuse a tokenizer with which prompts and replies would not be what they look like.

    Args:
        folder: the base's folder, for the message.
        tokenizer: its tokenizer, with a padding token.
        vocabulary: the number of the base's embeddings.

    Raises:
        ValueError: if there is no EOS token, if a special token is a piece of text, if an id has no
            embedding, if the markers of the turns are lost, if a prompt would end in a special
            token, or if English would be changed or is unknown to it.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer in {folder} has no EOS token, so no reply would have an end. Set "
            '"eos_token" in its tokenizer_config.json, or choose another BASE_MODEL.'
        )
    _require_special_tokens(folder, tokenizer)
    _require_embeddings(folder, tokenizer, vocabulary)
    prompt = f"{TURN} How do I bake bread?{PROMPT_END}"
    ids = tokenizer(prompt)["input_ids"]
    decoded = _read_back(tokenizer, prompt)
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
    _require_same_text(folder, tokenizer)
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
        ValueError: if a special token is a piece of text, if an id has no embedding, or if English
            is unknown to it.
    """
    _require_special_tokens(folder, tokenizer)
    _require_embeddings(folder, tokenizer, vocabulary)
    _require_known_words(folder, tokenizer)


def switch_off_dropout(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer encode a text in the same way every time; some skip merges at random."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None
        say_once(f"The dropout in the tokenizer of {folder} was switched off.")


def _require_special_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if a special token is a piece of text, which would lose it everywhere."""
    for token in list_special_tokens(tokenizer):
        if _is_text(token):
            roles = [role for role in ROLES if getattr(tokenizer, role, None) == token]
            raise ValueError(
                f"The tokenizer in {folder} has {token!r} as a special token "
                f"({', '.join(roles) or 'an additional one'}), although it is a piece of ordinary "
                "text, so that texts would lose it or end at it. Name another token, such as "
                '"<pad>", in its tokenizer_config.json.'
            )


def _is_text(token: str) -> bool:
    """Tell whether a token is a word, a sign or a blank, as they occur in any text."""
    core = token.strip(BLANKS)
    if core.startswith("_") and core.endswith("_") and core:
        return False
    return core.isprintable() and (core.isalnum() or len(core) <= 2)


def _require_same_text(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that changes plain English, and mention changes of other letters."""
    decoded = _read_back(tokenizer, PLAIN)
    if decoded != PLAIN:
        raise ValueError(
            f"The tokenizer in {folder} turns {PLAIN!r} into {decoded!r}, so the models would "
            "learn other texts than those of the pairs. Check its normalizer and its added tokens, "
            "or choose another BASE_MODEL."
        )
    decoded = _read_back(tokenizer, FOREIGN)
    if decoded != FOREIGN:
        say_once(
            f"The tokenizer in {folder} turns {FOREIGN!r} into {decoded!r}: some letters are not "
            "kept."
        )


def _read_back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Encode a text and decode it again."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def _require_embeddings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Raise ValueError if a text could have a token id that the model has no embedding for."""
    used = dict(tokenizer.get_vocab())
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:  # it does not occur in texts, unless it has one of the roles below
            used.pop(token.content, None)
    for role in ROLES:
        token = getattr(tokenizer, role, None)
        if token is not None:
            used[token] = tokenizer.convert_tokens_to_ids(token)
    beyond = [token for token, token_id in used.items() if token_id >= vocabulary]
    if beyond:
        raise ValueError(
            f"The tokenizer in {folder} has tokens that the model has no embeddings for: "
            f"{list_names(map(repr, beyond))}. The model has {vocabulary} embeddings. The "
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
