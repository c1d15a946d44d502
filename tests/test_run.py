"""A run's folder: results made once or refused, starting over, locks and pinned sources."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, load, without_times

from posttrain import files, hub
from posttrain import run as run_module
from posttrain.record import Model
from posttrain.run import Run
from posttrain.settings import Training, choose

REPORT = pd.DataFrame({"harmless-base": {"used": 2, "empty": 0}})


@pytest.fixture
def run(tmp_path):
    """A run in an empty folder."""
    return Run(tmp_path / "results", "demo")


def fail(*arguments):
    """Fail instead of making a result."""
    raise RuntimeError("interrupted")


def fill(folder):
    """Fill a folder as a training does."""
    folder.mkdir()
    (folder / "weights").write_bytes(b"x")


def rows_of(part):
    """Make the records of a part of a list."""
    return [{"id": f"harmful-{i}", "model": part, "reward": i / 3} for i in range(2)]


def begin(run, **changes):
    """Enter settings and the base, as main.ipynb does."""
    run.begin(choose(Training, "demo", changes), REPORT)


def add(run, *names, base="demo/hub/opt"):
    """Add models by their names, each an adapter over a base."""
    for name in names:
        place = f"adapters/{run_module.slug(name)}"
        run.add_model(Model(name=name, base=base, adapter=place))


def names_in(folder):
    """List the content of a folder, without hidden files."""
    return sorted(path.name for path in folder.glob("[!.]*"))


def change_record(run, change):
    """Edit run.json by hand."""
    path = run.folder / "run.json"
    record = load(path)
    change(record)
    path.write_text(json.dumps(record))


# ---- made once


def test_what_was_made_is_given_back_and_not_made_again(run):
    assert run.stage("prompts.json", lambda: [{"a": 1 / 3}], {"seed": 0}) == [{"a": 1 / 3}]
    assert run.stage("prompts.json", fail, {"seed": 0}) == [{"a": 1 / 3}]
    again = Run(run.folder.parent, "demo")
    assert again.stage("prompts.json", fail, {"seed": 0}) == [{"a": 1 / 3}]
    entry = load(run.folder / "run.json")["artifacts"]["prompts.json"]
    assert entry["inputs"] == {"seed": 0}
    assert entry["sha256"] == files.sha256_of(run.folder / "prompts.json")
    assert entry["seconds"] >= 0
    assert set(entry["environment"]) >= {"date", "python", "packages", "device", "code_sha256"}


def test_inputs_compare_equal_however_they_are_written(run):
    inputs = {"layers": ("a", "b"), "rate": 0.1, "nothing": None, "table": {"b": 1, "a": 2}}
    run.stage("prompts.json", list, inputs)
    same = {"table": {"a": 2, "b": 1}, "nothing": None, "rate": 0.1, "layers": ["a", "b"]}
    assert run.stage("prompts.json", fail, same) == []


def test_a_folder_is_named_once_it_is_filled(run):
    def watch(folder):
        fill(folder)
        assert not run.path("adapters/sft").exists()

    assert run.stage("adapters/sft", watch, {}) == run.folder / "adapters" / "sft"
    assert run.stage("adapters/sft", fail, {}).joinpath("weights").read_bytes() == b"x"
    assert names_in(run.folder / "adapters") == ["sft"]
    assert run.is_whole("adapters/sft")


def test_what_fails_is_not_there_and_the_next_try_makes_it(run):
    for name in ("prompts.json", "adapters/sft"):
        with pytest.raises(RuntimeError, match="^interrupted$"):
            run.stage(name, fail, {})
        assert not run.path(name).exists()
        assert name not in run.record.artifacts
    assert run.stage("prompts.json", list, {}) == []
    with pytest.raises(ValueError, match="Out of range float"):
        run.stage("scores.json", lambda: [float("nan")], {})
    assert not list(run.folder.rglob("*.tmp"))


def test_what_is_removed_is_made_anew_from_whatever_inputs(run):
    run.stage("prompts.json", lambda: [1], {"seed": 0})
    run.path("prompts.json").unlink()
    assert run.stage("prompts.json", lambda: [2], {"seed": 1}) == [2]
    assert run.stage("prompts.json", fail, {"seed": 1}) == [2]
    run.stage("adapters/sft", fill, {"beta": 1})
    shutil.rmtree(run.path("adapters"))
    run.stage("adapters/sft", fill, {"beta": 2})
    assert run.record.artifacts["adapters/sft"].inputs == {"beta": 2}


# ---- refused


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"seed": 0}, {"seed": 1}, "seed = 0, but now it is 1"),
        ({"n": 50}, {"n": None}, "n = 50, but now it is None"),
        ({"n": None}, {"n": "all"}, "n = None, but now it is 'all'"),
        ({}, {"seed": 5}, r"seed = \(absent\), but now it is 5"),
        ({"seed": None}, {}, r"seed = None, but now it is \(absent\)"),
        ({"layers": ["a"]}, {"layers": ("a", "b")}, r"layers = \['a'\], .* now it is \['a', 'b'\]"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, r"a\.b\.c = 1, but now it is 2"),
        ({"arguments": {"beta": 1}}, {"arguments": {"beta": 2}}, "beta = 1, but now it is 2"),
    ],
)
def test_other_inputs_are_refused_by_name_with_both_values_and_the_ways_out(run, then, now, words):
    run.stage("prompts.json", lambda: [1], then)
    message = (
        rf"prompts\.json was made with {words}\. Set it back, choose another RUN, or set "
        r"FRESH = True, which moves the old files aside\.$"
    )
    with pytest.raises(ValueError, match=message):
        run.stage("prompts.json", fail, now)
    assert run.stage("prompts.json", fail, then) == [1]


def test_a_model_may_have_another_name_instead(run):
    run.stage("adapters/sft", fill, {"arguments": {"beta": 1}})
    message = r"adapters/sft was made with beta = 1, but now it is 2\. .*give the model another"
    with pytest.raises(ValueError, match=message):
        run.stage("adapters/sft", fail, {"arguments": {"beta": 2}})


def test_a_librarys_argument_that_one_side_alone_knows_is_passed_over(run):
    run.stage("adapters/sft", fill, {"arguments": {"beta": 1, "old": 1}, "data": "x"})
    run.stage("adapters/sft", fail, {"arguments": {"beta": 1, "new": 2}, "data": "x"})
    with pytest.raises(ValueError, match=r"new = \(absent\), but now it is 1"):
        run.stage("adapters/sft", fail, {"arguments": {"beta": 1}, "data": "x", "new": 1})


def test_long_values_are_shown_around_their_difference(run):
    source = "def judge_input(a, b):\n" + "    a = a + b\n" * 100
    run.stage("scores.json", list, {"judge_input": source + "    return a, 'old'"})
    with pytest.raises(ValueError) as refusal:
        run.stage("scores.json", fail, {"judge_input": source + "    return a, 'new'"})
    message = str(refusal.value)
    assert "a, 'old'" in message
    assert "a, 'new'" in message
    assert len(message) < 1000


@pytest.mark.parametrize("damage", ["cut", "", "edited", "[]", "{}", "gone", "more"])
def test_what_was_changed_on_the_disk_is_refused(run, damage):
    run.stage("prompts.json", lambda: [{"id": "harmful-00"}], {})
    run.stage("adapters/sft", fill, {})
    path, weights = run.path("prompts.json"), run.path("adapters/sft/weights")
    text = path.read_text()
    if damage == "gone":
        weights.unlink()
    elif damage == "more":
        weights.with_name("more").write_text("x")
    else:
        texts = {"cut": text[:-5], "edited": text.replace("0", "1")}
        path.write_text(texts.get(damage, damage))
    name = "adapters/sft" if damage in ("gone", "more") else "prompts.json"
    assert not run.is_whole(name)
    message = rf"{name} was changed or truncated after it was made\. Restore it, or remove it"
    with pytest.raises(ValueError, match=message):
        run.stage(name, fail, {})
    if name == "prompts.json":
        path.write_text(text)
        assert run.stage(name, fail, {}) == json.loads(text)


@pytest.mark.parametrize("name", ["prompts.json", "adapters/sft"])
def test_what_the_record_does_not_know_is_refused(run, name):
    run.stage(name, fill if name == "adapters/sft" else list, {})
    change_record(run, lambda record: record["artifacts"].clear())
    message = rf"{name} exists, but run\.json does not say .*Restore run\.json, or set FRESH"
    with pytest.raises(ValueError, match=message):
        run.stage(name, fail, {})


# ---- lists in parts


def test_an_interruption_costs_one_part(run):
    made = []

    def make(part):
        made.append(part)
        return rows_of(part) if len(made) != 2 else fail()

    inputs = {name: {"seed": 0} for name in ("Base", "Human chosen", "SFT + é")}
    with pytest.raises(RuntimeError, match="interrupted"):
        run.stage("scores.json", make, inputs, parts=True)
    assert load(run.path("scores.json")) == rows_of("Base")
    records = run.stage("scores.json", make, inputs, parts=True)
    assert records == [row for name in inputs for row in rows_of(name)]
    assert records == load(run.path("scores.json"))
    assert made == ["Base", "Human chosen", "Human chosen", "SFT + é"]
    assert list(run.record.artifacts) == [f"scores.json/{name}" for name in inputs]
    assert names_in(run.folder) == ["run.json", "scores.json"]


def test_a_new_models_part_is_added_without_making_the_others_again(run):
    before = run.stage("responses.json", rows_of, {"Base": {"a": 1}, "SFT": {}}, parts=True)
    made = []

    def make(part):
        made.append(part)
        return rows_of(part)

    inputs = {"Base": {"a": 1}, "New": {}, "SFT": {}}
    records = run.stage("responses.json", make, inputs, parts=True)
    assert made == ["New"]
    assert records == [*before[:2], *rows_of("New"), *before[2:]]
    assert load(run.path("responses.json")) == records


@pytest.mark.parametrize("change", ["value", "row", "text"])
def test_a_part_that_was_changed_is_refused_before_anything_is_made(run, change):
    run.stage("scores.json", rows_of, {"Base": {}, "SFT": {}}, parts=True)
    records = load(run.path("scores.json"))
    if change == "row":
        del records[2]
    else:
        records[2]["reward"] = {"value": 7.0, "text": "7"}[change]
    run.path("scores.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"The part SFT of .*scores\.json was changed"):
        run.stage("scores.json", fail, {"New": {}, "Base": {}, "SFT": {}}, parts=True)


def test_a_part_that_was_made_from_something_else_is_refused_before_anything_is_made(run):
    run.stage("scores.json", rows_of, {"Base": {"seed": 0}, "SFT": {"seed": 0}}, parts=True)
    inputs = {"New": {}, "Base": {"seed": 0}, "SFT": {"seed": 1}}
    with pytest.raises(ValueError, match=r"scores\.json/SFT was made with seed = 0, but now"):
        run.stage("scores.json", fail, inputs, parts=True)


def test_a_list_that_is_no_list_of_records_is_named(run):
    run.stage("scores.json", rows_of, {"Base": {}}, parts=True)
    run.path("scores.json").write_text('{"Base": 1}')
    with pytest.raises(ValueError, match=r"scores\.json is damaged"):
        run.stage("scores.json", fail, {"Base": {}}, parts=True)


def test_a_removed_list_is_made_anew(run):
    run.stage("scores.json", rows_of, {"Base": {"seed": 0}}, parts=True)
    run.path("scores.json").unlink()
    assert len(run.stage("scores.json", rows_of, {"Base": {"seed": 1}}, parts=True)) == 2


# ---- results from elsewhere


@pytest.fixture
def imported(run):
    """A run with imported prompts and responses."""
    origin = {"imported": "theirs"}
    files.write(run.path("prompts.json"), [{"id": "harmful-0"}])
    run.enter("prompts.json", origin, files.sha256_of(run.path("prompts.json")), None)
    rows = [*rows_of("Base"), *rows_of("org/model")]
    files.write(run.path("responses.json"), rows)
    for name, part in (("Base", rows[:2]), ("org/model", rows[2:])):
        run.enter(f"responses.json/{name}", origin, files.fingerprint(part), None)
    run.note(imported={"from": "theirs", "what": "the published answers"})
    return run


def test_imported_results_are_taken_as_they_are(imported):
    assert imported.stage("prompts.json", fail, {"seed": 0}) == [{"id": "harmful-0"}]
    inputs = {"Base": {"a": 1}, "org/model": {}}
    assert len(imported.stage("responses.json", fail, inputs, parts=True)) == 4
    assert len(imported.stage("responses.json", fail, {"Base": {}}, parts=True)) == 4


def test_imported_results_that_were_changed_are_refused(imported):
    imported.path("prompts.json").write_text("[]")
    with pytest.raises(ValueError, match="prompts.json was changed or truncated"):
        imported.stage("prompts.json", fail, {})


def test_nothing_is_trained_among_imported_results(imported):
    with pytest.raises(ValueError, match="contains imported results, .*Choose another RUN"):
        imported.require_trainable()
    with pytest.raises(ValueError, match="contains imported results"):
        begin(imported)


def test_imported_results_need_no_sources_but_a_judge(imported, model_folder, monkeypatch):
    monkeypatch.setattr(hub, "fetch", fail)
    assert imported.source("base_model", None).identity is None
    assert imported.source("test_dataset", "Anthropic/hh-rlhf", ["a"]).identity is None
    monkeypatch.undo()
    judge = imported.source("reward_model", model_folder)
    assert judge.identity == files.sha256_of(model_folder)
    made_with = {"reward_model": judge.identity}
    imported.stage("scores.json", rows_of, {"Base": made_with}, parts=True)
    (model_folder / "config.json").write_text("{} ")
    with pytest.raises(ValueError, match="changed since"):
        imported.source("reward_model", model_folder)
    assert imported.label.startswith("demo (the published answers, judged by ")


def test_imported_rewards_need_no_judge(imported, monkeypatch):
    files.write(imported.path("scores.json"), [])
    monkeypatch.setattr(hub, "fetch", fail)
    assert imported.source("reward_model", "a/b").identity is None
    assert imported.label == "demo (the published answers)"


def test_fresh_keeps_imported_results_and_asks_the_judge_again(imported):
    imported.stage("scores.json", rows_of, {"Base": {}}, parts=True)
    imported.start_over(evaluation_alone=True)
    assert names_in(imported.folder) == ["prompts.json", "responses.json", "run.json"]
    assert imported.stage("prompts.json", fail, {}) == [{"id": "harmful-0"}]
    inputs = {"Base": {}, "org/model": {}}
    assert len(imported.stage("responses.json", fail, inputs, parts=True)) == 4


# ---- the run's name and folder


@pytest.mark.parametrize(
    "name", ["../elsewhere", "a/b", "..", ".", "", "/", "/etc", "a/", "./a", "a/../b"]
)
def test_a_run_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="RUN = .* must be the plain name of a folder in RESULTS"):
        Run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "Käse 🧀", "7", 7, "<b>", "$x$", "a'b\"c", "...", "-rf"])
def test_any_plain_name_will_do(tmp_path, name):
    run = Run(tmp_path / "my results", name)
    assert run.name == str(name)
    run.stage("prompts.json", lambda: ["ä"], {"ü": "ß"})
    assert Run(tmp_path / "my results", name).stage("prompts.json", fail, {"ü": "ß"}) == ["ä"]
    assert names_in(tmp_path / "my results") == ([str(name)] if name != "..." else [])


def test_opening_a_run_writes_nothing(tmp_path):
    run = Run(tmp_path / "results", "demo")
    assert run.models == []
    assert run.record.artifacts == {}
    assert not run.is_whole("prompts.json")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_must_be_there_and_is_not_is_told_with_those_that_are(tmp_path):
    for name in ("zeta", "alpha"):
        Run(tmp_path, name).stage("prompts.json", list, {})
    (tmp_path / "no run").mkdir()
    message = (
        r"demo has no run\.json\. Run main\.ipynb .*The runs in RESULTS are: alpha, zeta\. "
        r".*make import FROM=folder"
    )
    with pytest.raises(FileNotFoundError, match=message):
        Run(tmp_path, "demo", must_exist=True)
    with pytest.raises(FileNotFoundError, match="The runs in RESULTS are: none"):
        Run(tmp_path / "nowhere", "demo", must_exist=True)
    assert names_in(tmp_path) == ["alpha", "no run", "zeta"]


@pytest.mark.parametrize(
    ("results", "figures", "place"),
    [
        ("results", None, "figures/a"),
        ("x/results", "pictures", "pictures/a"),
        ("/drive/MyDrive/results", None, "/drive/MyDrive/figures/a"),
    ],
)
def test_figures_lie_beside_the_results(results, figures, place):
    assert Run(results, "a", figures).figures.as_posix() == place


def test_a_copied_run_has_its_folders_name(run):
    begin(run)
    shutil.copytree(run.folder, run.folder.with_name("second"))
    second = Run(run.folder.parent, "second")
    assert second.label.startswith("second, preset demo")
    second.note(preset="small")
    assert load(second.folder / "run.json")["run"] == "second"


def test_the_label_says_whose_numbers_these_are(run):
    def source(name):
        return {"name": name, "commit": None, "sha256": "x"}

    run.note(preset="demo", sources={"base_model": source("demo/hub/opt"), "dataset": source("x")})
    assert run.label == "demo, preset demo, demo/hub/opt (stand-ins, not OPT-350M)"
    run.note(preset="quick", sources={"base_model": source("opt"), "reward_model": source("judge")})
    assert run.label == "demo, preset quick, opt judged by judge"


def test_what_others_wrote_can_be_entered_and_forgotten(run):
    for step in (10, 20):
        run.path(f"checkpoints/sft/checkpoint-{step}").mkdir(parents=True)
        run.path(f"checkpoints/sft/checkpoint-{step}/optimizer.pt").write_bytes(b"x")
        run.seal(f"checkpoints/sft/checkpoint-{step}", {"seed": 0})
    assert run.is_whole("checkpoints/sft/checkpoint-10")
    run.forget("checkpoints/sft/checkpoint-10")
    assert list(run.record.artifacts) == ["checkpoints/sft/checkpoint-20"]
    assert names_in(run.folder / "checkpoints/sft") == ["checkpoint-20"]
    run.forget("checkpoints/sft")
    assert run.record.artifacts == {}
    assert names_in(run.folder) == ["run.json"]
    run.forget("checkpoints/sft")
    run.forget("nothing.json")


def test_forgetting_does_not_take_what_has_a_longer_name(run):
    for name in ("checkpoints/sft", "checkpoints/sft_dpo"):
        run.stage(name, fill, {})
    run.forget("checkpoints/sft")
    assert list(run.record.artifacts) == ["checkpoints/sft_dpo"]
    assert run.is_whole("checkpoints/sft_dpo")


# ---- a damaged or earlier record


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ('{"run": "demo", "artifacts": {"a": {"made_from": {}}}}', "earlier version"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_and_fresh_moves_it_aside(run, text, words):
    run.stage("prompts.json", list, {})
    run.path("run.json").write_text(text)
    again = Run(run.folder.parent, "demo", must_exist=True)
    with pytest.raises(ValueError, match=rf"run\.json .*{words}.*FRESH = True"):
        again.stage("prompts.json", fail, {})
    with pytest.raises(ValueError, match=words):
        again.models  # noqa: B018
    again.start_over()
    assert names_in(run.folder) == []
    (aside,) = run.folder.parent.glob("demo-*")
    assert (aside / "run.json").read_text() == text
    assert again.stage("prompts.json", lambda: [1], {}) == [1]


# ---- models


def test_models_stand_in_the_order_in_which_they_were_trained(run):
    begin(run)
    add(run, "SFT", "DPO", "Käse 7", "SFT")
    assert [model.name for model in run.models] == ["Base", "SFT", "DPO", "Käse 7"]


@pytest.mark.parametrize(
    ("first", "second"), [("SFT+DPO", "SFT DPO"), ("sft", "SFT"), ("a-b", "a.b"), ("é1", "ü1")]
)
def test_two_models_of_one_folder_are_refused(run, first, second):
    begin(run)
    add(run, first)
    with pytest.raises(ValueError, match="would share the folder .* Give one of them another name"):
        add(run, second)
    assert [model.name for model in run.models] == ["Base", first]


@pytest.mark.parametrize("name", ["Human chosen", "Empty", "refusal", "Not understood", "EMPTY"])
def test_a_reference_answers_name_is_refused(run, name):
    begin(run)
    with pytest.raises(ValueError, match="is the name of a reference answer. Choose another name"):
        add(run, name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "..", "a\nb", " "])
def test_a_models_name_that_is_a_path_or_nothing_is_refused(run, name):
    begin(run)
    with pytest.raises(ValueError, match="cannot be a model's name"):
        add(run, name)


def test_the_baselines_name_is_no_trained_models(run):
    begin(run)
    with pytest.raises(ValueError, match="'Base' is the name of the untrained base"):
        add(run, "Base")
    with pytest.raises(ValueError, match="'Base' is the name of the untrained base"):
        run.add_model(Model(name="Base", base="models/base", adapter=None))
    begin(run)
    assert run.models[0].adapter is None


def test_a_base_that_has_moved_has_its_new_place_in_every_model(run):
    begin(run, base_model="old/opt")
    add(run, "SFT", "DPO", base="old/opt")
    run.add_model(Model(name="Full", base="models/full", adapter=None))
    run.add_model(Model(name="On full", base="models/full", adapter="adapters/on_full"))
    begin(run, base_model="new/opt")
    bases = [model.base for model in run.models]
    assert bases == ["new/opt", "new/opt", "new/opt", "models/full", "models/full"]
    add(run, "Fourth", base="newer/opt")
    bases = {model.name: model.base for model in run.models}
    assert bases["Base"] == bases["SFT"] == bases["Fourth"] == "newer/opt"
    assert bases["Full"] == "models/full"


def test_the_record_keeps_the_settings_that_models_were_trained_with(run):
    begin(run, beta=0.1)
    begin(run, beta=0.2)  # nothing was trained before
    run.stage("adapters/sft", fill, {})
    add(run, "SFT")
    assert run.record.settings["training"]["beta"] == 0.2
    begin(run, beta=0.3)
    run.stage("adapters/sft", fail, {})
    add(run, "SFT")
    assert run.record.settings["training"]["beta"] == 0.2  # it was there already
    run.stage("adapters/dpo", fill, {})
    add(run, "DPO")
    assert run.record.settings["training"]["beta"] == 0.3
    begin(run, beta=0.4)
    shutil.rmtree(run.path("adapters/dpo"))
    run.stage("adapters/dpo", fill, {"beta": 0.4})
    add(run, "DPO")
    assert run.record.settings["training"]["beta"] == 0.4
    assert run.record.data == [{"subset": "harmless-base", "used": 2, "empty": 0}]


# ---- one process at a time

HOLDER = """
import sys
from posttrain import store
from posttrain.run import Run
store.environment = dict
run = Run(sys.argv[1], "demo")

def make():
    print("making", flush=True)
    sys.stdin.readline()
    return [1]

run.stage("prompts.json", make, {})
print("made", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(run):
    """Another process that makes a result in the run's folder and then keeps the folder open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.folder.parent],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "making\n"
    yield process
    process.kill()
    process.communicate()


def test_the_folder_is_held_while_something_is_made_and_not_while_a_run_is_open(run, holder):
    message = r"demo is in use by another process, which is writing .* Wait until that process ends"
    for make in (
        lambda: run.stage("other.json", list, {}),
        lambda: run.stage("adapters/sft", fill, {}),
        lambda: run.stage("scores.json", rows_of, {"Base": {}}, parts=True),
        lambda: run.note(preset="demo"),
        lambda: run.start_over(),
    ):
        with pytest.raises(RuntimeError, match=message):
            make()
    assert run.record.artifacts == {}
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "made\n"
    assert run.stage("other.json", lambda: [2], {}) == [2]
    assert run.stage("prompts.json", fail, {}) == [1]
    assert sorted(run.record.artifacts) == ["other.json", "prompts.json"]


def test_what_is_there_can_be_read_while_another_process_makes_something(tmp_path):
    """eval.ipynb can start while main.ipynb is open."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.readline()"
    )
    run = Run(tmp_path, "demo")
    run.stage("prompts.json", lambda: [1], {})
    run.stage("scores.json", rows_of, {"Base": {}}, parts=True)
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.folder / ".lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    try:
        assert run.stage("prompts.json", fail, {}) == [1]
        assert len(run.stage("scores.json", fail, {"Base": {}}, parts=True)) == 2
        with pytest.raises(RuntimeError, match="in use by another process"):
            run.stage("new.json", list, {})
    finally:
        process.communicate("\n")
    assert run.stage("new.json", list, {}) == []


def test_the_lock_goes_with_its_process(run, holder):
    holder.kill()
    holder.wait()
    assert run.stage("prompts.json", lambda: [3], {}) == [3]


def test_what_another_process_made_meanwhile_is_taken(run, monkeypatch):
    hold = Run.hold

    def wait(self):
        if not run.path("adapters/sft").exists():  # it is made while this process waits
            monkeypatch.setattr(Run, "hold", hold)
            Run(run.folder.parent, "demo").stage("adapters/sft", fill, {"seed": 0})
        return hold(self)

    monkeypatch.setattr(Run, "hold", wait)
    assert run.stage("adapters/sft", fail, {"seed": 0}).joinpath("weights").exists()
    with pytest.raises(ValueError, match="was made with seed = 0, but now it is 1"):
        run.stage("adapters/sft", fail, {"seed": 1})


def test_a_list_is_held_from_its_first_part_to_its_last(run):
    def make(part):
        with Run(run.folder.parent, "demo").hold():  # this process may take it again
            pass
        held = subprocess.run(
            ["flock", "--nonblock", run.folder / ".lock", "true"], capture_output=True
        )
        assert held.returncode == 1
        return rows_of(part)

    if shutil.which("flock") is None:
        pytest.skip("needs flock")
    run.stage("scores.json", make, {"Base": {}, "SFT": {}}, parts=True)
    free = subprocess.run(["flock", "--nonblock", run.folder / ".lock", "true"])
    assert free.returncode == 0


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_says_so_once(run, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    run.stage("prompts.json", list, {})
    run.stage("scores.json", rows_of, {"Base": {}, "SFT": {}}, parts=True)
    output = capsys.readouterr().out
    assert output.count("does not support locks. Make sure that only one process works in") == 1


def test_another_error_of_the_lock_is_not_hidden(run, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="broken disk"):
        run.stage("prompts.json", list, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_run_can_be_read(run):
    run.stage("prompts.json", lambda: [1], {})
    run.folder.chmod(0o500)
    try:
        assert run.stage("prompts.json", fail, {}) == [1]
        with pytest.raises(PermissionError):
            run.stage("scores.json", list, {})
    finally:
        run.folder.chmod(0o700)


def test_a_run_works_under_a_strict_umask(run):
    before = os.umask(0o077)
    try:
        run.stage("adapters/sft", fill, {})
        run.stage("scores.json", rows_of, {"Base": {}, "SFT": {}}, parts=True)
        run.start_over(evaluation_alone=True)
        assert run.is_whole("adapters/sft")
    finally:
        os.umask(before)


# ---- starting over


def make_all(run):
    """Make everything in a run that both notebooks make, and an interrupted training."""
    begin(run)
    run.stage("adapters/sft", fill, {})
    add(run, "SFT")
    run.stage("checkpoints/dpo/checkpoint-10", fill, {})
    run.stage("prompts.json", list, {})
    for name in ("responses.json", "scores.json"):
        run.stage(name, rows_of, {"Base": {}, "SFT": {}}, parts=True)
    for name in (
        "training.json", "classification.json", "metrics.json", "summary.md", "summary.csv",
        "summary.tex", "report.html", "votes.json", "main.ipynb", "eval.ipynb",
        "eval-stopped.ipynb", "notes.txt",
    ):  # fmt: skip
        files.write(run.path(name), "{}")
    for name in ("training.png", "training.pdf", "lengths.png", "metrics.png", "metrics.pdf"):
        files.write(run.figures / name, "x")


def test_fresh_moves_everything_aside_but_a_notebook_that_is_executed(run, tmp_path, capsys):
    make_all(run)
    before = set(names_in(run.folder))
    run.start_over()
    assert names_in(run.folder) == ["eval-stopped.ipynb"]
    assert names_in(run.figures) == []
    (aside,) = (tmp_path / "results").glob("demo-*")
    assert re.fullmatch(r"demo-\d{8}-\d{6}", aside.name)
    assert set(names_in(aside)) == before - {"eval-stopped.ipynb"}
    (pictures,) = (tmp_path / "figures").glob("demo-*")
    assert len(names_in(pictures)) == 5
    assert capsys.readouterr().out.count("were moved to") == 2
    assert run.record.artifacts == {}
    assert run.models == []
    assert Run(tmp_path / "results", aside.name).is_whole("adapters/sft")
    run.stage("adapters/sft", fill, {"beta": 2})


def test_fresh_in_an_evaluation_keeps_the_training(run, tmp_path):
    make_all(run)
    run.start_over(evaluation_alone=True)
    assert names_in(run.folder) == [
        "adapters", "checkpoints", "eval-stopped.ipynb", "main.ipynb", "notes.txt", "run.json",
        "training.json",
    ]  # fmt: skip
    assert names_in(run.figures) == ["lengths.png", "training.pdf", "training.png"]
    assert list(run.record.artifacts) == ["adapters/sft", "checkpoints/dpo/checkpoint-10"]
    assert [model.name for model in run.models] == ["Base", "SFT"]
    assert run.record.settings["training"]["preset"] == "demo"
    (aside,) = (tmp_path / "results").glob("demo-*")
    assert {"scores.json", "eval.ipynb", "report.html", "votes.json"} < set(names_in(aside))
    run.stage("prompts.json", lambda: [5], {"seed": 1})


def test_fresh_in_an_evaluation_takes_a_changed_judge(run, model_folder):
    judge = run.source("reward_model", model_folder)
    run.stage("adapters/sft", fill, {})
    run.stage("scores.json", rows_of, {"Base": {"reward_model": judge.identity}}, parts=True)
    (model_folder / "config.json").write_text("{} ")
    with pytest.raises(ValueError, match="was changed since.*FRESH"):
        run.source("reward_model", model_folder)
    run.start_over(evaluation_alone=True)
    assert run.source("reward_model", model_folder).identity != judge.identity


def test_nothing_is_moved_where_nothing_is(run, tmp_path, capsys):
    run.start_over()
    run.start_over(evaluation_alone=True)
    assert capsys.readouterr().out == ""
    assert names_in(tmp_path / "results") == ["demo"]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("place", ["folder", "figures"])
def test_fresh_refuses_a_folder_that_is_no_runs(run, place, alone, tmp_path):
    folder = getattr(run, place)
    for name in ("thesis.md", "report.png", "eval.ipynb"):
        files.write(folder / name, "mine")
    with pytest.raises(ValueError, match=rf"FRESH would move .*{run.name} aside.*thesis\.md"):
        run.start_over(evaluation_alone=alone)
    assert names_in(folder) == ["eval.ipynb", "report.png", "thesis.md"]


@pytest.mark.parametrize(
    "name", ["run.json", "training.json", "prompts.json", "adapters/sft/log.json", "checkpoints/a"]
)
def test_fresh_moves_what_is_left_of_a_run(run, name, tmp_path):
    """A run whose record is missing or damaged can be started over."""
    files.write(run.path(name), "{")
    files.write(run.path("notes.txt"), "mine")
    run.start_over()
    assert names_in(run.folder) == []
    (aside,) = (tmp_path / "results").glob("demo-*")
    assert names_in(aside) == sorted([name.split("/")[0], "notes.txt"])


def test_fresh_accepts_a_folder_with_nothing_but_a_notebook_that_stopped(run):
    files.write(run.path("main-stopped.ipynb"), "{}")
    run.start_over()
    assert names_in(run.folder) == ["main-stopped.ipynb"]


def test_home_is_found_behind_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run("~/results", "a").folder == tmp_path / "results" / "a"
    assert Run("~/results", "a").figures == tmp_path / "figures" / "a"
    assert Run("results", "a", "~/f").figures == tmp_path / "f" / "a"


def test_name_that_no_file_system_takes_is_refused():
    Run("results", "a" * 200)
    for name in ("a" * 201, "ü" * 101):
        with pytest.raises(ValueError, match="too long for the name of a folder. Choose a name of"):
            Run("results", name)
    with pytest.raises(ValueError, match="must be the plain name of a folder"):
        Run("results", "a\0b")


def test_starting_over_twice_in_a_second_loses_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.time, "strftime", lambda pattern: "20260101-120000")
    for number in range(3):
        run.stage("prompts.json", lambda number=number: [number], {})
        run.stage("adapters/sft", fill, {})
        run.start_over()
    folders = sorted((tmp_path / "results").glob("demo-*"))
    assert [load(folder / "prompts.json") for folder in folders] == [[0], [1], [2]]
    assert all(names_in(folder / "adapters") == ["sft"] for folder in folders)


def test_the_record_goes_last(run, monkeypatch):
    make_all(run)
    moved = []
    monkeypatch.setattr(run_module.shutil, "move", lambda path, aside: moved.append(path.name))
    run.start_over()
    results = [name for name in moved if not name.endswith((".png", ".pdf"))]
    assert results[-1] == "run.json"


# ---- killed at any moment


class Killed(BaseException):
    """The error that stands for the end of the process, after which nothing is cleaned up."""


@pytest.fixture
def kill_at(monkeypatch):
    """Make a function that ends the process at the n-th change on the disk."""
    changes = [
        (Path, "replace"), (Path, "write_text"), (Path, "mkdir"), (Path, "unlink"),
        (Path, "rmdir"), (shutil, "rmtree"), (shutil, "move"), (os, "truncate"),
    ]  # fmt: skip

    def start(number, when):
        count = 0

        def wrap(function):
            def change(*arguments, **options):
                nonlocal count
                count += 1
                if count == number and when == "after":
                    function(*arguments, **options)
                if count >= number:
                    raise Killed
                return function(*arguments, **options)

            return change

        for place, name in changes:
            monkeypatch.setattr(place, name, wrap(getattr(place, name)))

    yield start
    monkeypatch.undo()


def work(folder):
    """Do to a run's folder what both notebooks do."""
    run = Run(folder / "results", "demo")
    base = run.source("base_model", folder / "model")
    begin(run)
    run.stage("adapters/sft", fill, {"base_model": base.identity})
    add(run, "SFT")
    run.forget("checkpoints/sft")
    run.stage("prompts.json", lambda: [{"id": 1}], {"base_model": base.identity})
    for name in ("responses.json", "scores.json"):
        run.stage(name, rows_of, {"Base": {}, "SFT": {}}, parts=True)
    files.write(run.path("metrics.json"), {"a": 1})


def state_of(folder):
    """Read {path: text or bytes} of all files in a folder, without locks and times."""
    state = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.name == "run.json":
                content = without_times(json.loads(content))
                content["artifacts"] = dict(sorted(content["artifacts"].items()))
            state[path.relative_to(folder).as_posix()] = content
    return state


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_change_and_run_again_a_run_ends_with_the_same_files(
    tmp_path, kill_at, monkeypatch, when
):
    whole = tmp_path / "whole"
    make_model(whole / "model")
    monkeypatch.chdir(whole)  # the names of sources are the same in all folders
    work(Path())
    expected = state_of(whole)
    number, is_killed = 0, True
    while is_killed:
        number += 1
        folder = tmp_path / f"{when}-{number}"
        make_model(folder / "model")
        monkeypatch.chdir(folder)
        kill_at(number, when)
        try:
            work(Path())
            is_killed = False
        except Killed:
            pass
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        work(Path())
        assert state_of(folder) == expected, number
    assert number > 100  # so many changes there are


@pytest.mark.parametrize("alone", [False, True])
def test_a_start_over_that_was_killed_can_be_repeated_and_loses_nothing(
    tmp_path, kill_at, monkeypatch, alone
):
    number, is_killed = 0, True
    while is_killed:
        number += 1
        folder = tmp_path / str(number)
        run = Run(folder / "results", "demo")
        make_all(run)
        before = len(state_of(folder))
        kill_at(number, "before")
        try:
            run.start_over(alone)
            is_killed = False
        except Killed:
            pass
        monkeypatch.undo()
        if run.path("adapters/sft").exists():
            assert run.is_whole("adapters/sft")  # the rest is known
        run.start_over(alone)
        records = len(list((folder / "results").rglob("run.json")))
        assert len(state_of(folder)) - records >= before - 1
        kept = ["adapters", "checkpoints"] if alone else []
        assert [name for name in names_in(run.folder) if "." not in name] == kept
        assert run.stage("prompts.json", lambda: [9], {"seed": 9}) == [9]
    assert number > 5


# ---- sources


def make_model(folder, config="{}"):
    """Make a folder that looks like a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


@pytest.fixture
def model_folder(tmp_path):
    """A folder that looks like a model."""
    return make_model(tmp_path / "my model")


def test_a_folder_is_known_by_what_it_holds_wherever_it_lies(run, model_folder):
    base = run.source("base_model", model_folder)
    assert (base.folder, base.commit) == (model_folder, None)
    assert base.identity == files.sha256_of(model_folder)
    run.stage("prompts.json", list, {"base_model": base.identity})
    copy = shutil.copytree(model_folder, model_folder.parent / "moved")
    assert run.source("base_model", copy).identity == base.identity
    assert run.record.sources["base_model"]["name"] == str(copy)
    (copy / "config.json").write_text("{} ")
    with pytest.raises(ValueError, match="moved was changed since the run demo began"):
        run.source("base_model", copy)
    message = r"prompts\.json was made with base_model = '\w+', but now it is '\w+'"
    with pytest.raises(ValueError, match=message):
        run.source("base_model", shutil.copytree(copy, copy.with_name("another")))


def test_a_folder_in_the_users_home_is_recorded_by_its_path(run, model_folder, monkeypatch):
    """peft reads the base's name from the record, and does not know of ~."""
    monkeypatch.setenv("HOME", str(model_folder.parent))
    base = run.source("base_model", "~/my model")
    assert (base.name, base.folder) == (str(model_folder), model_folder)
    assert run.record.sources["base_model"]["name"] == str(model_folder)
    run.stage("prompts.json", list, {"base_model": base.identity})
    shutil.rmtree(model_folder)
    assert run.source("base_model", "~/my model").identity == base.identity


def test_a_file_that_is_not_loaded_makes_no_other_base(run, model_folder):
    base = run.source("base_model", model_folder)
    run.stage("prompts.json", list, {"base_model": base.identity})
    (model_folder / "README.md").write_text("About this model.")
    (model_folder / "runs").mkdir()
    (model_folder / "runs" / "events.json").write_text("{}")
    assert run.source("base_model", model_folder).identity == base.identity


def test_what_was_changed_before_anything_was_made_is_no_matter(run, model_folder):
    before = run.source("base_model", model_folder)
    (model_folder / "config.json").write_text("{} ")
    assert run.source("base_model", model_folder).identity != before.identity


def test_another_source_is_no_matter_once_what_was_made_from_it_is_removed(run, model_folder):
    base = run.source("base_model", model_folder)
    run.stage("prompts.json", list, {"base_model": base.identity})
    run.stage("scores.json", rows_of, {"Base": {"base_model": base.identity}}, parts=True)
    other = make_model(model_folder.with_name("other"))
    (other / "config.json").write_text("{} ")
    for name in ("prompts.json", "scores.json"):
        with pytest.raises(ValueError, match=f"{name}.* was made with base_model"):
            run.source("base_model", other)
        run.path(name).unlink()
    assert run.source("base_model", other).name == str(other)


def test_a_source_may_be_missing_while_nothing_is_made_from_it(run, model_folder):
    base = run.source("base_model", model_folder)
    run.stage("prompts.json", list, {"base_model": base.identity})
    shutil.rmtree(model_folder)
    again = Run(run.folder.parent, "demo").source("base_model", model_folder)
    assert again.identity == base.identity
    with pytest.raises(ValueError, match="BASE_MODEL = '.*/my model' cannot be loaded"):
        again.folder  # noqa: B018
    with pytest.raises(ValueError, match="BASE_MODEL = 'other' cannot be loaded"):
        run.source("base_model", "other")


def test_an_adapter_over_a_fine_tuned_model_of_the_run_is_over_no_other_base(run, model_folder):
    """Under the preset `paper` the base of SFT+DPO is models/sft."""
    base = run.source("base_model", model_folder)
    run.stage("models/sft", fill, {"base_model": base.identity})
    fine_tuned = run.record.artifacts["models/sft"].sha256
    run.stage("adapters/sft_dpo", fill, {"base_model": fine_tuned})
    assert run.source("base_model", model_folder).identity == base.identity


def make_dataset(folder):
    """Make a folder with three files of a dataset."""
    folder.mkdir()
    for name in ("a", "b", "test"):
        (folder / name).write_text(name)
    return folder


def test_a_dataset_is_known_by_the_files_that_are_wanted(run, tmp_path):
    folder = make_dataset(tmp_path / "data")
    dataset = run.source("dataset", folder, ["a", "b", "absent"])
    test = run.source("test_dataset", folder, ["test"])
    assert len({dataset.identity, test.identity}) == 2
    run.stage("prompts.json", list, {"test_dataset": test.identity})
    (folder / "README.md").write_text("x")
    assert run.source("dataset", folder, ["a", "b"]).identity == dataset.identity
    (folder / "test").write_text("changed")
    assert run.source("dataset", folder, ["a", "b"]).identity == dataset.identity
    with pytest.raises(ValueError, match="data was changed since the run .* uses other files"):
        run.source("test_dataset", folder, ["test"])
    with pytest.raises(ValueError, match="data was changed since the run .* uses other files"):
        run.source("dataset", folder, ["a"])


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub that has every name, at the commit that is asked for or at the newest."""
    requests = []

    def fetch(setting, name, files=None, commit=None):
        requests.append((setting, name, commit))
        if Path(name).is_dir():
            return Path(name)
        folder = tmp_path / "hub" / name / "snapshots" / (commit or fake.newest * 40)
        if not folder.exists():
            make_model(folder)
        return folder

    class Hub:
        """What the tests look at: the requests so far, and the letter of the newest commit."""

    fake = Hub()
    fake.requests, fake.newest = requests, "a"
    monkeypatch.setattr(hub, "fetch", fetch)
    return fake


def test_a_run_keeps_to_the_commit_that_it_began_with(run, fake_hub):
    base = run.source("base_model", "facebook/opt-350m")
    assert (base.identity, base.commit) == ("a" * 40, "a" * 40)
    fake_hub.newest = "b"
    again = Run(run.folder.parent, "demo").source("base_model", "facebook/opt-350m")
    assert (again.identity, again.commit) == ("a" * 40, "a" * 40)
    assert len(fake_hub.requests) == 1  # it is known: fetched when its files are needed
    assert again.folder.name == again.folder.name == "a" * 40
    assert fake_hub.requests[1:] == [("BASE_MODEL", "facebook/opt-350m", "a" * 40)]
    other = run.source("base_model", "facebook/opt-125m")
    assert other.identity == "b" * 40


def test_all_roles_of_a_name_keep_to_one_commit(run, fake_hub):
    run.source("dataset", "Anthropic/hh-rlhf", ["a"])
    fake_hub.newest = "b"
    assert run.source("test_dataset", "Anthropic/hh-rlhf", ["b"]).identity == "a" * 40
    assert fake_hub.requests[-1] == ("DATASET", "Anthropic/hh-rlhf", "a" * 40)


def test_starting_over_begins_with_the_newest_commit(run, fake_hub):
    run.source("base_model", "facebook/opt-350m")
    run.source("reward_model", "org/judge")
    run.stage("adapters/sft", fill, {"base_model": "a" * 40})
    run.stage("scores.json", rows_of, {"Base": {"reward_model": "a" * 40}}, parts=True)
    fake_hub.newest = "b"
    run.start_over(evaluation_alone=True)
    assert run.source("base_model", "facebook/opt-350m").identity == "a" * 40
    assert run.source("reward_model", "org/judge").identity == "b" * 40
    run.start_over()
    assert run.source("base_model", "facebook/opt-350m").identity == "b" * 40


@pytest.mark.parametrize("role", ["base_model", "dataset", "test_dataset", "reward_model"])
def test_what_cannot_be_had_is_named_by_its_parameter(run, tmp_path, role):
    parameter = {"test_dataset": "DATASET"}.get(role, role.upper())
    with pytest.raises(ValueError, match=f"^{parameter} = '.*nowhere' cannot be loaded"):
        run.source(role, tmp_path / "nowhere", None if "model" in role else ["a"])
    assert run.record.sources == {}


# ---- what the package's rooms import


def test_opening_a_run_loads_neither_torch_nor_pictures():
    code = (
        "import sys, posttrain.run, posttrain.settings, posttrain.hub;"
        "print([name for name in ('torch', 'matplotlib', 'IPython', 'pandas', 'transformers')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# ---- a second judge


def test_a_second_judge_has_a_place_of_its_own(run, tmp_path):
    first = run.source("reward_model", make_model(tmp_path / "first"))
    other = make_model(tmp_path / "other", "{} ")
    second = run.source("second_judge", other, unlike=first)
    assert second.identity == files.sha256_of(other) != first.identity
    sources = load(run.folder / "run.json")["sources"]
    assert sources["second_judge"]["name"] == str(other)
    assert sources["reward_model"]["name"] == first.name


@pytest.mark.parametrize("way", ["its name", "another path", "a link", "a copy"])
def test_a_second_judge_that_is_the_first_is_refused(run, tmp_path, way):
    folder = make_model(tmp_path / "first")
    first = run.source("reward_model", folder)
    again = {"its name": folder, "another path": folder / ".." / "first"}
    again |= {"a link": tmp_path / "link", "a copy": tmp_path / "copy"}
    again["a link"].symlink_to(folder)
    shutil.copytree(folder, again["a copy"])
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match="SECOND_JUDGE = .* is the judge that REWARD_MODEL = "):
        run.source("second_judge", again[way], unlike=first)
    assert (run.folder / "run.json").read_bytes() == before


def test_a_second_judge_of_the_same_commit_is_refused(run, fake_hub):
    first = run.source("reward_model", "org/judge")
    with pytest.raises(ValueError, match="Name another judge, or leave SECOND_JUDGE out"):
        run.source("second_judge", "org/renamed-judge", unlike=first)


def test_imported_rewards_can_be_held_against_a_second_judge(imported, model_folder):
    files.write(imported.path("scores.json"), [])
    first = imported.source("reward_model", "a/b")
    assert first.identity is None
    second = imported.source("second_judge", model_folder, unlike=first)
    assert second.identity == files.sha256_of(model_folder)
    imported.note(imported={**imported.record.imported, "judge": str(model_folder)})
    with pytest.raises(ValueError, match="is the judge that REWARD_MODEL"):
        imported.source("second_judge", model_folder, unlike=first)


def test_another_second_judge_is_refused_for_a_run_that_has_one(run, tmp_path):
    first = run.source("reward_model", make_model(tmp_path / "first"))
    second = run.source("second_judge", make_model(tmp_path / "second", "{} "), unlike=first)
    made_with = {"second_judge": second.identity}
    run.stage("second_scores.json", rows_of, {"Base": made_with}, parts=True)
    third = make_model(tmp_path / "third", "{}  ")
    with pytest.raises(ValueError, match="by the second judge .*second. To name another"):
        run.source("second_judge", third, unlike=first)
    run.start_over(evaluation_alone=True)
    assert not run.path("second_scores.json").exists()
    assert "second_judge" not in run.record.sources
    assert run.source("second_judge", third, unlike=first).name == str(third)
