"""What the tests share: the demo's stand-ins, a demo run, running notebooks here or in a process of their own."""

import os
import tempfile

# The tests need neither an accelerator nor a network, and leave nothing behind in the user's cache of datasets. They
# run two at a time, so each takes one thread. All of it must be settled before the libraries are imported.
os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="datasets-"),
                  TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import ast
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock
from IPython.core.interactiveshell import InteractiveShell
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)  # where the notebooks run
DATA = ROOT.parent / "shared" / "data"  # real text and published numbers; not part of the repository
MODELS = ["Base", "SFT", "DPO", "SFT+DPO"]
ADAPTERS = ["adapters/sft", "adapters/dpo", "adapters/sft_dpo"]
RAW = ["prompts.json", "responses.json", "scores.json"]
DERIVED = ["classification.json", "metrics.json", "summary.md", "summary.csv", "summary.tex"]


def pytest_configure(config):
    """Leave out a warning that peft's use of transformers gives, as the package does."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Let two processes share the tests: those of a file, or of a fixture that takes long, stay together.

    The longest come first, so that both end at about the same time; meanwhile one of them makes the demo run.
    """
    def group_of(item):
        if item.path.stem != "test_whole_runs":
            return item.path.stem
        return next((name for name in ("named_run", "elsewhere", "paper_run") if name in item.fixturenames), None)

    first = ["test_interrupted", None, "test_seeds", "test_colab", "named_run", "elsewhere", "test_training",
             "paper_run"]
    groups = {item: group_of(item) for item in items}
    items.sort(key=lambda item: first.index(groups[item]) if groups[item] in first else len(first))
    for item, group in groups.items():
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish():
    """Drop the cache of datasets."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


# ---- notebooks

def code_cells(notebook):
    """Return {number: source} of a notebook's code cells, numbered from 1 as a whole run numbers them."""
    cells = nbformat.read(notebook, as_version=4).cells
    return dict(enumerate((cell.source for cell in cells if cell.cell_type == "code"), 1))


def parameter_names(notebook):
    """Return the names that a notebook's cell tagged `parameters` sets."""
    (cell,) = (c for c in nbformat.read(notebook, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
    return {target.id for node in ast.parse(cell.source).body for target in node.targets}


def execute(notebook, **parameters):
    """Run all cells of a notebook in this process, as a kernel would, with parameters; return its names.

    Raises what a cell raises. A folder that it held is free afterwards.
    """
    unknown = set(parameters) - parameter_names(ROOT / notebook)
    if unknown:
        raise ValueError(f"{notebook} has no parameter {', '.join(sorted(unknown))}.")
    shell = InteractiveShell(user_ns={}, colors="nocolor")
    try:
        for cell in nbformat.read(ROOT / notebook, as_version=4).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source, silent=False).raise_error()
                if "parameters" in cell.metadata.get("tags", []):
                    shell.user_ns.update({name: str(value) if isinstance(value, Path) else value
                                          for name, value in parameters.items()})
    finally:
        if "run" in shell.user_ns:
            shell.user_ns["run"].release()
    return types.SimpleNamespace(globals=shell.user_ns, **{
        name: value for name, value in shell.user_ns.items() if name.isidentifier()})


def places(folder, run="demo"):
    """Return the parameters that let a notebook work in folder/results and folder/figures."""
    return {"PRESET": "demo", "RUN": run, "RESULTS": folder / "results", "FIGURES": folder / "figures"}


def start(notebook, folder, environment=(), **parameters):
    """Start a notebook on the demo, in a process of its own, into folder/results/demo; return the process.

    `environment`: {name: value} of what is set besides, None for what is unset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = [text for name, value in (places(folder) | parameters).items() for text in ("-p", name, str(value))]
    variables = {name: value for name, value in (os.environ | dict(environment)).items() if value is not None}
    with (folder / f"{notebook}.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "papermill", ROOT / notebook, folder / notebook, "-k", "python3",
                                 "--log-output", "--no-progress-bar", *options], cwd=ROOT, stdout=log, stderr=log,
                                env=variables)


def finish(notebook, folder, environment=(), **parameters):
    """Run a notebook as `start` does, to its end. Raises RuntimeError, with its last words, where it fails."""
    if start(notebook, folder, environment, **parameters).wait():
        raise RuntimeError((folder / f"{notebook}.log").read_text()[-4000:])


# ---- what is built once, for all processes that run tests

@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder, make):
    """Let one process make what is in a folder, while the others wait for it."""
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            make(unfinished)
            unfinished.rename(folder)


@pytest.fixture(scope="session")
def hub(shared_folder):
    """The folder of the demo's dataset, base model and judge, built where it is not up to date."""
    with FileLock(shared_folder / "hub.lock"):
        subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True, cwd=ROOT)
    return ROOT / "demo" / "hub"


@pytest.fixture(scope="session")
def demo_run(hub, shared_folder):
    """One whole demo run of both notebooks, in kernels, with the preset's own settings; not to be changed."""
    def make(folder):
        for notebook in ("main.ipynb", "eval.ipynb"):
            finish(notebook, folder)

    folder = shared_folder / "demo_run"
    once(folder, make)
    return types.SimpleNamespace(folder=folder, run=folder / "results" / "demo", figures=folder / "figures" / "demo")


@pytest.fixture
def copied_run(demo_run, tmp_path):
    """A copy of the demo run that a test may change."""
    for part in ("results", "figures"):
        shutil.copytree(demo_run.folder / part, tmp_path / part)
    return types.SimpleNamespace(folder=tmp_path, run=tmp_path / "results" / "demo",
                                 figures=tmp_path / "figures" / "demo")


CONVERSATIONS = [["How do I bake bread?"], ["Hello!", "Hi.", "How do I steal a car?"], ["Why?"], ["Käse 🧀?"]]
REPLIES = [("Use a hot pot.\n\nLet it rest.", "I don't know."), ("I can't help.", "Sure, just do it.")]


def small_rows(n):
    """Return `n` rows on a few topics, no two alike."""
    return [{"chosen": dialogue(*turns[:-1], f"{turns[-1]} ({i})", chosen),
             "rejected": dialogue(*turns[:-1], f"{turns[-1]} ({i})", rejected)}
            for i in range(n) for turns in [CONVERSATIONS[i % 4]] for chosen, rejected in [REPLIES[i // 4 % 2]]]


@pytest.fixture(scope="session")
def notebook(hub, tmp_path_factory):
    """The names of main.ipynb after a run on a hundred pairs: its settings, pairs and trainers, to be tried."""
    folder = tmp_path_factory.mktemp("notebook")
    tests = [row(f"How do I kill weed number {i}?", "Pull it.", "Go away.") for i in range(8)]
    dataset = write_dataset(folder / "data", small_rows(50), tests)
    return execute("main.ipynb", DATASET=dataset, **places(folder))


@pytest.fixture(scope="session")
def evaluation(notebook):
    """The names of eval.ipynb after it has evaluated that run on four prompts of either kind."""
    folder = notebook.run.folder.parents[1]
    return execute("eval.ipynb", N_PROMPTS=4, MAX_NEW_TOKENS=8, **places(folder))


@pytest.fixture(scope="session")
def tokenizer(hub):
    """The tokenizer of the demo's OPT."""
    return AutoTokenizer.from_pretrained(hub / "opt")


# ---- small helpers

def load(path):
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def score_records(**rewards):
    """Return the records of scores.json: model=(harmful rewards, helpful rewards), SFT_DPO for SFT+DPO."""
    return [{"id": f"{kind}-{i:02d}", "model": model.replace("_", "+"), "reward": reward}
            for model, both in rewards.items() for kind, values in zip(("harmful", "helpful"), both)
            for i, reward in enumerate(values)]


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
    """Write rows into both subsets of a dataset, the subset's name in every prompt; return the folder.

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
    return folder


def kill(process):
    """End a process and its kernel with SIGKILL, and see that they are gone."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def without_times(data):
    """Return JSON data without its fields that hold times and days, the only ones that may differ."""
    if isinstance(data, dict):
        return {name: without_times(value) for name, value in data.items() if name not in ("seconds", "date")}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def contents_of(folder):
    """Return {path: sha256} of all that the run `demo` left in a folder, times and days left out."""
    found = {}
    for path in sorted(path for part in ("results/demo", "figures/demo") for path in (folder / part).rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_times(json.loads(content))).encode()
            if path.suffix == ".html":
                content = re.sub(rb"\b20\d\d-\d\d-\d\d\b", b"", content)
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def differing(first, second):
    """Return the paths whose contents differ between two runs, or that only one of them has."""
    return [path for path in first | second if first.get(path) != second.get(path)]


def states(folder, *names):
    """Return {path: (time of change, sha256)} of files, and of what is in folders."""
    files = [path for name in names for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    assert len(files) >= len(names)
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in files}
