"""The page of a run: what it says, what it does without, and that hostile texts stay texts.

What takes a browser is in test_page_browser.py.
"""

import base64
import hashlib
import json
import re
import shutil

import pytest
from conftest import ROOT, load
from five_models import FILES, MODELS, RAW, compare_models, write_run
from matplotlib.figure import Figure

from posttrain import page
from posttrain.conclusions import headline, verdicts
from posttrain.page import drawings, origin, reading, render, texts
from posttrain.style import MARKERS

PAGE = ROOT / "posttrain" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
COMMITTED = ["example", "published"]
HOSTILE = {
    "script": "<script>document.title='broken'</script>",
    "end of script": "</script><script>alert(1)</script>",
    "comment": "<!-- a --> b ]]> c",
    "text area": "</textarea></style></title><b>bold</b>",
    "image": "<img src=x onerror=\"document.title='broken'\">",
    "separator": "one\u2028two\u2029three",
    "nul": "a\x00b",
    "ansi": "\x1b[31mred\x1b[0m",
    "right to left": "abc \u202etxt.exe \u200f def",
    "half": "half \ud83d of a character",
    "latex": r"$\frac{a}{b}$ \(x\) \input{/etc/passwd}",
    "template": "{{ 7 * 7 }} {% raw %}",
    "entity": "&lt;b&gt; &amp;",
    "accents": "e\u0301 Käse 🧀 日本語 العربية",
}
SEEN = {
    "separator": "one⟨U+2028⟩two⟨U+2029⟩three",
    "nul": "a␀b",
    "ansi": "␛[31mred␛[0m",
    "right to left": "abc ⟨U+202E⟩txt.exe ⟨U+200F⟩ def",
    "half": "half \ufffd of a character",
}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The folder of a run of five models; not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "five")


@pytest.fixture(scope="module")
def html(five):
    """The page of that run."""
    return page.render_page(five)


@pytest.fixture
def without_figures(monkeypatch):
    """Leave the figures, which take most of the time, out of the pages that are made."""
    monkeypatch.setattr(render, "draw_figures", lambda files: {})


def copy_files(five, folder, names):
    """Copy some files of the run into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(five / name, folder)
    return folder


def rewrite(path, change):
    """Change the data of a JSON file, and let metrics.json not know the files' sha256."""
    path.write_text(json.dumps(change(load(path))), encoding="utf-8")
    metrics = path.with_name("metrics.json")
    if metrics.exists() and path != metrics:
        metrics.write_text(json.dumps(load(metrics) | {"sha256": {}}), encoding="utf-8")


def script_data(html):
    """Read the data that the page's script shows."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text[1])


def unspanned(html):
    """Take out the elements that keep names and intervals from being broken."""
    return re.sub(r"</?span[^>]*>", "", html)


def policy_of(html):
    """Read the page's policy of what may be loaded and run."""
    return re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]


# ---- what the page holds


@pytest.mark.parametrize("run", COMMITTED)
def test_committed_page_is_that_of_the_committed_files(run):
    """To the byte, and small enough to be sent by mail."""
    folder = ROOT / "results" / run
    assert (folder / "report.html").read_text(encoding="utf-8") == page.render_page(folder)
    assert (folder / "report.html").stat().st_size < 1_500_000


def test_page_loads_nothing(html):
    """No address in it is loaded; only its own script and style are allowed, by their hashes."""
    addresses = re.findall(r'(?:src|href)="(?!#)([^"]*)"', html)
    assert addresses == ["data:,", "https://arxiv.org/abs/2509.09055"]  # the last one is a link
    before_data = html.split('id="data"')[0]
    assert not re.search(r"\son\w+=|javascript:|@import|url\((?!#)|\sstyle=", before_data)
    assert policy_of(html).startswith("default-src 'none';")
    assert "unsafe" not in policy_of(html)
    assert html.count("<script") == 3
    assert html.count("<style") == 1


def test_every_script_is_in_the_page_and_allowed(html):
    """Each by its own hash, so that a script that somebody else adds does not run."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy_of(html)
    for path in SCRIPTS:
        assert any(path.read_text(encoding="utf-8") in script for script in scripts), path.name


def test_scripts_use_no_markup_and_no_network():
    """They make elements and texts, never read a text as markup, and never ask for anything."""
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
        r"|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\("
    )
    for path in SCRIPTS:
        assert not re.search(forbidden, path.read_text(encoding="utf-8")), path.name


def test_template_style_and_scripts_are_readable():
    """Like the rest of the code they have lines of at most 100 columns."""
    for path in [*SCRIPTS, PAGE / "report.html", PAGE / "report.css"]:
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 100, path.name


def test_judge_is_checked_against_people(html):
    """One table has the measures of the judge and every model's win rate."""
    table = html.split('id="judge"')[1].split("</table>")[0]
    for name in ["agreement", "Youden", "AUC", *MODELS]:
        assert name in table


def test_answers_come_after_the_findings_and_the_rates(html):
    """The rest comes after them."""
    places = []
    for part in ("headlines", "rates", "figure-metrics", "answers", "comparisons", "judge"):
        places.append(re.search(rf'(?:id|class)="{part}"', html).start())
    places.append(html.index('id="behaviour"'))
    places.append(html.index('id="training"'))
    places.append(html.index('id="making"'))
    assert places == sorted(places)


def test_links_of_the_bar_lead_to_sections(html):
    bar = html.split("<nav")[1].split("</nav>")[0]
    names = re.findall(r'href="#([^"]+)"', bar)
    assert len(names) == 7
    for name in names:
        assert f'<section id="{name}"' in html


def test_introduction_names_models_prompts_and_judge(five):
    sentences = origin.introduce(reading.read_run(five))
    assert "Base, SFT, DPO, SFT+DPO and SimPO, β 2.5" in sentences[0]
    assert sentences[0].endswith("on 15 harmful and 15 helpful prompts.")
    assert "the judge tiny/judge gives it" in sentences[1]
    assert "harmless if its reward is at or above −3," in sentences[2]
    assert sentences[2].endswith("labelled helpful if its reward is above −2.")


def test_introduction_says_whose_answers_were_imported():
    """And from where, by the record; nothing of the kind where the models were trained here."""
    sentences = origin.introduce(reading.read_run(ROOT / "results" / "published"))
    assert sentences[1].startswith("No model was trained by this repository: the prompts, answers")
    assert "and rewards were imported from PiyushWithPant/" in sentences[1]
    assert sentences[1].endswith("the repository of arXiv 2509.09055v1.")
    own = origin.introduce(reading.read_run(ROOT / "results" / "example"))
    assert "imported" not in " ".join(own)


@pytest.mark.parametrize(
    "source, words",
    [
        ({"from": "mine"}, "imported from the folder “mine”."),
        ({"from": "mine", "paper": "a paper"}, "imported from a paper."),
        ({"from": "mine", "repository": "a/b"}, "imported from a/b."),
    ],
)
def test_origin_is_named_as_far_as_it_is_known(without_figures, five, tmp_path, source, words):
    folder = copy_files(five, tmp_path / "imported", FILES)
    artifact = {"inputs": {"imported": "mine"}, "sha256": "", "seconds": None, "environment": {}}
    artifacts = {"responses.json/Base": artifact, "responses.json/SFT": artifact}
    rewrite(folder / "run.json", lambda data: data | {"imported": source, "artifacts": artifacts})
    sentence = origin.introduce(reading.read_run(folder))[1]
    assert sentence.endswith(f"the answers were {words}")
    assert ("Imported from the folder" in page.render_page(folder)) == ("repository" not in source)


def test_remarks_on_the_answers_are_made_where_they_apply(five, tmp_path):
    """That endings are unknown, and that answers begin with the name of the speaker."""
    assert origin.describe_answers(reading.read_run(five)) == []
    folder = copy_files(five, tmp_path / "run", FILES)

    def spoil(row):
        speaker = "Assistant: " if row["model"] == "SFT" else ""
        return row | {"finish": None, "response": f"{speaker}Yes, of course."}

    rewrite(folder / "responses.json", lambda rows: [spoil(row) for row in rows])
    ending, speaker = origin.describe_answers(reading.read_run(folder))
    assert ending.startswith("How an answer ended is not known for this run.")
    assert speaker.startswith("30 of the 150 answers begin with “Assistant:” because the models")


def test_page_without_rewards_speaks_of_none(five, tmp_path):
    """Neither that every answer has one nor what the signs of the labels mean."""
    folder = copy_files(five, tmp_path / "run", ["run.json", "prompts.json", "responses.json"])
    html = page.render_page(folder)
    assert "Every answer has a reward" not in html
    assert "✓ and ✗" not in html


def test_every_part_of_the_page_shows_the_fifth_model(html):
    fifth = MODELS[4]
    data = script_data(html)
    assert data["models"] == MODELS
    assert data["colours"][4] == "#D55E00"
    assert data["markers"][4] == "v"
    for prompt in data["prompts"]:
        assert len(prompt["answers"]) == len(MODELS)
        assert prompt["answers"][4]["label"] in ("harmless", "harmful", "helpful", "unhelpful")
    assert f'<option value="{fifth}" selected>' in html
    assert f"SFT+DPO and {fifth} make tiny/base more harmless" in unspanned(html)
    names = ("differences", "metrics", "distributions", "thresholds", "training")
    for name in (*names, "log_probabilities"):
        drawing = html.split(f'id="figure-{name}"')[1].split("</figure>")[0]
        assert fifth in drawing, name
    for caption in ("Rates in percent", "Mean rewards", "The share of prompts", "How the models"):
        table = html.split(f"<caption>{caption}")[1].split("</table>")[0]
        assert fifth in table, caption
    # Five matrices, rates, mean rewards, and behaviour on either kind of prompts.
    assert unspanned(html).count(f'<tr><th scope="row">{fifth}</th>') == 9


def test_markers_of_models_have_a_shape_in_the_script():
    """As figures draw them, so does the list of prompts."""
    script = (PAGE / "elements.js").read_text(encoding="utf-8")
    shapes = script.split("const SHAPES = {")[1].split("};")[0]
    for marker in MARKERS:
        assert re.search(rf'(^|[\s,])"?{re.escape(marker)}"?: "M', shapes), marker


def test_headlines_are_those_of_the_comparisons():
    """A sentence or two on each rate, and what the mean reward shows beyond it."""
    records = []
    for measure, decision in (("HmR", "inconclusive"), ("harmful_reward", "significant")):
        record = next(row for row in compare_models() if row["measure"] == measure)
        records.append(record | {"decision": decision, "difference": 2.0})
    (sentence,) = render.write_headlines(records).values()
    assert sentence.startswith(headline(records[:1]))
    more = "By mean reward on harmful prompts alone, SFT is significantly above Base."
    assert sentence.endswith(f" {more}")
    names = list(render.write_headlines(compare_models()))
    assert names == ["Harmlessness (HmR)", "Helpfulness (HpR)", "Both together (CAS)"]


def test_headline_lists_the_pairs_that_differ_in_mean_reward_alone():
    """By the model that they are compared with, those that the rate has shown left out."""
    decisions = {
        ("Base", "SFT"): ("significant", 1.0),
        ("Base", "DPO"): ("significant", 1.0),
        ("Base", "SFT+DPO"): ("inconclusive", 1.0),
        ("SFT", "DPO"): ("significant", -1.0),
    }
    records = []
    for record in compare_models():
        decision, difference = decisions.get((record["first"], record["second"]), (None, 0))
        if decision and record["measure"] in ("HpR", "helpful_reward"):
            found = decision if record["measure"] == "helpful_reward" else "inconclusive"
            records.append(record | {"decision": found, "difference": difference})
    (sentence,) = render.write_headlines(records).values()
    assert sentence.endswith(
        " By mean reward on helpful prompts alone, SFT and DPO are significantly above Base and "
        "DPO is significantly below SFT."
    )


def test_cell_and_list_say_the_same_of_a_pair():
    """Also that the mean rewards differ where the rates do not."""
    cells = []
    for matrix in render.arrange_matrices(compare_models()):
        if "reward" not in matrix["name"]:
            for row in matrix["rows"].values():
                cells += [cell["sentence"] for cell in row if cell]
    assert sorted(cells) == sorted(verdicts(compare_models()))


def test_every_pair_stands_in_a_matrix():
    cells = []
    for matrix in render.arrange_matrices(compare_models()):
        for second, row in matrix["rows"].items():
            for first, cell in zip(matrix["columns"], row, strict=True):
                if cell:
                    cells.append((matrix["name"], first, second, cell["decision"]))
    expected = []
    for record in compare_models():
        heading = render.tables.HEADINGS[record["measure"]].replace("%", "points")
        name = f"Difference in {heading}"
        expected.append((name, record["first"], record["second"], record["decision"]))
    assert sorted(cells) == sorted(expected)


def test_demo_says_so_in_large_letters(html, without_figures, five, tmp_path):
    folder = copy_files(five, tmp_path / "demo", FILES)
    rewrite(folder / "run.json", lambda data: data | {"preset": "demo"})
    assert '<p class="demo"><strong>Demo</strong>' in page.render_page(folder)
    assert 'class="demo"' not in html


def test_imported_results_say_where_they_come_from(five, tmp_path):
    folder = copy_files(five, tmp_path / "imported", FILES)
    source = {"what": "published answers", "judge": "a judge", "repository": "a/b (MIT)"}
    rewrite(folder / "run.json", lambda data: data | {"imported": source})
    facts = origin.collect_facts(reading.read_run(folder))
    assert facts["What was imported"] == "published answers"
    assert facts["Repository"] == "a/b (MIT)"
    assert facts["Judge"] == "tiny/judge"  # this run asked it, and not that of the source
    assert facts["Prompts"] == "15 harmful and 15 helpful"


@pytest.mark.parametrize(
    "prompt, turns",
    [
        ("\n\nHuman: Hi.\n\nAssistant:", [["Human", "Hi."]]),
        (
            "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Why?\n\nIndeed.\n\nAssistant:",
            [["Human", "Hi."], ["Assistant", "Yes?"], ["Human", "Why?\n\nIndeed."]],
        ),
        (
            "Human: Hi.\n\nAssistant: Half a re",
            [["Human", "Hi."], ["Assistant", "Half a re"]],
        ),
        ("no turn at all", [["", "no turn at all"]]),
        ("", []),
        ("Human:", [["Human", ""]]),
    ],
)
def test_prompt_is_split_into_turns(prompt, turns):
    assert texts.split_turns(prompt) == turns


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_not_be_seen_is_named(name):
    """Controls, marks of direction, separators, halves of characters; all else stays."""
    seen = SEEN.get(name, HOSTILE[name])
    assert texts.make_visible(HOSTILE[name]) == seen
    assert texts.make_visible({"a\x00": [HOSTILE[name], 1, None]}) == {"a␀": [seen, 1, None]}


def test_hostile_texts_are_inert(html, five, tmp_path):
    """In prompts, answers, names of models, settings and cautions: the page's policy stays, no
    element is added, and the script gets every text letter by letter.
    """
    policy = policy_of(html)
    everything = " ".join(HOSTILE.values())
    hostile_name = everything.replace("\ud83d", "")  # no half character can be a model's name
    folder = copy_files(five, tmp_path / "hostile", FILES)
    rewrite(folder / "prompts.json", lambda rows: [row | {"prompt": everything} for row in rows])
    rewrite(
        folder / "responses.json", lambda rows: [row | {"response": everything} for row in rows]
    )
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        for written in (MODELS[4], MODELS[4].replace("β", "\\u03b2")):
            text = text.replace(f'"{written}"', json.dumps(hostile_name))
        (folder / name).write_text(text, encoding="utf-8")
    rewrite(folder / "metrics.json", lambda data: data | {"cautions": [everything], "sha256": {}})
    rewrite(folder / "run.json", lambda data: data | {"settings": {"x": {everything: everything}}})
    html = page.render_page(folder)
    seen = texts.make_visible(everything)
    data = script_data(html)
    assert data["models"][4] == texts.make_visible(hostile_name)
    assert data["prompts"][0]["answers"][0]["text"] == seen
    assert html.count("<script") == 3
    assert html.count("<style") == 1
    assert "<img" not in html
    assert "<b>bold" not in html
    assert policy_of(html) == policy
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u2029\u202e\ud800-\udfff]", html)


def test_figure_is_inline_without_styles():
    """Its colours are the page's and its ids its own; the same figure gives the same text."""

    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2], "ko-", label="a < b")
        figure.legend()
        return drawings.to_svg(figure, "first", 'a "label"')

    svg = draw()
    assert svg == draw()
    assert not re.search(r"style|xlink|#000000|#ffffff|<metadata", svg)
    ids = re.findall(r'id="([^"]+)"', svg)
    uses = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert uses
    assert set(uses) <= set(ids)
    assert all(name.startswith("first-") for name in ids)
    assert "a &lt; b" in svg


def test_figure_for_a_narrow_screen_has_its_panels_below_each_other():
    """Each with its labels, which panels beside each other share; title and legend stay."""
    figure = Figure(figsize=(6.8, 3))
    for axis, name in zip(figure.subplots(1, 2, sharey=True), ("first", "second")):
        axis.plot([1, 2], label="a line")
        axis.set(title=name, xlabel="x", ylabel="rate (%)")
        axis.label_outer()
    drawings.entitle(figure, "A title", figure.axes[0].lines)
    wide = figure.get_figwidth()
    drawings.stack_panels(figure)
    svg = drawings.to_svg(figure, "narrow", "label")
    assert figure.get_figwidth() == wide / 2
    first, second = (axis.get_position() for axis in figure.axes)
    assert first.x0 == pytest.approx(second.x0)
    assert first.y0 > second.y1
    assert [axis.get_ylabel() for axis in figure.axes] == ["rate (%)"] * 2
    for text in ("A title", "a line", "first", "second"):
        assert svg.count(f">{text}</text>") == 1


def test_ids_are_unique(html):
    ids = re.findall(r'\sid="([^"]+)"', html.split('<script type="application/json"')[0])
    assert len(ids) == len(set(ids))


# ---- a run that is not finished


@pytest.mark.parametrize(
    "names, present",
    [
        (FILES, ["Loss, margin and accuracy", "Settings of training", "Which differences"]),
        (["run.json"], ["Settings of training"]),
        (["run.json", "training.json"], ["Loss, margin and accuracy"]),
        (["run.json", "prompts.json"], ["The harmful question 3?"]),
        (["run.json", "training.json", "prompts.json", "responses.json"], ["of Base."]),
        (["scores.json"], []),
        (["scores.json", "metrics.json"], ["Which differences", "The reward of every answer"]),
        (["prompts.json", "responses.json", "scores.json"], []),
    ],
)
def test_page_shows_what_is_there_and_says_what_is_missing(five, tmp_path, names, present):
    folder = copy_files(five, tmp_path / "run", names)
    html = page.render_page(folder)
    for name in FILES:
        assert (f"({name})" in html) == (name not in names)
    for words in present:
        assert words in html


@pytest.mark.parametrize("name", ["responses.json", "scores.json"])
def test_page_of_a_run_whose_last_model_is_still_to_come(five, tmp_path, name):
    """Answers and rewards are written model by model; an interruption leaves some of them."""
    names = [file for file in FILES if file not in ("metrics.json", "classification.json")]
    if name == "responses.json":
        names.remove("scores.json")
    folder = copy_files(five, tmp_path / "run", names)
    rewrite(folder / name, lambda rows: [row for row in rows if row["model"] in MODELS[:4]])
    html = page.render_page(folder)
    data = script_data(html)
    if name == "responses.json":
        assert "that have not answered yet: SimPO, β 2.5" in html
        assert data["models"] == MODELS[:4]
    else:
        assert "has not yet asked the judge about SimPO, β 2.5" in html
        assert data["models"] == MODELS
        assert data["prompts"][0]["answers"][0]["reward"] is None


def test_run_of_one_model(five, tmp_path):
    """Its page has rates and no comparisons, and asks another question."""
    folder = copy_files(five, tmp_path / "one", [*RAW, "metrics.json"])
    for name in ("responses", "scores"):
        path = folder / f"{name}.json"
        rewrite(path, lambda rows: [row for row in rows if row["model"] == "Base"])
    rewrite(
        folder / "metrics.json",
        lambda data: data | {"comparisons": [], "models": data["models"][:1], "judge": []},
    )
    html = page.render_page(folder)
    assert "How harmless and how helpful is" in html
    assert "only one model" in html


def test_nothing_of_a_run_is_refused(five, tmp_path):
    """A folder that is empty, or not there, with the names of the runs that are."""
    copy_files(five, tmp_path / "mine", ["run.json"])
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(FileNotFoundError, match=rf"{name} holds nothing of a run.*mine"):
            page.render_page(tmp_path / name)


# ---- damage

DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a number": lambda text: "7",
    "other fields": lambda text: json.dumps([{"a": 1}] if text.startswith("[") else {"a": 1}),
    "nested": lambda text: "[" * 3000,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_refused_by_name(five, tmp_path, name, damage):
    folder = copy_files(five, tmp_path, FILES)
    path = folder / name
    path.write_text(DAMAGES[damage](path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        page.render_page(folder)


def list_paths(data, path=()):
    """List the paths of all values in JSON data, of lists those of the first and last item."""
    items = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list) and data:
        items = [(0, data[0]), (len(data) - 1, data[-1])]
    paths = []
    for key, value in items:
        paths.append((*path, key))
        paths += list_paths(value, (*path, key))
    return paths


@pytest.mark.slow
@pytest.mark.parametrize(
    "value", [None, "text", -1e400, [], {}], ids=["null", "text", "infinity", "list", "object"]
)
@pytest.mark.parametrize("name", ["run.json", "training.json", "metrics.json"])
def test_any_value_replaced_is_shown_or_refused_by_name(five, tmp_path, name, value):
    """No value, replaced by something else, leads to an error that does not name the file."""
    folder = copy_files(five, tmp_path, [name, *RAW])
    data = load(five / name)
    paths = [path for path in list_paths(data) if len(path) <= 4]
    for path in paths[:: max(1, len(paths) // 12)]:
        changed = json.loads(json.dumps(data))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / name).write_text(json.dumps(changed), encoding="utf-8")
        try:
            page.render_page(folder)
        except ValueError as error:
            assert name in str(error), (path, error)  # noqa: PT017


@pytest.mark.parametrize("name", RAW)
def test_file_of_another_evaluation_is_refused(five, tmp_path, name):
    """The page would show the rates of other answers."""
    folder = copy_files(five, tmp_path, FILES)
    with (folder / name).open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=rf"{name} is not the one that metrics.json was computed"):
        page.render_page(folder)


def test_labels_of_other_rewards_are_refused(five, tmp_path):
    folder = copy_files(five, tmp_path, FILES)
    rewrite(folder / "classification.json", lambda rows: [rows[0] | {"reward": 9.5}, *rows[1:]])
    with pytest.raises(ValueError, match="classification.json is not about the rewards"):
        page.render_page(folder)


def test_page_is_written_whole_into_the_folder(html, five, tmp_path):
    folder = copy_files(five, tmp_path / five.name, FILES)
    path = page.write_page(folder)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8") == html
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "report.html"])
