"""Parameters: how texts are read, which values a notebook refuses, and what make hands on."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, execute

from posttrain import parameters
from posttrain.parameters import Parameters, read_parameters

REFUSED_ALL = "The parameters are PRESET, RUN, RESULTS, FIGURES, LABEL, FRESH, SETTINGS, DATASET"


# ---- on the command line


def test_values_are_read_as_their_types():
    given = read_parameters(
        [
            "RUN=a b'c$d = ü",
            "MAX_PAIRS=40",
            "HARMLESS_FROM=-2.5",
            "FRESH=True",
            "LABEL=False",
            "N_PROMPTS=all",
            "RESULTS=/tmp/my results",
        ]
    ).given()
    assert given == {
        "PRESET": "auto",
        "RUN": "a b'c$d = ü",
        "MAX_PAIRS": 40,
        "HARMLESS_FROM": -2.5,
        "FRESH": True,
        "LABEL": False,
        "N_PROMPTS": "all",
        "RESULTS": "/tmp/my results",
        "SETTINGS": {},
    }
    assert read_parameters(["N_PROMPTS=7"]).N_PROMPTS == 7


@pytest.mark.parametrize(
    "text",
    ["{'beta': 0.2, 'max_pairs': None}", '{"beta": 0.2, "max_pairs": null}'],
    ids=["Python", "JSON"],
)
def test_settings_are_a_table_as_python_or_json_write_it(text):
    assert read_parameters([f"SETTINGS={text}"]).SETTINGS == {"beta": 0.2, "max_pairs": None}


def test_name_alone_takes_its_value_from_the_environment_as_make_hands_it_on(monkeypatch):
    monkeypatch.setenv("RUN", "a 'b' $c")
    monkeypatch.setenv("SEED", "3")
    given = read_parameters(["RUN", "SEED"])
    assert (given.RUN, given.SEED) == ("a 'b' $c", 3)


def test_none_leaves_a_parameter_to_the_notebook():
    given = read_parameters([f"{name}=None" for name in ("PRESET", "N_PROMPTS", "SETTINGS")])
    assert given == Parameters()


@pytest.mark.parametrize("name", list(Parameters.model_fields))
def test_nothing_is_no_value(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    for argument in (f"{name}=", f"{name}= ", name):
        with pytest.raises(ValueError, match=f"{name} has no value. Write {name}=value, or leave"):
            read_parameters([argument])


def test_home_is_found_behind_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("RESULTS", "FIGURES", "FROM", "DATASET", "BASE_MODEL", "REWARD_MODEL"):
        assert read_parameters([f"{name}=~/a b"]).given()[name] == "/home/me/a b"
    assert read_parameters(["RUN=~"]).RUN == "~"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("MAX_PAIR=3", f"There is no parameter MAX_PAIR. {REFUSED_ALL}"),
        ("MAX_PAIR=", "There is no parameter MAX_PAIR."),
        ("max_pairs=3", "There is no parameter max_pairs."),
        ("MAX_PAIRS=many", "MAX_PAIRS = 'many': Input should be a valid integer"),
        ("N_PROMPTS=1.5", "N_PROMPTS = '1.5': Input should be a valid integer"),
        ("FRESH=perhaps", "FRESH = 'perhaps': Input should be a valid boolean"),
        ("SETTINGS=3", "SETTINGS = 3: Input should be a valid dictionary"),
        ("SETTINGS={beta: 1", "SETTINGS = '{beta: 1': Input should be a valid dictionary"),
        ("SETTINGS={[]: 1}", "SETTINGS = '{[]: 1}': Input should be a valid dictionary"),
        ("SETTINGS={1: 2}", "SETTINGS = 1: Input should be a valid string"),
        ("SETTINGS=__import__('os').getcwd()", "Input should be a valid dictionary"),
    ],
)
def test_what_is_no_parameter_or_no_value_of_it_is_refused(argument, message):
    with pytest.raises(ValueError, match="^") as refusal:
        read_parameters([argument])
    assert message in str(refusal.value)


# ---- in a notebook


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FRESH", "false", "FRESH = 'false': Input should be a valid boolean. Write FRESH = True"),
        ("FRESH", "False", "without quotes. For papermill write -y 'FRESH: true' or -y"),
        ("FRESH", 1, "FRESH = 1: Input should be a valid boolean"),
        ("FRESH", None, "FRESH = None: Input should be a valid boolean"),
        ("LABEL", "no", "LABEL = 'no': Input should be a valid boolean. Write LABEL = True or"),
        ("RESULTS", "", "RESULTS = '': String should have at least 1 character"),
        ("RESULTS", None, "RESULTS = None: Input should be a valid string"),
        ("RESULTS", 5, "RESULTS = 5: Input should be a valid string"),
        ("FIGURES", "", "FIGURES = '': String should have at least 1 character"),
        ("FIGURES", True, "FIGURES = True: Input should be a valid string"),
        ("RUN", True, "RUN = True: Input should be a valid string"),
        ("RUN", ["a"], "RUN = ['a']: Input should be a valid string"),
        ("RUN", "", "RUN = '': String should have at least 1 character"),
        ("RUNS", ["a", "b"], "RUNS = ['a', 'b']: Input should be a valid string"),
        ("DATASET", "", "DATASET = '': String should have at least 1 character"),
        ("BASE_MODEL", 1, "BASE_MODEL = 1: Input should be a valid string"),
        ("SEED", "1", "SEED = '1': Input should be a valid integer"),
        ("N_PROMPTS", "7", "N_PROMPTS = '7': Input should be a valid integer"),
        ("HARMLESS_FROM", "-3", "HARMLESS_FROM = '-3': Input should be a valid number"),
    ],
)
def test_value_of_another_type_is_refused(name, value, message):
    with pytest.raises(ValueError, match="^") as refusal:
        parameters.check(**{name: value})
    assert message in str(refusal.value)


def test_what_a_notebook_may_contain_is_accepted():
    parameters.check(RUN=None, FRESH=False, RESULTS="results", FIGURES=None, LABEL=True)
    parameters.check(RUN=2024, FRESH=True, RESULTS=Path("~/r"), FIGURES="f", DATASET=None)


@pytest.mark.parametrize("name", ["main.ipynb", "eval.ipynb", "compare.ipynb"])
def test_notebook_checks_its_parameters_before_anything_happens(name, tmp_path):
    given = {"RESULTS": tmp_path / "results", "FIGURES": tmp_path / "figures"}
    for changes in ({"LABEL": "false"}, {"RESULTS": ""}, {"FIGURES": 5}, {"RUN": True}):
        (parameter,) = changes
        with pytest.raises(ValueError, match=f"^{parameter} = .*: .* should"):
            execute(name, **given | changes)
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_of_the_notebooks_can_be_given():
    names = set()
    for notebook in ("main.ipynb", "eval.ipynb", "compare.ipynb"):
        cells = nbformat.read(ROOT / notebook, as_version=4).cells
        (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        names |= {line.split(" = ")[0] for line in cell.source.splitlines()}
    of_commands = {"FROM", "SEEDS", "SETTING", "VALUES", "VOTES", "PROCESSES", "PROCESS_TIMEOUT"}
    of_commands |= {"HARMFUL", "HELPFUL", "OUT", "KEEP", "MODEL", "TO", "PUBLIC", "FORCE"}
    # The command line fills EVALUATION with what it gives to eval.ipynb.
    assert set(Parameters.model_fields) - of_commands == names - {"EVALUATION"}


# ---- what make hands on


@pytest.fixture
def make(tmp_path):
    """Run `make run` with a Python that prints its arguments and their values."""
    place = tmp_path / ".venv" / "bin"
    place.mkdir(parents=True)
    for name in ("Makefile", *(path.name for path in ROOT.glob("requirements*"))):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (place / "python").write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "print(*[f'{name}={os.environ.get(name)}' for name in sys.argv[4:]], sep='\\n')\n"
    )
    (place / "python").chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()

    def run_make(*arguments, **variables):
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            ["make", "run", *arguments],
            cwd=tmp_path,
            env=kept | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run_make


def test_make_hands_on_its_parameters_whatever_is_in_them(make):
    lines = make("RUN=a b=c 'd'", "SETTINGS={'beta': 0.2, 'x': 'y=z'}", "PRESETT=", "PYTHON=python")
    assert set(lines) == {"RUN=a b=c 'd'", "SETTINGS={'beta': 0.2, 'x': 'y=z'}", "PRESETT="}


def test_make_takes_parameters_from_the_environment_and_says_which(make):
    said, *lines = make("SEED=1", PRESET="small", RUN="a $b 'c'", SEED="2", BIN="x", USER="me")
    assert said == "Taken from the environment: PRESET RUN."
    assert set(lines) == {"SEED=1", "PRESET=small", "RUN=a $b 'c'"}


# The environment may have these for something else.
NOT_INHERITED = {"MODEL", "TO", "PUBLIC", "FORCE"}


def test_make_takes_some_parameters_from_the_command_line_alone(make):
    for name in NOT_INHERITED:
        assert make(**{name: "5"}) == [""]  # nothing is handed on
        assert make(f"{name}=5", **{name: "6"}) == [f"{name}=5"]


@pytest.mark.parametrize("name", sorted({*Parameters.model_fields} - NOT_INHERITED))
def test_make_knows_every_parameter(make, name):
    assert make(**{name: "5"}) == [f"Taken from the environment: {name}.", f"{name}=5"]
