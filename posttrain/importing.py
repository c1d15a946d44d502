"""Import results from elsewhere as a run, whose record says where they come from."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain import metrics
from posttrain.behaviour import HUMAN
from posttrain.exchange import require_fitting
from posttrain.files import fingerprint, read_json, sha256_of, write
from posttrain.processes import decided_by_main
from posttrain.record import Artifact, Model
from posttrain.run import Run

Records = list[dict[str, Any]]


class _HumanReplies(BaseModel):
    """A record of human_replies.json: the two replies of people to a prompt."""

    id: str
    chosen: str
    rejected: str


class _Origin(BaseModel):
    """The fields of run.json (`imported`) and paper.json (`source`) on the origin of results."""

    imported: dict[str, str] = {}
    source: dict[str, str] = {}


@decided_by_main
def import_results(source: Path, run: Run, cut_at_turn: bool = False) -> None:
    """Import prompts, responses and, if there are any, rewards as a new run.

    Args:
        source: a folder with prompts.json and responses.json. It may also have scores.json with the
            rewards, paper.json with an object "source" that says where the results come from, and
            human_replies.json with replies to some of the prompts, which are added to prompts.json
            if no rewards are imported, so that the judge scores them.
        run: the new run.
        cut_at_turn: whether responses are cut where they open a human turn. Rewards are not
            imported then, since the judge gave them to the longer responses.

    Raises:
        ValueError: if the run exists already, a file is missing or damaged, or the files do not
            fit together.
    """
    if run.path("run.json").exists():
        raise ValueError(f"{run.folder} is already a run. Choose another RUN.")
    prompts, responses = _read_texts(source, cut_at_turn)
    scores: Records = []
    if _has_fitting_scores(source, cut_at_turn):
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
        # The record is written last and at once: without it, the import can be repeated.
        run.note(imported=origin, models=rows, artifacts=artifacts)


def holds_texts_of(run: Run, source: Path, cut_at_turn: bool = False) -> bool:
    """Tell whether a run has the texts that `import_results` would now import from a folder."""
    prompts, responses = _read_texts(source, cut_at_turn)
    names = list(dict.fromkeys(response["model"] for response in responses))
    files = {"prompts.json": prompts, "responses.json": _order_by_model(responses, names)}
    return all(read_json(run.path(name)) == records for name, records in files.items())


def _has_fitting_scores(source: Path, cut_at_turn: bool) -> bool:
    """Tell whether a folder has rewards of the responses as they are imported."""
    return (source / "scores.json").exists() and not cut_at_turn


def _read_texts(source: Path, cut_at_turn: bool) -> tuple[Records, Records]:
    """Read prompts and responses, and check that they fit together."""
    for name in ("prompts.json", "responses.json"):
        if not (source / name).exists():
            raise ValueError(
                f"FROM: {source} has no {name}. An import needs prompts.json and responses.json."
            )
    prompts = read_json(source / "prompts.json", Records)
    responses = read_json(source / "responses.json", Records)
    if not prompts or not responses:
        raise ValueError(f"FROM: {source} has no records in prompts.json or responses.json.")
    require_fitting(prompts, responses)
    _require_truth_values(source, prompts)
    if (source / "human_replies.json").exists() and not _has_fitting_scores(source, cut_at_turn):
        prompts = _add_replies(prompts, source / "human_replies.json")
    if cut_at_turn:
        responses = [_cut(response) for response in responses]
    return prompts, responses


def _require_truth_values(source: Path, prompts: Records) -> None:
    """Refuse a prompt whose keyword is a word, and not the answer to whether it has one."""
    for prompt in prompts:
        keyword = prompt.get("keyword", False)
        if not isinstance(keyword, bool):
            raise ValueError(
                f"{source / 'prompts.json'}: the keyword of {prompt['id']} is {keyword!r}, but it "
                "says whether the prompt has a keyword. Write true or false, or leave it out."
            )


def _add_replies(prompts: Records, path: Path) -> Records:
    """Add the replies of human_replies.json to the prompts that have some there."""
    records = read_json(path, list[_HumanReplies])
    known = [prompt["id"] for prompt in prompts]
    replies = {}
    for record in records:
        if record.id not in known:
            raise ValueError(
                f"{path} has replies to {record.id}, which is not in prompts.json. Remove them."
            )
        if record.id in replies:
            raise ValueError(f"{path} has two records for {record.id}. Remove one of them.")
        replies[record.id] = {"chosen": record.chosen, "rejected": record.rejected}
    return [prompt | replies.get(prompt["id"], {}) for prompt in prompts]


def _read_origin(source: Path) -> dict[str, str]:
    """Read where results come from, as far as the files of the folder say it."""
    origin = {"from": source.resolve().name}
    if (source / "run.json").exists():
        origin |= read_json(source / "run.json", _Origin).imported
    if (source / "paper.json").exists():
        origin |= read_json(source / "paper.json", _Origin).source
    return origin


def _cut(response: dict[str, Any]) -> dict[str, Any]:
    """Cut a response where it opens a human turn, and drop fields that describe the longer one."""
    return {
        "id": response["id"],
        "model": response["model"],
        "response": response["response"].split(HUMAN)[0].strip(),
    }


def _write_parts(run: Run, name: str, parts: list[str], records: Records) -> dict[str, str]:
    """Write records ordered by model, and return {entry of run.json: sha256} for each model."""
    ordered = _order_by_model(records, parts)
    sums = {}
    for part in parts:
        rows = [row for row in ordered if row["model"] == part]
        sums[f"{name}/{part}"] = fingerprint(rows)
    write(run.path(name), ordered)
    return sums


def _order_by_model(records: Records, names: list[str]) -> Records:
    """Order records by their model, and keep the order within a model."""
    return sorted(records, key=lambda record: names.index(record["model"]))
