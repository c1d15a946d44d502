"""Generates the models' answers to many prompts, and measures how likely they are."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils.memory import release_memory
from peft import PeftModel
from pydantic import BaseModel, TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.batches import batches_of_like_length, in_batches
from posttrain.data import PROMPT_END, TURN, draw_prompts
from posttrain.models import load_config, load_models, load_tokenizer, plain, switched_to

if TYPE_CHECKING:
    from posttrain.run import Run
    from posttrain.sources import Source


SLACK = 8  # tokens of the base's positions that stay free


class Prompt(BaseModel):
    """What a record of prompts.json must have; `chosen` and `rejected` may be missing."""

    id: str
    kind: Literal["harmful", "helpful"]
    prompt: str


class Response(BaseModel):
    """What a record of responses.json must have; all other fields may be missing."""

    id: str
    model: str
    response: str


# ---- the models of a run


def choose_prompts(
    run: Run, base: Source, dataset: Source, settings: Any, strict: bool
) -> list[dict[str, Any]]:
    """Draw the prompts of an evaluation, each short enough for the base, and keep prompts.json.

    Args:
        run: the run whose models will answer.
        base: the run's base model, whose positions prompt and answer share.
        dataset: what the prompts are drawn from.
        settings: those of eval.ipynb.
        strict: whether more prompts than the dataset has are refused, see `data.draw_prompts`.

    Returns:
        The records of prompts.json.
    """

    def draw() -> list[dict[str, Any]]:
        return draw_prompts(
            dataset.folder,
            settings.protocol,
            settings.n_prompts,
            load_tokenizer(base.folder),
            room_for_prompt(base.folder, settings.max_new_tokens),
            settings.seed,
            strict,
        )

    inputs = {
        "test_dataset": dataset.identity,
        "base_model": base.identity,
        "protocol": settings.protocol,
        "n_prompts": settings.n_prompts,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
    }
    return run.stage("prompts.json", draw, inputs)


def room_for_prompt(folder: Path, max_new_tokens: int) -> int:
    """Count the tokens that a base has for a prompt beside an answer of so many, with some slack.

    Args:
        folder: the base's.
        max_new_tokens: the limit of an answer.
    """
    return load_config(folder).max_position_embeddings - max_new_tokens - SLACK


def answer(
    run: Run, prompts: Sequence[dict[str, Any]], base: Source, batch_size: int, **decoding: Any
) -> list[dict[str, Any]]:
    """Let every model of a run answer the prompts, and keep the answers as responses.json.

    The models are loaded only if answers are missing.

    Args:
        run: the run whose models answer.
        prompts: the records of prompts.json.
        base: the run's base model.
        batch_size: how many prompts are answered at once. It changes no answer.
        decoding: what `generate` is told.

    Returns:
        The records of responses.json, see `answer_as`.
    """

    @cache
    def load() -> tuple[dict[str, PreTrainedModel], PreTrainedTokenizerBase]:
        folder = base.folder
        return load_models(run, folder), load_tokenizer(folder)

    def make(name: str) -> list[dict[str, Any]]:
        models, tokenizer = load()
        return answer_as(name, models, tokenizer, prompts, batch_size, **decoding)

    record = run.record
    sha256 = {name: artifact.sha256 for name, artifact in record.artifacts.items()}
    inputs_by_model = {}
    for model in record.models:
        inputs_by_model[model.name] = {
            "prompts.json": sha256.get("prompts.json"),
            "base_model": base.identity,
            "fine_tuned_base": sha256.get(model.base),  # None where it is the base model itself
            "adapter": sha256.get(model.adapter),
            **decoding,
        }
    responses = run.stage("responses.json", make, inputs_by_model, parts=True)
    load.cache_clear()
    release_memory()
    return responses


def answer_as(
    name: str,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    batch_size: int,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Let one model answer the prompts.

    Args:
        name: the model's name.
        models: {name: model} as `load_models` gives them; the first is the baseline.
        tokenizer: that of their base.
        prompts: the records of prompts.json.
        batch_size: how many prompts are answered at once.
        decoding: what `generate` is told.

    Returns:
        The records of responses.json: {"id", "model", "response", "finish", "tokens",
        "log_ratio"}. log_ratio is the mean over an answer's tokens of the log-probability ratio to
        the baseline, in nats. Over sampled answers its mean would estimate the Kullback-Leibler
        divergence from the baseline; over greedy ones it only hints at it.
    """
    texts = [plain(prompt["prompt"], tokenizer) for prompt in prompts]
    with switched_to(models[name], name):
        completions = respond(models[name], tokenizer, texts, batch_size, name, **decoding)
    replies = [_text_as_generated(completion, tokenizer) for completion in completions]

    def measure(measured: str) -> list[float]:
        with switched_to(models[measured], measured):
            return mean_log_probabilities(models[measured], tokenizer, texts, replies, batch_size)

    baseline = next(iter(models))
    log_p = measure(name)
    baseline_log_p = log_p if name == baseline else measure(baseline)
    records = []
    for i, prompt in enumerate(prompts):
        record = {"id": prompt["id"], "model": name, **completions[i]}
        record["log_ratio"] = log_p[i] - baseline_log_p[i]
        records.append(record)
    return records


def _text_as_generated(completion: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Give an answer as it follows its prompt: a space before it, the model's end after it."""
    text = completion["response"]
    if text:
        text = plain(f" {text}", tokenizer)
    if completion["finish"] == "eos":
        text += tokenizer.eos_token
    return text


def ask(run: Run, name: str, questions: Sequence[str], base: Source, **decoding: Any) -> list[str]:
    """Let one model of a run answer a few questions, greedily, to see how it answers.

    Args:
        run: the run that the model belongs to.
        name: the model's name.
        questions: what a human asks, each in a conversation of its own.
        base: the run's base model.
        decoding: what `generate` is told, such as max_new_tokens. Unless told otherwise, answers
            are greedy and end at a human turn.

    Returns:
        The answers, in the order of the questions. Nothing is kept, and the model is freed.
    """
    folder = base.folder
    tokenizer = load_tokenizer(folder)
    model = load_models(run, folder, [name])[name]
    prompts = [f"{TURN} {plain(question, tokenizer)}{PROMPT_END}" for question in questions]
    options = {"do_sample": False, "stop_strings": [TURN], **decoding}
    with switched_to(model, name):
        completions = respond(model, tokenizer, prompts, len(prompts), name, **options)
    del model
    release_memory()
    return [completion["response"] for completion in completions]


# ---- one model


@torch.inference_mode()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int,
    label: str = "responses",
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Let a model complete prompts, in left-padded batches of prompts of like length.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: what the model reads.
        batch_size: how many prompts are completed at once.
        label: what the progress bar says.
        decoding: what `generate` is told.

    Returns:
        The completions as `read_completion` gives them, in the order of the prompts.
    """
    ids = tokenizer(list(prompts))["input_ids"]
    stop_strings = decoding.get("stop_strings")
    stop = stop_strings[0] if stop_strings else None

    def complete(batch: Sequence[int]) -> list[dict[str, Any]]:
        inputs = _pad_left([ids[i] for i in batch], tokenizer, model.device)
        output = model.generate(
            **inputs, tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id, **decoding
        )
        generated = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [read_completion(tokens, tokenizer, stop) for tokens in generated]

    lengths = [len(prompt_ids) for prompt_ids in ids]
    return in_batches(complete, batches_of_like_length(lengths, batch_size), label)


def read_completion(
    tokens: list[int], tokenizer: PreTrainedTokenizerBase, stop: str | None
) -> dict[str, Any]:
    """Read what a model generated after a prompt.

    Args:
        tokens: the ids that were generated, with padding after them.
        tokenizer: the model's tokenizer.
        stop: the marker of a human turn, at which generation stops; None where it does not.

    Returns:
        {"response", "finish", "tokens"}. finish is "eos" where the model ended, "turn" where it
        opened a human turn, which is cut off, and "length" where it ran into the limit. tokens is
        how many it generated: the end or the marker of the turn counted in, padding not.
    """
    ended = tokenizer.eos_token_id in tokens
    if ended:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        tokens = [token for token in tokens if token != tokenizer.pad_token_id]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    finish = "eos" if ended else "length"
    if stop is not None and stop in text:
        finish = "turn"
        text = text.split(stop)[0]
        if ended:  # generation stopped at the turn: the end token after it is padding
            tokens = tokens[:-1]
    return {"response": text.strip(), "finish": finish, "tokens": len(tokens)}


@torch.inference_mode()
def mean_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    batch_size: int,
) -> list[float]:
    """Measure how likely responses are after their prompts under a model.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: a text for each response.
        responses: what follows them, with the space before it and the end token after it.
        batch_size: how many are measured at once.

    Returns:
        The mean log-probability of a response's tokens, in nats; 0 for an empty response.
    """
    texts = [prompt + response for prompt, response in zip(prompts, responses)]
    ids = tokenizer(texts)["input_ids"]
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    lengths = [len(text_ids) for text_ids in ids]
    reply_lengths = [length - len(before) for length, before in zip(lengths, prompt_ids)]
    takes_positions = _takes_positions(model)

    def measure(batch: Sequence[int]) -> list[float]:
        inputs = _pad_left([ids[i] for i in batch], tokenizer, model.device)
        if takes_positions:  # some models would count the padding on the left
            positions = inputs["attention_mask"].cumsum(1) - 1
            inputs["position_ids"] = positions.clamp(min=0)
        longest = max(reply_lengths[i] for i in batch)
        # Logits of the last tokens alone: those of all would take much memory
        logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
        tokens = inputs["input_ids"][:, inputs["input_ids"].shape[1] - longest :]
        log_p = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        means = []
        for i, row in zip(batch, log_p):
            reply = row[longest - reply_lengths[i] :]
            means.append(reply.mean().item() if len(reply) else 0.0)
        return means

    batches = batches_of_like_length(lengths, batch_size)
    return in_batches(measure, batches, "log-probabilities")


def _takes_positions(model: PreTrainedModel) -> bool:
    """Tell whether a model can be told the positions of its tokens."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    return "position_ids" in inspect.signature(bare.forward).parameters


def _pad_left(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Any:
    """Pad token ids on the left, so that all end in the last column."""
    batch = {"input_ids": list(ids)}
    return tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(device)


# ---- records from elsewhere


def require_fitting(
    prompts: Sequence[dict[str, Any]], responses: Sequence[dict[str, Any]]
) -> None:
    """Check records of prompts.json and responses.json, which may come from elsewhere.

    Raises:
        ValueError: they are not such records, or a model has not answered each prompt just once.
    """
    _require_kind("prompts.json", Prompt, prompts)
    _require_kind("responses.json", Response, responses)
    for prompt in prompts:
        identity, kind = prompt["id"], prompt["kind"]
        if not identity.startswith(f"{kind}-"):
            raise ValueError(
                f"prompts.json: the id {identity!r} is not that of a {kind} prompt, such as "
                f"{kind}-00."
            )
    prompt_ids = Counter(prompt["id"] for prompt in prompts)
    ids_by_model: dict[str, Counter] = {}
    for response in responses:
        ids_by_model.setdefault(response["model"], Counter())[response["id"]] += 1
    for name, answered in ids_by_model.items():
        unlike = sorted((prompt_ids - answered) + (answered - prompt_ids))
        if unlike:
            raise ValueError(
                f"responses.json: the model {name} has not exactly one response to each prompt of "
                f"prompts.json, see {unlike[0]}."
            )


def _require_kind(file: str, kind: type[BaseModel], records: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError, naming the file and the record, where records are not of a kind."""
    try:
        TypeAdapter(list[kind]).validate_python(records)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{file}: {place}: {first['msg']}. See docs/files.md for what it must hold."
        ) from None
