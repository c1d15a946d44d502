"""What the test pairs say of the models of benchmarks.real_model, pair by pair, and of why.

    python -m benchmarks.real_model_pairs DATASET [--results FOLDER]

Computes the log-probability of both replies of every test pair under all four models, with the
adapters that benchmarks.real_model left in its folder of runs (or in FOLDER), and what a bag of
words makes of the same pairs. Writes benchmarks/real_model_pairs.csv, with a line for each pair,
then the tables in real_model_pairs.md and the figure figures/real-model/accuracy_by_length. The
texts are not written.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import bag_of_words
from benchmarks.common import BENCHMARKS, ROOT, existing_folder
from benchmarks.real_model import PLACE, RUN, format_numbers
from posttrain import data, generation, models, settings, style
from posttrain.comparisons import exact_mcnemar, format_signed
from posttrain.files import write
from posttrain.metrics import paired_difference, percentiles, redraw_prompts, wilson
from posttrain.run import Run
from posttrain.tokens import list_special_tokens

RECORD = BENCHMARKS / "real_model_pairs.csv"
REFERENCE_OF = {"DPO": "Base", "SFT+DPO": "SFT"}  # from which the training by DPO started
WORDS = "Bag of words"
SHORTER = "The shorter reply"
REPLIES = ("chosen", "rejected")
BATCH = 8  # texts in a batch
DRAWS = 10_000  # of the bootstrap
THIRDS = ("chosen shorter", "about as long", "chosen longer")

Pair = dict[str, Any]


# ---- measuring


def read_test_pairs(dataset: Path, tokenizer: Any, max_length: int) -> list[Pair]:
    """Read the usable pairs of the test splits, as pairs for training are prepared.

    Args:
        dataset: a folder in HH-RLHF's layout.
        tokenizer: the base's.
        max_length: the limit of a pair in tokens.

    Returns:
        The pairs in the order of the files, with texts and token ids. The id of a pair is its
        subset and the number of its line in the subset's test split, from 0. A pair whose prompt
        the training splits have too is left out.
    """
    special_tokens = list_special_tokens(tokenizer)
    trained, pairs, report = set(), [], {}
    for subset in data.SUBSETS["base"]:
        of_training, _ = data.split_pairs(data.read_split(dataset, subset, "train"), ())
        trained.update(pair["prompt"] for pair in of_training)
        report[subset] = Counter()
        for line, row in enumerate(data.read_split(dataset, subset, "test")):
            try:
                pair = data.split_pair(row, special_tokens)
            except ValueError:
                continue
            pairs.append(pair | {"id": f"{subset}/{line}", "subset": subset})
    unseen = [pair for pair in pairs if pair["prompt"] not in trained]
    return data.fit_pairs(unseen, tokenizer, max_length, trained, report)


def log_probabilities(
    run: Run, base: Path, tokenizer: Any, pairs: Sequence[Pair]
) -> dict[str, list[float]]:
    """Compute the log-probability of both replies of pairs under all models of a run, in fp32.

    Args:
        run: the run, with its adapters.
        base: the folder of its base.
        tokenizer: the base's.
        pairs: with their token ids.

    Returns:
        {"Base chosen": in nats for each pair, "Base rejected": …} for each model.
    """
    loaded = models.load_models(run, base)
    prompts = [pair["prompt_ids"].tolist() for pair in pairs]
    columns = {}
    for name, model in loaded.items():
        for reply in REPLIES:
            ids = [pair[f"{reply}_ids"].tolist() for pair in pairs]
            with models.switched_to(model, name):
                means = generation.mean_log_probabilities(model, tokenizer, prompts, ids, BATCH)
            columns[f"{name} {reply}"] = [mean * len(one) for mean, one in zip(means, ids)]
    return columns


def measure(run: Run, base: Path, dataset: Path) -> pd.DataFrame:
    """Measure the test pairs under all models of a run, and under a bag of words.

    Args:
        run: the run, with its adapters.
        base: the folder of its base.
        dataset: the folder that it was trained from.

    Returns:
        A table with a row for each pair: its id, the tokens of both replies with their ends, the
        log-probability of both under each model (nats), and the margin of a bag of words that
        learned from the run's training pairs (log-odds).
    """
    tokenizer = models.load_tokenizer(base)
    known = settings.Training(**run.record.settings["training"])
    pairs = read_test_pairs(dataset, tokenizer, known.max_length)
    of_training = data.load_pairs(dataset, tokenizer, known)
    margins, penalty = bag_of_words.predict(of_training.train, of_training.validation, pairs)
    print(f"The penalty of the bag of words is {penalty:g}.")
    columns = {"id": [pair["id"] for pair in pairs]}
    for reply in REPLIES:
        columns[f"{reply} tokens"] = [len(pair[f"{reply}_ids"]) for pair in pairs]
    columns |= log_probabilities(run, base, tokenizer, pairs)
    return pd.DataFrame(columns | {"words": margins})


# ---- what follows from the log-probabilities


def margins_of(table: pd.DataFrame, model: str) -> pd.Series:
    """Compute by how much a model moved towards the chosen replies, in nats; β is left out."""
    reference = REFERENCE_OF[model]
    moved = {reply: table[f"{model} {reply}"] - table[f"{reference} {reply}"] for reply in REPLIES}
    return moved["chosen"] - moved["rejected"]


def choose_right(table: pd.DataFrame) -> pd.DataFrame:
    """Tell for each pair and each way of choosing whether it chooses the chosen reply.

    Args:
        table: of `measure`.

    Returns:
        A table of truth values with the models that DPO trained, the bag of words, and the rule
        that takes the shorter reply. A tie is not right.
    """
    right = {model: margins_of(table, model) > 0 for model in REFERENCE_OF}
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
        table: of `measure`.
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
        table: of `measure`.
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
        table: of `measure`.
        beta: β, by which margins are multiplied.
    """
    lines = [*_write_accuracy(table), "", *_write_by_length(table), ""]
    lines += [*_write_ranks(table), "", *_write_falls(table, beta)]
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
    for name in (*REFERENCE_OF, WORDS):
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
    for model in REFERENCE_OF:
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
    for model in REFERENCE_OF:
        falls = fall_equally(table, model)
        cells = [model, format_numbers(falls["chosen"], 1), format_numbers(falls["rejected"], 1)]
        cells += [format_numbers([beta * falls[name]], 3) for name in ("margin", "equal")]
        ends = ", ".join(format_numbers([falls[end]], 0) for end in ("low", "high"))
        cells.append(f"{format_numbers([falls['share']], 0)}% [{ends}]")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw_by_length(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw how many pairs are chosen right against the difference in length, in thirds.

    Args:
        table: of `measure`.
        names: the run's models in order, for their styles.
    """
    right, longer, third = choose_right(table), longer_by(table), divide_by_length(table)
    looks = style.style_of(names)
    looks = {name: looks[name] for name in REFERENCE_OF}
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
    handles: list[Line2D] = style.make_handles(looks, lines=False)
    style.entitle(figure, f"Right choices in thirds of the {len(table)} test pairs", handles)
    return figure


def read_record() -> pd.DataFrame:
    """Read what was measured."""
    return pd.read_csv(RECORD)


def write_tables(table: pd.DataFrame, run: Run) -> None:
    """Write the tables and the figure of what was measured.

    Args:
        table: of `measure`.
        run: in whose folder of figures the figure is written.
    """
    beta = run.record.settings["training"]["beta"]
    write(RECORD.with_suffix(".md"), as_table(table, beta))
    names = [model.name for model in run.models]
    style.show(draw_by_length(table, names), run, "accuracy_by_length")


def main() -> None:
    """Measure the test pairs, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=existing_folder, help="a folder in HH-RLHF's layout")
    parser.add_argument(
        "--results", type=existing_folder, default=PLACE / "results", help="the folder of the run"
    )
    options = parser.parse_args()
    run = Run(options.results, RUN, ROOT / "figures", must_exist=True)
    table = measure(run, ROOT / run.models[0].base, options.dataset)
    write(RECORD, table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
    write_tables(read_record(), run)
    print(RECORD.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
