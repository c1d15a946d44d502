"""What the test pairs say of the models of benchmarks.real_model, pair by pair, and of why.

    python -m benchmarks.real_model_pairs DATASET [--results FOLDER]

Computes the log-probability of both replies of every test pair under the models that DPO trained
and their references, with the adapters that benchmarks.real_model left in its folder of runs (or in
FOLDER), and what a bag of words makes of the same pairs. Writes benchmarks/real_model_pairs.csv,
with a line for each pair and no texts, real_model_pairs.json, which says of which training they
are, and what follows from both: the tables in real_model_pairs.md, the sentences in
real_model_result.md, and the figure figures/real-model/accuracy_by_length.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import bag_of_words, real_model_tables
from benchmarks.common import BENCHMARKS, ROOT, describe_machine, existing_folder
from benchmarks.real_model import PLACE, RUN, read_validation
from benchmarks.real_model_tables import REFERENCE_OF, REPLIES
from posttrain import data, likelihood, models, settings, style
from posttrain.files import read_json, write
from posttrain.run import Run
from posttrain.tokens import list_special_tokens

RECORD = BENCHMARKS / "real_model_pairs.csv"
RESULT = BENCHMARKS / "real_model_result.md"
BATCH = 8  # texts in a batch

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


def list_measured(run: Run) -> list[str]:
    """List the models that DPO trained, each after its reference, without repetition."""
    names = []
    for model in run.models:
        if model.name in REFERENCE_OF:
            names += [REFERENCE_OF[model.name], model.name]
    return list(dict.fromkeys(names))


def log_probabilities(
    run: Run, base: Path, tokenizer: Any, pairs: Sequence[Pair]
) -> dict[str, list[float]]:
    """Compute the log-probability of both replies of pairs under models of a run, in fp32.

    The models are those that DPO trained, and their references.

    Args:
        run: the run, with its adapters.
        base: the folder of its base.
        tokenizer: the base's.
        pairs: with their token ids.

    Returns:
        {"Base chosen": in nats for each pair, "Base rejected": …} for each model.
    """
    loaded = models.load_models(run, base, list_measured(run))
    prompts = [pair["prompt_ids"].tolist() for pair in pairs]
    columns = {}
    for name, model in loaded.items():
        for reply in REPLIES:
            ids = [pair[f"{reply}_ids"].tolist() for pair in pairs]
            with models.switched_to(model, name):
                means = likelihood.mean_log_probabilities(model, tokenizer, prompts, ids, BATCH)
            columns[f"{name} {reply}"] = [mean * len(one) for mean, one in zip(means, ids)]
    return columns


def measure(run: Run, base: Path, dataset: Path) -> pd.DataFrame:
    """Measure the test pairs under models of a run, as above, and under a bag of words.

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


# ---- writing


def read_record() -> pd.DataFrame:
    """Read what was measured."""
    return pd.read_csv(RECORD)


def describe_run(run: Run) -> dict[str, Any]:
    """Describe the training whose models are measured: its machine, adapters and held-out pairs."""
    log = read_json(run.path("training.json"))
    record = run.record
    trained = run.models[1:]
    return {
        **describe_machine(),
        "beta": record.settings["training"]["beta"],
        "held out": sum(subset["validation"] for subset in record.data),
        "adapters": {model.name: record.artifacts[model.adapter].sha256 for model in trained},
        "run": {model.name: read_validation(log[model.name]) for model in trained},
    }


def write_tables() -> None:
    """Write the tables, the sentences and the figure of what was measured."""
    # The figure has no label, which would be that of the first training.
    run = Run(ROOT / "results", RUN, labelled=False, must_exist=True)
    table, again = read_record(), read_json(RECORD.with_suffix(".json"))
    earlier = read_json(BENCHMARKS / "real_model.json")
    write(RECORD.with_suffix(".md"), real_model_tables.as_table(table, again["beta"]))
    write(RESULT, real_model_tables.write_result(table, again, earlier) + "\n")
    if real_model_tables.list_trained(table):
        names = [model.name for model in run.models]
        figure = real_model_tables.draw_by_length(table, names)
        style.show(figure, run, "accuracy_by_length")


def main() -> None:
    """Measure the test pairs, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=existing_folder, help="a folder in HH-RLHF's layout")
    parser.add_argument(
        "--results", type=existing_folder, default=PLACE / "results", help="the folder of the run"
    )
    options = parser.parse_args()
    run = Run(options.results, RUN, must_exist=True)
    table = measure(run, ROOT / run.models[0].base, options.dataset)
    write(RECORD, table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
    write(RECORD.with_suffix(".json"), describe_run(run))
    write_tables()
    print(RECORD.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
