"""A run that is killed at any moment and repeated has the same files as one that is not killed."""

import os
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import RAW, ROOT, contents_of, differing, kill, load

from posttrain.run import Run

pytestmark = pytest.mark.slow
HALTING = Path(__file__).parent / "halting"


class Moment(NamedTuple):
    """A moment at which a run is killed: what goes on, and what it begins to write then.

    `count`: the how many-th file of the pattern; `there`: what is in the run's folder then, and
    `missing`: what is not there yet.
    """

    name: str
    writes: str
    count: int = 1
    there: str = ""
    missing: str = ""
    held: bool = True


MOMENTS = [
    Moment("first entry of the record", "run.json.tmp", missing="run.json", held=True),
    Moment(
        "a checkpoint of SFT is all but whole",
        "checkpoints/sft/checkpoint-40/trainer_state.json",
        there="checkpoints/sft/checkpoint-40/optimizer.pt",
        missing="checkpoints/sft/checkpoint-40/trainer_state.json",
    ),
    Moment(
        "SFT's adapter is being written",
        "adapters/sft.tmp/log.json.tmp",
        there="adapters/sft.tmp/adapter_model.safetensors",
        missing="adapters/sft",
    ),
    Moment(
        "the log of the trainings is being written",
        "training.json.tmp",
        there="adapters/sft",
        missing="training.json",
        held=False,
    ),
    Moment(
        "a checkpoint of DPO is begun",
        "checkpoints/dpo/checkpoint-60/*",
        there="checkpoints/dpo/checkpoint-40/trainer_state.json",
        missing="checkpoints/dpo/checkpoint-60/trainer_state.json",
    ),
    Moment(
        "a checkpoint of DPO is entered into the record",
        "run.json.tmp",
        there="checkpoints/dpo/checkpoint-60/trainer_state.json",
        missing="adapters/dpo",
    ),
    Moment(
        "an old checkpoint of SFT+DPO is about to go",
        "checkpoints/sft_dpo/checkpoint-80/trainer_state.json",
        there="checkpoints/sft_dpo/checkpoint-40/trainer_state.json",
        missing="checkpoints/sft_dpo/checkpoint-20",
    ),
    Moment(
        "the notebook is saved",
        "main-stopped.ipynb",
        count=25,
        there="adapters/dpo",
        held=False,
    ),
    Moment("the prompts are being written", "prompts.json.tmp*", missing="prompts.json"),
    Moment("answers of the second model", "responses.json.tmp", count=2, there="responses.json"),
    Moment("the rewards of a reference", "scores.json.tmp", count=6, there="scores.json"),
    Moment("the metrics", "metrics.json.tmp", there="classification.json", held=False),
    Moment("the page", "report.html.tmp", there="summary.tex", missing="report.html", held=False),
]


class Attempt(NamedTuple):
    """What was observed of a process when it was stopped."""

    files: list[str]
    artifacts: dict
    was_held: bool
    output: str


def start(folder, moment=None):
    """Start the complete command in a folder, and let it stop at a moment."""
    variables = os.environ | {"PYTHONUNBUFFERED": "1"}
    if moment is not None:
        variables |= {"PYTHONPATH": str(HALTING), "HALT_COUNT": str(moment.count)}
        variables["HALT_AT"] = f"{folder}/results/demo/{moment.writes}"
    given = [f"RESULTS={folder / 'results'}", f"FIGURES={folder / 'figures'}"]
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "posttrain", "run", "PRESET=demo", *given],
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=output,
        )


def stands_still(process):
    """Tell whether a process or one of its children was stopped."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return any(member.status() == psutil.STATUS_STOPPED for member in family)


def is_held(run):
    """Tell whether another process holds a run's folder."""
    try:
        with run.hold():
            return False
    except RuntimeError as error:
        assert "demo is in use by another process, which is writing results into it" in str(error)
        return True


def kill_at(folder, moment, seconds=600):
    """Start a run, wait until it stops at a moment, observe it and kill it."""
    process = start(folder, moment)
    end = time.monotonic() + seconds
    while process.poll() is None and not stands_still(process) and time.monotonic() < end:
        time.sleep(0.05)
    output = (folder / "output.txt").read_text()
    if process.poll() is not None or not stands_still(process):
        kill(process)
        raise RuntimeError(f"It did not come to this: {moment.name}.\n{output[-4000:]}")
    run = Run(folder / "results", "demo")
    was_held = is_held(run)
    files = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*"))
    artifacts = {}
    if "run.json" in files:
        artifacts = load(run.folder / "run.json")["artifacts"]
    kill(process)
    return Attempt(files, artifacts, was_held, output)


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """A demo run that was killed at every moment, one after another, and then finished."""
    folder = tmp_path_factory.mktemp("killed")
    attempts = {moment.name: kill_at(folder, moment) for moment in MOMENTS}
    assert not is_held(Run(folder / "results", "demo"))  # a lock dies with its process
    process = start(folder)
    assert process.wait() == 0, (folder / "output.txt").read_text()[-4000:]
    return folder, attempts


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_it_was_killed_in_the_midst(killed_run, moment):
    attempt = killed_run[1][moment.name]
    if moment.there:
        assert moment.there in attempt.files
    if moment.missing:
        assert moment.missing not in attempt.files
    if moment.held:
        assert attempt.was_held


def without_notebooks(contents):
    """Leave out the executed notebooks, which contain times and paths."""
    return {path: sha256 for path, sha256 in contents.items() if not path.endswith(".ipynb")}


def test_killed_run_ends_as_one_that_was_left_alone(killed_run, demo_run):
    alone = without_notebooks(contents_of(demo_run.folder))
    killed = without_notebooks(contents_of(killed_run[0]))
    assert len(alone) > 30
    assert sum("adapter_model.safetensors" in path for path in alone) == 3
    kinds = {"json", "safetensors", "parquet", "csv", "md", "tex", "png", "pdf", "html"}
    assert {path.rsplit(".", 1)[-1] for path in alone} == kinds
    assert differing(alone, killed) == []


def test_killed_run_leaves_nothing_behind(killed_run, demo_run):
    folder, _ = killed_run
    run = folder / "results" / "demo"
    assert not list(folder.rglob("*.tmp"))
    names = {path.name for path in run.glob("[!.]*")}
    assert names == {path.name for path in demo_run.run.glob("[!.]*")}


def test_what_was_whole_is_not_made_again(killed_run):
    """Every result keeps the record entry that it had when the run was killed."""
    folder, attempts = killed_run
    final = load(folder / "results" / "demo" / "run.json")["artifacts"]
    kept = 0
    for attempt in attempts.values():
        for name, artifact in attempt.artifacts.items():
            written = name in attempt.files or name.split(".json/")[0] + ".json" in attempt.files
            if written and not name.startswith(("checkpoints", *RAW)):
                assert final[name] == artifact
                kept += 1
    assert kept > 20


def test_training_goes_on_from_its_last_whole_checkpoint(killed_run):
    """Each model was begun by one process and finished by another."""
    folder, attempts = killed_run
    outputs = [attempt.output for attempt in attempts.values()]
    outputs.append((folder / "output.txt").read_text())
    for name in ("SFT", "DPO", "SFT+DPO"):
        begun = [i for i, text in enumerate(outputs) if f"\n{name}: step 0 of 119" in text]
        ended = [i for i, text in enumerate(outputs) if f"\n{name}: step 119 of 119" in text]
        assert len(begun) == 1, name
        assert ended[0] > begun[0], name


def test_at_most_two_checkpoints_are_kept_beside_the_one_being_written(killed_run):
    for attempt in killed_run[1].values():
        checkpoints = [name for name in attempt.files if fnmatch(name, "checkpoints/*/*-*0")]
        assert len([name for name in checkpoints if name.count("/") == 2]) <= 3
