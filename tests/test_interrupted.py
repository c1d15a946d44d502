"""Killed at any moment and run again, a run ends with the files of one that was left alone."""

import fnmatch
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import ADAPTERS, contents_of, differing, execute, finish, kill, load, places, start

from posttrain.runs import Run

SMALL = {"main.ipynb": {"MAX_PAIRS": 600}, "eval.ipynb": {}}


HALTING = Path(__file__).parent / "halting"
MOMENTS = [  # notebook, what is going on, the file that it begins to write, a file that is there then
    ("main.ipynb", "a checkpoint of SFT is begun",
     "unfinished/adapters/sft/checkpoint-30/*", "unfinished/adapters/sft/checkpoint-20/rng_state.pth"),
    ("main.ipynb", "a checkpoint of DPO is all but whole",
     "unfinished/adapters/dpo/checkpoint-20/trainer_state.json", "unfinished/adapters/dpo/checkpoint-20/optimizer.pt"),
    ("main.ipynb", "the adapter is being written",
     "adapters/sft_dpo.tmp/log.json.tmp", "adapters/sft_dpo.tmp/adapter_model.safetensors"),
    ("eval.ipynb", "generation", "unfinished/responses.json/DPO.json*", "unfinished/responses.json/SFT.json"),
    ("eval.ipynb", "judging", "unfinished/scores.json/DPO.json*", "unfinished/scores.json/SFT.json"),
]


def start_and_halt(notebook, folder, pattern, seconds=300):
    """Start a notebook and wait until it begins to write a file of a pattern; return the process, which stands still.

    Raises RuntimeError where it ends without, or takes longer.
    """
    process = start(notebook, folder, {"PYTHONPATH": str(HALTING), "HALT_AT": f"{folder}/results/demo/{pattern}"},
                    **SMALL[notebook])
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if any(one.status() == psutil.STATUS_STOPPED for one in psutil.Process(process.pid).children()):
            return process
        time.sleep(0.05)
    kill(process)
    raise RuntimeError(f"It did not write {pattern}.\n{(folder / f'{notebook}.log').read_text()[-4000:]}")


@pytest.fixture(scope="module")
def left_alone(hub, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    for notebook, parameters in SMALL.items():
        finish(notebook, folder, **parameters)
    return folder


@pytest.fixture(scope="module")
def killed_run(hub, tmp_path_factory):
    """The same run killed at five moments, one after another, and what was seen on the way."""
    folder = tmp_path_factory.mktemp("killed")
    run, seen = folder / "results" / "demo", {}
    for notebook, moment, pattern, _ in MOMENTS:
        if moment == "generation":  # the evaluation needs what the training leaves
            finish("main.ipynb", folder, **SMALL["main.ipynb"])
        process = start_and_halt(notebook, folder, pattern)
        with pytest.raises(RuntimeError, match="demo is in use by another process. Wait until it ends, or stop it"):
            Run(folder / "results", "demo", begin=True)
        kill(process)
        seen[moment] = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
        Run(folder / "results", "demo", begin=True).release()  # not held for ever: the lock died with its process
    finish("eval.ipynb", folder, **SMALL["eval.ipynb"])
    return folder, seen


def test_it_was_killed_in_the_midst(killed_run):
    """What was to be there at each moment was there, and what came next was not."""
    for _, moment, pattern, there in MOMENTS:
        seen = killed_run[1][moment]
        assert there in seen, moment
        assert fnmatch.filter(seen, pattern.removesuffix(".tmp")) == [], moment


def test_killed_run_ends_as_one_left_alone(killed_run, left_alone):
    """Killed in every stage, a run ends with the files of a run left alone elsewhere, to the byte but for times."""
    whole, interrupted = contents_of(left_alone), contents_of(killed_run[0])
    assert len(whole) > 30
    assert sum("adapter_model.safetensors" in path for path in whole) == 3
    assert {path.rsplit(".", 1)[-1] for path in whole} == {
        "json", "safetensors", "csv", "md", "tex", "png", "pdf", "html"}
    assert differing(whole, interrupted) == []


def test_killed_run_went_on_and_did_not_begin_anew(killed_run, left_alone):
    """What was interrupted went on from what it had: its time is not known, the others' is."""
    seconds = [{name: made["seconds"] for name, made in load(folder / "results/demo/run.json")["artifacts"].items()}
               for folder in (killed_run[0], left_alone)]
    assert [name for name, value in seconds[0].items() if value is None] == [*ADAPTERS, "responses.json", "scores.json"]
    assert None not in seconds[1].values()


def test_two_checkpoints_are_kept_and_none_in_the_end(killed_run):
    """While a stage runs there are at most two sealed checkpoints of it and one being written; in the end nothing."""
    folder, seen = killed_run
    for names in seen.values():
        assert sum(name.count("/") == 3 and "checkpoint-" in name for name in names) <= 3
    assert not (folder / "results" / "demo" / "unfinished").exists()
    assert not list(folder.rglob("*.tmp"))


def test_second_notebook_is_refused_while_the_folder_is_in_use(copied_run):
    """Either notebook is refused while another process holds the folder, changes nothing, and works once it is free."""
    holder = subprocess.Popen(["python3", "-c", "import fcntl, sys, time; file = open(sys.argv[1], 'a');"
                               "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)",
                               copied_run.run / ".lock"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    before = contents_of(copied_run.folder)
    for notebook in ("main.ipynb", "eval.ipynb"):
        with pytest.raises(RuntimeError, match="demo is in use by another process"):
            execute(notebook, **places(copied_run.folder))
    assert differing(before, contents_of(copied_run.folder)) == []
    holder.kill()
    holder.wait()
    Run(copied_run.folder / "results", "demo").release()
