"""Results from elsewhere, taken in as a run whose record says where they come from."""

from pathlib import Path
from typing import Any

from posttrain.diagnostics import HUMAN
from posttrain.files import fingerprint, read_json, sha256_of, write
from posttrain.generation import require_fitting
from posttrain.metrics import REFERENCES
from posttrain.record import Model
from posttrain.run import Run

Records = list[dict[str, Any]]


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
    for name in ("prompts.json", "responses.json"):
        if not (source / name).exists():
            raise ValueError(f"FROM: {source} has no {name}. A run's texts are needed.")
    prompts = read_json(source / "prompts.json", Records)
    responses = read_json(source / "responses.json", Records)
    require_fitting(prompts, responses)
    scores: Records = []
    if (source / "scores.json").exists() and not cut_at_turn:
        scores = read_json(source / "scores.json", Records)
    if cut_at_turn:
        responses = [_cut(response) for response in responses]
    names = list(dict.fromkeys(response["model"] for response in responses))
    origin = _read_origin(source)
    if cut_at_turn:
        origin["changed"] = "responses are cut where they open a human turn"
    with run.hold():
        inputs = {"imported": origin["from"]}
        write(run.path("prompts.json"), prompts)
        run.enter("prompts.json", inputs, sha256_of(run.path("prompts.json")), None)
        _write_parts(run, "responses.json", names, responses, inputs)
        if scores:
            references = [name for name in REFERENCES if name in {row["model"] for row in scores}]
            _write_parts(run, "scores.json", names + references, scores, inputs)
        base = origin.get("base_model", "elsewhere")
        rows = [Model(name=name, base=base, adapter=None) for name in names]
        run.note(imported=origin, models=rows)


def _read_origin(source: Path) -> dict[str, str]:
    """Read where results come from, as far as it is known."""
    origin = {"from": source.name}
    record, paper = source / "run.json", source / "paper.json"
    if record.exists():
        origin |= read_json(record, dict[str, Any]).get("imported") or {}
    if paper.exists():
        origin |= read_json(paper, dict[str, Any]).get("source") or {}
    return origin


def _cut(response: dict[str, Any]) -> dict[str, Any]:
    """Cut a response where it opens a human turn; what is known of the longer one is left out."""
    return {
        "id": response["id"],
        "model": response["model"],
        "response": response["response"].split(HUMAN)[0].strip(),
    }


def _write_parts(
    run: Run, name: str, parts: list[str], records: Records, inputs: dict[str, Any]
) -> None:
    """Write a list, and enter each model's part of it into the record."""
    ordered: Records = []
    for part in parts:
        rows = [row for row in records if row["model"] == part]
        run.enter(f"{name}/{part}", inputs, fingerprint(rows), None)
        ordered += rows
    write(run.path(name), ordered)
