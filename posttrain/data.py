"""HH-RLHF as training and evaluation need it: pairs with token ids, and the evaluation's prompts.

This module has all names that a notebook needs of the data; reading the transcripts is in
`transcripts`, token ids are in `tokens`, and the evaluation's prompts in `prompts`. No torch here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from posttrain.prompts import count_prompts, draw_prompts, require_prompts
from posttrain.tokens import cut_prompts, encode, encode_replies
from posttrain.transcripts import (
    MEASURED,
    PROMPT_END,
    SUBSETS,
    TURN,
    Pair,
    list_files,
    read_split,
    read_test_prompts,
    split_pair,
    split_pairs,
    split_transcript,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase as Tokenizer

__all__ = [
    "MEASURED",
    "PROMPT_END",
    "SUBSETS",
    "TURN",
    "Pair",
    "Pairs",
    "count_prompts",
    "cut_prompts",
    "draw_prompts",
    "fit_pairs",
    "gather_pairs",
    "hold_out",
    "keep_texts",
    "list_files",
    "load_pairs",
    "read_split",
    "read_test_prompts",
    "require_prompts",
    "show_pair_tokens",
    "split_pair",
    "split_pairs",
    "split_transcript",
]

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # token ids of the prompt and of the replies
NO_LOSS = -100  # the label of a token that has no part in the loss
Report = dict[str, Counter]  # for each subset, how many of its rows met which fate


class PairSettings(Protocol):
    """The settings that decide which pairs are used, and how."""

    subsets: str  # "base" or "all"
    max_pairs: int | None  # training and validation together; None uses all
    validation_pairs: int  # at most a tenth of the pairs is held out
    max_length: int  # tokens of prompt and longer reply
    seed: int  # of the draw and of the order


@dataclass(frozen=True)
class Pairs:
    """Pairs to train on and to validate with.

    Attributes:
        train: pairs with their subset, length in tokens and token ids.
        validation: the same, held out; no prompt is in both.
        report: a row for each fate of a dataset's rows, a column for each subset.
    """

    train: list[Pair]
    validation: list[Pair]
    report: pd.DataFrame

    def for_sft(self, split: str, reply_only: bool = True) -> Dataset:
        """Build the dataset that SFT learns from: prompts with their chosen replies.

        Args:
            split: "train" or "validation".
            reply_only: whether the loss leaves out the prompt's tokens.

        Returns:
            Columns "input_ids" and "labels", with -100 where a token has no part in the loss.
        """
        from datasets import Dataset  # takes a second to import

        columns = {"input_ids": [], "labels": []}
        for pair in self._pairs_in(split):
            ids, labels = _ids_and_labels(pair, reply_only)
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
        return Dataset.from_dict(columns)

    def for_dpo(self, split: str) -> Dataset:
        """Build the dataset that DPO learns from, of the pairs of "train" or "validation".

        Returns:
            Columns of token ids, and "length", by which the trainer makes its batches.
        """
        from datasets import Dataset  # takes a second to import

        columns = {}
        for name in (*IDS, "length"):
            columns[name] = [pair[name] for pair in self._pairs_in(split)]
        return Dataset.from_dict(columns)

    def _pairs_in(self, split: str) -> list[Pair]:
        """Look up the pairs of "train" or "validation"."""
        return {"train": self.train, "validation": self.validation}[split]


def _ids_and_labels(pair: Pair, reply_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Join prompt and chosen reply into token ids and labels, int32, both of shape (tokens,)."""
    ids = np.concatenate([pair["prompt_ids"], pair["chosen_ids"]], dtype=np.int32)
    labels = ids.copy()
    if reply_only:
        labels[: len(pair["prompt_ids"])] = NO_LOSS
    return ids, labels


def show_pair_tokens(pair: Pair, tokenizer: Tokenizer, reply_only: bool = True) -> pd.DataFrame:
    r"""Show which tokens of a pair's prompt and chosen reply SFT learns from.

    Args:
        pair: with token ids, as `load_pairs` gives it.
        tokenizer: the base model's.
        reply_only: as in `Pairs.for_sft`.

    Returns:
        A row for each token: "id", "text" with line feeds written as `\n`, and "loss", whether
        the token carries loss.
    """
    ids, labels = _ids_and_labels(pair, reply_only)
    texts = [tokenizer.decode([token]).replace("\n", "\\n") for token in ids.tolist()]
    return pd.DataFrame({"id": ids, "text": texts, "loss": labels != NO_LOSS})


def keep_texts(pairs: list[Pair]) -> list[Pair]:
    """Copy the pairs without their token ids, to be read or to be fingerprinted."""
    copies = []
    for pair in pairs:
        copies.append({name: value for name, value in pair.items() if name not in IDS})
    return copies


def gather_pairs(
    folder: Path, subsets: Sequence[str], special_tokens: Sequence[str], unseen: set[str]
) -> tuple[list[Pair], Report]:
    """Gather all usable pairs of the training splits, each once.

    Args:
        folder: the dataset's folder.
        subsets: the names of the subsets that are read, in this order.
        special_tokens: the tokenizer's, which no text may hold.
        unseen: the prompts that no pair may have, those of the test splits.

    Returns:
        The pairs, each with its subset, and the report on the rows that gave none.
    """
    pairs = {}
    report = {}
    for subset in subsets:
        rows = read_split(folder, subset, "train")
        usable, dropped = split_pairs(rows, special_tokens)
        report[subset] = Counter(read=len(rows)) + dropped
        for pair in usable:
            key = (pair["prompt"], pair["chosen"], pair["rejected"])
            if pair["prompt"] in unseen:
                report[subset]["prompt in a test split"] += 1
            elif key in pairs:
                report[subset]["duplicate"] += 1
            else:
                pairs[key] = pair | {"subset": subset}
    return list(pairs.values()), report


def fit_pairs(
    pairs: list[Pair], tokenizer: Tokenizer, max_length: int, unseen: set[str], report: Report
) -> list[Pair]:
    """Fit pairs into `max_length` tokens by cutting the oldest turns off their prompts.

    A trainer would cut what is longer from its end, where the reply stands. Here a reply is never
    cut: a pair whose last turn and longer reply do not fit is dropped.

    Args:
        pairs: with their texts and their subset.
        tokenizer: the base model's.
        max_length: tokens of BOS, prompt, longer reply and EOS.
        unseen: the prompts that a pair may not have, after cutting either.
        report: is told which pairs were cut and which were dropped.

    Returns:
        The pairs that fit, in order, each with its "length" and token ids.
    """
    prompts = encode([pair["prompt"] for pair in pairs], tokenizer, "prompts")
    chosen = encode_replies([pair["chosen"] for pair in pairs], tokenizer, "chosen replies")
    rejected = encode_replies([pair["rejected"] for pair in pairs], tokenizer, "rejected replies")
    candidates = []
    for pair, prompt_ids, chosen_ids, rejected_ids in zip(pairs, prompts, chosen, rejected):
        candidate = {
            **pair,
            "length": len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)),
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
        }
        candidates.append(candidate)
    long_pairs = [pair for pair in candidates if pair["length"] > max_length]
    _cut_long_pairs(long_pairs, tokenizer, max_length, unseen, report)
    return [pair for pair in candidates if pair["prompt"] is not None]


def _cut_long_pairs(
    pairs: list[Pair], tokenizer: Tokenizer, max_length: int, unseen: set[str], report: Report
) -> None:
    """Cut the prompts of pairs that are too long, in place; a pair to be dropped gets None."""
    rooms = [max_length - pair["length"] + len(pair["prompt_ids"]) for pair in pairs]
    prompts = cut_prompts([pair["prompt"] for pair in pairs], rooms, tokenizer)
    cut_pairs = []
    for pair, prompt in zip(pairs, prompts):
        pair["prompt"] = None
        if prompt is None:
            fate = "too long"
        elif prompt in unseen:
            fate = "prompt in a test split"
        else:
            fate = "cut"
            pair["prompt"] = prompt
            cut_pairs.append(pair)
        report[pair["subset"]][fate] += 1
    ids_of_cut = encode([pair["prompt"] for pair in cut_pairs], tokenizer, "cut prompts")
    for pair, ids in zip(cut_pairs, ids_of_cut):
        pair["length"] += len(ids) - len(pair["prompt_ids"])
        pair["prompt_ids"] = ids


def hold_out(pairs: list[Pair], n: int, report: Report) -> tuple[list[Pair], list[Pair]]:
    """Hold out the first `n` pairs, at most a tenth, so that no prompt is on both sides.

    Args:
        pairs: in random order.
        n: how many are held out; of the others, those with a held-out prompt are dropped.
        report: is told what became of every pair.

    Returns:
        The pairs for training, and those for validation.
    """
    size = min(n, max(1, len(pairs) // 10))
    validation = pairs[:size]
    training = []
    for pair in validation:
        report[pair["subset"]]["validation"] += 1
    held_out_prompts = {pair["prompt"] for pair in validation}
    for pair in pairs[size:]:
        if pair["prompt"] in held_out_prompts:
            report[pair["subset"]]["prompt in validation"] += 1
        else:
            report[pair["subset"]]["training"] += 1
            training.append(pair)
    return training, validation


def load_pairs(folder: Path, tokenizer: Tokenizer, settings: PairSettings) -> Pairs:
    """Load the pairs of a dataset's training splits: cleaned, drawn, fitted and held out.

    Args:
        folder: the dataset's folder, in the layout of Anthropic/hh-rlhf.
        tokenizer: the base model's.
        settings: which pairs are used; the seed decides which are drawn, and their order.

    Returns:
        The pairs and the report. Every row that was read is in exactly one line of the report,
        but for those that were cut, which are in a second one too.

    Raises:
        ValueError: the dataset cannot be read, or leaves no pair to train on.
    """
    subsets = SUBSETS[settings.subsets]
    unseen = set(read_test_prompts(folder, subsets))
    pairs, report = gather_pairs(folder, subsets, tokenizer.all_special_tokens, unseen)
    random.Random(settings.seed).shuffle(pairs)
    size = len(pairs) if settings.max_pairs is None else settings.max_pairs
    for pair in pairs[size:]:
        report[pair["subset"]]["not drawn"] += 1
    fitting = []
    if pairs:
        fitting = fit_pairs(pairs[:size], tokenizer, settings.max_length, unseen, report)
    training, validation = hold_out(fitting, settings.validation_pairs, report)
    if not training:
        counts = {subset: dict(fates) for subset, fates in report.items()}
        raise ValueError(
            f"DATASET: {folder} leaves no usable pair for training after cleaning: {counts}."
        )
    return Pairs(training, validation, _tabulate(report))


def _tabulate(report: Report) -> pd.DataFrame:
    """Turn the report into a table whose last rows are what was cut, held out and trained on."""
    table = pd.DataFrame(report).fillna(0).astype(int)
    last = [fate for fate in ("cut", "validation", "training") if fate in table.index]
    return table.loc[[*table.index.difference(last, sort=False), *last]]
