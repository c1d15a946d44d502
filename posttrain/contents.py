"""What is in a run's folder, read and checked, for the page that shows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import BaseModel, FiniteFloat, create_model

from posttrain import MODELS, stats
from posttrain.files import read_json, sha256_of
from posttrain.generation import Response, require_fitting
from posttrain.ledger import Ledger

RAW = ("prompts.json", "responses.json", "scores.json")

Record = dict[str, Any]
Number, Name, Kind, Measure = FiniteFloat, Literal[MODELS], Literal[stats.KINDS], Literal[tuple(stats.MEASURES)]
Rated = create_model("Rated", model=Literal[(*MODELS, *stats.REFERENCES)], **{
    f"{name}{end}": Number | None if end else Number for name in stats.MEASURES for end in ("", "_low", "_high")})


class Thresholds(BaseModel):
    """The least reward of a harmless response, and the reward above which one is helpful."""

    harmless: Number
    helpful: Number


class Power(BaseModel):
    """What 80% power needs."""

    detectable: Number | None
    prompts: int | None


class Compared(BaseModel):
    """A measure of two models."""

    measure: Measure
    first: Name
    second: Name
    difference: Number
    low: Number | None
    high: Number | None
    gained: int
    lost: int
    n: int
    p: Number
    p_holm: Number
    decision: Literal["decided", "suggestive", "open"]
    power: Power


class Agreement(BaseModel):
    """How often the judge agrees with the humans on a kind of prompt."""

    kind: Kind
    agreement: Number
    low: Number
    high: Number
    prompts: int


class Health(BaseModel):
    """What a model's responses to a kind of prompt look like."""

    kind: Kind
    model: Name
    empty: Number
    human_turn: Number
    refusal: Number
    distinct_2: Number


class Origin(BaseModel):
    """paper.json: where results from elsewhere come from."""

    source: dict[str, str]


class Environment(BaseModel):
    """Where something was made; a run of an earlier version knows no day."""

    date: str = ""
    python: str
    packages: dict[str, str]
    device: str
    git_commit: str | None
    code_sha256: str | None


class Metrics(BaseModel):
    """What the page shows of metrics.json."""

    thresholds: Thresholds
    models: list[Rated]
    references: list[Rated]
    comparisons: list[Compared]
    cautions: list[str]
    judge: list[Agreement]
    health: list[Health]
    seeds: dict[str, Any]
    environment: Environment
    sha256: dict[str, str]


class Files(NamedTuple):
    """The files of a run, None or empty where it has not got them.

    `rewards`: of `stats.reward_table`; `metrics`: the fields of `Metrics`; `source`: where results from elsewhere come
    from.
    """

    folder: Path
    ledger: Ledger | None
    training: dict[str, list[Record]]
    prompts: list[Record]
    responses: list[Record]
    rewards: pd.DataFrame | None
    metrics: Record | None
    source: dict[str, str]


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise ValueError, with the file's name, for what the drawing of its data trips over."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). Put it back as it was.") from error


def read_files(folder: Path) -> Files:
    """Return what is in a run's folder.

    Raises FileNotFoundError where there is nothing of a run, and ValueError, with its name, for a file that is damaged,
    or that metrics.json was not computed from.
    """
    def read(name: str, kind: Any, default: Any) -> Any:
        found = read_json(folder / name, kind) if (folder / name).exists() else default
        return found.model_dump() if kind in (Metrics, Origin) and found else found

    if not any((folder / name).exists() for name in ("run.json", *RAW)):
        raise FileNotFoundError(f"{folder} holds nothing of a run: no run.json, {', no '.join(RAW)}. Runs that are "
                                f"there: {sorted(path.name for path in folder.parent.glob('*/'))}.")
    prompts, responses, scores = (read(name, list[Record], []) for name in RAW)
    metrics = read("metrics.json", Metrics, None)
    if prompts:
        require_fitting(prompts, responses)
    else:
        read("responses.json", list[Response], [])
    for name in RAW:
        known = metrics["sha256"].get(name) if metrics else None
        if known and (folder / name).exists() and sha256_of(folder / name) != known:
            raise ValueError(f"{folder / name} is not the one that metrics.json was computed from. Put it back as it "
                             "was, or run eval.ipynb again.")
    return Files(folder, read("run.json", Ledger, None), read("training.json", dict[str, list[Record]], {}), prompts,
                 responses, stats.reward_table(scores, prompts) if scores else None, metrics,
                 (read("paper.json", Origin, None) or {"source": {}})["source"])


def labels_of(files: Files) -> dict[tuple[str, str], str]:
    """Return {(id, model): label} by the run's thresholds; empty where there are none."""
    if files.rewards is None or files.metrics is None:
        return {}
    harmless = files.rewards.loc["harmful"] >= files.metrics["thresholds"]["harmless"]
    helpful = files.rewards.loc["helpful"] > files.metrics["thresholds"]["helpful"]
    return {(row["id"], row["model"]): row["label"] for row in stats.classify(files.rewards, harmless, helpful, {})}


def missing(files: Files) -> list[str]:
    """Return a sentence on each thing that the page lacks."""
    found = []
    if files.rewards is None:
        found.append("There are no rewards yet (scores.json): eval.ipynb asks a judge for them.")
    if files.metrics is None:
        found.append("There are no rates and no decisions yet (metrics.json): they come when eval.ipynb ends.")
    if not files.prompts:
        found.append("The prompts are not here (prompts.json).")
    elif not all({"chosen", "rejected"} <= set(prompt) for prompt in files.prompts):
        found.append("The human-chosen and human-rejected replies to the prompts are not here.")
    if not files.responses:
        found.append("The models' answers are not here (responses.json).")
    if not files.training:
        found.append("How training went is not here (training.json).")
    if files.ledger is None:
        found.append("How the models were made is not here (run.json).")
    return found
