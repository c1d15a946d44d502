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


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer, given the token ids of `hh.dpo_rows`; TRL's own would tokenise the texts in every stage.

    With `share_prompts` a pass reads a pair's prompt once, not once for either reply: a third of the tokens less, and
    the same loss. A base that gives other values so, as a recurrent one does, is read as TRL reads it.
    """

    def __init__(self, *args: Any, share_prompts: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.share_prompts = share_prompts and self._values_are_the_same()

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss of a batch. Its rows are the chosen texts and then, in the same order, the rejected."""
        with shared_prompts(_backbone(self.model)) if self.share_prompts else nullcontext():
            return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def _values_are_the_same(self) -> bool:
        """Return whether the model gives every reply token of the longest pair the same values either way; else say so.

        Where a token sees other tokens than all those before it, the packing is not exact, and a single pair may hide
        it: such bases are left out by their config.
        """
        backbone, lengths = _backbone(self.model), self.train_dataset["length"][:]
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[lengths.index(max(lengths))]]))
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        same = not self.aux_loss_enabled and _sees_all_before(backbone, self.args.max_length)
        if same:
            found = []
            for reading in (nullcontext(), shared_prompts(backbone)):
                with self.accelerator.autocast(), reading:
                    hidden = backbone(**inputs).last_hidden_state
                found.append(hidden[batch["completion_mask"].bool()].float())
            exact = hidden.dtype == torch.float32 and hidden.device.type == "cpu"
            tolerance = 1e-3 if exact else 0.1  # of a token's values; rounding in bf16 makes some hundredths
            same = bool(((found[1] - found[0]).norm(dim=1) < tolerance * found[0].norm(dim=1)).all())
        if not same:
            print("This base does not allow to read a pair's prompt once for both replies. It is read with each reply.")
        return same


def _sees_all_before(backbone: PreTrainedModel, length: int) -> bool:
    """Return whether in texts of a length every token attends to all before it, by a mask and positions as given."""
    config = backbone.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (config._attn_implementation == "sdpa" and not getattr(config, "alibi", False)
            and (getattr(config, "sliding_window", None) or length) >= length
            and kinds <= {"full_attention", "sliding_attention"}
            and "position_ids" in inspect.signature(backbone.forward).parameters)


def _backbone(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the part of a causal language model below its head, with the adapters that are in it."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


@contextmanager
def shared_prompts(backbone: PreTrainedModel) -> Iterator[None]:
    """Let a causal model read once what rows i and n + i of its 2 n rows begin with alike: the prompt of two replies.

    Its hidden states come back in the places of the 2 n rows; those of padding mean nothing.
    """
    places = []

    def pack(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        packed, place = packed_pairs(kwargs["input_ids"], kwargs["attention_mask"])
        places.append(place)
        return args, kwargs | packed

    def unpack(module: torch.nn.Module, args: tuple, output: Any) -> Any:
        row = torch.arange(len(output.last_hidden_state), device=output.last_hidden_state.device).repeat(2)
        output.last_hidden_state = output.last_hidden_state[row[:, None], places.pop()]
        return output

    hooks = [backbone.register_forward_pre_hook(pack, with_kwargs=True), backbone.register_forward_hook(unpack)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def packed_pairs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return what a model reads of 2 n texts, (2 n, length), padded on the right, as n rows; and where each token went.

    Row i holds text i and then the rest of text n + i, from where the two differ, at its own positions. That rest
    attends to what both begin with and to itself, not to the rest of text i. What a token of a causal model does not
    attend to has no part in its values, so these, and the gradients, are those of 2 n rows. The second tensor,
    (2 n, length), holds a token's column in row i of both text i and text n + i.
    """
    (first, second), (real, other) = input_ids.chunk(2), attention_mask.bool().chunk(2)
    alike = ((first == second) & real & other).long().cumprod(1).sum(1, keepdim=True)  # (n, 1): tokens in common
    width, rest = int(real.sum(1).max()), int((other.sum(1) - alike[:, 0]).max())
    column, position = (torch.arange(n, device=input_ids.device) for n in (width + rest, input_ids.shape[1]))
    of_the_rest = (alike + position[:rest]).clamp(max=position[-1])
    positions = torch.cat([position[:width].expand(len(first), -1), of_the_rest], 1)
    apart = (column[:, None] >= width) & (column < width) & (column >= alike[:, :, None])
    packed = {"input_ids": torch.cat([first[:, :width], second.gather(1, of_the_rest)], 1),
              "position_ids": positions, "attention_mask": ((column <= column[:, None]) & ~apart)[:, None]}
    places = torch.cat([position.expand_as(first), torch.where(position < alike, position, width + position - alike)])
    return packed, places.clamp(max=width + rest - 1)
