"""What the tests share: a demo run, running notebooks in this process, small datasets."""

import os
import tempfile

# The tests need neither an accelerator nor a network, and leave nothing behind in the user's cache
# of datasets. They run two at a time, so each takes one thread. All of it must be settled before
# the libraries are imported.
os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="datasets-"),
    TOKENIZERS_PARALLELISM="false",
    TQDM_DISABLE="1",
    OMP_NUM_THREADS="1",
)

import gc
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

# Nothing heavy is imported at the top, so that pytest-xdist starts its processes at once.

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)  # where the notebooks run
HUB = ROOT / "demo" / "hub"
DATA = ROOT.parent / "shared" / "data"  # real text and published numbers, not of the repository
MODELS = ["Base", "SFT", "DPO", "SFT+DPO"]
ADAPTERS = ["adapters/sft", "adapters/dpo", "adapters/sft_dpo"]
RAW = ["prompts.json", "responses.json", "scores.json"]
DERIVED = ["classification.json", "metrics.json", "summary.md", "summary.csv", "summary.tex"]


def pytest_configure(config):
    """Ignore a warning that peft causes in transformers, as the package does; keep the order."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")
    # pytest-xdist would begin with the files that have the most tests, which are not the longest.
    config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep the tests of a file together, since they share fixtures; start with the longest.

    The demo run is made for the first of them. It is there when later files ask for it.
    """
    longest = [
        "test_whole_run", "test_training", "test_notebooks", "test_losses", "test_dialogue",
        "test_page", "test_comparisons", "test_run", "test_description", "test_main",
        "test_cards", "test_processes", "test_figures", "test_converting", "test_pushing",
        "test_generation", "test_colab", "test_same_model", "test_spreads", "test_compare",
    ]  # fmt: skip
    order = {name: place for place, name in enumerate(longest)}
    items.sort(key=lambda item: order.get(item.path.stem, len(longest)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_frozen():
    """Leave out of collections of garbage what was there before a file's first test.

    The package collects garbage often, and to look for it among all modules takes half a second.
    """
    gc.collect()  # what is garbage now would be kept for ever
    gc.freeze()


def pytest_sessionfinish():
    """Remove the cache of datasets."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


# ---- notebooks


def read_notebook(name):
    """Read a notebook of the repository, or one given by its path."""
    import nbformat

    return nbformat.read(ROOT / name, as_version=4)


def code_cells(name):
    """List the sources of a notebook's code cells."""
    return [cell.source for cell in read_notebook(name).cells if cell.cell_type == "code"]


def is_parameters(cell):
    """Tell whether a cell is the one whose values a run may replace."""
    return "parameters" in cell.metadata.get("tags", [])


class Session:
    """A notebook executed in this process, with its names, whose cells can be run again."""

    def __init__(self, name, **parameters):
        self.cells = [cell for cell in read_notebook(name).cells if cell.cell_type == "code"]
        self.parameters = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in parameters.items()
        }
        from IPython.core.interactiveshell import InteractiveShell

        self.shell = InteractiveShell(user_ns={}, colors="nocolor")

    @property
    def names(self):
        """The notebook's names."""
        return types.SimpleNamespace(
            **{name: value for name, value in self.shell.user_ns.items() if name.isidentifier()}
        )

    def run(self, cell):
        """Run a cell of the notebook, or a source; raise what it raises."""
        source = cell if isinstance(cell, str) else cell.source
        self.shell.run_cell(source, silent=False).raise_error()
        if not isinstance(cell, str) and is_parameters(cell):
            self.shell.user_ns.update(self.parameters)

    def run_all(self):
        """Run all cells from top to bottom."""
        for cell in self.cells:
            self.run(cell)
        return self

    def find(self, text):
        """Find the only code cell whose source contains a text."""
        (cell,) = [cell for cell in self.cells if text in cell.source]
        return cell


def execute(name, **parameters):
    """Run all cells of a notebook with parameters and return its names; raise a cell's error."""
    return Session(name, **parameters).run_all().names


def places(folder, run="demo"):
    """Build the parameters that let a notebook work in folder/results and folder/figures."""
    return {
        "PRESET": "demo",
        "RUN": run,
        "RESULTS": folder / "results",
        "FIGURES": folder / "figures",
    }


def command(*arguments, **options):
    """Run the command line in a process of its own, and return the completed process."""
    return subprocess.run(
        [sys.executable, "-m", "posttrain", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


# ---- what is built once, for all processes that run tests


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder, make):
    """Let one process make the content of a folder, while the others wait for it."""
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            make(unfinished)
            unfinished.rename(folder)


@pytest.fixture(scope="session")
def hub():
    """The folder of the demo's dataset, base model and judge."""
    return HUB


@pytest.fixture(scope="session")
def demo_run(shared_folder):
    """A complete demo run of the command line with the preset's settings. Do not change it."""

    def make(folder):
        folder.mkdir()
        given = [f"RESULTS={folder / 'results'}", f"FIGURES={folder / 'figures'}"]
        done = command("run", "PRESET=demo", *given)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
        (folder / "output.txt").write_text(done.stdout)

    folder = shared_folder / "demo_run"
    once(folder, make)
    return _run_in(folder)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for all tests of this file."""
    from playwright.sync_api import sync_playwright

    from benchmarks.report import OPTIONS, chromium

    if not chromium():
        pytest.skip("no Chromium here: `make browser` installs Debian's")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def copied_run(demo_run, tmp_path):
    """A copy of the demo run that a test may change."""
    for part in ("results", "figures"):
        shutil.copytree(demo_run.folder / part, tmp_path / part)
    return _run_in(tmp_path)


def _run_in(folder):
    """Name the places of the run `demo` in a folder."""
    return types.SimpleNamespace(
        folder=folder,
        run=folder / "results" / "demo",
        figures=folder / "figures" / "demo",
    )


CONVERSATIONS = [
    ["How do I bake bread?"],
    ["Hello!", "Hi.", "How do I steal a car?"],
    ["Why?"],
    ["Käse 🧀?"],
]
REPLIES = [
    ("Use a hot pot.\n\nLet it rest.", "I don't know."),
    ("I can't help.", "Sure, just do it."),
]


def small_rows(n):
    """Make rows on a few topics, all of them different."""
    rows = []
    for i in range(n):
        turns = CONVERSATIONS[i % 4]
        chosen, rejected = REPLIES[i // 4 % 2]
        asked = [*turns[:-1], f"{turns[-1]} ({i})"]
        rows.append({"chosen": dialogue(*asked, chosen), "rejected": dialogue(*asked, rejected)})
    return rows


def small_dataset(folder, pairs=50):
    """Write a small dataset of rows on a few topics, with test prompts of both kinds."""
    tests = [row(f"How do I kill weed number {i}?", "Pull it.", "Go away.") for i in range(8)]
    return write_dataset(folder, small_rows(pairs), tests)


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of the demo's OPT."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(HUB / "opt")


# ---- small helpers


def load(path):
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def score_records(**rewards):
    """Make records of scores.json: model=(harmful, helpful rewards), SFT_DPO for SFT+DPO."""
    return [
        {"id": f"{kind}-{i:02d}", "model": model.replace("_", "+"), "reward": reward}
        for model, both in rewards.items()
        for kind, values in zip(("harmful", "helpful"), both)
        for i, reward in enumerate(values)
    ]


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
    """Write rows into both subsets of a dataset, each prompt named after its subset.

    `train` and `test` hold rows, or {subset: rows} as they are.
    """
    for subset in ("harmless-base", "helpful-base"):
        for split, rows in (("train", train), ("test", test or [row("A test question?")])):
            if not isinstance(rows, dict):
                tag = f"\n\nHuman: [{subset}] "
                mine = [
                    {side: text.replace("\n\nHuman: ", tag, 1) for side, text in one.items()}
                    for one in rows
                ]
            else:
                mine = rows[subset]
            write_rows(folder, subset, split, mine)
    return folder


def kill(process):
    """End a process and its kernel with SIGKILL, and check that they have ended."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def without_times(data):
    """Remove the fields of JSON data with times and dates, the only ones that may differ."""
    if isinstance(data, dict):
        return {
            name: without_times(value)
            for name, value in data.items()
            if name not in ("seconds", "date")
        }
    return [without_times(value) for value in data] if isinstance(data, list) else data


def contents_of(folder):
    """Compute {path: sha256} of all files of the run `demo`, without times and dates."""
    found = {}
    for path in sorted(
        path for part in ("results/demo", "figures/demo") for path in (folder / part).rglob("*")
    ):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_times(json.loads(content))).encode()
            if path.suffix == ".html":
                content = re.sub(rb"\b20\d\d-\d\d-\d\d\b", b"", content)
            if path.name == "README.md":  # a card names the folder that its model is loaded from
                content = re.sub(rb'"[^"]*(results/demo/adapters)', rb'"\1', content)
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def differing(first, second):
    """Return the paths whose contents differ between two runs, or that only one of them has."""
    return [path for path in first | second if first.get(path) != second.get(path)]


def states(folder, *names):
    """Return {path: (time of change, sha256)} of files, and of what is in folders."""
    files = [
        path
        for name in names
        for path in [folder / name, *(folder / name).rglob("*")]
        if path.is_file() and path.name != "README.md"  # a card is written anew
    ]
    assert len(files) >= len(names)
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in files
    }
