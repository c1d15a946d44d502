"""How the four models of benchmarks.real_model answer harmful prompts, without a judge.

    python -m benchmarks.real_model_answers DATASET TRAINED [--results FOLDER] [--prompts N]

DATASET is a folder with HH-RLHF's test split of harmless-base, and TRAINED the one that the models
were trained from. All four models are asked every prompt of the test split that has one of the
study's keywords (with --prompts only N of them, drawn at random). Writes
benchmarks/real_model_answers.csv, with a line for each answer, and real_model_answers.md. The texts
stay in the run's folder and are not committed.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import BENCHMARKS, existing_folder
from benchmarks.real_model import PLACE, RUN
from benchmarks.real_model_tables import format_share
from posttrain import behaviour, data, generation, metrics, models, settings
from posttrain.comparisons import compare_rates, decide, format_signed, holm
from posttrain.files import sha256_of, write
from posttrain.prompts import KEYWORD
from posttrain.run import Run
from posttrain.tokens import list_special_tokens

RECORD = BENCHMARKS / "real_model_answers.csv"
NEW_TOKENS = 128  # the limit of an answer
BATCH = 16  # prompts answered at once
DRAWS = 10_000  # of the bootstrap
PROPERTIES = {**behaviour.PROPERTIES, "repetitive": "repeat themselves"}
COLUMNS = ("id", "model", "trained", "finish", "tokens", "log_ratio", *PROPERTIES)

Record = dict[str, Any]


# ---- asking


def read_prompts(dataset: Path, tokenizer: Any) -> list[Record]:
    """Read the prompts of harmless-base's test split that have a keyword, without duplicates.

    Args:
        dataset: a folder in HH-RLHF's layout.
        tokenizer: the base's, whose special tokens no text may contain.

    Returns:
        Records of prompts.json. The number in an id is that of the line in the split, from 0.
    """
    special_tokens = list_special_tokens(tokenizer)
    prompts, known = [], set()
    for line, row in enumerate(data.read_split(dataset, data.MEASURED["harmful"], "test")):
        try:
            pair = data.split_pair(row, special_tokens)
        except ValueError:
            continue
        if KEYWORD.search(pair["prompt"]) and pair["prompt"] not in known:
            known.add(pair["prompt"])
            prompts.append({"id": f"harmful-{line:04d}", "kind": "harmful", **pair})
    return prompts


def is_trained(prompt: str, trained: Sequence[str]) -> bool:
    """Tell whether training had the conversation of a prompt, or a part or continuation of it.

    A prompt for training may have lost its oldest turns.
    """
    for other in trained:
        if prompt.startswith(other) or other.startswith(prompt) or prompt.endswith(other):
            return True
    return False


def ask(run: Run, dataset: Path, trained_from: Path, n: int | None) -> pd.DataFrame:
    """Let all models of a run answer the prompts, which are saved in its folder with the answers.

    Args:
        run: the run, with its adapters.
        dataset: a folder with the test split of harmless-base.
        trained_from: the dataset that the models were trained from.
        n: how many prompts are drawn; None takes all.

    Returns:
        A table with a row for each answer and COLUMNS. "trained" says whether the pairs of the
        training, held-out ones included, had the prompt's conversation.
    """
    base = run.source("base_model", run.models[0].base)
    tokenizer = models.load_tokenizer(base.folder)

    def draw() -> list[Record]:
        prompts = read_prompts(dataset, tokenizer)
        return prompts if n is None else random.Random(0).sample(prompts, n)

    file = dataset / data.MEASURED["harmful"] / "test.jsonl.gz"
    prompts = run.stage("prompts.json", draw, {"file": sha256_of(file), "n": n})
    responses = generation.answer(
        run,
        prompts,
        base,
        BATCH,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        stop_strings=[data.TURN],
    )
    known = settings.Training(**run.record.settings["training"])
    pairs = data.load_pairs(trained_from, tokenizer, known)
    trained = [pair["prompt"] for pair in pairs.train + pairs.validation]
    answers = behaviour.add_properties(metrics.table(prompts, responses))
    answers["repetitive"] = [behaviour.distinct_2([text]) < 0.5 for text in answers["response"]]
    answers["trained"] = [is_trained(prompt, trained) for prompt in answers["prompt"]]
    return answers[list(COLUMNS)]


# ---- what the answers show


def leave_out_trained(answers: pd.DataFrame) -> pd.DataFrame:
    """Select the answers to prompts whose conversations the training did not have."""
    return answers[~answers["trained"]]


def describe(answers: pd.DataFrame) -> list[Record]:
    """Measure the answers of each model.

    Args:
        answers: a table with COLUMNS.

    Returns:
        For each model its name, the number of prompts, the counts of PROPERTIES, the mean number of
        tokens, and the mean log-ratio to Base (nats per token) with its 95% bootstrap interval.
    """
    records = []
    for model in metrics.models_of(answers):
        part = answers[answers["model"] == model]
        record = {"model": model, "prompts": len(part)}
        record |= {name: int(part[name].sum()) for name in PROPERTIES}
        record["tokens"] = float(part["tokens"].mean())
        values = part["log_ratio"].to_numpy()
        means = metrics.bootstrap_means(values[:, None], DRAWS, 0)[:, 0]
        interval = metrics.percentiles(values, means)
        metrics.add_estimate(record, "log_ratio", float(values.mean()), interval)
        records.append(record)
    return records


def compare(answers: pd.DataFrame) -> list[Record]:
    """Compare every pair of models in every property on the same prompts.

    Args:
        answers: a table with COLUMNS.

    Returns:
        The fields of a comparison for each property and pair of models, with p corrected by Holm
        over the pairs of a property.
    """
    records = []
    for name in PROPERTIES:
        wide = answers.pivot(index="id", columns="model", values=name)
        family = []
        for first, second in combinations(metrics.models_of(answers), 2):
            compared = compare_rates(wide, first, second, level=None)
            family.append({"measure": name, "first": first, "second": second, **compared})
        adjusted = holm([record["p"] for record in family])
        for record, p_holm in zip(family, adjusted):
            record["p_holm"] = p_holm
            record["decision"] = decide(record, len(wide))
        records += family
    return records


def as_table(answers: pd.DataFrame) -> str:
    """Write two markdown tables: the rates of each model, and the differences that are significant.

    Args:
        answers: a table with COLUMNS.
    """
    unseen = leave_out_trained(answers)
    significant = [one for one in compare(unseen) if one["decision"] == "significant"]
    lines = [*_write_rates(describe(unseen)), "", *_write_differences(significant)]
    return "\n".join(lines) + "\n"


def _write_rates(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the rates of the properties, the mean length and the mean log-ratio."""
    lines = [
        f"**Behaviour.** How the models answer {records[0]['prompts']} harmful prompts, in percent "
        "of the prompts with 95% intervals. An answer repeats itself if fewer than half of its "
        "pairs of successive words are different ones.",
        "",
        f"| model | {' | '.join(PROPERTIES.values())} | tokens | log-ratio to Base |",
        f"|{'---|' * (len(PROPERTIES) + 3)}",
    ]
    for record in records:
        cells = [record["model"]]
        cells += [format_share(record[name], record["prompts"]) for name in PROPERTIES]
        cells.append(f"{record['tokens']:.0f}")
        if record["log_ratio_low"] is None:  # Base, compared with itself
            cells.append("")
        else:
            ends = [format_signed(record[f"log_ratio_{end}"], 2) for end in ("low", "high")]
            cells.append(f"{format_signed(record['log_ratio'], 2)} [{', '.join(ends)}]")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_differences(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the differences that are significant, in points."""
    if not records:
        return ["No difference between two models is significant in any of these properties."]
    lines = [
        "**Differences.** All that are significant after a correction for the pairs of models, but "
        "not for the number of properties.",
        "",
        "| answers that | second − first model | points [95% interval] | p, corrected |",
        "|---|---|---|---|",
    ]
    for record in records:
        ends = [format_signed(record[end], 1) for end in ("low", "high")]
        p = "< 0.001" if record["p_holm"] < 0.001 else f"{record['p_holm']:.3f}"
        lines.append(
            f"| {PROPERTIES[record['measure']]} | {record['second']} − {record['first']} "
            f"| {format_signed(record['difference'], 1)} [{', '.join(ends)}] | {p} |"
        )
    return lines


def read_record() -> pd.DataFrame:
    """Read what was measured."""
    return pd.read_csv(RECORD)


def main() -> None:
    """Let the models answer, and write how they do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=existing_folder, help="with harmless-base's test split")
    parser.add_argument("trained", type=existing_folder, help="what the models were trained from")
    parser.add_argument(
        "--results", type=existing_folder, default=PLACE / "results", help="the folder of the run"
    )
    parser.add_argument("--prompts", type=int, help="how many prompts are drawn; else all")
    options = parser.parse_args()
    run = Run(options.results, RUN, must_exist=True)
    answers = ask(run, options.dataset, options.trained, options.prompts)
    write(RECORD, answers.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    table = as_table(read_record())
    write(RECORD.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
