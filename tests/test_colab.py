"""Colab notebooks that are uploaded alone: their generation, the added cells, and whole runs."""

import base64
import hashlib
import importlib.metadata
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import HUB, MODELS, RAW, ROOT, code_cells, is_parameters, load, read_notebook
from packaging.requirements import Requirement

sys.path.insert(0, str(ROOT / "colab"))
import build

each_notebook = pytest.mark.parametrize("name", build.NOTEBOOKS)
KEPT_ON_COLAB = load(ROOT / "tests" / "colab_packages.json")["packages"]
ADDRESS = "https://github.com/somebody/repository.git"


def read_generated(name):
    """Read a generated notebook."""
    return read_notebook(Path("colab") / name)


def find_setup(notebook):
    """Find the cell that sets up a session."""
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith(build.TITLE)]
    return cell


# ---- what is generated


@each_notebook
def test_committed_file_is_the_generated_one(name):
    """`make notebooks` keeps the committed files up to date, wherever they are cloned from."""
    committed = (ROOT / "colab" / name).read_text(encoding="utf-8")
    found = re.search(r'^REPOSITORY = "(.+)"\nCOMMIT = "(.+)"$', setup_of(name), re.MULTILINE)
    address, commit = found.groups() if found else (None, None)
    generated = nbformat.writes(build.build(name, address, commit)) + "\n"
    if address is None:  # another version of xz may compress the same files to other bytes
        before, after = unpack_line(committed), unpack_line(generated)
        assert before == after, "run `python colab/build.py`"
        pattern = re.compile(r'"(?:SHA256|PACKAGE) = .*"')
        committed, generated = pattern.sub("", committed), pattern.sub("", generated)
    assert committed == generated, "run `python colab/build.py`"


def unpack_line(text):
    """Decompress the package in a notebook's text, whose sha256 must be the one beside it."""
    (package,) = re.findall(r'PACKAGE = \\"(.+)\\"\\n', text)
    (sha256,) = re.findall(r'SHA256 = \\"(.+)\\"\\n', text)
    compressed = base64.b85decode(package)
    assert hashlib.sha256(compressed).hexdigest() == sha256
    return lzma.decompress(compressed)


@each_notebook
def test_file_is_small(name):
    """It may have to be uploaded by hand."""
    assert (ROOT / "colab" / name).stat().st_size < 400_000


def setup_of(name):
    """Read the source of the committed setup cell."""
    return find_setup(read_generated(name)).source


@each_notebook
@pytest.mark.parametrize("address", [None, ADDRESS])
def test_parameters_come_first_and_nothing_else_differs(name, address):
    """The title, a guide, the parameters, the setup, and then the root's cells in their order."""
    root = [(cell.cell_type, cell.source) for cell in read_notebook(name).cells]
    notebook = build.build(name, address, "c0ffee")
    generated = [(cell.cell_type, cell.source) for cell in notebook.cells]
    setup = find_setup(notebook)
    (parameters,) = [i for i, cell in enumerate(notebook.cells) if is_parameters(cell)]
    assert parameters == 3
    assert notebook.cells[4] is setup
    place = root.index(generated[3])
    assert generated[0] == root[0]
    assert generated[1][1].startswith("## Setup in Colab")
    assert generated[2:4] == root[place - 1 : place + 1]
    assert generated[5:] == root[1 : place - 1] + root[place + 1 :]
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert setup.metadata["cellView"] == "form"  # folded in Colab, and in JupyterLab
    assert setup.metadata["jupyter"]["source_hidden"]
    assert [cell.metadata["id"] for cell in notebook.cells] == [cell.id for cell in notebook.cells]


def unpack():
    """Run the part of the setup that unpacks the package, in the working folder."""
    text, sha256 = build.pack()
    exec(build.read_part("unpack.py", PACKAGE=f'"{text}"', SHA256=f'"{sha256}"'), {})


def test_package_travels_to_the_byte(tmp_path, monkeypatch, capsys):
    """All files are written byte by byte, so the sha256 of the code in a record is the same."""
    monkeypatch.chdir(tmp_path)
    unpack()
    assert f"unpacked into {tmp_path / 'posttrain'}" in capsys.readouterr().out
    written = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.*")}
    files = [path for path in (ROOT / "posttrain").rglob("*.*") if path.suffix != ".pyc"]
    assert sorted(written) == sorted(path.relative_to(ROOT) for path in files)
    for path in files:
        assert written[path.relative_to(ROOT)].read_bytes() == path.read_bytes(), path
    assert {path.name for path in files} >= {"render.py", "report.html", "report.css", "report.js"}
    unpack()  # again: nothing is to be said
    assert capsys.readouterr().out == ""


def test_edited_package_is_kept_and_named(tmp_path, monkeypatch, capsys):
    """Files that the user has changed or removed are not written over, and the user is told."""
    monkeypatch.chdir(tmp_path)
    unpack()
    (tmp_path / "posttrain" / "chat.py").write_text("mine = True\n")
    (tmp_path / "posttrain" / "power.py").unlink()
    capsys.readouterr()
    unpack()
    said = capsys.readouterr().out
    assert "posttrain/chat.py, posttrain/power.py. To have the notebook's, delete" in said
    assert (tmp_path / "posttrain" / "chat.py").read_text() == "mine = True\n"
    assert not (tmp_path / "posttrain" / "power.py").exists()


def test_damaged_package_is_refused(tmp_path, monkeypatch):
    """A letter that was changed in the folded cell stops it before anything is written."""
    monkeypatch.chdir(tmp_path)
    text, sha256 = build.pack()
    other = "0" if text[1000] != "0" else "1"
    damaged = f'"{text[:1000]}{other}{text[1001:]}"'
    with pytest.raises(RuntimeError, match="Upload the notebook again"):
        exec(build.read_part("unpack.py", PACKAGE=damaged, SHA256=f'"{sha256}"'), {})
    assert not list(tmp_path.iterdir())


def test_same_package_gives_the_same_cell():
    """So the committed notebooks change only with the package."""
    assert build.pack() == build.pack()


# ---- the repository is cloned


@pytest.fixture
def repository(tmp_path):
    """Make a repository with two commits of a package; return its address and the first commit."""
    folder = tmp_path / "origin" / "study.git"
    folder.mkdir(parents=True)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (folder / "package.py").write_text("one\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    first = git("rev-parse", "HEAD")
    (folder / "package.py").write_text("two\n")
    git("commit", "--quiet", "-am", "two")
    return str(folder), first, git("rev-parse", "HEAD")


def clone(address, commit):
    """Run the part of the setup that clones the repository."""
    exec(build.read_part("clone.py", REPOSITORY=f'"{address}"', COMMIT=f'"{commit}"'), {})


def test_clone_has_the_commit_and_is_used_again(repository, tmp_path, monkeypatch):
    """Run again, in the same session or in a new one, it neither nests nor fails."""
    address, first, second = repository
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    clone(address, first)
    assert Path.cwd() == tmp_path / "study"
    assert Path("package.py").read_text() == "one\n"
    assert str(Path.cwd()) in sys.path
    clone(address, first)
    monkeypatch.chdir(tmp_path)  # a new session begins outside of the clone
    clone(address, second)
    assert Path.cwd() == tmp_path / "study"
    assert Path("package.py").read_text() == "two\n"
    assert not Path("study").exists()


def test_edited_clone_is_kept(repository, tmp_path, monkeypatch, capsys):
    """Another commit is not checked out over changed files."""
    address, first, second = repository
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    clone(address, first)
    Path("package.py").write_text("mine\n")
    clone(address, second)
    assert Path("package.py").read_text() == "mine\n"
    assert "has changed files, so it is used as it is" in capsys.readouterr().out


def test_clone_that_fails_is_explained(tmp_path, monkeypatch):
    """Without a repository there, or without git, the cell stops with what to do."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="(?s)could not fetch .*none.* internet access"):
        clone(str(tmp_path / "none"), "c0ffee")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="git is not installed here"):
        clone(str(tmp_path / "none"), "c0ffee")


# ---- Colab's own packages


def test_pins_work_with_the_versions_that_colab_keeps():
    """No pinned package demands another version of what Colab has, or of another pin."""
    pins = build.read_pins()
    there = KEPT_ON_COLAB | pins
    assert set(KEPT_ON_COLAB) == set(build.KEPT)
    checked = 0
    for package in pins:
        for text in importlib.metadata.requires(package) or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if requirement.name not in there or (marker and not marker.evaluate({"extra": ""})):
                continue
            version = there[requirement.name]
            assert requirement.specifier.contains(version), f"{package} needs {text}"
            checked += 1
    assert checked > 20


@each_notebook
def test_notebook_of_the_root_says_which_to_open(name, monkeypatch):
    """Opened in Colab, without the package, it names the file to open instead."""
    monkeypatch.setitem(sys.modules, "posttrain", None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError, match=f"In Colab, open colab/{name}"):
        exec(code_cells(name)[0], {})


def test_pins_are_those_of_the_requirements():
    """They leave out what Colab keeps, and include what the package imports."""
    pins = build.read_pins()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {f"{package}=={version}" for package, version in pins.items()} < set(lines)
    assert {"transformers", "trl", "peft", "datasets", "protobuf", "pydantic"} < set(pins)
    assert not {"torch", "numpy", "scipy", "pandas", "matplotlib"} & set(pins)


# ---- the cell that installs


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A session of Colab with stand-ins of distributions, modules and pip.

    `installed` is {package: version}, `loaded` {module: version}; `commands` are pip's arguments.
    """
    site = tmp_path / "site"
    site.mkdir()
    session = SimpleNamespace(installed={}, loaded={}, commands=[], fails=False, folder=tmp_path)

    def install(packages):
        for package, version in packages.items():
            for old in site.glob(f"{package}-*.dist-info"):
                (old / "METADATA").unlink(missing_ok=True)
                old.rmdir()
            folder = site / f"{package}-{version}.dist-info"
            folder.mkdir()
            if version:
                (folder / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
        importlib.invalidate_caches()

    def run(command, **options):
        session.commands.append(command[1:])
        if not session.fails:
            install(dict(item.split("==") for item in command if "==" in item))
        return SimpleNamespace(returncode=int(session.fails), stderr="No matching distribution")

    def run_cell():
        for package in build.read_pins():
            module = "google.protobuf" if package == "protobuf" else package
            monkeypatch.delitem(sys.modules, module, raising=False)
        for module, version in session.loaded.items():
            stand_in = types.ModuleType(module)
            stand_in.__version__ = version
            monkeypatch.setitem(sys.modules, module, stand_in)
        session.commands.clear()
        exec(cell, {})
        return session.commands

    source = build.write_setup(None)
    cell = source[: source.index("# The package posttrain:")]
    session.install, session.run_cell = install, run_cell
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(subprocess, "run", run)
    return session


def test_what_is_missing_is_installed_and_the_rest_is_held(colab):
    """Missing packages are pinned, and torch and others keep the versions that are there."""
    colab.install({"torch": "2.99.0", "numpy": "2.0.0", "transformers": "4.0.0"})
    colab.install({"trl": build.read_pins()["trl"]})
    colab.install({"datasets": ""})  # a distribution that lost its metadata
    (command,) = colab.run_cell()
    pins = [f"{package}=={version}" for package, version in build.read_pins().items()]
    pins.remove(f"trl=={build.read_pins()['trl']}")
    assert command == ["-m", "pip", "install", "--quiet", *pins, "torch==2.99.0", "numpy==2.0.0"]
    assert colab.run_cell() == []  # run again it installs nothing


def test_restart_is_asked_for_until_it_has_happened(colab):
    """While an older version is loaded, the cell stops every time it is run."""
    pins = build.read_pins()
    colab.install(pins | {"transformers": "4.0.0"})
    colab.loaded = {"transformers": "4.0.0", "google.protobuf": "5.29.1", "trl": pins["trl"]}
    expected = (
        rf"transformers 4\.0\.0, not {pins['transformers']}; protobuf 5\.29\.1, .*Restart session"
    )
    for _ in range(3):
        with pytest.raises(RuntimeError, match=expected):
            colab.run_cell()
    colab.loaded = {}
    assert colab.run_cell() == []


def test_failed_installation_is_explained(colab):
    """The message has the output of pip, and the cell stops."""
    colab.fails = True
    with pytest.raises(RuntimeError, match="(?s)pip could not install transformers==.*No matching"):
        colab.run_cell()


# ---- Drive


@pytest.mark.parametrize(
    ("results", "figures", "places"),
    [
        ("results", None, []),
        ("/content/drive/MyDrive/results", None, ["/content/drive"]),
        ("results", "/content/drive/MyDrive/figures", ["/content/drive"]),
        ("/content/drives/results", None, []),
    ],
)
def test_drive_is_mounted_if_a_folder_lies_there(monkeypatch, results, figures, places):
    """Drive is mounted in Colab if one of the two folders is on it."""
    mounted = []
    package, drive = types.ModuleType("google.colab"), types.ModuleType("google.colab.drive")
    package.drive, drive.mount = drive, mounted.append
    exec(build.read_part("mount.py"), {"RESULTS": results, "FIGURES": figures})
    assert mounted == []  # elsewhere than in Colab
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    exec(build.read_part("mount.py"), {"RESULTS": results, "FIGURES": figures})
    assert mounted == places


# ---- whole, alone in an empty folder

# What a runtime of Colab has: pip writes down what it is asked for, Drive that it was mounted.
STAND_INS = {
    "google/colab/__init__.py": "",
    "google/colab/drive.py": "def mount(place):\n    open('mounted.txt', 'a').write(place)\n",
    "sitecustomize.py": "import google.colab\n",
    "pip/__init__.py": "",
    "pip/__main__.py": "import sys\nopen('pip.txt', 'a').write(' '.join(sys.argv) + '\\n')\n",
}
PARAMETERS = {
    "main.ipynb": {
        "PRESET": "demo",
        "RUN": "one",
        "DATASET": HUB / "hh-rlhf",
        "BASE_MODEL": HUB / "opt",
        "MAX_PAIRS": 60,
    },
    "eval.ipynb": {
        "PRESET": "demo",
        "RUN": "one",
        "REWARD_MODEL": HUB / "reward-model",
        "N_PROMPTS": 4,
        "MAX_NEW_TOKENS": 8,
    },
    "compare.ipynb": {"RUNS": "one two"},
}


def run_alone(folder, name, parameters, stand_ins):
    """Execute a notebook in a folder that has nothing else, with stand-ins of what is installed."""
    for path, source in stand_ins.items():
        stand_in = folder / "site" / path
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(source)
    command = [sys.executable, "-m", "papermill", ROOT / "colab" / name, folder / name]
    command += ["--kernel", "python3"]
    for key, value in parameters.items():
        command += ["-p", key, str(value)]
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def run_in_colab(folder, drive, name):
    """Upload a notebook into an empty runtime, and run it with its results on a drive."""
    run_alone(folder, name, {"RESULTS": drive / "results"} | PARAMETERS[name], STAND_INS)


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """Three runtimes; main.ipynb runs twice in the first, and the others find its run on the drive.

    For compare.ipynb the run is copied as if it had another seed.
    """
    folder = tmp_path_factory.mktemp("colab")
    drive = folder / "drive"
    run = drive / "results" / "one"
    run_in_colab(folder / "first", drive, "main.ipynb")
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    run_in_colab(folder / "first", drive, "main.ipynb")
    run_in_colab(folder / "second", drive, "eval.ipynb")
    copied = drive / "results" / "two"
    copied.mkdir()
    for name in [*RAW, "classification.json", "metrics.json"]:
        (copied / name).write_bytes((run / name).read_bytes())
    record = load(run / "run.json")
    record["settings"]["training"]["seed"] += 1
    (copied / "run.json").write_text(json.dumps(record))
    run_in_colab(folder / "third", drive, "compare.ipynb")
    return SimpleNamespace(folder=folder, drive=drive, run=run, times=times)


@pytest.mark.slow
def test_upload_alone_runs(uploaded):
    """Each file runs in an empty folder, and the results are on the drive."""
    assert [row["model"] for row in load(uploaded.run / "metrics.json")["models"]] == MODELS
    assert "<html" in (uploaded.run / "report.html").read_text(encoding="utf-8")
    assert (uploaded.drive / "figures" / "one" / "training.png").exists()
    assert load(uploaded.drive / "results" / "one-compared" / "compare.json")["differences"]
    for runtime in ("first", "second", "third"):
        assert not (uploaded.folder / runtime / "results").exists()


@pytest.mark.slow
def test_run_again_makes_nothing_twice(uploaded):
    """In a new kernel, as after a restart, nothing is installed, trained or mounted."""
    times = {path: path.stat().st_mtime_ns for path in uploaded.run.rglob("*.safetensors")}
    assert times == uploaded.times
    for runtime in ("first", "second", "third"):
        assert not (uploaded.folder / runtime / "pip.txt").exists()  # all pins are there
        assert not (uploaded.folder / runtime / "mounted.txt").exists()  # the drive is a folder


@pytest.mark.slow
def test_code_counts_as_the_repository_s(uploaded):
    """No result of the run is said to come from other code than the repository's."""
    from posttrain.record import environment

    artifacts = load(uploaded.run / "run.json")["artifacts"]
    code = {artifact["environment"]["code_sha256"] for artifact in artifacts.values()}
    assert code == {environment()["code_sha256"]}


@pytest.mark.slow
def test_kaggle_keeps_the_results_in_its_working_folder(tmp_path):
    """Data and models are inputs that are only read; eval.ipynb runs on a copy of the results."""
    inputs, first, second = (tmp_path / "kaggle" / name for name in ("input", "first", "second"))
    for name in ("hh-rlhf", "opt", "reward-model"):
        shutil.copytree(HUB / name, inputs / name)
    for path in inputs.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(inputs.rglob("*"))
    stand_ins = {path: text for path, text in STAND_INS.items() if path.startswith("pip/")}
    places = {"DATASET": inputs / "hh-rlhf", "BASE_MODEL": inputs / "opt"}
    run_alone(first, "main.ipynb", PARAMETERS["main.ipynb"] | places, stand_ins)
    shutil.copytree(first / "results", second / "results")
    judge = {"REWARD_MODEL": inputs / "reward-model"}
    run_alone(second, "eval.ipynb", PARAMETERS["eval.ipynb"] | judge, stand_ins)
    run = second / "results" / "one"
    assert [row["model"] for row in load(run / "metrics.json")["models"]] == MODELS
    assert (second / "figures" / "one" / "metrics.png").exists()
    assert sorted(inputs.rglob("*")) == before
