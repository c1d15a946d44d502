"""How time and memory grow: preparing data, setting up trainers, generation and judging at 1, 4 and 16 times the work.

    python -m benchmarks.growth [--dataset FOLDER] [--repeats 3] [--toy] [--out folder]

The largest dataset has as many pairs as HH-RLHF. The text of a folder in HH-RLHF's layout, or the demo's, is taken
again and again, each time with another number in its first turn, so that every pair is a pair of its own.
Preparing and setting up are what main.ipynb's own cells do. Generation and judging work with the demo's models. Each
measurement is a process of its own, in turn, and again. Writes benchmarks/growth.json and growth.md.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.speed import (
    DEMO,
    ROOT,
    build_models,
    existing_folder,
    in_a_process,
    notebook_trainer,
    of_the_notebook,
    processor,
)
from posttrain import generation, hh, judging, models
from posttrain.files import write
from posttrain.runs import process_peak

TIMES = (1, 4, 16)
PAIRS, TEXTS = 10_050, 512  # once: pairs that are prepared, prompts that are answered, four answers to each judged
HUB = ROOT / "demo" / "hub"


def write_dataset(folder: Path, pairs: int, source: Path) -> None:
    """Write a dataset of so many training pairs in HH-RLHF's layout, in its four subsets, from the text of a source."""
    rows = [row for subset in hh.SUBSETS["base"] for row in hh.read_split(source, subset, "train")
            if isinstance(row, dict) and row["chosen"].startswith(hh.TURN)]
    for subset in hh.SUBSETS["all"]:
        (folder / subset).mkdir(parents=True)
        for split, n in (("train", pairs // 4), ("test", 100)):
            with gzip.open(folder / subset / f"{split}.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
                for i in range(n):
                    texts = {side: f"{hh.TURN} {subset}, {split}, {i}.{rows[i % len(rows)][side][len(hh.TURN):]}"
                             for side in ("chosen", "rejected")}
                    file.write(json.dumps(texts) + "\n")


def measure_preparing(times: int, folder: Path, pairs: int, source: Path) -> list[dict[str, Any]]:
    """Return the records of preparing so many times the pairs, and of making the trainers of SFT and DPO."""
    if not (folder / f"data-{times}").exists():
        write_dataset(folder / f"data-{times}", times * pairs, source)
    begin = time.perf_counter()
    notebook = of_the_notebook(folder, folder / f"data-{times}", {"subsets": "all"}, MAX_PAIRS=10**9)
    records = [record("preparing pairs", times, times * pairs, begin)]
    begin = time.perf_counter()
    for stage in ("SFT", "DPO"):
        notebook_trainer(notebook, stage, folder / "unfinished")
    return [*records, record("setting up trainers", times, times * pairs, begin)]


def measure_answering(times: int, texts: int) -> list[dict[str, Any]]:
    """Return the records of answering so many times the prompts, and of judging as many answers."""
    tokenizer = AutoTokenizer.from_pretrained(HUB / "opt")
    drawn = hh.draw_prompts(HUB / "hh-rlhf", "default", texts // 8, tokenizer, 256, 0) * 4 * times
    # a number in the first turn, so that each is a prompt of its own and no batch holds one many times
    prompts = [one | {"prompt": f"{hh.TURN} {i}.{one['prompt'][len(hh.TURN):]}"} for i, one in enumerate(drawn)]
    loaded = {"Base": models.load_base(HUB / "opt").eval()}
    decoding = {"do_sample": False, "max_new_tokens": 48, "stop_strings": [hh.TURN]}
    generation.answers(loaded, "Base", tokenizer, prompts[:1], 16, **decoding)  # the first call takes longer
    begin = time.perf_counter()
    generation.answers(loaded, "Base", tokenizer, prompts, 16, **decoding)
    records = [record("generation", times, len(prompts), begin)]
    judge, tokenizer = models.load_judge(HUB / "reward-model")
    judging.rewards(judge, tokenizer, [tokenizer("once", "before")], 512)  # here too
    begin = time.perf_counter()
    judging.rewards(judge, tokenizer, [tokenizer(one["prompt"], one["chosen"]) for one in 4 * prompts], 512)
    return [*records, record("judging", times, 4 * len(prompts), begin)]


def record(stage: str, times: int, n: int, begin: float) -> dict[str, Any]:
    """Return what a stage took since `begin`: seconds, and the most memory that its process has had so far, in GiB."""
    return {"stage": stage, "times": times, "n": n, "seconds": time.perf_counter() - begin,
            "peak GiB": process_peak()}


def as_table(found: dict[str, Any]) -> str:
    """Return the measurements as a markdown table."""
    lines = ["| stage | work | seconds, median (all) | of a unit, times the least work's | peak GiB so far |",
             "|---|---|---|---|---|"]
    for stage in dict.fromkeys(one["stage"] for one in found["runs"]):
        of_a_unit = []
        for times in TIMES:
            runs = [one for one in found["runs"] if (one["stage"], one["times"]) == (stage, times)]
            seconds = [one["seconds"] for one in runs]
            of_a_unit.append(statistics.median(seconds) / times)
            lines.append(f"| {stage} | {runs[0]['n']:,} | {statistics.median(seconds):.1f} "
                         f"({', '.join(f'{one:.1f}' for one in seconds)}) | {of_a_unit[-1] / of_a_unit[0]:.2f} | "
                         f"{max(one['peak GiB'] for one in runs):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all stages at all sizes, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="a hundredth of the work, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    parser.add_argument("--dataset", type=existing_folder, help="real text in HH-RLHF's layout; else the demo's")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    pairs, texts = (PAIRS // 100, TEXTS // 32) if options.toy else (PAIRS, TEXTS)
    if options.one:
        stage, times, folder = options.one
        records = measure_preparing(int(times), Path(folder), pairs, options.dataset) if stage == "preparing" else (
            measure_answering(int(times), texts))
        print("\nRESULT " + json.dumps(records))
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or DEMO
        build_models(Path(folder), dataset, toy=True)
        for _ in range(options.repeats):
            for stage in ("preparing", "answering"):
                for times in TIMES:
                    runs += in_a_process("growth", stage, str(times), folder, "--dataset", str(dataset),
                                         *["--toy"] * options.toy)
                    print(*runs[-2:], sep="\n", flush=True)
    found = {"date": datetime.now(UTC).date().isoformat(), "machine": processor(), "cores": os.cpu_count(),
             "text": "real" if options.dataset else "the demo's", "toy": options.toy, "runs": runs}
    write(options.out / "growth.json", found)
    write(options.out / "growth.md", as_table(found))
    print(as_table(found))


if __name__ == "__main__":
    main()
