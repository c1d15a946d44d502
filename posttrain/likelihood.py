"""Log-probabilities of texts: while a model generates them, or by reading them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.architecture import takes_positions
from posttrain.batches import batches_of_like_length, in_batches, texts_at_once


@torch.inference_mode()
def mean_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    replies: Sequence[list[int]],
    batch_size: int | None,
) -> list[float]:
    """Compute how likely each reply is after its prompt under a model.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, which pads.
        prompts: the token ids of a prompt for each reply.
        replies: the token ids of the replies as they were generated.
        batch_size: the number of replies in a batch; None as in `answer`.

    Returns:
        For each reply the mean log-probability of its tokens, in nats; 0 for an empty reply.
    """
    ids = [prompt + reply for prompt, reply in zip(prompts, replies)]
    lengths = [len(text_ids) for text_ids in ids]
    reply_lengths = [len(reply) for reply in replies]
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    counts_padding = takes_positions(bare)

    def measure(batch: Sequence[int]) -> list[float]:
        inputs = pad_left([ids[i] for i in batch], tokenizer, model.device)
        if counts_padding:  # unless it is told where its tokens stand
            positions = inputs["attention_mask"].cumsum(1) - 1
            inputs["position_ids"] = positions.clamp(min=0)
        longest = max(reply_lengths[i] for i in batch)
        # Compute logits only where they are needed, since those of all tokens take much memory.
        logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
        tokens = inputs["input_ids"][:, inputs["input_ids"].shape[1] - longest :]
        log_p = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        means = []
        for i, row in zip(batch, log_p):
            reply = row[longest - reply_lengths[i] :]
            means.append(mean_of(reply))
        return means

    if batch_size is None:
        batch_size = texts_at_once(model, max(lengths))
    batches = batches_of_like_length(lengths, batch_size)
    return in_batches(measure, batches, "log-probabilities")


def mean_of(log_p: torch.Tensor) -> float:
    """Average the log-probabilities of a reply's tokens, of shape (tokens,); 0 without any."""
    return log_p.mean().item() if len(log_p) else 0.0


class LogProbabilities:
    """Collects the log-probabilities of the tokens that a model generates.

    They are those of the model itself, before any temperature or other change of the logits. Since
    a token's logits are known one step before the token, the log-probabilities of the last step are
    kept until the token is known.
    """

    def __init__(self):
        self._log_p: torch.Tensor | None = None  # (texts, vocabulary), for the next token
        self._chosen: list[torch.Tensor] = []  # (texts,), one for each token but the last
        self._is_plain = True  # whether the model reads one new token of every text in a step

    def hear(self, model: PreTrainedModel, args: tuple, inputs: Any, output: Any) -> None:
        """Take note of a step: a forward hook with keyword arguments."""
        new = inputs.get("input_ids")
        if self._log_p is not None:
            self._is_plain &= new is not None and new.shape == (len(self._log_p), 1)
            if self._is_plain:
                self._chosen.append(self._log_p.gather(1, new)[:, 0])
        self._log_p = output.logits[:, -1].float().log_softmax(-1)

    def of(self, generated: torch.Tensor) -> torch.Tensor | None:
        """Return the log-probabilities of the tokens that were generated.

        Args:
            generated: shape (texts, tokens), without the prompts.

        Returns:
            A tensor of the same shape, or None if the model did not read every token once.
        """
        steps = len(self._chosen) + 1
        if not self._is_plain or generated.shape != (len(self._log_p), steps):
            return None
        last = self._log_p.gather(1, generated[:, -1:])
        return torch.cat([*(chosen[:, None] for chosen in self._chosen), last], 1)


@contextmanager
def listening(model: PreTrainedModel | PeftModel) -> Iterator[LogProbabilities]:
    """Collect the log-probabilities of what a model generates meanwhile, in one call."""
    log_probabilities = LogProbabilities()
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = bare.register_forward_hook(log_probabilities.hear, with_kwargs=True)
    try:
        yield log_probabilities
    finally:
        hook.remove()


def pad_left(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Any:
    """Pad token ids on the left, so that all end in the last column."""
    batch = {"input_ids": list(ids)}
    return tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(device)
