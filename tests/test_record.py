"""run.json: what it may contain, how inputs are compared, and how code is recognised."""

import json
import linecache
import subprocess
import sys
from functools import cached_property, partial

import pytest
from conftest import ROOT

from posttrain import record
from posttrain.record import (
    Model,
    Record,
    as_json,
    environment,
    list_changes,
    list_differences,
    read_record,
    slug,
    source_of,
)

OUTSIDE = [
    "../../elsewhere", "../sft", "adapters/../../sft", "/etc", "/", "..", "adapters/../..",
    "./../x", "a/b/c", "~/x", "C:\\models", "//server/share", "\x00", "models/../../../opt",
    "file:///etc", "https://example.org/x", "models/", "models/a/b", "",
]  # fmt: skip


def write_record(folder, **fields):
    """Write any content as the run.json of a folder."""
    path = folder / "run.json"
    path.write_text(json.dumps({"run": "demo", **fields}))
    return path


# ---- reading


def test_a_record_comes_back_as_it_was(tmp_path):
    model = Model(name="SFT", base="demo/hub/opt", adapter="adapters/sft", parent=None)
    sources = {"base_model": {"name": "demo/hub/opt", "commit": None, "sha256": "x"}}
    before = Record(run="a b", preset="demo", models=[model], sources=sources)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(before.model_dump()))
    assert read_record(path) == before


DAMAGED_MODELS = [
    3, {}, {"name": "Base"}, {"name": "Base", "base": "x"},
    {"name": "Base", "base": "x", "adapter": 5}, {"name": "Base", "base": 3, "adapter": None},
    {"name": ["Base"], "base": "x", "adapter": None},
    {"name": "../x", "base": "x", "adapter": "adapters/../x"},
]  # fmt: skip
DAMAGED_SOURCES = [3, {}, {"name": "x"}, {"name": None, "commit": None, "sha256": None}]


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "null", "[]", "{}", '{"run": 5}', '{"run": "demo", "settings": 3}', "[" * 10_000,
        '{"run": "demo", "artifacts": {"prompts.json": {}}}', '{"run": "demo", "artifacts": [1]}',
        '{"run": "demo", "artifacts": {"prompts.json": 7}}', '{"run": "demo", "surprise": 1}',
        *(json.dumps({"run": "demo", "models": [row]}) for row in DAMAGED_MODELS),
        *(json.dumps({"run": "demo", "sources": {"dataset": row}}) for row in DAMAGED_SOURCES),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, damage):
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("field", ["base", "adapter"])
def test_a_path_out_of_the_run_is_refused(tmp_path, field, place):
    """Only the run's base, which its settings name, may be elsewhere."""
    base = {"name": "Base", "base": "facebook/opt-350m", "adapter": None}
    row = {"name": "SFT", "base": "facebook/opt-350m", "adapter": "adapters/sft"} | {field: place}
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*SFT"):
        read_record(write_record(tmp_path, models=[base, row]))


def test_models_may_stand_on_the_base_or_on_a_model_of_the_run(tmp_path):
    rows = [
        {"name": "Start", "base": "../opt", "adapter": None, "parent": None},
        {"name": "SFT", "base": "models/sft", "adapter": None, "parent": None},
        {"name": "SFT+DPO", "base": "models/sft", "adapter": "adapters/sft_dpo", "parent": "SFT"},
        {"name": "DPO", "base": "../opt", "adapter": "adapters/dpo", "parent": None},
    ]
    models = read_record(write_record(tmp_path, models=rows)).models
    assert [model.name for model in models] == ["Start", "SFT", "SFT+DPO", "DPO"]


def test_imported_models_may_have_names_that_no_file_could_have(tmp_path):
    rows = [{"name": name, "base": "x", "adapter": None} for name in ("Base", "org/model", "模型")]
    record = read_record(write_record(tmp_path, models=rows, imported={"from": "theirs"}))
    assert [model.name for model in record.models] == ["Base", "org/model", "模型"]


def test_an_earlier_versions_record_gets_one_clear_sentence(tmp_path):
    artifact = {"made_from": {}, "sha256": "x", "seconds": 1, "environment": {}}
    path = write_record(tmp_path, artifacts={"prompts.json": artifact})
    with pytest.raises(ValueError, match="earlier version of this repository") as refusal:
        read_record(path)
    message = str(refusal.value)
    assert message.startswith(str(path))
    for way_out in ("another RUN", "FRESH = True", "check out the version that made it"):
        assert way_out in message
    assert len(message) < len(str(path)) + 250


# ---- names of models


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SFT+DPO", "sft_dpo"), ("Base", "base"), ("SFT  (2 epochs)", "sft_2_epochs"),
        ("+SFT+", "sft"), ("Käse 7", "k_se_7"), ("β=0.1", "0_1"), ("<b>x", "b_x"),
        ("a.json", "a_json"), ("$x^2$", "x_2"), ("..a", "a"),
    ],
)  # fmt: skip
def test_a_models_files_have_its_name_in_small_letters(name, text):
    assert slug(name) == text


@pytest.mark.parametrize(
    "name",
    ["", " ", "+", "..", "../x", "a/b", "a\\b", "a\nb", "a\x00b", " a", "a ", "模型", "a\n", "\ta"],
)
def test_a_name_that_no_file_or_table_could_carry_is_refused(name):
    with pytest.raises(ValueError, match="cannot be a model's name: a name needs letters"):
        slug(name)


# ---- inputs


def test_equal_inputs_do_not_differ():
    inputs = {"a": None, "b": [1, 2], "c": {"d": 0.1}, "e": "ä"}
    assert list_differences(as_json(inputs), as_json(inputs)) == []
    assert as_json({"layers": ("a", "b")}) == {"layers": ["a", "b"]}


@pytest.mark.parametrize(
    ("then", "now", "difference"),
    [
        ({"seed": 0}, {"seed": 1}, ("seed", 0, 1)),
        ({"n": None}, {"n": 50}, ("n", None, 50)),
        ({"n": 50}, {"n": None}, ("n", 50, None)),
        ({}, {"seed": None}, ("seed", "(absent)", None)),
        ({"seed": 5}, {}, ("seed", 5, "(absent)")),
        ({"a": [1]}, {"a": [1, 2]}, ("a", [1], [1, 2])),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ("a.b.c", 1, 2)),
        ({"a": {"b": 1}}, {"a": {}}, ("a.b", 1, "(absent)")),
        ({"a": {"b": 1}}, {"a": None}, ("a", {"b": 1}, None)),
        ({"arguments": {"beta": 1}}, {"arguments": {"beta": 2}}, ("beta", 1, 2)),
        ({"arguments": {"a": {"b": 1}}}, {"arguments": {"a": {"b": 2}}}, ("a.b", 1, 2)),
        ({"model_config": {"a": 8}}, {"model_config": None}, ("model_config", {"a": 8}, None)),
        ({"model_config": {"dropout": 0}}, {}, ("model_config", {"dropout": 0}, "(absent)")),
    ],
)  # fmt: skip
def test_a_difference_has_its_name_and_both_values(then, now, difference):
    assert [tuple(item) for item in list_differences(then, now)] == [difference]


@pytest.mark.parametrize("table", record.OF_LIBRARIES)
def test_an_argument_that_one_version_alone_knows_is_passed_over(table):
    then = {table: {"known": 1, "old": 2, "nested": {"a": 1, "old": 3}}, "dataset": "x"}
    now = {table: {"known": 1, "new": 2, "nested": {"a": 1, "new": 3}}, "dataset": "x"}
    assert list_differences(then, now) == []
    now[table]["nested"]["a"] = 2
    assert [item.name for item in list_differences(then, now)] == ["nested.a"]


def test_all_differences_are_listed_in_the_order_of_their_names():
    differences = list_differences({"b": 1, "a": 1, "c": 1}, {"b": 2, "a": 2, "c": 1})
    assert [item.name for item in differences] == ["a", "b"]


# ---- code


def define(text, name="f"):
    """Define something as a notebook does, where Python finds the cells through `linecache`."""
    file = f"<cell {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"__name__": "__main__", "cached_property": cached_property}
    exec(compile(text, file, "exec"), names)
    return names[name]


def test_comments_and_layout_are_no_change():
    first = define("def f(a, b):\n    # why\n    return a + b  # the sum\n")
    second = define("\n\ndef f(\n    a,\n    b,\n):\n    return (a +\n            b)\n")
    assert source_of(first) == source_of(second)


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, b):\n    return a - b\n",
        "def f(a, b=1):\n    return a + b\n",
        "def f(b, a):\n    return a + b\n",
        "def f(a, b):\n    if a:\n        return a + b\n",
        "def f(a, b):\n    return a + b + 0\n",
    ],
)
def test_a_changed_body_is_a_change(text):
    assert source_of(define(text)) != source_of(define("def f(a, b):\n    return a + b\n"))


def test_a_function_that_stands_within_another_can_be_read():
    def inner(a):
        return a + 1

    assert source_of(inner) == "def inner(a):\n    return a + 1"


CLASS = """
class f:
    rate = 0.1
    layers = ["q_proj"]
    label = None

    def __init__(self):
        self.x = 1

    def method(self):
        return 1

    @staticmethod
    def static():
        return 2

    @classmethod
    def of_class(cls):
        return 3

    @property
    def held(self):
        return 4

    @held.setter
    def held(self, value):
        self.x = 5

    @cached_property
    def kept(self):
        return 6

    class Inner:
        beta = 0.5

        def method(self):
            return 7
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return 1", "return 10"), ("return 2", "return 10"), ("return 3", "return 10"),
        ("return 4", "return 10"), ("self.x = 5", "self.x = 10"), ("return 6", "return 10"),
        ("return 7", "return 10"), ("self.x = 1", "self.x = 10"), ("rate = 0.1", "rate = 0.2"),
        ("beta = 0.5", "beta = 0.6"), ('"q_proj"', '"v_proj"'), ("label = None", "label = 1"),
        ("def method", "def another"),
    ],
)  # fmt: skip
def test_every_part_of_a_class_counts(before, after):
    assert source_of(define(CLASS)) == source_of(define(f"# a comment\n{CLASS}"))
    assert source_of(define(CLASS)) != source_of(define(CLASS.replace(before, after, 1)))


def lambdas(*functions):
    """Make lambdas within a call, whose lines are not statements of their own."""
    return functions


def test_lambdas_are_known_by_what_they_do():
    first, same, other = lambdas(
        lambda text: text in {"a", "b"},
        lambda text: text in {"a", "b"},
        lambda text: text in {"a", "c"},
    )
    assert source_of(first) == source_of(same) != source_of(other)
    first, same, other = lambdas(
        lambda text, n=1: text * n,
        lambda text, n=1: text * n,
        lambda text, n=2: text * n,
    )
    assert source_of(first) == source_of(same) != source_of(other)


def test_lambdas_of_a_line_are_told_apart():
    first, second = lambda n: n + 1, lambda n: n + 2
    assert source_of(first) != source_of(second)
    text = "f = print, (lambda n: n + 1)\nf = f[1]\n"
    assert source_of(define(text)) == source_of(define(text.replace("print", "input")))


def test_a_class_that_names_itself_or_another_has_a_source():
    class First:
        rate = 1

    class Second:
        other = First

    First.itself, First.other = First, Second
    assert source_of(First) == "First\nrate = 1"


def test_code_without_a_file_is_known_by_what_it_does():
    def compiled(text):
        names = {}
        exec(text, names)
        return names["f"]

    first = compiled("def f(a):\n    return [(lambda b: b + 1)(a)]\n")
    same = compiled("def f(a):\n    # a comment\n    return [(lambda b: b + 1)(a)]\n")
    other = compiled("def f(a):\n    return [(lambda b: b + 2)(a)]\n")
    assert source_of(first) == source_of(same) != source_of(other)
    first, other = compiled("f = lambda a, n=1: a * n"), compiled("f = lambda a, n=2: a * n")
    assert source_of(first) != source_of(other)


def test_code_is_described_alike_in_every_process():
    """Sets of strings have another order in another process."""
    code = (
        "from posttrain.record import source_of\n"
        "exec('def f(a): return a in {\"x\", \"y\", \"z\", \"w\"}')\n"
        "print(source_of(f))"
    )
    outputs = []
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, cwd=ROOT, env={"PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
        outputs.append(done.stdout)
    assert len(set(outputs)) == 1


def test_a_function_with_arguments_filled_in_is_known_by_both():
    def add(a, b):
        return a + b

    assert source_of(partial(add, 1)) == source_of(partial(add, 1))
    assert source_of(partial(add, 1)) != source_of(partial(add, 2))
    assert source_of(partial(add, b=1)) != source_of(partial(add, b=2))


# ---- versions


def test_environment_says_where_and_with_what():
    described = environment()
    assert {"torch", "transformers", "trl", "peft"} <= set(described["packages"])
    assert described["device"].startswith("CPU")
    assert described["git_commit"] is None or len(described["git_commit"]) == 40
    assert len(described["code_sha256"]) == 64
    assert json.loads(json.dumps(described)) == described


def test_a_folder_without_git_has_no_commit(tmp_path, monkeypatch):
    assert record._git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record._git_commit(ROOT) is None


def made_in(**differing):
    """Make a record with one artifact, made in this environment except for some differences."""
    artifact = {
        "inputs": {},
        "sha256": "x",
        "seconds": 1,
        "environment": environment() | differing,
    }
    return Record(run="a", artifacts={"adapters/sft": artifact})


def test_other_versions_are_told_in_a_sentence_each():
    now = environment()
    assert list_changes(made_in()) == []
    assert list_changes(made_in(git_commit="abc", date="2020-01-01")) == []
    packages = now["packages"] | {"trl": "9.9"}
    then = made_in(
        python="3.12.9", packages=packages, code_sha256="f" * 64, device="Tesla T4"
    )
    assert list_changes(then) == [
        f"adapters/sft was made with python 3.12.9, but now it is {now['python']}.",
        f"adapters/sft was made with device Tesla T4, but now it is {now['device']}.",
        f"adapters/sft was made with code ffffffff, but now it is {now['code_sha256'][:8]}.",
        f"adapters/sft was made with trl 9.9, but now it is {now['packages']['trl']}.",
    ]
    assert len(list_changes(made_in(packages={}))) == len(now["packages"])


def test_nothing_is_said_of_where_imported_results_were_made():
    artifact = {"inputs": {"imported": "x"}, "sha256": "x", "seconds": None, "environment": {}}
    assert list_changes(Record(run="a", artifacts={"scores.json/Base": artifact})) == []
