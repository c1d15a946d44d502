"""Make a run with random adapters within a second, for tests of what follows the training."""

import shutil

import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model

from posttrain import models
from posttrain.record import Model, slug
from posttrain.run import Run

HUB = ROOT / "demo" / "hub"
OPT = HUB / "opt"
JUDGE = HUB / "reward-model"
NAMES = ["Base", "SFT", "DPO", "train"]  # the last one's name is a method of torch's modules
LORA = {
    "task_type": "CAUSAL_LM",
    "r": 4,
    "target_modules": "all-linear",
    "exclude_modules": ["project_in", "project_out"],
    "init_lora_weights": False,  # random, so that the adapter changes the base at once
}


def make_run(folder):
    """Make the run folder/results/demo with a base and three random adapters."""
    run = Run(folder / "results", "demo")
    tokenizer = models.load_tokenizer(OPT)
    run.add_model(Model(name="Base", base="demo/hub/opt", adapter=None))
    for seed, name in enumerate(NAMES[1:]):
        adapter = f"adapters/{slug(name)}"
        torch.manual_seed(seed)
        adapted = get_peft_model(models.load_base(OPT), LoraConfig(**LORA))

        def save(target, adapted=adapted):
            models.save_trained(adapted, target, OPT, "demo/hub/opt", None, tokenizer)

        run.stage(adapter, save, {"seed": seed})
        run.add_model(Model(name=name, base="demo/hub/opt", adapter=adapter))
    return run


def copy_run(run, folder):
    """Copy a run into another folder, so that a test may change it."""
    shutil.copytree(run.folder.parent, folder / "results")
    return Run(folder / "results", run.name)


def seal(run, name):
    """Enter the current content of a name into a run's record as its result."""
    from posttrain.files import sha256_of

    run.enter(name, {}, sha256_of(run.path(name)), None)
