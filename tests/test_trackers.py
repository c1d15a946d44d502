"""Trackers of training curves. W&B and Trackio are stand-ins, which behave as 0.31 and 0.43 do."""

import sys
import types
from pathlib import Path

import pytest
from small_trainers import begin_run, make_sft

from posttrain import trackers
from posttrain.settings import Training, choose
from posttrain.training import train


@pytest.fixture
def wandb(monkeypatch):
    """A W&B in online mode, with `is_known` for whether it knows a key."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(origin="wandb/__init__.py")
    module.Error = type("Error", (Exception,), {})
    module.mode, module.is_known = "online", False
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=module.mode))
    module.login = lambda prompt: module.is_known
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_folder_of_a_trackers_files_is_no_package(tmp_path, monkeypatch):
    """W&B leaves a folder `wandb` where it is used, which Python would import as a package."""
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="it is not installed. Install it with .* install a_track"):
        trackers.require_tracker("a_tracker")
    (tmp_path / "a_tracker" / "__init__.py").touch()
    trackers.require_tracker("a_tracker")


def test_wandb_without_login_is_refused(wandb):
    """It would stop the first training, after all data has been read."""
    with pytest.raises(ValueError, match="^REPORT_TO = 'wandb': .*not logged in.*WANDB_MODE=off"):
        choose(Training, "demo", REPORT_TO="wandb")
    wandb.is_known = True
    assert choose(Training, "demo", REPORT_TO="wandb").report_to == "wandb"
    wandb.is_known, wandb.mode = False, "offline"
    assert choose(Training, "demo", REPORT_TO="wandb").report_to == "wandb"


def test_wandb_with_a_wrong_key_is_refused(wandb):
    def login(prompt):
        raise wandb.Error("invalid API key")

    wandb.login = login
    with pytest.raises(ValueError, match=r"W&B's login failed \(invalid API key\). Log in with"):
        trackers.require_tracker("wandb")


def test_trackio_is_not_ended_twice(monkeypatch):
    """transformers has ended its run after the training, and Trackio then refuses to."""
    monkeypatch.setitem(sys.modules, "trackio", types.ModuleType("trackio"))  # without `finish`
    trackers.finish(types.SimpleNamespace(args=types.SimpleNamespace(report_to=["trackio"])))


def train_with_wandb(run, name, **changes):
    """Train two steps with W&B as the tracker, but without its callback."""
    trainer = make_sft(max_steps=2, eval_on_start=False, **changes)
    trainer.args.report_to = ["wandb"]
    train(trainer, run, name)


def test_each_training_is_a_run_of_wandb_in_a_folder_of_its_own(tmp_path, wandb):
    """A training that stops with an error ends its run too, so that the next has its own."""
    run = begin_run(tmp_path)
    calls = []
    wandb.init = lambda project, name, dir: calls.append((name, Path(dir).is_dir() and dir))
    wandb.finish = lambda: calls.append("finished")
    with pytest.raises(RuntimeError, match="no finite numbers"):
        train_with_wandb(run, "SFT", learning_rate=1e38)
    train_with_wandb(run, "SFT 2")
    first = ("demo SFT", str(run.path("logs/sft")))
    second = ("demo SFT 2", str(run.path("logs/sft_2")))
    assert calls == [first, "finished", second, "finished"]
