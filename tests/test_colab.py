"""Colab notebooks that are uploaded alone: their generation, the added cells, and whole runs."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import HUB, MODELS, RAW, ROOT, code_cells, is_parameters, load, read_notebook
from IPython.core.interactiveshell import InteractiveShell

sys.path.insert(0, str(ROOT / "colab"))
import build

each_notebook = pytest.mark.parametrize("name", build.NOTEBOOKS)
ADDED = ("%%writefile ", build.FORGET, build.MOUNT, build.PACKAGE, "### Imports", "## Setup in")


def read_generated(name):
    """Read a generated notebook."""
    return read_notebook(Path("colab") / name)


def is_added(source):
    """Tell whether the generation adds a cell."""
    return source.startswith(ADDED) or "PINS = {" in source


# ---- what is generated


@each_notebook
def test_committed_file_is_the_generated_one(name):
    """`make notebooks` keeps the committed files up to date."""
    committed = (ROOT / "colab" / name).read_text(encoding="utf-8")
    assert committed == nbformat.writes(build.build(name)) + "\n", "run `python colab/build.py`"
    assert len(committed) < 1_200_000  # it is uploaded by hand


@each_notebook
def test_nothing_else_differs(name):
    """The root's cells keep their order, and cells are added after title and parameters only."""
    root = read_notebook(name).cells
    generated = read_generated(name).cells
    added = [place for place, cell in enumerate(generated) if is_added(cell.source)]
    kept = [cell for place, cell in enumerate(generated) if place not in added]
    assert [(cell.cell_type, cell.source) for cell in kept] == [
        (cell.cell_type, cell.source) for cell in root
    ]
    (parameters,) = [place for place, cell in enumerate(generated) if is_parameters(cell)]
    assert added == [*range(1, len(added)), parameters + 1]
    assert generated[parameters + 1].source == build.MOUNT
    for cell in generated:
        assert not cell.get("outputs") and not cell.get("execution_count")


@each_notebook
def test_only_the_package_is_collapsed(name):
    """It is collapsed in JupyterLab and in Colab, which reads the id in a cell's metadata."""
    notebook = read_generated(name)
    (heading,) = notebook.metadata["colab"]["collapsed_sections"]
    place = [cell.metadata["id"] for cell in notebook.cells].index(heading)
    assert notebook.cells[place].metadata["jp-MarkdownHeadingCollapsed"]
    after = [cell.source for cell in notebook.cells[place + 1 :]]
    hidden = after[: after.index("### Imports")]
    assert all(source.startswith("%%writefile") or source == build.FORGET for source in hidden)


def test_package_travels_to_the_byte(tmp_path, monkeypatch):
    """All files are written byte by byte, so the sha256 of the code in a record is the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "posttrain" / "page").mkdir(parents=True)
    shell = InteractiveShell(colors="nocolor")
    for source in code_cells("colab/main.ipynb"):
        if source.startswith("%%writefile"):
            shell.run_cell(source).raise_error()
    written = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.*")}
    files = [path for path in (ROOT / "posttrain").rglob("*.*") if path.suffix != ".pyc"]
    assert sorted(written) == sorted(path.relative_to(ROOT) for path in files)
    for path in files:
        assert written[path.relative_to(ROOT)].read_bytes() == path.read_bytes(), path
    assert {path.name for path in files} >= {"render.py", "report.html", "report.css", "report.js"}


def imported_modules(source):
    """List the modules of the package that a source imports."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module)
            if node.module == "posttrain":
                modules += [f"posttrain.{alias.name}" for alias in node.names]
    return [module for module in modules if module.split(".")[0] == "posttrain"]


@each_notebook
def test_every_imported_module_travels(name):
    """The notebook has the modules that it imports and those that these import."""
    carried, to_read = {}, []
    for source in code_cells(Path("colab") / name):
        first_line, _, text = source.partition("\n")
        if first_line.startswith("%%writefile"):
            carried[first_line.removeprefix("%%writefile ")] = text
        else:
            to_read += imported_modules(source)
    assert len(to_read) > 3
    seen = []
    while to_read:
        module = to_read.pop()
        path = module.replace(".", "/")
        path = f"{path}.py" if f"{path}.py" in carried else f"{path}/__init__.py"
        assert path in carried, f"{module} does not travel"
        if path not in seen:
            seen.append(path)
            to_read += imported_modules(carried[path])
    assert "posttrain/files.py" in seen


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

    (cell,) = [text for text in code_cells("colab/main.ipynb") if "PINS = {" in text]
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
    assert (colab.folder / "posttrain" / "page").is_dir()
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
    assert not (colab.folder / "posttrain").exists()
    colab.loaded = {}
    assert colab.run_cell() == []


def test_failed_installation_is_explained(colab):
    """The message has the output of pip, and the cell stops."""
    colab.fails = True
    with pytest.raises(RuntimeError, match="(?s)pip could not install transformers==.*No matching"):
        colab.run_cell()
    assert not (colab.folder / "posttrain").exists()


# ---- the other two cells


def test_edited_module_is_imported_anew(monkeypatch):
    """Loaded modules of the package, and no others, are forgotten."""
    names = ["posttrain", "posttrain.run", "posttrain.page.render", "posttrainer"]
    monkeypatch.setattr(sys, "modules", sys.modules | dict.fromkeys(names))
    exec(build.FORGET, {})
    assert [name for name in sys.modules if name.startswith("posttrain")] == ["posttrainer"]


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
    exec(build.MOUNT, {"RESULTS": results, "FIGURES": figures})
    assert mounted == []  # elsewhere than in Colab
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    exec(build.MOUNT, {"RESULTS": results, "FIGURES": figures})
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


def run_in_colab(folder, drive, name):
    """Upload a notebook into an empty runtime, and run it with its results on a drive."""
    for path, source in STAND_INS.items():
        stand_in = folder / "site" / path
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(source)
    command = [sys.executable, "-m", "papermill", ROOT / "colab" / name, folder / name]
    command += ["--kernel", "python3", "-p", "RESULTS", drive / "results"]
    for key, value in PARAMETERS[name].items():
        command += ["-p", key, str(value)]
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


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
