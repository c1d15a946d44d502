"""Write docs/claims.md and docs/published.md from results/published/: the study's claims, and what its record shows.

    python -m docs.build

A claim is a list of statements, each that one model stands above another in something. It is *supported* where all of
them are decided that way, *contradicted* where one is decided the other way, or where the printed numbers themselves
stand the other way although the claim speaks of all of them; else it is *open*.
"""

import json
from pathlib import Path

from posttrain.tables import interval

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published"
OTHERS = ("Base", "SFT", "DPO")
RATES = ("HmR", "HpR", "CAS")
REWARDS = ("harmful_reward", "helpful_reward")
BEST = [(measure, "SFT+DPO", other) for measure in RATES for other in OTHERS]

# claim: (statements (measure, the model that is said to be higher, the other), whether it speaks of all of them).
# "ratio" and "median_difference" are those of the rewards on a kind of prompt, for claims about spread and middle.
STATEMENTS = {
    "SFT outperforms DPO": ([(name, "SFT", "DPO") for name in RATES], False),
    "The combined SFT+DPO model outperforms all others across all metrics": (BEST, True),
    "demonstrating the complementary nature of these techniques": (
        [("CAS", "SFT+DPO", "SFT"), ("CAS", "SFT+DPO", "DPO")], False),
    "the Base model performs the worst overall": (
        [("CAS", other, "Base") for other in ("SFT", "DPO", "SFT+DPO")], False),
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
        [(name, *pair) for name in ("HmR", "harmful_reward") for pair in (("DPO", "Base"), ("SFT+DPO", "SFT"))], True),
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
  speaks of all and a printed number stands the other way. *open*: else.
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


PAGES = {"claims.md": claims, "published.md": published}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
