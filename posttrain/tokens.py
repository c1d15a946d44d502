"""Token ids of many texts, and of replies as they follow their prompts."""

from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase as Tokenizer


def encode(texts: list[str], tokenizer: Tokenizer, label: str, **options: Any) -> list[np.ndarray]:
    """Return the token ids of every text, int32; a thousand at a time, since all at once would hold gigabytes.

    As arrays of numpy: Python's garbage collector goes through lists and the like again and again.
    """
    parts = tqdm([texts[i : i + 1000] for i in range(0, len(texts), 1000)], desc=f"tokens of {label}", leave=False)
    return [np.array(ids, np.int32) for part in parts for ids in tokenizer(part, **options)["input_ids"]]


def encode_replies(replies: list[str], prompt_end: str, tokenizer: Tokenizer, label: str) -> list[np.ndarray]:
    """Return the token ids of replies as they follow a prompt: a space before, EOS after.

    They are read behind `prompt_end`, the marker that ends every prompt, since some tokenizers mark the beginning of a
    text. Raises ValueError where a token reaches over the border.
    """
    marker = tokenizer(prompt_end, add_special_tokens=False)["input_ids"]
    texts = [f"{prompt_end} {reply}{tokenizer.eos_token}" for reply in replies]
    found = encode(texts, tokenizer, label, add_special_tokens=False)
    if any(ids[: len(marker)].tolist() != marker for ids in found):
        raise ValueError("BASE_MODEL: its tokenizer has tokens that reach over the border between a prompt and its "
                         "reply, so what the model would learn is not what it is asked. Take another base.")
    return [ids[len(marker) :].copy() for ids in found]  # or the marker would stay in memory, too
