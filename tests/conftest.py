"""What the tests share: the notebooks' definitions, the demo's stand-ins, one whole demo run, a few small helpers."""

import os
import tempfile

# The tests need neither an accelerator nor a network, and leave nothing behind in the user's cache of datasets. They
# run two at a time, so each takes one thread. All of it must be settled before the libraries are imported.
os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", DISABLE_SAFETENSORS_CONVERSION="1",
                  HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="datasets-"), TOKENIZERS_PARALLELISM="false",
                  OMP_NUM_THREADS="1")

import ast
import gzip
import hashlib
import json
import linecache
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from accelerate import PartialState
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"  # real text and published numbers; not part of the repository
MODELS = ["Base", "SFT", "DPO", "SFT+DPO"]
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def pytest_configure(config):
    """Leave out a warning that peft's use of transformers gives, as the notebooks do."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that two processes end at about the same time."""
    longest = ["test_interrupted", "test_moved", "test_runs"]
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


def pytest_sessionfinish():
    """Drop the cache of datasets."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


def code_cells(notebook):
    """Return {number: source} of a notebook's code cells, numbered from 1 as a whole run numbers them."""
    cells = nbformat.read(notebook, as_version=4).cells
    return dict(enumerate((cell.source for cell in cells if cell.cell_type == "code"), 1))


def is_constant(node):
    """Tell whether a statement gives one UPPER_CASE name its value."""
    return isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)


def refuse_hidden(node, where):
    """Raise ValueError where a statement that is not taken holds a definition: inside an `if`, say."""
    for child in ast.walk(node):
        constant = isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and child.id.isupper()
        if constant or isinstance(child, DEFINITIONS):
            raise ValueError(f"{where}, line {child.lineno}: a definition that tests cannot take out of its cell.")


def definitions(notebook):
    """Return a module of a notebook's definitions: imports, functions, classes, UPPER_CASE constants. No more is run.

    Every definition is compiled under the name of its cell, so that a traceback shows where it stands.
    """
    notebook = Path(notebook)
    module = types.ModuleType(notebook.stem)
    taken = set()
    for number, source in code_cells(notebook).items():
        where = f"{notebook.name}, cell {number}"
        tree = ast.parse(source, where)
        wanted = [node for node in tree.body if isinstance(node, DEFINITIONS) or is_constant(node)]
        for node in tree.body:
            if node not in wanted:
                refuse_hidden(node, where)
        names = [node.name for node in wanted if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        if taken & set(names):
            raise ValueError(f"{where}: {taken & set(names)} is defined a second time.")
        taken.update(names)
        linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)
        exec(compile(ast.Module(wanted, []), where, "exec"), module.__dict__)
    return module


@pytest.fixture(scope="session")
def main():
    """The definitions of main.ipynb."""
    PartialState(cpu=True)
    return definitions(ROOT / "main.ipynb")


@pytest.fixture(scope="session")
def evaluation():
    """The definitions of eval.ipynb."""
    PartialState(cpu=True)
    return definitions(ROOT / "eval.ipynb")


def parameter_names(notebook):
    """Return the names that a notebook's cell tagged `parameters` sets."""
    (cell,) = (c for c in nbformat.read(notebook, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
    return {target.id for node in ast.parse(cell.source).body for target in node.targets}


def execute(notebook, out, **parameters):
    """Run a whole notebook with parameters, from the repository's root, and return the seconds it took."""
    unknown = set(parameters) - parameter_names(ROOT / notebook)
    if unknown:
        raise ValueError(f"{notebook} has no parameter {', '.join(sorted(unknown))}.")
    start = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    parameters = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
    papermill.execute_notebook(ROOT / notebook, out, parameters, cwd=ROOT, progress_bar=False)
    return time.perf_counter() - start


@pytest.fixture(scope="session")
def hub():
    """The folder of the demo's dataset, base model and judge, built where it is not up to date."""
    subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True, cwd=ROOT)
    return ROOT / "demo" / "hub"


@pytest.fixture(scope="session")
def tokenizer(hub):
    """The tokenizer of the demo's OPT."""
    return AutoTokenizer.from_pretrained(hub / "opt")


def run_both(folder, main_parameters, eval_parameters):
    """Run both notebooks into a folder; return where their files are and how long either took."""
    places = {"RESULTS": folder / "results", "FIGURES": folder / "figures", "RUN": "demo"}
    seconds = {"main": execute("main.ipynb", folder / "main.ipynb", **places, **main_parameters),
               "eval": execute("eval.ipynb", folder / "eval.ipynb", **places, **eval_parameters)}
    return types.SimpleNamespace(run=folder / "results" / "demo", figures=folder / "figures" / "demo", places=places,
                                 main=folder / "main.ipynb", eval=folder / "eval.ipynb", seconds=seconds)


@pytest.fixture(scope="session")
def demo_run(hub, tmp_path_factory):
    """One whole demo run of both notebooks with the preset's own settings."""
    return run_both(tmp_path_factory.mktemp("demo"), {"PRESET": "demo"}, {"PRESET": "demo"})


def load(path):
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def dialogue(*turns):
    """Return a transcript of turns, a human's first."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def row(prompt="How are you?", chosen="Well.", rejected="Go away."):
    """Return a row of HH-RLHF whose two transcripts share a prompt of one turn."""
    return {"chosen": dialogue(prompt, chosen), "rejected": dialogue(prompt, rejected)}


def write_rows(folder, subset, split, rows):
    """Write one split of a dataset in the hub's layout."""
    path = folder / subset / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


def write_dataset(folder, train, test=None):
    """Write rows into both subsets of a dataset, the subset's name in every prompt; return the folder as a name.

    `train` and `test` hold rows, or {subset: rows} as they are.
    """
    for subset in ("harmless-base", "helpful-base"):
        for split, rows in (("train", train), ("test", test or [row("A test question?")])):
            if not isinstance(rows, dict):
                tag = f"\n\nHuman: [{subset}] "
                mine = [{side: text.replace("\n\nHuman: ", tag, 1) for side, text in one.items()} for one in rows]
            else:
                mine = rows[subset]
            write_rows(folder, subset, split, mine)
    return str(folder)


# ---- runs that are interrupted

VOLATILE = {"seconds", "timings_s"}  # fields of JSON files that hold times, the only thing that may differ


def start(notebook, folder, environment=(), **parameters):
    """Start a notebook on the demo, in a process of its own, into folder/results/demo; return the process.

    `environment`: {name: value} of what is set besides, None for what is unset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {"PRESET": "demo", "RUN": "demo", "RESULTS": folder / "results", "FIGURES": folder / "figures"}
    options = [text for name, value in (places | parameters).items() for text in ("-p", name, str(value))]
    variables = {name: value for name, value in (os.environ | dict(environment)).items() if value is not None}
    with (folder / f"{notebook}.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "papermill", ROOT / notebook, folder / notebook, "-k", "python3",
                                 "--log-output", "--no-progress-bar", *options], cwd=ROOT, stdout=log, stderr=log,
                                env=variables)


def kill(process):
    """End a process and its kernel with SIGKILL, and see that they are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def stop_after(process, seconds):
    """Kill a process after so many seconds, unless it ended before; return whether it was killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    return False


def without_times(data):
    """Return JSON data without its volatile fields."""
    if isinstance(data, dict):
        return {name: without_times(value) for name, value in data.items() if name not in VOLATILE}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def contents_of(folder):
    """Return {path: sha256} of all that the run `demo` left in a folder, times left out of JSON."""
    found = {}
    for path in sorted(path for part in ("results/demo", "figures/demo") for path in (folder / part).rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_times(json.loads(content))).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def differing(first, second):
    """Return the paths whose contents differ between two runs, or that only one of them has."""
    return [path for path in first | second if first.get(path) != second.get(path)]
