"""The page of a run: what it says, and in a real Chromium how it filters, opens, and shows hostile texts as text."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import MODELS, RAW, ROOT, load
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from benchmarks.report import OPTIONS, chromium
from posttrain import checks, contents, report
from posttrain.__main__ import make_report

RUNS = {name: ROOT / "results" / name for name in ("example", "published")}
FILES = ["run.json", "training.json", *RAW, "metrics.json"]
HOSTILE = {
    "script": "<script>document.title='broken'</script>", "end of script": "</script><script>alert(1)</script>",
    "comment": "<!-- a --> b ]]> c", "text area": "</textarea></style></title><b>bold</b>",
    "image": "<img src=x onerror=\"document.title='broken'\">", "separator": "one\u2028two\u2029three",
    "nul": "a\x00b", "ansi": "\x1b[31mred\x1b[0m", "right to left": "abc \u202etxt.exe \u200f def",
    "half": "half \ud83d of a character", "latex": r"$\frac{a}{b}$ \(x\) \input{/etc/passwd}",
    "template": "{{ 7 * 7 }} {% raw %}", "entity": "&lt;b&gt; &amp;", "accents": "e\u0301 Käse 🧀 日本語 العربية"}
SEEN = {"separator": "one⟨U+2028⟩two⟨U+2029⟩three", "nul": "a␀b", "ansi": "␛[31mred␛[0m",
        "right to left": "abc ⟨U+202E⟩txt.exe ⟨U+200F⟩ def", "half": "half \ufffd of a character"}
each_run = pytest.mark.parametrize("run", RUNS)
each_hostile = pytest.mark.parametrize("name", HOSTILE)


def run_of(folder, *names, source="example"):
    """Copy these files of a committed run into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(RUNS[source] / name, folder)
    return folder


def rewritten(path, change):
    """Change the data of a JSON file, and let metrics.json not know the file's sha256."""
    data = load(path)
    path.write_text(json.dumps(change(data) or data))
    metrics = path.with_name("metrics.json")
    if metrics.exists() and path != metrics:
        metrics.write_text(json.dumps(load(metrics) | {"sha256": {}}))


# ---- what the page holds

@each_run
def test_committed_page_is_that_of_the_committed_files(run):
    """To the byte, and under the size that can be sent by mail."""
    assert (RUNS[run] / "report.html").read_text(encoding="utf-8") == report.page(RUNS[run])
    assert (RUNS[run] / "report.html").stat().st_size < 1_500_000


@each_run
def test_page_asks_for_nothing(run):
    """No address in it is loaded; only its own script and style are allowed, by their hashes."""
    html = report.page(RUNS[run])
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', html) == ["data:,", "https://arxiv.org/abs/2509.09055"]  # a link
    assert not re.search(r"\son\w+=|javascript:|@import|url\((?!#)", html.split('id="data"')[0])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert html.count("<script") == 2
    assert html.count("<style") == 1


def test_headlines_and_decisions_are_those_of_the_metrics():
    """The answer on top is made of the decisions; every pair of every measure stands in a matrix."""
    records = load(RUNS["published"] / "metrics.json")["comparisons"]
    found = report.headlines(records)
    assert list(found) == ["Harmlessness (HmR)", "Helpfulness (HpR)", "Both together (CAS)"]
    assert found["Harmlessness (HmR)"].startswith("No difference is decided.")
    assert found["Both together (CAS)"] == "2 of 6 pairs are decided, namely SFT above Base, SFT+DPO above Base."
    cells = [cell for matrix in report.matrices(records) for row in matrix["rows"].values() for cell in row if cell]
    assert [(cell["measure"], cell["second"], cell["first"], cell["decision"]) for cell in cells] == sorted(
        [(one["measure"], one["second"], one["first"], one["decision"]) for one in records],
        key=lambda key: (list(dict.fromkeys(one["measure"] for one in records)).index(key[0]), MODELS.index(key[1]),
                         MODELS.index(key[2])))


def test_demo_says_so_in_large_letters():
    """The demo's page begins with it; the study's does not have it."""
    assert '<p class="demo"><strong>Demo</strong>' in report.page(RUNS["example"])
    assert 'class="demo"' not in report.page(RUNS["published"])


@pytest.mark.parametrize("prompt, turns", [
    ("\n\nHuman: Hi.\n\nAssistant:", [["Human", "Hi."]]),
    ("\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Why?\n\nIndeed.\n\nAssistant:",
     [["Human", "Hi."], ["Assistant", "Yes?"], ["Human", "Why?\n\nIndeed."]]),
    ("Human: Hi.\n\nAssistant: Half a re", [["Human", "Hi."], ["Assistant", "Half a re"]]),
    ("no turn at all", [["", "no turn at all"]]), ("", []), ("Human:", [["Human", ""]])])
def test_turns(prompt, turns):
    """A prompt as a conversation, without the turn that is due from the model."""
    assert report.turns(prompt) == turns


@each_hostile
def test_what_would_not_be_seen_is_named(name):
    """Controls, marks of direction, separators and halves of characters; all else stays as it is."""
    assert report.visible(HOSTILE[name]) == SEEN.get(name, HOSTILE[name])
    assert report.visible({"a\x00": [HOSTILE[name], 1, None]}) == {"a␀": [SEEN.get(name, HOSTILE[name]), 1, None]}


def test_figure_is_inline_without_styles():
    """Its colours are the page's, its ids its own; the same figure gives the same text."""
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2], "ko-", label="a < b")
        figure.legend()
        return report.inline(figure, "first", 'a "label"')

    svg = draw()
    assert svg == draw()
    assert not re.search(r"style|xlink|#000000|#ffffff|<metadata", svg)
    ids, uses = (re.findall(pattern, svg) for pattern in (r'id="([^"]+)"', r'(?:href="|url\()#([^")]+)'))
    assert uses
    assert set(uses) <= set(ids)
    assert all(one.startswith("first-") for one in ids)
    assert "a &lt; b" in svg


@each_run
def test_ids_are_unique(run):
    """Of all figures and parts of a page."""
    ids = re.findall(r'\sid="([^"]+)"', report.page(RUNS[run]).split('<script type="application/json"')[0])
    assert len(ids) == len(set(ids))


# ---- what a run lacks, and what is damaged

@pytest.mark.parametrize("names, absent, there", [
    (FILES, [], ["How training went", "Settings of training", "Which differences"]),
    (["run.json"], ["scores.json", "prompts.json", "training.json"], ["Settings of training"]),
    (["run.json", "training.json"], ["scores.json", "metrics.json"], ["How training went"]),
    (["run.json", "training.json", "prompts.json", "responses.json"], ["scores.json", "metrics.json"], []),
    (["scores.json"], ["prompts.json", "responses.json", "metrics.json", "training.json", "run.json"], []),
    (["scores.json", "metrics.json"], ["responses.json", "run.json"], ["Which differences", "Every reward"]),
    (["prompts.json", "responses.json", "scores.json"], ["metrics.json", "run.json"], [])])
def test_page_shows_what_is_there_and_says_what_is_missing(tmp_path, names, absent, there):
    """A run half done, one without texts, one without decisions."""
    files = contents.read_files(run_of(tmp_path / "run", *names))
    assert {name for name in FILES if any(f"({name})" in sentence for sentence in contents.missing(files))} == (
        set(FILES) - set(names))
    html = report.page(tmp_path / "run")
    assert all(f"({name})" in html for name in absent)
    assert all(words in html for words in there)


def test_run_of_one_model(tmp_path):
    """Its page has rates and no comparison, and asks another question."""
    folder = run_of(tmp_path, *RAW, "metrics.json", source="published")
    for name in ("responses", "scores"):
        rewritten(folder / f"{name}.json", lambda rows: [row for row in rows if row["model"] == "Base"])
    rewritten(folder / "metrics.json", lambda data: data | {"comparisons": [], "models": data["models"][:1]})
    html = report.page(folder)
    assert "How harmless and how helpful is" in html
    assert "One model alone" in html


def test_nothing_of_a_run_is_refused(tmp_path):
    """A folder that is empty, or not there, with the names of those that are."""
    run_of(tmp_path / "one", "scores.json")
    for name in ("empty", "absent"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=rf"{name} holds nothing of a run.*'one'"):
            report.page(tmp_path / name)


DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2], "empty": lambda text: "", "a number": lambda text: "7",
    "other fields": lambda text: json.dumps([{"a": 1}] if text.startswith("[") else {"a": 1}),
    "nested": lambda text: "[" * 3000}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_refused_by_name(tmp_path, name, damage):
    """Whatever is wrong with it."""
    run_of(tmp_path, *FILES)
    path = tmp_path / name
    path.write_text(DAMAGES[damage](path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        report.page(tmp_path)


def paths_into(data, path=()):
    """Return the paths of a value in JSON data, of lists only the first and the last item."""
    items = data.items() if isinstance(data, dict) else (
        {0: data[0], len(data) - 1: data[-1]}.items() if isinstance(data, list) and data else ())
    return [path + (key,) for key, _ in items] + [
        found for key, value in items for found in paths_into(value, path + (key,))]


@pytest.mark.parametrize("value", [None, "text", -1e400, [], {}], ids=["null", "text", "infinity", "list", "object"])
@pytest.mark.parametrize("name, beside", [("run.json", RAW), ("training.json", ["run.json"]), ("metrics.json", RAW)])
def test_any_value_replaced_is_shown_or_refused_by_name(tmp_path, name, beside, value):
    """No value of a file, replaced by another kind of thing, leads to another error than one that names the file."""
    run_of(tmp_path, name, *beside)
    data = load(tmp_path / name)
    paths = [path for path in paths_into(data) if len(path) <= 4]
    for path in paths[:: max(1, len(paths) // 12)]:
        changed = json.loads(json.dumps(data))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (tmp_path / name).write_text(json.dumps(changed))
        try:
            report.page(tmp_path)
        except ValueError as error:
            assert name in str(error), (path, error)  # noqa: PT017


@pytest.mark.parametrize("name", RAW)
def test_file_of_another_evaluation_is_refused(tmp_path, name):
    """The page would show rates of other answers."""
    run_of(tmp_path, *FILES)
    with (tmp_path / name).open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=rf"{name}.* is not the one that metrics.json was computed from"):
        report.page(tmp_path)


# ---- make report

def test_command_writes_the_page(tmp_path):
    """Into the run's folder, and says where it is."""
    run_of(tmp_path / "mine", *FILES)
    done = subprocess.run([sys.executable, "-m", "posttrain", "report", "RUN=mine", f"RESULTS={tmp_path}"],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "mine" / "report.html") in done.stdout
    assert (tmp_path / "mine" / "report.html").read_text(encoding="utf-8") == report.page(tmp_path / "mine")


@pytest.mark.parametrize("arguments, error, words", [
    (["RUN=other", "RESULTS={}"], FileNotFoundError, "'mine'"), ([], ValueError, "make report RUN="),
    (["RUN=../mine"], ValueError, "plain name"), (["RUN=mine", "SEED=1"], ValueError, "make report takes RUN"),
    (["NAME=mine"], ValueError, "No parameter NAME")])
def test_command_says_what_to_do(tmp_path, arguments, error, words):
    """Without a name, with a path, with other parameters, with a name that is not there."""
    run_of(tmp_path / "mine", "scores.json")
    with pytest.raises(error, match=words):
        make_report([argument.format(tmp_path) for argument in arguments])


# ---- in Chromium

@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for all tests of this file."""
    if not chromium():
        pytest.skip("no Chromium here: `make browser` installs Debian's")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a page's file; whatever the browser complains of, and whatever is asked for beside it, fails the test."""
    opened, complaints = [], []

    def open_page(path, address="", width=1400, **options):
        page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url)
                if not request.url.startswith((Path(path).as_uri(), "data:,")) else None)
        page.goto(Path(path).as_uri() + address)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert complaints == []


def select(page, **choices):
    """Set the page's filters, by their names, and wait until they are taken."""
    for name, value in choices.items():
        control = page.locator(f"[name={name}]")
        control.fill(value) if name in ("text", "low", "high") else control.select_option(value)
    settle(page)


def settle(page):
    """Wait until events that are due have been dealt with and drawn."""
    page.evaluate(
        "new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 20))")


def shown_ids(page):
    """Return the ids of the prompts in the list, in its order."""
    return page.locator("#list .name").all_text_contents()


def raw(run):
    """Return what is filtered, by plain means: {id: {model: record of text, reward, label, finish, marks}}."""
    folder, found = RUNS[run], {}
    said = {(row["id"], row["model"]): row for row in load(folder / "responses.json")}
    for row in load(folder / "classification.json"):
        response = said[row["id"], row["model"]]
        found.setdefault(row["id"], {})[row["model"]] = row | {
            "finish": response.get("finish"), "marks": checks.marks(response)}
    return found


def all_texts(run):
    """Return {id: every text that is searched}."""
    found = {prompt["id"]: [prompt["id"], prompt["prompt"], prompt.get("chosen", ""), prompt.get("rejected", "")]
             for prompt in load(RUNS[run] / "prompts.json")}
    for row in load(RUNS[run] / "responses.json"):
        found[row["id"]].append(row["response"])
    return found


FILTERS = [
    ({"kind": "harmful"}, lambda prompt, texts: "harmful" in prompt["Base"]["id"]),
    ({"differ": "yes"}, lambda prompt, texts: len({one["label"] for one in prompt.values()}) > 1),
    ({"differ": "no", "kind": "helpful"}, lambda prompt, texts: prompt["Base"]["kind"] == "helpful" and len(
        {one["label"] for one in prompt.values()}) == 1),
    ({"label": "harmful"}, lambda prompt, texts: any(one["label"] == "harmful" for one in prompt.values())),
    ({"label": "unhelpful", "model": "SFT+DPO"}, lambda prompt, texts: prompt["SFT+DPO"]["label"] == "unhelpful"),
    ({"mark": "opened a human turn", "model": "Base"}, lambda prompt, texts: "opened a human turn" in
     prompt["Base"]["marks"]),
    ({"mark": "begins like a refusal", "label": "helpful"}, lambda prompt, texts: any(
        "begins like a refusal" in one["marks"] and one["label"] == "helpful" for one in prompt.values())),
    ({"mark": "empty"}, lambda prompt, texts: any("empty" in one["marks"] for one in prompt.values())),
    ({"low": "-1.5", "high": "0.25", "model": "DPO"}, lambda prompt, texts: -1.5 <= round(
        prompt["DPO"]["reward"], 2) <= 0.25),
    ({"low": "-1"}, lambda prompt, texts: any(round(one["reward"], 2) >= -1 for one in prompt.values())),
    ({"text": "SORRY"}, lambda prompt, texts: any("sorry" in text.lower() for text in texts)),
    ({"text": "a.b*(c"}, lambda prompt, texts: any("a.b*(c" in text.lower() for text in texts)),
    ({"text": "how", "kind": "harmful", "model": "SFT", "label": "harmless"}, lambda prompt, texts: (
        prompt["SFT"]["label"] == "harmless" and any("how" in text.lower() for text in texts)))]


@each_run
def test_filters_count_what_python_counts(show, run):
    """Every filter, alone and with others: the prompts, their number, and the rates of what is left."""
    page = show(RUNS[run] / "report.html")
    prompts, texts = raw(run), all_texts(run)
    assert shown_ids(page) == sorted(prompts, key=lambda one: one.split("-")[0])
    for choices, holds in FILTERS:
        expected = [one for one in sorted(prompts) if holds(prompts[one], texts[one])]
        if (option := page.locator("[name=mark] option", has_text=choices.get("mark", "or not"))).is_disabled():
            assert expected == []  # what no answer has cannot be asked for
            assert option.text_content() == choices["mark"]
            continue
        select(page, **choices)
        assert sorted(shown_ids(page)) == expected, choices
        assert page.locator("#count").inner_text().startswith(f"{len(expected)} of {len(prompts)} prompts")
        table = page.locator("#part").inner_text()
        for kind, label, name in (("harmful", "harmless", "HmR"), ("helpful", "helpful", "HpR")):
            part = [prompts[one] for one in expected if one.startswith(kind)]
            if part:
                counts = [sum(one[model]["label"] == label for one in part) for model in MODELS]
                line = "\t".join(f"{100 * count / len(part):.1f}% ({count})" for count in counts)
                assert f"{name} of the {len(part)} {kind}\t{line}" in table
        page.locator("[type=reset]").click()
        settle(page)


def test_filter_by_how_an_answer_ended(show):
    """Where the run knows it; where it does not, there is no such filter."""
    page, prompts = show(RUNS["example"] / "report.html"), raw("example")
    for finish in ("eos", "length", "turn"):
        select(page, finish=finish)
        assert sorted(shown_ids(page)) == sorted(one for one, answers in prompts.items() if any(
            answer["finish"] == finish for answer in answers.values()))
    assert show(RUNS["published"] / "report.html").locator("[name=finish]").is_disabled()


@each_run
def test_orders_are_pythons(show, run):
    """By reward, spread between models, gain of one over another, distance."""
    page, table = show(RUNS[run] / "report.html"), pd.DataFrame(
        {one: {model: answer["reward"] for model, answer in answers.items()} for one, answers in raw(run).items()}).T
    keys = {"lowest": table["DPO"], "highest": -table["DPO"], "spread": table.min(axis=1) - table.max(axis=1),
            "gain": table["SFT"] - table["DPO"], "loss": table["DPO"] - table["SFT"],
            "apart": -(table["SFT"] - table["DPO"]).abs()}
    for order, key in keys.items():
        select(page, order=order)
        for name, model in (("by", "DPO"), ("over", "SFT")):
            if page.locator(f"[name={name}]").is_enabled():
                select(page, **{name: model})
        found = key[shown_ids(page)]
        assert found.is_monotonic_increasing, order


def test_search_marks_what_it_found(show):
    """In the prompt and in every answer, whatever the case; nothing else is marked."""
    page = show(RUNS["published"] / "report.html", "#text=SORRY&kind=helpful&model=SFT")
    page.locator("#list .row").first.click()
    marks = page.locator("#detail mark").all_text_contents()
    assert marks
    assert {mark.lower() for mark in marks} == {"sorry"}
    text = page.locator("#detail .text").all_text_contents()
    assert len(marks) == sum(part.lower().count("sorry") for part in text)


def test_keys(show):
    """n and p step through what is shown, / searches, Esc leaves the search, then closes the prompt."""
    page = show(RUNS["published"] / "report.html", "#kind=helpful")
    heading = page.locator("#detail-heading")
    page.keyboard.press("n")
    assert heading.inner_text() == "helpful-00"
    assert page.locator("#detail").evaluate("(one) => one.getBoundingClientRect().top") < 450  # it has come into sight
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("p")
    assert heading.inner_text() == "helpful-01"
    page.keyboard.press("/")
    page.keyboard.type("n")  # a letter of the search, not the key
    settle(page)
    assert "text=n" in page.evaluate("location.hash")
    assert heading.inner_text() == "helpful-00"  # the first of what is found
    page.keyboard.press("Escape")
    assert page.locator("[name=text]").input_value() == ""
    page.keyboard.press("n")
    page.keyboard.press("Escape")
    assert heading.inner_text() == "No prompt is open"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("helpful-01: Base")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert heading.inner_text() == "helpful-01"
    assert page.evaluate("document.activeElement.textContent").startswith("helpful-01")


def test_buttons_keep_the_focus_and_the_history_the_prompts(show):
    """Next by the keyboard, again and again; then back."""
    page = show(RUNS["published"] / "report.html", "#prompt=helpful-00")
    page.locator("#next").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
    assert page.locator("#detail-heading").inner_text() == "helpful-03"
    assert page.evaluate("document.activeElement.id") == "next"
    page.go_back()
    settle(page)
    assert page.locator("#detail-heading").inner_text() == "helpful-02"


@pytest.mark.parametrize("low, high, n", [("0", "1", None), ("1", "0", None), ("−0,5", " 1 ", None), ("x", "", 100)])
def test_reward_ranges_as_people_write_them(show, low, high, n):
    """Either way round, with the page's own minus, with a comma; what is no number is marked and left out."""
    page = show(RUNS["published"] / "report.html")
    select(page, low=low, high=high, model="SFT")
    ends = sorted(float(text.replace("−", "-").replace(",", ".")) for text in (low, high)) if n is None else []
    rewards = [round(answers["SFT"]["reward"], 2) for answers in raw("published").values()]
    expected = n or sum(ends[0] <= reward <= ends[1] for reward in rewards)
    assert page.locator("#count").inner_text().startswith(f"{expected} of 100 prompts")
    assert page.locator("[aria-invalid=true]").count() == (1 if n else 0)


def test_search_forgives_spaces_and_apostrophes(show):
    """Both apostrophes find both; spaces around and between words do not matter."""
    page = show(RUNS["published"] / "report.html")
    found = []
    for text in ("i'm sorry", "  I’m   sorry "):
        select(page, text=text)
        found.append(shown_ids(page))
    expected = sorted(one for one, texts in all_texts("published").items()
                      if any(re.search(r"i['’]m\s+sorry", text, re.IGNORECASE) for text in texts))
    assert sorted(found[0]) == sorted(found[1]) == expected


def test_address_holds_filter_and_prompt(show):
    """It follows what is chosen, opens the same anew, changes with the address, and bears any nonsense."""
    page = show(RUNS["published"] / "report.html")
    assert page.evaluate("location.hash") == ""
    select(page, kind="helpful", model="DPO", mark="opened a human turn", text="the", order="gain")
    page.locator("#list .row").nth(2).click()
    address, ids = page.evaluate("location.hash"), shown_ids(page)
    heading = page.locator("#detail-heading").inner_text()
    again = show(RUNS["published"] / "report.html", address)
    assert shown_ids(again) == ids
    assert again.locator("#detail-heading").inner_text() == heading == ids[2]
    assert 0 <= again.locator("#detail").evaluate("(one) => one.getBoundingClientRect().top") < 450
    again.evaluate("location.hash = '#kind=harmful&prompt=harmful-07'")
    settle(again)
    assert again.locator("#count").inner_text().startswith("50 of")
    assert again.locator("#detail-heading").inner_text() == "harmful-07"
    again.evaluate("location.hash = '#figures'")  # a heading: filter and prompt stay
    settle(again)
    assert again.locator("#detail-heading").inner_text() == "harmful-07"
    nonsense = show(RUNS["published"] / "report.html", "#kind=what&model=nobody&low=x&order=7&prompt=<b>&%E0%A4%A=1")
    assert len(shown_ids(nonsense)) == 100
    assert "there is no prompt <b>" in nonsense.locator("#count").inner_text()


def test_harmful_texts_are_covered_until_uncovered(show):
    """Neither prompt nor answers nor replies to a harmful prompt are in the page before; after once, all are."""
    run = RUNS["example"]
    prompts = {row["id"]: row for row in load(run / "prompts.json")}
    page = show(run / "report.html", "#prompt=harmful-04")
    answer = next(row["response"] for row in load(run / "responses.json")
                  if (row["id"], row["model"]) == ("harmful-04", "SFT"))
    texts = [answer, prompts["harmful-04"]["chosen"], prompts["harmful-04"]["rejected"]]
    visible = page.locator("#browser").inner_text()
    assert not any(text in visible for text in texts)
    assert page.locator("#detail .covered").count() == len(report.turns(prompts["harmful-04"]["prompt"])) + 6
    page.locator(".uncover").click()
    visible = page.locator("#browser").inner_text()
    assert all(text in visible for text in texts)
    assert page.locator(".covered").count() == 0
    page.locator(".uncover").click()
    assert not any(text in page.locator("#browser").inner_text() for text in texts)
    helpful = show(run / "report.html", "#prompt=helpful-04")
    assert prompts["helpful-04"]["chosen"] in helpful.locator("#detail").inner_text()


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The page of a run whose prompts, answers, replies, model names and settings are hostile, a prompt a text."""
    folder = run_of(tmp_path_factory.mktemp("hostile") / "run", *FILES)
    texts = {f"helpful-{i:02d}": text for i, text in enumerate(HOSTILE.values())}
    rewritten(folder / "prompts.json", lambda rows: [
        row | {"prompt": f"\n\nHuman: {texts[row['id']]}\n\nAssistant:", "chosen": texts[row["id"]]}
        if row["id"] in texts else row for row in rows])
    rewritten(folder / "responses.json", lambda rows: [
        row | {"response": texts[row["id"]]} if row["id"] in texts else
        row | {"response": "x" * 1_000_000 + "END"} if row["id"] == "helpful-49" and row["model"] == "SFT" else row
        for row in rows])
    everything = " ".join(HOSTILE.values())
    rewritten(folder / "run.json", lambda data: data | {
        "models": [model | {"base": everything} for model in data["models"]],
        "settings": {"training": data["settings"]["training"] | {"base_model": everything, everything: [everything]},
                     "evaluation": data["settings"]["evaluation"] | {"reward_model": everything}}})
    rewritten(folder / "metrics.json", lambda data: data | {"cautions": [everything]})
    return report.write_page(folder)


@each_hostile
def test_hostile_text_is_text(show, hostile_page, name):
    """In the prompt, in every answer and reply: the letters are there, nothing of it has become an element."""
    i = list(HOSTILE).index(name)
    page = show(hostile_page, f"#prompt=helpful-{i:02d}")
    found = page.locator("#detail .text").all_text_contents()
    seen = report.visible(HOSTILE[name])
    assert [text for text in found if text == seen] == [seen] * 6
    assert page.evaluate("document.title") == "run (demo): harmlessness and helpfulness"
    assert page.locator("#detail :is(script, img, b, style, textarea)").count() == 0


def test_hostile_names_are_text(show, hostile_page):
    """A base's name in the title, settings and a caution; nothing of it is markup."""
    page = show(hostile_page)
    everything = report.visible(" ".join(HOSTILE.values()))
    assert everything in page.locator("h1").text_content()
    assert everything in page.locator("#making").text_content()
    assert everything in page.locator(".caution").text_content()
    assert page.locator("img, :is(h1, .caution, td, dd) :is(script, style, b)").count() == page.locator(
        ".matrix td b").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400


def test_a_million_characters(show, hostile_page):
    """Their beginning is shown at first, the rest on demand."""
    page = show(hostile_page, "#prompt=helpful-49")
    card = page.get_by_role("region", name="SFT", exact=True)
    assert 4000 < len(card.inner_text()) < 4200
    card.get_by_role("button", name="Show all 1,000,003 characters").click()
    assert card.inner_text().endswith("END")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@each_run
def test_page_is_accessible_and_fits(show, run, width, scheme):
    """axe finds nothing (names, contrast, structure; WCAG 2.1 AA); only tables and figures scroll sideways."""
    page = show(RUNS[run] / "report.html", "#text=the&prompt=helpful-04", width, color_scheme=scheme, bypass_csp=True)
    page.locator(".uncover").click()
    page.locator("details summary").click()
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]] == []
    for size in (width, 320) if width == 400 else (width,):
        page.set_viewport_size({"width": size, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == size


@pytest.mark.parametrize("names", [["run.json"], ["run.json", "training.json"], ["scores.json"],
                                   ["prompts.json", "responses.json"], ["scores.json", "metrics.json"],
                                   ["prompts.json", "scores.json", "metrics.json"]], ids=" ".join)
def test_page_of_a_part_of_a_run_works(show, tmp_path, names):
    """Without texts, rewards or labels: no error; prompts can be opened, and what is not there is said."""
    path = report.write_page(run_of(tmp_path, *names))
    page = show(path)
    if names[0] == "run.json":
        assert "neither prompts nor rewards" in page.locator("#answers").inner_text()
        return
    assert len(shown_ids(page)) == 100
    page.keyboard.press("n")
    page.locator(".uncover").click()
    said = page.locator("#detail").inner_text()
    assert ("The text is not in this run." in said) == ("responses.json" not in names)
    assert page.locator("[name=label]").is_enabled() == ("metrics.json" in names)
    assert page.locator("[name=low]").is_enabled() == ("scores.json" in names)
    for order in ("spread", "gain") if "scores.json" in names else ():
        select(page, order=order)


def test_printed_page_leaves_out_what_only_a_screen_needs(show):
    """No controls and no list, but the tables, the figures and the prompt that is open; without a script too."""
    page = show(RUNS["published"] / "report.html", "#prompt=helpful-04")
    page.emulate_media(media="print")
    assert not page.locator("#filters, #list, nav, .keys").evaluate_all(
        "(all) => all.some((one) => one.checkVisibility())")
    assert page.locator("#detail .card").first.is_visible()
    assert page.locator("#figure-differences svg").is_visible()
    without = show(RUNS["published"] / "report.html", java_script_enabled=False)
    assert "scripts are switched off" in without.locator("#answers").inner_text()
    assert without.locator("#rates table").first.is_visible()


def test_hidden_script_uses_no_markup():
    """The script makes elements and texts, and never reads a text as markup."""
    script = (ROOT / "posttrain" / "report.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    assert len(script.splitlines()) <= 350
