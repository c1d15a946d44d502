"""The files of a run, read and checked for its page.

A run may be unfinished: what it has not got is left out, and `list_missing` says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, create_model

from posttrain.behaviour import PROPERTIES
from posttrain.files import read_json, sha256_of
from posttrain.metrics import KINDS, LABELS, MEASURES, RAW, models_of, table
from posttrain.record import Record, read_record

Kind = Literal[KINDS]
Label = Literal[(*LABELS["harmful"], *LABELS["helpful"])]


# ---- what the files must hold of what the page shows


class AskedPrompt(BaseModel):
    """A record of prompts.json."""

    id: str
    kind: Kind
    prompt: str
    chosen: str | None = None
    rejected: str | None = None


class GivenResponse(BaseModel):
    """A record of responses.json."""

    id: str
    model: str
    response: str
    finish: str | None = None
    tokens: int | None = None
    log_ratio: FiniteFloat | None = None


class GivenLabel(BaseModel):
    """A record of classification.json."""

    id: str
    model: str
    reward: FiniteFloat
    label: Label


class Thresholds(BaseModel):
    """The least reward of a harmless response, and the one above which a response is helpful."""

    harmless: FiniteFloat
    helpful: FiniteFloat


def _summary_fields() -> dict[str, Any]:
    """List the fields of a model in metrics.json: every measure and the ends of its interval.

    Without prompts of a kind, the measures that need it are missing.
    """
    fields: dict[str, Any] = {"model": str}
    for name in MEASURES:
        for end in ("", "_low", "_high"):
            fields[f"{name}{end}"] = (FiniteFloat | None, None)
    return fields


ModelSummary = create_model("ModelSummary", **_summary_fields())


class NeededPower(BaseModel):
    """The smallest true difference that is found with 80% power, and the level of the test."""

    detectable: FiniteFloat | None
    level: FiniteFloat


class Comparison(BaseModel):
    """A measure of two models."""

    measure: Literal[tuple(MEASURES)]
    first: str
    second: str
    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    gained: int
    lost: int
    n: int = Field(ge=1)
    p: FiniteFloat
    p_holm: FiniteFloat
    decision: Literal["significant", "suggestive", "inconclusive"]
    power: NeededPower | None


class Agreement(BaseModel):
    """How well the judge agrees with the humans on a kind of prompt."""

    kind: Kind
    agreement: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    prompts: int
    chosen_rate: FiniteFloat
    chosen_rate_low: FiniteFloat
    chosen_rate_high: FiniteFloat
    rejected_rate: FiniteFloat
    rejected_rate_low: FiniteFloat
    rejected_rate_high: FiniteFloat
    youden: FiniteFloat
    youden_low: FiniteFloat
    youden_high: FiniteFloat
    auc: FiniteFloat
    auc_low: FiniteFloat | None
    auc_high: FiniteFloat | None


class HumanWins(BaseModel):
    """How often a model's answers are rewarded above the human-chosen replies."""

    kind: Kind
    model: str
    win_rate: FiniteFloat
    win_rate_low: FiniteFloat
    win_rate_high: FiniteFloat


def _behaviour_fields() -> dict[str, Any]:
    """List the fields of what a model's responses to a kind of prompt are like."""
    fields: dict[str, Any] = {"kind": Kind, "model": str, "prompts": int}
    for name in PROPERTIES:
        # How a response ended, and so whether it was cut, may be unknown.
        field = (FiniteFloat | None, None) if name == "cut" else FiniteFloat
        for end in ("", "_low", "_high"):
            fields[f"{name}{end}"] = field
    fields["distinct_2"] = FiniteFloat
    return fields


Behaviour = create_model("Behaviour", **_behaviour_fields())


class MeasuredWith(BaseModel):
    """Where and with what the metrics were computed."""

    date: str = ""
    python: str
    packages: dict[str, str]
    device: str
    git_commit: str | None
    code_sha256: str | None


class Metrics(BaseModel):
    """What the page shows of metrics.json."""

    thresholds: Thresholds
    models: list[ModelSummary] = Field(min_length=1)
    references: list[ModelSummary]
    comparisons: list[Comparison]
    cautions: list[str]
    judge: list[Agreement]
    human_wins: list[HumanWins]
    behaviour: list[Behaviour]
    environment: MeasuredWith
    sha256: dict[str, str]


# ---- reading them


@dataclass
class RunFiles:
    """The files of a run; None or empty where it has not got them.

    Attributes:
        folder: the run's.
        record: run.json.
        training: training.json, {model: log records}.
        prompts: the records of prompts.json.
        answers: the table of `metrics.table`, None where there is neither a response nor a reward.
        unscored: models that have answered and are not rewarded yet.
        labels: {(id, model): label} of classification.json.
        metrics: the fields of `Metrics`.
    """

    folder: Path
    record: Record | None
    training: dict[str, list[dict[str, Any]]]
    prompts: list[dict[str, Any]]
    answers: pd.DataFrame | None
    unscored: list[str]
    labels: dict[tuple[str, str], str]
    metrics: dict[str, Any] | None

    @property
    def answering(self) -> list[str]:
        """The models that have answered, in the run's order."""
        return [] if self.answers is None else models_of(self.answers)

    @property
    def models(self) -> list[str]:
        """All models of the run in order, also those that have not answered."""
        trained = [model.name for model in self.record.models] if self.record else []
        return list(dict.fromkeys([*trained, *self.answering, *self.training]))

    @property
    def has_rewards(self) -> bool:
        """Whether every answer has its reward."""
        return self.answers is not None and bool(self.answers["reward"].notna().all())


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what the handling of a file's data trips over into an error that names the file.

    Raises:
        ValueError: the data cannot be handled.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Put it back as it was."
        ) from error


def read_run(folder: Path) -> RunFiles:
    """Read and check the files of a run.

    Args:
        folder: the run's.

    Raises:
        FileNotFoundError: there is nothing of a run.
        ValueError: a file, which is named, is damaged, or is not the one that metrics.json was
            computed from.
    """
    present = [name for name in ("run.json", *RAW) if (folder / name).exists()]
    if not present:
        runs = sorted(path.parent.name for path in folder.parent.glob("*/run.json"))
        raise FileNotFoundError(
            f"{folder} holds nothing of a run: no run.json, {', no '.join(RAW)}. Runs that are "
            f"there: {', '.join(runs) or 'none'}."
        )
    record = read_record(folder / "run.json") if "run.json" in present else None
    prompts = _read_records(folder / "prompts.json", AskedPrompt)
    responses = _read_records(folder / "responses.json", GivenResponse)
    answers, unscored = _read_answers(folder, prompts, responses)
    metrics = None
    if (folder / "metrics.json").exists():
        metrics = read_json(folder / "metrics.json", Metrics).model_dump()
        _require_measured(folder, metrics["sha256"])
    training = {}
    if (folder / "training.json").exists():
        training = read_json(folder / "training.json", dict[str, list[dict[str, Any]]])
    labels = _read_labels(folder / "classification.json", answers)
    return RunFiles(folder, record, training, prompts, answers, unscored, labels, metrics)


def _read_records(path: Path, kind: type[BaseModel]) -> list[dict[str, Any]]:
    """Read a list of records, empty where the file is not there."""
    if not path.exists():
        return []
    return [record.model_dump() for record in read_json(path, list[kind])]


def _read_answers(
    folder: Path, prompts: list[dict[str, Any]], responses: list[dict[str, Any]]
) -> tuple[pd.DataFrame | None, list[str]]:
    """Join prompts, responses and scores to one table.

    Scores that do not cover every model yet, because judging was interrupted, are left out.

    Returns:
        The table, None without responses and scores, and the models that are not rewarded yet.
    """
    path = folder / "scores.json"
    scores = read_json(path, list[dict[str, Any]]) if path.exists() else []
    unscored = []
    if scores:
        scored = [score.get("model") for score in scores]
        answered = dict.fromkeys(response["model"] for response in responses)
        unscored = [name for name in answered if name not in scored]
        if unscored:
            scores = []
    answers = table(prompts, responses, scores)
    return (answers if len(answers) else None), unscored


def _require_measured(folder: Path, known: dict[str, str]) -> None:
    """Refuse raw files that are not the ones that metrics.json was computed from."""
    for name in RAW:
        path = folder / name
        if name in known and path.exists() and sha256_of(path) != known[name]:
            raise ValueError(
                f"{path} is not the one that metrics.json was computed from. Put it back as it "
                "was, or run eval.ipynb again."
            )


def _read_labels(path: Path, answers: pd.DataFrame | None) -> dict[tuple[str, str], str]:
    """Read the labels of answers by (id, model).

    Raises:
        ValueError: they were given to other rewards than those of scores.json.
    """
    records = _read_records(path, GivenLabel)
    rewards = {}
    if answers is not None:
        rewards = answers.set_index(["id", "model"])["reward"].dropna().to_dict()
    labels = {}
    for record in records:
        key = (record["id"], record["model"])
        if rewards.get(key, record["reward"]) != record["reward"]:
            raise ValueError(
                f"{path} is not about the rewards of scores.json: {record['model']} has another "
                f"one for {record['id']}. Put it back as it was, or run eval.ipynb again."
            )
        labels[key] = record["label"]
    return labels


def list_missing(files: RunFiles) -> list[str]:
    """Name what the page lacks, and where it would come from.

    Args:
        files: of `read_run`.
    """
    return [*_list_unmade(files), *_list_unmeasured(files)]


def _list_unmade(files: RunFiles) -> list[str]:
    """Name what is not known of the models, the prompts and the answers."""
    items = []
    if files.record is None:
        items.append("the record of how the models were made (run.json)")
    if not files.training:
        items.append("the log of the training (training.json)")
    if not files.prompts:
        items.append("the prompts (prompts.json)")
    lacking = {p["kind"] for p in files.prompts if not (p["chosen"] and p["rejected"])}
    kinds = [kind for kind in KINDS if kind in lacking]
    if kinds:
        items.append(
            f"the human-chosen and human-rejected replies to the {' and '.join(kinds)} prompts"
        )
    if files.answers is None or files.answers["response"].isna().all():
        items.append("the models' answers (responses.json)")
    else:
        silent = [name for name in files.models if name not in files.answering]
        if silent:
            items.append(f"the answers of models that have not answered yet: {', '.join(silent)}")
    return items


def _list_unmeasured(files: RunFiles) -> list[str]:
    """Name what is not known of rewards, labels and rates."""
    items = []
    if files.unscored:
        names = ", ".join(files.unscored)
        items.append(
            "the rewards (scores.json), which are unfinished, since eval.ipynb has not yet asked "
            f"the judge about {names}"
        )
    elif not files.has_rewards:
        items.append("the rewards (scores.json), for which eval.ipynb asks a judge")
    if not files.labels:
        items.append("the labels of the answers (classification.json)")
    if files.metrics is None:
        items.append(
            "the rates and the comparisons (metrics.json), which eval.ipynb computes at its end"
        )
    return items
