"""Faster matrix products in fp32 on a CPU, from weights in the layout that oneDNN chooses.

torch multiplies with a linear layer's weight as it lies in memory, row after row. For the few rows
of a decoding step that takes more than twice as long as with weights that were once rearranged into
blocks, and for whole texts still a fifth longer. torch rearranges weights by itself only in models
that it compiles, which needs a C++ compiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Linear, Module


@contextmanager
def packed(model: Module) -> Iterator[None]:
    """Multiply from rearranged weights for as long as a model only reads and answers.

    The products are those of fp32, added up in another order. A layer's weight is rearranged in its
    own place, so that no memory is needed for a second copy, and at the end it has its values back
    to the bit. Meanwhile it must not be read. Nothing happens to a model on a GPU or in another
    precision, to a weight that two layers share, such as that of the embeddings and the head, or
    where torch was built without oneDNN.

    Args:
        model: a model in evaluation mode, whose weights do not change meanwhile.
    """
    layers = _list_packable(model)
    try:
        for layer in layers:
            _pack(layer)
        yield
    finally:
        for layer in layers:
            _unpack(layer)


# A tensor that was made in inference mode could not be trained afterwards.
@torch.inference_mode(False)
def _pack(layer: Linear) -> None:
    """Rearrange a layer's weight, and multiply from the rearranged one from now on."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    layer.forward = partial(_multiply, weight, layer.bias)
    layer.weight.data = torch.empty(0)


@torch.inference_mode(False)
def _unpack(layer: Linear) -> None:
    """Put a layer's weight back, if it was rearranged."""
    if "forward" in vars(layer):
        weight, _ = layer.forward.args
        layer.weight.data = weight.to_dense()
        del layer.forward


def _multiply(
    weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor
) -> torch.Tensor:
    """Multiply values with a rearranged weight, and add the bias."""
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")


def _list_packable(model: Module) -> list[Linear]:
    """List the linear layers of a model whose weights can be rearranged."""
    if not torch.backends.mkldnn.is_available():
        return []
    owners = Counter()
    for module in model.modules():
        owners.update(id(weight) for weight in module.parameters(recurse=False))
    layers = []
    for module in model.modules():
        # A subclass, or a layer that something else has wrapped, may multiply in its own way.
        if type(module) is Linear and "forward" not in vars(module):
            weight = module.weight
            fits = weight.device.type == "cpu" and weight.dtype == torch.float32
            if fits and owners[id(weight)] == 1:
                layers.append(module)
    return layers
