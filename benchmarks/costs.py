"""The arithmetic and the memory of training a base and of asking it, counted, not measured.

Arithmetic is counted as for the share of the peak rate in benchmarks.speed: two operations for each
weight of the layers' matrices, for every token and every pass. All bases are of one family, OPT,
whose layers are four times as wide inside as outside.
"""

from dataclasses import dataclass
from typing import Any

from benchmarks.speed import PASSES
from posttrain.settings import Training

HH_PAIRS = 160_800  # of HH-RLHF's training splits, before any is dropped
VALIDATIONS = 5  # before the first step, and after each quarter of the steps
VOCABULARY_AT_ONCE = 32_768  # token ids whose logits TRL computes at once on a GPU,
TOKENS_AT_ONCE = 4096  # and tokens of the texts
LOGIT_BYTES = 8  # for a logit and its gradient in fp32
TRAINED_BYTES = 12  # for a trained weight: its gradient and two moments in fp32
LIBRARIES = 1e9  # bytes that CUDA and its libraries take for themselves, about


@dataclass(frozen=True)
class Base:
    """The architecture of a base model of the family OPT.

    Attributes:
        name: its name on the hub, without the owner.
        layers: the number of blocks.
        width: the length of a hidden state.
        embedding: the length of a token's embedding, from which OPT-350M projects to `width`.
        vocabulary: the number of token ids.
        positions: the number of rows in the table of positions.
    """

    name: str
    layers: int
    width: int
    embedding: int
    vocabulary: int = 50_272
    positions: int = 2050


OPT_125M = Base("opt-125m", 12, 768, 768)
OPT_350M = Base("opt-350m", 24, 1024, 512)
OPT_1B = Base("opt-1.3b", 24, 2048, 2048)
OPT_7B = Base("opt-6.7b", 32, 4096, 4096)


@dataclass(frozen=True)
class Work:
    """One of the three trainings of a preset.

    Attributes:
        stage: "SFT" or "DPO".
        steps: the number of optimizer steps.
        pairs: the number of pairs in a step.
        held_out: how many times a held-out pair is read, over all validations.
        tokens: of a pair as it is read, in the mean.
        tokens_of_texts: the same, where a prompt counts once for every reply.
        longest: the most tokens of a pair as it is read.
        replies: the most tokens of a pair with a loss.
        passes: over the weights for every token; a backward pass through frozen weights is one.
        trains_all: whether all weights are trained, and no adapters.
    """

    stage: str
    steps: int
    pairs: int
    held_out: int
    tokens: float
    tokens_of_texts: float
    longest: int
    replies: int
    passes: int
    trains_all: bool = False

    @property
    def forward_passes(self) -> int:
        """The number of passes without a backward one: DPO's reference reads a text too."""
        return 2 if self.stage == "DPO" else 1


# ---- weights and arithmetic


def count_matrices(base: Base) -> int:
    """Count the weights in the matrices of all layers."""
    return base.layers * 12 * base.width**2


def count_weights(base: Base) -> int:
    """Count all weights of a base; the head shares those of the embeddings."""
    vectors = base.layers * 13 * base.width  # biases, and two layer norms in each layer
    outside = base.vocabulary * base.embedding + base.positions * base.width
    if base.embedding != base.width:
        outside += 2 * base.embedding * base.width
    else:
        outside += 2 * base.width  # a layer norm at the end, which OPT-350M lacks
    return count_matrices(base) + vectors + outside


def count_adapters(base: Base, settings: Training) -> int:
    """Count the weights of the LoRA adapters that a preset trains."""
    if settings.lora_layers == "all-linear":
        ends = 4 * 2 * base.width + 2 * 5 * base.width  # in and out of six matrices of a layer
    else:
        ends = len(settings.lora_layers) * 2 * base.width  # of projections as wide as the layer
    return base.layers * ends * settings.lora_r


def count_trained(base: Base, settings: Training, work: Work) -> int:
    """Count the weights that are trained: the adapters', or all in full fine-tuning."""
    if work.trains_all:
        return count_weights(base)
    return count_adapters(base, settings)


def flop_of_token(base: Base) -> int:
    """Count the floating-point operations of a token in one pass through the layers."""
    return 2 * count_matrices(base)


def flop_of_head(base: Base) -> int:
    """Count the floating-point operations that give the logits of one token."""
    return 2 * base.vocabulary * base.embedding


def share_left_out(base: Base, tokens: float, with_loss: float) -> float:
    """Compute how much the scores of attention and the head would add to the arithmetic of a text.

    Args:
        base: the base.
        tokens: of the text.
        with_loss: those that need logits.

    Returns:
        A share of the arithmetic that is counted, in a forward pass.
    """
    scores = 4 * base.layers * base.width * tokens  # of each token with every token, and their sum
    return (scores * tokens + flop_of_head(base) * with_loss) / (flop_of_token(base) * tokens)


# ---- trainings


def count_pairs(settings: Training) -> tuple[int, int]:
    """Count a preset's pairs for training, at most, and its held-out pairs."""
    total = settings.max_pairs or HH_PAIRS
    held_out = min(settings.validation_pairs, total // 10)
    return total - held_out, held_out


def list_trainings(settings: Training, lengths: dict[str, Any]) -> list[Work]:
    """List the three trainings of a preset: SFT, DPO, and DPO after SFT.

    Args:
        settings: of the preset.
        lengths: of the texts in tokens, as `scale_inputs.measure_lengths` gives them.
    """
    trained, held_out = count_pairs(settings)
    text = lengths["prompt"] + lengths["chosen"]
    two_texts = text + lengths["prompt"] + lengths["rejected"]
    longest_reply = lengths["longest reply"]
    longest_pair, pair = lengths["longest pair"], two_texts - lengths["prompt"]
    if settings.dropout:  # then the prompt is read with each reply
        longest_pair, pair = 2 * lengths["longest text"], two_texts
    whole, full = settings.sft_loss == "transcript", settings.sft_method == "full"
    sft = Work(
        stage="SFT",
        steps=-(-trained * settings.sft_epochs // settings.batch_size),
        pairs=settings.batch_size,
        held_out=VALIDATIONS * held_out,
        tokens=text,
        tokens_of_texts=text,
        longest=lengths["longest text"],
        replies=lengths["longest text"] if whole else longest_reply,
        passes=PASSES["SFT"] + (1 if full else 0),  # the gradients of the weights
        trains_all=full,
    )
    dpo = Work(
        stage="DPO",
        steps=-(-trained * settings.dpo_epochs // settings.batch_size),
        pairs=settings.batch_size,
        held_out=VALIDATIONS * held_out,
        tokens=pair,
        tokens_of_texts=two_texts,
        longest=longest_pair,
        replies=2 * longest_reply,
        passes=PASSES["DPO"],
    )
    return [sft, dpo, dpo]


# ---- memory


def bytes_of_weights(base: Base, settings: Training) -> float:
    """Count the bytes of a base's weights while it is trained.

    A frozen base has two bytes for each. Where SFT trains all weights, they are in fp32, in all
    stages, and autocast keeps a copy of the matrices in two bytes.
    """
    if settings.sft_method == "full":
        return 4.0 * count_weights(base) + 2.0 * count_matrices(base)
    return 2.0 * count_weights(base)


def list_bytes(
    base: Base, settings: Training, work: Work, pairs: int, units: dict[str, float], gpus: int = 1
) -> dict[str, float]:
    """List the bytes of a pass over the longest pairs, with all that stays in memory.

    Args:
        base: the base.
        settings: of the preset.
        work: the training.
        pairs: in the pass, on one GPU.
        units: bytes for each token, layer and unit of width, of activations.json. Where the weights
            are in fp32, those of "fp32" are taken, which is more than autocast keeps.
        gpus: the number of GPUs. Several exchange their gradients through a copy of them.

    Returns:
        The bytes of the base's "weights", of what is "trained" (adapters, gradients and moments),
        of the "activations" that are kept for the backward pass, of the "logits" that are computed
        at once, and of the "libraries".
    """
    trained = count_trained(base, settings, work)
    adapters = 0 if work.trains_all else 4 * trained
    copies = 4 * trained if gpus > 1 else 0
    unit = units["fp32"] if settings.sft_method == "full" else units["bf16"]
    logits = min(pairs * work.replies, TOKENS_AT_ONCE) * min(VOCABULARY_AT_ONCE, base.vocabulary)
    return {
        "weights": bytes_of_weights(base, settings),
        "trained": TRAINED_BYTES * trained + adapters + copies,
        "activations": pairs * work.longest * base.layers * base.width * unit,
        "logits": logits * LOGIT_BYTES,
        "libraries": LIBRARIES,
    }


def bytes_of_training(
    base: Base, settings: Training, work: Work, pairs: int, units: dict[str, float], gpus: int = 1
) -> float:
    """Add up the bytes of a pass, whose arguments are those of `list_bytes`."""
    return sum(list_bytes(base, settings, work, pairs, units, gpus).values())


def bytes_of_cache(base: Base, tokens: float) -> float:
    """Count the bytes of the keys and values of a text's tokens in fp32."""
    return 2 * 4 * base.layers * base.width * tokens
