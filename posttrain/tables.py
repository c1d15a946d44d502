"""The final table as markdown, CSV and LaTeX, and what the notebooks show; texts of models and people are made safe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from posttrain.checks import marks
from posttrain.comparisons import seen, signed
from posttrain.stats import MEASURES, REFERENCES, paired_difference

VALIDATION = {"eval_loss": "loss", "eval_rewards/accuracies": "reward accuracy",
              "eval_rewards/margins": "reward margin", "eval_logps/chosen": "log p(chosen)",
              "eval_logps/rejected": "log p(rejected)"}
HEADINGS = {"HmR": "HmR (%)", "HpR": "HpR (%)", "CAS": "CAS (%)", "harmful_reward": "reward on harmful prompts",
            "helpful_reward": "reward on helpful prompts"}
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
    digits = {name: f"{{:.{1 if name.startswith('log') else 3}f}}" for name in VALIDATION.values()}
    table = table[[name for name in VALIDATION if name in table]].rename(columns=VALIDATION)
    return table.style.format({name: digits[name] for name in table}, na_rep="")


def interval(record: Record, name: str) -> str:
    """Return `value [low, high]` of a record: rates to a tenth, rewards to two decimals, true minus signs."""
    digits = 1 if name in ("HmR", "HpR", "CAS", "rate") else 2
    value, low, high = (record[name + end] for end in ("", "_low", "_high"))
    ends = "all equal" if low is None else f"{low:.{digits}f}, {high:.{digits}f}"
    return f"{value:.{digits}f} [{ends}]".replace("-", "−")


def summary(models: Sequence[Record]) -> pd.DataFrame:
    """Return the final table: a row a model record, `value [low, high]` in a cell."""
    return pd.DataFrame([{"Model": record["model"]} | {HEADINGS[name]: interval(record, name) for name in MEASURES}
                         for record in models])


def on_one_line(table: pd.DataFrame) -> Styler:
    """Return a table without its index whose cells do not break: no interval stands on two lines."""
    return table.style.hide(axis="index").format(escape="html").set_table_styles(
        [{"selector": "th, td", "props": "white-space: nowrap; text-align: left"}])


def with_intervals(records: Sequence[Record], names: Sequence[str]) -> Styler:
    """Return a table of flat records in which each of `names` stands with its interval."""
    table = pd.DataFrame([{name: value for name, value in record.items() if not name.endswith(("_low", "_high"))}
                          | {name: interval(record, name) for name in names} for record in records])
    return on_one_line(table)


def across_seeds(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row a model: of HmR, HpR and CAS every seed's value, mean and standard deviation (`seeds.across`)."""
    rows = {}
    for record in records:
        if record["measure"] in ("HmR", "HpR", "CAS"):
            values = " ".join(f"{value:.0f}" for value in record["values"])
            spread = "" if record["sd"] is None else f" ± {record['sd']:.1f}"
            rows.setdefault(record["model"], {"model": record["model"]})[HEADINGS[record["measure"]]] = (
                f"{values}: {record['mean']:.1f}{spread}")
    return pd.DataFrame(rows.values())


def differences_across_seeds(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row a pair: of HmR, HpR and CAS the mean difference over seeds with its t interval."""
    rows = {}
    for record in records:
        if record["measure"] in ("HmR", "HpR", "CAS"):
            pair = f"{record['second']} − {record['first']}"
            ends = ("no interval" if record["low"] is None else
                    f"{signed(record['low'], 1)}, {signed(record['high'], 1)}")
            rows.setdefault(pair, {"pair": pair})[f"{record['measure']} (points)"] = (
                f"{signed(record['mean'], 1)} [{ends}]")
    return pd.DataFrame(rows.values())


def decisions(comparisons: Sequence[Record]) -> Styler:
    """Return a row a pair of models and a column a measure: difference, decision and interval; what is decided bold."""
    if not comparisons:  # a single model
        return pd.DataFrame().style
    rows = pd.DataFrame([{"pair": f"{record['second']} − {record['first']}",
                          "measure": HEADINGS[record["measure"]].replace(" on ", " on\n"),
                          "found": f"{record['decision']}\n" + seen(record).replace(" points", "").replace(" [", "\n[")}
                         for record in comparisons])
    table = rows.pivot(index="pair", columns="measure", values="found").loc[
        rows["pair"].drop_duplicates(), rows["measure"].drop_duplicates()].rename_axis(index=None, columns=None)
    styler = table.style.map(lambda cell: "font-weight: bold" if cell.startswith("decided") else "")
    return styler.set_table_styles([{"selector": "th, td", "props": "white-space: pre; text-align: left"}])


def win_rates(comparisons: Sequence[Record]) -> pd.DataFrame:
    """Return how often the second model of a pair is rewarded more, in percent of the prompts, ties counting half.

    The interval is that of the difference of won and lost prompts (Bonett and Price 2012), halved about 50%.
    """
    rows = {}
    for record in comparisons:
        if "reward" in record["measure"]:
            won, lost, n = (record[name] for name in ("gained", "lost", "n"))
            ends = paired_difference(won, lost, n)
            middle, low, high = (50 + points / 2 for points in (100 * (won - lost) / n, ends["low"], ends["high"]))
            name = f"{record['second']} over {record['first']}"
            rows.setdefault(name, {"pair": name})[f"{MEASURES[record['measure']]} prompts (n = {n})"] = (
                f"{middle:.0f}% [{low:.0f}, {high:.0f}]")
    return pd.DataFrame(rows.values())


def as_markdown(table: pd.DataFrame, caption: str) -> str:
    """Return a table as markdown, its caption first, in which nothing is markup; the references below a heading."""
    lines = [table.columns, ["---"] * len(table.columns), *table.values]
    if REFERENCES[0] in set(table.iloc[:, 0]):
        lines.insert(2 + len(table) - len(REFERENCES), ["*References*", *[""] * len(MEASURES)])
    plain = re.sub(r"([\\`*_{}\[\]<>|$#~])", r"\\\1", caption)
    return "\n".join([plain, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def as_latex(table: pd.DataFrame, caption: str, note: str) -> str:
    """Return the final table for LaTeX: a `table*` over both columns (booktabs), a note below, references last.

    Nothing in caption or note is a command.
    """
    cells = table.replace("−", "$-$", regex=True).rename(columns=lambda name: re.sub(
        r"(\w+) on (\w+) prompts", r"\1 (\2)", name).replace("%", "\\%"))
    body = cells.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * len(MEASURES))
    body = body.replace(f"{REFERENCES[0]} &", f"\\midrule\n{REFERENCES[0]} &")
    return "\n".join(["% needs \\usepackage{booktabs} and a text width of 6.8 inches", "\\begin{table*}", "\\centering",
                      "\\footnotesize", "\\setlength{\\tabcolsep}{4pt}",
                      f"\\caption{{{caption.translate(LATEX)}}}", "\\label{tab:alignment}", body.strip(),
                      f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\footnotesize {note.translate(LATEX)}}}",
                      "\\end{table*}", ""])


def as_csv(models: Sequence[Record], label: str) -> str:
    """Return the model records as CSV, numbers in full, a column each, and the run's label."""
    return pd.DataFrame(models).assign(run=label).to_csv(index=False)


def side_by_side(prompts: Sequence[Record], responses: Sequence[Record], kind: str, n: int,
                 classification: Sequence[Record] = ()) -> Styler:
    """Return the first `n` prompts of a kind with every model's response, marks, and label and reward where known."""
    known = {(row["id"], row["model"]): f"{row['label']}, {row['reward']:.1f}" for row in classification}
    shown = [prompt for prompt in prompts if prompt["kind"] == kind][:n]
    rows = {prompt["id"]: f"{prompt['id']}\n{prompt['prompt'].strip()}" for prompt in shown}
    cells = {name: {} for name in rows.values()}
    for response in responses:
        if response["id"] in rows:
            head = ", ".join(filter(None, [known.get((response["id"], response["model"])), *marks(response)]))
            cells[rows[response["id"]]][response["model"]] = f"[{head}]\n" * bool(head) + response["response"]
    return texts(pd.DataFrame(cells).T)
