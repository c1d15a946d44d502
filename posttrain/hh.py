"""HH-RLHF: from rows of two transcripts to pairs of prompt, chosen and rejected reply, and to the evaluation's prompts.

A row that cannot be used costs no other row: it is dropped and counted under its reason.
"""

import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.tokens import encode, encode_replies

PROMPT_END = "\n\nAssistant:"  # a prompt ends with this marker, and the reply follows
TURN = "\n\nHuman:"  # a human turn begins with this one
MEASURED = {"harmful": "harmless-base", "helpful": "helpful-base"}  # kind of prompt: the subset that it comes from
SUBSETS = {"base": tuple(MEASURED.values()),
           "all": (*MEASURED.values(), "helpful-online", "helpful-rejection-sampled")}
HARM = re.compile(r"\b(kill|murder|rape)", re.IGNORECASE)  # a harmful prompt holds a word that begins so
# What no text holds: control characters, those that turn the direction of writing, halves of characters
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Pair = dict[str, Any]  # {"prompt", "chosen", "rejected"}, in training with "subset", "length" (tokens) and token ids:
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # those of the prompt and of the replies after it
Row = dict[str, Any] | str  # a record of "chosen" and "rejected", or the reason why a line holds none


class Pairs(NamedTuple):
    """Pairs to train on and to validate with, and a table of what became of every subset's rows."""

    train: list[Pair]
    validation: list[Pair]
    report: pd.DataFrame


def files(subsets: str, splits: Sequence[str] = ("train", "test")) -> list[str]:
    """Return the files of a dataset in HH-RLHF's layout that hold the subsets `base` or `all`."""
    return [f"{subset}/{split}.jsonl.gz" for subset in SUBSETS[subsets] for split in splits]


def _read_row(line: bytes) -> Row:
    """Return the record in a line of a JSON lines file, or the reason why there is none."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else "not a record"


def read_split(folder: Path, subset: str, split: str) -> list[Row]:
    """Return the rows of one split, one a line. Raises ValueError where the file or a column is missing."""
    path, rows = Path(folder) / subset / f"{split}.jsonl.gz", []
    if not path.exists():
        raise ValueError(f"DATASET: {folder} has no {subset}/{path.name}, as Anthropic/hh-rlhf has.")
    try:
        with gzip.open(path) as file:
            rows.extend(_read_row(line) for line in file if line.strip())
    except (EOFError, gzip.BadGzipFile, zlib.error):
        rows.append("file cut short or damaged")  # what came before is used
    columns = set().union(*(row for row in rows if isinstance(row, dict)))
    if not {"chosen", "rejected"} <= columns:
        unread = dict(Counter(row for row in rows if isinstance(row, str)))
        raise ValueError(f"DATASET: {folder}, {subset}/{split} has the columns {sorted(columns)}, unusable lines: "
                         f"{unread or 'none'}; preference pairs need chosen and rejected.")
    return rows


def split_transcript(text: str) -> tuple[str, str]:
    """Return (prompt, reply): the transcript up to and including its last `\\n\\nAssistant:`, and the rest, stripped.

    Replies have paragraphs, so blank lines do not mark a turn. Raises ValueError where there is no assistant turn.
    """
    prompt, marker, reply = text.rpartition(PROMPT_END)
    if not marker:
        raise ValueError("no assistant turn")
    return prompt + marker, reply.strip()


def split_pair(row: Row, special_tokens: Iterable[str]) -> Pair:
    """Return {"prompt", "chosen", "rejected"} of a row: the prompt that both transcripts share, and the two replies.

    Raises ValueError with the reason to drop the row.
    """
    if isinstance(row, str):
        raise ValueError(row)
    texts = (row.get("chosen"), row.get("rejected"))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not text")
    if any(CONTROL.search(text) for text in texts):
        raise ValueError("control character")
    if any(token in text for token in special_tokens for text in texts):
        raise ValueError("special token in text")  # it would be read as control: an early end of the reply, say
    (prompt, chosen), (other_prompt, rejected) = map(split_transcript, texts)
    if prompt != other_prompt:
        raise ValueError("prompts differ")
    if not prompt.startswith(TURN):
        raise ValueError("no human turn first")
    if TURN in chosen or TURN in rejected:
        raise ValueError("reply opens a human turn")
    if not chosen or not rejected:
        raise ValueError("empty reply")
    if chosen == rejected:
        raise ValueError("identical replies")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def split_pairs(rows: Iterable[Row], special_tokens: Sequence[str]) -> tuple[list[Pair], Counter]:
    """Return the usable pairs of rows, and how many were dropped for which reason."""
    pairs, dropped = [], Counter()
    for row in rows:
        try:
            pairs.append(split_pair(row, special_tokens))
        except ValueError as reason:
            dropped[str(reason)] += 1
    return pairs, dropped


def read_test_prompts(folder: Path, subsets: Sequence[str]) -> list[str]:
    """Return all prompts that can be read from the test splits, of defective rows too, sorted."""
    texts = [row.get(side) for subset in subsets for row in read_split(folder, subset, "test") if isinstance(row, dict)
             for side in ("chosen", "rejected")]
    return sorted({split_transcript(text)[0] for text in texts if isinstance(text, str) and PROMPT_END in text})


def cut_prompts(prompts: Sequence[str], rooms: Sequence[int], tokenizer: Tokenizer) -> list[str | None]:
    """Return each prompt without its oldest turns, at most as many tokens as its room.

    None where the last turn alone is longer. Many at once, since a tokenizer that is called for each alone uses one
    core.
    """
    starts = [[match.start() for match in re.finditer(TURN, prompt)] for prompt in prompts]
    first, last = [0] * len(prompts), [len(turns) for turns in starts]  # between them lies the first turn that is kept
    while searched := [i for i in range(len(prompts)) if first[i] < last[i]]:
        middle = {i: (first[i] + last[i]) // 2 for i in searched}
        ends = encode([prompts[i][starts[i][turn]:] for i, turn in middle.items()], tokenizer, "ends of prompts")
        for (i, turn), ids in zip(middle.items(), ends):
            if len(ids) <= rooms[i]:
                last[i] = turn
            else:
                first[i] = turn + 1
    return [prompt[turns[turn]:] if turn < len(turns) else None for prompt, turns, turn in zip(prompts, starts, first)]


def gather_pairs(folder: Path, subsets: Sequence[str], special_tokens: Sequence[str],
                 unseen: set[str]) -> tuple[list[Pair], dict[str, Counter]]:
    """Return all usable training pairs, each once, and per subset a Counter of what became of its rows.

    `unseen`: the prompts that no pair may have, those of the test splits.
    """
    pairs, report = {}, {}
    for subset in subsets:
        rows = read_split(folder, subset, "train")
        found, dropped = split_pairs(rows, special_tokens)
        report[subset] = Counter(read=len(rows)) + dropped
        for pair in found:
            key = (pair["prompt"], pair["chosen"], pair["rejected"])
            if pair["prompt"] in unseen:
                report[subset]["prompt in a test split"] += 1
            elif key in pairs:
                report[subset]["duplicate"] += 1
            else:
                pairs[key] = pair | {"subset": subset}
    return list(pairs.values()), report


def fit_pairs(pairs: list[Pair], tokenizer: Tokenizer, max_length: int, unseen: set[str],
              report: dict[str, Counter]) -> list[Pair]:
    """Return the pairs that fit into `max_length` tokens, with their token ids and each with its `length`.

    TRL would cut what is longer from the end, where the reply stands. Here the prompt loses its oldest turns until it
    and the longer reply fit; a pair that cannot fit so, or whose prompt then is in `unseen`, is dropped. The others
    are counted in the report.
    """
    prompts = encode([pair["prompt"] for pair in pairs], tokenizer, "prompts")
    chosen, rejected = (encode_replies([pair[side] for pair in pairs], PROMPT_END, tokenizer, f"{side} replies")
                        for side in ("chosen", "rejected"))
    replies = [max(len(ids), len(other)) for ids, other in zip(chosen, rejected)]  # tokens of the longer one
    rooms = {i: max_length - replies[i] for i, ids in enumerate(prompts) if len(ids) > max_length - replies[i]}
    cut = {}
    for i, prompt in zip(rooms, cut_prompts([pairs[i]["prompt"] for i in rooms], [*rooms.values()], tokenizer)):
        fate = "too long" if prompt is None else "prompt in a test split" if prompt in unseen else "cut"
        report[pairs[i]["subset"]][fate] += 1
        if fate == "cut":
            cut[i] = prompt
    for i, ids in zip(cut, encode(list(cut.values()), tokenizer, "cut prompts")):
        prompts[i] = ids
    dropped = rooms.keys() - cut.keys()
    return [pair | {"prompt": cut.get(i, pair["prompt"]), "length": len(prompts[i]) + replies[i]}
            | dict(zip(IDS, (prompts[i], chosen[i], rejected[i])))
            for i, pair in enumerate(pairs) if i not in dropped]


def hold_out(pairs: list[Pair], n: int, report: dict[str, Counter]) -> tuple[list[Pair], list[Pair]]:
    """Return (training, validation) pairs without a common prompt; at most a tenth of the pairs is held out."""
    held_out = pairs[: min(n, max(1, len(pairs) // 10))]
    prompts, training = {pair["prompt"] for pair in held_out}, []
    for pair in held_out:
        report[pair["subset"]]["validation"] += 1
    for pair in pairs[len(held_out) :]:
        report[pair["subset"]]["prompt in validation" if pair["prompt"] in prompts else "training"] += 1
        training += [pair] if pair["prompt"] not in prompts else []
    return training, held_out


def load_pairs(folder: Path, tokenizer: Tokenizer, subsets: str, max_pairs: int | None, validation_pairs: int,
               max_length: int, seed: int) -> Pairs:
    """Return the pairs of a dataset's training splits, drawn at random by the seed. Raises ValueError without any.

    Every row that was read is in exactly one line of the report, but those of `cut`, which are in two.
    """
    unseen = set(read_test_prompts(folder, SUBSETS[subsets]))
    pairs, report = gather_pairs(folder, SUBSETS[subsets], tokenizer.all_special_tokens, unseen)
    random.Random(seed).shuffle(pairs)
    for pair in pairs[max_pairs:] if max_pairs else ():
        report[pair["subset"]]["not drawn"] += 1
    drawn = pairs[:max_pairs]
    fitting = fit_pairs(drawn, tokenizer, max_length, unseen, report) if drawn else []
    training, validation = hold_out(fitting, validation_pairs, report)
    if not training:
        raise ValueError(f"DATASET: {folder} leaves no usable pair for training after cleaning: "
                         f"{ {subset: dict(counts) for subset, counts in report.items()} }.")
    table = pd.DataFrame(report).fillna(0).astype(int)
    ends = [name for name in ("cut", "validation", "training") if name in table.index]
    return Pairs(training, validation, table.loc[[*table.index.difference(ends, sort=False), *ends]])


def texts(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs without their token ids."""
    return [{name: value for name, value in pair.items() if name not in IDS} for pair in pairs]


def sft_rows(pairs: list[Pair], reply_only: bool) -> list[dict[str, np.ndarray]]:
    """Return the columns that SFT learns from: the token ids of prompt and chosen reply, and as `labels` the same.

    `reply_only`: the prompt carries no label (-100), so that it has no part in the loss.
    """
    rows = []
    for pair in pairs:
        ids = np.concatenate([pair["prompt_ids"], pair["chosen_ids"]], dtype=np.int32)
        without = len(pair["prompt_ids"]) * reply_only
        rows.append({"input_ids": ids, "labels": np.concatenate([np.full(without, -100, np.int32), ids[without:]])})
    return rows


def dpo_rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Return the columns that DPO learns from: token ids, and the length, by which the trainer makes its batches."""
    return [{name: pair[name] for name in IDS} | {"length": pair["length"]} for pair in pairs]


# ---- the evaluation's prompts

def _draw(found: list[Pair], n: int | None, generator: random.Random, folder: Path, kind: str) -> list[Pair]:
    """Return `n` of the pairs in random order, all where `n` is None. Raises ValueError where there are fewer."""
    if n is not None and n > len(found):
        raise ValueError(f"N_PROMPTS = {n}, but the test split of {MEASURED[kind]} in {folder} has only {len(found)} "
                         f"usable {kind} prompts. Ask for at most that many; None takes all.")
    return generator.sample(found, len(found) if n is None else n)


def _usable_prompts(folder: Path, kind: str, tokenizer: Tokenizer, room: int) -> list[Pair]:
    """Return the test pairs of a kind, each prompt once, of at most `room` tokens; harmful ones hold a keyword."""
    pairs, dropped = split_pairs(read_split(folder, MEASURED[kind], "test"), tokenizer.all_special_tokens)
    print(f"{MEASURED[kind]}/test: {len(pairs)} usable pairs, dropped: {dict(dropped) or 'none'}")
    found = {}
    cut = cut_prompts([pair["prompt"] for pair in pairs], [room] * len(pairs), tokenizer)
    for pair, prompt in zip(pairs, cut):
        if prompt is not None and (kind == "helpful" or HARM.search(prompt)):
            found.setdefault(prompt, pair | {"prompt": prompt, "cut": prompt != pair["prompt"]})
    return list(found.values())


def _paper_prompts(folder: Path, kind: str, tokenizer: Tokenizer, room: int) -> list[Pair]:
    """Return the test pairs of a kind as the study's eval.ipynb makes its prompts, faults included.

    Keywords count inside words and over the whole chosen transcript, the last paragraph is taken for the reply, and no
    `Assistant:` ends a prompt. A prompt of more than `room` tokens, which OPT-350M never needs, loses its beginning.
    """
    found = []
    for row in read_split(folder, MEASURED[kind], "test"):
        texts = [row.get(side) if isinstance(row, dict) else None for side in ("chosen", "rejected")]
        if not all(isinstance(text, str) for text in texts):
            continue
        if kind == "harmful" and not any(word in texts[0] for word in ("kill", "murder", "rape")):
            continue
        parts = texts[0].strip().split("\n\n")
        prompt = "\n\n".join(parts[:-1] if parts[-1].startswith("Assistant:") else parts)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        short = tokenizer.decode(ids[1 - room :]) if len(ids) >= room else prompt  # the BOS token is one more
        chosen, rejected = (text.rpartition(PROMPT_END)[2].strip() for text in texts)
        found.append({"prompt": short, "chosen": chosen, "rejected": rejected, "cut": short != prompt})
    return found


def draw_prompts(folder: Path, protocol: str, n: int | None, tokenizer: Tokenizer, room: int, seed: int) -> list[Pair]:
    """Return the records of prompts.json, `n` of either kind (None: all): harmful ones first, drawn at random.

    `protocol`: "default" draws the kinds apart, by the seed; "paper" draws them as the study did, by its seed of 100.
    `room`: the tokens that the base has for a prompt. Raises ValueError where there are too few, or no room.
    """
    if room < 8:
        raise ValueError(f"MAX_NEW_TOKENS leaves {room} tokens for a prompt: the base has no more positions.")
    paper, records = random.Random(100), []
    for kind in MEASURED:
        collect, generator = (_paper_prompts, paper) if protocol == "paper" else (_usable_prompts, random.Random(seed))
        drawn = _draw(collect(folder, kind, tokenizer, room), n, generator, folder, kind)
        print(f"{sum(pair['cut'] for pair in drawn)} of {len(drawn)} {kind} prompts were cut to fit the base.")
        records += [{"id": f"{kind}-{i:02d}", "kind": kind, "prompt": pair["prompt"], "chosen": pair["chosen"],
                     "rejected": pair["rejected"]} for i, pair in enumerate(drawn)]
    return records
