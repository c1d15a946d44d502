"""Responses of a model to many prompts, and how likely they are under it and under the base."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from pydantic import BaseModel, TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import MODELS
from posttrain.models import in_batches, plain, switched_to


class Prompt(BaseModel):
    """What a record of prompts.json must have; `chosen` and `rejected` may be missing."""

    id: str
    kind: Literal["harmful", "helpful"]
    prompt: str


class Response(BaseModel):
    """What a record of responses.json must have; `finish`, `tokens` and `log_ratio` may be missing."""

    id: str
    model: Literal[MODELS]
    response: str


def require_fitting(prompts: Sequence[dict[str, Any]], responses: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where records from elsewhere are none, or a model has not answered each prompt just once."""
    for name, kind, records in (("prompts.json", Prompt, prompts), ("responses.json", Response, responses)):
        try:
            TypeAdapter(list[kind]).validate_python(records)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ValueError(f"{name}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}. See docs/files.md for what "
                             "it must hold.") from None
    for prompt in prompts:
        if not prompt["id"].startswith(f"{prompt['kind']}-"):
            raise ValueError(f"prompts.json: the id {prompt['id']!r} is not that of a {prompt['kind']} prompt, such as "
                             f"{prompt['kind']}-00.")
    if responses and "Base" not in {response["model"] for response in responses}:
        raise ValueError("responses.json has no responses of the model Base, which the others are compared with.")
    asked = Counter(prompt["id"] for prompt in prompts)
    for model in dict.fromkeys(response["model"] for response in responses):
        answered = Counter(response["id"] for response in responses if response["model"] == model)
        if unlike := sorted((asked - answered) + (answered - asked)):
            raise ValueError(f"responses.json: {model} has not one response to each prompt of prompts.json, see "
                             f"{unlike[0]}.")


def read_completion(tokens: list[int], tokenizer: PreTrainedTokenizerBase, stop: str | None) -> dict[str, Any]:
    """Return {"response", "finish", "tokens"} of the token ids generated after a prompt.

    finish: "eos" the model ended, "turn" it opened a human turn (`stop`, cut off here), "length" it ran into the limit.
    tokens: how many it generated, the end or the marker of the turn counted in, padding not.
    """
    ended = tokenizer.eos_token_id in tokens
    tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1] if ended else tokens
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        tokens = [token for token in tokens if token != tokenizer.pad_token_id]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    turned = stop is not None and stop in text
    if turned and ended:  # the model was stopped at the turn: what follows is padding
        tokens = tokens[:-1]
    return {"response": (text.split(stop)[0] if turned else text).strip(),
            "finish": "turn" if turned else "eos" if ended else "length", "tokens": len(tokens)}


def batches_of_like_length(texts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return lists of at most `size` indices, those of short texts first."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.inference_mode()
def respond(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int,
            label: str = "responses", **decoding: Any) -> list[dict[str, Any]]:
    """Return the completion of every prompt, as `read_completion` gives it, in the order of the prompts.

    Left-padded batches of prompts of like length; `decoding` is what `generate` is told.
    """
    ids = tokenizer(list(prompts))["input_ids"]

    def complete(batch: Sequence[int]) -> list[dict[str, Any]]:
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
        output = model.generate(**inputs.to(model.device), tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id,
                                **decoding)
        stop = (decoding.get("stop_strings") or [None])[0]
        return [read_completion(new, tokenizer, stop) for new in output[:, inputs["input_ids"].shape[1] :].tolist()]

    return in_batches(complete, batches_of_like_length(ids, batch_size), label)


@torch.inference_mode()
def mean_log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str],
                           responses: Sequence[str], batch_size: int) -> list[float]:
    """Return the mean log-probability (nats) of every response's tokens after its prompt; 0 of an empty response."""
    texts = tokenizer([prompt + response for prompt, response in zip(prompts, responses)])["input_ids"]
    own = model.get_base_model() if isinstance(model, PeftModel) else model
    takes_positions = "position_ids" in inspect.signature(own.forward).parameters
    counts = [len(ids) - len(before) for ids, before in zip(texts, tokenizer(list(prompts))["input_ids"])]

    def measure(batch: Sequence[int]) -> list[float]:
        inputs = tokenizer.pad({"input_ids": [texts[i] for i in batch]}, padding_side="left", return_tensors="pt")
        inputs, last = inputs.to(model.device), max(counts[i] for i in batch)
        if takes_positions:  # some models would count the padding on the left
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = model(**inputs, logits_to_keep=last + 1).logits[:, :-1]  # of the last tokens alone: memory
        tokens = inputs["input_ids"][:, inputs["input_ids"].shape[1] - last :]
        values = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return [row[last - counts[i] :].mean().item() if counts[i] else 0.0 for i, row in zip(batch, values)]

    return in_batches(measure, batches_of_like_length(texts, batch_size), "log-probabilities")


def answers(loaded: Mapping[str, PreTrainedModel], name: str, tokenizer: PreTrainedTokenizerBase,
            prompts: Sequence[dict[str, Any]], batch_size: int, **decoding: Any) -> list[dict[str, Any]]:
    """Return the records of responses.json of one model: {"id", "model", "response", "finish", "tokens", "log_ratio"}.

    log_ratio: the mean over a response's tokens of the log-probability ratio to Base, in nats. Over sampled responses
    its mean would estimate the Kullback-Leibler divergence from Base; over greedy ones it only hints at it.
    """
    texts = [plain(prompt["prompt"], tokenizer) for prompt in prompts]
    with switched_to(loaded[name], name):
        done = respond(loaded[name], tokenizer, texts, batch_size, name, **decoding)
    said = [plain(f" {one['response']}" * bool(one["response"]), tokenizer)
            + tokenizer.eos_token * (one["finish"] == "eos") for one in done]
    log_p = {}
    for other in {name, "Base"}:
        with switched_to(loaded[other], other):
            log_p[other] = mean_log_probabilities(loaded[other], tokenizer, texts, said, batch_size)
    return [{"id": prompt["id"], "model": name} | one | {"log_ratio": own - base}
            for prompt, one, own, base in zip(prompts, done, log_p[name], log_p["Base"])]
