"""A change of a trainer is noticed if and only if it can change the trained model."""

import functools
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from datasets import Dataset, IterableDataset
from small_runs import HUB, OPT, copy_run, make_run
from small_trainers import LORA, begin_run, define, make_dpo, make_sft, pairs
from transformers import TrainerCallback, get_cosine_schedule_with_warmup
from trl import SFTTrainer

from posttrain import models
from posttrain.description import (
    describe,
    fingerprint_adapter,
    fingerprint_dataset,
    identify_base,
)
from posttrain.files import fingerprint
from posttrain.pair_trainer import PairTrainer
from posttrain.record import list_differences
from posttrain.run import Run

DROPOUT = {**LORA, "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which nothing is trained."""
    return begin_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def as_they_are(run):
    """{function: description} of both unedited trainers."""
    return {make: describe(make(), run) for make in (make_sft, make_dpo)}


def names_of_differences(before, after):
    """List the names of the differences between two descriptions, as run.json stores them."""
    before, after = json.loads(json.dumps([before, after]))
    return [difference.name for difference in list_differences(before, after)]


# ---- alike


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_trainers_built_alike_are_described_alike(run, as_they_are, make):
    """Random numbers drawn in between and uses of the tokenizer do not matter."""
    torch.manual_seed(7)
    assert describe(make(), run) == as_they_are[make]


NOTEBOOK = """
SCALE = 2.0
def scaled(loss):
    return loss * SCALE if "honest" in {"harmless", "helpful", "honest"} else loss
class Mine(Trainer):
    def compute_loss(self, *args, **kwargs):
        return scaled(super().compute_loss(*args, **kwargs))
"""
CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_description import fingerprints
print(*fingerprints(Path({folder!r})))
"""


def fingerprints(folder):
    """Describe several trainers, with and without a source that Python can read."""
    run = begin_run(folder)
    described = [describe(make_dpo(), run)]
    for with_source in (True, False):
        mine = define(NOTEBOOK, with_source, Trainer=SFTTrainer)["Mine"]
        described.append(describe(make_sft(mine), run))
    return [fingerprint(description) for description in described]


def test_another_process_describes_them_alike(tmp_path):
    """Sets may have another order in another process."""
    code = CHILD.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "there"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert not done.returncode, done.stderr
    expected = fingerprints(tmp_path / "here")
    assert done.stdout.split() == expected
    assert len(set(expected)) == 3


# ---- noticed


def dataset_edited(edit):
    """Edit the columns of the SFT training data, and return them as a constructor's argument."""
    columns = pairs().for_sft("train").to_dict()
    edit(columns)
    return {"constructor": {"train_dataset": Dataset.from_dict(columns)}}


def change_a_token(columns):
    columns["input_ids"][7][3] += 1


def change_a_label(columns):
    columns["labels"][7][-2] = -100


def exchange_two_rows(columns):
    for rows in columns.values():
        rows[0], rows[1] = rows[1], rows[0]


def drop_a_row(columns):
    for rows in columns.values():
        rows.pop()


def move_a_border(columns):
    """Move a token from the end of one row to the beginning of the next."""
    for rows in columns.values():
        rows[1] = [rows[0][-1], *rows[1]]
        rows[0] = rows[0][:-1]


SFT_EDITS = {
    "learning rate": ({"learning_rate": 2e-3}, ["learning_rate"]),
    "schedule": ({"lr_scheduler_type": "linear"}, ["lr_scheduler_type"]),
    "warm-up": ({"warmup_steps": 0.05}, ["warmup_steps"]),
    "epochs": ({"num_train_epochs": 1}, ["num_train_epochs"]),
    "steps": ({"max_steps": 4}, ["max_steps"]),
    "batch": ({"per_device_train_batch_size": 8}, ["pairs_in_a_step"]),
    "order": ({"train_sampling_strategy": "random"}, ["train_sampling_strategy"]),
    "seed": ({"seed": 1}, ["seed"]),
    "optimizer": ({"optim": "sgd"}, ["optim"]),
    "weight decay": ({"weight_decay": 0.1}, ["weight_decay"]),
    "clipping": ({"max_grad_norm": 0.5}, ["max_grad_norm"]),
    "noise": ({"neftune_noise_alpha": 5.0}, ["neftune_noise_alpha"]),
    "drop last": ({"dataloader_drop_last": True}, ["dataloader_drop_last"]),
    "rank": ({"lora": {**LORA, "r": 8}}, None),
    "alpha": ({"lora": {**LORA, "lora_alpha": 4}}, ["lora_alpha"]),
    "LoRA dropout": ({"lora": DROPOUT}, ["lora_dropout"]),
    "layers": ({"lora": {**LORA, "target_modules": ["q_proj", "v_proj"]}}, None),
    "full fine-tuning": ({"lora": None}, None),
    "a token": (dataset_edited(change_a_token), ["train_dataset"]),
    "a label": (dataset_edited(change_a_label), ["train_dataset"]),
    "another order": (dataset_edited(exchange_two_rows), ["train_dataset"]),
    "a row less": (dataset_edited(drop_a_row), ["train_dataset"]),
    "another border": (dataset_edited(move_a_border), ["train_dataset"]),
    "all tokens carry loss": ({"reply_only": False}, ["eval_dataset", "train_dataset"]),
    "other held-out pairs": (
        {"constructor": {"eval_dataset": pairs().for_sft("train")}},
        ["eval_dataset"],
    ),
}
DPO_EDITS = {
    "loss": ({"loss_type": "ipo"}, ["loss_type"]),
    "losses": ({"loss_type": ["sigmoid", "sft"]}, ["loss_type"]),
    "beta": ({"beta": 0.2}, ["beta"]),
    "smoothing": ({"label_smoothing": 0.1}, ["label_smoothing"]),
    "divergence": ({"f_divergence_type": "js_divergence"}, ["f_divergence_type"]),
    "sharing": ({"constructor": {"share_prompts": False}}, ["constructor.share_prompts"]),
}


@pytest.mark.parametrize("edit", SFT_EDITS)
def test_edit_of_an_sft_trainer_is_noticed(run, as_they_are, edit):
    changes, expected = SFT_EDITS[edit]
    names = names_of_differences(as_they_are[make_sft], describe(make_sft(**changes), run))
    assert names
    assert expected is None or names == expected


@pytest.mark.parametrize("edit", DPO_EDITS)
def test_edit_of_a_dpo_trainer_is_noticed(run, as_they_are, edit):
    changes, expected = DPO_EDITS[edit]
    names = names_of_differences(as_they_are[make_dpo], describe(make_dpo(**changes), run))
    assert names == expected


def test_rank_and_layers_are_named(run, as_they_are):
    before = as_they_are[make_sft]
    wider = describe(make_sft(lora={**LORA, "r": 8}), run)
    assert names_of_differences(before, wider) == ["r", "trained_weights.sha256_of_names"]
    fewer = describe(make_sft(lora={**LORA, "target_modules": ["q_proj", "v_proj"]}), run)
    assert {"target_modules", "trained_weights.tensors"} <= set(names_of_differences(before, fewer))


def test_dropout_of_the_base_is_noticed(run, as_they_are):
    trainer = make_sft(model=models.load_base(OPT, dropout=0.1))
    assert names_of_differences(as_they_are[make_sft], describe(trainer, run)) == ["dropout"]


def test_weights_of_the_base_are_noticed(run, as_they_are, tmp_path):
    """A folder with the same config and one different weight is another base."""
    base = models.load_base(OPT)
    with torch.no_grad():
        base.model.decoder.embed_tokens.weight[3, 3] += 0.01
    base.save_pretrained(tmp_path)
    trainer = make_sft(model=models.load_base(tmp_path))
    names = names_of_differences(as_they_are[make_sft], describe(trainer, run))
    assert "base_model" in names


def test_base_of_a_trainer_is_the_source_of_the_run(tmp_path):
    """Both are identified alike, and a file that is not loaded does not matter to either."""
    folder = shutil.copytree(OPT, tmp_path / "opt")
    source = Run(tmp_path / "results", "demo").source("base_model", folder)
    (folder / "README.md").write_text("About this model.")
    run = Run(tmp_path / "results", "demo")
    assert run.source("base_model", folder).identity == source.identity
    assert identify_base(models.load_base(folder), run) == source.identity


def test_base_is_known_by_its_commit_on_the_hub(run, tmp_path):
    """This is so if it is loaded by its name, which stores the commit, or from the cache."""
    commit = "0123456789" * 4
    folder = tmp_path / "models--a--b" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    folder.symlink_to(OPT)
    assert describe(make_sft(model=models.load_base(folder)), run)["base_model"] == commit
    base = models.load_base(OPT)
    base.config._name_or_path = "a/b"
    base.config._commit_hash = commit
    assert describe(make_sft(model=base), run)["base_model"] == commit


def test_frozen_weights_are_noticed(run):
    """In full fine-tuning a cell may freeze some weights."""
    before = describe(make_sft(lora=None), run)
    base = models.load_base(OPT)
    base.model.decoder.embed_tokens.weight.requires_grad = False
    names = names_of_differences(before, describe(make_sft(lora=None, model=base), run))
    assert names == ["trained_weights.sha256_of_names", "trained_weights.tensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with random adapters SFT and DPO."""
    return make_run(tmp_path_factory.mktemp("trained"))


def test_adapter_that_is_gone_on_from_is_known_by_its_weights(trained, tmp_path):
    """A copy counts as the same, another adapter as different, and a new one as None."""
    def description_of(run, name):
        model = models.load_adapter(run, name, OPT)
        return describe(make_dpo(model=model, lora=None), run)

    before = description_of(trained, "SFT")
    assert description_of(copy_run(trained, tmp_path), "SFT") == before
    after = description_of(trained, "DPO")
    assert names_of_differences(before, after) == ["goes_on_from"]
    in_bf16 = models.load_adapter(trained, "SFT", OPT, dtype=torch.bfloat16)
    assert fingerprint_adapter(in_bf16) == before["goes_on_from"]
    assert describe(make_dpo(), trained)["goes_on_from"] is None


class Counting(TrainerCallback):
    """A callback that counts."""

    def __init__(self, every):
        self.every = every


def test_callbacks_are_noticed(run, as_they_are):
    """Their number, their order and their arguments matter."""
    described = [as_they_are[make_sft]]
    for callbacks in ([Counting(1)], [Counting(2)], [Counting(1), Counting(2)]):
        described.append(describe(make_sft(constructor={"callbacks": callbacks}), run))
    for i, before in enumerate(described):
        for after in described[i + 1 :]:
            assert names_of_differences(before, after) == ["constructor.callbacks"]


def with_optimizer(learning_rate, groups=1, warmup=2):
    """Build a trainer with an optimizer and a schedule made by hand."""
    model = models.load_base(OPT)
    weights = list(model.parameters())
    parts = [{"params": weights}]
    if groups == 2:
        parts = [{"params": weights[:5]}, {"params": weights[5:], "lr": 10 * learning_rate}]
    optimizer = torch.optim.SGD(parts, lr=learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, 6)
    return make_sft(lora=None, model=model, constructor={"optimizers": (optimizer, schedule)})


def test_optimizers_made_by_hand_are_noticed(run):
    before = describe(with_optimizer(1e-3), run)
    assert describe(with_optimizer(1e-3), run) == before
    for other in (with_optimizer(2e-3), with_optimizer(1e-3, groups=2)):
        names = names_of_differences(before, describe(other, run))
        assert any(name.startswith("constructor.optimizer") for name in names)
    names = names_of_differences(before, describe(with_optimizer(1e-3, warmup=3), run))
    assert names == ["constructor.lr_scheduler.lr_lambdas"]
    assert names_of_differences(before, describe(make_sft(lora=None), run))


def test_reference_model_is_noticed(run):
    """Its weights matter, wherever they come from."""
    described = []
    for change in (0, 0.01):
        reference = models.load_base(OPT)
        with torch.no_grad():
            reference.model.decoder.embed_tokens.weight[3, 3] += change
        constructor = {"ref_model": reference}
        described.append(describe(make_dpo(lora=None, constructor=constructor), run))
    names = names_of_differences(*described)
    assert names == ["constructor.ref_model.weights"]


def test_data_collator_is_noticed(run, as_they_are):
    trainer = make_sft()
    trainer.data_collator.pad_to_multiple_of = 8
    names = names_of_differences(as_they_are[make_sft], describe(trainer, run))
    assert names == ["constructor.data_collator.pad_to_multiple_of"]


def test_several_sets_of_held_out_pairs_are_told_apart(run):
    both = {"a": pairs().for_sft("validation"), "b": pairs().for_sft("train")}
    before = describe(make_sft(constructor={"eval_dataset": both}), run)
    both = {"a": both["b"], "b": both["a"]}
    after = describe(make_sft(constructor={"eval_dataset": both}), run)
    assert names_of_differences(before, after) == ["eval_dataset.a", "eval_dataset.b"]


def test_data_are_known_by_their_rows_alone():
    """A selection, chunks or a copy on disk are the same rows; another order is not."""
    table = pairs().for_sft("train")
    rows = table.to_list()
    expected = fingerprint_dataset(table)
    assert fingerprint_dataset(Dataset.from_list(rows, features=table.features)) == expected
    longer = Dataset.from_list([*rows, *rows], features=table.features)
    assert fingerprint_dataset(longer.select(range(len(rows)))) == expected
    assert fingerprint_dataset(longer.select(range(len(rows), len(longer)))) == expected
    backwards = table.select(range(len(table) - 1, -1, -1))
    assert fingerprint_dataset(backwards) != expected
    assert fingerprint_dataset(backwards.select(range(len(table) - 1, -1, -1))) == expected


def test_copy_of_the_data_on_the_disk_is_the_same(tmp_path):
    table = pairs().for_dpo("train")
    table.save_to_disk(tmp_path, num_shards=3)
    assert fingerprint_dataset(Dataset.load_from_disk(tmp_path)) == fingerprint_dataset(table)


def test_streamed_data_are_refused():
    streamed = IterableDataset.from_generator(iter, gen_kwargs={"iterable": [{"a": 1}]})
    with pytest.raises(ValueError, match=r"IterableDataset .*Give the trainer a datasets\.Dataset"):
        fingerprint_dataset(streamed)


# ---- what a notebook defines

LOSS = """
import math
SCALE = 2.0
WEIGHTS = [0.25, 0.75]
TABLE = {"helpful": 1}
NAMES = ("a", "b")
class settings:
    def __init__(self, beta, path):
        self.beta, self.path = beta, path
s = settings(0.1, "here")
def with_power(power):
    def raise_it(value):
        return value**power
    return raise_it
squared = with_power(2)
def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
@decorated
@torch.no_grad()
def helper(loss, add=0.5):
    # a comment
    return [loss * weight + SCALE * add for weight in WEIGHTS][0] + TABLE["helpful"]
other = lambda loss: max(loss * factor for factor in (s.beta, 3.0))
class Mine(Trainer):
    kind = "mine"
    limits = [1, 2]
    @staticmethod
    def cut(loss):
        return min(loss, 10.0)
    @property
    def share(self):
        return 0.5
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return self.cut(squared(helper(loss)) + other(loss) * math.pi) * self.share
"""
CODE_EDITS = {
    "the body": ("* self.share", "* self.share * 1.5"),
    "a helper's body": ('0] + TABLE', '0] - TABLE'),
    "a global number in a comprehension": ("SCALE = 2.0", "SCALE = 2.5"),
    "a global list": ("[0.25, 0.75]", "[0.5, 0.75]"),
    "a global table": ('"helpful": 1', '"helpful": 2'),
    "an object's attribute": ("settings(0.1", "settings(0.2"),
    "a default": ("add=0.5", "add=0.6"),
    "a closure": ("with_power(2)", "with_power(3)"),
    "a lambda": ("(s.beta, 3.0)", "(s.beta, 4.0)"),
    "a static method": ("min(loss, 10.0)", "min(loss, 11.0)"),
    "a property": ("return 0.5", "return 0.6"),
    "a number of the class": ('kind = "mine"', 'kind = "yours"'),
    "a list of the class": ("limits = [1, 2]", "limits = [1, 3]"),
    "what a decorator does": ("return function(*args", "return 2 * function(*args"),
}
OTHER_EDITS = {
    "a comment": ("# a comment", "# another"),
    "a line": ("\nclass Mine", "\n\n\nclass Mine"),
    "layout": ("squared(helper(loss)) + other", "squared(helper( loss ))+other"),
    "what nobody reads": ('NAMES = ("a", "b")', 'NAMES = ("a", "c")'),
    "an attribute that nobody reads": ('"here"', '"there"'),
}


def describe_notebooks(run, source, edit, with_source=True, make=make_sft, kind=SFTTrainer):
    """Describe a notebook's trainer before and after an edit of its source."""
    assert source.count(edit[0]) == 1
    described = []
    for text in (source, source.replace(*edit)):
        names = define(text, with_source, Trainer=kind, functools=functools, torch=torch)
        described.append(describe(make(names["Mine"]), run))
    return described


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("edit", CODE_EDITS)
def test_edit_of_a_notebooks_code_is_noticed(run, edit, with_source):
    """This covers the trainer's class, the code that it calls and the values that it reads."""
    before, after = describe_notebooks(run, LOSS, CODE_EDITS[edit], with_source)
    names = names_of_differences(before, after)
    assert names
    assert all(name.startswith("notebook.") for name in names)


@pytest.mark.parametrize("edit", OTHER_EDITS)
def test_edit_that_changes_no_code_is_not_noticed(run, edit):
    before, after = describe_notebooks(run, LOSS, OTHER_EDITS[edit])
    assert names_of_differences(before, after) == []


def test_edit_is_named_by_what_was_edited(run):
    before, after = describe_notebooks(run, LOSS, CODE_EDITS["an object's attribute"])
    assert [tuple(d) for d in list_differences(before, after)] == [("notebook.s.beta", 0.1, 0.2)]
    assert "math.pi" in before["notebook"]
    assert not [name for name in before["notebook"] if "ctx_factory" in name]


def test_preference_trainer_of_a_notebook_is_noticed(run, as_they_are):
    source = "class Mine(Trainer):\n    def compute_loss(self, *a, **k):\n        return 1.0\n"
    edit = ("1.0", "2.0")
    before, after = describe_notebooks(run, source, edit, True, make_dpo, PairTrainer)
    assert names_of_differences(before, after) == ["notebook.Mine"]
    names = names_of_differences(as_they_are[make_dpo], before)
    assert names == ["notebook.Mine", "trainer"]


OF_THE_OLD_KIND = pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
FUNCTIONS = """
def loss_of(outputs, labels, num_items_in_batch=None, scale=1.0):
    return outputs["loss"] * scale
"""


@OF_THE_OLD_KIND
def test_loss_function_is_noticed(run, as_they_are):
    """It may be given as it is, or with some of its arguments."""
    described = [as_they_are[make_sft]]
    edited = FUNCTIONS.replace("* scale", "/ scale")
    for source in (FUNCTIONS, edited):
        loss_of = define(source)["loss_of"]
        partial = functools.partial
        for function in (loss_of, partial(loss_of, scale=2.0), partial(loss_of, scale=3.0)):
            constructor = {"compute_loss_func": function}
            described.append(describe(make_sft(constructor=constructor), run))
    for i, before in enumerate(described):
        for after in described[i + 1 :]:
            assert names_of_differences(before, after)


COLLATOR = """
class Collator:
    def __init__(self, width, weights):
        self.width, self.weights = width, weights
    def __call__(self, rows):
        return rows[: self.width]
"""


def test_collator_of_a_notebook_is_noticed(run):
    """Its code and its arguments matter, tensors included."""
    described = []
    for source, width, weight in (
        (COLLATOR, 2, 0.5), (COLLATOR, 2, 0.5), (COLLATOR, 3, 0.5), (COLLATOR, 2, 0.6),
        (COLLATOR.replace("rows[:", "rows[1:"), 2, 0.5),
    ):  # fmt: skip
        collator = define(source)["Collator"](width, torch.full((3,), weight))
        described.append(describe(make_sft(constructor={"data_collator": collator}), run))
    assert described[0] == described[1]
    for i, before in enumerate(described[1:]):
        for after in described[i + 2 :]:
            assert names_of_differences(before, after)


CALLBACK = """
class Scaling(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        state.scale = SIZE * 2
"""


def test_callback_of_a_notebook_is_noticed(run):
    described = []
    for source, size in ((CALLBACK, 1), (CALLBACK, 3), (CALLBACK.replace("* 2", "* 4"), 1)):
        callback = define(source, TrainerCallback=TrainerCallback, SIZE=size)["Scaling"]
        described.append(describe(make_sft(constructor={"callbacks": [callback()]}), run))
    assert names_of_differences(described[0], described[1]) == ["notebook.SIZE"]
    assert names_of_differences(described[0], described[2]) == ["notebook.Scaling"]


@OF_THE_OLD_KIND
def test_two_functions_of_one_name_are_both_noticed(run):
    """All lambdas have the same name."""
    source = "inner = lambda x: x + 1\nouter = lambda o, l, **k: inner(o) * 2\n"
    described = []
    for text in (source, source.replace("+ 1", "+ 2")):
        constructor = {"compute_loss_func": define(text)["outer"]}
        described.append(describe(make_sft(constructor=constructor), run))
    assert names_of_differences(*described)


@OF_THE_OLD_KIND
def test_large_values_are_kept_as_their_sha256(run):
    source = "def loss_of(o, l, **k):\n    return o * TABLE[0]\n"
    described = []
    for last in (1, 2):
        loss_of = define(source, TABLE=[*range(5000), last])["loss_of"]
        described.append(describe(make_sft(constructor={"compute_loss_func": loss_of}), run))
    assert len(described[0]["notebook"]["TABLE"]) == 64
    assert names_of_differences(*described) == ["notebook.TABLE"]


# ---- not noticed

INDIFFERENT = {
    "paths": {"output_dir": "/tmp/elsewhere", "run_name": "another"},
    "logging": {"logging_steps": 5, "logging_first_step": False, "log_level": "error"},
    "saving": {"save_steps": 0.5, "save_total_limit": 3, "save_only_model": True},
    "tracker": {"report_to": "tensorboard"},
    "bar": {"disable_tqdm": True},
    "passes": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    "devices": {"dataloader_num_workers": 1, "dataloader_pin_memory": False},
    "checkpointing of activations": {"activation_checkpointing": True},
    "precision": {"tf32": None, "bf16_full_eval": True},
}


@pytest.mark.parametrize("make", [make_sft, make_dpo])
@pytest.mark.parametrize("edit", INDIFFERENT)
def test_what_only_says_where_and_how_is_not_noticed(run, as_they_are, make, edit):
    described = describe(make(**INDIFFERENT[edit]), run)
    assert names_of_differences(as_they_are[make], described) == []


def test_type_of_the_frozen_weights_is_not_noticed(run, as_they_are):
    """A model that was trained in bf16 is used even where fp32 would be chosen."""
    trainer = make_sft(model=models.load_base(OPT, dtype=torch.bfloat16))
    assert names_of_differences(as_they_are[make_sft], describe(trainer, run)) == []


def test_version_of_a_library_is_not_noticed(run, as_they_are, monkeypatch):
    """It is listed beside the results; changed defaults would be noticed."""
    trainer = make_sft()
    trainer.model.peft_config["default"].peft_version = "0.22.0"
    trainer.model.config.transformers_version = "6.0.0"
    assert names_of_differences(as_they_are[make_sft], describe(trainer, run)) == []


def test_place_of_the_base_is_not_noticed(run, as_they_are, tmp_path):
    (tmp_path / "moved").symlink_to(HUB)
    trainer = make_sft(model=models.load_base(tmp_path / "moved" / "opt"))
    assert names_of_differences(as_they_are[make_sft], describe(trainer, run)) == []


def test_a_run_of_another_name_describes_alike(as_they_are, tmp_path):
    assert describe(make_sft(), Run(tmp_path, "other")) == as_they_are[make_sft]
