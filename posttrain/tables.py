"""The tables that the notebooks, the page and the documents show.

Texts of models and people are shown as text: nothing in them is read as HTML, markdown, a formula
or a command of LaTeX.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from pandas.io.formats.style import Styler
from pydantic import BaseModel

from posttrain.behaviour import PROPERTIES, marks
from posttrain.comparisons import (
    describe_wins,
    format_difference,
    format_fixed,
    format_percentage,
    format_signed,
    has_measure,
)
from posttrain.losses import explain_loss
from posttrain.metrics import MEASURES, models_of

Record = Mapping[str, Any]

# Columns of a log of training, under names that people use.
VALIDATION = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "reward accuracy",
    "eval_rewards/margins": "reward margin",
    "eval_logps/chosen": "log p(chosen)",
    "eval_logps/rejected": "log p(rejected)",
}
HEADINGS = {
    "HmR": "HmR (%)",
    "HpR": "HpR (%)",
    "CAS": "CAS (%)",
    "harmful_reward": "reward on harmful prompts",
    "helpful_reward": "reward on helpful prompts",
}
LETTERS_OF_LINE = 96  # of printed text, which fits into a notebook that is 1,200 pixels wide
IN_PERCENT = ("HmR", "HpR", "CAS", "rate")
BEHAVIOUR = {
    "empty": "empty (%)",
    "human_turn": "opened a human turn (%)",
    "cut": "cut by the limit (%)",
    "refuses": "refuses (%)",
    "not_understood": "does not understand (%)",
    "distinct_2": "distinct word pairs (share)",
    "tokens": "tokens (mean)",
    "log_ratio": "log-ratio to the baseline (nats per token)",
}


# ---- for the notebooks


def numbers(table: pd.DataFrame | Sequence[Record], precision: int = 1) -> Styler:
    """Show a table of numbers with typographic minus signs, and nothing where there is none.

    Args:
        table: records, or a table, whose index is shown if it has a name.
        precision: decimals of the numbers; whole numbers have none.
    """
    has_index = isinstance(table, pd.DataFrame) and any(table.index.names)
    styler = pd.DataFrame(table).style.format(_number_format(precision), escape="html")
    styler = styler.format_index(escape="html").format_index(escape="html", axis="columns")
    return styler if has_index else styler.hide(axis="index")


def _number_format(precision: int) -> Callable[[Any], str]:
    """Make a function that writes a cell: a number, a text, or nothing."""

    def write(value: Any) -> str:
        if isinstance(value, str):
            return value
        if pd.isna(value):
            return ""
        return format_fixed(value, precision if isinstance(value, float) else 0)

    return write


def print_paragraphs(sentences: Sequence[str]) -> None:
    """Print texts as paragraphs that break between words, in a notebook as in a terminal."""
    lines = []
    for sentence in sentences:
        lines.append(textwrap.fill(sentence, LETTERS_OF_LINE, break_on_hyphens=False))
    print("\n\n".join(lines))


def behaviour(records: Sequence[Record]) -> Styler:
    """Show how the models answer, a column for each property that is known.

    Args:
        records: of `behaviour.behaviour`.
    """
    layout = [
        {"selector": "th, td", "props": "text-align: left"},
        {"selector": "td", "props": "white-space: nowrap"},
    ]
    styler = tabulate_behaviour(records).style.hide(axis="index").format(escape="html")
    return styler.set_table_styles(layout)


def tabulate_behaviour(records: Sequence[Record]) -> pd.DataFrame:
    """Write how the models answer as a table of texts: rates and log-ratios with their intervals.

    Args:
        records: of `behaviour.behaviour`; what is not known of a model may be missing or None.
    """
    rows = []
    for record in records:
        row = {"Model": record["model"], "prompts": record["kind"]}
        for name, heading in BEHAVIOUR.items():
            if record.get(name) is not None:
                row[heading] = _write_property(record, name)
        rows.append(row)
    table = pd.DataFrame(rows)
    columns = ["Model", "prompts", *BEHAVIOUR.values()]
    return table[[name for name in columns if name in table]].fillna("")


def _write_property(record: Record, name: str) -> str:
    """Write a property of a model's answers; rates in whole percent."""
    if name in PROPERTIES:
        return f"{record[name]:.0f} [{record[f'{name}_low']:.0f}, {record[f'{name}_high']:.0f}]"
    if name == "log_ratio":
        return interval(record, name)
    return f"{record[name]:.{1 if name == 'tokens' else 2}f}"


def running_on(records: Sequence[Record]) -> Styler:
    """Show how much of each model's gain in reward comes with opening fewer human turns.

    Args:
        records: of `diagnostics.gain_by_not_running_on`.
    """
    rows = []
    for record in records:
        row = {
            "prompts": record["kind"],
            "model": record["model"],
            "gain over the baseline": interval(record, "gain"),
            "of it by opening fewer human turns": interval(record, "by_share"),
        }
        rows.append(row)
    layout = {"selector": "caption", "props": "text-align: left"}
    styler = on_one_line(pd.DataFrame(rows)).set_table_styles([layout], overwrite=False)
    return styler.set_caption(
        "Some responses run on: after the answer the model opens a human turn and invents what the "
        "human says. The table splits each model's gain in mean reward over the baseline: the last "
        "column is the part that comes with opening human turns less often (Kitagawa 1955). This "
        "is an association, since no response was seen both with such a turn and without it."
    )


def texts(table: pd.DataFrame) -> Styler:
    """Show a table of texts as they are: with their line breaks, and nothing read as markup."""
    layout = "text-align: left; vertical-align: top; white-space: pre-wrap"
    styler = table.style.format(escape="html")
    styler = styler.format_index(escape="html").format_index(escape="html", axis="columns")
    styler = styler.set_table_styles([{"selector": "th, td", "props": layout}])
    return styler.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')


def on_one_line(table: pd.DataFrame) -> Styler:
    """Show a table, without its index, in which no cell breaks into two lines."""
    layout = {"selector": "th, td", "props": "white-space: nowrap; text-align: left"}
    styler = table.style.hide(axis="index").format(escape="html")
    styler = styler.format_index(escape="html", axis="columns")
    return styler.set_table_styles([layout])


def settings(chosen: BaseModel) -> Styler:
    """Show the settings of a run, each with what it means."""
    rows = []
    for name, field in type(chosen).model_fields.items():
        value = _as_text(getattr(chosen, name))
        rows.append({"setting": name, "value": value, "meaning": field.description or ""})
    return texts(pd.DataFrame(rows)).hide(axis="index")


def _as_text(value: Any) -> str:
    """Write a setting's value; several values with blanks between them."""
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return str(value)


def loss(
    loss_type: str | Sequence[str],
    weights: Sequence[float] | None,
    beta: float,
    label_smoothing: float,
) -> Markdown:
    """Show the loss of a run and its formula; the arguments are those of `explain_loss`."""
    return Markdown(explain_loss(loss_type, weights, beta, label_smoothing))


def tokens(table: pd.DataFrame) -> HTML:
    """Show a text token by token, each in a box; those that carry a loss are bold on blue.

    Args:
        table: of `data.show_pair_tokens`: columns id, text, loss; a row a token.
    """
    parts = []
    for token in table.itertuples():
        look = "background: #cfe3f5; font-weight: bold" if token.loss else "background: #eee"
        text = escape(token.text)
        parts.append(f'<span style="{look}; color: #111; padding: 0 2px">{text}</span>')
    marks = 'class="tex2jax_ignore mathjax_ignore" style="white-space: pre-wrap; line-height: 1.8"'
    return HTML(f"<div {marks}>{' '.join(parts)}</div>")


def validation(log: Mapping[str, Sequence[Record]]) -> Styler:
    """Show the first and the last validation of every stage.

    Args:
        log: training.json, {model: log records}.
    """
    ends = {}
    for name, records in log.items():
        validated = [record for record in records if "eval_loss" in record]
        if not validated:  # a trainer may have no held-out pairs
            continue
        when = ["before" if validated[0]["step"] == 0 else f"step {validated[0]['step']}"]
        if len(validated) > 1:
            when.append("after")
        ends[name] = pd.DataFrame([validated[0], *validated[1:][-1:]], index=when)
    if not ends:
        return pd.DataFrame().style
    table = pd.concat(ends, names=["model", "when"])
    table = table[[name for name in VALIDATION if name in table]].rename(columns=VALIDATION)
    formats = {}
    for name in table:
        formats[name] = _number_format(1 if name.startswith("log p") else 3)
    return table.style.format(formats).format_index(escape="html")


def side_by_side(answers: pd.DataFrame, kind: str, n: int) -> Styler:
    """Show the first prompts of a kind with every model's response.

    Above a response stand its label and reward, where they are known, and its marks.

    Args:
        answers: of `metrics.table`; the columns label and reward may be missing.
        kind: of prompts.
        n: how many prompts.
    """
    part = answers[answers["kind"] == kind]
    columns = {}
    for model in models_of(answers):
        cells = {}
        for row in part[part["model"] == model].head(n).to_dict("records"):
            prompt = f"{row['id']}\n{(row['prompt'] or '').strip()}"
            cells[prompt] = _headed_response(row)
        columns[model] = cells
    return texts(pd.DataFrame(columns))


def _headed_response(row: Record) -> str:
    """Write a response below what is known of it."""
    remarks = []
    if isinstance(row.get("label"), str):
        remarks.append(f"{row['label']}, {row['reward']:.1f}")
    remarks += marks(row)
    head = f"[{', '.join(remarks)}]\n" if remarks else ""
    return head + (row["response"] or "")


# ---- measures with their intervals


def interval(record: Record, name: str) -> str:
    """Write a measure of a record as `value [low, high]`.

    Rates have one decimal, rewards two, and minus signs are true ones.
    """
    digits = 1 if name in IN_PERCENT else 2
    ends = "all equal"
    if record[f"{name}_low"] is not None:
        ends = f"{record[f'{name}_low']:.{digits}f}, {record[f'{name}_high']:.{digits}f}"
    return f"{record[name]:.{digits}f} [{ends}]".replace("-", "−")


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Make the final table: a row a model, every measure that there is with its interval.

    Args:
        records: of `metrics.summarise`.
    """
    rows = []
    for record in records:
        row = {"Model": record["model"]}
        for name in MEASURES:
            if has_measure(record, name):
                row[HEADINGS[name]] = interval(record, name)
        rows.append(row)
    return pd.DataFrame(rows)


def split_difference(record: Record) -> tuple[str, str]:
    """Write a comparison's difference and its interval as two texts, without their unit."""
    text = format_difference(record).replace(" points", "")
    difference, _, ends = text.partition(" ")
    return difference, ends


def decisions(comparisons: Sequence[Record]) -> Styler:
    """Show what is known of every difference: a row a pair of models, a column a measure.

    A cell holds the decision, the difference and its interval; what is significant is bold.

    Args:
        comparisons: of `comparisons.compare`; empty where there is a single model.
    """
    rows = {}
    for record in comparisons:
        pair = f"{record['second']} − {record['first']}"
        heading = HEADINGS[record["measure"]].replace(" on ", " on\n")
        cell = "\n".join([record["decision"], *split_difference(record)])
        rows.setdefault(pair, {})[heading] = cell
    table = pd.DataFrame(rows.values(), index=list(rows))
    styler = table.style.map(
        lambda cell: "font-weight: bold" if cell.startswith("significant") else ""
    )
    styler = styler.format_index(escape="html")
    layout = "white-space: pre; text-align: left"
    return styler.set_table_styles([{"selector": "th, td", "props": layout}])


def rates_across_runs(records: Sequence[Record]) -> pd.DataFrame:
    """Show every model's HmR, HpR and CAS in all runs, with mean and standard deviation.

    Args:
        records: of `compare.rates_across`.
    """
    rows = {}
    for record in records:
        if record["measure"] in IN_PERCENT:
            values = " ".join(f"{value:.0f}" for value in record["values"])
            cell = f"{values}: {record['mean']:.1f} ± {record['sd']:.1f}"
            row = rows.setdefault(record["model"], {"model": record["model"]})
            row[HEADINGS[record["measure"]]] = cell
    return pd.DataFrame(rows.values())


def differences_across_runs(records: Sequence[Record]) -> pd.DataFrame:
    """Show the mean difference of every two models over all runs, with its intervals.

    Args:
        records: of `compare.differences_across`.
    """
    rows = {}
    for record in records:
        if record["measure"] not in IN_PERCENT:
            continue
        pair = f"{record['second']} − {record['first']}"
        row = rows.setdefault(pair, {"pair": pair})
        lines = [format_signed(record["mean"], 1)]
        if record["averaged_low"] is None:  # the runs are no sample, so each stands for itself
            lines = [" ".join(format_signed(value, 1) for value in record["values"])]
        elif record["low"] is None:
            lines.append("all runs alike")
        for name, prefix in {"both": "both_", "trainings": "", "prompts": "averaged_"}.items():
            low, high = record[f"{prefix}low"], record[f"{prefix}high"]
            if low is not None:
                lines.append(f"{name} [{format_signed(low, 1)}, {format_signed(high, 1)}]")
        row[f"{record['measure']} (points)"] = "\n".join(lines)
    return pd.DataFrame(rows.values())


def win_rates(comparisons: Sequence[Record]) -> pd.DataFrame:
    """Tell how often the second model of a pair is rewarded more, in percent of the prompts.

    Ties count half, and the interval is that of `comparisons.describe_wins`.

    Args:
        comparisons: of `comparisons.compare`.
    """
    rows = {}
    for record in comparisons:
        if not record["measure"].endswith("_reward"):
            continue
        wins = describe_wins(record["gained"], record["lost"], record["n"])
        pair = f"{record['second']} over {record['first']}"
        heading = f"{MEASURES[record['measure']]} prompts (n = {record['n']})"
        row = rows.setdefault(pair, {"pair": pair})
        row[heading] = format_percentage(wins, "win_rate")
    return pd.DataFrame(rows.values())
