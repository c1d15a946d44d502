"""The final table as markdown, CSV and LaTeX: whatever a name contains, it is read as text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from posttrain.metrics import REFERENCES

Record = Mapping[str, Any]

LATEX = str.maketrans(
    {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "%": "\\%",
        "_": "\\_",
        "&": "\\&",
        "#": "\\#",
        "$": "\\$",
        "{": "\\{",
        "}": "\\}",
        "−": "$-$",
    }
)


def as_markdown(table: pd.DataFrame, caption: str) -> str:
    """Write the final table as markdown, its caption first, reference answers below a heading.

    Args:
        table: of `summary`.
        caption: what is above it; nothing in it is markup.
    """
    lines = [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
    headed = False
    for cells in table.to_numpy().tolist():
        if cells[0] in REFERENCES and not headed:
            lines.append(_markdown_row(["*References*"] + [""] * (len(cells) - 1)))
            headed = True
        lines.append(_markdown_row([escape_markdown(cells[0]), *cells[1:]]))
    return "\n".join([escape_markdown(caption), "", *lines, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    """Write a row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """Write a text in one line in which nothing is markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|$#~])", r"\\\1", " ".join(text.splitlines()))


def as_latex(table: pd.DataFrame, caption: str, note: str) -> str:
    """Write the final table for LaTeX: a `table*` over both columns of a paper, with booktabs.

    Args:
        table: of `summary`; the reference answers stand below a line.
        caption: what is above the table; nothing in it is a command.
        note: what is below it; nothing in it is a command.
    """
    heads = []
    for name in table.columns:
        short = re.sub(r"(\w+) on (\w+) prompts", r"\1 (\2)", name)
        heads.append(short.translate(LATEX))
    lines = [_latex_row(heads), "\\midrule"]
    ruled = False
    for cells in table.to_numpy().tolist():
        if cells[0] in REFERENCES and not ruled:
            lines.append("\\midrule")
            ruled = True
        lines.append(_latex_row([cell.translate(LATEX) for cell in cells]))
    body = "\n".join(lines)
    return f"""\
% needs \\usepackage{{booktabs}} and a text width of 6.8 inches
\\begin{{table*}}
\\centering
\\footnotesize
\\setlength{{\\tabcolsep}}{{4pt}}
\\caption{{{caption.translate(LATEX)}}}
\\label{{tab:alignment}}
\\begin{{tabular}}{{l{"r" * (len(table.columns) - 1)}}}
\\toprule
{body}
\\bottomrule
\\end{{tabular}}
\\par\\smallskip\\parbox{{\\linewidth}}{{\\footnotesize {note.translate(LATEX)}}}
\\end{{table*}}
"""


def _latex_row(cells: Sequence[str]) -> str:
    """Write a row of a LaTeX table."""
    return f"{' & '.join(cells)} \\\\"


def as_csv(records: Sequence[Record], label: str) -> str:
    """Write the records of `metrics.summarise` as CSV, numbers in full, with the run's label."""
    return pd.DataFrame(records).assign(run=label).to_csv(index=False)
