"""TRL's DPO trainer for pairs of token ids that reads a pair's prompt once for both replies."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOTrainer

from posttrain import processes

# Largest mean difference of the reply tokens' log-probabilities at which both ways of reading count
# as the same, as a share of their standard deviation. With SmolLM2-135M rounding caused 1e-6 in
# fp32 and up to 0.016 in bf16, and a wrong mask 0.11 to 0.32.
EXACT_TOLERANCE = 1e-4  # in fp32 on a CPU
ROUNDING_TOLERANCE = 0.03  # elsewhere


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer on token ids, so that texts are not tokenized again for every model.

    Its datasets have the columns prompt_ids, chosen_ids, rejected_ids and length, as
    `data.Pairs.for_dpo` makes them.

    Attributes:
        share_prompts: whether the trainer should read a pair's prompt once and not once for each
            reply. This saves a third of the tokens and does not change the loss.
        reads_prompts_once: whether it does so. It does not for a model whose log-probabilities
            would differ, such as a recurrent one; such a model is used as in TRL.
    """

    def __init__(self, *args: Any, share_prompts: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.share_prompts = share_prompts
        self.reads_prompts_once = False
        if share_prompts:
            self.reads_prompts_once = all(processes.gather(self._values_are_the_same()))
            if not self.reads_prompts_once:
                print(
                    "This base model cannot read a pair's prompt once for both replies. The prompt "
                    "is read with each reply, which takes longer."
                )

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        """Leave the dataset as it is, since it contains token ids already."""
        return dataset

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Compute TRL's loss of a batch, which has all chosen texts first, then the rejected."""
        reading = nullcontext()
        if self.reads_prompts_once:
            reading = shared_prompts(_backbone_of(self.model))
        with reading:
            return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def _values_are_the_same(self) -> bool:
        """Compare the log-probabilities of both ways of reading, for both replies of a long pair.

        Packing is exact only if every token attends to all tokens before it. A single pair may not
        show this, so bases with another kind of attention are excluded by their config.
        """
        backbone = _backbone_of(self.model)
        if self.aux_loss_enabled or not _sees_all_before(backbone, self.args.max_length):
            return False
        lengths = self.train_dataset["length"][:]
        longest = self.train_dataset[lengths.index(max(lengths))]
        batch = self._prepare_inputs(self.data_collator([longest]))
        is_reply = batch.pop("completion_mask").bool()
        labels = batch["input_ids"].masked_fill(~is_reply, -100)

        def read(reading: Any) -> torch.Tensor:
            with self.accelerator.autocast(), reading:
                output = self.model(**batch, labels=labels, fused_lm_head=True, use_cache=False)
            return output.log_probs[is_reply[:, 1:]].float()

        separate = read(nullcontext())
        shared = read(shared_prompts(backbone))
        is_fp32 = backbone.dtype == torch.float32 and self.accelerator.mixed_precision == "no"
        is_exact = is_fp32 and separate.device.type == "cpu"
        tolerance = EXACT_TOLERANCE if is_exact else ROUNDING_TOLERANCE
        return bool((shared - separate).abs().mean() < tolerance * separate.std())


def _sees_all_before(backbone: PreTrainedModel, length: int) -> bool:
    """Tell whether every token attends to all tokens before it, by the mask and positions given.

    Args:
        backbone: a causal model without its head.
        length: the largest number of tokens in a text.
    """
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config._attn_implementation == "sdpa"
        and not getattr(config, "alibi", False)
        and (not window or window >= length)
        and set(layer_types) <= {"full_attention", "sliding_attention"}
        and "position_ids" in inspect.signature(backbone.forward).parameters
    )


def _backbone_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return a language model without its head, including any adapters."""
    language_model = model.get_base_model() if isinstance(model, PeftModel) else model
    return language_model.base_model


@contextmanager
def shared_prompts(backbone: PreTrainedModel) -> Iterator[None]:
    """Let a causal model read the common beginning of rows i and n + i of a batch only once.

    The batch has 2 n rows, and the common beginning is the prompt of two replies. The hidden states
    are returned in the shape of the 2 n rows; at padding they have no meaning.

    Args:
        backbone: a causal model without its head, called with input_ids and attention_mask.
    """
    places_of_calls = []  # for each call that has begun and not ended

    def pack(
        module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        packed, places = pack_pairs(kwargs["input_ids"], kwargs["attention_mask"])
        places_of_calls.append(places)
        return args, kwargs | packed

    def unpack(module: torch.nn.Module, args: tuple, output: Any) -> Any:
        hidden = output.last_hidden_state
        row = torch.arange(len(hidden), device=hidden.device).repeat(2)
        output.last_hidden_state = hidden[row[:, None], places_of_calls.pop()]
        return output

    hooks = [
        backbone.register_forward_pre_hook(pack, with_kwargs=True),
        backbone.register_forward_hook(unpack),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def pack_pairs(
    input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pack 2 n texts into n rows, where texts i and n + i have the same beginning.

    Row i contains text i, followed by the rest of text n + i from where the two differ. That rest
    keeps its own positions, and it attends to the common beginning and to itself, but not to the
    rest of text i. In a causal model a token's hidden state depends only on the tokens that it
    attends to, so the hidden states and the gradients are the same as with 2 n rows.

    Args:
        input_ids: shape (2 n, length), padded on the right.
        attention_mask: shape (2 n, length), 1 for tokens and 0 for padding.

    Returns:
        The model's arguments: input_ids and position_ids of shape (n, packed length), and
        attention_mask of shape (n, 1, packed length, packed length), true where a token attends to
        another. Then the place of each token, shape (2 n, length): its column in row i, for both
        text i and text n + i.
    """
    first, second = input_ids.chunk(2)
    first_is_token, second_is_token = attention_mask.bool().chunk(2)
    is_alike = (first == second) & first_is_token & second_is_token
    # (n, 1): the number of tokens before the texts first differ
    alike = is_alike.long().cumprod(1).sum(1, keepdim=True)
    # The columns of a row: first text i, then the rest of text n + i
    width = int(first_is_token.sum(1).max())
    rest_lengths = second_is_token.sum(1) - alike[:, 0]
    rest_width = int(rest_lengths.max())
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    column = torch.arange(width + rest_width, device=input_ids.device)

    # (n, rest width): the positions of the rest in its own text
    rest_positions = (alike + position[:rest_width]).clamp(max=position[-1])
    first_positions = position[:width].expand(len(first), -1)
    rest_ids = second.gather(1, rest_positions)

    # (packed length, packed length) and (n, packed length, packed length)
    is_before = column <= column[:, None]
    is_in_rest = column[:, None] >= width
    is_first_reply = (column < width) & (column >= alike[:, :, None])
    attends = is_before & ~(is_in_rest & is_first_reply)
    packed = {
        "input_ids": torch.cat([first[:, :width], rest_ids], 1),
        "position_ids": torch.cat([first_positions, rest_positions], 1),
        "attention_mask": attends[:, None],
    }

    first_places = position.expand_as(first)
    second_places = torch.where(position < alike, position, width + position - alike)
    places = torch.cat([first_places, second_places])
    return packed, places.clamp(max=len(column) - 1)  # padding may lie beyond the row's end
