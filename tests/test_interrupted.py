"""Interrupted, short of room, two at once: what was finished stays whole, and the end is that of a run left alone."""

import errno
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import contents_of, differing, execute, kill, load, start
from papermill.exceptions import PapermillExecutionError
from test_training import BEGUN, MADE, ROWS, TEXTS, pairs, settings  # noqa: F401  (fixtures)
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

STATE = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


def save_every_step(trainer):
    """Let a trainer write a checkpoint after every step, beside those that are due by time."""
    trainer.args.save_strategy, trainer.args.save_steps = SaveStrategy.STEPS, 1
    trainer.state.save_steps = 1


class KeepAll(TrainerCallback):
    """Copies every checkpoint, once it is sealed, into the folder `kept` beside."""

    def on_save(self, args, state, control, **kwargs):
        name = f"checkpoint-{state.global_step}"
        shutil.copytree(Path(args.output_dir) / name, Path(args.output_dir) / "kept" / name)


# ---- killed

def parts(run, pattern, least=1):
    """Tell whether a run's folder holds at least so many files of a pattern."""
    return len(list(run.glob(pattern))) >= least


def unsealed(folder):
    """Tell whether a checkpoint in a folder is begun and not yet sealed, beside one that is."""
    begun = {path.parent for path in folder.glob("checkpoint-*/*")}
    return len(begun) > 1 and any(not (path / "made.json").exists() for path in begun)


MOMENTS = [  # notebook, what is going on, how its files show that
    ("main.ipynb", "SFT", lambda run: parts(run, "checkpoints/sft/*/made.json", 2)),
    ("main.ipynb", "a checkpoint of DPO is being written", lambda run: unsealed(run / "checkpoints" / "dpo")),
    ("main.ipynb", "SFT+DPO", lambda run: parts(run, "checkpoints/sft_dpo/*/made.json", 2)),
    ("main.ipynb", "the adapter is being written", lambda run: parts(run, "adapters/sft_dpo.tmp/*")),
    ("eval.ipynb", "generation", lambda run: parts(run, "unfinished/responses/*.json", 9)),
    ("eval.ipynb", "judging", lambda run: parts(run, "unfinished/scores/*.json", 3)),
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
def killed_run(demo_run, main, tmp_path_factory):
    """A demo run killed at six moments, one after another, and what was seen on the way."""
    folder = tmp_path_factory.mktemp("killed")
    run, seen = folder / "results" / "demo", {}
    for notebook, moment, condition in MOMENTS:
        if moment == "generation":  # the evaluation needs what the training leaves
            assert start("main.ipynb", folder).wait() == 0, (folder / "main.ipynb.log").read_text()[-3000:]
        process = start(notebook, folder)
        if moment == "SFT":
            while not parts(run, "checkpoints/sft/*/made.json"):
                time.sleep(0.01)
            with pytest.raises(RuntimeError, match="demo is in use by another process") as refusal:
                main.lock_run(run)
            seen["second process"] = str(refusal.value)
        kill_when(process, lambda condition=condition: condition(run))
        seen[moment] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        main.lock_run(run).release(force=True)  # not for ever: it died with its process
    assert start("eval.ipynb", folder).wait() == 0, (folder / "eval.ipynb.log").read_text()[-3000:]
    return folder, seen


def test_killed_run_ends_as_one_left_alone(killed_run, demo_run):
    """Killed in every stage, a run ends with the files of a run left alone, to the byte but for times."""
    whole, interrupted = contents_of(demo_run.run.parents[1]), contents_of(killed_run[0])
    assert len(whole) > 30
    assert sum("adapter_model.safetensors" in path for path in whole) == 3
    assert differing(whole, interrupted) == []


def test_killed_run_went_on_and_did_not_begin_anew(killed_run):
    """A stage that was interrupted went on from its checkpoint: its time is not known, the others' is."""
    run = killed_run[0] / "results" / "demo"
    timings = load(run / "run.json")["timings_s"]
    assert [name for name, seconds in timings.items() if seconds is None] == ["SFT", "DPO", "SFT+DPO"]
    timings = load(run / "metrics.json")["timings_s"]
    assert [name for name, seconds in timings.items() if seconds is None] == ["responses", "scores"]


def test_two_checkpoints_are_kept_and_none_in_the_end(killed_run):
    """While a stage runs there are at most two whole checkpoints of it; once it is done there are none, nor batches."""
    folder, seen = killed_run
    for moment in ("SFT", "SFT+DPO"):
        assert 1 <= sum(name.startswith("checkpoints") and name.endswith("made.json") for name in seen[moment]) <= 2
    assert not any((folder / "results" / "demo" / name).exists() for name in ("checkpoints", "unfinished"))
    assert not list(folder.rglob("*.tmp"))


def test_second_run_is_refused_while_the_first_is_alive(killed_run):
    """The message says what to do about the other one."""
    assert "Wait until it ends, or stop it" in killed_run[1]["second process"]


# ---- checkpoints that are not whole

@pytest.fixture(scope="module")
def interrupted(main, settings, tokenizer, pairs, tmp_path_factory):  # noqa: F811
    """The checkpoints of an SFT of four steps after steps 1 to 4, all kept, and its trained weights."""
    folder = tmp_path_factory.mktemp("interrupted") / "checkpoints" / "sft"
    trainer = main.sft_trainer(settings, tokenizer, pairs, pairs[:2], folder, ROWS)
    save_every_step(trainer)
    trainer.add_callback(main.Checkpoints(BEGUN, 10))
    trainer.add_callback(KeepAll())
    trainer.train()
    assert len(list(folder.glob("checkpoint-*"))) == 2
    return folder / "kept", {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.fixture
def checkpoints(interrupted, tmp_path):
    """A copy of these checkpoints that a test may spoil: the second and third."""
    for number in (2, 3):
        shutil.copytree(interrupted[0] / f"checkpoint-{number}", tmp_path / "sft" / f"checkpoint-{number}")
    return tmp_path / "sft"


def test_newest_checkpoint_is_taken(main, checkpoints):
    """Whole, the newest is the one to go on from."""
    assert main.last_checkpoint(checkpoints, BEGUN)[0] == checkpoints / "checkpoint-3"
    assert main.last_checkpoint(checkpoints / "none", {}) == (None, None)


@pytest.mark.parametrize("name", [*STATE, "adapter_model.safetensors", "trainer_state.json", "made.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_checkpoint_that_is_not_whole_is_named_and_not_used(main, checkpoints, capsys, name, damage):
    """Whatever is missing, empty, cut or changed: the one before is taken, and the message names what is wrong."""
    path = checkpoints / "checkpoint-3" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2],
                          "changed": content.replace(content[50:52], b"\x00\x01")}[damage])
    assert main.last_checkpoint(checkpoints, BEGUN)[0] == checkpoints / "checkpoint-2"
    said = capsys.readouterr().out
    assert "checkpoint-3" in said
    assert name in said
    assert not path.parent.exists()


def test_hidden_files_of_the_system_are_nobodys(main, checkpoints):
    """What a file manager leaves behind does not spoil a folder; a file that does not belong there does."""
    (checkpoints / "checkpoint-3" / ".DS_Store").write_bytes(b"x")
    assert main.read_made(checkpoints / "checkpoint-3")
    (checkpoints / "checkpoint-3" / "more.json").write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint-3 is not whole: more\.json is not one of its files"):
        main.read_made(checkpoints / "checkpoint-3")


def test_checkpoint_of_other_settings_is_refused(main, checkpoints):
    """A checkpoint made from something else is not gone on from, nor removed."""
    with pytest.raises(ValueError, match="checkpoint-3 was made with seed = 0, now it is 1"):
        main.last_checkpoint(checkpoints, BEGUN | {"seed": 1})
    assert (checkpoints / "checkpoint-3" / "made.json").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_checkpoint_leads_to_the_same_weights(main, interrupted, settings, tokenizer, pairs, tmp_path,  # noqa: F811
                                                    number):
    """Gone on with from any step, the first and the last among them, training ends with the same bits and log."""
    folder, weights = interrupted
    shutil.copytree(folder / f"checkpoint-{number}", tmp_path / "checkpoints" / "sft" / f"checkpoint-{number}")
    record = {"settings": settings, "models": [
        {"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}
    trained = {}

    def make_trainer(checkpoints, rows):
        trained["trainer"] = main.sft_trainer(settings, tokenizer, pairs, pairs[:2], checkpoints, rows)
        return trained["trainer"]

    made = main.train("SFT", record, settings["base_model"], tmp_path, MADE["made_from"], make_trainer, tokenizer,
                      TEXTS)
    for name, weight in trained["trainer"].model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert [log["step"] for log in made["log"] if "eval_loss" in log] == [0, 2, 4]
    assert not (tmp_path / "checkpoints" / "sft").exists()


@pytest.mark.parametrize("sft_first", [False, True])
def test_dpo_goes_on_under_dropout(main, interrupted, settings, tokenizer, pairs, tmp_path, sft_first):  # noqa: F811
    """With the paper's dropout too, and on an SFT adapter, DPO of two epochs ends with the same bits from any step."""
    noisy = settings | {"dropout": 0.1, "lora_dropout": 0.05, "dpo_epochs": 2}
    shutil.copytree(interrupted[0] / "checkpoint-4", tmp_path / "adapters" / "sft")

    def train(folder, checkpoint=None):
        model = main.load_sft(noisy, tmp_path) if sft_first else main.load_base(noisy["base_model"], noisy["dropout"])
        trainer = main.dpo_trainer(model, noisy, tokenizer, pairs, pairs[:2], folder, ROWS)
        save_every_step(trainer)
        trainer.args.eval_on_start = checkpoint is None
        trainer.add_callback(main.Checkpoints({}, 10))
        trainer.add_callback(KeepAll())
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.model.state_dict(), main.clean_log(trainer.state.log_history)

    weights, log = train(tmp_path / "whole")
    for number in (1, 2, 3):
        checkpoint = tmp_path / str(number) / f"checkpoint-{number}"
        shutil.copytree(tmp_path / "whole" / "kept" / checkpoint.name, checkpoint)
        again, log_again = train(checkpoint.parent, str(checkpoint))
        assert [name for name, weight in weights.items() if not torch.equal(weight, again[name])] == []
        assert log_again == log


def test_model_that_is_not_whole_is_named(main, interrupted, settings, tokenizer, tmp_path):  # noqa: F811
    """An adapter cut short stops the run and is named; so is one without its record."""
    folder = tmp_path / "adapters" / "sft"
    record = {"settings": settings, "models": [
        {"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}
    shutil.copytree(interrupted[0] / "checkpoint-4", folder)
    weights = folder / "adapter_model.safetensors"
    main.write_json(folder / "made.json", MADE | {"files": load(folder / "made.json")["files"]})
    for spoil, message in ((lambda: weights.write_bytes(weights.read_bytes()[:500]), "safetensors is damaged"),
                           (weights.unlink, "safetensors is missing"),
                           ((folder / "made.json").unlink, "made.json is missing")):
        spoil()
        with pytest.raises(ValueError, match=f"adapters/sft is not whole: .*{message}.* Move it away"):
            main.train("SFT", record, settings["base_model"], tmp_path, MADE["made_from"], None, tokenizer, TEXTS)


# ---- generation and judging

def test_finished_batches_are_not_done_again(evaluation, tmp_path, capsys):
    """A batch that is there is read; a damaged or foreign one is done again, and named."""
    done = []

    def double(batch):
        done.append(list(batch))
        return [(i, 2.5 * i) for i in batch]

    batches = [[3, 1], [0, 2], [4]]
    assert evaluation.map_batches(double, batches, "judge", tmp_path) == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert evaluation.map_batches(double, batches, "judge", tmp_path) == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert done == batches
    kept, foreign = ((tmp_path / f"judge-{number}.json").read_text() for number in (1, 0))
    for damage in ("", kept[:20], "[]", "3", '{"a": 1}', kept.replace("5.0", "5.5"), kept.replace("rows", "row"),
                   foreign):
        (tmp_path / "judge-1.json").write_text(damage)
        assert evaluation.map_batches(double, batches, "judge", tmp_path) == [0.0, 2.5, 5.0, 7.5, 10.0]
        assert done.pop() == [0, 2]
        assert "judge-1.json is damaged" in capsys.readouterr().out
    assert done == batches


# ---- no room left

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_leaves_the_earlier_file(main, small_disk):
    """A file that does not fit: the message names the folder and what to do, the earlier file stays, no other does."""
    path = small_disk / "scores.json"
    main.write_json(path, [1])
    with pytest.raises(OSError, match=r"no room left to write into .*small\. .*make room.*run again") as error:
        main.write_json(path, ["x" * 2**21])
    assert error.value.__cause__.errno == errno.ENOSPC
    assert load(path) == [1]
    assert [file.name for file in small_disk.iterdir()] == ["scores.json"]


def test_full_disk_under_a_size_limit(main, tmp_path):
    """The same with a limit on the size of files, which needs no right to mount."""
    path = tmp_path / "scores.json"
    main.write_json(path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="no room left"):
            main.write_json(path, ["x" * 2**20])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(path) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("free", [40, 100, 400, 700])
def test_full_disk_at_a_checkpoint(main, small_disk, settings, tokenizer, pairs, tmp_path, free):  # noqa: F811
    """Training on a disk with so many KiB left stops with the message; where there is room it goes on to the end."""
    record = {"settings": settings, "models": [
        {"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}
    run = small_disk / "run"
    run.mkdir()
    (run / "ballast").write_bytes(bytes(shutil.disk_usage(run).free - free * 1024))

    def make_trainer(checkpoints, rows):
        trainer = main.sft_trainer(settings, tokenizer, pairs, pairs[:2], checkpoints, rows)
        save_every_step(trainer)
        return trainer

    with pytest.raises(OSError, match="no room left to write into .*run"):
        main.train("SFT", record, settings["base_model"], run, MADE["made_from"], make_trainer, tokenizer, TEXTS)
    assert not (run / "adapters" / "sft").exists()
    shutil.copytree(run, tmp_path / "larger", ignore=shutil.ignore_patterns("ballast"))
    made = main.train("SFT", record, settings["base_model"], tmp_path / "larger", MADE["made_from"], make_trainer,
                      tokenizer, TEXTS)
    assert made["log"][-1]["step"] == 4


# ---- two at once, and from the start

def test_second_notebook_is_refused_while_the_folder_is_in_use(main, demo_run, tmp_path):
    """Either notebook is refused while another process holds the folder, changes nothing, and works once it is free."""
    holder = subprocess.Popen(["python3", "-c", "import fcntl, sys, time; file = open(sys.argv[1], 'a');"
                               "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)",
                               demo_run.run / ".lock"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    before = contents_of(demo_run.run.parents[1])
    for notebook in ("main.ipynb", "eval.ipynb"):
        with pytest.raises(PapermillExecutionError, match="demo is in use by another process"):
            execute(notebook, tmp_path / notebook, PRESET="demo", **demo_run.places)
    assert differing(before, contents_of(demo_run.run.parents[1])) == []
    holder.kill()
    holder.wait()
    main.lock_run(demo_run.run).release(force=True)


def test_one_process_locks_its_folder_again_and_again(main, tmp_path):
    """In a notebook the cell that locks can be run twice; released, the folder is free for another process."""
    probe = ["python3", "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
             tmp_path / ".lock"]
    lock = main.lock_run(tmp_path)
    lock = main.lock_run(tmp_path)
    assert subprocess.run(probe, capture_output=True).returncode != 0
    lock.release(force=True)
    assert subprocess.run(probe, capture_output=True).returncode == 0


def test_interrupted_fresh_start_can_be_repeated(main, tmp_path, monkeypatch):
    """Stopped at any file, the run's record is still there: the rest is not taken for rewards from elsewhere."""
    run = tmp_path / "demo"
    run.mkdir()
    names = ["adapters", "eval.json", "prompts.json", "responses.json", "run.json", "scores.json", "training.json"]
    for name in names:
        (run / name).write_text(name)
    moved = []
    monkeypatch.setattr(main.shutil, "move", lambda path, aside: moved.append(path.name))
    main.set_aside(run)
    assert sorted(moved) == names
    assert moved[-1] == "run.json"


def test_fresh_moves_the_old_files_aside(main, tmp_path):
    """Starting over keeps the old files, in a folder beside the run's; executed notebooks and what is named stay."""
    run = tmp_path / "demo"
    (run / "adapters" / "sft").mkdir(parents=True)
    for name in ("run.json", "scores.json", ".lock", "main.ipynb", "adapters/sft/made.json"):
        (run / name).write_text(name)
    main.set_aside(run, ["run.json"])
    (aside,) = tmp_path.glob("demo-*")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "main.ipynb", "run.json"]
    assert (aside / "adapters" / "sft" / "made.json").read_text() == "adapters/sft/made.json"
    assert (aside / "scores.json").read_text() == "scores.json"
    main.set_aside(tmp_path / "nothing")
    assert json.loads(json.dumps(sorted(path.name for path in tmp_path.iterdir()))) == ["demo", aside.name]
