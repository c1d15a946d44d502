"""Losses: what a notebook says of them, and models trained by ORPO, SimPO and KTO."""

import functools
import math
import re

import pytest
import torch
from conftest import ROOT, Session, load, places, read_notebook, small_dataset
from peft import LoraConfig
from small_runs import OPT
from small_trainers import (
    BASE,
    COMMON,
    LORA,
    StopBefore,
    begin_run,
    make_dpo,
    make_sft,
    pairs,
    tokenizer,
)
from test_training import log_probability, stopped
from trl import KTOConfig, KTOTrainer, unpair_preference_dataset
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from posttrain import callbacks, device, losses, models, processes, sharing
from posttrain.description import describe
from posttrain.training import train

# ---- what is said of a loss


def test_names_are_those_of_trl():
    trainer = make_dpo(loss_type="of no kind")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match="Unknown loss type") as refusal:
        trainer.compute_loss(trainer.model, batch)
    known = re.findall(r"'(\w+)'", str(refusal.value).partition("Should be one of")[2])
    assert sorted(known) == sorted(losses.NAMES)
    assert sorted(losses.first_losses(0.1, 0.1)) == sorted(known)


@pytest.mark.parametrize("loss_type", losses.FORMULAS)
def test_formulas_are_those_of_the_trainer(loss_type):
    """A pair's loss, computed by the formula from the log-probabilities of whole texts."""
    beta = 0.7
    trainer = make_dpo(loss_type=loss_type, beta=beta, lora=LORA | {"init_lora_weights": False})
    base = models.load_base(OPT)
    for i in range(3):
        pair = pairs().train[i]
        ratios, lengths = {}, {}
        for side in ("chosen", "rejected"):
            trained = log_probability(trainer.model, pair, side)
            ratios[side] = trained - log_probability(base, pair, side)
            lengths[side] = len(pair[f"{side}_ids"])  # with the token that ends the text
        difference = beta * (ratios["chosen"] - ratios["rejected"])
        per_token = [ratios[side] / lengths[side] for side in ratios]
        expected = {
            "sigmoid": math.log1p(math.exp(-difference)),
            "hinge": max(0, 1 - difference),
            "ipo": (per_token[0] - per_token[1] - 1 / (2 * beta)) ** 2,
        }
        batch = trainer.data_collator([trainer.train_dataset[i]])
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, batch).item()
        assert loss == pytest.approx(expected[loss_type], rel=1e-3, abs=1e-4)


def test_explanation_has_the_formula_where_there_is_one():
    for name in losses.NAMES:
        text = losses.explain_loss(name, None, 0.1, 0.001)
        assert (name in losses.FORMULAS) == ("$$L = " in text)
        assert f"`{name}`" in text
    text = losses.explain_loss("ipo", None, 0.5, 0)
    assert "equation 17 of [arXiv 2310.12036](https://arxiv.org/abs/2310.12036)" in text
    assert "divided by its number of tokens" in text
    assert text.endswith("Before the first step, with β = 0.5, its value is 1.0000.")


def test_explanation_of_several_losses():
    text = losses.explain_loss(("sigmoid", "sft"), (1, 0.25), 0.1, 0.1)
    assert "-\\log \\sigma" in text and "describes the loss `sft`" in text
    assert "added up with the weights 1, 0.25." in text
    assert "`label_smoothing` has no effect here" in text
    assert text.endswith("Its value before the first step is not known in advance.")
    assert "label_smoothing" not in losses.explain_loss("robust", None, 0.1, 0.1)


def test_a_run_with_the_default_loss_is_recognised(tmp_path):
    """The notebook names the loss now; a model trained before it did has the same description."""
    run = begin_run(tmp_path)
    named = make_dpo(loss_type="sigmoid", loss_weights=None, label_smoothing=0.0)
    assert describe(named, run) == describe(make_dpo(), run)
    several = describe(make_dpo(loss_type=("ipo", "hinge"), loss_weights=(1.0, 2.0)), run)
    as_lists = make_dpo(loss_type=["ipo", "hinge"], loss_weights=[1.0, 2.0])
    assert several == describe(as_lists, run)
    assert several["arguments"]["loss_type"] == ["ipo", "hinge"]


def test_both_cells_of_dpo_pass_the_loss_on():
    cells = [cell.source for cell in read_notebook("main.ipynb").cells]
    cells = [cell for cell in cells if "DPOConfig(" in cell and "train(trainer" in cell]
    assert len(cells) == 2
    for cell in cells:
        for name in ("loss_type", "loss_weights", "label_smoothing"):
            assert f"\n        {name}=s.{name},\n" in cell


# ---- trainers other than DPO's


def make_other(kind, config, base=None, **changes):
    """Build a trainer on texts, with the arguments of the other small trainers."""
    return kind(
        model=models.load_base(OPT),
        args=config(**{**COMMON, **changes}),
        train_dataset=(base or pairs().as_texts)("train"),
        eval_dataset=(base or pairs().as_texts)("validation"),
        processing_class=tokenizer(),
        peft_config=LoraConfig(**LORA),
    )


def as_single_replies(split):
    """Make the dataset of KTO."""
    return unpair_preference_dataset(pairs().as_texts(split)).shuffle(seed=0)


ALIKE = {"remove_unused_columns": False}
make_orpo = functools.partial(make_other, ORPOTrainer, ORPOConfig, **ALIKE)
make_cpo = functools.partial(make_other, CPOTrainer, CPOConfig, **ALIKE)
make_simpo = functools.partial(make_cpo, loss_type="simpo", cpo_alpha=0.0, beta=2.0)
make_kto = functools.partial(
    make_other,
    KTOTrainer,
    KTOConfig,
    as_single_replies,
    train_sampling_strategy="sequential",
    per_device_eval_batch_size=8,
)


def test_texts_become_the_ids_of_the_other_trainers():
    trainer = make_orpo()
    for row, pair in zip(trainer.train_dataset, pairs().train, strict=True):
        for side in ("chosen", "rejected"):
            ids = [*pair["prompt_ids"], *pair[f"{side}_ids"]]
            assert row[f"{side}_input_ids"] == ids
            assert row[f"{side}_labels"].count(-100) == len(pair["prompt_ids"])
        assert row["length"] == pair["length"]
    kto = make_kto()
    texts = {(*row["prompt_ids"], *row["completion_ids"]) for row in kto.train_dataset}
    for pair in pairs().train:
        assert (*pair["prompt_ids"], *pair["chosen_ids"]) in texts
        assert (*pair["prompt_ids"], *pair["rejected_ids"]) in texts


@pytest.mark.parametrize(
    ("make", "depends"),
    [
        (make_sft, False),
        (make_dpo, False),
        (functools.partial(make_dpo, loss_type="aot"), True),
        (functools.partial(make_dpo, loss_type="aot_unpaired"), True),
        (functools.partial(make_dpo, loss_type=["sigmoid", "sft"]), True),
        (make_orpo, True),
        (make_cpo, True),
        (make_simpo, False),
        (make_kto, True),
        (functools.partial(make_kto, loss_type="apo_zero_unpaired"), False),
    ],
)
def test_a_step_is_split_only_where_its_loss_stays_the_same(tmp_path, monkeypatch, make, depends):
    trainer = make()
    assert sharing.depends_on_passes(trainer) == depends
    described = describe(trainer, begin_run(tmp_path))["arguments"]
    assert described.get("pairs_in_a_pass") == (16 if depends else None)
    monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer: 4)
    assert device.settle_pass(trainer) == (16 if depends else 4)
    assert trainer.args.gradient_accumulation_steps == (1 if depends else 4)


@pytest.mark.parametrize("loss_type", losses.NAMES)
def test_losses_that_can_be_split_are_means_over_pairs(loss_type):
    """With an adapter that changes the base, a batch's loss is the mean of single pairs' losses."""
    adapter = LORA | {"init_lora_weights": False}
    trainer = make_dpo(loss_type=loss_type, label_smoothing=0.1, lora=adapter)
    rows = [trainer.train_dataset[i] for i in range(6)]

    def compute_loss(part):
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, trainer.data_collator(part)).item()

    mean = sum(compute_loss([row]) for row in rows) / len(rows)
    is_mean = compute_loss(rows) == pytest.approx(mean, rel=1e-4)
    assert is_mean == (loss_type not in sharing.OVER_BATCHES)


def test_pass_that_must_not_be_split_and_does_not_fit_is_refused(monkeypatch):
    trainer = make_orpo()
    monkeypatch.setattr(device, "fits", lambda trainer, pairs: False)
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    with pytest.raises(RuntimeError, match="A pass of 16 pairs does not fit .* smaller per_device"):
        device.settle_pass(trainer)


def test_loss_that_depends_on_passes_is_not_shared_by_processes(monkeypatch):
    trainers = [make_kto(), make_dpo(loss_type="aot")]
    monkeypatch.setattr(processes, "count", lambda: 2)
    for trainer in trainers:
        with pytest.raises(ValueError, match="so 2 processes would train another model than one"):
            sharing.require_sharable(trainer, "X")


@pytest.mark.parametrize("make", [make_orpo, make_kto])
def test_trial_leaves_no_trace_in_the_log(make):
    """A trial pass would otherwise count in the first mean that is logged."""
    trainer = make()
    name = "_stored_metrics" if make is make_orpo else "_metrics"
    assert device.fits(trainer, 4)
    assert not getattr(trainer, name)["train"]


def test_last_pass_of_an_epoch_weighs_as_much_as_its_pairs(tmp_path, monkeypatch):
    """Of 46 pairs the last step has 14, which passes of 8 split into 8 and 6."""
    logs = []
    for size in (16, 8):
        monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer, size=size: size)
        run = begin_run(tmp_path / str(size))
        logs.append(train(make_simpo(train_sampling_strategy="random"), run, "SimPO"))
    steps = [record for record in logs[0] if "loss" in record]
    assert len(steps) == 6
    for whole, split in zip(*logs, strict=True):
        assert whole.get("loss") == pytest.approx(split.get("loss"), rel=1e-5)


def test_first_loss_of_kto_is_known():
    trainer = make_kto()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    assert callbacks.expected_first_loss(trainer) == pytest.approx(loss, rel=1e-6) == 0.5
    assert callbacks.expected_first_loss(make_kto(desirable_weight=1.5)) is None
    assert callbacks.expected_first_loss(make_orpo()) is None


@pytest.mark.parametrize("make", [make_orpo, make_kto], ids=["ORPO", "KTO"])
def test_trainings_other_than_dpo_are_gone_on_with_to_the_bit(tmp_path, monkeypatch, make):
    whole = begin_run(tmp_path / "whole")
    train(make(), whole, "X")
    run = begin_run(tmp_path / "stopped")
    stopped(monkeypatch, StopBefore(4), lambda run: make(), run, "X")
    train(make(), run, "X")
    for name in ("adapter_model.safetensors", "log.json"):
        path = f"adapters/x/{name}"
        assert (run.folder / path).read_bytes() == (whole.folder / path).read_bytes()


# ---- the cells of docs/, in main.ipynb


def cells_of_docs():
    """Find the cells that train a model by another trainer, {name: source}."""
    cells = {}
    for path in sorted((ROOT / "docs").glob("*.md")):
        for source in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.M | re.S):
            name = re.search(r'train\(trainer, run, "(ORPO|SimPO|KTO)"\)', source)
            if name:
                cells[name[1]] = source
    return cells


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """main.ipynb on a hundred pairs, then the cells of docs/, each run twice."""
    folder = tmp_path_factory.mktemp("losses")
    small_dataset(folder / "data")
    session = Session("main.ipynb", DATASET=folder / "data", **places(folder)).run_all()
    cells = cells_of_docs()
    assert list(cells) == ["ORPO", "SimPO", "KTO"]
    for source in cells.values():
        session.run(source)
        files = {path: path.stat().st_mtime_ns for path in session.names.run.folder.rglob("*")}
        session.run(source)  # the model is there, so nothing is trained or written
        assert files == {
            path: path.stat().st_mtime_ns for path in session.names.run.folder.rglob("*")
        }
    return session


def test_notebook_shows_the_formula_of_its_loss(notebook):
    shown = eval(notebook.find("tables.loss(").source, vars(notebook.names))
    assert shown.data == losses.explain_loss("sigmoid", None, notebook.names.s.beta, 0.0)


@pytest.mark.parametrize("name", ["ORPO", "SimPO", "KTO"])
def test_a_cell_of_docs_trains_a_model_that_learns(notebook, name):
    log = notebook.names.log[name]
    held_out = [record["eval_loss"] for record in log if "eval_loss" in record]
    assert len(held_out) >= 4 and held_out[-1] < held_out[0]
    (model,) = [model for model in notebook.names.run.models if model.name == name]
    assert (model.base, model.parent) == (BASE, None)


def test_an_edited_cell_is_refused(notebook):
    source = cells_of_docs()["ORPO"].replace("beta=0.1,", "beta=0.2,")
    with pytest.raises(ValueError, match=r"beta"):
        notebook.run(source)


def test_the_sections_after_the_training_take_every_trainer(notebook, capsys):
    for text in ("tables.validation(", "training_figures.training(", "read_training("):
        notebook.run(notebook.find(text))
    printed = " ".join(capsys.readouterr().out.split())
    assert "ORPO: The loss on the held-out pairs went from" in printed
    assert printed.count("There is no reference: the chosen reply has the higher reward") == 2
    assert "KTO: The loss on the held-out pairs went from 0.500 to" in printed


@pytest.mark.slow
def test_eval_takes_all_models(notebook):
    folder = notebook.names.run.folder.parent.parent
    session = Session("eval.ipynb", **places(folder), N_PROMPTS=4, MAX_NEW_TOKENS=8).run_all()
    names = [row["model"] for row in load(session.names.run.path("metrics.json"))["models"]]
    assert names == ["Base", "SFT", "DPO", "SFT+DPO", "ORPO", "SimPO", "KTO"]
