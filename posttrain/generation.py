"""Generate the models' answers to many prompts, with their log-ratios to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import release_memory
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.architecture import read_size
from posttrain.batches import batches_of_like_length, in_batches, texts_at_once
from posttrain.chat import end_of_reply
from posttrain.checks import say_once
from posttrain.data import PROMPT_END, TURN, draw_prompts, read_rules
from posttrain.likelihood import listening, mean_log_probabilities, mean_of, pad_left
from posttrain.models import load_config, load_models, load_tokenizer, plain, switched_to
from posttrain.tokens import encode_prompts

if TYPE_CHECKING:
    from posttrain.run import Run
    from posttrain.sources import Source


SLACK = 8  # number of the base's positions that stay unused
UNLIMITED = 2048  # tokens of prompt and answer, where a base has no limit of its own


# ---- the models of a run


def choose_prompts(
    run: Run, base: Source, dataset: Source, settings: Any, strict: bool
) -> list[dict[str, Any]]:
    """Draw the prompts of an evaluation, short enough for the base, and save prompts.json.

    They are written as in the training: as transcripts, or by the base's chat template.

    Args:
        run: the run whose models will answer.
        base: the run's base model, which has positions for a limited number of tokens.
        dataset: the dataset that the prompts are drawn from.
        settings: the settings of eval.ipynb.
        strict: whether to refuse more prompts than the dataset has, as in `data.draw_prompts`.

    Returns:
        The records of prompts.json.
    """
    chat = is_chat(run)

    def draw() -> list[dict[str, Any]]:
        return draw_prompts(
            dataset.folder,
            settings.protocol,
            settings.n_prompts,
            load_tokenizer(base.folder),
            room_for_prompt(base.folder, settings.max_new_tokens),
            settings.seed,
            strict,
            read_rules(settings, chat),
        )

    inputs = {
        "test_dataset": dataset.identity,
        "base_model": base.identity,
        "protocol": settings.protocol,
        "n_prompts": settings.n_prompts,
        "harmful_prompts": settings.harmful_prompts,
        "keyword_rule": settings.keyword_rule,
        "prompt_tail": settings.prompt_tail,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
    }
    if chat:
        inputs["format"] = "chat"
    return run.stage("prompts.json", draw, inputs)


def is_chat(run: Run) -> bool:
    """Tell whether a run's models were trained on conversations in the base's chat template."""
    return run.record.settings.get("training", {}).get("format") == "chat"


def room_for_prompt(folder: Path, max_new_tokens: int) -> int:
    """Count the tokens that a prompt may have so that prompt and answer fit the base's positions.

    Args:
        folder: the folder of the base.
        max_new_tokens: the limit of an answer, in tokens.
    """
    positions = read_size(load_config(folder)).positions
    return (positions or UNLIMITED) - max_new_tokens - SLACK


def answer(
    run: Run,
    prompts: Sequence[dict[str, Any]],
    base: Source,
    batch_size: int | None,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Let every model of a run answer the prompts, and save the answers as responses.json.

    The models are loaded only if answers are missing.

    Args:
        run: the run whose models answer.
        prompts: the records of prompts.json.
        base: the run's base model.
        batch_size: the number of prompts answered at once, which does not change the answers. None
            takes as many as suit the device.
        decoding: the arguments of transformers' `generate`.

    Returns:
        The records of responses.json, as `answer_as` describes them.
    """
    chat = is_chat(run)

    @cache
    def load() -> tuple[dict[str, PreTrainedModel], PreTrainedTokenizerBase]:
        folder = base.folder
        return load_models(run, folder), load_tokenizer(folder)

    def make(name: str) -> list[dict[str, Any]]:
        models, tokenizer = load()
        return answer_as(name, models, tokenizer, prompts, batch_size, chat=chat, **decoding)

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
        if chat:
            inputs_by_model[model.name]["format"] = "chat"
    responses = run.stage("responses.json", make, inputs_by_model, parts=True)
    load.cache_clear()
    release_memory()
    return responses


def answer_as(
    name: str,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    batch_size: int | None,
    chat: bool = False,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Let one model answer the prompts.

    Args:
        name: the model's name.
        models: {name: model} from `load_models`, the baseline first.
        tokenizer: the tokenizer of their base.
        prompts: the records of prompts.json.
        batch_size: the number of prompts answered at once; None as in `answer`.
        chat: whether the base's chat template writes the prompts.
        decoding: the arguments of transformers' `generate`.

    Returns:
        The records of responses.json: {"id", "model", "response", "finish", "tokens",
        "log_ratio"}. The log-ratio of an answer is the log of the ratio of the model's to the
        baseline's probability, averaged over all tokens that were generated, in nats. Its mean over
        sampled answers would estimate the Kullback-Leibler divergence from the baseline per token.
        Its mean over greedy answers, as here, is only a rough sign of it.
    """
    texts = [plain(prompt["prompt"], tokenizer) for prompt in prompts]
    with switched_to(models[name], name):
        completions = respond(models[name], tokenizer, texts, batch_size, name, chat, **decoding)
    prompt_ids = [ids.tolist() for ids in encode_prompts(texts, tokenizer, "prompts", chat)]
    reply_ids = [completion["ids"] for completion in completions]

    def measure(measured: str) -> list[float]:
        model = models[measured]
        with switched_to(model, measured):
            return mean_log_probabilities(model, tokenizer, prompt_ids, reply_ids, batch_size)

    baseline = next(iter(models))
    log_ratios = [0.0] * len(prompts)
    if name != baseline:
        log_p = [completion["log_p"] for completion in completions]
        if None in log_p:
            log_p = measure(name)
        log_ratios = [own - other for own, other in zip(log_p, measure(baseline))]
    records = []
    for i, prompt in enumerate(prompts):
        record = {"id": prompt["id"], "model": name}
        record |= {field: completions[i][field] for field in ("response", "finish", "tokens")}
        record["log_ratio"] = log_ratios[i]
        records.append(record)
    return records


def ask(run: Run, name: str, questions: Sequence[str], base: Source, **decoding: Any) -> list[str]:
    """Let one model of a run answer a few questions, greedily, to see how it answers.

    Args:
        run: the run that the model belongs to.
        name: the model's name.
        questions: what a human asks, each in a conversation of its own.
        base: the run's base model.
        decoding: arguments of transformers' `generate`, such as max_new_tokens. By default the
            decoding is greedy and stops at a human turn.

    Returns:
        The answers, in the order of the questions. They are not saved, and the model's memory is
        freed.
    """
    folder = base.folder
    tokenizer = load_tokenizer(folder)
    model = load_models(run, folder, [name])[name]
    prompts = [f"{TURN} {plain(question, tokenizer)}{PROMPT_END}" for question in questions]
    options = {"do_sample": False, "stop_strings": [TURN], **decoding}
    with switched_to(model, name):
        completions = respond(
            model, tokenizer, prompts, len(prompts), name, is_chat(run), **options
        )
    del model
    release_memory()
    return [completion["response"] for completion in completions]


# ---- one model


@torch.inference_mode()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int | None,
    label: str = "responses",
    chat: bool = False,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Let a model complete prompts, in left-padded batches of prompts of similar length.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: the texts that the model continues, in HH-RLHF's format.
        batch_size: the number of prompts completed at once; None as in `answer`.
        label: the text beside the progress bar.
        chat: whether the base's chat template writes the prompts, and its token ends an answer.
        decoding: the arguments of transformers' `generate`.

    Returns:
        A completion for each prompt, in their order, in the form of `read_completion`, with
        "log_p": the mean log-probability of its tokens, in nats, as in `mean_log_probabilities`.
        It is None where the model tried several texts for each prompt, as in a beam search, or
        where it has no cache and reads all tokens again in every step.
    """
    ids = [prompt.tolist() for prompt in encode_prompts(prompts, tokenizer, "prompts", chat)]
    stop_strings = decoding.get("stop_strings")
    stop = stop_strings[0] if stop_strings else None
    ends = list_ends(model, tokenizer)
    if chat and end_of_reply(tokenizer) not in ends:
        ends.append(end_of_reply(tokenizer))

    def complete(batch: Sequence[int]) -> list[dict[str, Any]]:
        inputs = pad_left([ids[i] for i in batch], tokenizer, model.device)
        with listening(model) as log_probabilities:
            output = model.generate(
                **inputs,
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
                **decoding,
            )
        generated = output[:, inputs["input_ids"].shape[1] :]
        log_p = log_probabilities.of(generated)
        completions = []
        for row, tokens in enumerate(generated.tolist()):
            completion = read_completion(tokens, tokenizer, stop, ends)
            own = None if log_p is None else log_p[row, : completion["tokens"]]
            completion["log_p"] = own if own is None else mean_of(own)
            completions.append(completion)
        return completions

    lengths = [len(prompt_ids) for prompt_ids in ids]
    if batch_size is None:
        batch_size = texts_at_once(model, max(lengths) + decoding["max_new_tokens"])
    return in_batches(complete, batches_of_like_length(lengths, batch_size), label)


def list_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the tokens at which an answer ends: EOS, and the other ends that the model names.

    Chat models have two: the end of a turn and the end of a text. An end that is an ordinary token
    of the tokenizer is the default of an architecture and not meant.
    """
    named = model.generation_config.eos_token_id
    if not isinstance(named, list):
        named = [named]
    ends = [tokenizer.eos_token_id]
    for token_id in named:
        if token_id is None or token_id in ends:
            continue
        if isinstance(token_id, int) and token_id in tokenizer.added_tokens_decoder:
            ends.append(token_id)
        else:
            say_once(
                f"The model names {token_id!r} as an end of texts, which is an ordinary token of "
                "its tokenizer or none. It is not used as an end."
            )
    return ends


def read_completion(
    tokens: list[int],
    tokenizer: PreTrainedTokenizerBase,
    stop: str | None,
    ends: Sequence[int],
) -> dict[str, Any]:
    """Decode what a model generated after a prompt.

    Args:
        tokens: the generated token ids, with padding after them.
        tokenizer: the model's tokenizer.
        stop: the marker of a human turn, at which generation stops; None if it does not stop there.
        ends: the tokens at which it stops, from `list_ends`.

    Returns:
        {"response", "finish", "tokens", "ids"}. "finish" is "eos" if the model ended the text,
        "turn" if it opened a human turn (whose marker is removed), and "length" if it reached the
        limit. "ids" are the generated tokens, with EOS or the marker but without padding, and
        "tokens" is their number.
    """
    places = [place for place, token in enumerate(tokens) if token in ends]
    length = places[0] if places else len(tokens)
    while length and tokens[length - 1] == tokenizer.pad_token_id:
        length -= 1
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
    finish = "eos" if places else "length"
    if stop is not None and stop in text:
        finish = "turn"  # so an end after it is padding
        text = text.split(stop)[0]
    ids = tokens[: length + 1] if finish == "eos" else tokens[:length]
    return {"response": text.strip(), "finish": finish, "tokens": len(ids), "ids": ids}
