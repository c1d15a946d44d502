"""TRL's DPO trainer for pairs of token ids, which reads a pair's prompt once for both replies."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOTrainer

# How far the values of a token may be apart, as a share of their norm, to count as the same
EXACT_TOLERANCE = 1e-3  # in fp32 on a CPU
ROUNDING_TOLERANCE = 0.1  # elsewhere: rounding in bf16 alone makes some hundredths


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer, given token ids; TRL's own would tokenise the texts in every stage.

    Its datasets hold prompt_ids, chosen_ids, rejected_ids and length, as `data` makes them.

    Attributes:
        share_prompts: whether a pass is to read a pair's prompt once, and not once for either
            reply: a third of the tokens less, and the same loss.
        reads_prompts_once: whether it does so. A model that gives other values in that way, as a
            recurrent one does, is read as TRL reads it.
    """

    def __init__(self, *args: Any, share_prompts: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.share_prompts = share_prompts
        self.reads_prompts_once = False
        if share_prompts:
            self.reads_prompts_once = self._values_are_the_same()
            if not self.reads_prompts_once:
                print(
                    "This base does not allow reading a pair's prompt once for both replies. It "
                    "is read with each reply, which takes longer."
                )

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        """Leave the dataset as it is: it holds token ids already."""
        return dataset

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Compute TRL's loss of a batch: the chosen texts, then the rejected in the same order."""
        reading = nullcontext()
        if self.reads_prompts_once:
            reading = shared_prompts(_backbone_of(self.model))
        with reading:
            return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def _values_are_the_same(self) -> bool:
        """Compare both ways of reading on every reply token of the longest pair.

        Where a token sees other tokens than all those before it, the packing is not exact, and a
        single pair may hide it: such bases are ruled out by their config.
        """
        backbone = _backbone_of(self.model)
        if self.aux_loss_enabled or not _sees_all_before(backbone, self.args.max_length):
            return False
        lengths = self.train_dataset["length"][:]
        longest = self.train_dataset[lengths.index(max(lengths))]
        batch = self._prepare_inputs(self.data_collator([longest]))
        is_reply = batch["completion_mask"].bool()

        def read(reading: Any) -> torch.Tensor:
            with self.accelerator.autocast(), reading:
                output = backbone(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    use_cache=False,
                )
            return output.last_hidden_state[is_reply]

        separate = read(nullcontext())
        shared = read(shared_prompts(backbone))
        is_exact = separate.dtype == torch.float32 and separate.device.type == "cpu"
        tolerance = EXACT_TOLERANCE if is_exact else ROUNDING_TOLERANCE
        distances = (shared.float() - separate.float()).norm(dim=1)
        return bool((distances < tolerance * separate.float().norm(dim=1)).all())


def _sees_all_before(backbone: PreTrainedModel, length: int) -> bool:
    """Tell whether every token attends to all before it, by a mask and positions as given.

    Args:
        backbone: a causal model below its head.
        length: how many tokens a text has at most.
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
    """Find the part of a language model below its head, with the adapters that are in it."""
    language_model = model.get_base_model() if isinstance(model, PeftModel) else model
    return language_model.base_model


@contextmanager
def shared_prompts(backbone: PreTrainedModel) -> Iterator[None]:
    """Let a causal model read once what rows i and n + i of its 2 n rows begin with alike.

    That is the prompt of two replies. The hidden states come back in the places of the 2 n rows;
    those of padding mean nothing.

    Args:
        backbone: a causal model below its head, called with input_ids and attention_mask.
    """
    places_of_calls = []  # of those that have begun and not ended

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
    """Pack 2 n texts, of which texts i and n + i begin alike, into n rows.

    Row i holds text i and then the rest of text n + i, from where the two differ, at its own
    positions. That rest attends to what both begin with and to itself, not to the rest of text i.
    What a token of a causal model does not attend to has no part in its values, so these, and the
    gradients, are those of 2 n rows.

    Args:
        input_ids: (2 n, length), padded on the right.
        attention_mask: (2 n, length), 1 for tokens, 0 for padding.

    Returns:
        What the model reads: input_ids and position_ids, (n, packed length), and attention_mask,
        (n, 1, packed length, packed length), true where a token attends to another. And where each
        token went, (2 n, length): its column in row i, for both text i and text n + i.
    """
    first, second = input_ids.chunk(2)
    first_is_token, second_is_token = attention_mask.bool().chunk(2)
    is_alike = (first == second) & first_is_token & second_is_token
    # (n, 1): how many tokens the texts have in common before they first differ
    alike = is_alike.long().cumprod(1).sum(1, keepdim=True)
    # Columns of a row: first those of text i, then those of the rest of text n + i
    width = int(first_is_token.sum(1).max())
    rest_lengths = second_is_token.sum(1) - alike[:, 0]
    rest_width = int(rest_lengths.max())
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    column = torch.arange(width + rest_width, device=input_ids.device)

    # (n, rest width): the positions that the rest has in its own text
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
