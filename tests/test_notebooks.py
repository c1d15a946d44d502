"""How notebooks and package are written, and whether what is committed with them is what they give."""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import statistics

import nbformat
import pandas as pd
import pytest
from conftest import ADAPTERS, DERIVED, MODELS, RAW, ROOT, code_cells, load

import posttrain
from posttrain import checks, comparisons, stats
from posttrain.ledger import environment

NOTEBOOKS = ["main.ipynb", "eval.ipynb"]
EXAMPLE = ROOT / "results" / "example"
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|tmp|usr|opt|var|mnt|Users)/|[A-Z]:\\\\")
ROOMS = {  # module: what it may import of the package; no arrow points down
    "presets": set(), "files": set(), "hub": set(), "ledger": {"files"}, "runs": {"files", "hub", "ledger"},
    "tokens": set(), "hh": {"tokens"}, "dpo": set(), "models": {"files", "ledger", "runs"},
    "training": {"files", "ledger", "runs", "models"},
    "generation": {"models"}, "judging": {"models"}, "stats": set(), "power": {"stats"},
    "comparisons": {"stats", "power"}, "checks": {"stats", "comparisons"}, "figures": {"stats"},
    "tables": {"stats", "comparisons", "checks"}, "seeds": {"files", "ledger", "stats"},
    "contents": {"files", "ledger", "generation", "stats"},
    "report": {"files", "contents", "judging", "stats", "comparisons", "checks", "figures", "tables"},
    "__main__": {"presets", "checks", "files", "report"}}
# Sentences and names that readers did not understand
STRANGE = ["have something to be compared with", "whoever reads it looks", "are told, not refused",
           "what a stage takes", "What it holds must have been made from the same", "A stage whose outcome is there",
           "leave much open", "made_once", "refuse_other", "room_in", "as_text", "It goes on.", "It never mixes.",
           "colab-badge.svg)](https://colab.research.google.com/)"]
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
each_module = pytest.mark.parametrize("name", ROOMS)


def cells_of(name):
    """Return all cells of a notebook."""
    return nbformat.read(ROOT / name, as_version=4).cells


def outputs_of(name):
    """Return all outputs of a notebook's code cells."""
    return [output for cell in cells_of(name) if cell.cell_type == "code" for output in cell.outputs]


def count_lines(source):
    """Return how many lines hold code: not blank, no comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


# ---- the package

def imported(source):
    """Return the modules of the package that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "posttrain":
            rest = node.module.removeprefix("posttrain").lstrip(".")
            found |= {rest.split(".")[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("posttrain.")}
    return found - {"MODELS"}


def test_every_module_is_a_room():
    """And every room a module."""
    assert {path.stem for path in (ROOT / "posttrain").glob("*.py")} == {*ROOMS, "__init__"}


@each_module
def test_arrows_point_up(name):
    """A module imports only what its room may, so that there is no cycle; none is long."""
    source = (ROOT / "posttrain" / f"{name}.py").read_text(encoding="utf-8")
    assert imported(source) <= ROOMS[name]
    assert list(ROOMS).index(name) > max((list(ROOMS).index(other) for other in ROOMS[name]), default=-1)
    assert count_lines(source) <= 260


@each_module
def test_public_functions_are_typed_and_documented(name):
    """Every public function and method of a module has types for all that it takes and returns, and a docstring."""
    if name == "__main__":
        return
    module = importlib.import_module(f"posttrain.{name}")
    assert module.__doc__
    for one in vars(module).values():
        if getattr(one, "__module__", None) != module.__name__ or one.__name__.startswith("_"):
            continue
        functions = [one] if inspect.isfunction(inspect.unwrap(one)) else [
            method for key, method in vars(one).items() if inspect.isfunction(method) and not key.startswith("_")
            and not key.startswith("on_")]  # callbacks have the trainer's own arguments
        for function in map(inspect.unwrap, functions):
            assert function.__doc__, function
            parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
            untyped = [p.name for p in parameters if p.annotation is p.empty]
            assert untyped == [] and function.__annotations__.get("return", "no") != "no", (function, untyped)


def test_package_knows_no_stand_ins():
    """A dataset, a base and a judge are names or folders: only the presets name the demo's."""
    for path in (ROOT / "posttrain").glob("*.py"):
        if path.stem not in ("presets", "hub", "runs", "__main__"):  # two messages name the demo
            assert "demo" not in re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL), path.name


# ---- the notebooks

@each_notebook
def test_cells_are_short(name):
    """Half of the code cells have at most eight lines, none more than 25; together what a reader can read."""
    sources = [cell.source for cell in cells_of(name) if cell.cell_type == "code"
               and "parameters" not in cell.metadata.get("tags", [])]
    lengths = [count_lines(source) for source in sources]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 25
    assert sum(lengths) <= {"main.ipynb": 160, "eval.ipynb": 200}[name]


def test_no_cell_stands_in_both():
    """But imports, word for word."""
    both = set(code_cells(ROOT / "main.ipynb").values()) & set(code_cells(ROOT / "eval.ipynb").values())
    assert all(source.startswith(("import", "from", "try:\n    import")) for source in both)


def number_of(name, text):
    """Return the number of the first code cell that holds a text."""
    return next(number for number, source in code_cells(ROOT / name).items() if text in source)


def test_story_comes_early():
    """Data within the first ten code cells, training within the next ten, responses shown where they are made."""
    assert number_of("main.ipynb", "hh.load_pairs") <= 10
    assert number_of("main.ipynb", 'training.once(run, "SFT"') <= 20
    made = number_of("eval.ipynb", 'run.once_each("responses.json"')
    assert number_of("eval.ipynb", "side_by_side") == made + 1


@pytest.mark.parametrize(("name", "texts"), [
    ("main.ipynb", ["SFTConfig(", "SFTTrainer(", "DPOConfig(", "PairTrainer(", "LoraConfig(", "beta=s.beta",
                    "do_sample=False"]),
    ("eval.ipynb", ["do_sample=False", "max_new_tokens=s.max_new_tokens", 'truncation="only_first"',
                    "harmless = rewards.loc[\"harmful\"] >= s.harmless_from", "CAS = (HmR + HpR) / 2"])])
def test_what_a_paper_would_describe_stands_in_the_notebook(name, texts):
    """Literally: trainers, decoding, the judge's input, the metrics."""
    sources = "\n".join(code_cells(ROOT / name).values())
    assert [text for text in texts if text not in sources] == []


@each_notebook
def test_is_plain_python(name):
    """No cell needs IPython to be parsed."""
    for number, source in code_cells(ROOT / name).items():
        ast.parse(source, f"{name}, cell {number}")


@each_notebook
def test_parameters_are_literals_with_a_comment(name):
    """The cell tagged `parameters` holds UPPER_CASE literals, each with a comment, under the names people script."""
    (cell,) = (cell for cell in cells_of(name) if "parameters" in cell.metadata.get("tags", []))
    nodes = ast.parse(cell.source).body
    names = {node.targets[0].id for node in nodes}
    for node in nodes:
        assert node.targets[0].id.isupper()
        ast.literal_eval(node.value)
    own = {"main.ipynb": {"BASE_MODEL", "MAX_PAIRS", "REPORT_TO"},
           "eval.ipynb": {"BASE_MODEL", "REWARD_MODEL", "HARMLESS_FROM", "HELPFUL_ABOVE", "PROTOCOL", "N_PROMPTS",
                          "MAX_NEW_TOKENS", "SEED_RUNS"}}
    assert names == {"PRESET", "RUN", "DATASET", "SEED", "SETTINGS", "FRESH", "RESULTS", "FIGURES", "LABEL"} | own[name]
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("path", [*NOTEBOOKS, "README.md", *sorted(
    path.relative_to(ROOT).as_posix() for folder in ("posttrain", "docs") for path in (ROOT / folder).glob("*.*")
    if path.suffix != ".png")])
def test_strange_words_are_gone(path):
    """Sentences and names that readers did not understand, and a badge that leads to Colab's front page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert [words for words in STRANGE if words in text] == []


# ---- what is pinned

def requirements(name="requirements.txt"):
    """Return {package: version} of a file of requirements."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line.strip() and not line.startswith(("#", "-r")))


def test_requirements_are_exact():
    """Every requirement names one version, and it is the one the tests run with."""
    for package, pinned in (requirements() | requirements("requirements-dev.txt")).items():
        assert importlib.metadata.version(package).split("+")[0] == pinned, package


def test_what_the_package_imports_is_required():
    """Every package that is imported by name is in requirements.txt."""
    known = {"sklearn": "scikit-learn", "google": "protobuf", "IPython": "jupyter"}
    names = set()
    for path in [*(ROOT / "posttrain").glob("[!_]*.py"), ROOT / "posttrain" / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            names |= {module.split(".")[0] for module in modules}
    outside = {name for name in names if name not in importlib.sys.stdlib_module_names and name != "posttrain"}
    assert {known.get(name, name) for name in outside} <= set(requirements())


# ---- what is committed

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


def test_committed_results_name_no_machine_and_are_the_demos():
    """No file of the committed run holds an absolute path, and its records and tables say that it is the demo."""
    files = [path for path in EXAMPLE.glob("[!.]*") if path.is_file()]
    assert {path.name for path in files} == {"run.json", "training.json", "report.html", *RAW, *DERIVED}
    for path in files:
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8")), path.name
    assert load(EXAMPLE / "run.json")["preset"] == "demo"
    for name in ("summary.md", "summary.csv", "summary.tex"):
        assert "demo" in (EXAMPLE / name).read_text(encoding="utf-8"), name


def test_committed_results_are_of_this_code():
    """What was made of the committed run was made by the committed code, and none of it with other versions."""
    record, now = load(EXAMPLE / "run.json"), environment()
    assert list(record["artifacts"]) == [*ADAPTERS, *RAW]
    for made in [*record["artifacts"].values(), load(EXAMPLE / "metrics.json")]:
        assert made["environment"]["code_sha256"] == now["code_sha256"]
        assert made["environment"]["packages"] == now["packages"]
    assert load(EXAMPLE / "metrics.json")["warnings"] == []


@pytest.mark.parametrize("run", ["example", "published"])
def test_committed_metrics_follow_from_the_committed_scores(run):
    """The metrics recomputed from scores.json are those of metrics.json, which names the files it rests on."""
    folder = ROOT / "results" / run
    committed = load(folder / "metrics.json")
    rewards = stats.reward_table(load(folder / "scores.json"))
    harmless = rewards.loc["harmful"] >= committed["thresholds"]["harmless"]
    helpful = rewards.loc["helpful"] > committed["thresholds"]["helpful"]
    rows = stats.model_records(rewards, harmless, helpful, **committed["bootstrap"])
    again = {"models": rows[:4], "references": rows[4:], "judge": checks.check_judge(rewards),
             "comparisons": comparisons.compare(rewards, harmless, helpful, **committed["bootstrap"])}
    assert [row["model"] for row in again["models"]] == MODELS == list(posttrain.MODELS)
    for name, rows in again.items():
        pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(committed[name]), rtol=1e-9, check_dtype=False)
    hashes = committed["sha256"]
    assert set(hashes) == {name for name in RAW if (folder / name).exists()}
    assert hashes == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in hashes}


@each_notebook
def test_committed_figures_exist(name):
    """Every figure that a notebook shows is committed as PNG and as PDF."""
    names = set(re.findall(r'run\.show\("(\w+)"', "\n".join(code_cells(ROOT / name).values())))
    names.discard("seeds")  # of several runs
    assert names
    for figure in names:
        assert (ROOT / "figures" / "example" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "figures" / "example" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


# ---- what the documents say

@pytest.fixture(scope="module")
def builder():
    """docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_say_what_the_files_say(builder):
    """What docs/build.py writes is what the committed records and benchmarks give, README's tables too."""
    for name, page in builder.PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), "run python -m docs.build"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert builder.readme(text) == text, "run python -m docs.build"
    assert text.count("written by docs/build.py") == len(builder.IN_README)


def test_every_claim_is_judged(builder):
    """All of the study's claims, four of them in README in the same words."""
    claims = load(ROOT / "results" / "published" / "claims.json")
    rows = builder.rows()
    assert list(rows) == [claim["claim"] for claim in claims] == list(builder.STATEMENTS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(builder.TOLD_IN_README) == 4
    for claim in builder.TOLD_IN_README:
        assert builder.short_row(claim) in readme


@pytest.mark.parametrize(("numbers", "of_all", "verdict"), [
    ([(1, True), (2, True)], False, "supported"), ([(1, True), (2, False)], False, "open"),
    ([(1, True), (-2, True)], False, "contradicted"), ([(1, True), (-2, False)], False, "open"),
    ([(1, True), (-2, False)], True, "contradicted"), ([(0, False)], True, "open")])
def test_how_a_claim_is_judged(builder, numbers, of_all, verdict):
    """Supported: all decided its way. Contradicted: one decided the other way, or printed so where it speaks of all."""
    statements = [("HmR", str(i), "x") for i in range(len(numbers))]
    known = {one: (value, 0, 0, decided) for one, (value, decided) in zip(statements, numbers)}
    assert builder.verdict(statements, of_all, known) == verdict


def test_what_the_published_rewards_can_show():
    """No pair of models differs in HmR; the gains in HpR over Base are real; SFT+DPO is not told from SFT in CAS."""
    metrics = load(ROOT / "results" / "published" / "metrics.json")
    assert metrics["headlines"][1:3] == [
        "HpR: 3 of 6 pairs are decided, namely SFT above Base, DPO above Base, SFT+DPO above Base.",
        "CAS: 2 of 6 pairs are decided, namely SFT above Base, SFT+DPO above Base."]
    assert metrics["headlines"][0].startswith("HmR: no difference is decided.")
    rows = metrics["comparisons"]
    p = {(r["measure"], r["first"], r["second"]): r["p"] for r in rows}
    assert min(value for (measure, _, _), value in p.items() if measure == "HmR") == pytest.approx(0.21, abs=0.005)
    assert [p["HpR", "Base", model] < 0.0025 for model in MODELS[1:]] == [True] * 3
    (cas,) = (r for r in rows if (r["measure"], r["first"], r["second"]) == ("CAS", "SFT", "SFT+DPO"))
    assert (cas["difference"], cas["low"], cas["high"]) == pytest.approx((3, -7, 13), abs=1)


@pytest.mark.parametrize(("name", "document"), [("seeds", "demo"), ("prompts", "demo"), ("coverage", "statistics"),
                                                 ("report", "report"), ("speed", "speed")])
def test_documents_hold_the_benchmarks_tables(name, document):
    """What the scripts of benchmarks/ wrote, as it is."""
    table = (ROOT / "benchmarks" / f"{name}.md").read_text(encoding="utf-8").strip()
    assert table in (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(path):
    """Every relative link and picture of a document is there."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or ((ROOT / path).parent / target).exists(), target


def test_study_is_cited():
    """CITATION.cff can be read and names the study and its author."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert all(words in text for words in ("cff-version: 1.2.0", "2509.09055", "Pant"))
