"""Faster matrix products in fp32 on a CPU, from weights in the layout that oneDNN chooses.

torch multiplies with a linear layer's weight as it lies in memory, row after row. For the few rows
of a decoding step that takes more than twice as long as with weights that were once rearranged into
blocks, and for whole texts still a fifth longer. torch rearranges weights by itself only in models
that it compiles, which needs a C++ compiler.

In generation and judging the rearranged weights take the place of the others. A training multiplies
with the transposed weights too, in its backward pass, and needs memory for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import Linear, Module

# Number of weights in a layer from which on a training is faster with rearranged ones: 512 times
# 512, measured with 120 to 1,200 tokens in a pass. Smaller layers took longer.
LARGE = 2**18


@contextmanager
def packed(model: Module, read: Callable[[Module], torch.Tensor]) -> Iterator[None]:
    """Multiply with rearranged weights for as long as a model only reads and answers.

    The products are those of fp32, added up in another order. The rearranged weight of a layer
    replaces the plain one, so that no memory is needed for a second copy of the model. Meanwhile
    the layer's `weight` reads as NaN, and at the end it has its values back to the bit. Nothing
    happens to a model on a GPU or in another precision, to a weight that two layers share, such as
    that of the embeddings and the head, or where torch was built without oneDNN. A model that reads
    the weights of its layers itself is left as it is too: it is recognised because it then computes
    something else.

    Args:
        model: a model in evaluation mode, whose weights do not change meanwhile.
        read: lets the model read something short, and returns what it computes.
    """
    with _rearranged(_list_packable(model), _pack, model, read):
        yield


@contextmanager
def packed_for_training(
    model: Module,
    layers: Sequence[Module],
    read: Callable[[Module], torch.Tensor],
    most_memory: float,
) -> Iterator[None]:
    """Multiply with rearranged weights while a model with a frozen base is trained.

    This is `packed` for a backward pass too: a layer's weight is rearranged together with its
    transpose, so each of these layers takes twice the memory. Meanwhile the model cannot be copied,
    merged or saved as a whole.

    Args:
        model: a model that is trained.
        layers: its layers whose weights, if they are frozen, nothing else reads or changes.
        read: lets the model read something short, and returns what it computes and its gradients.
        most_memory: the memory that all transposed weights together may take, in bytes. Nothing
            happens if they would take more.
    """
    large = []
    for layer in _list_packable(model):
        is_frozen = not any(weight.requires_grad for weight in layer.parameters())
        if is_frozen and layer in layers and layer.weight.numel() >= LARGE:
            large.append(layer)
    if sum(layer.weight.nbytes for layer in large) > most_memory:
        large = []
    with _rearranged(large, _pack_both_ways, model, read):
        yield


@contextmanager
def _rearranged(
    layers: Sequence[Linear],
    pack: Callable[[Linear], None],
    model: Module,
    read: Callable[[Module], torch.Tensor],
) -> Iterator[None]:
    """Rearrange the weights of some layers, unless the model then computes something else."""
    expected = _try(read, model) if layers else None
    if expected is None:
        layers = []
    try:
        for layer in layers:
            pack(layer)
        values = _try(read, model) if layers else None
        if values is None or not _are_close(values, expected):
            _unpack_all(layers)
        yield
    finally:
        _unpack_all(layers)


def _try(read: Callable[[Module], torch.Tensor], model: Module) -> torch.Tensor | None:
    """Let a model read something short, which not every model can; what follows will say why."""
    try:
        return read(model)
    except (RuntimeError, IndexError, ValueError):
        return None


def _are_close(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Compare what a model computes before and after its weights are rearranged."""
    same_shape = values.shape == expected.shape
    return same_shape and torch.allclose(values, expected, rtol=1e-3, atol=1e-3)


# A tensor that was made in inference mode could not be trained afterwards.
@torch.inference_mode(False)
def _pack(layer: Linear) -> None:
    """Rearrange a layer's weight, and multiply with the rearranged one from now on."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    layer.forward = partial(_multiply, weight, layer.bias)
    _release(layer.weight)


@torch.inference_mode(False)
def _pack_both_ways(layer: Linear) -> None:
    """Rearrange a layer's weight and its transpose, and multiply with them from now on."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    transposed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data.t().contiguous())
    layer.forward = partial(_multiply_both_ways, weight, layer.bias, transposed)
    _release(layer.weight)


def _release(weight: torch.nn.Parameter) -> None:
    """Free a weight's memory. It keeps its shape, by which trainers count what a model computes."""
    weight.data = torch.full((1, 1), torch.nan).expand(weight.shape)


class _Product(Function):
    """The product of a layer's input with a rearranged frozen weight, plus the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transposed: torch.Tensor,
    ) -> torch.Tensor:
        """Compute input · weightᵀ + bias, of shape (..., outputs)."""
        ctx.transposed = transposed
        return _multiply(weight, bias, input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Compute the gradient for the input, gradient · weight, of shape (..., inputs)."""
        return _multiply(ctx.transposed, None, gradient), None, None, None


def _multiply_both_ways(
    weight: torch.Tensor, bias: torch.Tensor | None, transposed: torch.Tensor, input: torch.Tensor
) -> torch.Tensor:
    """Multiply as `_multiply`, and give the input a gradient."""
    return _Product.apply(input, weight, bias, transposed)  # which takes no arguments by name


@torch.inference_mode(False)
def _unpack_all(layers: Sequence[Linear]) -> None:
    """Put back all weights that were rearranged, before an interruption is let through."""
    interruption = None
    for layer in layers:
        while "forward" in vars(layer):
            try:
                weight = layer.forward.args[0]
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
