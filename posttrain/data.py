"""Prepare HH-RLHF for training and evaluation: pairs with token ids, and prompts.

A notebook needs this module only. It builds on `transcripts`, which reads the transcripts, on
`tokens`, which makes token ids, and on `prompts`, which draws the evaluation's prompts. None of
them imports torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from posttrain import pair_cache, processes
from posttrain.pair_cache import IDS, PairSettings
from posttrain.prompts import count_prompts, draw_prompts, read_rules, require_prompts
from posttrain.tokens import cut_prompts, encode_prompts, encode_replies, list_special_tokens
from posttrain.transcripts import (
    MEASURED,
    PROMPT_END,
    SUBSETS,
    TURN,
    Pair,
    list_files,
    list_subsets,
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
    "list_subsets",
    "load_pairs",
    "read_rules",
    "read_split",
    "read_test_prompts",
    "require_prompts",
    "show_pair_tokens",
    "split_pair",
    "split_pairs",
    "split_transcript",
]

NO_LOSS = -100  # the label of a token that the loss leaves out
Report = dict[str, Counter]  # {subset: {what became of a row: number of such rows}}


@dataclass(frozen=True)
class Pairs:
    """The pairs for training, the held-out pairs for validation, and a report on the cleaning.

    Attributes:
        train: the training pairs, with their subset, their length in tokens and their token ids.
        validation: the held-out pairs, with the same fields. No prompt is in both lists.
        report: a table that counts what became of the dataset's rows, with a column per subset.
        chat: whether the token ids are those of the base's chat template.
    """

    train: list[Pair]
    validation: list[Pair]
    report: pd.DataFrame
    chat: bool = False

    def for_sft(self, split: str, reply_only: bool = True) -> Dataset:
        """Build the dataset for SFT, in which every text is a prompt and its chosen reply.

        Args:
            split: "train" or "validation".
            reply_only: whether the loss is computed on the reply's tokens only.

        Returns:
            A dataset with the columns "input_ids" and "labels". The label is -100 for a token that
            the loss leaves out.
        """
        from datasets import Dataset  # takes a second to import

        columns = {"input_ids": [], "labels": []}
        for pair in self._pairs_in(split):
            ids, labels = _ids_and_labels(pair, reply_only)
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
        return Dataset.from_dict(columns)

    def for_dpo(self, split: str) -> Dataset:
        """Build the dataset for DPO from the pairs of a split.

        Args:
            split: "train" or "validation".

        Returns:
            A dataset with columns of token ids and the column "length", by which the trainer groups
            pairs into batches.
        """
        from datasets import Dataset  # takes a second to import

        columns = {}
        for name in (*IDS, "length"):
            columns[name] = [pair[name] for pair in self._pairs_in(split)]
        return Dataset.from_dict(columns)

    def as_texts(self, split: str) -> Dataset:
        """Build a dataset of texts, for trainers that tokenize their pairs themselves.

        Args:
            split: "train" or "validation".

        Returns:
            A dataset with the columns "prompt", "chosen", "rejected" and "length". A reply begins
            with a space, and the trainer adds the special tokens.

        Raises:
            ValueError: if the pairs are written by a chat template, in which such a trainer would
                not write them.
        """
        from datasets import Dataset  # takes a second to import

        if self.chat:
            raise ValueError(
                "A trainer that tokenizes its pairs itself would learn them as transcripts, but "
                "the models of this run are asked in a chat template. Train it in a run with "
                "FORMAT = 'transcript'."
            )
        rows = []
        for pair in self._pairs_in(split):
            replies = {side: f" {pair[side]}" for side in ("chosen", "rejected")}
            rows.append({"prompt": pair["prompt"], **replies, "length": pair["length"]})
        return Dataset.from_list(rows)

    def _pairs_in(self, split: str) -> list[Pair]:
        """Look up the pairs of the split "train" or "validation"."""
        return {"train": self.train, "validation": self.validation}[split]


def _ids_and_labels(pair: Pair, reply_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Join prompt and chosen reply into token ids and labels, both int32 of shape (tokens,)."""
    ids = np.concatenate([pair["prompt_ids"], pair["chosen_ids"]], dtype=np.int32)
    labels = ids.copy()
    if reply_only:
        labels[: len(pair["prompt_ids"])] = NO_LOSS
    return ids, labels


def show_pair_tokens(pair: Pair, tokenizer: Tokenizer, reply_only: bool = True) -> pd.DataFrame:
    r"""Show which tokens of a pair's prompt and chosen reply SFT learns from.

    Args:
        pair: a pair with token ids, from `load_pairs`.
        tokenizer: the tokenizer of the base model.
        reply_only: whether the loss is computed on the reply only, as in `Pairs.for_sft`.

    Returns:
        A table with a row for each token and the columns "id", "text" (line breaks written as `\n`)
        and "loss" (whether the loss includes the token).
    """
    ids, labels = _ids_and_labels(pair, reply_only)
    texts = [tokenizer.decode([token]).replace("\n", "\\n") for token in ids.tolist()]
    return pd.DataFrame({"id": ids, "text": texts, "loss": labels != NO_LOSS})


def keep_texts(pairs: list[Pair]) -> list[Pair]:
    """Copy the pairs without their token ids, so that they can be read or hashed."""
    copies = []
    for pair in pairs:
        copies.append({name: value for name, value in pair.items() if name not in IDS})
    return copies


def gather_pairs(
    folder: Path, subsets: Sequence[str], special_tokens: Sequence[str], unseen: set[str]
) -> tuple[list[Pair], Report]:
    """Gather all usable pairs of the training splits, without duplicates.

    Args:
        folder: the dataset's folder.
        subsets: the names of the subsets to read, in this order.
        special_tokens: the tokenizer's special tokens, which no text may contain.
        unseen: the prompts of the test splits, which no training pair may have.

    Returns:
        The pairs, each with its subset, and the report on the rows that were dropped.
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
    pairs: list[Pair],
    tokenizer: Tokenizer,
    max_length: int,
    unseen: set[str],
    report: Report,
    chat: bool = False,
) -> list[Pair]:
    """Fit pairs into `max_length` tokens by removing the oldest turns of their prompts.

    A trainer would truncate a long text at its end, where the reply is. Here a reply is never
    truncated: a pair is dropped if its last turn and its longer reply do not fit.

    Args:
        pairs: pairs with their texts and their subset.
        tokenizer: the tokenizer of the base model.
        max_length: limit in tokens of BOS, prompt, longer reply and EOS together.
        unseen: prompts that no pair may have, even after its prompt was shortened.
        report: the cleaning report; the pairs that were cut or dropped are counted in it.
        chat: whether prompts and replies are written by the base's chat template.

    Returns:
        The pairs that fit, in their order, each with its "length" and token ids.
    """
    texts = [pair["prompt"] for pair in pairs]
    prompts = encode_prompts(texts, tokenizer, "prompts", chat)
    texts = [pair["chosen"] for pair in pairs]
    chosen = encode_replies(texts, tokenizer, "chosen replies", chat)
    texts = [pair["rejected"] for pair in pairs]
    rejected = encode_replies(texts, tokenizer, "rejected replies", chat)
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
    _cut_long_pairs(long_pairs, tokenizer, max_length, unseen, report, chat)
    return [pair for pair in candidates if pair["prompt"] is not None]


def _cut_long_pairs(
    pairs: list[Pair],
    tokenizer: Tokenizer,
    max_length: int,
    unseen: set[str],
    report: Report,
    chat: bool,
) -> None:
    """Shorten the prompts of pairs that are too long, in place; None marks a pair to be dropped."""
    rooms = [max_length - pair["length"] + len(pair["prompt_ids"]) for pair in pairs]
    prompts = cut_prompts([pair["prompt"] for pair in pairs], rooms, tokenizer, chat)
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
    texts = [pair["prompt"] for pair in cut_pairs]
    ids_of_cut = encode_prompts(texts, tokenizer, "cut prompts", chat)
    for pair, ids in zip(cut_pairs, ids_of_cut):
        pair["length"] += len(ids) - len(pair["prompt_ids"])
        pair["prompt_ids"] = ids


def hold_out(pairs: list[Pair], n: int, report: Report) -> tuple[list[Pair], list[Pair]]:
    """Hold out the first `n` pairs, but at most a tenth of all, for validation.

    Pairs that share their prompt with a held-out pair are dropped from the training pairs.

    Args:
        pairs: the pairs in random order.
        n: the number of pairs to hold out.
        report: the cleaning report; what became of every pair is counted in it.

    Returns:
        The pairs for training, and the pairs for validation.
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


def load_pairs(
    folder: Path, tokenizer: Tokenizer, settings: PairSettings, kept: Path | None = None
) -> Pairs:
    """Load the pairs of a dataset's training splits, ready for training.

    Unusable rows are dropped, `max_pairs` pairs are drawn at random, long prompts are shortened,
    and some pairs are held out.

    Args:
        folder: the dataset's folder, in the layout of Anthropic/hh-rlhf.
        tokenizer: the tokenizer of the base model.
        settings: the settings of the pairs. The seed decides which pairs are drawn and in which
            order.
        kept: a file that keeps the prepared pairs. They are read from it, if it was made from equal
            inputs, as `pair_cache` says; otherwise they are prepared and written to it.

    Returns:
        The pairs and the report. Every row that was read is counted in exactly one line of the
        report; rows whose prompt was shortened are also counted in the line "cut".

    Raises:
        ValueError: if the dataset cannot be read, or has no pair to train on.
    """
    chat = settings.format == "chat"
    if kept is None:
        return Pairs(*_prepare_pairs(folder, tokenizer, settings), chat)
    inputs = pair_cache.describe_inputs(folder, tokenizer, settings)
    prepared = pair_cache.read_kept_pairs(kept, inputs)
    if prepared is None:
        prepared = _prepare_pairs(folder, tokenizer, settings)
        if processes.is_main():
            try:
                pair_cache.keep_pairs(kept, inputs, prepared)
            except OSError as error:  # nothing depends on it
                print(f"The pairs are prepared again at the next start: {error}")
    return Pairs(*prepared, chat)


def _prepare_pairs(
    folder: Path, tokenizer: Tokenizer, settings: PairSettings
) -> tuple[list[Pair], list[Pair], pd.DataFrame]:
    """Prepare pairs as `load_pairs` describes: for training, for validation, and the report."""
    subsets, chat = list_subsets(folder, settings.subsets), settings.format == "chat"
    unseen = set(read_test_prompts(folder, subsets))
    pairs, report = gather_pairs(folder, subsets, list_special_tokens(tokenizer), unseen)
    random.Random(settings.seed).shuffle(pairs)
    size = len(pairs) if settings.max_pairs is None else settings.max_pairs
    for pair in pairs[size:]:
        report[pair["subset"]]["not drawn"] += 1
    fitting = []
    if pairs:
        fitting = fit_pairs(pairs[:size], tokenizer, settings.max_length, unseen, report, chat)
    training, validation = hold_out(fitting, settings.validation_pairs, report)
    if not training:
        counts = {subset: dict(fates) for subset, fates in report.items()}
        raise ValueError(
            f"DATASET: {folder} has no usable pair for training after cleaning. The rows of each "
            f"subset were counted as {counts}."
        )
    return training, validation, _tabulate(report)


def _tabulate(report: Report) -> pd.DataFrame:
    """Turn the report into a table that ends with the pairs cut, held out and trained on."""
    table = pd.DataFrame(report).fillna(0).astype(int)
    last = [fate for fate in ("cut", "validation", "training") if fate in table.index]
    return table.loc[[*table.index.difference(last, sort=False), *last]]
