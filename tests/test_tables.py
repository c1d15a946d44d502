"""Tables: the final one in three forms; texts of models and people are text wherever shown."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from five_models import MODELS, compare_models, make_answers, make_log, summarise_models

from posttrain import behaviour, formats, metrics, settings, tables

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b || c",
    "`code` ```fence```",
    r"\input{/etc/passwd} \write18{ls}",
    "$x^2$ $$y$$",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;",
    "[link](javascript:alert(1))",
    "# heading",
    "%comment {group} ~tilde ^hat _under_ *star*",
    "</td></tr></table><b>",
    r"\(math\) \[math\]",
    "two\n\nlines",
]
LATEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
LATEX |= {f"\\{letter}": letter for letter in "%_&#${}"}


class Texts(HTMLParser):
    """Collects the tags and the text of an HTML document."""

    def __init__(self, html):
        super().__init__()
        self.tags = set()
        self.text = ""
        self.feed(re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


# ---- side by side


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_as_texts(text):
    """Of a response, a prompt, a label and a model's name: no tag, no formula, every letter."""
    rows = []
    for model in ["Base", text]:
        row = {"id": "harmful-00", "kind": "harmful", "model": model, "prompt": text}
        rows.append(row | {"response": text, "finish": "eos", "reward": 1.0, "label": text})
    shown = tables.side_by_side(pd.DataFrame(rows), "harmful", 4)
    html = shown._repr_html_()
    parsed = Texts(html)
    assert parsed.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert parsed.text.count(text) == 6
    assert "tex2jax_ignore mathjax_ignore" in html
    assert shown._repr_latex_() is None  # no other way of showing it
    assert not hasattr(shown, "_repr_markdown_")


def test_side_by_side_shows_what_is_known():
    """The first prompts of a kind, and every model's response below its marks and label."""
    answers = make_answers()
    shown = tables.side_by_side(answers, "helpful", 2).data
    assert [index.split("\n")[0] for index in shown.index] == ["helpful-00", "helpful-01"]
    assert list(shown.columns) == MODELS
    row = answers[(answers["id"] == "helpful-00") & (answers["model"] == MODELS[4])].iloc[0]
    head = ", ".join([f"{row['label']}, {row['reward']:.1f}", *behaviour.marks(row.to_dict())])
    assert shown.loc[shown.index[0], MODELS[4]] == f"[{head}]\n{row['response']}"


def test_side_by_side_before_the_judge():
    """Answers are read before they are rewarded; a run may have none of a kind."""
    answers = make_answers().drop(columns="label").assign(reward=float("nan"))
    shown = tables.side_by_side(answers, "harmful", 1).data
    assert "harmless" not in shown.iloc[0, 0]
    assert tables.side_by_side(answers.iloc[:0], "helpful", 2).data.empty


# ---- the final table


@pytest.mark.parametrize("text", [text.replace("\n", " ") for text in HOSTILE])
def test_labels_in_tables_are_text(text):
    """A run, judge or model whose name is markup stands there letter by letter."""
    row = {"Model": text} | dict.fromkeys(tables.HEADINGS.values(), "1 [0, 2]")
    lines = formats.as_markdown(pd.DataFrame([row]), text).splitlines()
    for markdown in (lines[0], lines[4].removeprefix("| ").split(" | 1 [0")[0]):
        assert not re.search(r"(?<!\\)[`*_{}\[\]<>|$#~]", re.sub(r"\\\\", "", markdown))
        assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", markdown) == text
    latex = formats.as_latex(pd.DataFrame([row]), text, text)
    for pattern in (r"\\caption\{(.*)\}\n", r"\\footnotesize (.*)\}\n", r"\\midrule\n(.*?) & 1"):
        written = re.search(pattern, latex)[1]
        codes = "|".join(map(re.escape, LATEX))
        assert not set(re.sub(codes, "", written)) & set("\\%_&#${}~^")
        assert re.sub(codes, lambda code: LATEX[code[0]], written) == text
    assert f",{text}" in formats.as_csv([{"model": "Base"}], text).replace('"', "")


def test_final_table():
    """Models in order, references below a line, every cell with its interval and true minus."""
    summary = tables.summary(summarise_models())
    assert list(summary["Model"]) == [*MODELS, *metrics.REFERENCES]
    assert list(summary.columns) == ["Model", *tables.HEADINGS.values()]
    for cell in summary["CAS (%)"]:
        assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", cell)
    for cell in summary["reward on harmful prompts"]:
        assert re.fullmatch(r"−?\d+\.\d\d \[(−?\d+\.\d\d, −?\d+\.\d\d|all equal)\]", cell)
    lines = formats.as_markdown(summary, "Caption.").splitlines()
    assert lines[0] == "Caption."
    assert lines[2].startswith("| Model | HmR (%) |")
    assert lines[8].startswith("| SimPO, β 2.5 | ")
    assert lines[9] == "| *References* |  |  |  |  |  |"
    latex = formats.as_latex(summary, "Caption.", "Note.")
    assert "\\midrule\nHuman chosen &" in latex
    assert "Model & HmR (\\%) & HpR (\\%) & CAS (\\%) & reward (harmful) & " in latex
    assert "−" not in latex
    models_alone = tables.summary(summarise_models()[: len(MODELS)])
    assert "*References*" not in formats.as_markdown(models_alone, "")
    assert formats.as_latex(models_alone, "", "").count("\\midrule") == 1
    assert "white-space: nowrap" in tables.on_one_line(summary).to_html()


def test_csv_has_numbers_in_full():
    lines = formats.as_csv(summarise_models(), "five").splitlines()
    assert lines[0].startswith("model,harmless,harmful_prompts,helpful,helpful_prompts,HmR,HmR_low")
    assert len(lines) == 1 + len(summarise_models())
    assert f'"{MODELS[4]}",' in lines[5]
    assert all(line.endswith(",five") for line in lines[1:])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
@pytest.mark.parametrize("layout", ["", "twocolumn"])
def test_final_table_compiles(tmp_path, layout):
    """In a paper of one or two columns, without an overfull box."""
    names = [*MODELS[:4], "A & B_1 50%"]
    records = summarise_models()
    renamed = [record | {"model": name} for record, name in zip(records, names)]
    summary = tables.summary([*renamed, *records[len(names) :]])
    table = formats.as_latex(summary, "A 100% & hostile_caption.", "A note of #1 $ and {more}.")
    (tmp_path / "paper.tex").write_text(
        f"\\documentclass[10pt,{layout}]{{article}}\\usepackage[margin=0.8in]{{geometry}}"
        "\\usepackage{booktabs}\\begin{document}Table~\\ref{tab:alignment}.\n"
        f"{table}\\end{{document}}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"]
    for _ in range(2):  # the second pass knows the label
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout


# ---- comparisons


def test_decisions_stand_with_their_differences():
    """A row a pair, a column a measure; each cell has decision, difference and interval."""
    shown = tables.decisions(compare_models())
    assert shown.data.shape == (10, 5)
    for record in compare_models():
        heading = tables.HEADINGS[record["measure"]].replace(" on ", " on\n")
        cell = shown.data.loc[f"{record['second']} − {record['first']}", heading]
        decision, difference, interval = cell.split("\n")
        assert decision == record["decision"]
        assert difference.startswith("−" if record["difference"] < 0 else "+")
        assert interval.startswith("[")
    html = shown.to_html()
    significant = [record for record in compare_models() if record["decision"] == "significant"]
    rules = re.findall(r"([^{}]*)\{\s*font-weight: bold", html)
    assert sum(rule.count("#T_") for rule in rules) == len(significant)


def test_a_single_model_has_no_comparisons():
    assert tables.decisions([]).data.empty
    assert tables.win_rates([]).empty


def test_win_rates_by_hand():
    """Ties count half; the interval is that of the difference in points, halved, around 50."""
    record = {"measure": "harmful_reward", "first": "Base", "second": "SFT"}
    record |= {"gained": 30, "lost": 10, "n": 50}
    (row,) = tables.win_rates([record, record | {"measure": "HmR"}]).to_dict("records")
    ends = metrics.paired_difference(30, 10, 50)
    low, high = 50 + ends["low"] / 2, 50 + ends["high"] / 2
    assert row == {
        "pair": "SFT over Base",
        "harmful prompts (n = 50)": f"70% [{low:.0f}, {high:.0f}]",
    }


def test_runs_side_by_side():
    """Every run's rate with mean and deviation, and mean differences with their intervals."""
    rates = {"measure": "HmR", "model": MODELS[4], "values": [40.0, 44.0], "mean": 42.0}
    rates["sd"] = 2.83
    (row,) = tables.rates_across_runs([rates, rates | {"measure": "harmful_reward"}]).to_dict(
        "records"
    )
    assert row == {"model": MODELS[4], "HmR (%)": "40 44: 42.0 ± 2.8"}
    pair = {"measure": "CAS", "first": "Base", "second": MODELS[4], "mean": -3.0}
    pair |= {"values": [-5.0, -1.0], "averaged_low": -9.0, "averaged_high": 3.0}
    known = pair | {"low": -10.25, "high": 4.25, "both_low": -12.25, "both_high": 6.25}
    (row,) = tables.differences_across_runs([known]).to_dict("records")
    lines = ["−3.0", "both [−12.2, +6.2]", "trainings [−10.2, +4.2]", "prompts [−9.0, +3.0]"]
    assert row == {"pair": f"{MODELS[4]} − Base", "CAS (points)": "\n".join(lines)}
    unknown = dict.fromkeys(["low", "high", "both_low", "both_high"])
    (row,) = tables.differences_across_runs([pair | unknown]).to_dict("records")
    assert row["CAS (points)"] == "−3.0\nall runs alike\nprompts [−9.0, +3.0]"
    unknown |= {"averaged_low": None, "averaged_high": None}
    (row,) = tables.differences_across_runs([pair | unknown]).to_dict("records")
    assert row["CAS (points)"] == "−5.0 −1.0"


# ---- the notebooks' other tables


def test_validation_table():
    """The first and the last validation of every stage, under names that people use."""
    table = tables.validation(make_log()).data
    expected = []
    for name in MODELS[1:]:
        expected += [(name, "before"), (name, "after")]
    assert list(table.index) == expected
    assert list(table.columns) == list(tables.VALIDATION.values())
    assert table.loc[("DPO", "before"), "loss"] == pytest.approx(0.7)


def test_tables_of_numbers_have_few_decimals():
    """Typographic minus signs, nothing where there is no number, and texts are text."""
    records = [{"a": -1.23456, "n": 7, "t": "<b>"}, {"a": None, "n": 1234, "t": ""}]
    parsed = Texts(tables.numbers(records, 2)._repr_html_())
    assert "−1.23" in parsed.text
    assert "1234" in parsed.text
    assert "7.0" not in parsed.text
    assert "nan" not in parsed.text.lower()
    assert "b" not in parsed.tags


def test_tokens_with_a_loss_are_bold():
    """And texts of tokens are text."""
    table = pd.DataFrame({"id": [5, 6], "text": ["<b>", "$x$"], "loss": [False, True]})
    html = tables.tokens(table).data
    assert "mathjax_ignore" in html
    plain, bold = re.findall(r"<span style=\"([^\"]*)\">", html)
    assert "bold" in bold
    assert "bold" not in plain
    assert re.findall(r">([^<]+)</span>", html) == ["&lt;b&gt;", "$x$"]


def test_settings_of_a_run():
    """Each with its value and its reason."""
    chosen = settings.choose(settings.Training, "paper")
    shown = tables.settings(chosen).data.set_index("setting")
    assert list(shown.index) == list(settings.Training.model_fields)
    assert shown.loc["lora_layers", "value"] == "q_proj v_proj"
    assert shown.loc["beta", "meaning"] == settings.Training.model_fields["beta"].description


def test_printed_paragraphs_break_between_words(capsys):
    """In a terminal they are seen as they are in a notebook."""
    tables.print_paragraphs(["two words, " * 20, "<b>SFT+DPO</b>"])
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert second == "<b>SFT+DPO</b>"
    lines = first.splitlines()
    assert len(lines) == 3
    assert max(len(line) for line in lines) <= tables.LETTERS_OF_LINE
    assert " ".join(lines) == ("two words, " * 20).strip()
