"""Several processes train and evaluate as one does, write once, fail together and go on."""

import os
import re

import pytest
import torch
from conftest import command, load
from several import main as train_small_run

from benchmarks.processes import train
from posttrain import files, launching, notebooks, preparation, processes, settings, sharing
from posttrain.batches import in_batches
from posttrain.parameters import read_parameters
from posttrain.record import source_of
from posttrain.run import Run

CLOSE = 1e-4  # between the logged losses of one process and of several, which round differently


def count_lines(output, message):
    """Count the lines that say a message; others show the code that it comes from."""
    return len(re.findall(rf"^(?:Process \d: )?{re.escape(message)}", output, re.MULTILINE))


def log_of(folder):
    """Read the log of a small run."""
    return load(folder / "results" / "demo" / "training.json")


def furthest(log, other):
    """Compute the largest difference of a logged number between two logs of the same steps."""
    differences = [0.0]
    assert log.keys() == other.keys()
    for name in log:
        assert [row["step"] for row in log[name]] == [row["step"] for row in other[name]]
        for row, same in zip(log[name], other[name]):
            assert row.keys() == same.keys()
            for field in ("loss", "eval_loss", "eval_rewards/margins"):
                if field in row:
                    differences.append(abs(row[field] - same[field]))
    assert len(differences) > 10
    return max(differences)


def weights_of(folder, adapter="sft_dpo"):
    """Read the bytes of an adapter."""
    return (
        folder / "results" / "demo" / "adapters" / adapter / "adapter_model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a small run by one process, which is this one."""
    folder = tmp_path_factory.mktemp("one")
    train_small_run(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the same run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    several(2, folder)
    return folder


def test_two_processes_take_the_same_steps_as_one(one, two):
    assert furthest(log_of(one), log_of(two)) < CLOSE


def test_the_record_says_how_many_processes_made_a_model(one, two):
    for folder, number in ((one, 1), (two, 2)):
        artifacts = load(folder / "results" / "demo" / "run.json")["artifacts"]
        assert {entry["environment"]["processes"] for entry in artifacts.values()} == {number}
        assert set(artifacts) == {"adapters/sft", "adapters/sft_dpo"}


@pytest.mark.slow
@pytest.mark.parametrize("small", ["", "yes"])
def test_passes_of_any_size_and_more_processes_take_the_same_steps(one, tmp_path, small):
    several(4, tmp_path, f"small={small}")
    assert furthest(log_of(one), log_of(tmp_path)) < CLOSE


@pytest.mark.slow
def test_two_processes_have_the_same_bytes_when_repeated(two, tmp_path):
    several(2, tmp_path)
    assert weights_of(tmp_path) == weights_of(two)
    assert log_of(tmp_path) == log_of(two)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 5])  # the second epoch begins at step 4
def test_two_processes_go_on_exactly_where_two_have_stopped(two, tmp_path, step):
    output, _ = several(2, tmp_path, f"stop={step}", expect=1)
    assert count_lines(output, "stopped") == 1
    several(2, tmp_path)
    assert weights_of(tmp_path) == weights_of(two)
    assert log_of(tmp_path) == log_of(two)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [44, 40])  # the last pass can be shared, or is a small one
def test_the_last_pass_has_its_weight_after_a_training_went_on(tmp_path, rows):
    options = [f"rows={rows}", "small=yes"]
    several(1, tmp_path / "one", *options)
    several(2, tmp_path / "two", *options, "stop=3", expect=1)
    several(2, tmp_path / "two", *options)
    assert furthest(log_of(tmp_path / "one"), log_of(tmp_path / "two")) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_and_says_so(one, tmp_path, before, after):
    several(before, tmp_path, "stop=5", expect=1)
    output, _ = several(after, tmp_path)
    assert f"was begun with {before} process" in output
    assert "Every step has the same pairs, and only rounding differs." in output
    assert "dropout" not in output
    assert furthest(log_of(one), log_of(tmp_path)) < CLOSE


@pytest.mark.slow
def test_dropout_is_said_to_be_drawn_anew(tmp_path):
    several(2, tmp_path, "dropout=0.1", "stop=3", expect=1)
    output, _ = several(1, tmp_path, "dropout=0.1")
    assert "dropout, which is drawn anew, so the result cannot be reproduced." in output


# ---- failures


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "this process has a mishap of its own"),
        ("memory", "CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("kill", "Signal 9 (SIGKILL)"),
    ],
)
def test_one_that_fails_ends_all_and_the_next_run_goes_on(two, tmp_path, what, message, rank):
    output, seconds = several(2, tmp_path, f"mishap={what},4,{rank}", expect=1)
    assert seconds < 30
    if what == "kill":
        assert message in output  # says torchrun
    else:
        assert count_lines(output, message) == 1
    several(2, tmp_path)
    assert weights_of(tmp_path) == weights_of(two)


@pytest.mark.slow
def test_a_process_that_hangs_ends_all_after_the_time_out(tmp_path):
    output, seconds = several(2, tmp_path, "mishap=hang,4,1", expect=1, PROCESS_TIMEOUT="0.25")
    assert output.count("The processes have waited for each other for 0.25 minutes") == 1
    assert seconds < 15 + 15


def several(number, folder, *options, expect=0, **variables):
    """Train in a number of processes; return what they print, and the seconds since a mishap."""
    status, output, seconds = train(number, folder, *options, **variables)
    assert status == expect, output[-5000:]
    return output, seconds


# ---- what is refused


@pytest.mark.slow
def test_three_processes_are_refused_before_the_training(tmp_path):
    output, _ = several(3, tmp_path, expect=1)
    message = "3 processes cannot share the 16 pairs of a step (batch_size) of SFT equally."
    assert output.count(message) == 1
    assert "PROCESSES can be 1, 2, 4." in output
    assert not (tmp_path / "results" / "demo" / "adapters").exists()


@pytest.mark.slow
def test_processes_that_read_other_pairs_are_refused(tmp_path):
    output, _ = several(2, tmp_path, "data=other", expect=1)
    assert output.count("What SFT is trained on differs between the processes: train_dataset") == 1


@pytest.mark.slow
def test_a_trainer_whose_steps_would_depend_on_the_number_is_refused(tmp_path):
    output, _ = several(2, tmp_path, expect=1, WITHOUT_SPLIT="1")
    assert output.count("Add **device.device_options(s.precision) to the arguments") == 1


@pytest.mark.parametrize("variable", list(processes.SHARDING))
def test_splitting_a_model_is_refused_by_name(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=processes.SHARDING[variable]):
        processes.require_replicas()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "RUNS=a b", "PROCESSES=2"], "PROCESSES: compare does its work in one process"),
        (["run", "PROCESSES=0"], "PROCESSES = '0': Input should be greater than or equal to 1"),
        (["run", "PROCESSES=two"], "PROCESSES = 'two'"),
        (["run", "PROCESSES=2", "PROCESS_TIMEOUT=0"], "PROCESS_TIMEOUT = '0'"),
    ],
)
def test_the_command_line_refuses(arguments, message):
    done = command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parameters = read_parameters(["PROCESSES=4"])
    with pytest.raises(ValueError, match="PROCESSES = 4, but torch sees 2 GPUs"):
        launching.require_launchable("run", parameters)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_a_time_out_that_is_no_positive_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("PROCESS_TIMEOUT", text)
    with pytest.raises(ValueError, match="must be a positive number of minutes"):
        processes.read_timeout()


# ---- what each process does


def test_all_presets_can_be_trained_by_two_four_and_eight():
    for preset in settings.PRESETS:
        values = settings.choose(settings.Training, preset)
        assert values.batch_size % 8 == 0
        assert values.validation_pairs % 8 == 0


def test_parts_of_batches_are_complete_and_disjoint(monkeypatch):
    batches = [list(range(8)), list(range(8, 16)), [16, 17, 18]]
    monkeypatch.setenv("WORLD_SIZE", "4")
    taken = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        taken.append(list(sharing._take_parts(batches)))
    assert taken[1] == [[2, 3], [10, 11], [16, 17, 18]]
    for place in (0, 1):
        assert sum((parts[place] for parts in taken), []) == batches[place]


def test_every_process_takes_whole_batches_and_all_get_all_values(monkeypatch):
    batches = [[3, 1], [0], [2, 4]]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    asked = []

    def square(batch):
        asked.append(batch)
        return [i * i for i in batch]

    monkeypatch.setattr(processes, "gather", lambda own: [{3: 9, 1: 1, 2: 4, 4: 16}, own])
    assert in_batches(square, batches, "squares") == [0, 1, 4, 9, 16]
    assert asked == [[0]]


def test_single_process_decides_directly():
    assert processes.on_main(divmod, 7, 2) == (3, 1)
    assert processes.gather("own") == ["own"]
    with pytest.raises(ZeroDivisionError):
        processes.on_main(divmod, 7, 0)


def test_another_process_than_the_main_one_cannot_write(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError, match="Another process than the main one would write"):
        files.write(tmp_path / "a.json", [])
    with files.written_whole(tmp_path / "folder") as temporary:
        assert temporary.name == "folder.tmp"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("x = 1\n%pip install x", ValueError, "'%pip install x' is a command of Jupyter"),
        ("import sys\nsys.exit(3)", processes.CellError, "stopped: SystemExit: 3"),
        ("1 / 0", processes.CellError, "stopped: ZeroDivisionError: division by zero"),
        ("x = = 1", processes.CellError, "stopped: SyntaxError"),
    ],
)
def test_a_cell_that_fails_is_named(source, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        notebooks._execute_cell(source, "<main.ipynb, cell [3]>", {})
    assert str(caught.value).startswith("<main.ipynb, cell [3]>")


def test_functions_of_a_cell_can_be_read_again():
    names = {"__name__": "__main__"}
    notebooks._execute_cell("def double(x):\n    return 2 * x  # twice", "<cell [4]>", names)
    assert source_of(names["double"]) == "def double(x):\n    return 2 * x"


def test_a_number_of_processes_that_cannot_share_a_step_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parameters = read_parameters(["PRESET=demo", f"RESULTS={tmp_path}"])
    with pytest.raises(ValueError, match="3 processes cannot share the 16 pairs of a step"):
        preparation.prepare(parameters)


def test_more_processes_than_cores_are_refused_without_a_gpu():
    parameters = read_parameters(["PROCESSES=5000"])
    with pytest.raises(ValueError, match="PROCESSES = 5000, but this machine has no GPU and only"):
        launching.require_launchable("run", parameters)


# ---- the whole demo


@pytest.mark.slow
def test_two_processes_answer_and_judge_as_one(copied_run):
    """Asked again by two processes, the same models give the same files to the byte.

    Rewards agree up to rounding, which on some processors depends on the number of threads.
    """
    run = Run(copied_run.run.parent, "demo", copied_run.figures.parent)
    equal = ("prompts.json", "responses.json")
    before = {name: (run.folder / name).read_bytes() for name in equal}
    rewards = load(run.folder / "scores.json")
    run.start_over(evaluation_alone=True)
    given = [f"RESULTS={copied_run.run.parent}", f"FIGURES={copied_run.figures.parent}"]
    done = command("run", "PRESET=demo", "PROCESSES=2", *given, env=without_seed())
    assert done.returncode == 0, done.stderr[-5000:]
    for name, content in before.items():
        assert (run.folder / name).read_bytes() == content
    again = load(run.folder / "scores.json")
    assert len(again) == len(rewards)
    for record, one in zip(again, rewards):
        assert record == one | {"reward": pytest.approx(one["reward"], abs=2e-6)}
    assert (run.folder / "report.html").exists()


def without_seed():
    """Copy the environment without a seed of hashes, so that every process has one of its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}


@pytest.mark.slow
def test_the_whole_demo_by_two_processes(demo_run, tmp_path):
    given = [f"RESULTS={tmp_path / 'results'}", f"FIGURES={tmp_path / 'figures'}"]
    done = command("run", "PRESET=demo", "PROCESSES=2", *given)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("SFT was trained in") == 1
    names = {path.name for path in (tmp_path / "results" / "demo").glob("[!.]*")}
    of_one = {path.name for path in demo_run.run.glob("[!.]*")}
    assert of_one - names == {"main.ipynb", "eval.ipynb"}
    assert names <= of_one
    figures = {path.name for path in (tmp_path / "figures" / "demo").iterdir()}
    assert figures == {path.name for path in demo_run.figures.iterdir()}
    one = load(demo_run.run / "training.json")
    assert furthest(one, log_of(tmp_path)) < 1e-2  # rounding grows over many steps
