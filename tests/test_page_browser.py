"""The page of a run in a real Chromium: it filters, orders, opens, and shows hostile texts as text.

Whatever the browser complains of, and whatever the page asks for beside itself, fails a test.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, load
from five_models import FILES, MODELS, PROMPTS, write_run
from test_page import HOSTILE, copy_files, rewrite

from posttrain import page
from posttrain.behaviour import marks
from posttrain.files import sha256_of
from posttrain.metrics import REFERENCES
from posttrain.page import texts

pytestmark = pytest.mark.slow
FIFTH = MODELS[4]
COUNT = 2 * PROMPTS


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The folder of a run of five models with its page."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "five")
    page.write_page(folder)
    return folder


@pytest.fixture
def show(browser, five):
    """Open the page of the run, or of another folder, at an address within it."""
    opened, complaints = [], []

    def open_page(address="", width=1400, folder=five, script="", **options):
        path = Path(folder) / "report.html"
        view = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()

        def check(request):
            if not request.url.startswith((path.as_uri(), "data:,")):
                complaints.append(request.url)

        view.add_init_script(script)
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", check)
        view.goto(path.as_uri() + address)
        opened.append(view)
        return view

    yield open_page
    for view in opened:
        view.context.close()
    assert complaints == []


def settle(view):
    """Wait until events that are due have been dealt with and drawn."""
    view.evaluate(
        "new Promise((done) => setTimeout(() => "
        "requestAnimationFrame(() => requestAnimationFrame(done)), 20))"
    )


def select(view, **choices):
    """Set the page's filters, by their names, and wait until they are taken."""
    view.evaluate("document.getElementById('more').open = true")
    for name, value in choices.items():
        control = view.locator(f"[name={name}]")
        if name in ("text", "low", "high"):
            control.fill(value)
        else:
            control.select_option(value)
    settle(view)


def shown_ids(view):
    """List the ids of the prompts in the list, in its order."""
    return view.locator("#list .name").all_text_contents()


def in_order(names):
    """Put ids in the order of the list: helpful prompts first, since harmful ones are covered."""
    return sorted(names, key=lambda name: (name.startswith("harmful"), name))


def read_answers(folder):
    """Read what is filtered, by plain means: {id: {model: its record, with finish and marks}}."""
    responses = {}
    for row in load(folder / "responses.json"):
        responses[row["id"], row["model"]] = row
    answers = {}
    for row in load(folder / "classification.json"):
        response = responses[row["id"], row["model"]]
        known = {"finish": response["finish"], "marks": marks(response)}
        answers.setdefault(row["id"], {})[row["model"]] = row | known
    return answers


def read_texts(folder):
    """Read all texts that are searched: {id: texts}."""
    searched = {}
    for prompt in load(folder / "prompts.json"):
        texts_of_prompt = [prompt["id"], prompt["prompt"], prompt["chosen"], prompt["rejected"]]
        searched[prompt["id"]] = texts_of_prompt
    for row in load(folder / "responses.json"):
        searched[row["id"]].append(row["response"])
    return searched


# ---- filters and orders

# Choices, and what they ask for of a prompt's answers and texts.
FILTERS = [
    ({"kind": "harmful"}, lambda answers, texts: answers["Base"]["kind"] == "harmful"),
    ({"differ": "yes"}, lambda answers, texts: len(labels_of(answers)) > 1),
    (
        {"differ": "no", "kind": "harmful"},
        lambda answers, texts: (
            answers["Base"]["kind"] == "harmful" and len(labels_of(answers)) == 1
        ),
    ),
    ({"label": "harmful"}, lambda answers, texts: "harmful" in labels_of(answers)),
    (
        {"label": "unhelpful", "model": FIFTH},
        lambda answers, texts: answers[FIFTH]["label"] == "unhelpful",
    ),
    (
        {"mark": "opened a human turn", "model": "Base"},
        lambda answers, texts: "opened a human turn" in answers["Base"]["marks"],
    ),
    (
        {"mark": "does not understand", "label": "helpful"},
        lambda answers, texts: any(
            "does not understand" in row["marks"] and row["label"] == "helpful"
            for row in answers.values()
        ),
    ),
    (
        {"mark": "empty"},
        lambda answers, texts: any("empty" in row["marks"] for row in answers.values()),
    ),
    (
        {"finish": "length"},
        lambda answers, texts: any(row["finish"] == "length" for row in answers.values()),
    ),
    (
        {"low": "-1.5", "high": "0.25", "model": "DPO"},
        lambda answers, texts: -1.5 <= round(answers["DPO"]["reward"], 2) <= 0.25,
    ),
    (
        {"low": "1"},
        lambda answers, texts: any(round(row["reward"], 2) >= 1 for row in answers.values()),
    ),
    ({"text": "SORRY"}, lambda answers, texts: any("sorry" in text.lower() for text in texts)),
    ({"text": "a.b*(c"}, lambda answers, texts: any("a.b*(c" in text for text in texts)),
    (
        {"text": "how", "kind": "harmful", "model": "SFT", "label": "harmless"},
        lambda answers, texts: (
            answers["SFT"]["label"] == "harmless" and any("how" in text.lower() for text in texts)
        ),
    ),
]


def labels_of(answers):
    """Collect the labels of the answers to a prompt."""
    return {row["label"] for row in answers.values()}


def rates_line(answers, ids, kind):
    """Write the line of rates that the page shows below its filters; None without prompts."""
    part = [identifier for identifier in ids if identifier.startswith(kind)]
    if not part:
        return None
    passed, rate = {"harmful": ("harmless", "HmR"), "helpful": ("helpful", "HpR")}[kind]
    cells = [f"{rate} of the {len(part)} {kind}"]
    for model in MODELS:
        count = sum(answers[identifier][model]["label"] == passed for identifier in part)
        cells.append(f"{100 * count / len(part):.1f}% ({count})")
    return "\t".join(cells)


def test_filters_count_what_python_counts(show, five):
    """Every filter: the prompts, their number, and the rates of what is left."""
    view = show()
    answers, searched = read_answers(five), read_texts(five)
    assert shown_ids(view) == in_order(answers)
    for choices, holds in FILTERS:
        expected = [name for name in in_order(answers) if holds(answers[name], searched[name])]
        assert 0 < len(expected) < COUNT, choices
        select(view, **choices)
        assert shown_ids(view) == expected, choices
        count = f"{len(expected)} of {COUNT} prompts"
        assert view.locator("#count").inner_text().startswith(count)
        table = view.locator("#part").inner_text()
        for kind in ("harmful", "helpful"):
            assert (rates_line(answers, expected, kind) or "") in table
        view.locator("[type=reset]").click()
        settle(view)


def test_what_no_answer_has_cannot_be_asked_for(show, five, tmp_path):
    """Marks that no answer has, endings that the run does not know, and rewards without any."""
    folder = copy_files(five, tmp_path / "run", FILES)
    rewrite(
        folder / "responses.json",
        lambda rows: [row | {"response": "Yes, of course.", "finish": None} for row in rows],
    )
    page.write_page(folder)
    view = show(folder=folder)
    view.evaluate("document.getElementById('more').open = true")
    assert view.locator("[name=label]").is_visible()
    assert not view.locator("[name=mark]").is_visible()
    assert not view.locator("[name=finish]").is_visible()
    assert "How an answer ended is not known" in view.locator("#remarks").inner_text()
    for name in ("classification.json", "scores.json", "metrics.json"):
        (folder / name).unlink()
    page.write_page(folder)
    view = show(folder=folder)
    assert not view.locator("#more").is_visible()
    assert not view.locator("[name=differ]").is_visible()
    assert not view.locator("#direction").is_visible()


def test_filters_have_the_values_that_occur(show, five):
    """And no other ones; an address with another one asks for nothing."""
    view = show("#mark=repetitive&label=harmful")
    answers = []
    for by_model in read_answers(five).values():
        answers += by_model.values()
    found = {}
    for name in ("label", "finish", "mark"):
        values = view.locator(f"[name={name}] option").evaluate_all(
            "(all) => all.map((option) => option.value)"
        )
        assert values[0] == ""
        found[name] = set(values[1:])
    assert found["label"] == {row["label"] for row in answers}
    assert found["finish"] == {row["finish"] for row in answers}
    assert found["mark"] == {mark for row in answers for mark in row["marks"]}
    assert "repetitive" not in found["mark"]
    assert view.locator("[name=mark]").input_value() == ""
    assert view.locator("[name=label]").input_value() == "harmful"


def test_controls_are_shown_when_they_have_something_to_choose(show):
    """The second model after the first one, and the models of an order that takes them."""
    view = show()
    select(view)
    for name in ("right", "ranked", "baseline"):
        assert not view.locator(f"[name={name}]").is_visible()
    select(view, left="SFT", order="lowest")
    assert view.locator("[name=right]").is_visible()
    assert view.locator("[name=ranked]").is_visible()
    assert not view.locator("[name=baseline]").is_visible()
    select(view, left="", order="gain")
    assert not view.locator("[name=right]").is_visible()
    assert view.locator("[name=baseline]").is_visible()


def test_orders_are_pythons(show, five):
    """By reward, spread between models, gain of one model over another, and distance."""
    view = show()
    rewards = {}
    for name, answers in read_answers(five).items():
        rewards[name] = {model: row["reward"] for model, row in answers.items()}
    table = pd.DataFrame(rewards).T
    keys = {
        "lowest": table[FIFTH],
        "highest": -table[FIFTH],
        "spread": table.min(axis=1) - table.max(axis=1),
        "gain": table["SFT"] - table[FIFTH],
        "loss": table[FIFTH] - table["SFT"],
        "apart": -(table["SFT"] - table[FIFTH]).abs(),
    }
    for order, key in keys.items():
        select(view, order=order)
        for name, model in (("ranked", FIFTH), ("baseline", "SFT")):
            if view.locator(f"[name={name}]").is_enabled():
                select(view, **{name: model})
        assert key[shown_ids(view)].is_monotonic_increasing, order


@pytest.mark.parametrize("low, high", [("0", "1"), ("1", "0"), ("−0,5", " 1 ")])
def test_reward_ranges_as_people_write_them(show, five, low, high):
    """Either way round, with the page's own minus, with a comma."""
    view = show()
    select(view, low=low, high=high, model="SFT")
    ends = sorted(float(text.replace("−", "-").replace(",", ".")) for text in (low, high))
    expected = []
    for name, answers in read_answers(five).items():
        if ends[0] <= round(answers["SFT"]["reward"], 2) <= ends[1]:
            expected.append(name)
    assert shown_ids(view) == in_order(expected)
    assert view.locator("[aria-invalid=true]").count() == 0


def test_a_reward_that_is_no_number_is_marked(show):
    view = show()
    select(view, low="x")
    assert len(shown_ids(view)) == COUNT
    assert view.locator("[aria-invalid=true]").count() == 1


def test_search_forgives_spaces_and_apostrophes(show, five):
    """Both apostrophes find both; spaces around and between words do not matter."""
    view = show()
    expected = []
    for name, searched in read_texts(five).items():
        if any("i'm sorry" in text.lower() for text in searched):
            expected.append(name)
    assert expected
    for text in ("i'm sorry", "  I’m   sorry "):
        select(view, text=text)
        assert shown_ids(view) == in_order(expected)


def test_search_marks_what_it_finds(show):
    """In the prompt and in every answer, whatever the case; nothing else is marked."""
    view = show("#text=SORRY&kind=helpful")
    view.locator("#list .row").first.click()
    marked = view.locator("#detail mark").all_text_contents()
    assert {text.lower() for text in marked} == {"sorry"}
    shown = view.locator("#detail .text").all_text_contents()
    assert len(marked) == sum(text.lower().count("sorry") for text in shown)


# ---- order of the page, bar, theme


def test_answers_begin_within_two_screens(show):
    """And the rates, as one figure and one table, before them."""
    view = show()
    tops = {}
    for name in ("rates", "answers", "comparisons"):
        tops[name] = view.locator(f"#{name}").bounding_box()["y"]
    assert tops["rates"] < tops["answers"] < 2 * 900
    assert tops["comparisons"] > tops["answers"]
    assert view.locator("#rates table").count() == 1
    assert view.locator("#rates svg").count() == 1


@pytest.mark.parametrize("width", [400, 1400])
def test_links_of_the_bar_lead_to_headings_below_it(show, width):
    """The bar stays at the top, and no heading is hidden beneath it."""
    view = show(width=width)
    for link in view.locator("nav a").all():
        link.click()
        view.wait_for_timeout(50)
        heading = view.locator(f"{link.get_attribute('href')} h2").bounding_box()
        bar = view.locator("nav").bounding_box()
        assert bar["y"] == 0
        assert bar["height"] < 90
        assert bar["height"] <= heading["y"] < 900
    view.locator("nav a", has_text="Judge").click()
    settle(view)
    current = view.locator("nav a[aria-current]").all_text_contents()
    assert current == ["Judge"]


def test_links_of_the_bar_keep_filters_and_prompt_in_the_address(show):
    view = show("#kind=helpful&prompt=helpful-04")
    view.locator("nav a", has_text="Judge").click()
    settle(view)
    address = view.evaluate("location.hash")
    assert address == "#kind=helpful&prompt=helpful-04&section=judge"
    again = show(address)
    settle(again)
    assert len(shown_ids(again)) == PROMPTS
    assert again.locator("#detail-heading").inner_text() == "helpful-04"
    assert 0 < again.locator("#judge-heading").bounding_box()["y"] < 200
    select(again, kind="harmful")
    assert "section" not in again.evaluate("location.hash")


def background(view):
    """Tell how bright the page's paper is, from 0 to 255."""
    color = view.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", color)[0])


def test_theme_is_switched_and_remembered(show, five):
    """Auto follows the system; what is chosen outlasts the page's being opened again."""
    view = show(color_scheme="dark")
    assert background(view) < 60
    theme = view.get_by_label("Theme")
    theme.select_option("light")
    assert background(view) > 200
    view.reload()
    assert background(view) > 200
    assert theme.input_value() == "light"
    view.emulate_media(color_scheme="light")
    theme.select_option("dark")
    assert background(view) < 60
    theme.select_option("auto")
    assert background(view) > 200
    view.emulate_media(color_scheme="dark")
    assert background(view) < 60


def test_theme_works_without_storage(show):
    """Where the browser refuses storage, the theme is switched all the same."""
    refusal = """Object.defineProperty(window, "localStorage", {
      get() { throw new DOMException("refused", "SecurityError"); }
    })"""
    view = show(script=refusal)
    view.get_by_label("Theme").select_option("dark")
    assert background(view) < 60


def test_helpful_prompt_is_open_first(show):
    """The first one, with its text, while harmful texts are covered."""
    view = show()
    assert view.locator("#detail-heading").inner_text() == "helpful-00"
    assert "The helpful question 0?" in view.locator("#detail").inner_text()
    assert view.locator("#detail .covered").count() == 0
    assert view.locator(".uncover").get_attribute("aria-pressed") == "false"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The page of the committed example, which has four models."""
    folder = tmp_path_factory.mktemp("example") / "example"
    names = [*FILES, "report.html"]
    copy_files(ROOT / "results" / "example", folder, names)
    page.write_page(folder)
    return folder


def test_phone(show, example):
    """More than four rows are in the list, letters are large enough, nothing scrolls sideways."""
    view = show("#prompt=helpful-04", width=400, folder=example)
    settle(view)
    frame = view.locator("#list").bounding_box()
    tops = view.locator("#list li").evaluate_all(
        "(all) => all.map((item) => item.getBoundingClientRect())"
        ".map((box) => [box.top, box.bottom])"
    )
    inside = [
        top >= frame["y"] - 1 and bottom <= frame["y"] + frame["height"] + 1 for top, bottom in tops
    ]
    assert sum(inside) > 4
    sizes = view.evaluate(
        """() => [...document.querySelectorAll("figure text, .strip text")]
          .filter((text) => text.checkVisibility())
          .map((text) => {
            const matrix = text.getScreenCTM();
            const scale = Math.hypot(matrix.a, matrix.b);
            return scale * parseFloat(getComputedStyle(text).fontSize);
          })"""
    )
    assert len(sizes) > 50
    assert min(sizes) >= 11
    view.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    wider = view.evaluate(
        """() => [...document.querySelectorAll("html, .scroll, #list, figure div")]
          .filter((part) => part.scrollWidth > part.clientWidth)
          .map((part) => part.ariaLabel ?? part.outerHTML.slice(0, 80))"""
    )
    assert wider == []


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_cut_or_broken(show, example, width):
    """No table runs off the page, and no word or interval in one is broken into two lines.

    On a phone, only the hexadecimal digits of a sha256 are.
    """
    view = show(width=width, folder=example)
    view.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    settle(view)
    cut = view.evaluate(
        """() => [...document.querySelectorAll(".scroll")]
          .filter((part) => part.scrollWidth > part.clientWidth)
          .map((part) => part.ariaLabel)"""
    )
    assert cut == []
    broken = view.evaluate(
        """() => {
          const broken = [];
          for (const cell of document.querySelectorAll("h1, h3, .scroll :is(th, td)")) {
            const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
            for (let node = walker.nextNode(); node; node = walker.nextNode()) {
              for (const match of node.data.matchAll(/\\[[^\\]]*\\]|[^\\s-]+/g)) {
                if (/^[0-9a-f]{64}$/.test(match[0])) continue;
                const range = document.createRange();
                range.setStart(node, match.index);
                range.setEnd(node, match.index + match[0].length);
                const tops = [...range.getClientRects()].map((box) => Math.round(box.top));
                if (new Set(tops).size > 1) broken.push(match[0]);
              }
            }
          }
          return broken;
        }"""
    )
    assert broken == []


# ---- tables


def column_of(view, table, name):
    """List the cells of a table's column, body by body."""
    return view.locator(table).evaluate(
        """(table, name) => {
          const heads = [...table.tHead.rows[0].cells];
          const place = heads.findIndex((head) => head.textContent.trim() === name);
          const texts = (body) => [...body.rows].map((row) => row.cells[place].textContent.trim());
          return [...table.tBodies].map(texts);
        }""",
        name,
    )


def sort_by(view, table, name):
    """Click on the heading of a column; return its direction."""
    head = view.locator(f"{table} thead th", has_text=name)
    head.get_by_role("button").click()
    return head.get_attribute("aria-sort")


def value_of(text):
    """Read the number that a cell begins with."""
    return float(text.split(" ")[0].replace("−", "-").replace("%", ""))


def test_tables_are_sorted_by_a_click(show):
    """Up, down, and back; models and reference answers each among themselves."""
    view = show()
    table, name = "#rates table", "HpR (%)"
    before = column_of(view, table, name)
    assert [len(body) for body in before] == [len(MODELS), len(REFERENCES)]
    for direction, backwards in (("ascending", False), ("descending", True)):
        assert sort_by(view, table, name) == direction
        expected = [sorted(body, key=value_of, reverse=backwards) for body in before]
        assert column_of(view, table, name) == expected
    assert sort_by(view, table, name) is None
    assert column_of(view, table, name) == before
    sort_by(view, table, "HmR (%)")
    assert view.locator(f"{table} [aria-sort]").count() == 1


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["−3.60 [−4.08]", "2.5 [1.0]", "−12.0 [−13.0]"], ["−12.0 [−13.0]", "−3.60 [−4.08]"]),
        (["86% [73, 92]", "9% [1, 20]", "100% [93, 100]"], ["9% [1, 20]", "86% [73, 92]"]),
        (["1,200", "", "900", "+20"], ["+20", "900"]),
        (["step 10", "Step 9", "all equal"], ["all equal", "Step 9"]),
    ],
)
def test_numbers_are_sorted_as_numbers(show, texts, expected):
    """Whatever their minus, unit or interval; what has no value stays at the end."""
    view = show()
    rows = view.evaluate(
        """(texts) => {
          const table = element("table", {}, element("thead", {},
            element("tr", {}, element("th", {}, "name"))), element("tbody", {},
            ...texts.map((text) => element("tr", {}, element("td", {}, text)))));
          makeSortable(table);
          table.querySelector("button").click();
          return [...table.tBodies[0].rows].map((row) => row.textContent);
        }""",
        texts,
    )
    assert sorted(rows) == sorted(texts)
    assert rows[:2] == expected
    assert ("" not in texts) or rows[-1] == ""


# ---- two models alone

WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")


def count_shared(first, second):
    """Count the words of a longest common subsequence."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            longer = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if one == other else longer
    return lengths[-1][-1]


@pytest.mark.parametrize("width", [400, 1400])
def test_two_models_alone(show, five, width):
    """Only their answers, beside or below each other, and what only one has is marked."""
    responses = {}
    for row in load(five / "responses.json"):
        responses[row["id"], row["model"]] = row["response"]
    compared = 0
    view = show("#prompt=helpful-00", width)
    select(view, left="SFT", right="DPO")
    assert "left=SFT&right=DPO" in view.evaluate("location.hash")
    for identifier in shown_ids(view)[:8]:
        cards = view.locator("#detail .card")
        assert cards.evaluate_all("(all) => all.map((card) => card.ariaLabel)") == ["SFT", "DPO"]
        left, right = (card.bounding_box() for card in cards.all())
        assert (left["y"] == right["y"]) == (width == 1400)
        texts_of_two = [responses[identifier, model] for model in ("SFT", "DPO")]
        if all(texts_of_two):
            compared += 1
            rest = []
            for card, tag, text in zip(cards.all(), ("del", "ins"), texts_of_two):
                assert card.locator(".text").text_content() == text
                kept = card.locator(".text").evaluate(
                    """(block) => {
                      const copy = block.cloneNode(true);
                      for (const part of copy.querySelectorAll("del, ins")) part.remove();
                      return copy.textContent;
                    }"""
                )
                assert card.locator({"del": "ins", "ins": "del"}[tag]).count() == 0
                rest.append(WORDS.findall(kept))
            assert rest[0] == rest[1]
            words = [WORDS.findall(text) for text in texts_of_two]
            assert len(rest[0]) == count_shared(*words)
        view.keyboard.press("n")
    assert compared >= 3
    legend = view.locator("#legend span").all_text_contents()
    assert legend == ["SFT", "DPO"]
    assert view.locator("#list .row").first.locator("path").count() == 2


def test_two_models_in_the_address(show):
    """Opened anew they are the same; a model beside itself is another one; covered stays so."""
    view = show("#left=SFT&right=SFT&prompt=harmful-01")
    assert view.locator("#legend span").all_text_contents() == ["SFT", FIFTH]
    assert view.locator("#difference").count() == 0
    assert view.locator("#detail .text").count() == 0
    view.locator(".uncover").click()
    assert view.locator("#difference").count() == 1
    view.locator("[type=reset]").click()
    settle(view)
    assert view.locator("#legend span").all_text_contents() == MODELS


def test_what_only_one_answer_has_is_not_told_by_colour_alone(show):
    """One is underlined with dashes, the other with a line; what is searched for stays marked."""
    view = show("#left=SFT&right=DPO&text=question&prompt=helpful-01")
    lines = view.evaluate(
        """["del", "ins"].map((name) => {
          const node = document.querySelector(`#difference ${name}`);
          return getComputedStyle(node).textDecorationStyle;
        })"""
    )
    assert lines == ["dashed", "solid"]
    marked = view.locator("#detail mark").all_text_contents()
    assert marked
    assert {text.lower() for text in marked} == {"question"}


@pytest.mark.parametrize(
    "first, second, alone",
    [
        ("I like tea.", "I like tea.", [[], []]),
        ("I like tea.", "I like green tea!", [["."], ["green", "!"]]),
        ("", "", [[], []]),
        ("one", "", [["one"], []]),
        ("don't go", "do go", [["don't"], ["do"]]),
        ("a b c d", "c d a b", [["a b"], ["a b"]]),
        ("Käse 🧀 日本", "Kase 🧀 日本", [["Käse"], ["Kase"]]),
    ],
)
def test_words_that_only_one_text_has(show, first, second, alone):
    view = show()
    result = view.evaluate("(texts) => compareWords(...texts)", [first, second])
    parts = []
    for text, ranges in zip((first, second), result["ranges"]):
        units = text.encode("utf-16-le")
        parts.append([units[2 * a : 2 * b].decode("utf-16-le") for a, b in ranges])
    assert parts == alone


def test_texts_too_long_are_not_compared(show):
    view = show()
    assert view.evaluate("compareWords('a '.repeat(3000), 'b '.repeat(3000))") is None
    assert view.evaluate("compareWords('a '.repeat(3000), 'a '.repeat(3000)).common") == 3000


# ---- files and links

FORMULAS = ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", 'a "quoted", word', "two\nlines", " =1", "it's"]


def save(view, name):
    """Save a file with a button of the page; return its name and its bytes."""
    with view.expect_download() as download:
        view.locator(f"#save-{name}").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def expected_records(folder, ids, models):
    """Make the records of a saved file from the files of the run."""
    answers, responses, prompts = read_answers(folder), {}, {}
    for row in load(folder / "responses.json"):
        responses[row["id"], row["model"]] = row
    for row in load(folder / "prompts.json"):
        prompts[row["id"]] = row["prompt"].strip().removesuffix("\n\nAssistant:")
    records = []
    for identifier in ids:
        for model in models:
            answer, response = answers[identifier][model], responses[identifier, model]
            record = {
                "id": identifier,
                "kind": answer["kind"],
                "model": model,
                "prompt": prompts[identifier],
                "response": response["response"],
                "finish": response["finish"],
                "tokens": response["tokens"],
                "reward": answer["reward"],
                "label": answer["label"],
                "marks": answer["marks"],
            }
            records.append(record)
    return records


@pytest.mark.parametrize("models", [MODELS, ["SFT", "DPO"]], ids=["all", "two"])
def test_json_file_holds_the_answers_in_the_list(show, five, models):
    view = show()
    select(view, label="unhelpful", order="gain")
    if models != MODELS:
        select(view, left="SFT", right="DPO")
    name, content = save(view, "json")
    assert name == "five-answers.json"
    ids = shown_ids(view)
    assert 0 < len(ids) < COUNT
    assert json.loads(content) == expected_records(five, ids, models)


def test_csv_file_is_harmless_and_exact(show, five, tmp_path):
    """Rows of RFC 4180; no text begins like a formula, and numbers stay numbers."""
    folder = copy_files(five, tmp_path / "five", FILES)

    def spoil(row):
        place = int(row["id"][-2:])
        if row["id"].startswith("helpful") and place < len(FORMULAS):
            return row | {"response": FORMULAS[place]}
        return row

    rewrite(folder / "responses.json", lambda rows: [spoil(row) for row in rows])
    page.write_page(folder)
    view = show("#kind=helpful", folder=folder)
    name, content = save(view, "csv")
    assert name == "five-answers.csv"
    text = content.decode("utf-8-sig")
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    records = expected_records(folder, shown_ids(view), MODELS)
    assert len(rows) == len(records) == PROMPTS * len(MODELS)
    for row, record in zip(rows, records):
        response = record["response"]
        harmful = response.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["response"] == ("'" if harmful else "") + response
        assert float(row["reward"]) == record["reward"]
        assert row["marks"] == "; ".join(record["marks"])
        for column in ("id", "kind", "model", "prompt", "finish", "label"):
            assert row[column] == record[column]
    beginnings = {row["response"][0] for row in rows if row["response"]}
    assert not beginnings & set("=+-@\t\r")


def test_no_file_of_no_answers(show):
    view = show("#text=qqqq")
    assert view.locator("#save-csv").is_disabled()
    assert view.locator("#save-json").is_disabled()


NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"


@pytest.mark.parametrize("script", ["", NO_CLIPBOARD], ids=["clipboard", "without clipboard"])
def test_link_is_copied(show, script):
    """With its filters and its prompt, also where a page from a file has no clipboard."""
    view = show(script=script)
    select(view, kind="helpful")
    view.locator("#list .row").nth(3).click()
    view.locator("#copy").click()
    view.get_by_text("The link is copied.").wait_for()
    assert view.evaluate("document.activeElement.id") == "copy"
    search = view.locator("[name=text]")
    search.focus()
    view.keyboard.press("Control+V")
    address, _, state = search.input_value().partition("#")
    assert address.endswith("/five/report.html")
    again = show(f"#{state}")
    assert again.locator("#detail-heading").inner_text() == "helpful-03"
    assert len(shown_ids(again)) == PROMPTS


def test_link_that_cannot_be_copied_is_in_the_address_bar(show):
    view = show(script=f"{NO_CLIPBOARD} document.execCommand = () => false;")
    view.locator("#copy").click()
    view.get_by_text("The link is in the address bar.").wait_for()
    assert view.evaluate("location.hash") == "#prompt=helpful-00"


# ---- keys, buttons, address


def test_keys(show):
    """n and p step, / searches, Esc leaves the search, then closes the prompt."""
    view = show("#kind=helpful")
    heading = view.locator("#detail-heading")
    view.keyboard.press("n")
    assert heading.inner_text() == "helpful-00"
    top = view.locator("#detail").evaluate("(detail) => detail.getBoundingClientRect().top")
    assert top < 450  # it has come into sight
    for key in ("n", "n", "p"):
        view.keyboard.press(key)
    assert heading.inner_text() == "helpful-01"
    view.keyboard.press("/")
    view.keyboard.type("n")  # a letter of the search, not the key
    settle(view)
    assert "text=n" in view.evaluate("location.hash")
    assert heading.inner_text() == "helpful-00"  # the first of those that hold it
    view.keyboard.press("Escape")
    assert view.locator("[name=text]").input_value() == ""
    view.keyboard.press("n")
    view.keyboard.press("Escape")
    assert heading.inner_text() == "No prompt is open"
    label = view.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("helpful-01: Base")
    view.keyboard.press("ArrowDown")
    view.keyboard.press("ArrowDown")
    assert heading.inner_text() == "helpful-01"
    assert view.evaluate("document.activeElement.textContent").startswith("helpful-01")


def test_buttons_keep_the_focus_and_the_history_the_prompts(show):
    view = show("#prompt=helpful-00")
    view.locator("#next").focus()
    for _ in range(3):
        view.keyboard.press("Enter")
    assert view.locator("#detail-heading").inner_text() == "helpful-03"
    assert view.evaluate("document.activeElement.id") == "next"
    view.go_back()
    settle(view)
    assert view.locator("#detail-heading").inner_text() == "helpful-02"


def test_address_holds_filter_and_prompt(show):
    """It follows what is chosen, opens the same anew, and changes with the address."""
    view = show()
    assert view.evaluate("location.hash") == ""
    select(view, kind="helpful", model=FIFTH, finish="eos", text="the", order="gain")
    view.locator("#list .row").nth(2).click()
    address, ids = view.evaluate("location.hash"), shown_ids(view)
    again = show(address)
    assert shown_ids(again) == ids
    assert again.locator("#detail-heading").inner_text() == ids[2]
    again.evaluate("location.hash = '#kind=harmful&prompt=harmful-07'")
    settle(again)
    assert len(shown_ids(again)) == PROMPTS
    assert again.locator("#detail-heading").inner_text() == "harmful-07"
    again.evaluate("location.hash = '#judge'")  # a heading: filter and prompt stay
    settle(again)
    assert again.locator("#detail-heading").inner_text() == "harmful-07"


def test_row_of_the_prompt_in_the_address_is_in_sight(show):
    """The list scrolls to it, and stays there when the rows around it are drawn."""
    view = show("#prompt=helpful-09")
    settle(view)
    row = view.locator(".row[aria-current=true]").bounding_box()
    frame = view.locator("#list").bounding_box()
    assert row["y"] > frame["y"]
    assert row["y"] + row["height"] < frame["y"] + frame["height"]


def test_nonsense_in_the_address_does_no_harm(show):
    view = show("#kind=what&model=nobody&low=x&order=7&prompt=<b>&%E0%A4%A=1")
    assert len(shown_ids(view)) == COUNT
    assert "there is no prompt <b>" in view.locator("#count").inner_text()


# ---- the blind mode


@pytest.fixture(scope="module")
def nameless(tmp_path_factory, five):
    """The run with answers that do not say whose they are; two are the same, one is hostile."""
    folder = copy_files(five, tmp_path_factory.mktemp("blind") / "nameless", FILES)

    def rename(row):
        number = hashlib.sha256(f"{row['id']} {row['model']}".encode()).hexdigest()[:8]
        text = f"Answer {number}."
        if row["id"] == "helpful-03" and row["model"] in ("SFT", "DPO"):
            text = HOSTILE["image"]
        return row | {"response": text}

    rewrite(folder / "responses.json", lambda rows: [rename(row) for row in rows])
    page.write_page(folder)
    return folder


PAIRS = len(MODELS) * (len(MODELS) - 1) // 2
ASKED = PAIRS * PROMPTS - 1  # of the helpful prompts, without the two answers that are the same


def read_pair(view):
    """Read the texts of the prompt and of the two answers that are shown."""
    return view.locator("#blind-pair .text").all_text_contents()


def models_of_texts(folder):
    """Look up whose answers texts are: {text: (id, model)}."""
    owners = {}
    for row in load(folder / "responses.json"):
        owners[row["response"]] = (row["id"], row["model"])
    return owners


def save_votes(view):
    """Save the votes; return the file's name, its path and its data."""
    with view.expect_download() as download:
        view.locator("#blind-save").click()
    path = Path(download.value.path())
    return download.value.suggested_filename, path, json.loads(path.read_text(encoding="utf-8"))


SEEDED = "crypto.getRandomValues = (numbers) => numbers.fill(7);"  # always the same order


def test_votes_by_keys_and_buttons_are_those_in_the_file(show, nameless):
    """Each with the models on the sides on which their answers stood; undone ones are not."""
    view = show("#blind", folder=nameless, script=SEEDED)
    owners = models_of_texts(nameless)
    expected = []

    def note(winner):
        _, *answers = read_pair(view)
        (identifier, first), (other, second) = [owners[text] for text in answers]
        assert identifier == other
        expected.append({"id": identifier, "first": first, "second": second, "winner": winner})

    for key, winner in [("ArrowLeft", "first"), ("ArrowRight", "second"), ("t", "tie")]:
        note(winner)
        view.keyboard.press(key)
    undone = read_pair(view)
    view.keyboard.press("T")
    view.keyboard.press("u")
    assert read_pair(view) == undone
    for name, winner in [("The second", "second"), ("Neither, a tie", "tie")]:
        note(winner)
        view.get_by_role("button", name=name).click()
    view.get_by_role("button", name="Undo").click()
    expected.pop()
    assert view.locator("#blind-progress").inner_text().startswith(f"4 of {ASKED} pairs voted on.")
    name, _, data = save_votes(view)
    assert name == "nameless-votes.json"
    assert data["run"] == "nameless"
    names = ("prompts.json", "responses.json")
    assert data["sha256"] == {name: sha256_of(nameless / name) for name in names}
    assert data["votes"][:4] == expected
    # If the pair of equal answers has been passed by, it is a tie.
    assert [vote["id"] for vote in data["votes"][4:]] in ([], ["helpful-03"])


def test_votes_of_the_page_are_counted_by_the_command(show, nameless):
    """All pairs of both kinds: none twice, none left out; those of equal answers are ties."""
    from posttrain import votes

    view = show("#blind", folder=nameless)
    view.get_by_role("button", name="both in turn").click()
    asked = []
    for _ in range(2 * ASKED + 1):
        pair = read_pair(view)
        asked.append(pair[0])
        view.keyboard.press("ArrowLeft" if pair[1] < pair[2] else "ArrowRight")
    assert "There is no further pair" in view.locator("#blind-question").inner_text()
    assert read_pair(view) == []
    kinds = ["helpful" if "helpful" in text else "harmful" for text in asked]
    assert kinds[:6] == 3 * ["helpful", "harmful"]
    _, path, data = save_votes(view)
    result = votes.write_votes(path, nameless)
    (nameless / "votes.json").unlink()
    assert result["votes"] == 2 * PAIRS * PROMPTS
    assert (result["ties"], result["same"]) == (1, 1)
    assert {row["n"] for row in result["win_rates"]} == {PROMPTS}
    given = {}
    for row in load(nameless / "responses.json"):
        given[row["id"], row["model"]] = row["response"]
    for vote in data["votes"]:
        first, second = given[vote["id"], vote["first"]], given[vote["id"], vote["second"]]
        winner = "tie" if first == second else "first" if first < second else "second"
        assert vote["winner"] == winner


def test_pairs_of_models_are_asked_equally_often_and_sides_are_drawn(show, nameless):
    """After any number of votes the numbers differ by at most one, or two with equal answers."""
    view = show("#blind", folder=nameless)
    for _ in range(6 * PAIRS + 3):
        view.keyboard.press("ArrowLeft")
    _, _, data = save_votes(view)
    counts = Counter()
    firsts = 0
    for vote in data["votes"]:
        counts[frozenset((vote["first"], vote["second"]))] += 1
        firsts += MODELS.index(vote["first"]) < MODELS.index(vote["second"])
        assert len(counts) == PAIRS or max(counts.values()) <= 2
    assert len(counts) == PAIRS
    assert max(counts.values()) - min(counts.values()) <= 2
    assert 0.2 < firsts / len(data["votes"]) < 0.8
    prompts = Counter(vote["id"] for vote in data["votes"])
    assert len(prompts) == PROMPTS
    assert max(prompts.values()) - min(prompts.values()) <= 4


def test_progress_is_kept_in_the_browser(show, nameless):
    """After the page is loaded again the same pair is asked; another browser has another order."""
    view = show("#blind", folder=nameless)
    for key in ("ArrowLeft", "t", "ArrowRight"):
        view.keyboard.press(key)
    pair = read_pair(view)
    view.reload()
    assert view.locator("#blind-progress").inner_text().startswith("3 of ")
    assert read_pair(view) == pair
    assert len({tuple(read_pair(show("#blind", folder=nameless))) for _ in range(5)}) > 1


def test_two_windows_do_not_lose_each_others_votes(show, nameless):
    view = show("#blind", folder=nameless)
    other = view.context.new_page()
    other.goto(view.url)
    view.keyboard.press("ArrowLeft")
    view.keyboard.press("ArrowLeft")
    other.get_by_text(f"2 of {ASKED}").wait_for()
    other.keyboard.press("ArrowRight")
    view.get_by_text(f"3 of {ASKED}").wait_for()
    assert read_pair(view) == read_pair(other)
    view.keyboard.press("u")
    other.get_by_text(f"2 of {ASKED}").wait_for()
    _, _, data = save_votes(view)
    assert [vote["winner"] for vote in data["votes"]][:2] == ["first", "first"]


@pytest.mark.parametrize(
    "content", ["{", "null", '{"seed": 1}', '{"seed": 1, "votes": [{"id": "a"}]}', "[]"]
)
def test_damaged_storage_begins_anew(show, nameless, content):
    view = show("#blind", folder=nameless)
    view.evaluate(
        "(text) => Object.keys(localStorage).forEach((key) => localStorage.setItem(key, text))",
        content,
    )
    view.reload()
    assert view.locator("#blind-progress").inner_text().startswith("0 of ")
    view.keyboard.press("ArrowLeft")
    assert view.locator("#blind-progress").inner_text().startswith("1 of ")


NO_STORAGE = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("denied", "SecurityError"); },
});"""


def test_without_storage_votes_are_given_and_saved(show, nameless):
    view = show("#blind", folder=nameless, script=NO_STORAGE)
    for _ in range(3):
        view.keyboard.press("ArrowLeft")
    progress = view.locator("#blind-progress").inner_text()
    assert progress.startswith("3 of ")
    assert "does not keep the votes: save them before" in progress
    _, _, data = save_votes(view)
    assert len([vote for vote in data["votes"] if vote["winner"] == "first"]) == 3


def test_votes_are_deleted_when_the_reader_confirms(show, nameless):
    view = show("#blind", folder=nameless)
    view.keyboard.press("ArrowLeft")
    view.once("dialog", lambda dialog: dialog.dismiss())
    view.locator("#blind-delete").click()
    assert view.locator("#blind-progress").inner_text().startswith("1 of ")
    view.once("dialog", lambda dialog: dialog.accept())
    view.locator("#blind-delete").click()
    assert view.locator("#blind-progress").inner_text().startswith("0 of ")
    view.reload()
    assert view.locator("#blind-progress").inner_text().startswith("0 of ")


def test_names_and_rewards_are_hidden(show, nameless):
    """Neither are they seen, nor do they stand in any element of the blind mode."""
    view = show("#blind", folder=nameless)
    view.get_by_role("button", name="both in turn").click()
    for _ in range(4):
        seen = view.locator("body").inner_text()
        markup = view.locator("#blind").evaluate("(stage) => stage.outerHTML")
        for name in MODELS:
            assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", seen), name
            assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", markup), name
        assert not re.search(r"\d\.\d\d", seen)
        view.keyboard.press("ArrowRight")
    assert view.locator("nav, header, main:not(#blind)").evaluate_all(
        "(all) => all.every((part) => !part.checkVisibility())"
    )


def test_nothing_but_the_blind_mode_is_ever_drawn_at_its_address(show, nameless):
    """From the first element on, before the scripts at the end of the page."""
    watch = """window.seen = [];
      new MutationObserver(() => {
        for (const part of document.querySelectorAll("body > :not(#blind)")) {
          if (part.checkVisibility()) window.seen.push(part.tagName);
        }
      }).observe(document, {childList: true, subtree: true});"""
    view = show("#blind", folder=nameless, script=watch)
    assert view.evaluate("window.seen") == []
    assert "HEADER" in show(folder=nameless, script=watch).evaluate("window.seen")


def test_blind_mode_is_entered_and_left(show, nameless):
    """By links, by the browser's back button; its keys and those of the page do not mix."""
    view = show("#kind=helpful&prompt=helpful-02", folder=nameless)
    view.get_by_role("link", name="Vote without seeing").click()
    pair = read_pair(view)
    for key in ("n", "j", "/", "Escape"):
        view.keyboard.press(key)
    assert read_pair(view) == pair
    view.keyboard.press("ArrowLeft")
    view.go_back()
    assert view.locator("#detail-heading").inner_text() == "helpful-02"
    view.keyboard.press("ArrowLeft")
    view.keyboard.press("t")
    view.go_forward()
    assert view.locator("#blind-progress").inner_text().startswith("1 of ")
    view.get_by_role("link", name="Leave, and show the names").click()
    assert view.locator("#answers-heading").is_visible()
    assert view.locator("#answers").evaluate("(part) => part.getBoundingClientRect().top") < 100
    directly = show("#blind", folder=nameless)
    directly.get_by_role("link", name="Leave, and show the names").click()
    box = directly.locator("#detail svg.strip").evaluate("(svg) => svg.viewBox.baseVal.width")
    assert box > 600  # drawn at the width that it has


def test_hostile_answers_are_text_in_the_blind_mode(show, hostile):
    view = show("#blind", folder=hostile)
    for _ in range(40):
        view.keyboard.press("ArrowLeft")
        assert view.locator("#blind-pair :is(script, img, b, style, textarea)").count() == 0
    assert view.evaluate("document.title") == "run: harmlessness and helpfulness"


def test_no_blind_mode_without_answers_of_two_models(show, five, tmp_path):
    """Its address shows the page as it is."""
    folder = copy_files(five, tmp_path / "part", ["prompts.json", "scores.json"])
    page.write_page(folder)
    view = show("#blind", folder=folder)
    assert view.locator("h1:not(#blind-heading)").is_visible()
    assert view.locator("#blind, #to-blind").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1400])
def test_blind_mode_is_accessible_and_fits(show, nameless, width, scheme):
    """The buttons stay in sight."""
    view = show("#blind", width, folder=nameless, color_scheme=scheme, bypass_csp=True)
    view.keyboard.press("ArrowLeft")
    assert list_violations(view) == []
    assert view.evaluate("document.documentElement.scrollWidth") == width
    box = view.locator(".ballot").bounding_box()
    assert 0 <= box["y"] <= 900 - box["height"]


# ---- what is shown


def test_every_model_has_its_card_and_its_mark(show):
    """Also the fifth; in the list all marks of a prompt lie within its row."""
    view = show("#prompt=helpful-04")
    cards = view.locator("#detail .cards").first.locator(".card")
    assert cards.evaluate_all("(all) => all.map((card) => card.ariaLabel)") == MODELS
    assert view.locator("#detail svg.strip path").count() == len(MODELS) + 5  # and references
    assert view.locator("#legend span").all_text_contents() == MODELS
    settle(view)
    inside = view.locator("#list .row[aria-current=true]").evaluate(
        """(button) => {
          const row = button.getBoundingClientRect();
          const paths = [...button.querySelectorAll("path")];
          return paths.length === 5 && paths.every((path) => {
            const mark = path.getBoundingClientRect();
            return mark.width > 0 && mark.top >= row.top && mark.bottom <= row.bottom;
          });
        }"""
    )
    assert inside


def test_harmful_texts_are_covered_until_uncovered(show, five):
    """Neither prompt nor answers nor replies are in the page before; after, all of them are."""
    prompt = next(row for row in load(five / "prompts.json") if row["id"] == "harmful-04")
    shown = [prompt["chosen"], prompt["rejected"], "The harmful question 4?"]
    for row in load(five / "responses.json"):
        if row["id"] == "harmful-04" and row["response"]:
            shown.append(row["response"])
    view = show("#prompt=harmful-04")
    text = view.locator("#browser").inner_text()
    assert not any(part in text for part in shown)
    assert view.locator("#detail .covered").count() == 1 + len(MODELS) + 2
    view.locator(".uncover").click()
    text = view.locator("#browser").inner_text()
    assert all(part in text for part in shown)
    assert view.locator(".covered").count() == 0
    view.locator(".uncover").click()
    text = view.locator("#browser").inner_text()
    assert not any(part in text for part in shown)
    helpful = show("#prompt=helpful-04")
    assert "The chosen helpful reply 4." in helpful.locator("#detail").inner_text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, five):
    """A run whose prompts, answers, replies, a model's name and settings are hostile."""
    folder = copy_files(five, tmp_path_factory.mktemp("hostile") / "run", FILES)
    by_id = {f"helpful-{i:02d}": text for i, text in enumerate(HOSTILE.values())}
    everything = " ".join(HOSTILE.values())

    def spoil_prompt(row):
        text = by_id.get(row["id"])
        if text is None:
            return row
        return row | {"prompt": f"\n\nHuman: {text}\n\nAssistant:", "chosen": text}

    def spoil_response(row):
        if row["id"] == "helpful-14" and row["model"] == "SFT":
            return row | {"response": "x" * 1_000_000 + "END"}
        return row | {"response": by_id.get(row["id"], row["response"])}

    def spoil_record(data):
        source = data["sources"]["base_model"] | {"name": everything}
        return data | {
            "sources": {"base_model": source},
            "settings": {"training": {everything: [everything]}},
        }

    rewrite(folder / "prompts.json", lambda rows: [spoil_prompt(row) for row in rows])
    rewrite(folder / "responses.json", lambda rows: [spoil_response(row) for row in rows])
    rewrite(folder / "run.json", spoil_record)
    rewrite(folder / "metrics.json", lambda data: data | {"cautions": [everything]})
    page.write_page(folder)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_text(show, hostile, name):
    """In the prompt, in every answer and reply: the letters are there, and no element of it."""
    place = list(HOSTILE).index(name)
    view = show(f"#prompt=helpful-{place:02d}", folder=hostile)
    seen = texts.make_visible(HOSTILE[name])
    shown = view.locator("#detail .text").all_text_contents()
    assert [text for text in shown if text == seen] == [seen] * (1 + len(MODELS) + 1)
    assert view.evaluate("document.title") == "run: harmlessness and helpfulness"
    assert view.locator("#detail :is(script, img, b, style, textarea)").count() == 0


def test_hostile_names_are_text(show, hostile):
    """A base's name in the title, settings and a caution; nothing of it is markup."""
    view = show(folder=hostile)
    everything = texts.make_visible(" ".join(HOSTILE.values()))
    assert everything in view.locator("h1:not(#blind-heading)").text_content()
    assert everything in view.locator("#making").text_content()
    assert everything in view.locator(".caution").text_content()
    elements = view.locator("img, :is(h1, .caution, td, dd) :is(script, style, b)").count()
    assert elements == view.locator(".matrix td b").count()
    assert view.evaluate("document.documentElement.scrollWidth") <= 1400


def test_a_million_characters(show, hostile):
    """Their beginning is shown at first, the rest on demand."""
    view = show("#prompt=helpful-14", folder=hostile)
    card = view.get_by_role("region", name="SFT", exact=True)
    assert 4000 < len(card.inner_text()) < 4200
    card.get_by_role("button", name="Show all 1,000,003 characters").click()
    assert card.inner_text().endswith("END")


def list_violations(view):
    """List what breaks a rule of WCAG 2.1 AA, or of what is good practice, on the page."""
    from axe_playwright_python.sync_playwright import Axe

    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
    report = Axe().run(view, options={"runOnly": rules})
    violations = []
    for violation in report.response["violations"]:
        violations.append((violation["id"], violation["nodes"][0]["html"][:200]))
    return violations


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_page_is_accessible_and_fits(show, width, scheme):
    """Axe finds nothing (WCAG 2.1 AA); only tables scroll sideways."""
    view = show("#text=the&prompt=helpful-04", width, color_scheme=scheme, bypass_csp=True)
    view.locator(".uncover").click()
    for summary in view.locator("summary").all():
        summary.click()
    assert list_violations(view) == []
    for size in {400: (400, 320), 1400: (1400,)}[width]:
        view.set_viewport_size({"width": size, "height": 900})
        assert view.evaluate("document.documentElement.scrollWidth") == size


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_models_alone_are_accessible(show, theme):
    """In the theme that the reader has chosen, with a sorted table and a copied link."""
    address = "#left=SFT&right=DPO&text=question&prompt=helpful-04"
    view = show(address, color_scheme="light", bypass_csp=True)
    view.get_by_label("Theme").select_option(theme)
    assert view.locator("#detail :is(del, ins)").count() > 2
    sort_by(view, "#rates table", "HmR (%)")
    view.locator("#copy").click()
    assert list_violations(view) == []
    assert view.evaluate("document.documentElement.scrollWidth") == 1400


@pytest.mark.parametrize(
    "names",
    [
        ["run.json"],
        ["run.json", "training.json"],
        ["prompts.json"],
        ["scores.json"],
        ["prompts.json", "responses.json"],
        ["scores.json", "metrics.json"],
        ["prompts.json", "scores.json", "classification.json", "metrics.json"],
    ],
    ids=" ".join,
)
def test_page_of_a_part_of_a_run_works(show, five, tmp_path, names):
    """Without texts, rewards or labels: no error; prompts open, and what is missing is said."""
    folder = copy_files(five, tmp_path / "part", names)
    page.write_page(folder)
    view = show(folder=folder)
    if names[0] == "run.json":
        assert "neither prompts nor answers" in view.locator("#answers").inner_text()
        return
    assert len(shown_ids(view)) == COUNT
    view.keyboard.press("n")
    view.locator(".uncover").click()
    detail = view.locator("#detail").inner_text()
    answered = names != ["prompts.json"]
    assert view.locator("#detail .cards").first.locator(".card").count() == (
        len(MODELS) if answered else 0
    )
    textless = answered and "responses.json" not in names
    assert ("The text is not in this run." in detail) == textless
    view.evaluate("document.getElementById('more').open = true")
    assert view.locator("[name=label]").is_visible() == ("classification.json" in names)
    assert view.locator("[name=low]").is_visible() == ("scores.json" in names)
    if "scores.json" in names:
        for order in ("spread", "gain"):
            select(view, order=order)


def test_printed_page_leaves_out_what_only_a_screen_needs(show):
    """No controls and no list, but tables, figures and the prompt that is open."""
    view = show("#prompt=helpful-04")
    view.emulate_media(media="print")
    hidden = view.locator("#filters, #list, nav, .keys, #save, button:not(th button)")
    assert not hidden.evaluate_all("(all) => all.some((part) => part.checkVisibility())")
    assert view.locator("#detail .card").first.is_visible()
    assert view.locator("#figure-differences .wide-screen svg").is_visible()


def test_nothing_runs_off_the_paper(show, example):
    """Between the margins of A4, at the width that a browser prints it with."""
    view = show(width=680, folder=example)
    view.emulate_media(media="print")
    right = view.locator("#rates table, #rates svg, .matrix, #behaviour table").evaluate_all(
        "(all) => all.map((part) => part.getBoundingClientRect().right)"
    )
    assert len(right) > 5
    assert max(right) <= 680


def test_what_is_folded_is_printed(show, tmp_path):
    """Without a script by the style, with one because it is opened and folded again."""
    view = show()
    folded = view.locator("details:not(form *) table, details li")
    assert folded.count() > 5
    seen = "(all) => all.map((part) => part.checkVisibility())"
    assert not any(folded.evaluate_all(seen))
    view.emulate_media(media="print")
    assert all(folded.evaluate_all(seen))
    view.emulate_media(media="screen")
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.locator("details:not([open])").count() == 0
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    assert view.locator("details[open]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_more_certain_a_difference_the_more_it_stands_out(show, scheme):
    """From the paper: significant ones most, inconclusive ones least, in light and dark."""
    view = show(color_scheme=scheme)
    contrasts = view.evaluate(
        """() => {
          const brightness = (color) => Number(color.match(/\\d+/)[0]);
          const paper = brightness(getComputedStyle(document.body).backgroundColor);
          const contrasts = [];
          for (const color of ["currentColor", "var(--suggestive)", "var(--inconclusive)"]) {
            const line = document.querySelector(`#figure-differences [stroke="${color}"]`);
            contrasts.push(Math.abs(brightness(getComputedStyle(line).stroke) - paper));
          }
          return contrasts;
        }"""
    )
    assert contrasts == sorted(contrasts, reverse=True)
    assert len(set(contrasts)) == 3
    assert contrasts[-1] > 50


def test_page_without_scripts_says_so(show):
    view = show(java_script_enabled=False)
    assert "scripts are switched off" in view.locator("#answers").inner_text()
    assert view.locator("#rates table").first.is_visible()


def test_search_is_not_a_pattern(show):
    """What is searched for is a text; characters of patterns stand for themselves."""
    view = show()
    select(view, text="[")
    assert shown_ids(view) == []
    assert re.search(r"^0 of \d+ prompts: no prompt matches", view.locator("#count").inner_text())
