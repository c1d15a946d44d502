"""The package's modules: what each may import, how long it is, and how it is written."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

PACKAGE = ROOT / "posttrain"
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
LONGEST = 250  # lines of code, without docstrings, comments and blanks
# What the command line and the record stand on must be there at once.
LIGHT = ("files", "record", "run", "settings", "data", "parameters", "preparation", "__main__")
HEAVY = ("torch", "transformers", "matplotlib", "IPython", "papermill", "datasets", "peft")


def imports_of(name, everywhere=True):
    """List the names that a module imports, at its top only or within functions too."""
    nodes = ast.walk(TREES[name]) if everywhere else TREES[name].body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.startswith("posttrain"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def rooms_in(imported):
    """Select the package's modules from imported names."""
    names = {name.removeprefix("posttrain.") for name in imported if name.startswith("posttrain.")}
    return {name for name in names if name in MODULES} | {
        f"{name}.__init__" for name in names if f"{name}.__init__" in MODULES
    }


def lines_of_code(name):
    """Count a module's lines without docstrings, comments and blanks."""
    lines = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.stmt) and not _is_docstring(node):
            last = node.end_lineno
            if isinstance(node, ast.If | ast.For | ast.With | ast.FunctionDef | ast.ClassDef):
                last = node.body[0].lineno - 1
            elif isinstance(node, ast.Try):
                last = node.lineno
            lines |= set(range(node.lineno, last + 1))
    text = MODULES[name].read_text(encoding="utf-8").split("\n")
    code = [i for i in lines if text[i - 1].strip() and not text[i - 1].strip().startswith("#")]
    return len(code)


def _is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_no_room_stands_on_itself():
    graph = {name: rooms_in(imports_of(name)) - {name} for name in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", MODULES)
def test_no_room_is_too_long(name):
    assert lines_of_code(name) <= LONGEST


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("files", "record"),
        ("record", "run"),
        ("run", "training"),
        ("metrics", "comparisons"),
        ("comparisons", "behaviour"),
        ("behaviour", "diagnostics"),
        ("metrics", "figures"),
        ("models", "generation"),
        ("models", "training"),
    ],
)
def test_arrows_point_to_what_is_more_basic(lower, higher):
    assert higher not in rooms_in(imports_of(lower))


@pytest.mark.parametrize("name", LIGHT)
def test_light_rooms_import_nothing_heavy_at_the_top(name):
    reached, waiting = set(), [name]
    while waiting:
        room = waiting.pop()
        if room in reached:
            continue
        reached.add(room)
        for imported in imports_of(room, everywhere=False):
            assert imported.split(".")[0] not in HEAVY
        waiting += rooms_in(imports_of(room, everywhere=False))


def test_the_record_is_read_without_anything_heavy():
    code = (
        "import sys, posttrain.run, posttrain.__main__; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- the manner


def all_nodes(kind):
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{name}:{node.lineno}", node


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def test_no_loop_goes_over_a_set():
    # The order of a set of texts differs from process to process.
    for place, node in all_nodes(ast.For):
        assert not _is_set(node.iter), place
    for place, node in all_nodes(COMPREHENSIONS):
        for generator in node.generators:
            assert not _is_set(generator.iter), place


def _is_set(node):
    is_call = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("set", "frozenset")
    is_union = isinstance(node, ast.BinOp) and "set(" in ast.unparse(node)
    return is_call or is_union or isinstance(node, ast.Set | ast.SetComp)


def test_a_comprehension_has_one_for_and_at_most_one_if():
    for place, node in all_nodes(COMPREHENSIONS):
        assert len(node.generators) == 1, place
        assert len(node.generators[0].ifs) <= 1, place


def test_no_comprehension_stands_in_another():
    for place, node in all_nodes(COMPREHENSIONS):
        inner = [n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS) and n is not node]
        assert not inner, place


def test_no_arithmetic_on_truth_values():
    for place, node in all_nodes(ast.BinOp):
        if isinstance(node.op, ast.Mult):
            assert not isinstance(node.left, ast.Compare), place
            assert not isinstance(node.right, ast.Compare), place


def test_nothing_is_passed_over_in_silence():
    for place, node in all_nodes(ast.ExceptHandler):
        assert not all(isinstance(step, ast.Pass) for step in node.body), place


def test_public_functions_are_typed_and_described():
    for place, node in all_nodes(ast.FunctionDef):
        is_callback = place.startswith(("callbacks", "checkpoints")) and node.name.startswith("on_")
        if node.name.startswith("_") or is_callback:
            continue
        arguments = [*node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            assert argument.annotation or argument.arg in ("self", "cls"), f"{place} {argument.arg}"
        assert node.returns is not None, f"{place} {node.name}"


def test_no_two_public_functions_share_a_name():
    names = Counter()
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names[node.name] += 1
    doubled = [name for name, count in names.items() if count > 1]
    # A figure or table of something is called as what it shows.
    assert set(doubled) <= {"behaviour", "running_on", "settings", "training"}


def test_models_are_data():
    for name, path in MODULES.items():
        assert "SFT+DPO" not in _code_without_docstrings(path), name


def _code_without_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if hasattr(node, "body") and isinstance(node.body, list):
            node.body = [step for step in node.body if not _is_docstring(step)] or [ast.Pass()]
    return ast.unparse(tree)
