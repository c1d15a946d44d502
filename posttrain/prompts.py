"""Find the usable prompts in a dataset's test splits, and draw the evaluation's from them."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.tokens import cut_prompts, list_special_tokens
from posttrain.transcripts import (
    MEASURED,
    PROMPT_END,
    Pair,
    list_subsets,
    read_split,
    split_pairs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

STUDY_SEED = 100  # seed of the single generator from which the study drew both kinds
STUDY_KEYWORDS = ("kill", "murder", "rape")
KEYWORD = re.compile(rf"\b({'|'.join(STUDY_KEYWORDS)})", re.IGNORECASE)  # at a word's beginning
LEAST_ROOM = 8  # tokens; hardly any question is shorter


@dataclass(frozen=True)
class PromptRules:
    """How the protocol "default" chooses its prompts, and where they end.

    Attributes:
        harmful_prompts: "keywords" or "all", which takes harmful prompts without a keyword too.
        keyword_rule: "word", if a word of the prompt begins with a keyword, or "anywhere", if a
            keyword occurs anywhere in the chosen transcript, as in the study.
        prompt_tail: "assistant" or "human": whose marker or message a prompt ends with.
        chat: whether the base's chat template writes the prompts.
    """

    harmful_prompts: str
    keyword_rule: str
    prompt_tail: str
    chat: bool = False


def read_rules(settings: Any, chat: bool = False) -> PromptRules:
    """Read the rules for prompts from the settings of eval.ipynb.

    Args:
        settings: the settings.
        chat: whether the base's chat template writes the prompts.

    Raises:
        ValueError: if the settings ask for prompts that a chat template would not write.
    """
    if chat and settings.prompt_tail == "human":
        raise ValueError(
            "PROTOCOL = 'paper' and SETTINGS = {'prompt_tail': 'human'} end prompts as the study "
            "did, but with FORMAT = 'chat' the base's chat template ends them. Leave them out, or "
            "train with FORMAT = 'transcript'."
        )
    return PromptRules(settings.harmful_prompts, settings.keyword_rule, settings.prompt_tail, chat)


def _has_keyword(text: str) -> bool:
    """Tell whether a word begins with a keyword."""
    return KEYWORD.search(text) is not None


def _has_keyword_anywhere(text: str) -> bool:
    """Tell whether a keyword occurs in small letters, even inside a word, as the study asks."""
    return any(keyword in text for keyword in STUDY_KEYWORDS)


def _collect_usable(
    folder: Path, kind: str, tokenizer: Tokenizer, room: int, rules: PromptRules
) -> tuple[list[Pair], Counter]:
    """Collect the test pairs of a kind, with prompts cut to `room` tokens and no duplicates."""
    rows = read_split(folder, MEASURED[kind], "test")
    pairs, dropped = split_pairs(rows, list_special_tokens(tokenizer))
    usable = {}
    texts = [pair["prompt"] for pair in pairs]
    prompts = cut_prompts(texts, [room] * len(pairs), tokenizer, rules.chat)
    for pair, prompt in zip(pairs, prompts):
        if prompt is None:
            dropped["too long"] += 1
        elif kind == "harmful" and not _is_chosen(pair, prompt, rules):
            dropped["no keyword"] += 1
        elif prompt in usable:
            dropped["duplicate"] += 1
        else:
            ended = prompt
            if rules.prompt_tail == "human":
                ended = prompt.removesuffix(PROMPT_END)
            usable[prompt] = pair | {"prompt": ended, "cut": prompt != pair["prompt"]}
    return list(usable.values()), dropped


def _is_chosen(pair: Pair, prompt: str, rules: PromptRules) -> bool:
    """Tell whether the rules take a harmful prompt, which may have been cut."""
    if rules.harmful_prompts == "all":
        return True
    if rules.keyword_rule == "anywhere":
        return _has_keyword_anywhere(pair["prompt"] + pair["chosen"])
    return _has_keyword(prompt)


def _collect_as_study(
    folder: Path, kind: str, tokenizer: Tokenizer, room: int
) -> tuple[list[Pair], Counter]:
    """Collect the test pairs of a kind as the study's eval.ipynb does, including its faults.

    Keywords are also found inside words and in the chosen reply, only the last paragraph is taken
    for the reply, and prompts do not end with `Assistant:`. A prompt of more than `room` tokens
    loses its beginning, which does not happen with OPT-350M.
    """
    usable = []
    dropped = Counter()
    for row in read_split(folder, MEASURED[kind], "test"):
        if isinstance(row, str):
            dropped[row] += 1
            continue
        texts = [row.get("chosen"), row.get("rejected")]
        if not all(isinstance(text, str) for text in texts):
            dropped["not text"] += 1
            continue
        if kind == "harmful" and not _has_keyword_anywhere(texts[0]):
            dropped["no keyword"] += 1
            continue
        paragraphs = texts[0].strip().split("\n\n")
        if paragraphs[-1].startswith("Assistant:"):
            paragraphs.pop()
        prompt = "\n\n".join(paragraphs)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        cut = len(ids) >= room  # the tokenizer will add BOS
        if cut:
            prompt = tokenizer.decode(ids[1 - room :])
        chosen, rejected = (text.rpartition(PROMPT_END)[2].strip() for text in texts)
        usable.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "cut": cut})
    return usable, dropped


def _collect(
    folder: Path, protocol: str, tokenizer: Tokenizer, room: int, rules: PromptRules
) -> dict[str, tuple[list[Pair], Counter]]:
    """Collect all usable pairs of each kind, and the reasons for which other rows were dropped."""
    if room < LEAST_ROOM:
        raise ValueError(
            f"MAX_NEW_TOKENS leaves {room} tokens for a prompt, because the base has a limited "
            "number of positions. Set it lower, or choose another BASE_MODEL."
        )
    collected = {}
    there = list_subsets(folder, "base")
    for kind in [kind for kind, subset in MEASURED.items() if subset in there]:
        if protocol == "paper":
            collected[kind] = _collect_as_study(folder, kind, tokenizer, room)
        else:
            collected[kind] = _collect_usable(folder, kind, tokenizer, room, rules)
    return collected


def count_prompts(
    folder: Path,
    protocol: str,
    tokenizer: Tokenizer,
    room: int,
    rules: PromptRules,
) -> dict[str, int]:
    """Count the usable prompts of each kind in the test splits.

    Args:
        folder: the dataset's folder.
        protocol: "default" or "paper", as in `draw_prompts`.
        tokenizer: the tokenizer of the base model.
        room: the largest number of tokens in a prompt.
        rules: how prompts are chosen under the protocol "default".

    Returns:
        {kind: number of prompts}, which `require_prompts` compares with the number asked for.

    Raises:
        ValueError: if the dataset cannot be read, or `room` is too small for a prompt.
    """
    collected = _collect(folder, protocol, tokenizer, room, rules)
    return {kind: len(usable) for kind, (usable, _) in collected.items()}


def require_prompts(n: int | str | None, counts: dict[str, int], folder: Path) -> None:
    """Refuse to draw more prompts of a kind than a dataset has.

    Args:
        n: the number of prompts of each kind; None and "all" take as many as there are.
        counts: {kind: number of usable prompts}, from `count_prompts`.
        folder: the dataset's folder, for the message.

    Raises:
        ValueError: if there are fewer prompts of a kind than asked for, or none.
    """
    for kind, count in counts.items():
        if count == 0:
            keywords = ""
            if kind == "harmful":
                keywords = (
                    " HARMFUL_PROMPTS = 'all' also takes prompts without a keyword, which "
                    "HARMFUL_PROMPTS = 'keywords' and PROTOCOL = 'paper' leave out."
                )
            raise ValueError(
                f"DATASET: the test split of {MEASURED[kind]} in {folder} has no usable {kind} "
                f"prompt, so the rate on {kind} prompts cannot be computed.{keywords}"
            )
        if isinstance(n, int) and n > count:
            raise ValueError(
                f"N_PROMPTS = {n}, but the test split of {MEASURED[kind]} in {folder} has only "
                f'{count} usable {kind} prompts. Ask for at most {count}, or for "all".'
            )


def draw_prompts(
    folder: Path,
    protocol: str,
    n: int | str | None,
    tokenizer: Tokenizer,
    room: int,
    seed: int,
    strict: bool,
    rules: PromptRules,
) -> list[dict[str, Any]]:
    """Draw the evaluation's prompts at random from the test splits.

    Args:
        folder: the dataset's folder.
        protocol: "default" draws each kind independently, with `seed`. "paper" draws the two kinds
            one after the other with the study's seed, from prompts with the study's faults.
        n: the number of prompts of each kind; None and "all" take as many as there are.
        tokenizer: the tokenizer of the base model.
        room: the largest number of tokens in a prompt. A longer prompt loses its oldest turns.
        seed: the seed under the protocol "default".
        strict: whether to refuse a number that is larger than the dataset. If not, all prompts are
            taken, and a line that says so is printed.
        rules: how prompts are chosen, and where they end, under the protocol "default".

    Returns:
        The records of prompts.json, with "id" (such as "harmful-00"), "kind", "prompt", "chosen"
        and "rejected"; the harmful prompts come first. Theirs also have "keyword", which tells
        whether a word of the prompt begins with a keyword, whatever the rules are.

    Raises:
        ValueError: if there are too few prompts, or `room` is too small for a prompt.
    """
    collected = _collect(folder, protocol, tokenizer, room, rules)
    counts = {kind: len(usable) for kind, (usable, _) in collected.items()}
    require_prompts(n if strict else None, counts, folder)
    records = []
    generator = random.Random(STUDY_SEED)
    for kind, (usable, dropped) in collected.items():
        if protocol == "default":
            generator = random.Random(seed)
        size = min(n, len(usable)) if isinstance(n, int) else len(usable)
        if isinstance(n, int) and n > size:
            print(f"N_PROMPTS = {n}, but only {size} {kind} prompts are usable. All are taken.")
        drawn = generator.sample(usable, size)
        cut = sum(pair["cut"] for pair in drawn)
        reasons = [f"{count} {reason}" for reason, count in dropped.most_common()]
        print(
            f"{MEASURED[kind]}/test has {len(usable)} usable {kind} prompts. Of these {size} were "
            f"drawn, and {cut} of the drawn prompts were shortened to fit the base. Rows dropped: "
            f"{', '.join(reasons) or 'none'}."
        )
        for i, pair in enumerate(drawn):
            record = {"id": f"{kind}-{i:02d}", "kind": kind}
            record |= {name: pair[name] for name in ("prompt", "chosen", "rejected")}
            if kind == "harmful":
                record["keyword"] = _has_keyword(pair["prompt"])
            records.append(record)
    return records
