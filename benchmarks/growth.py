"""How time and memory grow with the work: data, trainers, generation and judging.

    python -m benchmarks.growth [--dataset FOLDER] [--repeats 3] [--toy] [--out FOLDER]

At 1, 4 and 16 times the work. The largest dataset has as many pairs as HH-RLHF. The text of a
folder in HH-RLHF's layout, or the demo's, is taken again and again, each time with another number
in its first turn, so that every pair is a pair of its own. Preparing pairs, preparing them again,
which reads what the first time has kept, and setting up are what main.ipynb's own cells do.
Generation and judging work with the demo's models. Each measurement is a process of its own, in
turn, and again. Writes benchmarks/growth.json and growth.md.
"""

import argparse
import gzip
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BENCHMARKS,
    DEMO,
    HUB,
    Notebook,
    build_trainer,
    describe_machine,
    existing_folder,
    in_a_process,
    prepare_training,
    print_result,
)
from benchmarks.stages import build_models
from posttrain import data, generation, models, settings
from posttrain.device import process_peak
from posttrain.files import write
from posttrain.rewards import compute_rewards

TIMES = (1, 4, 16)
PAIRS = 10_050  # that are prepared, at once the work
TEXTS = 512  # prompts that are answered, at once the work; four answers to each are judged


def write_dataset(folder: Path, pairs: int, source: Path) -> None:
    """Write a dataset in HH-RLHF's layout, in its four subsets, from the text of a source.

    Args:
        folder: where it is written.
        pairs: of the training splits together.
        source: a folder in HH-RLHF's layout.
    """
    usable = []
    for subset in data.SUBSETS["base"]:
        for row in data.read_split(source, subset, "train"):
            if isinstance(row, dict) and row["chosen"].startswith(data.TURN):
                usable.append(row)
    for subset in data.SUBSETS["all"]:
        (folder / subset).mkdir(parents=True)
        for split, n in (("train", pairs // 4), ("test", 100)):
            path = folder / subset / f"{split}.jsonl.gz"
            with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
                for i in range(n):
                    row = usable[i % len(usable)]
                    numbered = {}
                    for side in ("chosen", "rejected"):
                        numbered[side] = number_turn(row[side], f"{subset}, {split}, {i}")
                    file.write(json.dumps(numbered) + "\n")


def number_turn(text: str, number: str) -> str:
    """Put a number before the first turn of a conversation, so that it is one of its own."""
    return f"{data.TURN} {number}.{text.removeprefix(data.TURN)}"


def measure_preparing(times: int, folder: Path, pairs: int, source: Path) -> list[dict[str, Any]]:
    """Measure preparing pairs, and building the trainers of SFT and DPO.

    Args:
        times: how many times the work.
        folder: with the models of `build_models`.
        pairs: once the work.
        source: a folder in HH-RLHF's layout.

    Returns:
        A record for each of the two stages.
    """
    if not (folder / f"data-{times}").exists():
        write_dataset(folder / f"data-{times}", times * pairs, source)
    shutil.rmtree(folder / f"results-{times}", ignore_errors=True)
    start = time.perf_counter()
    notebook = prepare_pairs(times, folder)
    prepared = describe("preparing pairs", times, times * pairs, start)
    start = time.perf_counter()
    for model in ("SFT", "DPO"):
        build_trainer(notebook, model)
    return [prepared, describe("setting up trainers", times, times * pairs, start)]


def measure_starting_again(times: int, folder: Path, pairs: int) -> list[dict[str, Any]]:
    """Measure the second start of a run whose pairs `measure_preparing` has prepared.

    Args:
        times: how many times the work.
        folder: as in `measure_preparing`.
        pairs: once the work.

    Returns:
        A list of one record.
    """
    start = time.perf_counter()
    prepare_pairs(times, folder)
    return [describe("preparing the pairs again", times, times * pairs, start)]


def prepare_pairs(times: int, folder: Path) -> Notebook:
    """Run main.ipynb's cells up to the first trainer, with all pairs of a dataset of `folder`."""
    return prepare_training(
        PRESET="small",
        RESULTS=str(folder / f"results-{times}"),
        DATASET=str(folder / f"data-{times}"),
        BASE_MODEL=str(folder / "opt"),
        MAX_PAIRS=10**9,
        SETTINGS={"subsets": "all"},
    )


def measure_answering(times: int, texts: int) -> list[dict[str, Any]]:
    """Measure answering prompts, and judging four answers to each.

    Args:
        times: how many times the work.
        texts: prompts, once the work.

    Returns:
        A record for each of the two stages.
    """
    tokenizer = models.load_tokenizer(HUB / "opt")
    rules = data.read_rules(settings.evaluation("demo"))
    drawn = data.draw_prompts(DEMO, "default", texts // 8, tokenizer, 256, 0, True, rules)
    prompts = []
    for i, prompt in enumerate(drawn * 4 * times):
        prompts.append(prompt | {"prompt": number_turn(prompt["prompt"], str(i))})
    loaded = {"Base": models.load_base(HUB / "opt").eval()}
    options = {"do_sample": False, "max_new_tokens": 48, "stop_strings": [data.TURN]}
    # The first call takes longer.
    generation.answer_as("Base", loaded, tokenizer, prompts[:1], 16, **options)
    start = time.perf_counter()
    generation.answer_as("Base", loaded, tokenizer, prompts, 16, **options)
    answered = describe("generation", times, len(prompts), start)

    judge, tokenizer = models.load_judge(HUB / "reward-model")
    compute_rewards(judge, tokenizer, [tokenizer("once", "before")], 512)  # here too
    start = time.perf_counter()
    # The demo's judge does not know the numbers. `rate_texts` would read equal texts only once.
    inputs = [tokenizer(prompt["prompt"], prompt["chosen"]) for prompt in 4 * prompts]
    compute_rewards(judge, tokenizer, inputs, 512)
    return [answered, describe("judging", times, len(inputs), start)]


def describe(stage: str, times: int, n: int, start: float) -> dict[str, Any]:
    """Describe a stage that has just ended.

    Args:
        stage: its name.
        times: how many times the work.
        n: the units of work.
        start: when it began.

    Returns:
        A record with its seconds and the most memory that the process has had so far, in GiB.
    """
    return {
        "stage": stage,
        "times": times,
        "n": n,
        "seconds": time.perf_counter() - start,
        "peak GiB": process_peak(),
    }


def as_table(record: Mapping[str, Any]) -> str:
    """Write the measurements as a markdown table.

    Args:
        record: of growth.json.
    """
    lines = [
        "| stage | pairs, prompts or answers | seconds: median (every round) "
        "| time for each, relative to the smallest number | peak memory so far (GiB) |",
        "|---|---|---|---|---|",
    ]
    for stage in dict.fromkeys(run["stage"] for run in record["runs"]):
        least = None
        for times in TIMES:
            runs = [run for run in record["runs"] if run["stage"] == stage]
            runs = [run for run in runs if run["times"] == times]
            of_a_unit = _median_seconds(runs) / times
            least = least or of_a_unit
            seconds = ", ".join(f"{run['seconds']:.1f}" for run in runs)
            lines.append(
                f"| {stage} | {runs[0]['n']:,} | {_median_seconds(runs):.1f} ({seconds}) "
                f"| {of_a_unit / least:.2f} | {max(run['peak GiB'] for run in runs):.2f} |"
            )
    return "\n".join(lines) + "\n"


def _median_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """Compute the median of the seconds of some measurements."""
    return statistics.median(run["seconds"] for run in runs)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--toy", action="store_true", help="a hundredth of the work, to see that it runs"
    )
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    parser.add_argument(
        "--dataset", type=existing_folder, help="real text in HH-RLHF's layout; else the demo's"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # stage, times, models
    return parser.parse_args()


def main() -> None:
    """Measure all stages at all sizes, and write what was measured."""
    options = read_options()
    pairs = PAIRS // 100 if options.toy else PAIRS
    texts = TEXTS // 32 if options.toy else TEXTS
    if options.one:
        stage, times, folder = options.one
        if stage == "preparing":
            print_result(measure_preparing(int(times), Path(folder), pairs, options.dataset))
        elif stage == "again":
            print_result(measure_starting_again(int(times), Path(folder), pairs))
        else:
            print_result(measure_answering(int(times), texts))
        return
    runs = []
    dataset = options.dataset or DEMO
    more = ["--toy"] if options.toy else []
    with tempfile.TemporaryDirectory() as folder:
        build_models(Path(folder), dataset, toy=True)
        for _ in range(options.repeats):
            for stage in ("preparing", "again", "answering"):
                for times in TIMES:
                    arguments = (stage, str(times), folder, "--dataset", str(dataset), *more)
                    measured = in_a_process("growth", *arguments)
                    print(*measured, sep="\n", flush=True)
                    runs += measured
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **describe_machine(),
        "text": "real" if options.dataset else "the demo's",
        "toy": options.toy,
        "runs": runs,
    }
    write(options.out / "growth.json", record)
    write(options.out / "growth.md", as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
