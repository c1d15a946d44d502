"""The stages that benchmarks.speed measures, each done in several ways on models of full size."""

import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl.kernels import chunked_logprob

from benchmarks.common import HUB, Notebook, build_trainer, prepare_training
from demo import build
from posttrain import data, generation, models, settings
from posttrain.device import computed_fast, process_peak
from posttrain.rewards import rate_texts

PAIRS = {"SFT": 32, "DPO": 16}  # that are trained on
STEP = 8  # pairs in a step
OF_PAIRS = 800  # those of the training that they are drawn from, as many as preset small has
PROMPTS = 16
NEW_TOKENS = 50
ANSWERS = 24

OPT = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "dropout": 0.1,
}
TOY_OPT = OPT | {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 32,
    "init_std": 0.08,  # so that a layer changes its input as much as a wide one's does
}
SHARP = 2  # times the weights of queries: few tokens are attended to, not all alike
DEBERTA = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 128100,
    "pooler_hidden_size": 1024,
    "position_buckets": 256,
}


# ---- models


def build_models(folder: Path, dataset: Path, toy: bool) -> None:
    """Write a base, folder/opt, and a judge, folder/judge, with random weights.

    Args:
        folder: where they are written.
        dataset: a folder in HH-RLHF's layout; the base's tokenizer is made from its texts.
        toy: whether they are tiny.
    """
    torch.manual_seed(0)
    _write_base(folder / "opt", dataset, TOY_OPT if toy else OPT)
    _write_judge(folder / "judge", {} if toy else DEBERTA)


def _write_base(folder: Path, dataset: Path, sizes: dict[str, Any]) -> None:
    """Write an OPT whose greedy answers depend on the whole prompt, and its tokenizer."""
    texts = []
    for subset in data.SUBSETS["base"]:
        for row in data.read_split(dataset, subset, "train")[:1000]:
            if isinstance(row, dict):
                texts += [row["chosen"], row["rejected"]]
    build.write_opt_tokenizer(folder, texts, most=sizes["vocab_size"] - 8)
    base = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes))
    with torch.no_grad():
        for layer in base.model.decoder.layers:
            # else the mean of a random ReLU layer drowns what a token attends to
            layer.fc2.weight -= layer.fc2.weight.mean(1, keepdim=True)
            layer.self_attn.q_proj.weight *= SHARP
        # no logits for ids that the tokenizer has not: answers of these would be empty texts
        known = len(transformers.AutoTokenizer.from_pretrained(folder))
        base.get_input_embeddings().weight[known:] = 0
    base.half().save_pretrained(folder)


def _write_judge(folder: Path, sizes: dict[str, Any]) -> None:
    """Write a judge like the demo's, with some sizes of its own."""
    demo = HUB / "reward-model"
    config = transformers.AutoConfig.from_pretrained(demo)
    for name, size in sizes.items():
        setattr(config, name, size)
    judge = transformers.AutoModelForSequenceClassification.from_config(config)
    judge.save_pretrained(folder)
    for path in demo.iterdir():
        if path.name not in ("config.json", "model.safetensors"):  # its tokenizer's files
            (folder / path.name).write_bytes(path.read_bytes())


# ---- training


def now() -> float:
    """Give the time in seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(transformers.TrainerCallback):
    """Collects how long each optimizer step took, in seconds."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        """Begin to measure."""
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        """Keep what the step took."""
        self.seconds.append(now() - self.start)


class CountingCollator:
    """Makes a trainer's batches as its own collator does, and counts tokens with a loss.

    Attributes:
        counts: the tokens with a loss in each batch.
    """

    def __init__(self, collate: Callable[[list], dict[str, Any]]):
        self.collate = collate
        self.counts: list[int] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch = self.collate(examples)
        has_loss = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"]
        self.counts.append(int(has_loss.sum()))
        return batch


def draw_pairs(lengths: list[int], together: int, n: int) -> list[int]:
    """Draw pairs from those of a training, in passes as its sampler makes them.

    Args:
        lengths: the tokens of all pairs of the training.
        together: pairs in a pass, which are of like length.
        n: how many pairs are drawn.

    Returns:
        The pairs' indices, pass by pass.
    """
    order = get_length_grouped_indices(lengths, STEP, generator=torch.Generator().manual_seed(0))
    passes = [order[i : i + together] for i in range(0, len(order), together)]
    drawn = []
    for indices in random.Random(0).sample(passes, n // together):
        drawn += indices
    return drawn


def make_trainer(
    stage: str, way: str, folder: Path, dataset: Path
) -> tuple[transformers.Trainer, list[data.Pair]]:
    """Make the trainer of a stage in one of the ways.

    Args:
        stage: "SFT" or "DPO".
        way: as in `speed.WAYS`.
        folder: of `build_models`.
        dataset: a folder in HH-RLHF's layout.

    Returns:
        The trainer, and the pairs that it trains on.
    """
    notebook = prepare_training(
        PRESET="small",
        RESULTS=mkdtemp(dir=folder),
        DATASET=str(dataset),
        BASE_MODEL=str(folder / "opt"),
        MAX_PAIRS=OF_PAIRS + 2,
        SETTINGS={
            "batch_size": STEP,
            "validation_pairs": 2,
            "precision": "fp32" if way == "ours fp32" else "auto",
        },
    )
    pairs = notebook.names["pairs"].train
    lengths = []
    for pair in pairs:
        length_in_sft = len(pair["prompt_ids"]) + len(pair["chosen_ids"])
        lengths.append(length_in_sft if stage == "SFT" else pair["length"])
    together = 2 if models.device().type == "cpu" else STEP  # pairs of a pass in the notebook's way
    drawn = draw_pairs(lengths, together, PAIRS[stage])
    if way.startswith("ours"):
        trainer = build_trainer(notebook, stage)
        trainer.args.train_sampling_strategy = "sequential"  # they are in passes as they were drawn
    else:
        trainer = make_baseline(stage, way, notebook, folder)
    trainer.train_dataset = trainer.train_dataset.select(drawn)
    return trainer, [pairs[i] for i in drawn]


def make_baseline(
    stage: str, way: str, notebook: Notebook, folder: Path
) -> transformers.Trainer:
    """Make TRL's own trainer of a stage.

    Args:
        stage: "SFT" or "DPO".
        way: "published" for the study's batches, "TRL" for TRL's defaults.
        notebook: whose pairs and adapter it takes.
        folder: where it may write.
    """
    # What the package changes is set back to TRL's own.
    trl.trainer.utils._use_triton = chunked_logprob._use_triton
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = 32768
    names = notebook.names
    options = {
        "output_dir": mkdtemp(dir=folder),
        "per_device_train_batch_size": STEP,
        "num_train_epochs": 1,
        "max_length": names["s"].max_length,
        "seed": names["s"].seed,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
    }
    if way == "published":
        options["per_device_train_batch_size"] = 2
        options["gradient_accumulation_steps"] = STEP // 2
        options["bf16"] = False
    if stage == "SFT":
        trainer_class, config_class = trl.SFTTrainer, trl.SFTConfig
        replies = {"completion": "chosen"}
    else:
        trainer_class, config_class = trl.DPOTrainer, trl.DPOConfig
        replies = {"chosen": "chosen", "rejected": "rejected"}
    texts = []
    for pair in names["pairs"].train:
        columns = {column: f" {pair[reply]}" for column, reply in replies.items()}
        texts.append({"prompt": pair["prompt"], **columns})
    return trainer_class(
        models.load_base(names["base"].folder),
        args=config_class(**options),
        train_dataset=Dataset.from_list(texts),
        processing_class=names["tokenizer"],
        peft_config=names["lora"],
    )


def measure_training(stage: str, way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Measure a training of some steps.

    Args:
        stage: "SFT" or "DPO".
        way: as in `speed.WAYS`.
        folder: of `build_models`.
        dataset: a folder in HH-RLHF's layout.

    Returns:
        The seconds of each step, the tokens of the texts, and what proves that the work is the
        same: how many weights are trained and how many tokens have a loss, and `values`, the mean
        loss over these tokens (SFT) or log p of either reply over the pairs (DPO, whose loss is
        ln 2 however the texts are read). With a learning rate of zero they do not depend on the
        order of the pairs.
    """
    trainer, pairs = make_trainer(stage, way, folder, dataset)
    timer = StepTimes()
    collator = CountingCollator(trainer.data_collator)
    trainer.add_callback(timer)
    trainer.data_collator = collator
    trainer.args.eval_on_start = False
    trainer.args.eval_strategy = "no"
    trainer.args.save_strategy = "no"
    trainer.args.logging_steps = 1
    trainer.args.learning_rate = 0.0
    with computed_fast(trainer) if way.startswith("ours") else nullcontext():
        trainer.train()

    logs = [record for record in trainer.state.log_history if "loss" in record]
    replies = ["chosen"] if stage == "SFT" else ["chosen", "rejected"]
    if stage == "SFT":
        values = {"loss": _mean_loss(logs, collator.counts)}
    else:
        values = {}
        for reply in replies:
            values[f"log p({reply})"] = statistics.mean(log[f"logps/{reply}"] for log in logs)
    tokens = 0
    for pair in pairs:
        for reply in replies:
            tokens += len(pair["prompt_ids"]) + len(pair[f"{reply}_ids"])
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    return {
        "seconds": timer.seconds,
        "pairs": len(pairs),
        "tokens with a loss": sum(collator.counts),
        "values": values,
        "trained weights": sum(weight.numel() for weight in trained),
        "tokens": tokens,
    }


def _mean_loss(logs: list[dict[str, Any]], counts: list[int]) -> float:
    """Average the logged losses of steps over tokens.

    Args:
        logs: a record for each step.
        counts: the tokens with a loss in each pass; every step has as many passes.
    """
    passes = len(counts) // len(logs)
    total = 0.0
    for step, log in enumerate(logs):
        total += log["loss"] * sum(counts[passes * step : passes * (step + 1)])
    return total / sum(counts)


# ---- evaluation


def choose_pairs(folder: Path, dataset: Path, n: int) -> list[data.Pair]:
    """Choose the middle n of a hundred pairs by the length of their prompts.

    Such a batch is one of the middle ones that the evaluation makes.
    """
    chosen = settings.choose(settings.Training, "small", max_pairs=101, validation_pairs=1)
    tokenizer = models.load_tokenizer(folder / "opt")
    pairs = data.load_pairs(dataset, tokenizer, chosen).train[:100]
    pairs.sort(key=lambda pair: len(pair["prompt_ids"]))
    start = (len(pairs) - n) // 2
    return pairs[start : start + n]


def measure_generation(way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Measure greedy answers to some prompts, once a first one was answered."""
    tokenizer = models.load_tokenizer(folder / "opt")
    model = models.load_base(folder / "opt").eval()
    prompts = [pair["prompt"] for pair in choose_pairs(folder, dataset, PROMPTS)]
    decoding = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
    if way == "ours":
        options = {**decoding, "stop_strings": [data.TURN]}

        def respond(prompts: list[str]) -> list[dict[str, Any]]:
            with models.switched_to(model, "Base"):
                return generation.respond(model, tokenizer, prompts, PROMPTS, "ours", **options)

    else:

        def respond(prompts: list[str]) -> list[dict[str, Any]]:
            return [respond_to_one(model, tokenizer, prompt, decoding) for prompt in prompts]

    respond(prompts[:1])  # not counted, either way
    start = now()
    completions = respond(prompts)
    return {
        "seconds": [now() - start],
        "tokens": sum(completion["tokens"] for completion in completions),
        "texts": [completion["response"] for completion in completions],
    }


@torch.inference_mode()
def respond_to_one(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompt: str,
    decoding: dict[str, Any],
) -> dict[str, Any]:
    """Answer a prompt by itself, without a stop at a human turn; cut the answer there."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, **decoding)[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(output, skip_special_tokens=True)
    return {"response": text.split(data.TURN)[0].strip(), "tokens": len(output)}


def measure_judging(way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Measure the rewards of some answers."""
    judge, tokenizer = models.load_judge(folder / "judge")
    pairs = choose_pairs(folder, dataset, ANSWERS)
    inputs = []
    for pair in pairs:
        texts = (pair["prompt"], pair["chosen"])
        inputs.append(tokenizer(*texts, truncation="only_first", max_length=512))
    preset = "small" if models.device().type == "cpu" else "quick"
    tokens_at_once = settings.choose(settings.Evaluation, preset).judge_tokens
    start = now()
    if way == "ours":
        rewards = rate_texts(judge, tokenizer, inputs, tokens_at_once)
    else:
        rewards = [judge_one(judge, tokenizer, encoded) for encoded in inputs]
    return {
        "seconds": [now() - start],
        "pairs": len(pairs),
        "rewards": rewards,
        "tokens": sum(len(encoded["input_ids"]) for encoded in inputs),
    }


@torch.inference_mode()
def judge_one(
    judge: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    encoded: transformers.BatchEncoding,
) -> float:
    """Compute the reward of one answer by itself."""
    batch = tokenizer.pad([encoded], return_tensors="pt").to(judge.device)
    return judge(**batch).logits[0, 0].item()


# ---- all


def measure(stage: str, way: str, folder: Path, dataset: Path) -> dict[str, Any]:
    """Measure a stage in one of the ways, in this process.

    Args:
        stage: "SFT", "DPO", "generation" or "judging".
        way: as in `speed.WAYS`.
        folder: of `build_models`.
        dataset: a folder in HH-RLHF's layout.

    Returns:
        What the stage's function measures, and the most memory that the process had, in GiB.
    """
    if stage == "generation":
        measured = measure_generation(way, folder, dataset)
    elif stage == "judging":
        measured = measure_judging(way, folder, dataset)
    else:
        measured = measure_training(stage, way, folder, dataset)
    peak = process_peak()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    return measured | {"peak GiB": peak}


def measure_matmul() -> dict[str, float]:
    """Measure a large matrix product, as a layer's, in fp32 and bf16.

    Returns:
        {"float32", "bfloat16"}: GFLOP/s, the median of seven.
    """
    peaks = {}
    for name in ("float32", "bfloat16"):
        options = {"device": models.device(), "dtype": torch.float32}
        a = torch.randn(2048, 2048, **options).to(getattr(torch, name))
        b = torch.randn(2048, 2048, **options).to(getattr(torch, name))
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            (a @ b.T)[0, 0].item()
            seconds.append(time.perf_counter() - start)
        peaks[name] = 2 * 2048**3 / statistics.median(seconds) / 1e9
    return peaks
