"""Whole runs with bases and judges of many kinds: they work, or are refused in a sentence."""

import gc
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import HUB, ROOT, Session, load, places, small_dataset

from posttrain import generation, models

# Both notebooks collect garbage; to look for it among the modules would take half of a run.
gc.freeze()

# The last cell of eval.ipynb that depends on the models and the judge
RATES = "CAS = (HmR + HpR) / 2"
TRAINING = {
    "MAX_PAIRS": 40,
    "SETTINGS": {"validation_pairs": 4, "batch_size": 8, "max_length": 128, "max_new_tokens": 8},
}
EVALUATION = {"N_PROMPTS": 2, "MAX_NEW_TOKENS": 8, "SETTINGS": {"draws": 100}}


@dataclass
class Outcome:
    """How a run with both notebooks ended.

    Attributes:
        folder: the folder of the run.
        names: {notebook: its names}, also of a notebook that did not come to its end.
        error: what a cell raised; None if both notebooks came to their end.
        cell: the first line of that cell, after the name of its notebook.
        steps: the number of optimizer steps that were made before.
    """

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    cell: str = ""
    steps: int = 0

    @property
    def is_refused(self):
        """Whether the package itself raised the error, in a sentence."""
        if not isinstance(self.error, ValueError | RuntimeError):
            return False
        place = Path(traceback.extract_tb(self.error.__traceback__)[-1].filename)
        return place.is_relative_to(ROOT / "posttrain") and str(self.error).endswith(".")


def cells_on_models(session):
    """List a notebook's cells up to the rates, without those that draw a figure."""
    cells = []
    for cell in session.cells:
        if "figures.show(" not in cell.source:
            cells.append(cell)
        if RATES in cell.source:
            break
    return cells


def run_both(folder, base=HUB / "opt", judge=HUB / "reward-model", **evaluation):
    """Run both notebooks with a base and a judge on a small dataset, as far as they come.

    What only depends on the rewards is left out, since it takes most of the time.
    """
    dataset = folder / "dataset"
    if not dataset.exists():
        small_dataset(dataset)
    outcome = Outcome(folder / "results" / "demo")
    given = places(folder) | {"DATASET": dataset}
    sessions = {
        "main": Session("main.ipynb", **given, BASE_MODEL=base, **TRAINING),
        "eval": Session("eval.ipynb", **given, REWARD_MODEL=judge, **EVALUATION | evaluation),
    }
    for notebook, session in sessions.items():
        for cell in cells_on_models(session):
            try:
                session.run(cell)
            except Exception as error:
                outcome.error = error
                outcome.cell = f"{notebook}: {cell.source.splitlines()[0]}"
                break
        outcome.names[notebook] = session.names
        if outcome.error is not None:
            break
    outcome.steps = count_steps(outcome)
    return outcome


def count_steps(outcome):
    """Count the optimizer steps of all trainings of a run."""
    names = outcome.names["main"]
    steps = 0
    for log in getattr(names, "log", {}).values():
        steps += max(record.get("step", 0) for record in log)
    trainer = getattr(names, "trainer", None)
    if outcome.error is not None and outcome.cell.startswith("main") and trainer is not None:
        steps += trainer.state.global_step if trainer.model is not None else 0
    return steps


# ---- the same results, computed in another way


def texts_of(records):
    """List what the models wrote: {model: [(response, finish)]}."""
    texts = {}
    for record in records:
        texts.setdefault(record["model"], []).append((record["response"], record["finish"]))
    return texts


def answer_one_by_one(outcome, base):
    """Load a run's models again and let each answer every prompt in a batch of its own."""
    names = outcome.names["eval"]
    loaded = models.load_models(names.run, base)
    tokenizer = models.load_tokenizer(base)
    records = []
    for name in loaded:
        records += generation.answer_as(name, loaded, tokenizer, names.prompts, 1, **names.decoding)
    return records


@torch.no_grad()
def decode_greedily(model, tokenizer, prompt, limit):
    """Go on with a prompt, at every step with the likeliest token of a forward pass over all."""
    ids = tokenizer(prompt)["input_ids"]
    written = []
    while len(written) < limit:
        logits = model.eval()(torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
        text = tokenizer.decode(written, skip_special_tokens=True)
        if written[-1] == tokenizer.eos_token_id or "\n\nHuman:" in text:
            break
    return text.split("\n\nHuman:")[0].strip()


@torch.no_grad()
def compute_logits(model, tokenizer, text="\n\nHuman: How do I bake bread?\n\nAssistant:"):
    """Compute the logits of one text in a model's present mode."""
    return model(torch.tensor([tokenizer(text)["input_ids"]])).logits


def first_losses(outcome, name):
    """Read the loss before a training, on the held-out pairs, and that of its first step."""
    log = load(outcome.folder / "training.json")[name]
    before = [record["eval_loss"] for record in log if "eval_loss" in record]
    at_first = [record["loss"] for record in log if record.get("step") == 1 and "loss" in record]
    return before[0], at_first[0]
