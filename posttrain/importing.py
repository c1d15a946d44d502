"""Results from elsewhere, taken in as a run whose record says where they come from."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain import metrics
from posttrain.diagnostics import HUMAN
from posttrain.files import fingerprint, read_json, sha256_of, write
from posttrain.generation import require_fitting
from posttrain.record import Artifact, Model
from posttrain.run import Run

Records = list[dict[str, Any]]


class _Origin(BaseModel):
    """What run.json (`imported`) and paper.json (`source`) say of where results come from."""

    imported: dict[str, str] = {}
    source: dict[str, str] = {}


def import_results(source: Path, run: Run, cut_at_turn: bool = False) -> None:
    """Take in prompts and responses, and rewards where they are there.

    Args:
        source: a folder with prompts.json, responses.json and, where there are rewards,
            scores.json; and, where somebody has written it, paper.json with a table "source" that
            says where they come from.
        run: the run that they become.
        cut_at_turn: whether responses are cut where they open a human turn. Their rewards are left
            behind then, since a judge read more than is kept.

    Raises:
        ValueError: the run is there already, a file is missing or damaged, or the files do not fit
            each other.
    """
    if run.path("run.json").exists():
        raise ValueError(f"{run.folder} is a run already. Choose another RUN.")
    prompts, responses = _read_texts(source, cut_at_turn)
    scores: Records = []
    if (source / "scores.json").exists() and not cut_at_turn:
        scores = read_json(source / "scores.json", Records)
    answers = metrics.table(prompts, responses, scores)  # refuses what does not fit
    names = metrics.models_of(answers)
    origin = _read_origin(source)
    if cut_at_turn:
        origin["changed"] = "responses are cut where they open a human turn"
    with run.hold():
        write(run.path("prompts.json"), prompts)
        sums = {"prompts.json": sha256_of(run.path("prompts.json"))}
        sums |= _write_parts(run, "responses.json", names, responses)
        if scores:
            judged = list(dict.fromkeys(answers["model"]))
            sums |= _write_parts(run, "scores.json", judged, scores)
        artifacts = {}
        for name, sha256 in sums.items():
            inputs = {"imported": origin["from"]}
            artifacts[name] = Artifact(inputs=inputs, sha256=sha256, seconds=None, environment={})
        base = origin.get("base_model", "elsewhere")
        rows = [Model(name=name, base=base, adapter=None) for name in names]
        # All at once: a folder without a record can be taken in again.
        run.note(imported=origin, models=rows, artifacts=artifacts)


def holds_texts_of(run: Run, source: Path, cut_at_turn: bool = False) -> bool:
    """Tell whether a run holds the texts that `import_results` would take in from a folder now."""
    prompts, responses = _read_texts(source, cut_at_turn)
    names = list(dict.fromkeys(response["model"] for response in responses))
    files = {"prompts.json": prompts, "responses.json": _order_by_model(responses, names)}
    return all(read_json(run.path(name)) == records for name, records in files.items())


def _read_texts(source: Path, cut_at_turn: bool) -> tuple[Records, Records]:
    """Read prompts and responses that fit each other."""
    for name in ("prompts.json", "responses.json"):
        if not (source / name).exists():
            raise ValueError(f"FROM: {source} has no {name}. A run's texts are needed.")
    prompts = read_json(source / "prompts.json", Records)
    responses = read_json(source / "responses.json", Records)
    require_fitting(prompts, responses)
    if cut_at_turn:
        responses = [_cut(response) for response in responses]
    return prompts, responses


def _read_origin(source: Path) -> dict[str, str]:
    """Read where results come from, as far as it is known."""
    origin = {"from": source.resolve().name}
    if (source / "run.json").exists():
        origin |= read_json(source / "run.json", _Origin).imported
    if (source / "paper.json").exists():
        origin |= read_json(source / "paper.json", _Origin).source
    return origin


def _cut(response: dict[str, Any]) -> dict[str, Any]:
    """Cut a response where it opens a human turn; what is known of the longer one is left out."""
    return {
        "id": response["id"],
        "model": response["model"],
        "response": response["response"].split(HUMAN)[0].strip(),
    }


def _write_parts(run: Run, name: str, parts: list[str], records: Records) -> dict[str, str]:
    """Write a list in the order of its parts, and give {its entry: sha256} for each of them."""
    ordered = _order_by_model(records, parts)
    sums = {}
    for part in parts:
        rows = [row for row in ordered if row["model"] == part]
        sums[f"{name}/{part}"] = fingerprint(rows)
    write(run.path(name), ordered)
    return sums


def _order_by_model(records: Records, names: list[str]) -> Records:
    """Order records by their model, those of one model as they are."""
    return sorted(records, key=lambda record: names.index(record["model"]))
