"""A run's folder: made once and from the same, held by one process, started over, pinned to its sources."""

import errno
import json
import shutil
import subprocess

import pytest
from conftest import RAW, load
from matplotlib.figure import Figure
from PIL import Image

from posttrain import files, runs
from posttrain.ledger import OF_TRAINING
from posttrain.runs import Run


@pytest.fixture
def run(tmp_path):
    """A run begun in an empty folder."""
    run = Run(tmp_path / "results", "demo", begin=True)
    yield run
    run.release()


def fail(*folder):
    """Make nothing."""
    raise RuntimeError("interrupted")


# ---- once

def test_made_once(run):
    """What is there is read, not made again; its entry says what it was made from, its sha256 and how long it took."""
    assert run.once("prompts.json", lambda: [{"a": 1 / 3}], {"seed": 0}) == [{"a": 1 / 3}]
    assert run.once("prompts.json", fail, {"seed": 0}) == [{"a": 1 / 3}]
    again = Run(run.folder.parent, "demo")
    assert again.once("prompts.json", fail, {"seed": 0}) == [{"a": 1 / 3}]
    entry = load(run.folder / "run.json")["artifacts"]["prompts.json"]
    assert entry["made_from"] == {"seed": 0}
    assert entry["sha256"] == files.sha256_of(run.folder / "prompts.json")
    assert entry["seconds"] >= 0


def test_folder_is_made_once(run):
    """A folder is filled under another name, and has its own once that has worked."""
    def fill(folder):
        folder.mkdir()
        assert not (run.folder / "adapters/sft").exists()
        (folder / "weights").write_bytes(b"x")

    assert run.once("adapters/sft", fill, {}) == run.folder / "adapters" / "sft"
    assert run.once("adapters/sft", fail, {}).joinpath("weights").read_bytes() == b"x"
    assert [path.name for path in (run.folder / "adapters").iterdir()] == ["sft"]


def test_what_fails_is_not_there(run):
    """Neither the thing nor an entry; the next try makes it."""
    for name in ("prompts.json", "adapters/sft"):
        with pytest.raises(RuntimeError, match="interrupted"):
            run.once(name, fail, {})
        assert not (run.folder / name).exists()
        assert name not in run.ledger.artifacts
    assert run.once("prompts.json", list, {}) == []
    with pytest.raises(ValueError, match="Out of range float"):
        run.once("scores.json", lambda: [float("nan")], {})
    assert not list(run.folder.rglob("*.tmp"))


@pytest.mark.parametrize(("then", "now", "named"), [
    ({"seed": 0}, {"seed": 1}, "seed = 0, now it is 1"), ({"n": 50}, {"n": None}, "n = 50, now it is None"),
    ({"n": None}, {"n": 50}, "n = None, now it is 50"), ({}, {"seed": 5}, "seed = None, now it is 5"),
    ({"layers": ["a"]}, {"layers": ("a", "b")}, r"layers = \['a'\], now it is \['a', 'b'\]")])
def test_made_from_something_else(run, then, now, named):
    """It is refused: what differs, both values, and the ways out. None is a value like any other."""
    run.once("prompts.json", lambda: [1], then)
    with pytest.raises(ValueError, match=rf"prompts\.json was made with {named}\. .*RUN.*FRESH = True, which moves"):
        run.once("prompts.json", fail, now)
    assert run.once("prompts.json", fail, {}) == [1]  # what is not known is not compared


@pytest.mark.parametrize("damage", ["cut", "empty", "edited", "[]", "{}"])
@pytest.mark.parametrize("name", RAW)
def test_raw_file_that_was_changed_is_refused(copied_run, name, damage):
    """A raw file that is not what was made is named, with the way out."""
    path = copied_run.run / name
    text = path.read_text(encoding="utf-8")
    path.write_text({"cut": text[:-20], "empty": "", "edited": text.replace("0", "1", 1)}.get(damage, damage),
                    encoding="utf-8")
    run = Run(copied_run.folder / "results", "demo")
    with pytest.raises(ValueError, match=rf"{name} is not what was made.* Put it back as it was, or remove it"):
        run.once(name, fail, {})
    path.write_text(text, encoding="utf-8")
    assert run.once(name, fail, {}) == json.loads(text)
    run.release()


@pytest.mark.parametrize("name", ["prompts.json", "adapters/sft"])
def test_what_the_ledger_does_not_know_is_refused(copied_run, name):
    """Without its entry it is not known what something was made from."""
    record = load(copied_run.run / "run.json")
    del record["artifacts"][name]
    (copied_run.run / "run.json").write_text(json.dumps(record))
    run = Run(copied_run.folder / "results", "demo")
    with pytest.raises(ValueError, match=rf"{name} is there, but run\.json does not say.* Put run\.json back, or set"):
        run.once(name, fail, {})
    run.release()


def test_key_by_key(run):
    """Keys that were finished before an interruption are not done again; nothing of them is left in the end."""
    done = []

    def make(key):
        done.append(key)
        return [{"model": key}] if len(done) != 2 else fail()

    with pytest.raises(RuntimeError, match="interrupted"):
        run.once_each("scores.json", ["Base", "Human chosen", "SFT"], make, {"seed": 0})
    assert (run.folder / "unfinished" / "scores.json" / "Base.json").exists()
    with pytest.raises(ValueError, match="Base.json was made with seed = 0, now it is 1"):
        run.once_each("scores.json", ["Base", "Human chosen", "SFT"], make, {"seed": 1})
    records = run.once_each("scores.json", ["Base", "Human chosen", "SFT"], make, {"seed": 0})
    assert records == [{"model": name} for name in ("Base", "Human chosen", "SFT")]
    assert done == ["Base", "Human chosen", "Human chosen", "SFT"]
    assert sorted(path.name for path in run.folder.glob("[!.]*")) == ["run.json", "scores.json"]
    entries = load(run.folder / "run.json")["artifacts"]
    assert list(entries) == ["scores.json"]
    assert entries["scores.json"]["seconds"] is None  # how long an interrupted one took is not known


def test_finished_parts_of_a_killed_run_are_cleared(run):
    """Killed after the whole was made and before its parts were removed: the next run removes them."""
    run.once("scores.json", lambda: [1], {})
    run.once("unfinished/scores.json/Base.json", lambda: [1], {})
    assert run.once("scores.json", fail, {}) == [1]
    assert not (run.folder / "unfinished").exists()
    assert list(run.ledger.artifacts) == ["scores.json"]


# ---- the folder

@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", ""])
def test_run_that_is_a_path(tmp_path, name):
    """A run is the name of one folder: nothing is written outside RESULTS."""
    with pytest.raises(ValueError, match="RUN = .* must be the plain name"):
        Run(tmp_path, name, begin=True)
    assert list(tmp_path.iterdir()) == []


def test_number_is_a_name(tmp_path):
    """RUN = 7 is the folder 7."""
    run = Run(tmp_path, 7, begin=True)
    assert run.folder == tmp_path / "7"
    run.release()


def test_evaluation_without_a_run(tmp_path):
    """The message names the folder, the notebook to run first and the runs that are there."""
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"demo holds neither run\.json nor rewards.*main\.ipynb.*'other'"):
        Run(tmp_path, "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_rewards_from_elsewhere(tmp_path):
    """Raw files without a ledger are measured, and nothing is made that they lack; training does not mix with them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "scores.json").write_text('[{"id": "harmful-00"}]')
    run = Run(tmp_path, "theirs")
    assert run.elsewhere
    assert run.once("scores.json", fail, {"seed": 0}) == [{"id": "harmful-00"}]
    assert run.once_each("responses.json", ["Base"], fail, {}) == []
    assert run.source("reward_model", "a/b").folder is None
    run.release()
    with pytest.raises(ValueError, match="holds rewards that came from elsewhere"):
        Run(tmp_path, "theirs", begin=True)


def test_lost_ledger_is_named(copied_run):
    """A run without its run.json is no folder of rewards from elsewhere, while its adapters are there."""
    (copied_run.run / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds neither run.json nor rewards from elsewhere"):
        Run(copied_run.folder / "results", "demo")
    run = Run(copied_run.folder / "results", "demo", begin=True)
    with pytest.raises(ValueError, match="adapters/sft is there, but run.json does not say"):
        run.once("adapters/sft", fail, {})
    run.release()


def test_figures_lie_beside_the_results():
    """On Drive too, where no other place is set."""
    for results, figures, place in (("results", None, "figures/a"), ("x/results", "pictures", "pictures/a"),
                                    ("/drive/MyDrive/results", None, "/drive/MyDrive/figures/a")):
        run = Run.__new__(Run)
        with pytest.raises(FileNotFoundError):
            run.__init__(results, "a", figures)
        assert run.figures.as_posix() == place


# ---- one process at a time

def test_second_process_is_refused(run, tmp_path):
    """While one process holds the folder; released, or once its process has ended, it is free."""
    hold = ["python3", "-c", "import fcntl, sys, time; file = open(sys.argv[1], 'a');"
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB);"
            "print('held', flush=True); time.sleep(float(sys.argv[2]))", run.folder / ".lock"]
    assert subprocess.run([*hold, "0"], capture_output=True).returncode != 0
    run.release()
    holder = subprocess.Popen([*hold, "600"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RuntimeError, match="demo is in use by another process. Wait until it ends, or stop it"):
        Run(tmp_path / "results", "demo", begin=True)
    holder.kill()
    holder.wait()
    Run(tmp_path / "results", "demo", begin=True)


def test_cell_that_holds_the_folder_can_be_run_twice(run, tmp_path):
    """In a notebook the folder stays this process's own."""
    again = Run(tmp_path / "results", "demo", begin=True)
    again.release()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    """Some network drives know no locks: that is said, and the run goes on."""
    def flock(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    Run(tmp_path, "demo", begin=True).release()
    assert capsys.readouterr().out.count("knows no locks: make sure that only one process works in it") == 1


# ---- starting over

def test_fresh_moves_the_old_files_aside(run, tmp_path):
    """Starting over keeps the old files, in folders beside; what is named stays, and a notebook being executed."""
    run.once("adapters/sft", lambda folder: folder.mkdir(), {})
    run.once("scores.json", list, {})
    run.show("training", Figure())
    for name in ("main.ipynb", "main-stopped.ipynb"):
        (run.folder / name).write_text("{}")
    run.start_over(keep=["run.json", "adapters"])
    assert sorted(path.name for path in run.folder.glob("[!.]*")) == ["adapters", "main-stopped.ipynb", "run.json"]
    assert list(run.ledger.artifacts) == ["adapters/sft"]
    (aside,) = (tmp_path / "results").glob("demo-*")
    assert {path.name for path in aside.iterdir()} == {"scores.json", "main.ipynb"}
    (aside,) = (tmp_path / "figures").glob("demo-*")
    assert {path.name for path in aside.iterdir()} == {"training.png", "training.pdf"}


def test_fresh_evaluation_keeps_an_interrupted_training(run, tmp_path):
    """What eval.ipynb moves aside is its own: responses of a broken-off run go, checkpoints stay."""
    for name in ("adapters/sft", "unfinished/adapters/dpo/checkpoint-10"):
        run.once(name, lambda folder: folder.mkdir(), {})
    run.once("unfinished/responses.json/Base.json", list, {})
    for name in ("main.ipynb", "eval.ipynb"):
        (run.folder / name).write_text("{}")
    run.start_over(keep=OF_TRAINING)
    assert (run.folder / "main.ipynb").exists()
    assert set(run.ledger.artifacts) == {"adapters/sft", "unfinished/adapters/dpo/checkpoint-10"}
    assert (run.folder / "unfinished/adapters/dpo/checkpoint-10").is_dir()
    (aside,) = (tmp_path / "results").glob("demo-*")
    assert {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()} == {
        "unfinished/responses.json/Base.json", "eval.ipynb"}


@pytest.mark.parametrize("labelled", [True, False])
def test_line_below_a_figure_can_be_left_out(tmp_path, labelled):
    """Figures for a paper need not say whose they are."""
    run, figure = Run(tmp_path / "results", "demo", begin=True, labelled=labelled), Figure()
    run.show("training", figure)
    assert any(run.label.split(",")[0] in text.get_text() for text in figure.texts) == labelled
    run.release()


def test_copied_run_has_its_folders_name(run):
    """Figures and tables of a copy say which run they are of."""
    run.save(preset="demo")
    shutil.copytree(run.folder, run.folder.with_name("second"))
    second = Run(run.folder.parent, "second")
    assert second.label.startswith("second, preset demo")
    second.save()
    assert load(second.folder / "run.json")["run"] == "second"
    second.release()


def test_responses_from_elsewhere_need_their_prompts(tmp_path):
    """Rewards alone can be measured; responses without prompts cannot be shown."""
    (tmp_path / "other").mkdir()
    for name in ("scores", "responses"):
        (tmp_path / "other" / f"{name}.json").write_text("[]")
    with pytest.raises(ValueError, match="holds responses.json from elsewhere without the prompts that they answer"):
        Run(tmp_path, "other")


def test_interrupted_fresh_start_can_be_repeated(copied_run, monkeypatch):
    """The ledger goes last: stopped at any file, the rest is still known."""
    run, moved = Run(copied_run.folder / "results", "demo", begin=True), []
    monkeypatch.setattr(runs.shutil, "move", lambda path, aside: moved.append(path.name))
    run.start_over()
    names = [name for name in moved if not name.endswith((".png", ".pdf"))]
    assert names[-1] == "run.json"
    assert run.ledger.artifacts == {}
    run.release()


# ---- sources

def test_source_is_known_by_what_it_holds(run, hub_model):
    """A folder by its sha256, wherever it lies; what was made from another one is refused by name."""
    base = run.source("base_model", hub_model)
    assert (base.folder, base.commit) == (hub_model, None)
    assert base.identity == files.sha256_of(hub_model)
    run.once("prompts.json", list, {"base_model": base.identity})
    copy = shutil.copytree(hub_model, hub_model.parent / "copy")
    assert run.source("base_model", copy).identity == base.identity
    (copy / "config.json").write_text("{} ")
    with pytest.raises(ValueError, match=r"prompts\.json was made with base_model = '\w+', now it is"):
        run.source("base_model", copy)


@pytest.fixture
def hub_model(tmp_path):
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def test_source_that_is_not_needed_may_be_missing(run, hub_model):
    """Where what it is for is there, its recorded identity counts; under another name it is refused."""
    base = run.source("base_model", hub_model)
    run.once("prompts.json", list, {"base_model": base.identity})
    shutil.rmtree(hub_model)
    again = run.source("base_model", hub_model, needed_for=["prompts.json"])
    assert (again.folder, again.identity) == (None, base.identity)
    with pytest.raises(ValueError, match=r"was made with base_model = '.*model', now it is 'other'"):
        run.source("base_model", "other", needed_for=["prompts.json"])
    with pytest.raises(ValueError, match="BASE_MODEL = '.*/model' cannot be had"):
        run.source("base_model", hub_model, needed_for=["prompts.json", "responses.json"])


def test_run_keeps_to_the_commit_that_it_began_with(run, hub_model, monkeypatch):
    """A name on the hub is fetched at the recorded commit; another name, or FRESH, begins with the newest."""
    asked, cache = [], hub_model.parent / "snapshots" / ("a" * 40)
    shutil.copytree(hub_model, cache)

    def fetch(setting, name, files=None, commit=None):
        asked.append((setting, name, commit))
        return cache

    monkeypatch.setattr(runs.hub, "fetch", fetch)
    base = run.source("base_model", "facebook/opt-350m")
    assert (base.identity, base.commit) == ("a" * 40, "a" * 40)
    run.save()
    Run(run.folder.parent, "demo").source("base_model", "facebook/opt-350m")
    run.source("base_model", "facebook/opt-125m")
    assert asked == [("BASE_MODEL", "facebook/opt-350m", None), ("BASE_MODEL", "facebook/opt-350m", "a" * 40),
                     ("BASE_MODEL", "facebook/opt-125m", None)]


def test_what_is_known_must_hold_everywhere(run):
    """Everything in the folder that was made from a thing was made from this one."""
    run.once("adapters/sft", lambda folder: folder.mkdir(), {"test prompts": "abc"})
    run.require_everywhere({"test prompts": "abc", "other": 1})
    with pytest.raises(ValueError, match="adapters/sft was made with test prompts = 'abc', now it is 'd'"):
        run.require_everywhere({"test prompts": "d"})


# ---- figures

@pytest.mark.parametrize("text", ["$x^2$ $", "<b>", r"\input{x}", "a_b^c", "Käse", "two\n\nlines"])
def test_label_of_a_figure_is_text(run, text):
    """A figure's label is drawn as it is: a dollar sign begins no formula, and none that is broken stops the run."""
    run.ledger.run = text
    figure = Figure(figsize=(3.4, 2))
    run.show("a", figure)
    assert {path.name for path in run.figures.iterdir()} == {"a.png", "a.pdf"}
    assert not figure._supxlabel.get_parse_math()
    assert Image.open(run.figures / "a.png").size == (1020, 600)


def test_label_says_whose_numbers_these_are(run):
    """The demo's are the demo's; rewards from elsewhere are that."""
    run.ledger.preset = "demo"
    run.asked = {"base_model": "demo/hub/opt", "dataset": "x", "reward_model": "demo/hub/reward-model"}
    assert run.label == "demo, preset demo, demo/hub/opt judged by demo/hub/reward-model (stand-ins, not OPT-350M)"
    run.ledger.preset, run.asked = "quick", {"base_model": "facebook/opt-350m"}
    assert run.label == "demo, preset quick, facebook/opt-350m"
    run.elsewhere = True
    assert run.label == "demo (rewards from elsewhere)"
