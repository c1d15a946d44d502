"""A run elsewhere: copied, from a read-only checkout, under another locale and umask, without a network or a home."""

import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, contents_of, differing, execute, load, start, without_times
from papermill.exceptions import PapermillExecutionError
from test_runs import RAW, check_run

# Even root may then not write where the mode says read-only.
NO_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search",
               "--inh-caps=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def chmod(folder, mode):
    """Set the write permission of a folder and all that is in it."""
    subprocess.run(["chmod", "-R", mode, folder], check=True)


@pytest.fixture(scope="module")
def elsewhere(hub, tmp_path_factory):
    """A read-only checkout in a path with spaces and non-ASCII letters, and a home that cannot be written."""
    place = tmp_path_factory.mktemp("Käse und Brot") / "日本 ü"
    checkout, home = place / "checkout", place / "home"
    shutil.copytree(hub, checkout / "demo" / "hub")
    for name in ("main.ipynb", "eval.ipynb"):
        shutil.copy(ROOT / name, checkout)
    home.mkdir()
    chmod(checkout, "a-w")
    chmod(home, "a-w")
    if subprocess.run([*NO_OVERRIDE, "touch", checkout / "x"], capture_output=True).returncode == 0:
        pytest.skip("needs a user, or setpriv, that cannot write to a read-only folder")
    yield SimpleNamespace(place=place, checkout=checkout, home=home)
    chmod(place, "u+w")


def run_elsewhere(elsewhere, notebook, **parameters):
    """Run a notebook from the read-only checkout under locale C and umask 077, offline; return what it said."""
    places = {"PRESET": "demo", "RUN": "Lauf 1 é", "RESULTS": elsewhere.place / "Ergebnisse ü",
              "FIGURES": elsewhere.place / "Bilder"}
    options = [str(text) for name, value in (places | parameters).items() for text in ("-p", name, value)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(elsewhere.home), "LC_ALL": "C", "LANG": "C",
                   "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*NO_OVERRIDE, sys.executable, "-m", "papermill", notebook, elsewhere.place / notebook,
                           "-k", "python3", "--no-progress-bar", *options], cwd=elsewhere.checkout, env=environment,
                          capture_output=True, text=True, umask=0o077)


def test_run_copied_elsewhere_evaluates_the_same(demo_run, elsewhere):
    """A run trained on another machine, with a GPU and another Python, gives the same responses, scores and metrics."""
    run = elsewhere.place / "Ergebnisse ü" / "Lauf 1 é"
    shutil.copytree(demo_run.run / "adapters", run / "adapters")
    text = (demo_run.run / "run.json").read_text(encoding="utf-8")
    text = re.sub(r'"device": "[^"]*"', '"device": "Tesla T4"', text)
    text = re.sub(r'"python": "[^"]*"', '"python": "3.11.99"', text)
    (run / "run.json").write_text(text, encoding="utf-8")
    done = run_elsewhere(elsewhere, "eval.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in RAW:
        assert (run / name).read_bytes() == (demo_run.run / name).read_bytes(), name
    mine, theirs = (without_times(load(folder / "metrics.json")) for folder in (run, demo_run.run))
    for name in ("models", "references", "comparisons", "judge", "health", "verdicts", "sha256"):
        assert mine[name] == theirs[name], name
    said = " ".join(mine["warnings"])
    assert "The run was made with python 3.11.99, now" in said
    assert "The run was made with device Tesla T4, now" in said
    assert theirs["warnings"] == []
    assert list(elsewhere.home.iterdir()) == []


def test_both_notebooks_run_elsewhere(elsewhere):
    """Training and evaluation work there from nothing, leave all files of a run, and none in checkout or home."""
    before = sorted(elsewhere.checkout.rglob("*"))
    for notebook, parameters in (("main.ipynb", {"MAX_PAIRS": 100}), ("eval.ipynb", {"N_PROMPTS": 3})):
        done = run_elsewhere(elsewhere, notebook, RUN="Lauf 2", **parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    run = elsewhere.place / "Ergebnisse ü" / "Lauf 2"
    check_run(run, 3)
    assert sorted(elsewhere.checkout.rglob("*")) == before
    assert list(elsewhere.home.iterdir()) == []
    assert {path.stat().st_mode & 0o077 for path in run.rglob("*")} == {0}


def test_finished_run_needs_neither_models_nor_data(demo_run, tmp_path):
    """Where prompts, responses and scores are there, metrics follow without base, adapters, judge and dataset."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run, ignore=shutil.ignore_patterns("adapters", "metrics.json", "summary.*"))
    alone = tmp_path / "checkout"
    alone.mkdir()
    shutil.copy(ROOT / "eval.ipynb", alone)
    places = {"PRESET": "demo", "RUN": "demo", "RESULTS": run.parent, "FIGURES": tmp_path / "figures"}
    options = [str(text) for name, value in places.items() for text in ("-p", name, value)]
    done = subprocess.run([sys.executable, "-m", "papermill", "eval.ipynb", "out.ipynb", "-k", "python3", *options],
                          cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("models", "references", "comparisons"):
        assert load(run / "metrics.json")[name] == load(demo_run.run / "metrics.json")[name]


# ---- the same again, and never mixed

def test_two_demo_runs_are_the_same_to_the_byte(demo_run, tmp_path_factory):
    """The demo done again, elsewhere, gives the same files but for times: adapters, records, tables, figures."""
    again = tmp_path_factory.mktemp("again")
    for notebook in ("main.ipynb", "eval.ipynb"):
        assert start(notebook, again).wait() == 0
    first, second = contents_of(demo_run.run.parents[1]), contents_of(again)
    assert {path.rsplit(".", 1)[-1] for path in first} == {"json", "safetensors", "csv", "md", "tex", "png", "pdf"}
    assert differing(first, second) == []


def copied_hub(hub, folder, change):
    """Return the settings of a run on a copy of the stand-ins in which one file was changed."""
    shutil.copytree(hub, folder)
    change(folder)
    return {"DATASET": folder / "hh-rlhf", "BASE_MODEL": folder / "opt", "REWARD_MODEL": folder / "reward-model"}


def change_config(name):
    """Return a function that changes a model's config in a copy of the stand-ins, to no effect."""
    def change(folder):
        path = folder / name / "config.json"
        path.write_text(path.read_text() + "\n", encoding="utf-8")
    return change


def drop_last_row(name):
    """Return a function that drops the last row of a split in a copy of the stand-ins."""
    def change(folder):
        path = folder / "hh-rlhf" / name
        with gzip.open(path) as file:
            rows = file.readlines()
        with gzip.open(path, "wb") as file:
            file.writelines(rows[:-1])
    return change


@pytest.mark.parametrize(("notebook", "change", "named"), [
    ("main.ipynb", change_config("opt"), "base_model"),
    ("main.ipynb", drop_last_row("helpful-base/train.jsonl.gz"), "dataset"),
    ("main.ipynb", drop_last_row("helpful-base/test.jsonl.gz"), "helpful-base/test"),
    ("eval.ipynb", change_config("reward-model"), "reward_model"),
    ("eval.ipynb", drop_last_row("harmless-base/test.jsonl.gz"), "harmless-base/test"),
    ("eval.ipynb", change_config("opt"), "base_model"),
])
def test_other_contents_are_refused(hub, demo_run, tmp_path, notebook, change, named):
    """Another base, dataset or judge is known by its contents, whatever it is called."""
    sources = copied_hub(hub, tmp_path / "hub", change)
    if notebook == "main.ipynb":
        sources.pop("REWARD_MODEL")
    else:
        sources.pop("BASE_MODEL")
        if named == "base_model":  # the evaluation finds the base where run.json says
            record = (demo_run.run / "run.json").read_text(encoding="utf-8")
            shutil.copytree(demo_run.run, tmp_path / "results" / "demo")
            (tmp_path / "results" / "demo" / "run.json").write_text(
                re.sub(r'"[^"]*demo/hub/opt"', f'"{tmp_path / "hub" / "opt"}"', record), encoding="utf-8")
    places = demo_run.places | ({"RESULTS": tmp_path / "results"} if (tmp_path / "results").exists() else {})
    before = contents_of(demo_run.run.parents[1])
    with pytest.raises(PapermillExecutionError, match=rf"was made with {named} = 'sha256 \w+', now it is 'sha256 \w+'"):
        execute(notebook, tmp_path / notebook, PRESET="demo", **sources, **places)
    assert differing(before, contents_of(demo_run.run.parents[1])) == []


def test_lost_records_are_made_anew(demo_run, tmp_path_factory):
    """run.json and training.json, damaged or lost, are written again from what the adapters' own records say.

    The rewards beside a lost run.json are not taken for rewards from elsewhere.
    """
    folder = tmp_path_factory.mktemp("lost")
    shutil.copytree(demo_run.run.parents[1], folder, dirs_exist_ok=True)
    run, before = folder / "results" / "demo", contents_of(folder)
    (run / "run.json").unlink()
    (run / "training.json").write_text("{}")
    assert start("main.ipynb", folder).wait() == 0
    assert differing(before, contents_of(folder)) == []


def test_sft_that_was_trained_again_is_noticed(demo_run, tmp_path):
    """SFT+DPO goes on from one SFT adapter: over another one it is refused by name."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    shutil.rmtree(run / "adapters" / "sft")
    shutil.copytree(run / "adapters" / "dpo", run / "adapters" / "sft")
    made = load(run / "adapters" / "sft" / "made.json")
    made["made_from"]["model"] = "SFT"
    (run / "adapters" / "sft" / "made.json").write_text(json.dumps(made))
    with pytest.raises(PapermillExecutionError, match=r"adapters/sft_dpo was made with SFT = 'sha256 \w+', now it is"):
        execute("main.ipynb", tmp_path / "main.ipynb", PRESET="demo", RUN="demo", RESULTS=run.parent,
                FIGURES=tmp_path / "figures")


@pytest.mark.parametrize(("first", "second"), [("sft", "dpo"), ("dpo", "sft_dpo"), ("sft", "sft_dpo")])
def test_adapters_that_changed_places_are_noticed(evaluation, demo_run, tmp_path, first, second):
    """Before anything is evaluated: each adapter must be the model that run.json says it is."""
    record, adapters = load(demo_run.run / "run.json"), tmp_path / "adapters"
    shutil.copytree(demo_run.run / "adapters", adapters)
    assert list(evaluation.identify_trained(record, tmp_path)) == ["SFT", "DPO", "SFT+DPO"]
    for old, new in ((first, "x"), (second, first), ("x", second)):
        (adapters / old).rename(adapters / new)
    with pytest.raises(ValueError, match=rf"adapters/{first} was made with model = '.*', now it is "):
        evaluation.identify_trained(record, tmp_path)


def test_adapters_of_another_run_are_noticed(evaluation, demo_run, tmp_path):
    """Made with other settings, or over another SFT adapter, than run.json and its neighbours say."""
    record = load(demo_run.run / "run.json")
    shutil.copytree(demo_run.run / "adapters", tmp_path / "adapters")
    other = record | {"settings": record["settings"] | {"beta": 0.5}}
    with pytest.raises(ValueError, match=r"adapters/sft was made with beta = 0\.1, now it is 0\.5"):
        evaluation.identify_trained(other, tmp_path)
    path = tmp_path / "adapters" / "sft_dpo" / "made.json"
    made = load(path)
    made["made_from"]["SFT"] = "sha256 of another"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match="adapters/sft_dpo was made with SFT = 'sha256 of another', now it is"):
        evaluation.identify_trained(record, tmp_path)


def test_equal_contents_elsewhere_are_taken(hub, demo_run, tmp_path):
    """The same stand-ins in another folder are the same dataset and judge: nothing is done again."""
    sources = copied_hub(hub, tmp_path / "hub", lambda folder: None)
    sources.pop("BASE_MODEL")
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    before = {name: (run / name).stat().st_mtime_ns for name in RAW}
    execute("eval.ipynb", tmp_path / "eval.ipynb", PRESET="demo", RUN="demo", RESULTS=run.parent,
            FIGURES=tmp_path / "figures", **sources)
    assert {name: (run / name).stat().st_mtime_ns for name in RAW} == before


def test_other_versions_are_a_warning(main):
    """Other versions, device or code are told in one sentence each; a commit is no difference."""
    made = main.environment(ROOT / "main.ipynb")
    assert main.other_versions("SFT", made, made | {"git_commit": "abc"}) == []
    now = made | {"python": "3.12.9", "packages": made["packages"] | {"trl": "9.9"}, "code_sha256": "f" * 64}
    assert main.other_versions("SFT", made, now) == [
        f"SFT was made with python {made['python']}, now it is 3.12.9.",
        f"SFT was made with code {made['code_sha256'][:8]}, now it is ffffffff.",
        f"SFT was made with trl {made['packages']['trl']}, now it is 9.9."]
    assert len(main.other_versions("SFT", {}, made)) == 3 + len(made["packages"])


def test_versions_that_changed_are_recorded(demo_run, tmp_path):
    """What was made with another version is used, with a warning in run.json and in metrics.json."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    path = run / "adapters" / "sft" / "made.json"
    version = load(path)["environment"]["packages"]["transformers"]
    path.write_text(path.read_text().replace(f'"transformers": "{version}"', '"transformers": "5.0.0"'))
    places = {"PRESET": "demo", "RUN": "demo", "RESULTS": run.parent, "FIGURES": tmp_path / "figures"}
    expected = f"SFT was made with transformers 5.0.0, now it is {version}."
    execute("main.ipynb", tmp_path / "main.ipynb", **places)
    assert load(run / "run.json")["warnings"] == [expected]
    execute("eval.ipynb", tmp_path / "eval.ipynb", **places)
    assert load(run / "metrics.json")["warnings"] == [expected]


def test_fresh_starts_over(demo_run, tmp_path):
    """FRESH moves what was made aside and makes it anew, in the evaluation without touching what main.ipynb made."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    places = {"PRESET": "demo", "RUN": "demo", "RESULTS": run.parent, "FIGURES": tmp_path / "figures"}
    execute("eval.ipynb", tmp_path / "eval.ipynb", **places, FRESH=True, SEED=1, N_PROMPTS=3)
    (aside,) = run.parent.glob("demo-*")
    assert {*RAW, "eval.json", "metrics.json", "summary.tex"} <= {path.name for path in aside.iterdir()}
    assert not {"run.json", "training.json", "adapters"} & {path.name for path in aside.iterdir()}
    assert len(load(run / "prompts.json")) == 6
    execute("main.ipynb", tmp_path / "main.ipynb", **places, FRESH=True, SEED=1, MAX_PAIRS=60)
    asides = sorted(run.parent.glob("demo-*"))
    assert len(asides) == 2
    assert {"run.json", "adapters", "prompts.json"} <= {path.name for path in asides[1].iterdir()}
    assert {path.name for path in run.iterdir()} == {".lock", "run.json", "training.json", "adapters"}
    assert load(run / "run.json")["settings"]["seed"] == 1


@pytest.mark.parametrize(("name", "value"), [("HARMLESS_FROM", "abc"), ("HELPFUL_ABOVE", math.nan)])
def test_threshold_that_cannot_be(demo_run, tmp_path, name, value):
    """A threshold is a number; the message comes before anything is done."""
    before = contents_of(demo_run.run.parents[1])
    with pytest.raises(PapermillExecutionError, match=f"{name} = .*: a threshold is a number, or None"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", PRESET="demo", **demo_run.places | {name: value})
    assert differing(before, contents_of(demo_run.run.parents[1])) == []
