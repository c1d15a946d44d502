"""Faster matrix products in fp32 on a CPU, from weights in the layout that oneDNN chooses.

torch multiplies with a linear layer's weight as it lies in memory, row after row. For the few rows
of a decoding step that takes more than twice as long as with weights that were once rearranged into
blocks, and for whole texts still a fifth longer. torch rearranges weights by itself only in models
that it compiles, which needs a C++ compiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Linear, Module


@contextmanager
def packed(model: Module, read: Callable[[Module], torch.Tensor]) -> Iterator[None]:
    """Multiply from rearranged weights for as long as a model only reads and answers.

    The products are those of fp32, added up in another order. A layer's weight is rearranged in its
    own place, so that no memory is needed for a second copy, and at the end it has its values back
    to the bit. Meanwhile it must not be read. Nothing happens to a model on a GPU or in another
    precision, to a weight that two layers share, such as that of the embeddings and the head, or
    where torch was built without oneDNN. A model that itself reads the weights of its layers is
    left as it is too; a short text shows which one does.

    Args:
        model: a model in evaluation mode, whose weights do not change meanwhile.
        read: lets the model read something short, and returns what it computes.
    """
    layers = _list_packable(model)
    expected = read(model) if layers else None
    try:
        for layer in layers:
            _pack(layer)
        if layers and not _computes(model, read, expected):
            _unpack_all(layers)
        yield
    finally:
        _unpack_all(layers)


def _computes(
    model: Module, read: Callable[[Module], torch.Tensor], expected: torch.Tensor
) -> bool:
    """Tell whether a model computes what is expected; an empty weight raises in several ways."""
    try:
        values = read(model)
    except (RuntimeError, IndexError, ValueError):
        return False
    return torch.allclose(values, expected, rtol=1e-3, atol=1e-3)


# A tensor that was made in inference mode could not be trained afterwards.
@torch.inference_mode(False)
def _pack(layer: Linear) -> None:
    """Rearrange a layer's weight, and multiply from the rearranged one from now on."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    layer.forward = partial(_multiply, weight, layer.bias)
    layer.weight.data = torch.empty(0)


@torch.inference_mode(False)
def _unpack_all(layers: Sequence[Linear]) -> None:
    """Put back all weights that were rearranged, before an interruption is let through."""
    interruption = None
    for layer in layers:
        while "forward" in vars(layer):
            try:
                weight, _ = layer.forward.args
                layer.weight.data = weight.to_dense()
                del layer.forward
            except KeyboardInterrupt as error:
                interruption = error
    if interruption is not None:
        raise interruption


def _multiply(
    weight: torch.Tensor, bias: torch.Tensor | None, input: torch.Tensor
) -> torch.Tensor:
    """Multiply the input of a layer with a rearranged weight, and add the bias."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


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
