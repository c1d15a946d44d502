"""docs/recipes.md: its commands are executed with stand-ins, and their arguments are checked.

The fast tests hand the arguments to the parsers that read them: the command line of the package,
which also checks the sources, and TRL's. The slow ones execute every block of the page. STAND_INS
lists what is replaced before. Nothing is installed, and what a package is missing for (lm_eval) is
skipped.
"""

import copy
import dataclasses
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import HUB, ROOT, Session
from datasets import Dataset
from jinja2 import Template
from packaging.requirements import Requirement
from peft import get_peft_model
from trl import DPOTrainer, SFTTrainer, get_peft_config
from trl.scripts import dpo as trl_dpo
from trl.scripts import sft as trl_sft

from posttrain import __main__ as command_line
from posttrain import device, models
from posttrain.__main__ import main
from posttrain.files import write
from posttrain.parameters import read_parameters
from posttrain.settings import Training, choose
from posttrain.transcripts import read_split

TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SHELL = [text for language, text in BLOCKS if language == "sh"]
(RENAME, EXPORT) = [text for language, text in BLOCKS if language == "python"]

# What stands in for what: a pattern, and what is written in its place, in this order.
STAND_INS = [
    # a model, dataset or judge on the hub, or the reader's own: the demo's
    (r"\bBASE_MODEL=\S+ FORMAT=chat PRESET=small", "BASE_MODEL=chat-base FORMAT=chat PRESET=demo"),
    (r"\bBASE_MODEL=(?!chat-base)\S+", "BASE_MODEL=demo/hub/opt"),
    (r"\bDATASET=(?!mydata)\S+", "DATASET=demo/hub/hh-rlhf"),
    (r"\bHARMFUL=\S+ HELPFUL=\S+", "HARMFUL=demo/hub/hh-rlhf/harmless-base HELPFUL=pairs.parquet"),
    (r"\bREWARD_MODEL=\S+", "REWARD_MODEL=demo/hub/reward-model"),
    (r"\bSECOND_JUDGE=\S+", "SECOND_JUDGE=second-judge"),
    (r"facebook/opt-350m", "demo/hub/opt"),
    # a preset that needs a GPU, and the name of its run: the demo's
    (r"\b(quick|full)\b", "demo"),
    (r"--dtype bfloat16 --bf16 true", "--dtype float32 --use_cpu --bf16 false"),
    # long texts: the demo's are short
    (r"\bMAX_NEW_TOKENS=256", "MAX_NEW_TOKENS=24"),
    (r'"max_length": 1024', '"max_length": 600'),
    # a server that runs until it is stopped: the same program lists what it would show
    (r"tensorboard --logdir", "tensorboard --inspect --logdir"),
    # installing, which would change the environment of the tests: nothing
    (r"^\.venv/bin/python -m pip install .*\n", ""),
    # public tasks, which need the hub: nothing
    (r"^\.venv/bin/lm_eval .*arc_easy(.*\\\n)+.*\n", ""),
]
FEW = ("MAX_PAIRS=60", "N_PROMPTS=6", "MAX_NEW_TOKENS=12")  # for `make run` and `make sweep`
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Stands in for make, whose targets pass their parameters on to this command. (make would install.)
MAKE = f"""#!{sys.executable}
import os, sys
target, *given = sys.argv[1:]
names = [argument.split("=")[0] for argument in given]
few = [value for value in {FEW!r} if value.split("=")[0] not in names]
if target in ("run", "sweep", "seeds"):
    given += few
os.execv(sys.executable, [sys.executable, "-m", "posttrain", target, *given])
"""


def replace(text):
    """Put the stand-ins into a block of the page."""
    for pattern, stand_in in STAND_INS:
        text = re.sub(pattern, stand_in, text, flags=re.MULTILINE)
    return text


def commands(program):
    """List the arguments of a program's commands on the page, with stand-ins."""
    found = []
    for block in SHELL:
        for line in replace(block).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if program in line else []
            while words and "=" in words[0]:  # a variable of the environment
                words = words[1:]
            if words[:1] == [program]:
                found.append(words[1:])
    return found


def name_block(block):
    """Name a block by the heading above it and its first line."""
    heading = re.findall(r"^## (.*)$", TEXT[: TEXT.index(block)], re.MULTILINE)[-1]
    return f"{heading}: {block.splitlines()[0]}"


def make_folder(folder):
    """Make a folder that looks like the repository's to the commands of the page."""
    (folder / "demo").symlink_to(ROOT / "demo")
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(HUB / "reward-model", folder / "second-judge")
    config = json.loads((folder / "second-judge" / "config.json").read_text(encoding="utf-8"))
    write(folder / "second-judge" / "config.json", config | {"note": "not the first judge"})
    shutil.copytree(HUB / "opt", folder / "chat-base")
    tokenizer = models.load_tokenizer(folder / "chat-base")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "chat-base")
    pairs = read_split(HUB / "hh-rlhf", "helpful-base", "train")
    pd.DataFrame(pairs).to_parquet(folder / "pairs.parquet")
    (folder / "bin").mkdir()
    (folder / "bin" / "make").write_text(MAKE, encoding="utf-8")
    (folder / "bin" / "make").chmod(0o755)
    return folder


# ---- the commands of the package


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_parameters_of_make_are_accepted(words, monkeypatch, tmp_path):
    """The command line takes them; for `run` it also checks the settings and the sources."""
    target, *arguments = words
    arguments = [re.sub("DATASET=mydata", "DATASET=demo/hub/hh-rlhf", word) for word in arguments]
    assert target in command_line.COMMANDS
    read_parameters(arguments)
    if target != "run":
        return
    # These are checked elsewhere: they start processes, and need packages that are not installed.
    arguments = [word for word in arguments if not re.match("PROCESSES|REPORT_TO", word)]
    monkeypatch.chdir(make_folder(tmp_path))
    executed = []

    def note(notebook, folder, parameters):
        executed.append(notebook)
        write(folder / "summary.md", "")

    monkeypatch.setattr(command_line, "execute", note)
    main([target, *arguments, f"RESULTS={tmp_path / 'results'}", "N_PROMPTS=6"])
    assert executed == ["main.ipynb", "eval.ipynb"]


def test_what_is_installed_is_named_as_pip_reads_it():
    names = []
    for line in re.findall(r"-m pip install (.*)", TEXT):
        names += [Requirement(word).name for word in shlex.split(line)]
    assert names == ["tensorboard", "wandb", "trackio", "lm_eval"]


def test_columns_are_renamed_for_make_data(monkeypatch, tmp_path):
    """The snippet for SafeRLHF, on rows with the columns that it names."""
    rows = [
        {"prompt": "a", "response_0": "b", "response_1": "c", "safer_response_id": 1},
        {"prompt": "d", "response_0": "e", "response_1": "f", "safer_response_id": 0},
    ]
    loaded = Dataset.from_list(rows)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: loaded)
    monkeypatch.chdir(tmp_path)
    exec(compile(RENAME, "rename.py", "exec"), {"__name__": "__main__"})
    assert pd.read_parquet("safe.parquet").to_dict("records") == [
        {"prompt": "a", "chosen": "c", "rejected": "b"},
        {"prompt": "d", "chosen": "e", "rejected": "f"},
    ]


# ---- TRL's command line


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The names of main.ipynb after its pairs were loaded, and what its trainers are built with.

    The settings are those of the preset `quick`, for which the page is written.
    """
    folder = tmp_path_factory.mktemp("recipes")
    results = folder / "results"
    session = Session("main.ipynb", PRESET="demo", MAX_PAIRS=60, RESULTS=results, REPORT_TO="none")
    for cell in session.cells[: session.cells.index(session.find("data.load_pairs")) + 1]:
        session.run(cell)
    names = session.shell.user_ns
    names["s"] = choose(Training, "quick", {"precision": "fp32"})  # as STAND_INS have it
    names["reply_only"] = True
    session.run(session.find("lora = LoraConfig("))
    names.update(
        SFTTrainer=lambda **arguments: arguments,
        PairTrainer=lambda **arguments: arguments,
        train=lambda trainer, *arguments, **options: trainer,
    )
    session.run(session.find('"SFT"] = train'))
    session.run(session.find('log["DPO"] = train'))
    return session.names, make_folder(folder)


def parse(name):
    """Parse the page's `trl sft` or `trl dpo`: the arguments of script, training, and model."""
    scripts = {"sft": trl_sft, "dpo": trl_dpo}
    (arguments,) = [words[1:] for words in commands(".venv/bin/trl") if words[0] == name]
    parsed = scripts[name].make_parser().parse_args_and_config(arguments)
    return parsed[:3]


def list_differences(one, other):
    """List the fields in which two configurations differ."""
    names = [field.name for field in dataclasses.fields(one)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


# The page names these differences, apart from the folder.
DELIBERATE = {
    "sft": {
        "output_dir",
        "model_init_kwargs",  # dropout, which the notebook sets in the base's config
        "dataset_kwargs",  # in the notebook the rows are token ids already
    },
    "dpo": {"output_dir", "model_init_kwargs"},
}


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_trl_is_configured_as_in_the_notebook(notebook, name):
    names, _ = notebook
    trainer = names.log[name.upper()]
    _, config, model = parse(name)
    assert list_differences(config, trainer["args"]) == DELIBERATE[name]
    assert json.loads(json.dumps(config.model_init_kwargs)) == {"dropout": names.s.dropout}
    assert model.dtype == str(names.base_dtype).removeprefix("torch.")
    lora = get_peft_config(model)
    assert list_differences(lora, trainer["peft_config"]) == {"target_modules", "exclude_modules"}
    adapted = []
    for chosen in (lora, trainer["peft_config"]):
        base = get_peft_model(models.load_base(HUB / "opt"), copy.deepcopy(chosen))
        adapted.append([layer for layer, _ in base.named_parameters() if "lora_A" in layer])
    assert adapted[0] == adapted[1] != []
    names_in_text = choose(Training, "quick").base_model
    assert f"--model_name_or_path {names_in_text}" in TEXT


def test_precision_of_trl_is_the_notebooks_on_a_gpu(monkeypatch):
    """The arguments that are replaced on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "choose_precision", lambda wanted: "bf16")
    options = device.device_options("auto")
    dtype = device.choose_dtype(HUB / "opt", "auto", frozen=True)
    for script in (trl_sft, trl_dpo):
        given = script.make_parser().parse_args(["--dtype", "bfloat16", "--bf16", "true"])
        assert {name: getattr(given, name) for name in options} == options
        assert given.dtype == str(dtype).removeprefix("torch.")
    assert TEXT.count("  --dtype bfloat16 --bf16 true \\\n") == 2


def test_trl_makes_the_same_tokens(notebook, monkeypatch):
    """The exported pairs have the token ids, labels and dropout of the notebook's trainers."""
    names, folder = notebook
    monkeypatch.chdir(folder)
    exec(compile(replace(EXPORT), "export_pairs.py", "exec"), {"__name__": "__main__"})
    from datasets import load_dataset

    trainers = {}
    for name, kind in (("sft", SFTTrainer), ("dpo", DPOTrainer)):
        script, config, model = parse(name)
        dataset = load_dataset(script.dataset_name)
        config.model_init_kwargs |= {"dtype": model.dtype}
        trainers[name] = kind(
            model=model.model_name_or_path,
            args=config,
            train_dataset=dataset[script.dataset_train_split],
            eval_dataset=dataset[script.dataset_test_split],
            peft_config=get_peft_config(model),
        )
        assert trainers[name].model.config.dropout == names.s.dropout
        assert trainers[name].processing_class.padding_side == "right" or name == "dpo"
    for split, place in (("train", "train_dataset"), ("validation", "eval_dataset")):
        sft, dpo = getattr(trainers["sft"], place), getattr(trainers["dpo"], place)
        for ours, theirs in ((names.pairs.for_sft(split), sft), (names.pairs.for_dpo(split), dpo)):
            for column in ours.column_names:
                assert ours[column][:] == theirs[column][:], column


# ---- lm-evaluation-harness


def test_task_shows_the_model_prompt_and_replies():
    """The harness renders a task's fields with jinja2; a literal would be taken as it is."""
    (block,) = [block for block in SHELL if "preferences.yaml" in block]
    task = yaml.safe_load(re.search(r"<<'END'\n(.*?)^END$", block, re.DOTALL | re.MULTILINE)[1])
    assert re.search(r"--tasks (\w+)", block)[1] == task["task"]
    record = json.loads((ROOT / "results" / "example" / "prompts.json").read_text())[0]
    assert Template(task["doc_to_text"]).render(record) == record["prompt"]
    # It reads what is rendered as a Python list.
    replies = yaml.safe_load(Template(task["doc_to_choice"]).render(record))
    assert replies == [record["chosen"], record["rejected"]]
    assert replies[task["doc_to_target"]] == record["chosen"]


# ---- everything, executed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the page's commands work, with the run that some of them begin with."""
    folder = make_folder(tmp_path_factory.mktemp("place"))
    (folder / "export_pairs.py").write_text(replace(EXPORT), encoding="utf-8")
    execute(folder, "make run PRESET=demo")
    execute(folder, ".venv/bin/python export_pairs.py")
    return folder


def execute(folder, text):
    """Execute a block of the page in a folder, and return what it prints."""
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("recipes")  # some begin with the run of an earlier one
@pytest.mark.parametrize("block", SHELL, ids=name_block)
def test_block_is_executed(place, block):
    text = replace(block)
    (tracker,) = re.findall(r"REPORT_TO=(wandb|trackio)", text) or [None]
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    if tracker and tracker not in installed:
        with pytest.raises(AssertionError, match=f"it is not installed.* -m pip install {tracker}"):
            execute(place, text)
        return
    if "lm_eval" in text and not Path(sys.prefix, "bin", "lm_eval").exists():
        pytest.skip("needs lm_eval, which is not installed")
    before = {path: path.stat().st_mtime for path in (place / "results").glob("*/metrics.json")}
    printed = execute(place, text)
    after = {path: path.stat().st_mtime for path in (place / "results").glob("*/metrics.json")}
    if re.search(r"^make r", text, re.MULTILINE):
        named = re.search(r"RUN=(\S+)", text)
        run = place / "results" / (named[1] if named else "demo")
        assert (run / "metrics.json") in after
        assert before != after or named is None
    if "--inspect" in text:
        assert "train/loss" in printed
    for kind in re.findall(r"trl (sft|dpo) ", text):
        assert (place / f"trl-{kind}" / "adapter_model.safetensors").exists()
    if "--log_samples" in text:
        assert list((place / "results" / "demo" / "lm-eval").rglob("samples_preferences_*.jsonl"))
