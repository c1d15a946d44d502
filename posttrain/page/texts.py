"""Texts of models and people, made fit to be shown, and what the page's script shows of them."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.behaviour import marks
from posttrain.files import sha256_of
from posttrain.metrics import HUMAN_REPLIES, KINDS, REFERENCES
from posttrain.page.reading import RunFiles
from posttrain.style import style_of

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
# What would not be seen, or would change how the text around it is seen: controls, turns of the
# direction of writing, separators of lines and paragraphs, halves of characters.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
    "\ud800-\udfff]"
)


def make_visible(data: Any) -> Any:
    """Name in a text, or in all texts of JSON data, the characters that would not be seen.

    Control characters get their picture, halves of characters the replacement character, all
    others their code point.
    """
    if isinstance(data, Mapping):
        return {make_visible(name): make_visible(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [make_visible(value) for value in data]
    if isinstance(data, str):
        return UNSEEN.sub(_name_character, data.replace("\r\n", "\n"))
    return data


def _name_character(match: re.Match) -> str:
    """Give what stands for a character that would not be seen."""
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def split_turns(prompt: str) -> list[list[str]]:
    """Split a prompt into its turns.

    Returns:
        [[speaker, text]], the speaker empty for what stands before the first turn; without the
        last turn, which is due from the model, where it is still empty.
    """
    before, *parts = SPEAKER.split(prompt)
    turns = []
    if before.strip():
        turns.append(["", before.strip()])
    for speaker, text in zip(parts[::2], parts[1::2]):
        turns.append([speaker, text.strip()])
    if turns and turns[-1] == ["Assistant", ""]:
        turns.pop()
    return turns


def count_speakers(answers: Iterable[str]) -> int:
    """Count the answers that begin with the name of the speaker, “Assistant:”."""
    return sum(answer.lstrip().startswith("Assistant:") for answer in answers)


def collect_answers(files: RunFiles) -> dict[str, Any]:
    """Collect what the page's script shows.

    Returns:
        {"run": its name; "models", "colours", "markers": one for each model that has answered;
        "thresholds": {kind: reward or None}; "prompts": [{"id", "kind", "turns", "answers",
        "references"}], the answers in the order of the models; "sha256": {name of the file} of
        prompts and answers, as far as they are there}, all texts made visible.
    """
    prompts = {prompt["id"]: prompt for prompt in files.prompts}
    answers = {}
    if files.answers is not None:
        for row in files.answers.to_dict("records"):
            answers[row["id"], row["model"]] = row
    ids = list(dict.fromkeys([*prompts, *[identifier for identifier, _ in answers]]))
    ids.sort(key=_place_of_kind)
    entries = []
    for identifier in ids:
        prompt = prompts.get(identifier, {})
        shown = []
        for model in files.answering:
            label = files.labels.get((identifier, model))
            shown.append(_show_answer(answers.get((identifier, model), {}), label))
        entry = {
            "id": identifier,
            "kind": identifier.split("-")[0],
            "turns": split_turns(prompt.get("prompt", "")),
            "answers": shown,
            "references": _show_references(prompt, identifier, answers),
        }
        entries.append(entry)
    styles = style_of(files.models)
    thresholds = dict.fromkeys(KINDS)
    if files.metrics:
        chosen = files.metrics["thresholds"]
        thresholds = {"harmful": chosen["harmless"], "helpful": chosen["helpful"]}
    data = {
        "run": files.folder.name,
        "models": files.answering,
        "colours": [styles[name].color for name in files.answering],
        "markers": [styles[name].marker for name in files.answering],
        "thresholds": thresholds,
        "prompts": entries,
        "sha256": hash_texts(files.folder),
    }
    return make_visible(data)


def hash_texts(folder: Path) -> dict[str, str]:
    """Compute the sha256 of a run's prompts and answers, by which votes know their run.

    Args:
        folder: the run's.

    Returns:
        {name of the file: sha256}, without files that are not there.
    """
    paths = [folder / name for name in ("prompts.json", "responses.json")]
    return {path.name: sha256_of(path) for path in paths if path.exists()}


def _place_of_kind(identifier: str) -> int:
    """Put helpful prompts before harmful ones, which are covered; within a kind the order stays."""
    return -KINDS.index(identifier.split("-")[0])


def _show_answer(row: Mapping[str, Any], label: str | None) -> dict[str, Any]:
    """Bring a row of the table of answers into the form in which the script takes it."""
    tokens = _number_or_none(row.get("tokens"))
    return {
        "text": row.get("response"),
        "finish": row.get("finish"),
        "tokens": None if tokens is None else int(tokens),
        "marks": marks(row) if row else [],
        "reward": _number_or_none(row.get("reward")),
        "label": label,
    }


def _show_references(
    prompt: Mapping[str, Any], identifier: str, answers: Mapping[tuple[str, str], Any]
) -> list[dict[str, Any]]:
    """List the reference answers to a prompt that have a reward or, from humans, a text."""
    references = []
    for name in REFERENCES:
        text = prompt.get(HUMAN_REPLIES.get(name))
        reward = _number_or_none(answers.get((identifier, name), {}).get("reward"))
        if text or reward is not None:
            references.append({"name": name, "text": text, "reward": reward})
    return references


def _number_or_none(value: float | None) -> float | None:
    """Turn NaN, which stands for what is not known, into None."""
    if value is None or math.isnan(value):
        return None
    return value
