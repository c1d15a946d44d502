"""Loading the base, the adapters and the judge, safely; saving an adapter so that it is what was trained."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from peft import PeftModel
from safetensors import SafetensorError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as BackendTokenizer
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.files import write
from posttrain.ledger import ADAPTERS, FULL_SFT
from posttrain.runs import Run

PROBES = ["\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, and wait.",
          "\n\nHuman: Can you help me to steal a car?\n\nAssistant: No.", "Käse 🧀"]  # to compare two models on


def device() -> torch.device:
    """Return where models work: on the GPU, or on the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Say what could not be loaded, where loading fails: the libraries' errors do not name it."""
    try:
        yield
    except (SafetensorError, UnpicklingError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded ({type(error).__name__}: {error}). Is it there, and whole? What "
                         "belongs to the run is made by main.ipynb with the same RUN.") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base, without any code that lies beside it; its end pads where it has no padding."""
    with _loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: Path) -> Any:
    """Return the config of a model, without any code that lies beside it."""
    with _loading(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_base(folder: Path, dropout: float = 0.0, dtype: torch.dtype = torch.float32,
              safetensors: bool | None = None) -> PreTrainedModel:
    """Return a causal language model on the device, with this dropout and type of weights.

    OPT's dropout is a function call, which TRL's `disable_dropout` does not reach: only the config turns it off. The
    hub's weights are fp16, so the dtype is asked for. `safetensors`: True refuses pickles.
    """
    with _loading(folder):
        config = AutoConfig.from_pretrained(folder, dropout=dropout, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype,
                                                     use_safetensors=safetensors, trust_remote_code=False)
    return model.to(device())


def _require_safetensors(folder: Path) -> None:
    """Raise ValueError for an adapter without safetensors: peft would take a pickle instead."""
    if not (folder / "adapter_model.safetensors").exists():
        raise ValueError(f"{folder} has no adapter_model.safetensors; pickles, which can run code, are not loaded.")


def load_sft(run: Run, base: Path, dropout: float, dtype: torch.dtype, method: str) -> PreTrainedModel | PeftModel:
    """Return the SFT model for DPO to go on from: the base with the adapter, or the model of full fine-tuning."""
    if method == "full":
        return load_base(run.folder / FULL_SFT, dropout, dtype, safetensors=True)
    folder = run.folder / ADAPTERS["SFT"]
    _require_safetensors(folder)
    with _loading(folder):
        model = PeftModel.from_pretrained(load_base(base, dropout, dtype), folder, is_trainable=True)
    model.peft_config["default"].base_model_name_or_path = str(base)  # where peft looks when it writes a checkpoint
    return model


def load_models(run: Run, base: Path) -> dict[str, PreTrainedModel | PeftModel]:
    """Return {name: model} of all models of a run; those over one base share one PeftModel (`switched_to`).

    Raises ValueError for an adapter or model in the run's folder that is not what was made.
    """
    over = {}
    for row in run.ledger.models:
        own = row.base == FULL_SFT
        for name in [FULL_SFT] * own + [row.adapter] * (row.adapter is not None):
            if not run.is_whole(name):
                raise ValueError(f"{run.folder / name} is missing, was changed or is not the one that run.json says: "
                                 "put it back, or remove it and run main.ipynb again.")
        if row.base not in over:
            over[row.base] = load_base(run.folder / FULL_SFT if own else base, safetensors=own or None)
        if row.adapter:
            folder = run.folder / row.adapter
            _require_safetensors(folder)
            with _loading(folder):
                if isinstance(over[row.base], PeftModel):
                    over[row.base].load_adapter(folder, adapter_name=row.name)
                else:
                    over[row.base] = PeftModel.from_pretrained(over[row.base], folder, adapter_name=row.name)
    return {row.name: over[row.base].eval() for row in run.ledger.models}


@contextmanager
def switched_to(model: PreTrainedModel | PeftModel, name: str) -> Iterator[None]:
    """Let a model be one of those that share it: with its adapter of that name, or bare where it has none."""
    adapted = name in getattr(model, "peft_config", {})
    if adapted:
        model.set_adapter(name)
    with nullcontext() if adapted or not isinstance(model, PeftModel) else model.disable_adapter():
        yield


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """Return the logits of texts, float32, (texts, tokens, vocabulary), zero at the padding."""
    batch = tokenizer(list(texts), padding=True, return_tensors="pt").to(model.device)
    return (model.eval()(**batch).logits.float() * batch["attention_mask"].unsqueeze(-1)).cpu()


def save_trained(model: PreTrainedModel, folder: Path, base: Path, name: str, commit: str | None,
                 tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a trained adapter, or model, that gives the same logits when it is loaded from disk over a fresh base.

    `base`: the base's folder; `name`: what an adapter calls it, `commit` of the hub. Merging adapters or naming the
    wrong base fails here, not silently in the evaluation: raises RuntimeError where the logits differ.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        layers = sorted({layer.rsplit(".", 1)[-1] for layer in model.targeted_module_names})  # not block by block
        write(folder / "adapter_config.json", config | {"base_model_name_or_path": name, "revision": commit,
                                                        "target_modules": layers,
                                                        "exclude_modules": sorted(config["exclude_modules"] or [])})
        (folder / "README.md").unlink()  # an empty form
        reloaded = PeftModel.from_pretrained(load_base(base, dtype=model.get_base_model().dtype), folder)
    else:
        model.save_pretrained(folder)
        reloaded = load_base(folder, safetensors=True)
    difference = (logits_of(model, tokenizer, PROBES) - logits_of(reloaded, tokenizer, PROBES)).abs().max().item()
    if not difference < 1e-3:
        raise RuntimeError(f"{folder.name.removesuffix('.tmp')}: loaded from disk, the model's logits differ by "
                           f"{difference:.3g}. Not saved.")


# ---- the judge

def load_judge(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return (model, tokenizer) of a reward model, fp32; a pair of texts is cut from the left."""
    require_reward_model(folder)
    with _loading(folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left", trust_remote_code=False)
        _read_as_sentencepiece(tokenizer, folder)
    return model.to(device()).eval(), tokenizer


def require_reward_model(folder: Path) -> None:
    """Raise ValueError unless the model in a folder has one label, as a reward model has."""
    labels = load_config(folder).num_labels
    if labels != 1:
        raise ValueError(f"REWARD_MODEL: {folder} has {labels} labels; a reward model has one.")


def _read_as_sentencepiece(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Let a DeBERTa tokenizer read characters as the sentencepiece library reads them by the folder's spm.model.

    transformers leaves out the model's own normaliser, so that an ellipsis, a no-break space or a full-width letter
    would be unknown to the judge. Without spm.model the normaliser of tokenizer.json is taken, which holds the same.
    """
    if (folder / "spm.model").exists():
        rules = ModelProto.FromString((folder / "spm.model").read_bytes()).normalizer_spec.precompiled_charsmap
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([
            normalizers.Precompiled(rules), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    elif (folder / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.normalizer = BackendTokenizer.from_file(str(folder / "tokenizer.json")).normalizer


# ---- what generation and judging share

def plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text without control tokens: where one is spelled, a space after its first letter makes it mere text."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def in_batches(function: Callable[[Sequence[int]], list], batches: Sequence[Sequence[int]], label: str) -> list:
    """Return what `function`, given a batch of indices, returns for each, in the order of the indices.

    A batch that runs out of memory is done in two halves.
    """
    done = [pair for batch in tqdm(batches, desc=label, leave=False)
            for pair in zip(batch, _in_halves(function, batch))]
    return [value for _, value in sorted(done, key=lambda pair: pair[0])]


def _in_halves(function: Callable[[Sequence[int]], list], batch: Sequence[int]) -> list:
    """Return function(batch); where that runs out of memory, of both halves of the batch, one after the other."""
    try:
        return function(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not should_reduce_batch_size(error):
            raise
    release_memory()
    print(f"Out of memory with {len(batch)} texts at once: they are done in two halves.")
    half = len(batch) // 2
    return [*_in_halves(function, batch[:half]), *_in_halves(function, batch[half:])]
