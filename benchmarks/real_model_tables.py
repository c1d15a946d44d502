"""What follows from the log-probabilities of the test pairs: tables, sentences and a figure.

All of it is computed from the numbers in benchmarks/real_model_pairs.csv, without a model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.real_model import format_accuracy, format_numbers
from posttrain import style
from posttrain.comparisons import exact_mcnemar, format_signed
from posttrain.metrics import paired_difference, percentiles, redraw_prompts, wilson

REFERENCE_OF = {"DPO": "Base", "SFT+DPO": "SFT"}  # from which the training by DPO started
WORDS = "Bag of words"
SHORTER = "The shorter reply"
REPLIES = ("chosen", "rejected")
DRAWS = 10_000  # of the bootstrap
THIRDS = ("chosen shorter", "about as long", "chosen longer")


# ---- what follows from the log-probabilities


def list_trained(table: pd.DataFrame) -> list[str]:
    """List the models that DPO trained and that were measured."""
    return [name for name in REFERENCE_OF if f"{name} chosen" in table]


def margins_of(table: pd.DataFrame, model: str) -> pd.Series:
    """Compute by how much a model moved towards the chosen replies, in nats; β is left out."""
    reference = REFERENCE_OF[model]
    moved = {reply: table[f"{model} {reply}"] - table[f"{reference} {reply}"] for reply in REPLIES}
    return moved["chosen"] - moved["rejected"]


def choose_right(table: pd.DataFrame) -> pd.DataFrame:
    """Tell for each pair and each way of choosing whether it chooses the chosen reply.

    Args:
        table: of `real_model_pairs.measure`.

    Returns:
        A table of truth values with the models that DPO trained, the bag of words, and the rule
        that takes the shorter reply. A tie is not right.
    """
    right = {model: margins_of(table, model) > 0 for model in list_trained(table)}
    right[WORDS] = table["words"] > 0
    right[SHORTER] = table["chosen tokens"] < table["rejected tokens"]
    return pd.DataFrame(right)


def longer_by(table: pd.DataFrame) -> pd.Series:
    """Compute by how many tokens the chosen replies are longer than the rejected ones."""
    return table["chosen tokens"] - table["rejected tokens"]


def divide_by_length(table: pd.DataFrame) -> pd.Series:
    """Divide the pairs into three parts of about equal size, by the difference in length."""
    return pd.qcut(longer_by(table), 3, labels=THIRDS)


def compare_right(right: pd.DataFrame, first: str, second: str) -> dict[str, float]:
    """Compare how many pairs two ways of choosing get right, in points, second minus first."""
    gained = int((right[second] & ~right[first]).sum())
    lost = int((right[first] & ~right[second]).sum())
    return {
        "difference": 100 * (gained - lost) / len(right),
        **paired_difference(gained, lost, len(right)),
        "p": exact_mcnemar(gained, lost),
    }


def rank_before_and_after(table: pd.DataFrame, model: str, by_token: bool) -> list[int]:
    """Count the pairs whose chosen reply is the likelier one, for the reference and the model.

    Args:
        table: of `real_model_pairs.measure`.
        model: one that DPO trained.
        by_token: whether the mean log-probability of a token is compared, not that of the reply.
    """
    counts = []
    for name in (REFERENCE_OF[model], model):
        log_p = {reply: table[f"{name} {reply}"] for reply in REPLIES}
        if by_token:
            log_p = {reply: log_p[reply] / table[f"{reply} tokens"] for reply in REPLIES}
        counts.append(int((log_p["chosen"] > log_p["rejected"]).sum()))
    return counts


def fall_equally(table: pd.DataFrame, model: str) -> dict[str, Any]:
    """Ask how much of the margin is there because rejected replies are less likely to begin with.

    The longer a reply, the lower its log-probability. If training lowered the mean log-probability
    of the rejected replies by the same share as that of the chosen ones, the rejected ones would
    fall by more nats, and the margin would rise without any preference.

    Args:
        table: of `real_model_pairs.measure`.
        model: one that DPO trained.

    Returns:
        For each kind of reply the mean before and after (nats); the mean margin; what it would be
        if the rejected replies had fallen by the share by which the chosen ones fell; and the
        latter in percent of the former, with its 95% bootstrap interval over pairs.
    """
    names = [f"{owner} {reply}" for reply in REPLIES for owner in (REFERENCE_OF[model], model)]
    values = table[names].to_numpy()
    means = values.mean(axis=0)
    weights = redraw_prompts(len(values), DRAWS, 0) / len(values)
    shares = _share_of_margin(weights @ values)
    return {
        "chosen": means[:2].tolist(),
        "rejected": means[2:].tolist(),
        "margin": float(means[1] - means[0] - means[3] + means[2]),
        "equal": float((means[1] - means[0]) * (1 - means[2] / means[0])),
        "share": float(_share_of_margin(means)),
        **percentiles(margins_of(table, model).to_numpy(), shares),
    }


def _share_of_margin(means: np.ndarray) -> np.ndarray:
    """Compute the share in percent from mean log-probabilities, shape (…, 4) as above."""
    before, after, rejected_before, rejected_after = np.moveaxis(means, -1, 0)
    fall = after - before
    margin = fall - (rejected_after - rejected_before)
    return 100 * fall * (1 - rejected_before / before) / margin


# ---- the tables and the figure


def format_share(right: int, n: int) -> str:
    """Write a share of n pairs in percent, with its 95% interval."""
    interval = wilson(right, n)
    return f"{100 * right / n:.0f}% [{interval['low']:.0f}, {interval['high']:.0f}]"


def as_table(table: pd.DataFrame, beta: float) -> str:
    """Write four markdown tables: accuracy, by length, the replies' ranks, and their falls.

    Args:
        table: of `real_model_pairs.measure`.
        beta: β, by which margins are multiplied.
    """
    lines = [*_write_accuracy(table), "", *_write_by_length(table)]
    if list_trained(table):
        lines += ["", *_write_ranks(table), "", *_write_falls(table, beta)]
    return "\n".join(lines) + "\n"


def _write_accuracy(table: pd.DataFrame) -> list[str]:
    """Write how many of all pairs each way of choosing gets right."""
    right = choose_right(table)
    lines = [
        f"**Accuracy.** How many of the {len(table)} test pairs are chosen right. The differences "
        "are those from the bag of words on the same pairs, in points; p is that of McNemar's "
        "exact test, not corrected.",
        "",
        "| way of choosing | right [95% interval] | minus the bag of words [95% interval] | p |",
        "|---|---|---|---|",
    ]
    for name in right:
        cells = [name, format_share(int(right[name].sum()), len(right)), "", ""]
        if name != WORDS:
            compared = compare_right(right, WORDS, name)
            ends = [format_signed(compared[end], 1) for end in ("low", "high")]
            cells[2] = f"{format_signed(compared['difference'], 1)} [{', '.join(ends)}]"
            cells[3] = f"{compared['p']:.2f}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_by_length(table: pd.DataFrame) -> list[str]:
    """Write how many are right where the chosen reply is the shorter or longer one, and between."""
    right, longer, third = choose_right(table), longer_by(table), divide_by_length(table)
    groups = {"chosen shorter": longer < 0, "chosen longer": longer > 0}
    for name in THIRDS:
        low, high = longer[third == name].min(), longer[third == name].max()
        groups[f"{low:+d} to {high:+d} tokens".replace("-", "−")] = third == name
    sizes = [f"{name} ({int(inside.sum())})" for name, inside in groups.items()]
    lines = [
        "**By length.** The same, where the chosen reply has fewer and where it has more tokens "
        f"than the rejected one ({int((longer == 0).sum())} pairs have equally many), and in "
        "thirds of all pairs by this difference. The number of pairs is in brackets.",
        "",
        f"| way of choosing | {' | '.join(sizes)} |",
        f"|{'---|' * (len(groups) + 1)}",
    ]
    for name in right:
        cells = []
        for inside in groups.values():
            cells.append(format_share(int(right[name][inside].sum()), int(inside.sum())))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _write_ranks(table: pd.DataFrame) -> list[str]:
    """Write for how many pairs the chosen reply is the likelier one, before and after DPO."""
    lines = [
        "**Ranks.** For how many pairs the chosen reply is likelier than the rejected one, under "
        "the reference and then under the model: as a whole, and by the mean of its tokens.",
        "",
        "| model | as a whole, before | after | by token, before | after |",
        "|---|---|---|---|---|",
    ]
    for model in list_trained(table):
        cells = [model]
        for by_token in (False, True):
            for count in rank_before_and_after(table, model, by_token):
                cells.append(format_share(count, len(table)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_falls(table: pd.DataFrame, beta: float) -> list[str]:
    """Write how far the log-probabilities moved, and what equal falls make of the margin."""
    lines = [
        "**Falls.** The mean log-probability of the replies under the reference and then under the "
        "model, the margin, and what the margin would be if the rejected replies had fallen by "
        "the same percentage as the chosen ones.",
        "",
        "| model | log p(chosen) | log p(rejected) | margin | if both fell equally "
        "| of the margin [95% interval] |",
        "|---|---|---|---|---|---|",
    ]
    for model in list_trained(table):
        falls = fall_equally(table, model)
        cells = [model, format_numbers(falls["chosen"], 1), format_numbers(falls["rejected"], 1)]
        cells += [format_numbers([beta * falls[name]], 3) for name in ("margin", "equal")]
        cells.append(_write_equal_share(falls))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_result(table: pd.DataFrame, again: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    """Write in sentences what the test pairs and the held-out pairs say of both trainings.

    Args:
        table: of `real_model_pairs.measure`.
        again: of real_model_pairs.json, on the training whose models the table measures.
        earlier: of real_model.json, on the training that is committed.
    """
    right, n = choose_right(table), len(table)
    on_test, on_held_out, equal = [], [], []
    for model, test in earlier["test"].items():
        on_test.append(f"{format_accuracy(test['rewards/accuracies'], test['pairs'])} for {model}")
        on_held_out.append(f"{_write_held_out(earlier, model)} for {model}")
        share = _share_of_margin(np.array(_list_means(earlier["run"][model])))
        equal.append(f"{share:.0f}% for {model}")
    sentences = [
        "- The share of pairs in which a model moved further towards the chosen than towards the "
        f"rejected reply is {' and '.join(on_test)} on the {n} pairs of the test splits. On the "
        f"{earlier['held out']} held-out pairs it is {' and '.join(on_held_out)}.",
        "- A bag of words with the lengths of the replies is right in "
        f"{format_share(int(right[WORDS].sum()), n)} of the test pairs.",
        "- The rejected reply is longer than the chosen one in "
        f"{format_share(int(right[SHORTER].sum()), n)} of the test pairs.",
        "- If the mean log-probability of the rejected held-out replies had fallen by the same "
        "percentage as that of the chosen ones, a part of the margin would still be there: "
        f"{' and '.join(equal)}. The record of this training has means alone, so this part has no "
        "interval.",
    ]
    for model in [name for name in REFERENCE_OF if name in again["run"]]:
        sentence = (
            f"- {model} was trained once more with the same settings. Its share is "
            f"{_write_held_out(again, model)} of the held-out pairs"
        )
        if model in right:
            sentence += (
                f" and {format_share(int(right[model].sum()), n)} of the test pairs, which differs "
                "from that of the bag of words by "
                f"{_write_points(compare_right(right, WORDS, model))}. Equal falls would make "
                f"{_write_equal_share(fall_equally(table, model))} of its margin on the test pairs"
            )
        sentences.append(f"{sentence}.")
    return "\n".join(sentences)


def _list_means(measures: Mapping[str, Sequence[float]]) -> list[float]:
    """List the mean log-probabilities of a record of training as `_share_of_margin` takes them."""
    return [*measures["logps/chosen"], *measures["logps/rejected"]]


def _write_held_out(record: Mapping[str, Any], model: str) -> str:
    """Write the accuracy of a model on the held-out pairs at the end of its training."""
    accuracy = record["run"][model]["rewards/accuracies"][1]
    return format_accuracy(accuracy, record["held out"])


def _write_equal_share(falls: Mapping[str, Any]) -> str:
    """Write the share of the margin that equal falls would make, with its interval."""
    ends = ", ".join(format_numbers([falls[end]], 0) for end in ("low", "high"))
    return f"{format_numbers([falls['share']], 0)}% [{ends}]"


def _write_points(compared: Mapping[str, float]) -> str:
    """Write a difference in points with its interval and its p-value."""
    ends = ", ".join(format_signed(compared[end], 1) for end in ("low", "high"))
    return f"{format_signed(compared['difference'], 1)} points [{ends}] (p = {compared['p']:.2f})"


def draw_by_length(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw how many pairs are chosen right against the difference in length, in thirds.

    Args:
        table: of `real_model_pairs.measure`.
        names: the run's models in order, for their styles.
    """
    right, longer, third = choose_right(table), longer_by(table), divide_by_length(table)
    looks = style.style_of(names)
    looks = {name: looks[name] for name in list_trained(table)}
    looks[WORDS] = style.Style("black", "x", ":")
    figure, axis = style.make_panels(1, 1, 2.8)
    axis.axhline(50, **style.DOTTED)
    for shift, (name, look) in enumerate(looks.items()):
        for place, part in enumerate(THIRDS):
            inside = third == part
            count, n = int(right[name][inside].sum()), int(inside.sum())
            interval = wilson(count, n)
            x = place + 0.12 * (shift - 1)
            axis.plot([x, x], [interval["low"], interval["high"]], color=look.color, linewidth=1)
            axis.plot(x, 100 * count / n, look.marker, color=look.color, markersize=5)
    labels = [f"{name}\n(mean {longer[third == name].mean():+.0f})" for name in THIRDS]
    labels = [label.replace("-", "−") for label in labels]
    axis.set_xticks(range(len(THIRDS)), labels)
    axis.set(xlabel="chosen minus rejected reply (tokens)", ylabel="chosen right (%)")
    handles = style.make_handles(looks, lines=False)
    style.entitle(figure, _say_finding(right, third), handles)
    return figure


def _say_finding(right: Mapping[str, np.ndarray], third: np.ndarray) -> str:
    """Say whether all ways of choosing follow the length: right for shorter, wrong for longer."""
    follow = True
    for name in right:
        shorter, longer = (right[name][third == part] for part in (THIRDS[0], THIRDS[-1]))
        is_right = wilson(int(shorter.sum()), len(shorter))["low"] > 50
        is_wrong = wilson(int(longer.sum()), len(longer))["high"] < 50
        follow = follow and is_right and is_wrong
    if follow:
        return "Right where the chosen reply is shorter"
    return f"Right choices in thirds of the {len(third)} test pairs"
