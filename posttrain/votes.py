"""A person's votes on pairs of answers: checked, counted, and compared with the judge.

The page of a run asks for them without showing names or rewards, and saves them as a file (see
docs/report.md). A vote is for the first or the second of two answers to a prompt, or a tie.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from posttrain.files import read_json, sha256_of, write
from posttrain.metrics import RAW, models_of, table
from posttrain.page.texts import hash_texts, make_visible
from posttrain.preferences import WINNERS, measure_votes

RESULT = "votes.json"

Record = dict[str, Any]


class Vote(BaseModel):
    """A vote: which of the answers of two models to a prompt a person has found better."""

    id: str
    first: str
    second: str
    winner: Literal[WINNERS]


class VotesFile(BaseModel):
    """A file of votes, as the page of a run saves it."""

    run: str
    sha256: dict[str, str]
    votes: list[Any] = Field(min_length=1)


# ---- reading and checking


def read_answers(folder: Path) -> pd.DataFrame:
    """Read the answers of a run and, if the judge has scored all of them, their rewards.

    Args:
        folder: the run's.

    Returns:
        The table of `metrics.table`, without references.

    Raises:
        FileNotFoundError: the run, its prompts or its answers are not there.
        ValueError: a file, which is named, is damaged.
    """
    for name in RAW[:2]:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"RUN: {folder / name} is not there. Votes are given on the answers of a run; "
                "eval.ipynb makes them."
            )
    prompts, responses, scores = [
        read_json(folder / name, list[dict[str, Any]]) if (folder / name).exists() else []
        for name in RAW
    ]
    answering = {response.get("model") for response in responses}
    scores = [score for score in scores if score.get("model") in answering]  # no references
    if len({score["model"] for score in scores}) < len(answering):
        scores = []  # the judge has not been asked about every model yet
    return table(prompts, responses, scores)


def read_votes(path: Path, folder: Path, answers: pd.DataFrame) -> list[Vote]:
    """Read a file of votes on a run, with the names as they are in the run.

    Args:
        path: the file.
        folder: the run's.
        answers: of `read_answers`.

    Raises:
        ValueError: the file is none of votes, is about another run, or has a vote that cannot be
            counted. The message says which.
    """
    data = _read_file(path)
    _require_run(path, data, folder)
    texts = {}
    for row in answers.to_dict("records"):
        texts[row["id"], row["model"]] = row["response"]
    ids = {make_visible(identifier): identifier for identifier, _ in texts}
    models = {make_visible(model): model for model in models_of(answers)}
    votes, counted = [], set()
    for number, record in enumerate(data.votes, start=1):
        place = f"{path}: vote {number}"
        vote = _read_vote(record, place)
        for known, name, noun in (
            (ids, vote.id, "prompt"),
            (models, vote.first, "model"),
            (models, vote.second, "model"),
        ):
            if name not in known:
                raise ValueError(f"{place} names the {noun} {name!r}, which the run does not have.")
        vote = Vote(
            id=ids[vote.id],
            first=models[vote.first],
            second=models[vote.second],
            winner=vote.winner,
        )
        _require_countable(vote, place, texts)
        pair = (vote.id, *sorted((vote.first, vote.second)))
        if pair in counted:
            raise ValueError(
                f"{place} is the second one on {vote.first} and {vote.second} at {vote.id}. A pair "
                "of answers can have only one vote. Remove one of the two."
            )
        counted.add(pair)
        votes.append(vote)
    return votes


def _read_file(path: Path) -> VotesFile:
    """Read a file of votes without looking at the single votes."""
    remedy = "Save the votes again on the page of the run."
    if not path.is_file():
        raise FileNotFoundError(f"VOTES: there is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise ValueError(f"{path} is empty. {remedy}")
        data = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {remedy}") from None
    try:
        return VotesFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("votes",) and data.get("votes") == []:
            raise ValueError(f"{path} has no vote. {remedy}") from None
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise ValueError(
            f"{path} is not a file of votes ({field}: {first['msg']}). {remedy}"
        ) from None


def _require_run(path: Path, data: VotesFile, folder: Path) -> None:
    """Refuse votes on another run, or on prompts or answers that the run no longer has."""
    run = make_visible(folder.name)
    if data.run != run:
        raise ValueError(
            f"{path} has votes on the run {data.run!r}, not on {run!r}. Name that run as RUN. If "
            'its folder was renamed, correct the name after "run" in the file.'
        )
    for name, known in hash_texts(folder).items():
        if data.sha256.get(name) != known:
            raise ValueError(
                f"{path} has votes on another {name} than {folder / name}: its sha256 is "
                f"{data.sha256.get(name, 'not given')} there, and {known} here. Votes count only "
                "for the prompts and answers that the person has read."
            )


def _read_vote(record: Any, place: str) -> Vote:
    """Read a single vote."""
    if isinstance(record, dict) and record.get("winner") is None:
        raise ValueError(f'{place} has no winner. Choose "first", "second" or "tie", or remove it.')
    try:
        return Vote.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the vote"
        raise ValueError(f"{place} cannot be read ({field}: {first['msg']}).") from None


def _require_countable(vote: Vote, place: str, texts: Mapping[tuple[str, str], str]) -> None:
    """Refuse a vote on a model and itself, or on one of two equal answers."""
    if vote.first == vote.second:
        raise ValueError(f"{place} compares {vote.first} with itself.")
    is_same = texts[vote.id, vote.first] == texts[vote.id, vote.second]
    if is_same and vote.winner != "tie":
        raise ValueError(
            f"{place} prefers one of two equal answers, of {vote.first} and {vote.second} to "
            f"{vote.id}. That can only be a tie."
        )


# ---- arranging


def tabulate_votes(votes: Sequence[Vote], answers: pd.DataFrame) -> pd.DataFrame:
    """Arrange votes as a table, a row a vote.

    Args:
        votes: of `read_votes`.
        answers: of `read_answers`.

    Returns:
        A table with the columns id, kind, first, second, winner, is_same (whether the two answers
        are equal) and judged, the winner by reward; None where there are no rewards.
    """
    known = answers.set_index(["id", "model"])
    rows = []
    for vote in votes:
        first, second = known.loc[(vote.id, vote.first)], known.loc[(vote.id, vote.second)]
        rows.append(
            {
                **vote.model_dump(),
                "kind": first["kind"],
                "is_same": first["response"] == second["response"],
                "judged": _prefer(first["reward"], second["reward"]),
            }
        )
    return pd.DataFrame(rows)


def _prefer(first: float, second: float) -> str | None:
    """Tell which of two answers the judge prefers; None if one has no reward."""
    if np.isnan(first) or np.isnan(second):
        return None
    return WINNERS[1 + int(np.sign(second - first))]


# ---- the command


def write_votes(path: Path, folder: Path) -> Record:
    """Measure a file of votes on a run, and write the result into the run's folder.

    Args:
        path: the file.
        folder: the run's.

    Returns:
        What was written into votes.json.

    Raises:
        FileNotFoundError: the file or the run is not there.
        ValueError: something of the file cannot be counted. Then nothing is written.
    """
    target = folder / RESULT
    if path.resolve() == target.resolve():
        raise ValueError(
            f"VOTES: {path} is where the result is written. Give the file of votes another name, "
            "or move it elsewhere."
        )
    answers = read_answers(folder)
    votes = read_votes(path, folder, answers)
    result = {
        "run": folder.name,
        "file": {"name": path.name, "sha256": sha256_of(path)},
        "sha256": {name: sha256_of(folder / name) for name in RAW if (folder / name).exists()},
        **measure_votes(tabulate_votes(votes, answers), models_of(answers)),
    }
    write(target, result)
    return result


def describe_votes(result: Record) -> list[str]:
    """Say what votes show, in lines.

    Args:
        result: of `write_votes`.
    """
    lines = [
        f"{result['votes']} votes on the run {result['run']}, of which {result['ties']} are ties "
        f"({result['same']} of two equal answers). Intervals are for 95%.",
        "",
    ]
    for record in result["win_rates"]:
        rate = _write_estimate(record, "win_rate", 0, "%")
        lines.append(
            f"{record['kind']} prompts: {record['second']} over {record['first']} {rate} "
            f"(n = {record['n']}, ties count half)"
        )
    lines.append("")
    for record in result["judge"]:
        lines.append(_describe_judge(record))
    if result["same"] == result["votes"]:
        lines.append(
            "All votes are ties of equal answers. A judge gives these the same reward, so nothing "
            "can be said of its agreement with the person."
        )
    elif not result["judge"]:
        lines.append("The judge has not scored all answers, so its agreement is not known.")
    if "first_chosen" in result:
        share = _write_estimate(result, "first_chosen", 0, "%")
        lines.append(f"The answer that stood first was chosen in {share} of the votes without tie.")
    if result["judge"]:
        lines.append(
            "Votes on the same prompt are not independent, so the intervals of agreement and kappa "
            "are those over prompts."
        )
    return lines


def _describe_judge(record: Record) -> str:
    """Say how often the judge agrees with the person."""
    if record["kind"] == "both":
        line = "On both kinds of prompts together, "
    else:
        line = f"On {record['kind']} prompts, "
    if "agreement" in record:
        share = _write_estimate(record, "agreement", 0, "%")
        line += f"the judge prefers the same answer in {share} of {record['decided']} votes"
    else:
        line += "all votes are ties"
    line += f" ({record['prompts']} prompts)"
    if record["kappa"] is not None:
        line += f"; with the ties, Cohen's kappa is {_write_estimate(record, 'kappa', 2)}"
    return line + "."


def _write_estimate(record: Record, name: str, digits: int, unit: str = "") -> str:
    """Write an estimate with its interval, or that there is none."""
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    ends = "no interval" if low is None else f"{low:.{digits}f}, {high:.{digits}f}"
    return f"{record[name]:.{digits}f}{unit} [{ends}]".replace("-", "−")
