"""What the page says of a run as a whole: whose answers these are, and how all was made."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from posttrain.conclusions import list_words
from posttrain.page.reading import RunFiles
from posttrain.page.texts import count_speakers, make_visible
from posttrain.record import Artifact, Record
from posttrain.style import format_number

IMPORTED_NAMES = {
    "from": "Imported from the folder",
    "what": "What was imported",
    "commit": "Commit of that repository",
    "changed": "What was changed",
}
IMPORTED_PARTS = {"prompts.json": "prompts", "responses.json": "answers", "scores.json": "rewards"}
SOURCE_NAMES = {"base_model": "Base model", "dataset": "Dataset", "reward_model": "Judge"}


def describe_making(files: RunFiles) -> dict[str, Any]:
    """Bring the record of a run into the form of the template."""
    record = files.record
    artifacts = record.artifacts if record else {}
    digests = {name: artifact.sha256 for name, artifact in artifacts.items()}
    if not digests and files.metrics:
        digests = files.metrics["sha256"]
    names_by_software: dict[str, list[str]] = {}
    for name, artifact in artifacts.items():
        if artifact.environment:
            text = describe_software(artifact.environment)
            names_by_software.setdefault(text, []).append(name)
    settings, cleaning = {}, None
    if record:
        settings = {name: _tabulate_settings(values) for name, values in record.settings.items()}
        if record.data:
            cleaning = pd.DataFrame(record.data).set_index("subset").T.reset_index(names="rows")
    return {
        "facts": collect_facts(files),
        "introduction": introduce(files),
        "remarks": describe_answers(files),
        "settings": settings,
        "cleaning": cleaning,
        "software": names_by_software,
        "digests": _two_columns(digests, "file", "sha256") if digests else None,
    }


def _tabulate_settings(values: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table of texts of a stage's settings."""
    rows = {}
    for name, value in values.items():
        rows[name] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _two_columns(rows, "setting", "value")


def _two_columns(rows: Mapping[str, str], first: str, second: str) -> pd.DataFrame:
    """Make a table of two columns; its texts are visible, since pandas takes no half characters."""
    return pd.DataFrame(make_visible(rows).items(), columns=[first, second])


def describe_software(environment: Mapping[str, Any]) -> str:
    """Describe in a line with what something was made, without its day.

    Args:
        environment: of `record.environment`.
    """
    parts = [f"Python {environment['python']}"]
    for name, version in environment["packages"].items():
        parts.append(f"{name} {version}")
    parts.append(environment["device"])
    if environment["git_commit"]:
        parts.append(f"git commit {environment['git_commit'][:12]}")
    if environment["code_sha256"]:
        parts.append(f"package code (sha256) {environment['code_sha256'][:12]}")
    return ", ".join(parts)


def collect_facts(files: RunFiles) -> dict[str, str]:
    """Collect whose numbers these are, how many prompts there are, when all was made and how.

    Returns:
        {name: text}.
    """
    facts: dict[str, str | None] = {"Run": files.folder.name}
    record = files.record
    if record:
        for name, text in record.imported.items():
            if name == "from" and "repository" in record.imported:
                continue  # a folder's name tells nothing beside that of a repository
            heading = IMPORTED_NAMES.get(name, name.replace("_", " ").capitalize())
            facts[heading] = text
        if record.copied:
            facts["Models trained in the run"] = record.copied.get("trained in")
        facts["Preset"] = record.preset
        for role, name in SOURCE_NAMES.items():
            if role in record.sources:  # asked by this run, also if its answers were imported
                facts[name] = record.sources[role]["name"]
    if files.answers is not None:
        counts = files.answers.groupby("kind")["id"].nunique()
        facts["Prompts"] = " and ".join(f"{n} {kind}" for kind, n in counts.items())
    if record:
        facts["Made"] = _period(record.artifacts.values())
    if files.metrics:
        facts["Measured"] = files.metrics["environment"]["date"]
        facts["Measured with"] = describe_software(files.metrics["environment"])
    return {name: text for name, text in facts.items() if text}


def introduce(files: RunFiles) -> list[str]:
    """Say in a few sentences what is compared on what, where it is from, and who rewards it."""
    facts = collect_facts(files)
    names = files.answering
    sentences = []
    if names and "Prompts" in facts:
        verb = "compares" if len(names) > 1 else "measures"
        sentences.append(
            f"The run “{facts['Run']}” {verb} {list_words(names)} on {facts['Prompts']} prompts."
        )
    else:
        sentences.append(f"This is the run “{facts['Run']}”.")
    if files.record and files.record.imported:
        sentences.append(_describe_origin(files.record))
    if "Judge" in facts and files.has_rewards:
        sentences.append(
            f"Every answer has a reward, a number that the judge {facts['Judge']} gives it."
        )
    if files.metrics:
        thresholds = files.metrics["thresholds"]
        sentences.append(
            "An answer to a harmful prompt is labelled harmless if its reward is at or above "
            f"{format_number(thresholds['harmless'])}, and an answer to a helpful prompt is "
            f"labelled helpful if its reward is above {format_number(thresholds['helpful'])}."
        )
    return sentences


def _describe_origin(record: Record) -> str:
    """Say of an imported run that nothing was trained here, what was imported, and from where."""
    files = set()
    for name, artifact in record.artifacts.items():
        if "imported" in artifact.inputs:
            files.add(name.split("/")[0])
    parts = [part for name, part in IMPORTED_PARTS.items() if name in files] or ["results"]
    origin = record.imported
    paper = origin.get("paper")
    if "repository" in origin:
        source = origin["repository"]
        if paper:
            source += f", the repository of {paper}"
    else:
        source = paper or f"the folder “{origin.get('from', 'unknown')}”"
    return (
        f"No model was trained by this repository: the {list_words(parts)} were imported from "
        f"{source}."
    )


def describe_answers(files: RunFiles) -> list[str]:
    """Say what a reader of the answers would wonder at, each only where it occurs."""
    if files.answers is None:
        return []
    texts = files.answers[files.answers["model"].isin(files.answering)]
    texts = texts[texts["response"].notna()]
    remarks = []
    if len(texts) and texts["finish"].isna().all():
        remarks.append(
            "How an answer ended is not known for this run. An answer that stops in the middle of "
            "a sentence therefore has no mark “cut”."
        )
    speaking = count_speakers(texts["response"])
    if speaking:
        verb = "begins" if speaking == 1 else "begin"
        remarks.append(
            f"{speaking} of the {len(texts)} answers {verb} with “Assistant:” because the models "
            "wrote it."
        )
    return remarks


def _period(artifacts: Iterable[Artifact]) -> str:
    """Tell from which day to which the results of a run were made."""
    days = []
    for artifact in artifacts:
        if artifact.environment.get("date"):
            days.append(artifact.environment["date"])
    if not days:
        return ""
    first, last = min(days), max(days)
    return first if first == last else f"{first} to {last}"
