import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Session, execute, load
from five_models import MODELS, PROMPTS, RAW, make_prompts, make_responses, make_scores

from posttrain import __main__ as command_line
from posttrain import metrics
from posttrain.files import write
from posttrain.importing import import_results
from posttrain.run import Run

IDS = [f"{kind}-{i:02d}" for kind in metrics.KINDS for i in range(PROMPTS)]
SOURCE = {"what": "answers of a friend", "judge": "tiny/judge", "base_model": "tiny/base"}


def write_results(folder, **changes):
    """Write raw files into a folder; `changes` replace a file's records, and None omits it."""
    prompts = make_prompts()
    records = {"prompts": prompts, "responses": make_responses(prompts)}
    records |= {"scores": make_scores(prompts)} | changes
    for name, content in records.items():
        if content is not None:
            write(folder / f"{name}.json", content)
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with prompts, responses and rewards from elsewhere."""
    return write_results(tmp_path / "their results")


@pytest.fixture
def run(tmp_path):
    """A run that does not exist yet."""
    return Run(tmp_path / "results", "theirs")


# ---- taking in


def test_results_become_a_run_that_says_where_they_come_from(elsewhere, run):
    import_results(elsewhere, run)
    record = load(run.folder / "run.json")
    assert record["imported"] == {"from": "their results"}
    assert (record["run"], record["settings"], record["sources"]) == ("theirs", {}, {})
    assert [model["name"] for model in record["models"]] == MODELS
    for model in record["models"]:
        assert (model["base"], model["adapter"], model["parent"]) == ("elsewhere", None, None)
    parts = ["prompts.json"]
    parts += [f"responses.json/{name}" for name in MODELS]
    parts += [f"scores.json/{name}" for name in [*MODELS, *metrics.REFERENCES]]
    assert list(record["artifacts"]) == parts
    for artifact in record["artifacts"].values():
        assert artifact["inputs"] == {"imported": "their results"}
        # neither when nor where they were made is known
        assert (artifact["seconds"], artifact["environment"]) == (None, {})
    for name in RAW:
        assert load(run.folder / name) == load(elsewhere / name)
    assert run.label == "theirs (results from elsewhere)"


def test_records_are_ordered_by_model_and_kept_otherwise(elsewhere, run):
    responses = load(elsewhere / "responses.json")
    for response in responses:
        response["note"] = "kept"
    mixed = sorted(responses, key=lambda response: response["id"])
    write(elsewhere / "responses.json", mixed)
    import_results(elsewhere, run)
    assert load(run.folder / "responses.json") == responses


def test_rewards_may_be_missing(tmp_path, run):
    import_results(write_results(tmp_path / "texts", scores=None), run)
    assert {path.name for path in run.folder.glob("[!.]*")} == {"run.json", *RAW[:2]}


def test_origin_is_read_from_paper_json_and_from_another_run(elsewhere, run, tmp_path):
    write(elsewhere / "paper.json", {"source": SOURCE, "table": [1]})
    import_results(elsewhere, run)
    assert run.record.imported == {"from": "their results"} | SOURCE
    assert {model.base for model in run.models} == {"tiny/base"}
    assert run.label == "theirs (answers of a friend)"
    again = Run(tmp_path / "results", "again")
    import_results(run.folder, again, cut_at_turn=True)
    assert again.record.imported["from"] == "their results"
    assert again.record.imported["what"] == "answers of a friend"


def test_published_record_is_taken_in_as_it_is(run):
    published = ROOT / "results" / "published"
    import_results(published, run)
    for name in RAW:
        by_model = load(published / name)
        if name != "prompts.json":
            by_model.sort(key=lambda row: [*MODELS, *metrics.REFERENCES].index(row["model"]))
        assert load(run.folder / name) == by_model
    assert run.label == "theirs (the prompts, answers and rewards that the study published)"


REPLIES = [{"id": name, "chosen": "No.", "rejected": f"Do {name}."} for name in IDS[:PROMPTS]]


def without_replies():
    """Prompts without human replies."""
    prompts = []
    for prompt in make_prompts():
        prompts.append({name: prompt[name] for name in ("id", "kind", "prompt")})
    return prompts


def test_human_replies_are_taken_along_where_the_judge_is_to_be_asked(tmp_path, run):
    """They are replies to harmful prompts alone; the helpful ones stay as they are."""
    prompts = without_replies()
    elsewhere = write_results(tmp_path / "theirs", prompts=prompts, human_replies=REPLIES[::-1])
    import_results(elsewhere, run, cut_at_turn=True)
    added = []
    for prompt, reply in zip(prompts, REPLIES):
        added.append(prompt | {"chosen": reply["chosen"], "rejected": reply["rejected"]})
    assert load(run.path("prompts.json")) == [*added, *prompts[PROMPTS:]]
    again = Run(tmp_path / "results", "again")
    import_results(elsewhere, again)  # with rewards, which were given to no human reply
    assert load(again.path("prompts.json")) == prompts
    (elsewhere / "scores.json").unlink()
    import_results(elsewhere, Run(tmp_path / "results", "unscored"))
    assert load(tmp_path / "results" / "unscored" / "prompts.json")[0]["chosen"] == "No."


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([*REPLIES, REPLIES[0] | {"id": "harmful-99"}], "replies to harmful-99, which is not in"),
        ([*REPLIES, REPLIES[3]], "has two records for harmful-03"),
        ([{"id": "harmful-00", "chosen": "No."}], "human_replies.json"),
    ],
)
def test_human_replies_that_do_not_fit_are_refused(tmp_path, run, replies, message):
    folder = tmp_path / "theirs"
    write_results(folder, prompts=without_replies(), human_replies=replies, scores=None)
    with pytest.raises(ValueError, match=message):
        import_results(folder, run)
    assert not run.folder.exists()


def test_the_studys_human_replies_are_those_of_its_harmful_prompts():
    replies = load(ROOT / "results" / "published" / "human_replies.json")
    prompts = load(ROOT / "results" / "published" / "prompts.json")
    harmful = [prompt["id"] for prompt in prompts if prompt["kind"] == "harmful"]
    assert [reply["id"] for reply in replies] == harmful
    for reply in replies:
        assert list(reply) == ["id", "chosen", "rejected"]
        assert all(isinstance(text, str) and text.strip() for text in reply.values())
        assert reply["chosen"] != reply["rejected"]


def test_responses_are_cut_where_they_open_a_human_turn(elsewhere, run):
    responses = load(elsewhere / "responses.json")
    endings = ["\n\nHuman: And then?\n\nAssistant: So.", " Human:", "", "\n\nhuman: no"]
    for i, response in enumerate(responses):
        response["response"] = f"Do it.{endings[i % 4]}"
    write(elsewhere / "responses.json", responses)
    import_results(elsewhere, run, cut_at_turn=True)
    cut = load(run.folder / "responses.json")
    assert [row["response"] for row in cut[:4]] == ["Do it."] * 3 + ["Do it.\n\nhuman: no"]
    # what was known of the longer response is not claimed of the shorter one
    assert {tuple(row) for row in cut} == {("id", "model", "response")}
    assert not (run.folder / "scores.json").exists()
    assert run.record.imported["changed"] == "responses are cut where they open a human turn"
    assert load(elsewhere / "responses.json") == responses


def without(records, **fields):
    return [row for row in records if any(row[name] != value for name, value in fields.items())]


PROMPT_RECORDS = make_prompts()
RESPONSES = make_responses(PROMPT_RECORDS)
SCORES = make_scores(PROMPT_RECORDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": without(RESPONSES, id="harmful-03", model="SFT")}, "SFT must have exactly"),
        ({"responses": [*RESPONSES, RESPONSES[0]]}, "Base must have exactly one response"),
        ({"responses": [{"id": "harmful-00", "model": "Base"}]}, r"responses\.json: 0\.response"),
        ({"responses": [1, 2]}, r"responses\.json is damaged"),
        ({"responses": {}}, r"responses\.json is damaged"),
        ({"prompts": [{"id": "harmful-00", "kind": "bad", "prompt": ""}]}, r"prompts\.json: 0\."),
        ({"prompts": without(PROMPT_RECORDS, kind="helpful")}, "Base must have exactly one"),
        (
            {"prompts": [PROMPT_RECORDS[0] | {"keyword": "kill"}, *PROMPT_RECORDS[1:]]},
            r"prompts\.json: the keyword of harmful-00 is 'kill', .* Write true or false, or leave",
        ),
        ({"scores": without(SCORES, model="DPO")}, r"scores\.json: DPO has no reward"),
        ({"scores": [*SCORES, {"id": "harmful-00", "model": "X", "reward": 1}]}, "rewards of X"),
        ({"scores": [*SCORES, SCORES[0]]}, "Base must have exactly one reward for harmful-00"),
        ({"scores": [{"id": "harmful-00"}]}, r"scores\.json must be a list of records"),
        (
            {"responses": [{**row, "model": "Refusal"} for row in RESPONSES[: 2 * PROMPTS]]},
            "'Refusal' is the name of a reference answer",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, run, changes, message):
    write_results(tmp_path / "theirs", **changes)
    with pytest.raises(ValueError, match=message):
        import_results(tmp_path / "theirs", run)
    assert not run.folder.exists()


@pytest.mark.parametrize("name", RAW[:2])
def test_missing_texts_are_named(elsewhere, run, name):
    (elsewhere / name).unlink()
    with pytest.raises(ValueError, match=f"FROM: .*their results has no {name}"):
        import_results(elsewhere, run)
    assert not run.folder.exists()


def test_source_that_is_no_table_of_texts_is_refused(elsewhere, run):
    write(elsewhere / "paper.json", {"source": {"what": ["a", "list"]}})
    with pytest.raises(ValueError, match=r"paper\.json is damaged \(source\.what"):
        import_results(elsewhere, run)
    assert not run.folder.exists()


def test_run_that_is_there_is_not_written_over(elsewhere, run):
    import_results(elsewhere, run)
    with pytest.raises(ValueError, match="theirs is already a run. Choose another RUN"):
        import_results(elsewhere, run)


def test_byte_order_marks_of_windows_editors_are_skipped(elsewhere, run):
    for path in elsewhere.glob("*.json"):
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig", newline="\r\n")
    import_results(elsewhere, run)
    assert load(run.path("prompts.json")) == make_prompts()
    assert [model.name for model in run.models] == MODELS


def test_interrupted_import_can_be_made_again(elsewhere, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "note", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_results(elsewhere, run)
    assert not (run.folder / "run.json").exists()
    import_results(elsewhere, run)
    assert [model.name for model in run.models] == MODELS


# ---- the commands


@pytest.fixture
def executed(monkeypatch):
    """The notebooks that a command would execute, as (name, folder, parameters)."""
    calls = []

    def note(notebook, folder, parameters):
        calls.append((notebook, folder, parameters))
        write(folder / "summary.md", f"The table of {folder.name}.\n")

    monkeypatch.setattr(command_line, "execute", note)
    return calls


def test_import_command_names_the_run_after_the_folder(elsewhere, tmp_path, capsys):
    results = tmp_path / "results"
    command_line.main(["import", f"FROM={elsewhere}", f"RESULTS={results}"])
    assert Run(results, "their results").record.imported == {"from": "their results"}
    said = capsys.readouterr().out
    assert "eval.ipynb with RUN = 'their results' to measure it" in said
    command_line.main(["import", f"FROM={elsewhere}", f"RESULTS={results}", "RUN=b"])
    assert (results / "b" / "run.json").exists()
    with pytest.raises(SystemExit, match="b is already a run"):
        command_line.main(["import", f"FROM={elsewhere}", f"RESULTS={results}", "RUN=b"])
    with pytest.raises(SystemExit, match="FROM: name the folder that holds prompts.json"):
        command_line.main(["import"])
    with pytest.raises(SystemExit, match="FROM: nowhere has no prompts.json"):
        command_line.main(["import", "FROM=nowhere", f"RESULTS={results}"])


def test_rejudge_takes_the_cut_responses_once_and_evaluates(tmp_path, executed, capsys):
    results = tmp_path / "results"
    write_results(results / "five")
    given = ["FROM=five", f"RESULTS={results}", "REWARD_MODEL=tiny/judge"]
    for _ in range(2):
        command_line.main(["rejudge", *given])
    assert [(name, folder.name) for name, folder, _ in executed] == [("eval.ipynb", "five-cut")] * 2
    assert executed[0][2]["REWARD_MODEL"] == "tiny/judge"
    assert "The table of five-cut." in capsys.readouterr().out
    run = Run(results, "five-cut")
    assert run.record.imported["changed"].startswith("responses are cut")
    assert not run.path("scores.json").exists()


def test_rejudge_refuses_a_run_that_holds_something_else(tmp_path, executed):
    results = tmp_path / "results"
    write_results(results / "five")
    write(results / "own" / "run.json", {"run": "own"})
    given = ["FROM=five", f"RESULTS={results}"]
    with pytest.raises(SystemExit, match="own is a run that was trained here. Choose another RUN"):
        command_line.main(["rejudge", *given, "RUN=own"])
    import_results(results / "five", Run(results, "uncut"))
    with pytest.raises(SystemExit, match="uncut was made from other prompts, human replies or"):
        command_line.main(["rejudge", *given, "RUN=uncut"])
    with pytest.raises(SystemExit, match="FROM: .*nowhere has no prompts.json"):
        command_line.main(["rejudge", "FROM=nowhere", f"RESULTS={results}"])
    assert executed == []


# ---- measured by eval.ipynb, whatever its texts hold

SCRIPT = "<script>document.title = 'owned'</script>"
HOSTILE = [
    SCRIPT,
    "</td></tr></table><img src=x onerror=alert(1)>",
    r"\input{/etc/passwd} $\frac{$ ~ ^ _ & % #",
    "=cmd|' /C calc'!A0",
    "| a | b |\n| --- | --- |\n[x](javascript:alert(1)) `code`",
    "\x1b[31mred\x07 \u202e right to left \x00",
    "",
]
HOSTILE_MODELS = ["Base", "<b>bold</b> & \\textbf{x}", "$x_1^2$ | **y**"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """An imported run with hostile texts and names, measured by eval.ipynb."""
    folder = tmp_path_factory.mktemp("hostile")
    prompts = make_prompts()
    responses, scores = [], []
    draw = np.random.default_rng(0)
    for i, prompt in enumerate(prompts):
        text = HOSTILE[i % len(HOSTILE)]
        prompt["prompt"] = f"\n\nHuman: {text}\n\nAssistant:"
        prompt |= {"chosen": text, "rejected": f"{text}!"}
        for name in HOSTILE_MODELS:
            response = {"id": prompt["id"], "model": name, "response": f"{text} Human: {i}"}
            responses.append(response)
    for name in [*HOSTILE_MODELS, *metrics.REFERENCES]:
        for prompt in prompts:
            reward = float(draw.normal(-2.5))
            scores.append({"id": prompt["id"], "model": name, "reward": reward})
    source = folder / f"{SCRIPT.replace('/', '')} $%&"
    for name, records in zip(RAW, (prompts, responses, scores)):
        write(source / name, records)
    import_results(source, Run(folder / "results", "h"))
    session = Session("eval.ipynb", RUN="h", RESULTS=folder / "results", LABEL=False)
    shown = []
    session.shell.displayhook.write_format_data = lambda data, metadata=None: shown.append(data)
    session.run_all()
    return session.names, folder / "results" / "h", shown


def test_hostile_texts_are_texts_in_the_notebooks_tables(hostile):
    _, _, shown = hostile
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert len(pages) > 10
    assert any("&lt;script&gt;" in page for page in pages)  # the texts side by side
    assert any("&lt;img src" in page for page in pages)
    assert sum("&lt;b&gt;bold" in page for page in pages) >= 5  # a model's name
    for page in pages:
        assert not re.search(r"<(script|img|b|a)\b", page)


def test_hostile_names_are_texts_in_the_tables_of_the_run(hostile):
    _, folder, _ = hostile
    latex = (folder / "summary.tex").read_text(encoding="utf-8")
    assert r"<b>bold</b> \& \textbackslash{}textbf\{x\} & " in latex
    assert r"\$x\_1\textasciicircum{}2\$ | **y** & " in latex
    markdown = (folder / "summary.md").read_text(encoding="utf-8")
    assert r"| \<b\>bold\</b\> & \\textbf\{x\} | " in markdown
    assert r"| \$x\_1^2\$ \| \*\*y\*\* | " in markdown
    table = pd.read_csv(folder / "summary.csv")
    assert list(table["model"]) == [*HOSTILE_MODELS, *metrics.REFERENCES]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert "<img src=x" not in page


def test_imported_run_is_measured_as_it_is(hostile):
    names, folder, _ = hostile
    metrics_json = load(folder / "metrics.json")
    assert [row["model"] for row in metrics_json["models"]] == HOSTILE_MODELS
    assert {row["human_turn"] for row in metrics_json["behaviour"]} == {100.0}
    assert metrics_json["warnings"] == []
    assert [row["response"] for row in load(folder / "classification.json")].count(
        f"{SCRIPT} Human: 0"
    ) == len(HOSTILE_MODELS)
    assert load(folder / "run.json")["settings"] == {}  # those of the evaluation are not theirs
    assert names.run.label == "h (results from elsewhere)"


def test_label_can_be_left_out_below_the_figures(hostile):
    """`figures.show` leaves it out of a run that is not labelled."""
    names, _, _ = hostile
    assert names.run.labelled is False


@pytest.mark.slow
@pytest.mark.parametrize("texts", [True, False], ids=["all fields", "texts alone"])
def test_demo_taken_in_from_elsewhere_gives_the_same_numbers(demo_run, tmp_path, texts):
    source = tmp_path / "source"
    source.mkdir()
    for name in RAW:
        shutil.copy(demo_run.run / name, source)
    if not texts:
        responses = load(source / "responses.json")
        kept = [{name: row[name] for name in ("id", "model", "response")} for row in responses]
        write(source / "responses.json", kept)
    import_results(source, Run(tmp_path / "results", "b"))
    execute("eval.ipynb", RUN="b", RESULTS=tmp_path / "results")
    ours, theirs = (load(run / "metrics.json") for run in (tmp_path / "results/b", demo_run.run))
    for name in ("models", "references", "comparisons", "judge", "spreads"):
        assert ours[name] == theirs[name]
    if texts:
        assert ours["behaviour"] == theirs["behaviour"]
    else:
        assert {row["model"] for row in ours["behaviour"]} == {"Base", "SFT", "DPO", "SFT+DPO"}
        assert {"tokens", "log_ratio", "cut"} & set(ours["behaviour"][0]) == set()
    assert (tmp_path / "figures" / "b" / "metrics.pdf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "prompts", "reward"),
    [(["Base"], 20, None), (["Base", "DPO"], 1, None), (["Base", "SFT", "DPO"], 12, -1.0)],
    ids=["one model", "one prompt", "equal rewards"],
)
def test_scarce_results_are_measured_and_nothing_is_concluded(tmp_path, names, prompts, reward):
    source = tmp_path / "source"
    texts, responses, scores = [], [], []
    for kind in metrics.KINDS:
        for i in range(prompts):
            texts.append({"id": f"{kind}-{i:02d}", "kind": kind, "prompt": f"\n\nHuman: {i}?"})
    for name in names:
        for i, prompt in enumerate(texts):
            row = {"id": prompt["id"], "model": name}
            responses.append(row | {"response": "Yes."})
            scores.append(row | {"reward": reward or -3.0 + i % 3 + len(name)})
    for name, records in zip(RAW, (texts, responses, scores)):
        write(source / name, records)
    import_results(source, Run(tmp_path / "results", "few"))
    execute("eval.ipynb", RUN="few", RESULTS=tmp_path / "results")
    measured = load(tmp_path / "results" / "few" / "metrics.json")
    decisions = {row["decision"] for row in measured["comparisons"]}
    assert decisions == ({"inconclusive"} if len(names) > 1 else set())
    assert all(row["HmR_high"] - row["HmR_low"] > 10 for row in measured["models"])
    assert (tmp_path / "results" / "few" / "summary.tex").exists()


@pytest.mark.slow
def test_published_responses_are_cut_and_judged_again(tmp_path, capfd):
    published = ROOT / "results" / "published"
    before = {name: (published / name).read_bytes() for name in RAW}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "published").symlink_to(published)
    given = [f"RESULTS={tmp_path / 'results'}", "SETTINGS={'judge_tokens': 512}"]
    command_line.main(["rejudge", *given, f"REWARD_MODEL={ROOT / 'demo/hub/reward-model'}"])
    run = tmp_path / "results" / "published-cut"
    responses = load(run / "responses.json")
    assert len(responses) == 400
    assert not any("Human:" in row["response"] for row in responses)
    scores = load(run / "scores.json")
    assert list(dict.fromkeys(row["model"] for row in scores))[:4] == MODELS[:4]
    of_humans = [row["id"] for row in scores if row["model"].startswith("Human")]
    assert of_humans == [f"harmful-{i:02d}" for i in range(50)] * 2
    measured = load(run / "metrics.json")
    assert [(row["kind"], row["prompts"]) for row in measured["judge"]] == [("harmful", 50)]
    wins = [(row["kind"], row["model"]) for row in measured["human_wins"]]
    assert wins == [("harmful", model) for model in MODELS[:4]]
    names = [row["model"] for row in measured["references"]]
    assert names == ["Empty", "Refusal", "Not understood"]
    assert any("unknown on helpful prompts" in caution for caution in measured["cautions"])
    assert "Human chosen" in (run / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "published-cut" / "judge.pdf").exists()
    assert measured["running_on"] == []
    assert "judged by" in measured["run"]
    assert "| SFT+DPO |" in capfd.readouterr().out
    assert {name: (published / name).read_bytes() for name in RAW} == before
    with pytest.raises(SystemExit, match="scores.json.* was made with reward_model = "):
        other = tmp_path / "judge"
        shutil.copytree(ROOT / "demo/hub/reward-model", other)
        write(other / "config.json", load(other / "config.json") | {"note": "another"})
        command_line.main(["rejudge", *given, f"REWARD_MODEL={other}"])
    assert load(run / "scores.json") == scores
