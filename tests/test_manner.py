"""How the notebooks are written, and whether what is committed with them is what they give."""

import ast
import builtins
import hashlib
import importlib.metadata
import json
import re
import statistics
import symtable
from collections import Counter

import nbformat
import pandas as pd
import pytest
from conftest import DEFINITIONS, MODELS, ROOT, code_cells, definitions, is_constant, load

NOTEBOOKS = ["main.ipynb", "eval.ipynb"]
EXAMPLE = ROOT / "results" / "example"
FIGURES = ROOT / "figures" / "example"
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|tmp|usr|opt|var|mnt|Users)/|[A-Z]:\\\\")
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def cells_of(name):
    """Return all cells of a notebook."""
    return nbformat.read(ROOT / name, as_version=4).cells


def outputs_of(name):
    """Return all outputs of a notebook's code cells."""
    return [output for cell in cells_of(name) if cell.cell_type == "code" for output in cell.outputs]


def shared_sources(name):
    """Return the sources of the cells tagged `shared`, in alphabetical order."""
    return sorted(cell.source for cell in cells_of(name) if "shared" in cell.metadata.get("tags", []))


def defined(source):
    """Return the names that a cell's functions, classes and constants have."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif is_constant(node):
            names.update(target.id for target in node.targets)
    return names


def test_shared_cells_are_the_same():
    """Cells tagged `shared` stand word for word in both notebooks."""
    assert sorted(shared_sources("main.ipynb")) == sorted(shared_sources("eval.ipynb"))
    assert len(shared_sources("main.ipynb")) > 5


def test_what_both_define_is_shared():
    """A function that both notebooks define stands in a shared cell."""
    functions = [{name for source in code_cells(ROOT / notebook).values() for name in defined(source)
                  if not name.isupper()} for notebook in NOTEBOOKS]
    shared = {name for source in shared_sources("main.ipynb") for name in defined(source)}
    assert functions[0] & functions[1] <= shared


@each_notebook
def test_one_definition_a_cell(name):
    """A cell with a function or class holds nothing else."""
    for number, source in code_cells(ROOT / name).items():
        body = ast.parse(source).body
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body):
            assert len(body) == 1, f"{name}, cell {number} holds more than one definition"


@each_notebook
def test_cells_are_short(name):
    """Half of the code cells have at most 10 lines, none more than 40, blank lines not counted."""
    lengths = {number: sum(bool(line.strip()) for line in source.splitlines())
               for number, source in code_cells(ROOT / name).items()}
    assert statistics.median(lengths.values()) <= 10
    assert {number: length for number, length in lengths.items() if length > 40} == {}


@each_notebook
def test_few_lines_are_repeated(name):
    """Of the lines of at least 25 characters, at most one in twenty occurs more than once in a notebook."""
    lines = [line.strip() for source in code_cells(ROOT / name).values() for line in source.splitlines()]
    counts = Counter(line for line in lines if len(line) >= 25)
    repeated = {line: count for line, count in counts.items() if count > 1}
    assert sum(repeated.values()) <= 0.05 * counts.total(), repeated


def globals_used(table):
    """Return the global names that the functions of a symbol table use, nested ones too."""
    names = {symbol.get_name() for symbol in table.get_symbols() if table.get_type() == "function"
             and symbol.is_global() and symbol.is_referenced()}
    return names.union(*(globals_used(child) for child in table.get_children()))


@each_notebook
def test_functions_use_no_globals_of_the_notebook(name):
    """A function uses its arguments, imports, builtins, other functions and UPPER_CASE constants, nothing else."""
    sources = code_cells(ROOT / name)
    allowed = set(dir(builtins)) | {name for source in sources.values() for name in defined(source)}
    for source in sources.values():
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        allowed |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    for number, source in sources.items():
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        for node in functions:
            used = globals_used(symtable.symtable(ast.unparse(node), f"{name}, cell {number}", "exec"))
            assert used <= allowed, f"{name}, cell {number}: {node.name} uses {used - allowed}"


@each_notebook
def test_is_plain_python(name):
    """No cell needs IPython to be parsed: the same source runs as a script."""
    for number, source in code_cells(ROOT / name).items():
        ast.parse(source, f"{name}, cell {number}")
        assert "get_ipython" not in source


@each_notebook
def test_parameters_are_literals_with_a_comment(name):
    """The cell tagged `parameters` holds UPPER_CASE literals, each with a comment, under the names people script."""
    (cell,) = (cell for cell in cells_of(name) if "parameters" in cell.metadata.get("tags", []))
    nodes = ast.parse(cell.source).body
    names = {node.targets[0].id for node in nodes}
    for node in nodes:
        assert is_constant(node)
        ast.literal_eval(node.value)
    own = {"main.ipynb": {"BASE_MODEL", "MAX_PAIRS"},
           "eval.ipynb": {"REWARD_MODEL", "PROTOCOL", "N_PROMPTS", "MAX_NEW_TOKENS"}}[name]
    assert names >= {"PRESET", "RUN", "DATASET", "SEED"} | own
    commented = [line for line in cell.source.splitlines() if "=" in line.split("#")[0] and "#" in line]
    assert len(commented) >= len(names) - 2  # one comment may do for neighbours such as RESULTS and FIGURES


@each_notebook
def test_imports_nothing_of_the_repository(name):
    """A notebook that is uploaded alone runs: what it imports are installed packages and the standard library."""
    for source in code_cells(ROOT / name).values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, DEFINITIONS[:2]):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for module in modules:
                    top = module.split(".")[0]
                    assert not (ROOT / top).exists() and not (ROOT / f"{top}.py").exists(), module


def requirements():
    """Return the lines of requirements.txt that name a package."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_are_exact():
    """Every requirement names one version, and it is the one the tests run with."""
    for line in requirements():
        package, version = line.split("==")
        assert importlib.metadata.version(package).split("+")[0] == version


def test_pins_are_those_of_the_requirements(main):
    """What a notebook installs in Colab has the versions of requirements.txt, and torch and numpy are left alone."""
    assert set(main.PINS) <= set(requirements())
    assert not {pin.split("==")[0] for pin in main.PINS} & {"torch", "numpy"}


def test_a_definition_out_of_reach_is_refused(tmp_path):
    """The tests' own loader raises where a definition stands inside another statement."""
    cell = nbformat.v4.new_code_cell("if True:\n    def hidden():\n        return 1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match=r"a\.ipynb, cell 1, line 2"):
        definitions(tmp_path / "a.ipynb")


@each_notebook
def test_starts_nothing_when_taken_apart(name, tmp_path, monkeypatch):
    """Taking the definitions out of a notebook writes no file and runs no cell."""
    monkeypatch.chdir(tmp_path)
    module = definitions(ROOT / name)
    assert list(tmp_path.iterdir()) == []
    assert not hasattr(module, "settings")


@each_notebook
def test_committed_outputs_are_of_one_whole_run(name):
    """Execution counts run from 1 to N, no cell failed, none is empty, nothing is left of progress bars."""
    cells = [cell for cell in cells_of(name) if cell.cell_type == "code"]
    assert all(cell.source.strip() for cell in cells_of(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > 5
    for output in outputs_of(name):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


@each_notebook
def test_committed_notebook_is_small_and_names_no_machine(name):
    """A notebook stays under 1 MB, and its outputs hold no absolute path."""
    assert (ROOT / name).stat().st_size < 1_000_000
    for output in outputs_of(name):
        texts = [output.get("text", "")]
        texts += [text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
        for text in texts:
            assert not MACHINE_PATH.search(json.dumps(text)), text


@each_notebook
def test_first_cell_says_that_outputs_are_the_demos(name):
    """Nobody may take the committed outputs for OPT-350M's numbers."""
    first = cells_of(name)[0]
    assert first.cell_type == "markdown"
    assert re.search(r"outputs[^.]*\bdemo\b", first.source)


def test_committed_results_name_no_machine():
    """No file of the committed run holds an absolute path of the machine that made it."""
    files = [path for path in EXAMPLE.iterdir() if path.is_file() and path.suffix != ".ipynb"]
    assert len(files) >= 11
    for path in files:
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8")), path.name


def test_committed_run_is_labelled_as_the_demo():
    """The committed run says in its records and in its tables that it is the demo."""
    assert load(EXAMPLE / "run.json")["preset"] == "demo"
    for name in ("summary.md", "summary.csv", "summary.tex"):
        assert "demo" in (EXAMPLE / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("name", "record"), [("main.ipynb", "run.json"), ("eval.ipynb", "metrics.json")])
def test_committed_results_are_of_this_code(name, record, main):
    """The committed results were made by the committed code."""
    assert load(EXAMPLE / record)["code_sha256"] == main.environment(ROOT / name)["code_sha256"]


def test_committed_metrics_follow_from_the_committed_scores(evaluation):
    """The metrics recomputed from scores.json are those of metrics.json."""
    committed, settings = load(EXAMPLE / "metrics.json"), load(EXAMPLE / "metrics.json")["settings"]
    rewards = evaluation.reward_table(load(EXAMPLE / "scores.json"))
    measures = evaluation.measure(rewards, settings)
    rows = evaluation.model_metrics(rewards, measures)
    again = {"models": rows[:4], "references": rows[4:], "comparisons": evaluation.compare(rewards, measures, settings),
             "judge": evaluation.check_judge(rewards)}
    assert [row["model"] for row in again["models"]] == MODELS
    for name, rows in again.items():
        pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(committed[name]), rtol=1e-9, check_dtype=False)


def test_committed_metrics_name_their_sources():
    """metrics.json holds the sha256 of the files it was computed from."""
    hashes = load(EXAMPLE / "metrics.json")["sha256"]
    assert {"prompts.json", "responses.json", "scores.json"} <= set(hashes)
    assert hashes == {name: hashlib.sha256((EXAMPLE / name).read_bytes()).hexdigest() for name in hashes}


@each_notebook
def test_committed_figures_exist(name):
    """Every figure that a notebook saves is committed as PNG and as PDF."""
    names = re.findall(r'figures / "(\w+)"', "\n".join(code_cells(ROOT / name).values()))
    assert names
    for figure in names:
        assert (FIGURES / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (FIGURES / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
