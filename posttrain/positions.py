"""A DeBERTa judge projects the embeddings of relative positions once, and not in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.nn import Module
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
)

# The layers that project the positions where they are not those that project the tokens.
OF_POSITIONS = ("pos_query_proj", "pos_key_proj")


@contextmanager
def positions_projected_once(judge: Module) -> Iterator[None]:
    """Keep what a DeBERTa computes from its embeddings of relative positions, for many passes.

    Every layer of DeBERTa-v2 and v3 projects the embeddings of all relative positions to queries
    and keys, in every pass, although the result depends on the weights alone. In the large model
    these are 512 positions, as many as the tokens of two usual texts. Here the projections of the
    first pass are kept, and the rewards are the same to the bit. Nothing happens to judges of other
    kinds.

    Args:
        judge: a model in evaluation mode, whose weights do not change meanwhile.
    """
    with ExitStack() as stack:
        for encoder in judge.modules():
            if isinstance(encoder, DebertaV2Encoder) and encoder.relative_attention:
                with torch.no_grad():
                    positions = encoder.get_rel_embedding()
                # The same tensor in every pass, by which the projections recognise it.
                stack.enter_context(
                    patch.object(encoder, "get_rel_embedding", lambda kept=positions: kept)
                )
                for layer in _list_projections(encoder):
                    forward = _remember(layer.forward, positions)
                    stack.enter_context(patch.object(layer, "forward", forward))
        yield


def _remember(
    project: Callable[[torch.Tensor], torch.Tensor], positions: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Let a projection remember what it makes of the positions, and nothing else."""
    projected = []

    def forward(states: torch.Tensor) -> torch.Tensor:
        if states.data_ptr() != positions.data_ptr():
            return project(states)
        if not projected:
            projected.append(project(states))
        return projected[0]

    return forward


def _list_projections(encoder: DebertaV2Encoder) -> list[Module]:
    """List the layers through which the embeddings of positions are projected."""
    projections = []
    for module in encoder.modules():
        if isinstance(module, DisentangledSelfAttention):
            names = ("query_proj", "key_proj") if module.share_att_key else OF_POSITIONS
            projections += [getattr(module, name) for name in names if hasattr(module, name)]
    return projections
