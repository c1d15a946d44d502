"""Tables: the final one in three forms; texts of models and people are text wherever they are shown."""

import re
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


def test_marks():
    """What is the matter with a response; responses from elsewhere may not say how they ended."""
    assert tables.marks({"response": "Use a pot.", "finish": "eos"}) == ""
    assert tables.marks({"response": "", "finish": "turn"}) == "empty, opened a human turn"
    assert tables.marks({"response": "a b a b a b", "finish": "length"}) == "cut, repetitive"
    assert tables.marks({"response": "Use a pot."}) == ""


LATEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
         **{f"\\{letter}": letter for letter in "%_&#${}"}}


@pytest.mark.parametrize("text", [text.replace("\n", " ") for text in HOSTILE])
def test_labels_in_tables_are_text(text):
    """A run, model or judge whose name is markup stands in the tables letter by letter, and as no command."""
    table = pd.DataFrame([{"Model": "Base"} | dict.fromkeys(stats.MEASURES, "1 [0, 2]")])
    markdown = tables.as_markdown(table, text).splitlines()[0]
    assert not re.search(r"(?<!\\)[`*_{}\[\]<>|$#~]", re.sub(r"\\\\", "", markdown))
    assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", markdown) == text
    latex = re.search(r"\\caption\{(.*)\}\n", tables.as_latex(table, text))[1]
    plain = re.sub("|".join(map(re.escape, LATEX)), "", latex)
    assert not set(plain) & set("\\%_&#${}~^")
    assert re.sub("|".join(map(re.escape, LATEX)), lambda code: LATEX[code[0]], latex) == text
    assert f",{text}" in tables.as_csv([{"model": "Base"}], text).replace('"', "")


def test_final_table(evaluation):
    """Models in order, then the references below a line, every cell with its interval."""
    summary = tables.summary(evaluation.records)
    assert list(summary["Model"]) == [*MODELS, *stats.REFERENCES]
    assert all(re.fullmatch(r"-?\d+\.\d \[-?\d+\.\d, \d+\.\d\]", cell) for cell in summary["CAS"])
    assert all(re.fullmatch(r"-?\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\]", cell) for cell in summary["harmful reward"])
    lines = tables.as_markdown(summary, "Caption.").splitlines()
    assert lines[0] == "Caption."
    assert lines[2].startswith("| Model | HmR |")
    assert lines[8].startswith("| *References* |")
    assert "\\midrule\nHuman chosen &" in tables.as_latex(summary, "Caption.")
    models_alone = tables.summary(evaluation.records[:4])
    assert "*References*" not in tables.as_markdown(models_alone, "")


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
