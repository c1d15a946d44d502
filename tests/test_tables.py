"""Tables: the final one in three forms; texts of models and people are text wherever they are shown."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from conftest import MODELS

from posttrain import stats, tables

HOSTILE = ["<script>alert(1)</script>", "a | b || c", "`code` ```fence```", r"\input{/etc/passwd} \write18{ls}",
           "$x^2$ $$y$$", "<img src=x onerror=alert(1)>", "&lt;b&gt; &amp;", "[link](javascript:alert(1))", "# heading",
           "%comment {group} ~tilde ^hat _under_ *star*", "</td></tr></table><b>", r"\(math\) \[math\]",
           "two\n\nlines"]


class Texts(HTMLParser):
    """Collects the tags and the text of an HTML document."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_response_is_shown_as_text(text):
    """In the side-by-side a response, a prompt and a label are text: no tag, no formula, every letter there."""
    prompts = [{"id": "harmful-00", "kind": "harmful", "prompt": text}]
    responses = [{"id": "harmful-00", "model": model, "response": text, "finish": "eos"} for model in MODELS]
    labels = [{"id": "harmful-00", "model": model, "reward": 1.0, "label": text} for model in MODELS]
    shown = tables.side_by_side(prompts, responses, "harmful", 4, labels)
    html = shown._repr_html_()
    found = Texts(html)
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.text.count(text) == 9
    assert "tex2jax_ignore mathjax_ignore" in html
    assert shown._repr_latex_() is None  # no other way of showing it
    assert not hasattr(shown, "_repr_markdown_")


def test_side_by_side_shows_what_is_there(evaluation):
    """The first prompts of a kind, each model's response with its marks, label and reward where they are known."""
    shown = tables.side_by_side(evaluation.prompts, evaluation.responses, "helpful", 2).data
    assert [index.split("\n")[0] for index in shown.index] == ["helpful-00", "helpful-01"]
    assert list(shown.columns) == MODELS
    assert "[cut" in shown.loc[shown.index[0], "Base"]
    labels = evaluation.classification
    labelled = tables.side_by_side(evaluation.prompts, evaluation.responses, "helpful", 2, labels).data
    assert re.match(r"\[(un)?helpful, -?\d+\.\d", labelled.iloc[0, 0])
    assert tables.side_by_side([], [], "helpful", 2).data.empty



LATEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
         **{f"\\{letter}": letter for letter in "%_&#${}"}}


@pytest.mark.parametrize("text", [text.replace("\n", " ") for text in HOSTILE])
def test_labels_in_tables_are_text(text):
    """A run, model or judge whose name is markup stands in the tables letter by letter, and as no command."""
    table = pd.DataFrame([{"Model": "Base"} | dict.fromkeys(tables.HEADINGS.values(), "1 [0, 2]")])
    markdown = tables.as_markdown(table, text).splitlines()[0]
    assert not re.search(r"(?<!\\)[`*_{}\[\]<>|$#~]", re.sub(r"\\\\", "", markdown))
    assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", markdown) == text
    for pattern in (r"\\caption\{(.*)\}\n", r"\\footnotesize (.*)\}\n"):
        latex = re.search(pattern, tables.as_latex(table, text, text))[1]
        plain = re.sub("|".join(map(re.escape, LATEX)), "", latex)
        assert not set(plain) & set("\\%_&#${}~^")
        assert re.sub("|".join(map(re.escape, LATEX)), lambda code: LATEX[code[0]], latex) == text
    assert f",{text}" in tables.as_csv([{"model": "Base"}], text).replace('"', "")


def test_final_table(evaluation):
    """Models in order, then the references below a line, every cell with its interval and a true minus."""
    summary = tables.summary(evaluation.records)
    assert list(summary["Model"]) == [*MODELS, *stats.REFERENCES]
    assert list(summary.columns) == ["Model", *tables.HEADINGS.values()]
    assert all(re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", cell) for cell in summary["CAS (%)"])
    assert all(re.fullmatch(r"−?\d+\.\d\d \[(−?\d+\.\d\d, −?\d+\.\d\d|all equal)\]", cell)
               for cell in summary["reward on harmful prompts"])
    lines = tables.as_markdown(summary, "Caption.").splitlines()
    assert lines[0] == "Caption."
    assert lines[2].startswith("| Model | HmR (%) |")
    assert lines[8].startswith("| *References* |")
    assert "\\midrule\nHuman chosen &" in tables.as_latex(summary, "Caption.", "Note.")
    models_alone = tables.summary(evaluation.records[:4])
    assert "*References*" not in tables.as_markdown(models_alone, "")
    assert "white-space: nowrap" in tables.on_one_line(summary).to_html()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("layout", ["", "twocolumn"])
def test_final_table_compiles(evaluation, tmp_path, layout):
    """In a paper of one or two columns, without an overfull box."""
    summary = tables.summary(evaluation.records)
    table = tables.as_latex(summary, "A 100% & hostile_caption.", " ".join(evaluation.cautions))
    (tmp_path / "paper.tex").write_text(
        f"\\documentclass[10pt,{layout}]{{article}}\\usepackage[margin=0.8in]{{geometry}}\\usepackage{{booktabs}}"
        f"\\begin{{document}}Table~\\ref{{tab:alignment}}.\n{table}\\end{{document}}", encoding="utf-8")
    for _ in range(2):  # the second knows the label
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"], cwd=tmp_path,
                              capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout


def test_decisions_stand_with_their_differences(evaluation):
    """A row a pair, a column a measure, each cell with decision, difference and interval."""
    shown = tables.decisions(evaluation.compared)
    assert shown.data.shape == (6, 5)
    for record in evaluation.compared:
        cell = shown.data.loc[f"{record['second']} − {record['first']}",
                              tables.HEADINGS[record["measure"]].replace(" on ", " on\n")]
        assert cell.split("\n")[0] == record["decision"]
        assert cell.split("\n")[1].startswith("−" if record["difference"] < 0 else "+")
    bold = sum(record["decision"] == "decided" for record in evaluation.compared)
    assert shown.to_html().count("<td") == 30
    assert sum(rule.count("#T_") for rule in re.findall(r"([^{}]*)\{\s*font-weight: bold", shown.to_html())) == bold


def test_single_model_has_no_decisions():
    """Where only Base was rewarded there is nothing to compare."""
    assert tables.decisions([]).data.empty
    assert tables.win_rates([]).empty


def test_win_rates_by_hand():
    """Half the ties; the interval is that of the difference in points, halved about 50."""
    record = {"measure": "harmful_reward", "first": "Base", "second": "SFT", "gained": 30, "lost": 10, "n": 50}
    (row,) = tables.win_rates([record, record | {"measure": "HmR"}]).to_dict("records")
    ends = stats.paired_difference(30, 10, 50)
    assert row == {"pair": "SFT over Base", "harmful prompts (n = 50)":
                   f"70% [{50 + ends['low'] / 2:.0f}, {50 + ends['high'] / 2:.0f}]"}


def test_validation_table(notebook):
    """The first and the last validation of every stage, under names that people use."""
    table = tables.validation(notebook.log).data
    assert list(table.index) == [(name, when) for name in MODELS[1:] for when in ("before", "after")]
    assert {"loss", "reward accuracy", "reward margin"} <= set(table.columns)
    assert table.loc[("DPO", "before"), "loss"] == pytest.approx(0.6931, abs=1e-4)


def test_tables_of_numbers_have_few_decimals():
    """Numbers as asked for, nothing where there is none."""
    html = tables.numbers([{"a": 1.23456, "p": 0.000012}, {"a": None, "p": 0.5}], 2, p="{:.2g}")._repr_html_()
    found = Texts(html).text
    assert "1.23" in found
    assert "1.2e-05" in found
    assert "nan" not in found.lower()
