"""Colab by upload alone: each generated notebook in an empty folder, with stand-ins of google.colab and of pip."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import types
from types import SimpleNamespace

import nbformat
import pytest
from conftest import MODELS, ROOT, load

sys.path.insert(0, str(ROOT / "colab"))
import build

NOTEBOOKS = ["main.ipynb", "eval.ipynb"]
SHORT = {"main.ipynb": {"MAX_PAIRS": 60}, "eval.ipynb": {"N_PROMPTS": 2, "MAX_NEW_TOKENS": 8}}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_file_is_the_generated_one(name):
    """`make notebooks` keeps them fresh; they have no outputs."""
    assert (ROOT / "colab" / name).read_text(encoding="utf-8") == nbformat.writes(build.build(name)) + "\n"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_else_differs(name):
    """The root's cells in their order, one section after the title, one cell after the parameters."""
    root = [cell.source for cell in nbformat.read(ROOT / name, 4).cells]
    colab = [cell.source for cell in nbformat.read(ROOT / "colab" / name, 4).cells]
    added = [source for source in colab if source not in root]
    assert [source for source in colab if source in root] == root
    files = [source.split("\n")[0].split("/")[1] for source in added if source.startswith("%%writefile posttrain/")]
    assert files == sorted(path.name for path in (ROOT / "posttrain").glob("*.*") if path.name != "__main__.py")
    assert len(added) == len(files) + 4  # steps, installation, the package's heading, Drive
    assert colab[:2] == [root[0], added[0]]
    parameters = next(i for i, source in enumerate(colab) if source.startswith("PRESET ="))
    assert ".mount(" in colab[parameters + 1]


def test_pins_are_those_of_the_requirements():
    """What Colab brings and keeps is not among them; what the package imports is."""
    assert {pin.split("==")[0] for pin in build.pins()} >= {"transformers", "trl", "peft", "datasets", "accelerate",
                                                            "protobuf", "sentencepiece", "statsmodels", "pydantic"}
    assert not {pin.split("==")[0] for pin in build.pins()} & {"torch", "numpy", "scipy", "pandas", "matplotlib"}


# ---- the cell that installs

def install(monkeypatch, installed, loaded, pip=0):
    """Run the cell with these versions installed, {package: version}, and loaded; return pip's arguments.

    What pip is asked for is installed afterwards, as it would be.
    """
    commands = []

    def run(command, **options):
        commands.append(command[2:])
        if pip == 0:
            installed.update(one.split("==") for one in command if "==" in one)
        return SimpleNamespace(returncode=pip, stderr="No matching distribution found")

    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [
        SimpleNamespace(name=name, version=version) for name, version in installed.items()])
    monkeypatch.setattr(subprocess, "run", run)
    for pin in build.pins():
        name = {"protobuf": "google.protobuf"}.get(pin.split("==")[0], pin.split("==")[0])
        monkeypatch.delitem(sys.modules, name, raising=False)
        if name in loaded:
            module = types.ModuleType(name)
            module.__version__ = loaded[name]
            monkeypatch.setitem(sys.modules, name, module)
    cells = nbformat.read(ROOT / "colab" / "main.ipynb", 4).cells
    exec(next(cell.source for cell in cells if "PINS = [" in cell.source), {})
    return commands


def test_what_is_missing_is_installed_and_the_rest_is_held(monkeypatch, tmp_path):
    """At its pin; torch and its like at the versions that are there; a distribution without a name does no harm."""
    monkeypatch.chdir(tmp_path)
    there = {"torch": "2.99.0", "numpy": "2.0.0", "matplotlib": "3.0", "trl": "1.16.0", "transformers": "4.0"}
    there[None] = "1"
    (command,) = install(monkeypatch, there, {})
    assert command[:2] == ["pip", "install"]
    assert {"transformers==5.23.0", "protobuf==7.36.2"} <= set(command)
    assert {"torch==2.99.0", "numpy==2.0.0", "matplotlib==3.0"} <= set(command)
    assert "trl==1.16.0" not in command
    assert (tmp_path / "posttrain").is_dir()
    assert install(monkeypatch, there, {}) == []  # run again it installs nothing


def test_restart_is_asked_for_until_it_has_happened(monkeypatch, tmp_path):
    """An older version that is loaded is not gone on with, however often the cell is run."""
    monkeypatch.chdir(tmp_path)
    there, loaded = {"transformers": "4.0.0"}, {"transformers": "4.0.0", "google.protobuf": "5.29.1", "trl": "1.16.0"}
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"transformers 4\.0\.0, not 5\.23\.0; protobuf 5\.29\.1.*Restart"):
            install(monkeypatch, there, loaded)
    assert not (tmp_path / "posttrain").exists()
    assert install(monkeypatch, there, {}) == []  # after the restart


def test_failed_installation_is_said(monkeypatch, tmp_path):
    """With what pip said."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="(?s)pip could not install transformers==.*No matching"):
        install(monkeypatch, {}, {}, pip=1)


@pytest.mark.parametrize(("results", "figures", "mounted"), [
    ("results", None, False), ("/content/drive/MyDrive/results", None, True), ("results", "/content/drive/x", True)])
def test_drive_is_mounted_where_a_folder_lies_there(monkeypatch, results, figures, mounted):
    """In Colab, and for either of the two folders."""
    places = []
    drive = types.ModuleType("google.colab.drive")
    drive.mount = places.append
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    exec(build.DRIVE, {"RESULTS": results, "FIGURES": figures})
    assert places == ["/content/drive"] * mounted


# ---- whole, alone in an empty folder

STAND_INS = {  # what a Colab runtime has; pip writes down what it is asked for
    "google/colab/__init__.py": "",
    "google/colab/drive.py": "def mount(place):\n    open('mounted', 'a').write(place)\n",
    "sitecustomize.py": "import google.colab\n",
    "pip/__init__.py": "", "pip/__main__.py": "import sys\nopen('pip.txt', 'a').write(' '.join(sys.argv) + '\\n')\n"}


def runtime(folder, hub, drive, name):
    """Upload a notebook into an empty runtime and run it, with its folders on a drive; return the run's folder."""
    folder.mkdir(exist_ok=True)
    for path, source in STAND_INS.items():
        (folder / "site" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / path).write_text(source)
    places = {"PRESET": "demo", "RUN": "demo", "RESULTS": drive / "results", "DATASET": hub / "hh-rlhf"}
    places |= {"BASE_MODEL": hub / "opt"} if name == "main.ipynb" else {"REWARD_MODEL": hub / "reward-model"}
    options = [str(text) for key, value in (places | SHORT[name]).items() for text in ("-p", key, value)]
    run = [sys.executable, "-m", "papermill", ROOT / "colab" / name, folder / name, "-k", "python3", *options]
    done = subprocess.run(run, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder / "site")}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return drive / "results" / "demo"


@pytest.fixture(scope="module")
def uploaded(hub, tmp_path_factory):
    """main.ipynb in one runtime, run again in it, then eval.ipynb in another, which finds the run through the drive."""
    folder = tmp_path_factory.mktemp("colab")
    drive = folder / "drive"
    run = runtime(folder / "first", hub, drive, "main.ipynb")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    runtime(folder / "first", hub, drive, "main.ipynb")
    runtime(folder / "second", hub, drive, "eval.ipynb")
    return SimpleNamespace(folder=folder, run=run, before=before)


def test_upload_alone_runs(uploaded):
    """Each file alone in an empty folder carries all that it needs; the figures lie on the drive too."""
    assert [row["model"] for row in load(uploaded.run / "metrics.json")["models"]] == MODELS
    assert (uploaded.folder / "drive" / "figures" / "demo" / "training.png").exists()
    for place in ("first", "second"):
        written = {path.name for path in (uploaded.folder / place / "posttrain").glob("*.*")}
        assert written == {path.name for path in (ROOT / "posttrain").glob("*.*")} - {"__main__.py"}
        for name in written:
            text = (uploaded.folder / place / "posttrain" / name).read_text(encoding="utf-8")
            assert text.strip() == (ROOT / "posttrain" / name).read_text(encoding="utf-8").strip()


def test_run_again_it_does_nothing_twice(uploaded):
    """After the restart that a run again in a new kernel is: the same files, nothing installed, nothing trained."""
    assert {path: path.stat().st_mtime_ns for path in uploaded.run.rglob("*.safetensors")} == uploaded.before
    for place in ("first", "second"):
        assert not (uploaded.folder / place / "pip.txt").exists()  # all pins are there
        assert not (uploaded.folder / place / "mounted").exists()  # the drive is a folder here


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_of_the_root_says_which_one_to_open(name, tmp_path):
    """Opened in Colab, where the package is not beside it, its first cell names the file to open."""
    source = next(cell.source for cell in nbformat.read(ROOT / name, 4).cells if cell.cell_type == "code")
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert f"In Colab, open colab/{name}" in done.stderr
    assert ast.parse(source)
    assert json.dumps(source)
