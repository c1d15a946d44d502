"""How fast training, generation and judging are, against what a user would run otherwise, on whatever device is there.

    python -m benchmarks.speed [--dataset FOLDER] [--repeats 3] [--leave-out WAY ...]

Three ways: `published`, as a reader of the study would do it (eight pairs in a step, two at a time, random order,
activation checkpointing, fp32; one prompt, one answer at a time); `TRL`, its defaults at the same step; and `ours`,
what main.ipynb's own cells make and the package does. All train the same adapters on the same tokens: those of some
passes of a training of 800 pairs, as it makes them, since so few pairs by themselves would hardly be of like length.
The models have the full size and random weights; the text is that of a folder in HH-RLHF's layout, or the demo's. Each
measurement is a process of its own, in turn, and again. Writes benchmarks/speed.json (machine, versions, raw timings,
proofs that the work is the same) and speed.md. Until the last round is done, and where the work differs (RuntimeError),
what was measured lies in speed-unfinished.json.
"""

import argparse
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import nbformat
import torch
import transformers
import trl
from datasets import Dataset
from IPython.core.interactiveshell import InteractiveShell
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl.kernels import chunked_logprob

from demo import build
from posttrain import generation, hh, judging, models, presets, training
from posttrain.files import write
from posttrain.runs import process_peak

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "hub" / "hh-rlhf"
PAIRS, STEP = {"SFT": 32, "DPO": 16}, 8  # that are trained on, and in a step of it
OF = 800  # pairs of the training that they are drawn from, as many as preset small has
PROMPTS, NEW_TOKENS, ANSWERS = 16, 50, 24
ROUNDING = {"fp32": 1e-6, "bf16": 3e-4}  # how far a loss and log p may differ: in the same precision, in another
REWARDS_WITHIN = 1e-4  # how far rewards may differ
WAYS = {"SFT": ("published", "TRL", "ours", "ours fp32"), "DPO": ("published", "TRL", "ours", "ours fp32"),
        "generation": ("published", "ours"), "judging": ("published", "ours")}
OPT = {"hidden_size": 1024, "num_hidden_layers": 24, "ffn_dim": 4096, "num_attention_heads": 16,
       "word_embed_proj_dim": 512, "do_layer_norm_before": False, "max_position_embeddings": 2048, "vocab_size": 50272}
SHARP = 2  # times the weights of queries: few tokens are attended to, not all alike
DEBERTA = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
           "vocab_size": 128100, "pooler_hidden_size": 1024}
# of a token: two for each weight of the 24 layers (both models have as many) in a pass, and a pass is a forward, a
# backward to the activations (the weights are frozen), or the reference's forward
FLOP = {stage: 2 * passes * 24 * 12 * 1024**2 for stage, passes in {"SFT": 2, "DPO": 3, "judging": 1}.items()}
TOY = {"num_hidden_layers": 2, "hidden_size": 64, "ffn_dim": 128, "num_attention_heads": 2, "word_embed_proj_dim": 32,
       "vocab_size": 2048, "init_std": 0.08}  # so that a layer changes its input as much as a wide one's does


# ---- what is measured

def build_models(folder: Path, dataset: Path, toy: bool) -> None:
    """Write a base and a judge with random weights into a folder; the base's tokenizer is made from the dataset."""
    texts = [text for subset in hh.SUBSETS["base"] for row in hh.read_split(dataset, subset, "train")[:1000]
             if isinstance(row, dict) for text in (row["chosen"], row["rejected"])]
    sizes = OPT | (TOY if toy else {})
    build.OPT["vocab_size"] = sizes["vocab_size"] - 8
    build.write_opt_tokenizer(folder / "opt", texts)
    torch.manual_seed(0)
    base = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, dropout=0.1))
    with torch.no_grad():
        for layer in base.model.decoder.layers:
            # else the mean of a random ReLU layer drowns what a token attends to
            layer.fc2.weight -= layer.fc2.weight.mean(1, keepdim=True)
            layer.self_attn.q_proj.weight *= SHARP
        # no logits for ids that the tokenizer has not: answers of these would be empty texts
        base.get_input_embeddings().weight[len(models.load_tokenizer(folder / "opt")) :] = 0
    base.half().save_pretrained(folder / "opt")
    judge = ROOT / "demo" / "hub" / "reward-model"
    config = transformers.AutoConfig.from_pretrained(judge)
    for name, size in ({} if toy else DEBERTA).items():
        setattr(config, name, size)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "judge")
    for name in ("spm.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (judge / name).exists():
            (folder / "judge" / name).write_bytes((judge / name).read_bytes())


def of_the_notebook(folder: Path, dataset: Path, settings: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    """Return the names of main.ipynb after its cells that define, none that trains, for the base in folder/opt."""
    shell = InteractiveShell(user_ns={})
    parameters = {"PRESET": "small", "RUN": f"run-{os.getpid()}", "DATASET": str(dataset), "SETTINGS": settings,
                  "BASE_MODEL": str(folder / "opt"), "RESULTS": str(folder / "results"), "FRESH": True} | parameters
    for cell in nbformat.read(ROOT / "main.ipynb", 4).cells:
        if cell.cell_type != "code" or "training.once(" in cell.source:
            continue
        if "training.json" in cell.source:
            break
        shell.run_cell(cell.source, silent=True).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            shell.user_ns.update(parameters)
    return shell.user_ns


def now() -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(transformers.TrainerCallback):
    """Collects how long each optimiser step took, in seconds."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = [*getattr(self, "seconds", []), now() - self.begin]


def notebook_trainer(notebook: dict[str, Any], stage: str, folder: Path) -> transformers.Trainer:
    """Return the trainer of SFT or DPO that main.ipynb's own function makes, with as many pairs in a pass as it has."""
    base, s = notebook["base"].folder, notebook["s"]
    at_once = training.pairs_at_once(models.load_config(base), s.model_dump(), stage)
    if stage == "SFT":
        return notebook["sft"](folder, at_once)
    return notebook["dpo"](models.load_base(base, s.dropout, notebook["weights"]), notebook["lora"], folder, at_once)


def drawn_pairs(lengths: list[int], at_once: int, n: int) -> list[int]:
    """Return the numbers of `n` pairs: those of passes that are drawn from a training's, as its sampler makes them.

    `lengths`: the tokens of all pairs of the training; `at_once`: pairs in a pass.
    """
    order = get_length_grouped_indices(lengths, STEP, generator=torch.Generator().manual_seed(0))
    passes = [order[i : i + at_once] for i in range(0, len(order), at_once)]
    return [i for one in random.Random(0).sample(passes, n // at_once) for i in one]


def make_trainer(stage: str, way: str, folder: Path, dataset: Path) -> tuple[transformers.Trainer, list[dict]]:
    """Return the trainer of a stage, made one of the three ways, and the pairs that it trains on."""
    settings = {"batch_size": STEP, "validation_pairs": 2, "precision": "fp32" if way == "ours fp32" else "auto"}
    notebook = of_the_notebook(folder, dataset, settings, MAX_PAIRS=OF + 2)
    s, out, pairs = notebook["s"], folder / "unfinished", notebook["pairs"].train
    lengths = [len(pair["prompt_ids"]) + len(pair["chosen_ids"]) if stage == "SFT" else pair["length"]
               for pair in pairs]
    at_once = training.pairs_at_once(models.load_config(folder / "opt"), s.model_dump() | {"precision": "auto"}, stage)
    drawn = drawn_pairs(lengths, at_once, PAIRS[stage])
    trainer = (notebook_trainer(notebook, stage, out) if way.startswith("ours") else
               baseline(stage, way, notebook, out))
    trainer.train_dataset = trainer.train_dataset.select(drawn)
    if way.startswith("ours"):
        trainer.args.train_sampling_strategy = "sequential"  # they come as they were drawn: in passes of like length
    return trainer, [pairs[i] for i in drawn]


def baseline(stage: str, way: str, notebook: dict[str, Any], out: Path) -> transformers.Trainer:
    """Return TRL's own trainer of a stage, with the study's batches (`published`) or with its defaults (`TRL`)."""
    s = notebook["s"]
    trl.trainer.utils._use_triton = chunked_logprob._use_triton  # what the package changes
    options = {"per_device_train_batch_size": STEP, "num_train_epochs": 1, "max_length": s.max_length, "seed": s.seed,
               "use_cpu": not torch.cuda.is_available(), "report_to": "none"}
    if way == "published":
        options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": STEP // 2, "bf16": False}
    kind, config, columns = {
        "SFT": (trl.SFTTrainer, trl.SFTConfig, {"completion": "chosen"}),
        "DPO": (trl.DPOTrainer, trl.DPOConfig, {"chosen": "chosen", "rejected": "rejected"})}[stage]
    rows = [{"prompt": pair["prompt"]} | {column: f" {pair[side]}" for column, side in columns.items()}
            for pair in notebook["pairs"].train]
    return kind(models.load_base(notebook["base"].folder), args=config(out, **options),
                train_dataset=Dataset.from_list(rows), processing_class=notebook["tokenizer"],
                peft_config=notebook["lora"])


def measure_training(stage: str, way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Return the seconds of each step of a stage, the tokens of its texts, and what proves that the work is the same.

    That is the number of weights that are trained and of tokens with a loss, and `values`: the mean loss over these
    tokens (SFT), or log p of either reply over the pairs (DPO, whose loss is ln 2 however the texts are read). With a
    learning rate of zero they do not hang on the order of the pairs.
    """
    trainer, pairs = make_trainer(stage, way, folder, dataset)
    timer, labels, collate = StepTimes(), [], trainer.data_collator
    trainer.add_callback(timer)
    trainer.args.eval_on_start, trainer.args.logging_steps, trainer.args.learning_rate = False, 1, 0.0

    def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        labels.append(int((batch["labels"] != -100).sum() if stage == "SFT" else batch["completion_mask"].sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    replies = ("chosen",) if stage == "SFT" else ("chosen", "rejected")
    logs = [record for record in trainer.state.log_history if "loss" in record]
    passes = len(labels) // len(logs)
    steps = [sum(labels[i : i + passes]) for i in range(0, len(labels), passes)]
    if stage == "SFT":
        values = {"loss": sum(log["loss"] * n for log, n in zip(logs, steps, strict=True)) / sum(steps)}
    else:
        values = {f"log p({reply})": statistics.mean(log[f"logps/{reply}"] for log in logs) for reply in replies}
    return {"seconds": timer.seconds, "pairs": len(pairs), "tokens with a loss": sum(labels), "values": values,
            "trained weights": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
            "tokens": sum(len(pair["prompt_ids"]) + len(pair[f"{reply}_ids"]) for pair in pairs for reply in replies)}


def prompts_of(folder: Path, dataset: Path, n: int) -> list[dict[str, Any]]:
    """Return the middle n of a hundred pairs by the length of their prompts: a batch as the evaluation makes it."""
    pairs = hh.load_pairs(dataset, models.load_tokenizer(folder / "opt"), "base", 101, 1, 512, 0).train[:100]
    begin = (len(pairs) - n) // 2
    return sorted(pairs, key=lambda pair: len(pair["prompt_ids"]))[begin : begin + n]


def measure_generation(way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Return the seconds of greedy answers to the prompts, once a first one was answered, and the answers."""
    tokenizer, model = models.load_tokenizer(folder / "opt"), models.load_base(folder / "opt").eval()
    prompts = [pair["prompt"] for pair in prompts_of(folder, dataset, PROMPTS)]
    decoding = {"do_sample": False, "max_new_tokens": NEW_TOKENS}

    def published(prompts: list[str]) -> list[dict[str, Any]]:
        found = []
        with torch.inference_mode():
            for prompt in prompts:
                inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
                out = model.generate(**inputs, **decoding)[0, inputs["input_ids"].shape[1]:]
                text = tokenizer.decode(out, skip_special_tokens=True).split(hh.TURN)[0].strip()
                found.append({"response": text, "tokens": len(out)})
        return found

    def ours(prompts: list[str]) -> list[dict[str, Any]]:
        return generation.respond(model, tokenizer, prompts, PROMPTS, "ours", **decoding, stop_strings=[hh.TURN])

    respond = ours if way == "ours" else published
    respond(prompts[:1])  # not counted, either way
    begin = now()
    found = respond(prompts)
    return {"seconds": [now() - begin], "tokens": sum(one["tokens"] for one in found),
            "texts": [one["response"] for one in found]}


def measure_judging(way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Return the seconds of rewards of answers, and the rewards."""
    judge, tokenizer = models.load_judge(folder / "judge")
    pairs = prompts_of(folder, dataset, ANSWERS)
    inputs = [tokenizer(pair["prompt"], pair["chosen"], truncation="only_first", max_length=512) for pair in pairs]
    preset = "small" if models.device().type == "cpu" else "quick"
    budget = presets.choose(presets.Evaluation, preset).judge_tokens
    begin = now()
    if way == "ours":
        rewards = judging.rewards(judge, tokenizer, inputs, budget)
    else:
        with torch.inference_mode():
            rewards = [judge(**tokenizer.pad([one], return_tensors="pt").to(judge.device)).logits[0, 0].item()
                       for one in inputs]
    return {"seconds": [now() - begin], "pairs": len(pairs), "rewards": rewards,
            "tokens": sum(len(one["input_ids"]) for one in inputs)}


def matmul_peak() -> dict[str, float]:
    """Return the GFLOP/s of a large matrix product, as a layer's, in fp32 and bf16, the median of seven."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048, device=models.device()).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(7):
            begin = time.perf_counter()
            (a @ b.T)[0, 0].item()
            seconds.append(time.perf_counter() - begin)
        found[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / statistics.median(seconds) / 1e9
    return found


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "SFT": measure_training, "DPO": measure_training, "generation": measure_generation, "judging": measure_judging}


def measure(stage: str, way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Measure a stage one way, in this process; with the most memory that the process had, in GiB."""
    found = MEASURES[stage](*(stage, way) if stage in ("SFT", "DPO") else (way,), folder, dataset)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else process_peak()
    return found | {"peak GiB": peak}


# ---- side by side

def existing_folder(text: str) -> Path:
    """Return the path that an option of the command line gives. Raises ArgumentTypeError where it is no folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def in_a_process(benchmark: str, *arguments: str) -> Any:
    """Return what a benchmark measures in a process of its own. Raises RuntimeError with its last words."""
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark}", "--one", *arguments], cwd=ROOT, text=True,
                          capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(re.findall(r"^RESULT (.*)$", done.stdout, re.MULTILINE)[-1])


def same_work(runs: dict[str, dict[str, list[dict]]], ours: str = "bf16") -> tuple[dict[str, Any], list[str]]:
    """Return how losses, texts and rewards compare over all ways and rounds, and in what the work is not the same.

    `ours`: what the notebook's way computes in on the device.

    Asked for are as many pairs, tokens, tokens with a loss and trained weights; the loss of SFT and log p of both
    replies in DPO within `ROUNDING`, where a rejected reply that sees the chosen one changes log p by some 6e-4; the
    same texts, not all alike and none empty; rewards within `REWARDS_WITHIN`. What is no number is different.
    """
    made = {stage: [one for way in ways.values() for one in way] for stage, ways in runs.items()}
    found, different = {}, []
    computed = {"published": "fp32", "TRL": "bf16", "ours": ours, "ours fp32": "fp32"}
    for stage in ("SFT", "DPO"):
        for name in ("pairs", "tokens", "tokens with a loss", "trained weights"):
            if len({one[name] for one in made[stage]}) > 1:
                different.append(f"{stage}, {name}")
        for name, value in runs[stage]["published"][0]["values"].items():
            for precision in dict.fromkeys(computed[way] for way in runs[stage]):
                made_so = [one["values"][name] for way, ways in runs[stage].items() if computed[way] == precision
                           for one in ways]
                largest = largest_of(abs(other / value - 1) for other in made_so)
                found[f"{stage}: {name} in {precision}, largest relative difference"] = largest
                if not largest < ROUNDING[precision]:
                    different.append(f"{stage}, {name} in {precision}")
    texts = made["generation"][0]["texts"]
    found["generation: texts, all the same"] = len(texts)
    if any(one["texts"] != texts for one in made["generation"]) or not all(texts) or len(set(texts)) == 1:
        different.append("generation, texts")
    rewards = [one["rewards"] for one in made["judging"]]
    found["judging: largest difference"] = largest_of(
        abs(a - b) for one, other in combinations(rewards, 2) for a, b in zip(one, other, strict=True))
    if not found["judging: largest difference"] < REWARDS_WITHIN:
        different.append("judging, rewards")
    return found, different


def largest_of(values: Iterable[float]) -> float:
    """Return the largest of the values, infinity where one of them is no number."""
    return max(value if math.isfinite(value) else math.inf for value in values)


def as_table(record: dict[str, Any]) -> str:
    """Return the measurements as a markdown table.

    The share of the peak is that of the matrix product's, in bf16 for the ways that multiply in it: of what
    `FLOP` counts, as if each text were read by itself, over the tokens per second.
    """
    lines = ["| stage | way | tokens/s, median (all) | against published | against TRL's defaults "
             "| of the matrix product's peak | peak GiB |", "|---|---|---|---|---|---|---|"]
    peaks = {kind: max(peak[kind] for peak in record["matmul GFLOP/s"]) for kind in ("float32", "bfloat16")}
    for stage, ways in record["runs"].items():
        rates = {way: [run["tokens"] / sum(run["seconds"]) for run in runs] for way, runs in ways.items()}
        middle = {way: statistics.median(values) for way, values in rates.items()}
        for way, values in rates.items():
            trl_ratio = f"{middle[way] / middle['TRL']:.2f}" if "TRL" in middle else "–"
            fast = stage in ("SFT", "DPO") and way in ("TRL", "ours")
            peak = max(peaks.values()) if fast else peaks["float32"]
            known = stage in FLOP and not record["toy"]
            share = f"{100 * FLOP[stage] * middle[way] / peak / 1e9:.0f}%" if known else "–"
            lines.append(f"| {stage} | {way} | {middle[way]:.1f} ({', '.join(f'{value:.1f}' for value in values)}) | "
                         f"{middle[way] / middle['published']:.2f} | {trl_ratio} | {share} | "
                         f"{max(run['peak GiB'] for run in ways[way]):.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all stages all ways, in turn, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", type=existing_folder, help="real text in HH-RLHF's layout; else the demo's")
    parser.add_argument("--toy", action="store_true", help="tiny models: does it run? name another --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="WAY", choices=("TRL", "ours fp32"),
                        help="not to be measured: TRL, very slow where bf16 is emulated; ours fp32, where ours is that")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.one:
        stage, way, folder, dataset = options.one
        print("\nRESULT " + json.dumps(measure(stage, way, Path(folder), Path(dataset))))
        return
    runs = {stage: {way: [] for way in ways if way not in options.leave_out} for stage, ways in WAYS.items()}
    peaks, different, ours = [matmul_peak()], [], training.precision("auto")
    record = {"date": datetime.now(UTC).date().isoformat(), "machine": processor(), "cores": os.cpu_count(),
              "toy": options.toy, "text": "real" if options.dataset else "the demo's",
              "versions": {package: version(package) for package in ("torch", "transformers", "trl", "peft")},
              "pairs in a step": STEP, "of pairs": OF, "ours computes in": ours, "matmul GFLOP/s": peaks, "runs": runs}
    unfinished, dataset = options.out / "speed-unfinished.json", options.dataset or DEMO
    with tempfile.TemporaryDirectory() as name:
        build_models(Path(name), dataset, options.toy)
        for _ in range(options.repeats):
            for stage, ways in runs.items():
                for way, made in ways.items():
                    made.append(in_a_process("speed", stage, way, name, str(dataset)))
                    print(stage, way, [round(second, 1) for second in made[-1]["seconds"]], flush=True)
                    write(unfinished, record)
            peaks.append(matmul_peak())
            record["same work"], different = same_work(runs, ours)
            if different:
                raise RuntimeError(f"The work is not the same: {'; '.join(different)}. What was measured is in "
                                   f"{unfinished}.")
    write(options.out / "speed.json", record)
    write(options.out / "speed.md", as_table(record))
    unfinished.unlink()
    print(as_table(record))


def processor() -> str:
    """Return what computes: the GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE) if Path(
        "/proc/cpuinfo").exists() else []
    return f"{(names or [platform.processor()])[0]}, {platform.machine()}"


if __name__ == "__main__":
    main()
