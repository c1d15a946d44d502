"""A run as one HTML page that opens without network or server: what came out, and every answer to read.

The page is made from the files of a run's folder alone. What the run lacks is left out, and the page says so.
"""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from posttrain import MODELS, checks, comparisons, figures, stats, tables
from posttrain.contents import Files, damage_named, labels_of, missing, read_files
from posttrain.files import write
from posttrain.judging import REFUSAL

HERE = Path(__file__).parent
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
PAGE_COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)"}  # ink and paper of the page, light or dark
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
# What would not be seen, or would change how the text around it is seen: controls, turns of the direction of writing,
# separators of lines and paragraphs, halves of characters
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
                    "\ud800-\udfff]")

Record = dict[str, Any]


# ---- texts and the data of the page's script

def visible(data: Any) -> Any:
    """Return a text, or data and all texts in it, with what would not be seen named: a picture, or a code point."""
    if isinstance(data, Mapping):
        return {visible(name): visible(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [visible(value) for value in data]
    return UNSEEN.sub(_named, data.replace("\r\n", "\n")) if isinstance(data, str) else data


def _named(found: re.Match) -> str:
    """Return what stands for a character that would not be seen."""
    code = ord(found[0])
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def turns(prompt: str) -> list[list[str]]:
    """Return [[speaker, text]] of a prompt, without the turn that is due from the model."""
    before, *parts = SPEAKER.split(prompt)
    found = [["", before], *map(list, zip(parts[::2], parts[1::2]))]
    found = [[speaker, text.strip()] for speaker, text in found]
    return [turn for turn in found if turn != ["", ""] and (turn is not found[-1] or turn != ["Assistant", ""])]


def answers(files: Files) -> Record:
    """Return what the page's script shows: models, thresholds, and every prompt with its answers and references."""
    asked = {prompt["id"]: prompt for prompt in files.prompts}
    said = {(response["id"], response["model"]): response for response in files.responses}
    rewards = {} if files.rewards is None else {key[1:]: value for key, value in files.rewards.stack().items()}
    labels = labels_of(files)
    models = [name for name in MODELS if name in {model for _, model in [*said, *rewards]}]

    def answer(key: tuple[str, str]) -> Record:
        response = said.get(key, {})
        return {"text": response.get("response"), "finish": response.get("finish"), "tokens": response.get("tokens"),
                "marks": checks.marks(response) if response else [], "reward": rewards.get(key),
                "label": labels.get(key)}

    def references(prompt: str) -> list[Record]:
        texts = {f"Human {side}": asked.get(prompt, {}).get(side) for side in ("chosen", "rejected")}
        texts |= {"Empty": "", "Refusal": REFUSAL}
        return [{"name": name, "text": text, "reward": rewards.get((prompt, name))} for name, text in texts.items()
                if (prompt, name) in rewards or (text and name not in ("Empty", "Refusal"))]

    prompts = sorted(dict.fromkeys([*asked, *(prompt for prompt, _ in [*rewards, *said])]),
                     key=lambda prompt: prompt.split("-")[0])  # harmful before helpful, else as they are
    thresholds = files.metrics["thresholds"] if files.metrics else {"harmless": None, "helpful": None}
    return visible({
        "models": models, "colours": [figures.COLOURS[name] for name in models],
        "markers": [figures.MARKERS[name] for name in models],
        "thresholds": {"harmful": thresholds["harmless"], "helpful": thresholds["helpful"]},
        "prompts": [{"id": prompt, "kind": prompt.split("-")[0],
                     "turns": turns(asked[prompt]["prompt"]) if prompt in asked else [],
                     "answers": [answer((prompt, model)) for model in models], "references": references(prompt)}
                    for prompt in prompts]})


# ---- figures

def inline(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an SVG element. Its styles become attributes, as the page's policy asks; `name` is in its ids.
    """
    drawn = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # texts stay texts; same data, same ids
        figure.savefig(drawn, format="svg", metadata=nothing)
    root = ET.fromstring(drawn.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == f"{SVG}style" or not child.tag.startswith(SVG)]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for declared in filter(None, element.attrib.pop("style", "").split("; ")):
            key, _, value = declared.partition(": ")
            if key != "font-family":
                element.set(key, PAGE_COLOURS.get(value, value))
        if href := element.attrib.pop(f"{XLINK}href", None):
            element.set("href", href.replace("#", f"#{name}-"))
        for key in {"id", "clip-path"} & set(element.attrib):
            element.set(key, re.sub(r"^(url\(#)?", rf"\g<0>{name}-", element.get(key)))
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")


READINGS = {  # figure: its title, and how to read it
    "differences": ("Differences between two models", "Each line is a difference with its 95% interval: a strong line "
                    "with a full dot is decided, a grey one suggestive, a pale one with a hollow dot open."),
    "metrics": ("Rates", "A mark is a model's rate, its line the 95% interval; higher is better."),
    "rewards": ("Mean rewards", "A mark is a model's mean reward, its line the 95% interval; higher is better."),
    "distributions": ("Every reward", "A small dot is an answer, the dot on a line the mean with its 95% interval; an "
                      "answer above the dashed line passes."),
    "thresholds": ("Other thresholds", "The rates that any other threshold would give, the chosen one dashed: where "
                   "lines cross, another threshold would rank the models otherwise."),
    "judge": ("The judge and the humans", "Each curve is the share of prompts up to a gap in reward between the "
              "human-chosen and the rejected reply: what lies right of zero is agreement."),
    "seeds": ("Training again with other seeds", "The strong line is the mean over training seeds with its t "
              "interval, the pale one the first run with its interval over prompts."),
    "training": ("How training went", "Lines are training batches, marks the held-out pairs; dotted are the loss of a "
                 "model that has not moved and the accuracy of a coin.")}


def drawings(files: Files) -> list[Record]:
    """Return {"name", "title", "reading", "svg"} of every figure whose data the run has."""
    drawn, metrics, rewards = {}, files.metrics, files.rewards
    if metrics:
        with damage_named(files.folder / "metrics.json"):
            if metrics["comparisons"]:
                drawn["differences"] = figures.differences(metrics["comparisons"])
            drawn["metrics"] = figures.measures(metrics["models"], ["HmR", "HpR", "CAS"], "rate (%)", (0, 103))
            drawn["rewards"] = figures.measures(metrics["models"], ["harmful_reward", "helpful_reward"], "mean reward")
            if metrics["seeds"]:
                drawn["seeds"] = figures.seeds(metrics["seeds"]["differences"])
    if metrics and rewards is not None:
        limits = {"harmful": metrics["thresholds"]["harmless"], "helpful": metrics["thresholds"]["helpful"]}
        drawn["distributions"] = figures.distributions(rewards, limits, metrics["models"])
        drawn["thresholds"] = figures.thresholds({kind: checks.sweep(rewards, kind) for kind in stats.KINDS}, limits)
        if metrics["judge"] and {"Human chosen", "Human rejected"} <= set(rewards):
            drawn["judge"] = figures.judge(rewards, metrics["judge"])
    if files.training:
        with damage_named(files.folder / "training.json"):
            drawn["training"] = figures.training(files.training)
    return [{"name": name, "title": title, "reading": reading, "svg": inline(drawn[name], name, title)}
            for name, (title, reading) in READINGS.items() if name in drawn]


# ---- the page

def matrices(records: Sequence[Record]) -> list[Record]:
    """Return of every measure {"name", "first": models, "rows": {second model: [record with its words or None]}}."""
    found = []
    for measure, heading in tables.HEADINGS.items():
        pairs = {(record["second"], record["first"]): record | {
            "sentence": comparisons.verdict(record), "seen": comparisons.seen(record).replace(" points", "")}
            for record in records if record["measure"] == measure}
        first, second = (list(dict.fromkeys(record[side] for record in pairs.values())) for side in ("first", "second"))
        if pairs:
            found.append({"name": heading, "first": first,
                          "rows": {row: [pairs.get((row, column)) for column in first] for row in second}})
    return found


def headlines(records: Sequence[Record]) -> dict[str, str]:
    """Return {measure: what the decisions say of it}, of the two rates and their mean.

    Of a rate also which pairs its rewards decide and it does not: a label tells less than the reward it is made of.
    """
    names = {"HmR": "Harmlessness (HmR)", "HpR": "Helpfulness (HpR)", "CAS": "Both together (CAS)"}
    sentences = dict(sentence.partition(": ")[::2] for sentence in comparisons.headlines(records))
    found = {names[measure]: text[:1].upper() + text[1:] for measure, text in sentences.items() if measure in names}
    for rate, reward in comparisons.RATES.items():
        decided = {measure: {(record["second"], record["first"]): record["difference"] for record in records
                             if record["measure"] == measure and record["decision"] == "decided"}
                   for measure in (rate, reward)}
        more = [f"{second} {'above' if difference > 0 else 'below'} {first}"
                for (second, first), difference in decided[reward].items() if (second, first) not in decided[rate]]
        if more and names[rate] in found:
            found[names[rate]] += f" The mean reward also decides {', '.join(more)}."
    return found


def health(records: Sequence[Record]) -> pd.DataFrame | None:
    """Return what the answers look like as a table of texts, a row a kind and model; None without answers."""
    shares = {"empty": "empty", "human_turn": "opened a human turn", "refusal": "begins like a refusal"}
    rows = [{"prompts": record["kind"], "model": record["model"]}
            | {heading: f"{record[name]:.0f}" for name, heading in shares.items()}
            | {"distinct-2": f"{record['distinct_2']:.2f}"} for record in records]
    return pd.DataFrame(rows) if rows else None


def settings_of(values: Mapping[str, Any]) -> pd.DataFrame:
    """Return the settings of a stage as a table of texts."""
    rows = {name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in values.items()}
    return pd.DataFrame(visible(rows).items(), columns=["setting", "value"])  # pandas takes no half of a character


def across_seeds(files: Files) -> pd.DataFrame | None:
    """Return the mean differences over training seeds as a table, None where the run is no part of such a group."""
    if not files.metrics or not files.metrics["seeds"]:
        return None
    with damage_named(files.folder / "metrics.json"):
        return tables.differences_across_seeds(files.metrics["seeds"]["differences"])


def software(environment: Record) -> str:
    """Return an environment of a ledger in a line, without its day."""
    packages = [f"{name} {version}" for name, version in environment["packages"].items()]
    code = [f"{what} {environment[key][:12]}" for what, key in (("git commit", "git_commit"), ("code", "code_sha256"))
            if environment[key]]
    return ", ".join([f"Python {environment['python']}", *packages, environment["device"], *code])


def facts(files: Files) -> dict[str, str]:
    """Return {name: text}: whose numbers these are, how many prompts there are, and when and with what all was made."""
    found = {"Run": files.folder.name} | {name.replace("_", " ").capitalize(): text
                                          for name, text in files.source.items()}
    made = []
    if files.ledger:
        trained, evaluated = (files.ledger.settings.get(stage, {}) for stage in ("training", "evaluation"))
        found |= {"Preset": files.ledger.preset, "Base model": trained.get("base_model"),
                  "Judge": evaluated.get("reward_model")}
        made = [artifact.environment for artifact in files.ledger.artifacts.values()]
    if files.rewards is not None:
        found["Prompts"] = ", ".join(f"{n} {kind}" for kind, n in files.rewards.groupby("kind").size().items())
    dates = sorted({environment["date"] for environment in made if environment.get("date")})
    if dates:
        found["Made"] = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    if files.metrics:
        found["Measured"] = files.metrics["environment"]["date"]
        found["Measured with"] = software(files.metrics["environment"])
    return {name: str(text) for name, text in found.items() if text}


def page(folder: Path) -> str:
    """Return the page of a run as HTML. Raises as `contents.read_files` does."""
    files = read_files(folder)
    ledger, metrics, shown = files.ledger, files.metrics, answers(files)
    records = metrics["comparisons"] if metrics else []
    parts = {name: (HERE / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True,
                              finalize=lambda value: value if hasattr(value, "__html__") else visible(value))
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    artifacts = ledger.artifacts if ledger else {}
    made = {name: one.sha256 for name, one in artifacts.items()} or (metrics["sha256"] if metrics else {})
    with damage_named(folder / "run.json"):
        known, versions = facts(files), {name: software(made.environment) for name, made in artifacts.items()}
        cleaning = pd.DataFrame(ledger.data).set_index("subset").T if ledger and ledger.data else None
    return environment.get_template("report.html").render(
        ledger=ledger, metrics=metrics, data=shown, facts=known, missing=missing(files),
        headlines=headlines(records), matrices=matrices(records), sentences=comparisons.verdicts(records),
        summary=tables.summary([*metrics["models"], *metrics["references"]]) if metrics else None,
        win_rates=tables.win_rates(records), marks=checks.MARKS, seeds=across_seeds(files),
        figures={drawing["name"]: drawing for drawing in drawings(files)},
        made=pd.DataFrame(visible(made).items(), columns=["file", "sha256"]) if made else None,
        health=health(metrics["health"]) if metrics else None,
        settings={stage: settings_of(values) for stage, values in ledger.settings.items()} if ledger else {},
        software={text: [name for name in versions if versions[name] == text] for text in versions.values()},
        cleaning=None if cleaning is None else cleaning.reset_index(names="rows"),
        **parts,
        **{f"{name}_hash": "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
           for name, text in parts.items()})


def write_page(folder: Path) -> Path:
    """Write the page of a run into its folder, whole or not at all, and return its path."""
    write(folder / "report.html", page(folder))
    return folder / "report.html"
