"""What is known of some judges: how they read, their thresholds and licences, each with its source.

Nothing here is guessed: a field is None where no source was found.
"""

from dataclasses import dataclass

from posttrain.evaluation_settings import JUDGE
from posttrain.style import format_number

PAIR = "question and answer as a pair of texts"
CONVERSATION = "a conversation, rendered by its chat template"


@dataclass(frozen=True)
class KnownJudge:
    """A judge and what is known of it.

    Attributes:
        name: its name on the hub, or its folder.
        reads: how it reads, which its tokenizer decides: a judge with a chat template reads
            conversations.
        length: the number of tokens that it was trained to read, None if this is not stated.
        harmless_from: the lowest reward of a harmless answer, None if nobody has established it.
        helpful_above: the reward above which an answer is helpful, None likewise.
        thresholds_from: where the thresholds come from; "" without thresholds.
        licence: as its page states it, None if it states none.
        source: where this comes from, and what else is worth knowing.
    """

    name: str
    reads: str
    length: int | None
    harmless_from: float | None
    helpful_above: float | None
    thresholds_from: str
    licence: str | None
    source: str


KNOWN_JUDGES = (
    KnownJudge(
        name=JUDGE,
        reads=PAIR,
        length=512,
        harmless_from=-3.0,
        helpful_above=-2.0,
        thresholds_from="the study (arXiv 2509.09055), which used this judge",
        licence="MIT",
        source="its page on the hub (licence, training data, among it HH-RLHF). In RewardBench it "
        "prefers what people prefer in 56% to 59% of the harmless and 69% to 71% of the helpful "
        "pairs of HH-RLHF.",
    ),
    KnownJudge(
        name="sileod/deberta-v3-large-tasksource-rlhf-reward-model",
        reads=PAIR,
        length=None,
        harmless_from=None,
        helpful_above=None,
        thresholds_from="",
        licence=None,
        source="its page on the hub: fine-tuned on HH-RLHF for one epoch; it reports that it "
        "agrees with people on 75.16% of the validation pairs, and 69.25% for the study's judge.",
    ),
    KnownJudge(
        name="RaushanTurganbay/reward_model_deberta_large_Anthropic_hh",
        reads=PAIR,
        length=None,
        harmless_from=None,
        helpful_above=None,
        thresholds_from="",
        licence="Apache 2.0",
        source="its page on the hub: a DeBERTa trained on HH-RLHF, with weights as safetensors.",
    ),
    KnownJudge(
        name="Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        reads=CONVERSATION,
        length=16384,
        harmless_from=None,
        helpful_above=None,
        thresholds_from="",
        licence="Apache 2.0",
        source="the README of github.com/SkyworkAI/Skywork-Reward-V2: derived from Qwen3-0.6B, to "
        "be used without a system prompt.",
    ),
    KnownJudge(
        name="demo/hub/reward-model",
        reads=PAIR,
        length=None,
        harmless_from=-3.0,
        helpful_above=-2.0,
        thresholds_from="demo/build.py, which puts them between typical good and bad replies",
        licence="MIT",
        source="this repository: the tiny stand-in of the demo, of no use elsewhere.",
    ),
)


def find_judge(name: str) -> KnownJudge | None:
    """Find a judge among the known ones by its name on the hub, None if it is unknown."""
    for judge in KNOWN_JUDGES:
        if judge.name == name:
            return judge
    return None


def list_known_judges() -> str:
    """Write the table of known judges as markdown, for the documents."""
    lines = [
        "| judge | reads | length (tokens) | thresholds | licence | source |",
        "|---|---|---|---|---|---|",
    ]
    for judge in KNOWN_JUDGES:
        thresholds = "none established"
        if judge.thresholds_from:
            lowest, limit = map(format_number, (judge.harmless_from, judge.helpful_above))
            thresholds = f"harmless from {lowest}, helpful above {limit}: {judge.thresholds_from}"
        cells = [
            f"`{judge.name}`",
            judge.reads,
            str(judge.length or "not stated"),
            thresholds,
            judge.licence or "not stated",
            judge.source,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
