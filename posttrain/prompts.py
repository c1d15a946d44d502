"""The evaluation's prompts: which ones a dataset's test splits hold, and a draw from them."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.tokens import cut_prompts
from posttrain.transcripts import MEASURED, PROMPT_END, Pair, read_split, split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

STUDY_SEED = 100  # the one generator from which the study drew both kinds
STUDY_KEYWORDS = ("kill", "murder", "rape")
KEYWORD = re.compile(rf"\b({'|'.join(STUDY_KEYWORDS)})", re.IGNORECASE)  # a word that begins so
LEAST_ROOM = 8  # tokens; below it hardly a question fits


def _collect_usable(
    folder: Path, kind: str, tokenizer: Tokenizer, room: int
) -> tuple[list[Pair], Counter]:
    """Collect the test pairs of a kind with prompts cut to `room` tokens, each prompt once.

    A harmful prompt holds a keyword at the beginning of a word.
    """
    rows = read_split(folder, MEASURED[kind], "test")
    pairs, dropped = split_pairs(rows, tokenizer.all_special_tokens)
    usable = {}
    prompts = cut_prompts([pair["prompt"] for pair in pairs], [room] * len(pairs), tokenizer)
    for pair, prompt in zip(pairs, prompts):
        if prompt is None:
            dropped["too long"] += 1
        elif kind == "harmful" and not KEYWORD.search(prompt):
            dropped["no keyword"] += 1
        elif prompt in usable:
            dropped["duplicate"] += 1
        else:
            usable[prompt] = pair | {"prompt": prompt, "cut": prompt != pair["prompt"]}
    return list(usable.values()), dropped


def _collect_as_study(
    folder: Path, kind: str, tokenizer: Tokenizer, room: int
) -> tuple[list[Pair], Counter]:
    """Collect the test pairs of a kind as the study's eval.ipynb does, its faults included.

    Keywords count inside words and in the whole chosen transcript, the last paragraph is taken for
    the reply, and no `Assistant:` ends a prompt. A prompt of more than `room` tokens, which
    OPT-350M never needs, loses its beginning.
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
        if kind == "harmful" and not any(word in texts[0] for word in STUDY_KEYWORDS):
            dropped["no keyword"] += 1
            continue
        paragraphs = texts[0].strip().split("\n\n")
        if paragraphs[-1].startswith("Assistant:"):
            paragraphs.pop()
        prompt = "\n\n".join(paragraphs)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        cut = len(ids) >= room  # the tokenizer will put BOS before them
        if cut:
            prompt = tokenizer.decode(ids[1 - room :])
        chosen, rejected = (text.rpartition(PROMPT_END)[2].strip() for text in texts)
        usable.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "cut": cut})
    return usable, dropped


COLLECTORS = {"default": _collect_usable, "paper": _collect_as_study}  # by protocol


def _collect(
    folder: Path, protocol: str, tokenizer: Tokenizer, room: int
) -> dict[str, tuple[list[Pair], Counter]]:
    """Collect for each kind all usable pairs of a protocol, and the reasons against other rows."""
    if room < LEAST_ROOM:
        raise ValueError(
            f"MAX_NEW_TOKENS leaves {room} tokens for a prompt: the base has no more positions. "
            "Set it lower, or take another BASE_MODEL."
        )
    collect = COLLECTORS[protocol]
    return {kind: collect(folder, kind, tokenizer, room) for kind in MEASURED}


def count_prompts(folder: Path, protocol: str, tokenizer: Tokenizer, room: int) -> dict[str, int]:
    """Count the usable prompts of each kind that the test splits hold under a protocol.

    Args:
        folder: the dataset's folder.
        protocol: "default" or "paper", as in `draw_prompts`.
        tokenizer: the base model's.
        room: how many tokens a prompt may take.

    Returns:
        {kind: number of prompts}, which `require_prompts` holds against the number asked for.

    Raises:
        ValueError: the dataset cannot be read, or there is no room.
    """
    collected = _collect(folder, protocol, tokenizer, room)
    return {kind: len(usable) for kind, (usable, _) in collected.items()}


def require_prompts(n: int | str | None, counts: dict[str, int], folder: Path) -> None:
    """Refuse a number of prompts of each kind that a dataset does not have.

    Args:
        n: the number asked for; None and "all" ask for all there are.
        counts: the usable prompts of each kind, from `count_prompts`.
        folder: the dataset's folder, for the message.

    Raises:
        ValueError: there are fewer of a kind, or none.
    """
    for kind, count in counts.items():
        if count == 0:
            raise ValueError(
                f"DATASET: the test split of {MEASURED[kind]} in {folder} has no usable {kind} "
                "prompt, so that its rate cannot be made."
            )
        if isinstance(n, int) and n > count:
            raise ValueError(
                f"N_PROMPTS = {n}, but the test split of {MEASURED[kind]} in {folder} has only "
                f'{count} usable {kind} prompts. Ask for at most that many; "all" takes all.'
            )


def draw_prompts(
    folder: Path,
    protocol: str,
    n: int | str | None,
    tokenizer: Tokenizer,
    room: int,
    seed: int,
    strict: bool = True,
) -> list[dict[str, Any]]:
    """Draw the evaluation's prompts at random from the test splits.

    Args:
        folder: the dataset's folder.
        protocol: "default" draws the two kinds apart, by the seed; "paper" draws them one after
            the other as the study did, by the study's seed, from prompts with the study's faults.
        n: how many of each kind; None and "all" take all there are.
        tokenizer: the base model's.
        room: how many tokens the base has for a prompt; a longer one loses its oldest turns.
        seed: of the draw under "default".
        strict: whether a number beyond the data is refused; otherwise all there are is taken, and
            a printed line says so.

    Returns:
        The records of prompts.json, the harmful prompts first: "id" ("harmful-00"), "kind",
        "prompt", "chosen", "rejected".

    Raises:
        ValueError: there are too few prompts, or there is no room for them.
    """
    collected = _collect(folder, protocol, tokenizer, room)
    counts = {kind: len(usable) for kind, (usable, _) in collected.items()}
    require_prompts(n if strict else None, counts, folder)
    records = []
    generator = random.Random(STUDY_SEED)
    for kind, (usable, dropped) in collected.items():
        if protocol == "default":
            generator = random.Random(seed)
        size = min(n, len(usable)) if isinstance(n, int) else len(usable)
        if isinstance(n, int) and n > size:
            print(f"N_PROMPTS = {n}, but there are {size} usable {kind} prompts: all are taken.")
        drawn = generator.sample(usable, size)
        cut = sum(pair["cut"] for pair in drawn)
        print(
            f"{MEASURED[kind]}/test has {len(usable)} usable {kind} prompts; {size} were drawn, "
            f"{cut} of which were cut to fit the base. Rows without one: {dict(dropped) or 'none'}."
        )
        for i, pair in enumerate(drawn):
            record = {"id": f"{kind}-{i:02d}", "kind": kind}
            records.append(record | {name: pair[name] for name in ("prompt", "chosen", "rejected")})
    return records
