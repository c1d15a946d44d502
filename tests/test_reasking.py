"""Asking a run's trained models again: what is copied, what is refused, and interruptions."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RAW, ROOT, Session, execute, kill, load, places, states
from five_models import write_run
from small_runs import NAMES, copy_run, make_run
from test_interrupted import HALTING, stands_still

from posttrain import __main__ as command_line
from posttrain import compare
from posttrain.__main__ import main
from posttrain.files import remove, sha256_of, write
from posttrain.page import origin, reading
from posttrain.run import Run
from posttrain.settings import Evaluation, Training, choose

PLACES = ["adapters/sft", "adapters/dpo", "adapters/train"]
SMALL = {"n_prompts": 3, "max_new_tokens": 8, "draws": 100}
LOG = {"SFT": [{"step": 1, "loss": 0.5}]}


def give_settings(run, **changes):
    """Enter into a run's record with which settings of the demo it was trained and evaluated."""
    training = choose(Training, "demo").model_dump(mode="json")
    evaluation = choose(Evaluation, "demo", changes).model_dump(mode="json")
    run.note(preset="demo", settings={"training": training, "evaluation": evaluation})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with three random adapters, evaluated on a few prompts by what its record says."""
    run = make_run(tmp_path_factory.mktemp("trained"))
    give_settings(run, **SMALL)
    write(run.path("training.json"), LOG)
    return run


@pytest.fixture
def results(trained, tmp_path):
    """A folder of results with a copy of that run."""
    return copy_run(trained, tmp_path).folder.parent


@pytest.fixture
def executed(monkeypatch):
    """The notebooks that a command would execute, as (name, folder, parameters)."""
    calls = []

    def note(notebook, folder, parameters):
        calls.append((notebook, folder, parameters))
        write(folder / "summary.md", f"The table of {folder.name}.\n")

    monkeypatch.setattr(command_line, "execute", note)
    return calls


def reask(results, *arguments):
    """Call make reask for the run `demo` and the new run `again`."""
    main(["reask", f"RESULTS={results}", "FROM=demo", "RUN=again", *arguments])


# ---- what is copied


def test_models_log_and_record_are_copied_and_nothing_else(results, executed):
    source = Run(results, "demo")
    write(source.path("scores.json"), [])
    write(source.path("checkpoints") / "sft" / "note.json", {})
    reask(results, "PROTOCOL=paper")
    copied = Run(results, "again")
    names = {path.name for path in copied.folder.glob("[!.]*")}
    assert names == {"adapters", "run.json", "training.json", "summary.md"}
    for place in PLACES:
        assert copied.is_whole(place)
        assert copied.record.artifacts[place] == source.record.artifacts[place]
    assert list(copied.record.artifacts) == PLACES
    assert [model.name for model in copied.models] == NAMES
    assert copied.record.settings == {"training": source.record.settings["training"]}
    assert load(copied.path("training.json")) == LOG
    (called,) = executed
    assert called[:2] == ("eval.ipynb", copied.folder)


def test_record_says_whose_models_these_are(results, executed):
    reask(results, "PROTOCOL=paper")
    said = {"what": "the trained models; nothing was trained in this run"}
    record = load(results / "again" / "run.json")
    assert record["copied"] == said | {"from": "demo", "trained in": "demo"}
    facts = origin.collect_facts(reading.read_run(results / "again"))
    assert facts["Models trained in the run"] == "demo"
    facts = origin.collect_facts(reading.read_run(results / "demo"))
    assert "Models trained in the run" not in facts
    # a copy of the copy still names the run that trained
    main(["reask", f"RESULTS={results}", "FROM=again", "RUN=third"])  # not yet evaluated
    record = load(results / "third" / "run.json")
    assert record["copied"] == said | {"from": "again", "trained in": "demo"}


def test_nothing_is_trained_where_models_were_copied(results, executed):
    reask(results, "PROTOCOL=paper")
    session = Session("main.ipynb", PRESET="demo", RUN="again", RESULTS=results)
    message = "again contains the models of the run demo, so no model is trained in it. Choose"
    with pytest.raises(ValueError, match=message):
        for cell in session.cells[:4]:  # before any pair is prepared
            session.run(cell)


def test_whole_fine_tuned_model_is_copied_too(results, executed):
    run = Run(results, "demo")
    write(run.path("models/sft") / "config.json", {"kind": "whole"})
    run.enter("models/sft", {}, sha256_of(run.path("models/sft")), None)
    record = load(run.path("run.json"))
    record["models"][1] |= {"base": "models/sft", "adapter": None}
    record["models"][2] |= {"base": "models/sft"}
    write(run.path("run.json"), record)
    reask(results, "MAX_NEW_TOKENS=4")
    copied = Run(results, "again")
    assert list(copied.record.artifacts) == ["models/sft", *PLACES[1:]]
    assert load(copied.path("models/sft") / "config.json") == {"kind": "whole"}
    assert not copied.path("adapters/sft").exists()


# ---- what is asked


def asked_for(executed):
    """The settings of the last evaluation that would be executed."""
    _, _, given = executed[-1]
    names = {name.upper(): name for name in Evaluation.model_fields if name != "preset"}
    values = {name: value for name, value in given.items() if name in names}
    return choose(Evaluation, given["PRESET"], given["SETTINGS"], **values)


def test_only_what_is_named_differs_from_the_first_evaluation(results, executed, capsys):
    before = choose(Evaluation, "demo", SMALL)
    reask(results, "MAX_NEW_TOKENS=4", "SETTINGS={'judge_length': 256}")
    changes = {"max_new_tokens": 4, "judge_length": 256}
    assert asked_for(executed) == before.model_copy(update=changes)
    printed = capsys.readouterr().out
    assert "As in the evaluation of demo: n_prompts = 3." in printed
    assert "As in the evaluation of demo: draws = 100." in printed
    assert "max_new_tokens" not in printed  # since it is named


def test_protocol_brings_its_own_values_with_it(results, executed):
    give_settings(Run(results, "demo"))  # nothing but the preset's values
    reask(results, "PROTOCOL=paper")
    assert asked_for(executed) == choose(Evaluation, "demo", PROTOCOL="paper")


def test_protocol_of_the_first_evaluation_is_kept(results, executed):
    give_settings(Run(results, "demo"), protocol="paper", n_prompts=4)
    reask(results, "SETTINGS={'judge_length': 256}")
    changes = {"protocol": "paper", "n_prompts": 4, "judge_length": 256}
    assert asked_for(executed) == choose(Evaluation, "demo", changes)


@pytest.mark.parametrize(
    ("before", "named", "kept", "dropped"),
    [
        (
            {"harmful_prompts": "all", "max_new_tokens": 9},
            "PROTOCOL=paper",
            {"max_new_tokens": 9, "protocol": "paper"},
            ["harmful_prompts is no longer 'all'"],
        ),
        (
            {"keyword_rule": "anywhere"},
            "HARMFUL_PROMPTS=all",
            {"harmful_prompts": "all"},
            ["keyword_rule is no longer 'anywhere'"],
        ),
        (
            {"harmful_prompts": "all", "draws": 100},
            "SETTINGS={'keyword_rule': 'anywhere'}",
            {"keyword_rule": "anywhere", "draws": 100},
            ["harmful_prompts is no longer 'all'"],
        ),
        (
            {"keyword_rule": "anywhere"},
            "PROTOCOL=paper",
            {"protocol": "paper"},
            [],  # the protocol has this rule itself
        ),
    ],
)
def test_what_the_named_change_contradicts_is_not_kept(
    results, executed, capsys, before, named, kept, dropped
):
    give_settings(Run(results, "demo"), **before)
    reask(results, named)
    assert asked_for(executed) == choose(Evaluation, "demo", kept)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "no longer" in line] == [
        f"Unlike in the evaluation of demo: {text}, which contradicts what is named now."
        for text in dropped
    ]


@pytest.mark.parametrize(
    "arguments", [[], ["N_PROMPTS=3"], ["SETTINGS={'draws': 100}"], ["BASE_MODEL=demo/hub/opt"]]
)
def test_asking_again_in_the_same_way_is_refused(results, executed, arguments):
    message = "Nothing that is named differs from the evaluation of demo, so the answers would be"
    with pytest.raises(SystemExit, match=message):
        reask(results, *arguments)
    assert executed == []
    assert not (results / "again").exists()


def test_models_that_were_never_asked_take_their_presets_evaluation(results, executed):
    run = Run(results, "demo")
    record = load(run.path("run.json"))
    del record["settings"]["evaluation"]
    write(run.path("run.json"), record)
    reask(results)
    assert asked_for(executed) == choose(Evaluation, "demo")


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN=again"], "FROM: name the run whose models are asked again, as in make reask FROM"),
        (["FROM=demo"], "RUN: name the new run, as in make reask FROM=quick RUN=quick-paper"),
        (["FROM=demo", "RUN=demo"], "RUN = 'demo' is the run that FROM names, and its answers"),
        (["FROM=dem", "RUN=again"], "FROM: .*/dem is no run, since it has no run.json"),
        (["FROM=a/demo", "RUN=again"], "FROM = 'a/demo' must be the name of a run in .*results"),
        (["FROM=demo", "RUN=a/b"], "RUN = 'a/b' must be the plain name of a folder"),
        (["FROM=theirs", "RUN=again"], "theirs contains imported results and no models"),
        (["FROM=untrained", "RUN=again"], "untrained has no trained models. Run main.ipynb with"),
        (["FROM=example", "RUN=again"], "adapters/dpo is missing, so this model cannot answer"),
        (["FROM=changed", "RUN=again"], "adapters/sft was changed or truncated after it was made"),
        (["FROM=demo", "RUN=theirs"], "RUN: .*/theirs is already a run. Choose another RUN"),
        (["FROM=demo", "RUN=notes"], "RUN: .*/notes contains other files. Choose another RUN"),
        (["SETTINGS={'beta': 1}"], "beta is a setting of the training, and this command trains n"),
        (["MAX_PAIRS=40"], "max_pairs is a setting of the training, and this command trains n"),
        (["SETTINGS={'bets': 1}"], "SETTINGS: the evaluation has no setting bets. Its settings"),
        (["SETTINGS={'preset': 'x'}"], "SETTINGS: the evaluation has no setting preset"),
        (["N_PROMPTS=5000"], "N_PROMPTS = 5000, but the test split of harmless-base in demo/hub"),
        (["PROTOCOL=papers"], "PROTOCOL = 'papers': Input should be 'default' or 'paper'"),
        (["PRESET=fully"], "PRESET = 'fully' is unknown"),
        (["REWARD_MODEL=nowhere"], "REWARD_MODEL = 'nowhere' cannot be loaded"),
        (["BASE_MODEL=nowhere", "N_PROMPTS=4"], "BASE_MODEL = 'nowhere' cannot be loaded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_asking_again_is_refused_and_nothing_is_written(results, executed, arguments, message):
    write_run(results / "theirs")
    record = load(results / "theirs" / "run.json")
    write(results / "theirs" / "run.json", record | {"imported": {"from": "them"}})
    write(results / "notes" / "thesis.md", "mine")
    for name in ("untrained", "example", "changed"):
        shutil.copytree(results / "demo", results / name)
    record = load(results / "demo" / "run.json")
    write(results / "untrained" / "run.json", record | {"models": record["models"][:1]})
    remove(results / "example" / "adapters" / "dpo")
    write(results / "changed" / "adapters" / "sft" / "note.json", {})
    before = sorted(results.rglob("*"))
    if not arguments[0].startswith(("FROM=", "RUN=")):
        arguments = ["FROM=demo", "RUN=again", *arguments]
    with pytest.raises(SystemExit, match=message):
        main(["reask", f"RESULTS={results}", *arguments])
    assert executed == []
    assert [path for path in sorted(results.rglob("*")) if path.name != ".lock"] == [
        path for path in before if path.name != ".lock"
    ]


def test_copy_is_gone_on_with_only_from_the_same_models(results, executed):
    reask(results, "PROTOCOL=paper")
    made = states(results / "again", "adapters", "run.json", "training.json")
    reask(results, "PROTOCOL=paper")
    assert states(results / "again", "adapters", "run.json", "training.json") == made
    assert len(executed) == 2
    shutil.copytree(results / "demo", results / "twin")
    with pytest.raises(SystemExit, match="again contains the models of the run demo, not those o"):
        main(["reask", f"RESULTS={results}", "FROM=twin", "RUN=again", "PROTOCOL=paper"])
    run = Run(results, "demo")
    write(run.path("adapters/dpo") / "note.json", {})
    run.enter("adapters/dpo", {}, sha256_of(run.path("adapters/dpo")), None)  # trained anew
    with pytest.raises(SystemExit, match="again contains other models than .*demo has now"):
        reask(results, "PROTOCOL=paper")
    assert len(executed) == 2


# ---- slow: answers


@pytest.fixture(scope="module")
def asked(trained, tmp_path_factory):
    """The folder of results of a run that has answered, and of the same models asked again."""
    folder = tmp_path_factory.mktemp("asked")
    results = copy_run(trained, folder).folder.parent
    given = places(folder) | {"SETTINGS": {"draws": 100}}
    execute("eval.ipynb", **given, N_PROMPTS=3, MAX_NEW_TOKENS=8)
    reask(results, "MAX_NEW_TOKENS=4")
    return results


@pytest.mark.slow
def test_same_models_asked_in_another_way_can_be_compared(asked):
    first, second = compare.load_runs(asked, ["demo", "again"])
    changed = compare.differing([first, second]).to_dict("index")
    assert changed == {"evaluation's max_new_tokens": {"demo": 8, "again": 4}}
    before, after = (load(asked / name / "responses.json") for name in ("demo", "again"))
    assert len(before) == len(after) == 24
    for long, short in zip(before, after):
        assert long["response"].startswith(short["response"])
        assert short["tokens"] <= 4
    assert load(asked / "demo" / "prompts.json") == load(asked / "again" / "prompts.json")


@pytest.mark.slow
def test_runs_that_were_asked_other_prompts_are_not_compared(asked):
    main(["reask", f"RESULTS={asked}", "FROM=demo", "RUN=study", "PROTOCOL=paper"])
    prompts = load(asked / "study" / "prompts.json")
    assert not any(prompt["prompt"].endswith("Assistant:") for prompt in prompts)
    with pytest.raises(ValueError, match="RUNS: "):
        compare.load_runs(asked, ["demo", "study"])


@pytest.mark.slow
def test_interrupted_copy_and_interrupted_answers_are_gone_on_with(results):
    """It is killed where the copy is all but whole, then between two models' answers."""
    arguments = ["reask", f"RESULTS={results}", "FROM=demo", "RUN=again", "MAX_NEW_TOKENS=4"]

    def kill_at(pattern, count):
        halt = {"HALT_AT": f"{results}/{pattern}", "HALT_COUNT": str(count)}
        variables = os.environ | halt | {"PYTHONPATH": str(HALTING)}
        process = subprocess.Popen(
            [sys.executable, "-m", "posttrain", *arguments],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 300
        while process.poll() is None and not stands_still(process) and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None
        kill(process)

    again = Path(results) / "again"
    kill_at("again.tmp/run.json.tmp", 1)
    assert (results / "again.tmp" / "adapters" / "train").exists()
    assert not again.exists()
    kill_at("again/responses.json.tmp", 2)
    assert not (results / "again.tmp").exists()
    made = states(again, "adapters", "training.json", "prompts.json")
    (answered,) = {row["model"] for row in load(again / "responses.json")}
    assert answered == "Base"
    begun = load(again / "run.json")["artifacts"]["responses.json/Base"]
    main(arguments)
    assert states(again, "adapters", "training.json", "prompts.json") == made
    assert load(again / "run.json")["artifacts"]["responses.json/Base"] == begun
    assert all((again / name).exists() for name in (*RAW, "metrics.json", "report.html"))
