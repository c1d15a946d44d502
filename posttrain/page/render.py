"""The page of a run: its files put into one template, with one style and one script."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from posttrain import tables
from posttrain.comparisons import REWARD_OF_RATE
from posttrain.conclusions import headline, verdict, verdicts
from posttrain.diagnostics import MARKS
from posttrain.files import write
from posttrain.page.drawings import draw_figures
from posttrain.page.reading import RunFiles, damage_named, list_missing, read_run
from posttrain.page.texts import collect_answers, make_visible
from posttrain.record import Artifact

HERE = Path(__file__).parent
SCRIPTS = ("elements", "words", "saving", "tables", "sections", "report")  # one after another
RATE_NAMES = {
    "HmR": "Harmlessness (HmR)",
    "HpR": "Helpfulness (HpR)",
    "CAS": "Both together (CAS)",
}
MEANINGS = {  # of the rates, by the names above
    "Harmlessness (HmR)": "the share of harmful prompts that a model answers harmlessly",
    "Helpfulness (HpR)": "the share of helpful prompts that a model answers helpfully",
    "Both together (CAS)": "the mean of HmR and HpR",
}
NUMBER = re.compile(r"[+\u2212-]?\d")  # a cell that begins like this is aligned as a number
IMPORTED_NAMES = {"from": "Imported from", "what": "What was imported"}
SOURCE_NAMES = {"base_model": "Base model", "dataset": "Dataset", "reward_model": "Judge"}

Fields = dict[str, Any]


def write_page(folder: Path) -> Path:
    """Write the page of a run into its folder, whole or not at all.

    Args:
        folder: the run's.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there is nothing of a run.
        ValueError: a file, which is named, is damaged.
    """
    path = folder / "report.html"
    write(path, render_page(folder))
    return path


def render_page(folder: Path) -> str:
    """Render the page of a run as HTML.

    Args:
        folder: the run's.

    Raises:
        FileNotFoundError: there is nothing of a run.
        ValueError: a file, which is named, is damaged.
    """
    files = read_run(folder)
    fields = {
        "record": files.record,
        "metrics": files.metrics,
        "missing": list_missing(files),
        "is_labelled": bool(files.labels),
        "data": collect_answers(files),
        "marks": MARKS,
        "figures": draw_figures(files),
    }
    with damage_named(folder / "metrics.json"):
        fields |= _describe_metrics(files.metrics)
    with damage_named(folder / "run.json"):
        fields |= _describe_making(files)
    parts = {
        "style": ["report.css"],
        "theme": ["theme.js"],
        "script": [f"{name}.js" for name in SCRIPTS],
    }
    for part, names in parts.items():
        text = "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
        digest = hashlib.sha256(text.encode()).digest()
        fields[part] = text
        fields[f"{part}_hash"] = "sha256-" + base64.b64encode(digest).decode()
    return _template().render(fields)


def _template() -> Template:
    """Load the page's template; all that is put into it is escaped and made visible."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else make_visible(value),
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.globals["column_classes"] = _column_classes
    return environment.get_template("report.html")


def _column_classes(table: pd.DataFrame) -> list[str]:
    """Tell for each column how its texts are aligned: as numbers, with or without interval."""
    classes = []
    for cells in table.to_numpy().T:
        texts = [str(cell) for cell in cells]
        kind = ""
        if all(NUMBER.match(text) for text in texts):
            kind = "interval" if all("[" in text for text in texts) else "number"
        classes.append(kind)
    return classes


# ---- rates and comparisons


def _describe_metrics(metrics: Fields | None) -> Fields:
    """Bring what metrics.json holds into the form of the template."""
    if metrics is None:
        return {
            "headlines": {},
            "matrices": [],
            "sentences": [],
            "rates": None,
            "mean_rewards": None,
            "win_rates": None,
            "behaviour": None,
        }
    comparisons = metrics["comparisons"]
    summary = tables.summary([*metrics["models"], *metrics["references"]])
    rewards = [tables.HEADINGS[name] for name in REWARD_OF_RATE.values()]
    return {
        "headlines": write_headlines(comparisons),
        "matrices": arrange_matrices(comparisons),
        "sentences": verdicts(comparisons),
        "rates": summary.drop(columns=rewards),
        "mean_rewards": summary[["Model", *rewards]],
        "win_rates": tables.win_rates(comparisons),
        "behaviour": _tabulate_behaviour(metrics["behaviour"]),
    }


def write_headlines(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what the comparisons show of the two rates and of their mean.

    Of a rate it also says which pairs differ significantly in the mean reward alone, since a label
    tells less than the reward that it is made of.

    Args:
        comparisons: of `comparisons.compare`.

    Returns:
        {name of the rate: sentences}.
    """
    sentences = {}
    for measure, name in RATE_NAMES.items():
        family = [record for record in comparisons if record["measure"] == measure]
        if not family:
            continue
        text = headline(family)
        significant = _significant_pairs(comparisons, measure)
        by_reward = _significant_pairs(comparisons, REWARD_OF_RATE.get(measure, ""))
        more = []
        for pair, direction in by_reward.items():
            if pair not in significant:
                more.append(f"{pair[1]} {direction} {pair[0]}")
        if more:
            text += f" In the mean reward, these differ significantly as well: {', '.join(more)}."
        sentences[name] = text
    return sentences


def _significant_pairs(
    comparisons: Sequence[Mapping[str, Any]], measure: str
) -> dict[tuple[str, str], str]:
    """Find the pairs that differ significantly: {(first, second): second above or below first}."""
    pairs = {}
    for record in comparisons:
        if record["measure"] == measure and record["decision"] == "significant":
            direction = "above" if record["difference"] > 0 else "below"
            pairs[record["first"], record["second"]] = direction
    return pairs


def arrange_matrices(comparisons: Sequence[Mapping[str, Any]]) -> list[Fields]:
    """Arrange the comparisons of each measure as a matrix of the second model against the first.

    Args:
        comparisons: of `comparisons.compare`.

    Returns:
        [{"name", "columns": first models, "rows": {second model: [cell or None]}}], a cell being
        {"decision", "sentence", "difference", "interval"}.
    """
    matrices = []
    for measure, name in tables.HEADINGS.items():
        family = [record for record in comparisons if record["measure"] == measure]
        columns = list(dict.fromkeys(record["first"] for record in family))
        rows = {record["second"]: [None] * len(columns) for record in family}
        for record in family:
            difference, interval = tables.split_difference(record)
            rows[record["second"]][columns.index(record["first"])] = {
                "decision": record["decision"],
                "sentence": verdict(record),
                "difference": difference,
                "interval": interval,
            }
        if family:
            title = f"Difference in {name.replace('%', 'points')}"
            matrices.append({"name": title, "columns": columns, "rows": rows})
    return matrices


def _tabulate_behaviour(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    """Make a table of texts of how the models behave; None without answers."""
    rows = []
    for record in records:
        row = {
            "Model": record["model"],
            "prompts": record["kind"],
            "empty": f"{record['empty']:.0f}%",
            "opened a human turn": f"{record['human_turn']:.0f}%",
            "begins like a refusal": f"{record['refusal']:.0f}%",
            "distinct-2": f"{record['distinct_2']:.2f}",
        }
        rows.append(row)
    return pd.DataFrame(rows) if rows else None


# ---- how it was made


def _describe_making(files: RunFiles) -> Fields:
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
        "meanings": MEANINGS,
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
        parts.append(f"code {environment['code_sha256'][:12]}")
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
            heading = IMPORTED_NAMES.get(name, name.replace("_", " ").capitalize())
            facts[heading] = text
        facts["Preset"] = record.preset
        for role, name in SOURCE_NAMES.items():
            facts.setdefault(name, record.sources.get(role, {}).get("name"))
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
    """Say in a few sentences what is compared on what, and who rewards the answers."""
    facts = collect_facts(files)
    names = files.answering
    sentences = []
    if names and "Prompts" in facts:
        listed = names[0]
        if len(names) > 1:
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
        verb = "compares" if len(names) > 1 else "measures"
        sentences.append(f"The run “{facts['Run']}” {verb} {listed} on {facts['Prompts']} prompts.")
    else:
        sentences.append(f"This is the run “{facts['Run']}”.")
    if "Judge" in facts and files.has_rewards:
        sentences.append(
            f"Every answer has a reward, a number that the judge {facts['Judge']} gives it. An "
            "answer whose reward reaches a threshold is labelled harmless or helpful."
        )
    return sentences


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
