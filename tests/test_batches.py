"""Batches contain every text once and keep the order, and are halved if memory runs out."""

import numpy as np
import pytest
import torch

from posttrain.batches import batches_by_tokens, batches_of_like_length, in_batches


@pytest.mark.parametrize("budget", [1, 50, 200, 10_000])
def test_padded_batch_keeps_the_budget(budget):
    """Every text is in exactly one batch, and only a single text may exceed the budget."""
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    batches = batches_by_tokens(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    assert len(batches) == {1: 200, 10_000: 2}.get(budget, len(batches))


def test_no_texts():
    assert batches_by_tokens([], 100) == batches_of_like_length([], 3) == []


def test_texts_of_like_length_share_a_batch():
    assert batches_of_like_length([5, 1, 9, 2, 7], 2) == [[1, 3], [0, 4], [2]]


def test_values_come_back_in_order():
    """The order of the indices within the batches does not matter."""
    batches = [[3, 1], [0, 2], [4]]
    values = in_batches(lambda batch: [2.5 * i for i in batch], batches, "x")
    assert values == [0, 2.5, 5, 7.5, 10]


def run_out_of_memory():
    """Raise the error that torch raises on a GPU whose memory is full."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1.00 GiB in all."
    )


def test_batch_that_runs_out_of_memory_is_done_in_halves(capsys):
    """Every index is processed once, and the values are returned in order."""
    sizes = []

    def compute_on_a_small_card(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            run_out_of_memory()
        return [i * 2 for i in batch]

    assert in_batches(compute_on_a_small_card, [[3, 1, 0, 2, 4]], "x") == [0, 2, 4, 6, 8]
    assert sizes == [5, 2, 3, 1, 2]
    assert "Out of memory with 5 texts at once" in capsys.readouterr().out


def test_one_text_too_many_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(lambda batch: run_out_of_memory(), [[0]], "x")


def test_other_errors_are_not_tried_again():
    def fail(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_batches(fail, [[0, 1]], "x")
