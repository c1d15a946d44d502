"""docs/faults.md: its settings, its commands, and what it says of the study's prompts."""

import re
import shlex

import pytest
from conftest import ROOT, load

from posttrain.__main__ import COMMANDS
from posttrain.parameters import read_parameters
from posttrain.prompts import KEYWORD
from posttrain.settings import Evaluation, Training, choose

PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| \[.*?\]\(.*?\) \| (\w+) \| `(\w+)` \| `(.*?)` \| `(.*?)` \| (yes|no) \|$", re.M
)
ROWS = ROW.findall(PAGE)
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMAND_LINES = [line for block in BLOCKS for line in block.splitlines()]
KINDS = {"training": Training, "evaluation": Evaluation}


def read_command(line):
    """Read a command as bash would split it."""
    make, name, *arguments = shlex.split(line)
    assert make == "make"
    return name, read_parameters(arguments)


@pytest.mark.parametrize(("part", "setting", "usual", "study", "trains"), ROWS)
def test_preset_paper_has_every_fault_and_full_has_none(part, setting, usual, study, trains):
    kind = KINDS[part]
    assert repr(getattr(choose(kind, "full"), setting)).replace("'", '"') == usual
    assert repr(getattr(choose(kind, "paper"), setting)).replace("'", '"') == study
    assert trains == ("yes" if part == "training" else "no")


def test_every_fault_has_a_command_that_switches_it_on():
    assert len(ROWS) == 5
    switched = {}
    for line in COMMAND_LINES:
        name, given = read_command(line)
        assert name in COMMANDS
        for setting, value in given.SETTINGS.items():
            switched[setting] = (name, repr(value).replace("'", '"'))
    for part, setting, _, study, _ in ROWS:
        command = "run" if part == "training" else "reask"
        assert switched[setting] == (command, study)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_are_allowed_over_full(line):
    name, given = read_command(line)
    if name == "compare":
        runs = {read_command(other)[1].RUN for other in COMMAND_LINES}
        assert set(given.RUNS.split()) <= runs | {"full"}
        return
    kind = Training if name in ("run", "seeds") else Evaluation
    values = {}
    if kind is Evaluation:
        values = {"PROTOCOL": given.PROTOCOL, "HARMFUL_PROMPTS": given.HARMFUL_PROMPTS}
    choose(kind, "full", given.SETTINGS, **values)


def test_keywords_in_the_studys_prompts_are_counted_rightly():
    without, in_last = re.search(r"(\d+) have no word that .* only (\d+)", PAGE, re.S).groups()
    prompts = load(ROOT / "results" / "published" / "prompts.json")
    harmful = [prompt["prompt"] for prompt in prompts if prompt["kind"] == "harmful"]
    last = [text.rpartition("Human:")[2].partition("Assistant:")[0] for text in harmful]
    assert len(harmful) == 50
    assert sum(not KEYWORD.search(text) for text in harmful) == int(without)
    assert sum(bool(KEYWORD.search(text)) for text in last) == int(in_last)
