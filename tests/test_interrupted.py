"""Killed at any moment and run again, a run ends with the files of one that was left alone."""

import subprocess
import time

import pytest
from conftest import ADAPTERS, contents_of, differing, execute, finish, kill, load, places, start

from posttrain.runs import Run

SMALL = {"main.ipynb": {"MAX_PAIRS": 600}, "eval.ipynb": {}}


def parts(run, pattern, least=1):
    """Tell whether a run's folder holds at least so many files of a pattern."""
    return len(list(run.glob(pattern))) >= least


def unsealed(run, folder):
    """Tell whether a checkpoint in a folder is begun and not yet known to the ledger, beside one that is."""
    begun = {path.parent.name for path in (run / folder).glob("checkpoint-*/*")}
    text = (run / "run.json").read_text(encoding="utf-8")
    return len(begun) > 1 and any(f"{folder}/{name}" not in text for name in begun)


MOMENTS = [  # notebook, what is going on, how its files show that
    ("main.ipynb", "SFT", lambda run: parts(run, "unfinished/adapters/sft/checkpoint-20/rng_state.pth")),
    ("main.ipynb", "a checkpoint of DPO is being written", lambda run: unsealed(run, "unfinished/adapters/dpo")),
    ("main.ipynb", "the adapter is being written", lambda run: parts(run, "adapters/sft_dpo.tmp/*")),
    ("eval.ipynb", "generation", lambda run: parts(run, "unfinished/responses.json/*.json", 2)),
    ("eval.ipynb", "judging", lambda run: parts(run, "unfinished/scores.json/*.json", 3)),
]


def kill_when(process, condition, seconds=120):
    """Kill a process as soon as a condition holds; fail where that does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it was to be killed"
        assert time.monotonic() < end, "what it was to be killed at did not come"
        time.sleep(0.002)
    kill(process)


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
    for notebook, moment, condition in MOMENTS:
        if moment == "generation":  # the evaluation needs what the training leaves
            finish("main.ipynb", folder, **SMALL["main.ipynb"])
        process = start(notebook, folder, **SMALL[notebook])
        if moment == "SFT":
            while not parts(run, "unfinished/adapters/sft/checkpoint-*/*"):
                time.sleep(0.01)
            with pytest.raises(RuntimeError, match="demo is in use by another process. Wait until it ends, or stop it"):
                Run(folder / "results", "demo", begin=True)
        kill_when(process, lambda condition=condition: condition(run))
        seen[moment] = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
        Run(folder / "results", "demo", begin=True).release()  # not held for ever: the lock died with its process
    finish("eval.ipynb", folder, **SMALL["eval.ipynb"])
    return folder, seen


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
