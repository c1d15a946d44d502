"""Let a judge, which is a reward model, rate many answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils.memory import release_memory
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from posttrain import processes
from posttrain.chat_judges import encode_whole
from posttrain.data import PROMPT_END
from posttrain.files import read_json
from posttrain.judge_checks import count_positions, say_how_judge_reads
from posttrain.loading import has_chat_template
from posttrain.metrics import HUMAN_REPLIES, KINDS, REFERENCES, kind_of
from posttrain.models import load_judge
from posttrain.record import environment, source_of
from posttrain.rewards import rate_texts
from posttrain.sources import PARAMETERS
from posttrain.tokenizer_checks import JUDGED

if TYPE_CHECKING:
    from posttrain.run import Run
    from posttrain.sources import Source


FILES = {"reward_model": "scores.json", "second_judge": "second_scores.json"}  # by a judge's role
REFUSAL = "I'm sorry, but I can't help with that."
NOT_UNDERSTOOD = "I'm sorry, I don't understand."
JudgeInput = Callable[[PreTrainedTokenizerBase, str, str], BatchEncoding]


def choose_input(
    run: Run, judge: Source, of_pair: JudgeInput, of_conversation: JudgeInput
) -> JudgeInput:
    """Choose how a judge reads: conversations if it has a chat template, otherwise pairs of texts.

    Where all answers have been judged, or the judge cannot be had any more, the run's record says
    how they were read.

    Args:
        run: the run whose answers are judged.
        judge: the reward model.
        of_pair: a function `(tokenizer, question, answer)` that encodes two texts.
        of_conversation: such a function that encodes a conversation.

    Returns:
        One of the two functions.
    """
    conversation = source_of(of_conversation)
    recorded = False
    for name, artifact in run.record.artifacts.items():
        if name.startswith(f"{FILES[judge.role]}/"):
            recorded |= artifact.inputs.get("judge_input") == conversation
    try:
        by_template = recorded if _is_judged(run, judge) else has_chat_template(judge.folder)
    except ValueError:  # it cannot be had, which `score` says if it is needed
        by_template = recorded
    return of_conversation if by_template else of_pair


def _is_judged(run: Run, judge: Source) -> bool:
    """Tell whether the answers of all models of a run have been judged."""
    entries, file = run.record.artifacts, FILES[judge.role]
    judged = [f"{file}/{model.name}" in entries for model in run.models]
    return all(judged) and run.is_there(file)


def score(
    run: Run,
    prompts: Sequence[dict[str, Any]],
    responses: Sequence[dict[str, Any]],
    judge: Source,
    judge_input: JudgeInput,
    tokens_at_once: int,
    **inputs: Any,
) -> list[dict[str, Any]]:
    """Let a judge rate the models' answers and the reference answers, and save its rewards.

    Those of the first judge are saved as scores.json and those of a second one as
    second_scores.json. The judge is loaded only if ratings are missing. It reads all missing
    answers together, and an interruption costs the rewards of some hundred answers at most. If only
    ratings of fixed answers are missing, as in a run that was judged before there were as many, and
    the judge cannot be had, the run is left as is.

    Args:
        run: the run that the answers belong to.
        prompts: the records of prompts.json.
        responses: the records of responses.json.
        judge: the reward model, whose role says whether it is the first or the second one.
        judge_input: a function `judge_input(tokenizer, question, answer)` that encodes the text
            that the judge reads.
        tokens_at_once: limit of a batch in tokens, which does not change the rewards.
        inputs: values that `judge_input` uses, such as judge_length, for the record.

    Returns:
        The records of the file, {"id", "model", "reward"}: the models in the order of `responses`,
        then the references.

    Raises:
        ValueError: if a reward is not finite.
    """
    answers = _answers_by_model(prompts, responses)
    for name in processes.on_main(_list_unavailable, run, judge, answers):
        del answers[name]

    file = FILES[judge.role]
    kept = run.path(f"{file}l")  # rewards, until all of them are in the file
    rewards: dict[str, list[float]] = {}

    def make(name: str) -> list[dict[str, Any]]:
        if not rewards:  # one judge reads all missing answers, sorted together
            missing = processes.on_main(_list_missing, run, file, answers)
            texts = {}
            for missing_name in missing:
                asked = _list_answered(prompts, answers[missing_name])
                texts[missing_name] = [
                    (read_question(prompt["prompt"]), answer) for prompt, answer in asked
                ]
            rewards.update(_rate(judge, judge_input, texts, tokens_at_once, kept))
        asked = [prompt for prompt, _ in _list_answered(prompts, answers[name])]
        return score_records(rewards[name], name, asked)

    artifacts = run.record.artifacts
    sha256 = {name: artifact.sha256 for name, artifact in artifacts.items()}
    inputs_by_part = {}
    for name in answers:
        inputs_by_part[name] = {
            "prompts.json": sha256.get("prompts.json"),
            "responses.json": sha256.get(f"responses.json/{name}"),  # None for a reference
            judge.role: judge.identity,
            "judge_input": source_of(judge_input),
            **inputs,
        }
    scores = run.stage(file, make, inputs_by_part, parts=True)
    if processes.is_main() and kept.exists():
        kept.unlink()
    return scores


def _rate(
    judge: Source,
    judge_input: JudgeInput,
    texts: Mapping[str, Sequence[tuple[str, str]]],
    tokens_at_once: int,
    kept: Path,
) -> dict[str, list[float]]:
    """Load the judge, show how it reads, let it rate all (question, answer) pairs, and free it."""
    model, tokenizer = load_judge(judge.folder, PARAMETERS[judge.role])
    encoded = {}
    for name, pairs in texts.items():
        encoded[name] = encode_answers(model, tokenizer, judge_input, pairs, name)
    name, first_texts = next(iter(encoded.items()))
    read = tokenizer.decode(first_texts[0]["input_ids"])
    print(f"{judge.name} reads the first answer of {name} as\n{read}\n")
    together = list(chain.from_iterable(encoded.values()))
    # A judge may compute something else with other versions of the libraries.
    identity = [judge.identity, environment()["packages"]]
    rewards = iter(rate_texts(model, tokenizer, together, tokens_at_once, kept, identity))
    del model
    release_memory()
    return {name: list(islice(rewards, len(pairs))) for name, pairs in texts.items()}


def _list_missing(run: Run, file: str, names: Iterable[str]) -> list[str]:
    """List the models and references of which a file of rewards has no record."""
    records = read_json(run.path(file)) if run.is_there(file) else []
    judged = {record["model"] for record in records}
    return [name for name in names if name not in judged]


def _list_answered(
    prompts: Sequence[dict[str, Any]], answers: Sequence[str | None]
) -> list[tuple[dict[str, Any], str]]:
    """List the prompts that have an answer, each with its answer."""
    answered = []
    for prompt, answer in zip(prompts, answers):
        if answer is not None:  # which is where no human replied to the prompt
            answered.append((prompt, answer))
    return answered


def _list_unavailable(run: Run, judge: Source, answers: Mapping[str, Any]) -> list[str]:
    """List references without ratings in a judged run whose judge cannot be had any more."""
    artifacts, file = run.record.artifacts, FILES[judge.role]
    judged = [name for name in answers if f"{file}/{name}" in artifacts]
    missing = [name for name in answers if name not in judged]
    is_judged = run.path(file).exists() and all(name in REFERENCES for name in missing)
    if not missing or not is_judged or "imported" in artifacts[f"{file}/{judged[0]}"].inputs:
        return []
    try:
        judge.folder  # noqa: B018  fetches the judge
    except ValueError as error:
        print(f"The run is measured without the reference answers {', '.join(missing)}: {error}")
        return missing
    return []


def read_question(prompt: str) -> str:
    """Read from a prompt what a judge reads as the question: all but the final `Assistant:`."""
    return prompt.removesuffix(PROMPT_END).strip()


def encode_answers(
    judge: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judge_input: JudgeInput,
    texts: Sequence[tuple[str, str]],
    name: str,
) -> list[BatchEncoding]:
    """Encode what a judge reads, and print how many answers are too long for its positions.

    Args:
        judge: a reward model.
        tokenizer: its tokenizer.
        judge_input: a function as in `score`.
        texts: (question, answer) pairs. Of an answer that is too long, the beginning is encoded.
        name: the model or reference that gave the answers, for the printed line.

    Returns:
        The encoded pairs.
    """
    positions = count_positions(judge)
    encoded = []
    shortened = 0
    for question, answer in texts:
        text = judge_input(tokenizer, question, answer)
        if positions is not None and len(text["input_ids"]) > positions:
            text = _encode_beginning(judge_input, tokenizer, question, answer, positions)
            shortened += 1
        encoded.append(text)
    if shortened:
        print(
            f"{name}: the judge has positions for {positions} tokens, so it reads only the "
            f"beginning of {shortened} answers."
        )
    return encoded


def _encode_beginning(
    judge_input: JudgeInput,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str,
    positions: int,
) -> BatchEncoding:
    """Encode as much of an answer from its beginning as the judge has positions for."""
    length = len(answer)
    text = judge_input(tokenizer, question, answer)
    while len(text["input_ids"]) > positions and length > 0:
        length = min(length - 1, length * positions // len(text["input_ids"]))
        text = judge_input(tokenizer, question, answer[:length])
    return text


def require_judge(run: Run, judge: Source, judge_length: int) -> None:
    """Try a judge out before any answer is generated, unless all answers have been judged.

    Args:
        run: the run whose answers are to be judged.
        judge: the reward model.
        judge_length: the largest number of tokens of question and answer.

    Raises:
        ValueError: if it cannot be loaded, is not a working judge as `models.load_judge` says, or
            has fewer positions than `judge_length`, or has a chat template that fills this length.
    """
    if _is_judged(run, judge):
        return
    try_judge(judge.folder, judge_length, PARAMETERS[judge.role])


def try_judge(folder: Path, judge_length: int, parameter: str = "REWARD_MODEL") -> None:
    """Load a judge, check that it works, and free its memory, as `require_judge` describes."""
    model, tokenizer = load_judge(folder, parameter)
    positions = count_positions(model)
    if positions is not None and judge_length > positions:
        raise ValueError(
            f"judge_length = {judge_length}, but the judge in {folder} has positions for only "
            f"{positions} tokens. Write SETTINGS = {{'judge_length': {positions}}}, or choose "
            f"another {parameter}."
        )
    if tokenizer.chat_template is not None:
        shortest = min(len(encode_whole(tokenizer, *texts)["input_ids"]) for texts in JUDGED)
        if shortest > judge_length:
            raise ValueError(
                f"judge_length = {judge_length}, but with its chat template the judge in {folder} "
                f"reads a short question and answer as {shortest} tokens, so every question would "
                f"be cut. Write SETTINGS = {{'judge_length': {4 * shortest}}}."
            )
    say_how_judge_reads(folder, model, tokenizer)
    del model
    release_memory()


def _answers_by_model(
    prompts: Sequence[Mapping[str, Any]], responses: Sequence[Mapping[str, Any]]
) -> dict[str, list[str | None]]:
    """Collect the answers of every model and reference, in the order of the prompts."""
    texts: dict[str, dict[str, str]] = {}
    for response in responses:
        texts.setdefault(response["model"], {})[response["id"]] = response["response"]
    answers: dict[str, list[str | None]] = {}
    for name, text_by_id in texts.items():
        answers[name] = [text_by_id[prompt["id"]] for prompt in prompts]
    return answers | reference_answers(prompts)


def reference_answers(prompts: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Collect answers that no model gave, which serve to check the judge itself.

    Args:
        prompts: the records of prompts.json. If they were imported, human replies may be missing.

    Returns:
        {reference: its answers to the prompts}. The references are the two human replies, an empty
        answer, one fixed refusal, and one fixed answer that professes not to understand. The human
        replies are None for a kind of prompts in which one of them is missing; where they are
        missing for both kinds, the human references are left out.
    """
    replied = []  # kinds of prompts of which each has both human replies
    for kind in KINDS:
        of_kind = [prompt for prompt in prompts if kind_of(prompt["id"]) == kind]
        if of_kind and all("chosen" in prompt and "rejected" in prompt for prompt in of_kind):
            replied.append(kind)
    answers: dict[str, list[str | None]] = {}
    if replied:
        for name, field in HUMAN_REPLIES.items():
            answers[name] = [
                prompt[field] if kind_of(prompt["id"]) in replied else None for prompt in prompts
            ]
    answers["Empty"] = [""] * len(prompts)
    answers["Refusal"] = [REFUSAL] * len(prompts)
    answers["Not understood"] = [NOT_UNDERSTOOD] * len(prompts)
    return answers


def score_records(
    rewards: Sequence[float], name: str, prompts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Turn rewards into records of scores.json.

    Args:
        rewards: a reward for each prompt.
        name: the model or reference whose answers were rated.
        prompts: the records of prompts.json.

    Returns:
        [{"id", "model", "reward"}].

    Raises:
        ValueError: if a reward is not finite.
    """
    records = []
    for prompt, reward in zip(prompts, rewards):
        if not math.isfinite(reward):
            raise ValueError(
                f"The judge gives {name}'s answer to {prompt['id']} the reward {reward}, which is "
                f"not a finite number. No reward of {name} was saved. Check that the judge's "
                "checkpoint is complete."
            )
        records.append({"id": prompt["id"], "model": name, "reward": reward})
    return records
