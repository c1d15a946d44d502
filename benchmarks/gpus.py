"""Seconds that GPUs would take, from data sheets and from assumptions. Nothing here is measured.

The rates are those of NVIDIA's data sheets. Rates of matrices are without sparsity, and those of a
link between GPUs, NVLink or PCI Express, are half of what a sheet gives for both directions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.costs import (
    LIBRARIES,
    Base,
    Work,
    bytes_of_cache,
    bytes_of_training,
    count_trained,
    count_weights,
    flop_of_head,
    flop_of_token,
)
from benchmarks.speed import FLOP_OF_A_PASS
from posttrain.batches import ON_GPU
from posttrain.metrics import HUMAN_REPLIES, REFERENCES
from posttrain.settings import Evaluation, Training

MODELS = 4  # that answer: Base, SFT, DPO and SFT+DPO
CACHE_READS = 3  # a step reads the cache, and copies it, since it grows
FREE_SHARE = 0.8  # of the free memory, as `batches.texts_at_once` has it


@dataclass(frozen=True)
class Device:
    """One or several GPUs of a kind, by the maker's data sheet.

    Attributes:
        name: in the tables.
        sheet: the data sheet.
        training: the rate in the precision of the training, bf16 or fp16, in operations a second.
        fp32: the rate in fp32, in which the evaluation computes, without TF32.
        bandwidth: of the memory, in bytes a second.
        memory: of one GPU, in bytes.
        link: between GPUs in one direction, in bytes a second.
        number: of GPUs.
    """

    name: str
    sheet: str
    training: float
    fp32: float
    bandwidth: float
    memory: float
    link: float
    number: int = 1


T4 = Device("T4", "NVIDIA T4 Tensor Core GPU", 65e12, 8.1e12, 320e9, 16e9, 16e9)
A100 = Device(
    "A100 80 GB", "NVIDIA A100 Tensor Core GPU (80 GB, SXM)", 312e12, 19.5e12, 2039e9, 80e9, 300e9
)
H100 = Device(
    "H100", "NVIDIA H100 Tensor Core GPU (SXM, dense)", 989e12, 67e12, 3350e9, 80e9, 450e9
)
EIGHT_H100 = replace(H100, name="8 × H100", number=8)
DEVICES = (T4, A100, H100, EIGHT_H100)


@dataclass(frozen=True)
class Assumption:
    """What a GPU is assumed to reach.

    Attributes:
        training: the share of the peak rate in a pass of the training.
        fp32: the share of the peak rate in fp32.
        bandwidth: the share of the bandwidth of the memory, and of the link.
        operator: the seconds that the processor needs to start an operator on the GPU.
    """

    training: float
    fp32: float
    bandwidth: float
    operator: float


FAST = Assumption(training=0.45, fp32=0.7, bandwidth=0.8, operator=10e-6)
SLOW = Assumption(training=0.15, fp32=0.4, bandwidth=0.4, operator=40e-6)
ASSUMPTIONS = (
    FAST,
    SLOW,
    replace(FAST, operator=SLOW.operator),
    replace(SLOW, operator=FAST.operator),
)


# ---- training


def find_pass(
    base: Base, settings: Training, work: Work, units: dict[str, float], device: Device
) -> int | None:
    """Find the largest pass of a step that fits into the memory, as the training does by trying.

    Args:
        base: the base.
        settings: of the preset.
        work: the training.
        units: as in `costs.bytes_of_training`.
        device: the GPUs, which share the pairs of a step.

    Returns:
        The number of pairs on one GPU; None if not even one pair fits.
    """
    share = work.pairs // device.number
    for pairs in range(share, 0, -1):
        needed = bytes_of_training(base, settings, work, pairs, units, device.number)
        if share % pairs == 0 and needed <= device.memory:
            return pairs
    return None


def count_operators(
    base: Base, work: Work, operators: Mapping[str, Any], forward_only: bool = False
) -> float:
    """Count the operators that a pass starts, one after the other.

    Args:
        base: the base.
        work: the training.
        operators: of `scale_inputs.count_operators_of_layer`.
        forward_only: whether the pass is one of the validation.
    """
    of_layer = operators["all weights" if work.trains_all else "adapters"]
    number = work.forward_passes * of_layer["forward"]
    if not forward_only:
        number += of_layer["backward"]
    return base.layers * number


def seconds_of_exchange(trained: int, device: Device, assumption: Assumption) -> float:
    """Compute how long several GPUs take to add up their gradients, which are in fp32.

    Each of n GPUs sends 2 (n − 1) / n times the gradients, around a ring.
    """
    if device.number == 1:
        return 0.0
    sent = 2 * (device.number - 1) / device.number * 4 * trained
    return sent / (device.link * assumption.bandwidth)


def pairs_that_fill(
    base: Base, work: Work, device: Device, assumption: Assumption, operators: Mapping[str, Any]
) -> float:
    """Compute with how many pairs the arithmetic of a pass takes as long as starting its operators.

    With fewer pairs the GPU waits for the processor, and a pass takes as long however few they are.

    Args:
        base: the base.
        work: the training.
        device: one GPU.
        assumption: what it reaches.
        operators: as in `count_operators`.
    """
    flop = work.tokens * work.passes * flop_of_token(base)
    starting = count_operators(base, work, operators) * assumption.operator
    return starting * device.training * assumption.training / flop


def seconds_of_step(
    base: Base,
    settings: Training,
    work: Work,
    pairs: int,
    device: Device,
    assumption: Assumption,
    operators: Mapping[str, Any],
) -> float:
    """Compute the seconds of an optimizer step.

    A pass takes as long as its arithmetic, or as starting its operators if that takes longer.

    Args:
        base: the base.
        settings: of the preset.
        work: the training.
        pairs: in a pass, on one GPU.
        device: the GPUs.
        assumption: what they reach.
        operators: as in `count_operators`.
    """
    flop = pairs * work.tokens * work.passes * flop_of_token(base)
    arithmetic = flop / (device.training * assumption.training)
    starting = count_operators(base, work, operators) * assumption.operator
    passes = work.pairs / device.number / pairs
    trained = count_trained(base, settings, work)
    return passes * max(arithmetic, starting) + seconds_of_exchange(trained, device, assumption)


def seconds_of_training(
    base: Base,
    settings: Training,
    trainings: Sequence[Work],
    record: Mapping[str, Any],
    device: Device,
    assumption: Assumption,
) -> float | None:
    """Compute the seconds of a preset's trainings, validation included.

    Args:
        base: the base.
        settings: of the preset.
        trainings: of `costs.list_trainings`.
        record: of scale.json.
        device: the GPUs.
        assumption: what they reach.

    Returns:
        The seconds; None if a training does not fit into the memory.
    """
    total, operators = 0.0, record["operators"]
    for work in trainings:
        pairs = find_pass(base, settings, work, record["activation bytes"], device)
        if pairs is None:
            return None
        step = seconds_of_step(base, settings, work, pairs, device, assumption, operators)
        # SFT's held-out pairs are read one at a time, DPO's about as many as in a pass.
        at_once = 1 if work.stage == "SFT" else pairs
        flop = at_once * work.tokens * work.forward_passes * flop_of_token(base)
        arithmetic = flop / (device.training * assumption.training)
        starting = count_operators(base, work, operators, True) * assumption.operator
        readings = work.held_out / at_once / device.number
        total += work.steps * step + readings * max(arithmetic, starting)
    return total


# ---- evaluation


def count_texts_at_once(base: Base, tokens: int, device: Device) -> int | None:
    """Choose how many prompts are answered at once, by the rule of `batches.texts_at_once`.

    Args:
        base: the base, in fp32.
        tokens: the most of a prompt and its answer.
        device: the GPU.

    Returns:
        The number of prompts; None if the weights do not fit.
    """
    free = device.memory - LIBRARIES - 4 * count_weights(base)
    if free <= 2 * bytes_of_cache(base, tokens):
        return None
    fitting = FREE_SHARE * free / (2 * bytes_of_cache(base, tokens))
    fewest, most = ON_GPU
    return min(most, max(fewest, 2 ** int(math.log2(max(1, fitting)))))


def seconds_of_answers(
    base: Base,
    settings: Evaluation,
    prompts: int,
    record: Mapping[str, Any],
    device: Device,
    assumption: Assumption,
) -> float | None:
    """Compute the seconds in which all models answer, and the baseline reads the others' answers.

    Every answer is taken to be as long as the limit. A step takes as long as the slowest of three:
    its arithmetic, reading weights and cache, and starting its operators.

    Args:
        base: the base.
        settings: of the evaluation.
        prompts: the number of prompts of both kinds.
        record: of scale.json.
        device: the GPUs, to which batches are dealt out whole.
        assumption: what they reach.

    Returns:
        The seconds; None if the weights do not fit into the memory.
    """
    lengths, new = record["lengths"], settings.max_new_tokens
    at_once = count_texts_at_once(base, lengths["longest test prompt"] + new, device)
    if at_once is None:
        return None
    at_once = min(at_once, prompts)
    batches = math.ceil(prompts / at_once / device.number)
    fp32, bandwidth = device.fp32 * assumption.fp32, device.bandwidth * assumption.bandwidth
    starting = base.layers * record["operators"]["asked"] * assumption.operator
    prompt = lengths["test prompt"]
    reading = max(at_once * prompt * flop_of_token(base) / fp32, starting)
    cache = at_once * bytes_of_cache(base, prompt + new / 2)
    step = max(
        at_once * (flop_of_token(base) + flop_of_head(base)) / fp32,
        (4 * count_weights(base) + CACHE_READS * cache) / bandwidth,
        starting,
    )
    flop = (prompt + new) * flop_of_token(base) + new * flop_of_head(base)
    reading_again = max(at_once * flop / fp32, starting)
    return batches * (MODELS * (reading + new * step) + (MODELS - 1) * reading_again)


def seconds_of_judging(
    settings: Evaluation,
    prompts: int,
    record: Mapping[str, Any],
    device: Device,
    assumption: Assumption,
) -> float:
    """Compute the seconds in which the judge reads all answers, those of the references too.

    Args:
        settings: of the evaluation.
        prompts: the number of prompts of both kinds.
        record: of scale.json.
        device: the GPUs.
        assumption: what they reach.
    """
    tokens = prompts * count_judged(settings, record["lengths"])
    batches = math.ceil(tokens / settings.judge_tokens / device.number)
    batch = min(settings.judge_tokens, tokens / device.number)
    return batches * batch * FLOP_OF_A_PASS / (device.fp32 * assumption.fp32)


def count_judged(settings: Evaluation, lengths: Mapping[str, float]) -> float:
    """Count the tokens that the judge reads for one prompt, with those of the base's tokenizer."""
    question = lengths["test prompt"]
    whole = min(settings.judge_length, question + settings.max_new_tokens)
    answers = MODELS + len(HUMAN_REPLIES)
    others = len(REFERENCES) - len(HUMAN_REPLIES)  # a sentence or nothing
    return answers * whole + others * question


def bytes_of_asking(base: Base) -> float:
    """Count the bytes of a base that answers, in fp32, without its cache."""
    return 4 * count_weights(base) + LIBRARIES
