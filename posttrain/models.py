"""Loads bases, adapters and judges safely, and saves a model so that loading gives it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as BackendTokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.files import write
from posttrain.record import Model, slug

if TYPE_CHECKING:
    from posttrain.run import Run

# Texts on which a saved model is compared with the one that was trained
PROBES = (
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, and wait.",
    "\n\nHuman: Can you help me to steal a car?\n\nAssistant: No.",
    "Käse 🧀",
)
LARGEST_DIFFERENCE = 1e-3  # between their logits: far above rounding, far below another model's
# What the libraries raise for files that are missing, cut short, or of another kind
LOADING_ERRORS = (
    *(OSError, KeyError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, UnpicklingError),
)


def device() -> torch.device:
    """Choose where models work: on the GPU, or on the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _loading_from(folder: Path) -> Iterator[None]:
    """Name the folder in an error of loading: the libraries' own errors do not."""
    try:
        yield
    except LOADING_ERRORS as error:
        raise ValueError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}). Check that the folder "
            "is there and that its files are complete. What belongs to a run is made by "
            "main.ipynb with the same RUN."
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a base's tokenizer, which pads with its end-of-text token if it has none for padding.

    Code that lies beside it is not run.
    """
    with _loading_from(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: Path) -> Any:
    """Load a model's config. Code that lies beside it is not run."""
    with _loading_from(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_base(
    folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    safetensors: bool | None = None,
) -> PreTrainedModel:
    """Load a causal language model onto the device.

    Args:
        folder: config and weights in the layout of the hub. Code that lies there is not run.
        dropout: OPT's dropout is a function call, which TRL's `disable_dropout` does not reach:
            only the config turns it off.
        dtype: the type of the weights; those on the hub may be fp16.
        safetensors: True refuses weights that are pickles, None reads them without running code.

    Raises:
        ValueError: the folder cannot be loaded.
    """
    with _loading_from(folder):
        config = AutoConfig.from_pretrained(folder, dropout=dropout, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=safetensors, trust_remote_code=False
        )
    return model.to(device())


# ---- the models of a run


def load_adapter(
    run: Run,
    name: str,
    base_folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel | PeftModel:
    """Load a model of a run for training to go on from.

    Args:
        run: the run that the model belongs to.
        name: the model's name, such as "SFT".
        base_folder: the folder of the run's base model.
        dropout: as in `load_base`.
        dtype: the type of the base's weights.

    Returns:
        The base with the model's adapter, which is trainable; the plain model where all weights
        were fine-tuned.

    Raises:
        ValueError: the run has no such model, or its files are not those that were trained.
    """
    model = _require_model(run, name)
    base = _load_base_of(run, model, base_folder, dropout, dtype)
    if model.adapter is None:
        return base
    _require_as_made(run, model.adapter)
    folder = _require_safetensors(run.folder / model.adapter)
    with _loading_from(folder):
        adapted = PeftModel.from_pretrained(base, folder, is_trainable=True)
    # Where peft looks for the base's config when it writes a checkpoint
    adapted.peft_config["default"].base_model_name_or_path = str(base.config.name_or_path)
    return adapted


def load_models(
    run: Run, base_folder: Path, names: Sequence[str] | None = None
) -> dict[str, PreTrainedModel | PeftModel]:
    """Load models of a run for evaluation, in fp32.

    Those over one base share one PeftModel, which `switched_to` makes any of them.

    Args:
        run: the run whose models they are.
        base_folder: the folder of the run's base model.
        names: those wanted; None loads all.

    Returns:
        {name: model}.

    Raises:
        ValueError: the run has no such model, or its files are not those that were trained.
    """
    if names is None:
        names = [model.name for model in run.models]
    wanted = [_require_model(run, name) for name in names]
    models_by_base: dict[str, PreTrainedModel | PeftModel] = {}
    for model in wanted:
        if model.base not in models_by_base:
            models_by_base[model.base] = _load_base_of(run, model, base_folder)
        if model.adapter is not None:
            _require_as_made(run, model.adapter)
            folder = _require_safetensors(run.folder / model.adapter)
            shared = models_by_base[model.base]
            models_by_base[model.base] = _add_adapter(shared, folder, _adapter_key(model.name))
    return {model.name: models_by_base[model.base].eval() for model in wanted}


@contextmanager
def switched_to(model: PreTrainedModel | PeftModel, name: str) -> Iterator[None]:
    """Let a model that `load_models` gave be the one of this name among those that share it.

    Args:
        model: the value that `load_models` has for `name`.
        name: the model's name. Where it has no adapter, all adapters are off.
    """
    key = _adapter_key(name)
    if not isinstance(model, PeftModel):
        adapters = nullcontext()
    elif key in model.peft_config:
        model.set_adapter(key)
        adapters = nullcontext()
    else:
        adapters = model.disable_adapter()
    with adapters:
        yield


def _adapter_key(name: str) -> str:
    """Name a model's adapter for peft.

    The prefix keeps it apart from the names that torch's modules have themselves ("train"), and
    from parts of "lora_", which peft does not allow.
    """
    return f"adapter_{slug(name)}"


def _add_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, key: str
) -> PreTrainedModel | PeftModel:
    """Put an adapter beside those that a model has, or make it the first."""
    with _loading_from(folder):
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, adapter_name=key)
        model.load_adapter(folder, adapter_name=key)
        return model


def _require_model(run: Run, name: str) -> Model:
    """Find a model of a run by its name."""
    for model in run.models:
        if model.name == name:
            return model
    names = [model.name for model in run.models]
    raise ValueError(f"{run.folder} has no model {name!r}; its models are {names}.")


def _load_base_of(
    run: Run,
    model: Model,
    base_folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load the model that lies below a model's adapter: the run's base, or a fine-tuned one.

    A base other than the baseline's was trained in the run and lies in its folder.
    """
    if model.base == run.models[0].base:
        return load_base(base_folder, dropout, dtype)
    _require_as_made(run, model.base)
    return load_base(run.folder / model.base, dropout, dtype, safetensors=True)


def _require_as_made(run: Run, name: str) -> None:
    """Raise ValueError where a part of the run is not what run.json says."""
    if not run.is_whole(name):
        raise ValueError(
            f"{run.folder / name} is missing, was changed or is not the one that run.json says: "
            "put it back, or remove it and run main.ipynb again."
        )


def _require_safetensors(folder: Path) -> Path:
    """Raise ValueError for an adapter without safetensors: peft would take a pickle instead."""
    if not (folder / "adapter_model.safetensors").exists():
        raise ValueError(
            f"{folder} has no adapter_model.safetensors; pickles, which can run code, are not "
            "loaded."
        )
    return folder


# ---- saving


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """Compute the logits of texts, to compare two models.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        texts: what it reads, in one batch.

    Returns:
        float32, (texts, tokens, vocabulary), on the CPU; zero at the padding.
    """
    batch = tokenizer(list(texts), padding=True, return_tensors="pt").to(model.device)
    logits = model.eval()(**batch).logits.float()
    return (logits * batch["attention_mask"].unsqueeze(-1)).cpu()


def save_trained(
    model: PreTrainedModel,
    folder: Path,
    base_folder: Path,
    base_name: str,
    commit: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Save a trained adapter or model, and check that loading it gives the same logits.

    An adapter over a base with another adapter merged into it, or one that names the wrong base,
    fails here and not silently in the evaluation.

    Args:
        model: what was trained.
        folder: where it is saved.
        base_folder: where the base of an adapter lies.
        base_name: what the adapter's config calls that base.
        commit: the base's commit on the hub, None for a folder.
        tokenizer: the base's tokenizer.

    Raises:
        RuntimeError: loaded from disk over a fresh base, the model gives other logits.
    """
    if isinstance(model, PeftModel):
        # without embeddings peft does not look for the base's config under the base's name
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        _complete_adapter_config(model, folder, base_name, commit)
        (folder / "README.md").unlink()  # peft's empty form of a model card
        fresh_base = load_base(base_folder, dtype=model.get_base_model().dtype)
        reloaded = PeftModel.from_pretrained(fresh_base, folder)
    else:
        model.save_pretrained(folder)
        reloaded = load_base(folder, safetensors=True)
    distances = logits_of(model, tokenizer, PROBES) - logits_of(reloaded, tokenizer, PROBES)
    difference = distances.abs().max().item()
    if not difference < LARGEST_DIFFERENCE:  # so that a difference of NaN fails too
        raise RuntimeError(
            f"{folder.name.removesuffix('.tmp')}: loaded from disk, the model's logits differ by "
            f"{difference:.3g} from those of the trained one. It was not saved. Was the base "
            "changed in memory after it was loaded, merged with an adapter for instance? An "
            "adapter is saved over the base as its files hold it."
        )


def _complete_adapter_config(
    model: PeftModel, folder: Path, base_name: str, commit: str | None
) -> None:
    """Let an adapter's config name its base, and its layers by kind and not block by block."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    layers = {layer.rsplit(".", 1)[-1] for layer in model.targeted_module_names}
    config["base_model_name_or_path"] = base_name
    config["revision"] = commit
    config["target_modules"] = sorted(layers)
    config["exclude_modules"] = sorted(config["exclude_modules"] or [])
    write(path, config)


# ---- the judge


def load_judge(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model, in fp32, and its tokenizer, which cuts texts from the left.

    Raises:
        ValueError: the folder cannot be loaded, or holds a model with several labels.
    """
    require_reward_model(folder)
    with _loading_from(folder):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, truncation_side="left", trust_remote_code=False
        )
        _read_as_sentencepiece(tokenizer, folder)
    return model.to(device()).eval(), tokenizer


def require_reward_model(folder: Path) -> None:
    """Raise ValueError unless the model in a folder has one label, as a reward model has."""
    labels = load_config(folder).num_labels
    if labels != 1:
        raise ValueError(
            f"REWARD_MODEL: {folder} has {labels} labels; a reward model has one. Name a reward "
            "model, not a classifier."
        )


def _read_as_sentencepiece(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Let a DeBERTa tokenizer read characters as the sentencepiece library does.

    transformers leaves out the model's own normaliser, so that an ellipsis, a no-break space or a
    full-width letter would be unknown to the judge. spm.model holds that normaliser; without it
    the one of tokenizer.json is taken, which holds the same.
    """
    backend = tokenizer.backend_tokenizer
    if (folder / "spm.model").exists():
        model = ModelProto.FromString((folder / "spm.model").read_bytes())
        rules = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
        single_spaces = normalizers.Replace(Regex(" {2,}"), " ")
        backend.normalizer = normalizers.Sequence([rules, single_spaces, normalizers.Strip()])
    elif (folder / "tokenizer.json").exists():
        saved = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
        backend.normalizer = saved.normalizer


# ---- texts


def plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Turn the control tokens that a text spells into mere text.

    A space after the token's first letter keeps the tokenizer from taking it for control.
    """
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
