"""The final table as markdown, CSV and LaTeX, and what the notebooks show; texts of models and people are made safe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from posttrain.stats import MEASURES, REFERENCES, distinct_2

VALIDATION = {"eval_loss": "loss", "eval_rewards/accuracies": "reward accuracy",
              "eval_rewards/margins": "reward margin", "eval_logps/chosen": "log p(chosen)",
              "eval_logps/rejected": "log p(rejected)"}
LATEX = str.maketrans({letter: f"\\{letter}" for letter in "%_&#${}"} | {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"})  # as text, not as commands

Record = Mapping[str, Any]


def numbers(records: Sequence[Record], precision: int = 1, **formats: str) -> Styler:
    """Return a table of flat records, numbers with so many decimals; `formats`: of single columns."""
    return pd.DataFrame(records).style.format(formats, precision=precision, na_rep="").hide(axis="index")


def texts(table: pd.DataFrame) -> Styler:
    """Return a table of texts as they are: line breaks kept, nothing in them read as HTML or as a formula."""
    layout = {"selector": "th, td", "props": "text-align: left; vertical-align: top; white-space: pre-wrap"}
    styler = table.style.format(escape="html").format_index(escape="html").format_index(escape="html", axis="columns")
    return styler.set_table_styles([layout]).set_table_attributes('class="tex2jax_ignore mathjax_ignore"')


def validation(log: Mapping[str, Sequence[Record]]) -> Styler:
    """Return the first and the last validation of every stage; `log`: training.json."""
    ends = [pd.DataFrame(records).dropna(subset="eval_loss").iloc[[0, -1]].set_axis(["before", "after"])
            for records in log.values()]
    table = pd.concat(ends, keys=log, names=["model", "when"])
    return table[[name for name in VALIDATION if name in table]].rename(columns=VALIDATION).style.format(
        "{:.3f}", na_rep="")


def summary(models: Sequence[Record]) -> pd.DataFrame:
    """Return the final table: a row a model record, `value [low, high]` in a cell, rates to a tenth, rewards to two."""
    def cell(record: Record, name: str) -> str:
        digits = 2 if "reward" in name else 1
        value, low, high = (f"{record[name + end]:.{digits}f}" for end in ("", " low", " high"))
        return f"{value} [{low}, {high}]"

    return pd.DataFrame([{"Model": record["model"]} | {name: cell(record, name) for name in MEASURES}
                         for record in models])


def as_markdown(table: pd.DataFrame, caption: str) -> str:
    """Return the final table as markdown, its caption first, in which nothing is markup."""
    lines = [table.columns, ["---"] * len(table.columns), *table.values]
    if REFERENCES[0] in set(table["Model"]):
        lines.insert(2 + len(table) - len(REFERENCES), ["*References*", *[""] * len(MEASURES)])
    plain = re.sub(r"([\\`*_{}\[\]<>|$#~])", r"\\\1", caption)
    return "\n".join([plain, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def as_latex(table: pd.DataFrame, caption: str) -> str:
    """Return the final table for LaTeX (booktabs), the references below a line, nothing in the caption a command."""
    latex = table.style.hide(axis="index").to_latex(hrules=True, caption=caption.translate(LATEX))
    return latex.replace(f"{REFERENCES[0]} &", f"\\midrule\n{REFERENCES[0]} &")


def as_csv(models: Sequence[Record], label: str) -> str:
    """Return the model records as CSV, numbers in full, a column each, and the run's label."""
    return pd.DataFrame(models).assign(run=label).to_csv(index=False)


def marks(response: Record) -> str:
    """Return what is the matter with a record of responses.json, as text; empty where nothing is."""
    found = {"empty": not response["response"], "cut": response.get("finish") == "length",
             "opened a human turn": response.get("finish") == "turn",
             "repetitive": distinct_2([response["response"]]) < 0.5}
    return ", ".join(mark for mark, holds in found.items() if holds)


def side_by_side(prompts: Sequence[Record], responses: Sequence[Record], kind: str, n: int,
                 classification: Sequence[Record] = ()) -> Styler:
    """Return the first `n` prompts of a kind with every model's response, marks, and label and reward where known."""
    known = {(row["id"], row["model"]): f"{row['label']}, {row['reward']:.1f}" for row in classification}
    shown = [prompt for prompt in prompts if prompt["kind"] == kind][:n]
    rows = {prompt["id"]: f"{prompt['id']}\n{prompt['prompt'].strip()}" for prompt in shown}
    cells = {name: {} for name in rows.values()}
    for response in responses:
        if response["id"] in rows:
            head = ", ".join(filter(None, [known.get((response["id"], response["model"])), marks(response)]))
            cells[rows[response["id"]]][response["model"]] = f"[{head}]\n" * bool(head) + response["response"]
    return texts(pd.DataFrame(cells).T)
