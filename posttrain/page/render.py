"""The page of a run: its files put into one template, with one style and one script."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from posttrain import tables
from posttrain.behaviour import MARKS
from posttrain.comparisons import REWARD_OF_RATE
from posttrain.conclusions import headline, list_words, name_relations, verdict, verdicts
from posttrain.files import write
from posttrain.judge_validity import tabulate_judge
from posttrain.metrics import MEASURES
from posttrain.page.drawings import draw_figures
from posttrain.page.origin import describe_making
from posttrain.page.reading import damage_named, list_missing, read_run
from posttrain.page.texts import collect_answers, make_visible
from posttrain.processes import decided_by_main
from posttrain.style import format_number

HERE = Path(__file__).parent
# One after another.
SCRIPTS = ("elements", "words", "saving", "tables", "sections", "report", "blind")
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

Fields = dict[str, Any]


@decided_by_main
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
    data = collect_answers(files)
    fields = {
        "record": files.record,
        "metrics": files.metrics,
        "missing": list_missing(files),
        "is_labelled": bool(files.labels),
        "data": data,
        "votable": len(data["sha256"]) == 2 and len(data["models"]) > 1,
        "meanings": MEANINGS,
        "marks": MARKS,
        "figures": draw_figures(files),
    }
    with damage_named(folder / "metrics.json"):
        fields |= _describe_metrics(files.metrics)
    with damage_named(folder / "run.json"):
        fields |= describe_making(files)
    parts = {
        "style": ["report.css"],
        "theme": ["theme.js", "curtain.js"],  # before anything is drawn
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
    environment.globals["threshold"] = format_number
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
            "judge": None,
            "behaviour": tables.tabulate_behaviour([]),
        }
    comparisons = metrics["comparisons"]
    summary = tables.summary([*metrics["models"], *metrics["references"]])
    rewards = [tables.HEADINGS[name] for name in REWARD_OF_RATE.values()]
    rewards = [heading for heading in rewards if heading in summary]
    judge = tabulate_judge(metrics["judge"], metrics["human_wins"])
    return {
        "headlines": write_headlines(comparisons),
        "matrices": arrange_matrices(comparisons),
        "sentences": verdicts(comparisons),
        "rates": summary.drop(columns=rewards),
        "mean_rewards": summary[["Model", *rewards]],
        "win_rates": tables.win_rates(comparisons),
        "judge": judge if len(judge) else None,
        "behaviour": tables.tabulate_behaviour(metrics["behaviour"]),
    }


def write_headlines(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what the comparisons show of the two rates and of their mean.

    Of a rate it also says which further pairs differ significantly in the mean reward, since a
    label tells less than the reward that it is made of.

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
        sentences[name] = f"{headline(family)} {_add_rewards(comparisons, measure)}".strip()
    return sentences


def _add_rewards(comparisons: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Say which pairs differ significantly in mean reward but not in the rate; empty for none."""
    reward = REWARD_OF_RATE.get(measure, "")
    pairs = {measure: [], reward: []}
    for row in comparisons:
        if row["measure"] in pairs and row["decision"] == "significant":
            pairs[row["measure"]].append(row)
    known = [_key(row)[1:] for row in pairs[measure]]
    further = [row for row in pairs[reward] if _key(row)[1:] not in known]
    if not further:
        return ""
    clauses = list_words(name_relations(further))
    return f"By mean reward on {MEASURES[reward]} prompts alone, {clauses}."


def arrange_matrices(comparisons: Sequence[Mapping[str, Any]]) -> list[Fields]:
    """Arrange the comparisons of each measure as a matrix of the second model against the first.

    Args:
        comparisons: of `comparisons.compare`.

    Returns:
        [{"name", "columns": first models, "rows": {second model: [cell or None]}}], a cell being
        {"decision", "sentence", "difference", "interval"}.
    """
    rated = [record for record in comparisons if not record["measure"].endswith("_reward")]
    texts = {}
    for record, text in zip(rated, verdicts(comparisons), strict=True):
        texts[_key(record)] = text
    matrices = []
    for measure, name in tables.HEADINGS.items():
        family = [record for record in comparisons if record["measure"] == measure]
        columns = list(dict.fromkeys(record["first"] for record in family))
        rows = {record["second"]: [None] * len(columns) for record in family}
        for record in family:
            difference, interval = tables.split_difference(record)
            rows[record["second"]][columns.index(record["first"])] = {
                "decision": record["decision"],
                "sentence": texts.get(_key(record)) or verdict(record),
                "difference": difference,
                "interval": interval,
            }
        if family:
            title = f"Difference in {name.replace('%', 'points')}"
            matrices.append({"name": title, "columns": columns, "rows": rows})
    return matrices


def _key(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tell one comparison from all others."""
    return record["measure"], record["first"], record["second"]
