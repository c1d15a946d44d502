"""Load bases and judges from their folders, and refuse those that are not what they are used as."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as BackendTokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Tokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from posttrain import (
    architecture,
    chat_judges,
    checks,
    judge_checks,
    processes,
    tokenizer_checks,
)
from posttrain.chat import read_reply_frame

# Entries of a generation_config.json that change no answer
SILENT = ("transformers_version", "_from_model_config", "use_cache")


def device() -> torch.device:
    """Choose the device for models: this process's GPU, or the CPU if there is no GPU."""
    if processes.count() > 1:
        return processes.state().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def loading_from(folder: Path) -> Iterator[None]:
    """Name the folder in an error of loading, since the libraries' own errors do not."""
    try:
        yield
    except Exception as error:  # tokenizers raises no narrower class
        raise ValueError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}). Check that the folder "
            "exists, and that its files are complete and belong together. If it belongs to a run, "
            "main.ipynb with the same RUN makes it."
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, and let it pad with EOS if it has no padding token.

    Code in the folder is not executed.

    Raises:
        ValueError: if it cannot be loaded, or is not fit for prompts and replies.
    """
    size = architecture.read_size(load_config(folder))
    with loading_from(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer_checks.switch_off_dropout(folder, tokenizer)
    tokenizer_checks.require_tokenizer_of_base(folder, tokenizer, size.vocabulary)
    return tokenizer


def load_config(folder: Path) -> Any:
    """Load the config of a model. Code in the folder is not executed.

    Raises:
        ValueError: if it cannot be loaded, or is for weights other than the plain ones beside it.
    """
    with loading_from(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    checks.require_plain_config(folder, config)
    config.return_dict = True  # without it some models return bare tuples
    return config


def require_base(folder: Path, max_length: int, chat: bool = False) -> None:
    """Refuse a base that cannot be trained, as far as its config and its tokenizer tell.

    Its weights are checked where they are loaded.

    Args:
        folder: the folder of the base.
        max_length: the largest number of tokens in a training text.
        chat: whether its chat template writes prompts and replies.

    Raises:
        ValueError: if the base is no causal language model for text, has too few positions, or has
            a tokenizer or a chat template that is not fit for prompts and replies.
    """
    config = load_config(folder)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"The model in {folder} is of the type {config.model_type}, which is not a causal "
            "language model. Choose another BASE_MODEL."
        )
    architecture.require_length(folder, architecture.read_size(config), max_length)
    tokenizer = load_tokenizer(folder)
    if chat:
        read_reply_frame(tokenizer)


def load_base(
    folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    safetensors: bool | None = None,
) -> PreTrainedModel:
    """Load a causal language model onto the device.

    What its generation_config.json asks for is left out, since the notebooks say how answers are
    decoded; only the ends of a text are kept.

    Args:
        folder: the folder with config and weights in the layout of the hub. Code in it is not
            executed.
        dropout: the dropout rate. It is set in the config, since OPT's dropout is a function call,
            which TRL's `disable_dropout` does not reach.
        dtype: the type that the weights are loaded as; on the hub they may be fp16.
        safetensors: True refuses weights that are stored as pickles. None loads those too, without
            executing code in them.

    Raises:
        ValueError: if the folder cannot be loaded, or its model is not what it is used as.
    """
    checks.require_full_precision()
    config = load_config(folder)
    size = architecture.read_size(config)
    architecture.set_dropout(config, dropout)
    checks.require_no_adapter(folder)
    with loading_from(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=safetensors,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            output_loading_info=True,
        )
    checks.require_floats(folder, model)
    checks.require_all_weights(folder, model, report)
    checks.require_finite_weights(folder, model)
    _leave_out_decoding(folder, model)
    model = model.to(device())
    if not dropout:
        checks.require_steady_logits(folder, model, size.vocabulary)
    if dtype == torch.float32:  # rounding in bf16 would hide what the check looks for
        checks.require_causality(folder, model, size.vocabulary)
    return model


def _leave_out_decoding(folder: Path, model: PreTrainedModel) -> None:
    """Replace the decoding that a model brings along by greedy decoding with the same ends.

    A config that is passed to `generate` would be filled up from the model's own.
    """
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id,
        eos_token_id=given.eos_token_id,
        pad_token_id=given.pad_token_id,
    )
    left_out = []
    for name, value in given.to_diff_dict().items():
        says_something = value not in (None, False) and name not in SILENT
        if says_something and getattr(model.generation_config, name, None) != value:
            left_out.append(f"{name} = {value}")
    if left_out:
        checks.say_once(
            f"The model in {folder} asks for its own way of decoding ({', '.join(left_out)}), "
            "which is left out: answers are decoded as the notebooks say."
        )


# ---- the judge


def load_judge(
    folder: Path, parameter: str = "REWARD_MODEL"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model in fp32, and its tokenizer, which truncates texts from the left.

    Args:
        folder: the reward model's folder.
        parameter: the parameter that names it, for error messages.

    Raises:
        ValueError: if the folder cannot be loaded, or its model is not a working judge: if it has
            several labels, lacks weights, does not know English, has a chat template that cannot
            render a conversation, or gives rewards that depend on the batch.
    """
    checks.require_full_precision()
    require_reward_model(folder, parameter)
    checks.require_no_adapter(folder)
    config = load_config(folder)
    with loading_from(folder):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, truncation_side="left", trust_remote_code=False
        )
        if isinstance(tokenizer, DebertaV2Tokenizer):
            _read_as_sentencepiece(tokenizer, folder)
    checks.require_floats(folder, model)
    checks.require_all_weights(folder, model, report)
    checks.require_finite_weights(folder, model)
    tokenizer_checks.switch_off_dropout(folder, tokenizer)
    chat_judges.require_template(folder, tokenizer, parameter)
    judge_checks.choose_padding(model, tokenizer, parameter)
    vocabulary = config.get_text_config().vocab_size
    tokenizer_checks.require_tokenizer_of_judge(folder, tokenizer, vocabulary)
    model = model.to(device()).eval()
    judge_checks.require_steady_rewards(folder, model, tokenizer, parameter)
    return model, tokenizer


def require_reward_model(folder: Path, parameter: str = "REWARD_MODEL") -> None:
    """Raise ValueError unless the model in a folder has a single label, the reward."""
    labels = load_config(folder).num_labels
    if labels != 1:
        raise ValueError(
            f"{parameter}: {folder} has {labels} labels (two where its config.json names none), "
            "but a reward model has a single one, the reward. Which of several labels, or which "
            "difference of them, would be the reward is not known. Name a reward model, not a "
            "classifier."
        )


def has_chat_template(folder: Path) -> bool:
    """Tell whether a judge has a chat template, so that it reads conversations and not pairs."""
    with loading_from(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer.chat_template is not None


def _read_as_sentencepiece(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Let a DeBERTa tokenizer read characters as the sentencepiece library does.

    transformers leaves out the normalizer of the model, so that an ellipsis, a no-break space or a
    full-width letter would be an unknown token for the judge. The normalizer is read from spm.model
    or, if that is missing, from tokenizer.json, where it is the same.
    """
    backend = tokenizer.backend_tokenizer
    if (folder / "spm.model").exists():
        model = ModelProto.FromString((folder / "spm.model").read_bytes())
        rules = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
        single_spaces = normalizers.Replace(Regex(" {2,}"), " ")
        steps = [rules, single_spaces, normalizers.Strip()]
        if getattr(tokenizer, "do_lower_case", False):
            steps.insert(0, normalizers.Lowercase())
        backend.normalizer = normalizers.Sequence(steps)
    elif (folder / "tokenizer.json").exists():
        saved = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
        backend.normalizer = saved.normalizer
